"""The express codec on single heads: what it takes, what it declines, and that it forgets nothing and keeps little."""

from __future__ import annotations

import gc
import sys
from types import FunctionType, ModuleType

import pytest

from tcpgate.codec import express, lines
from tcpgate.codec.events import RESPONSE_LIMITS, Limits
from tcpgate.codec.express import RequestHeads, ResponseHeads
from tests.codec.corpus import load_requests, load_responses
from tests.codec.everyday import REQUESTS, RESPONSES, head
from tests.codec.express_oracle import facts_of_request, facts_of_response, hold_request, hold_response
from tests.proxy.foreign import decode
from tests.proxy.foreign import load as load_foreign

LIMITS = Limits()


def request(*field_lines: str, first: str = "GET / HTTP/1.1") -> bytes:
    return head(first, "Host: a.test", *field_lines)


def response(*field_lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return head(first, *field_lines)


# -- what it takes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_an_everyday_request_is_read_as_the_readable_path_reads_it(name: str) -> None:
    heads = RequestHeads(LIMITS)
    for _ in range(4):  # new, at the door, kept, from the shelf
        got = heads.read(REQUESTS[name])
        assert got is not None
        hold_request(got, REQUESTS[name], LIMITS)


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_an_everyday_response_is_read_as_the_readable_path_reads_it(name: str, method: bytes) -> None:
    heads = ResponseHeads(RESPONSE_LIMITS)
    for _ in range(4):
        got = heads.read(RESPONSES[name])
        assert got is not None
        hold_response(got, RESPONSES[name], RESPONSE_LIMITS, method)


def corpus_heads(*, of_requests: bool) -> list[bytes]:
    """Every beginning of a message in the corpora that might be a head."""
    raws = [case.raw for case in (load_requests() if of_requests else load_responses())]
    for case in load_foreign():
        raws += [case.raw] if of_requests else [decode(answer) for answer in case.answer]
    pieces = [piece for raw in raws for piece in raw.split(b"\r\n\r\n")]
    return [piece + b"\r\n\r\n" for piece in pieces] + raws


def test_whatever_it_takes_of_the_corpora_means_what_the_readable_path_finds_in_it() -> None:
    heads = RequestHeads(LIMITS)
    taken = 0
    for raw in corpus_heads(of_requests=True) * 2:
        got = heads.read(raw)
        if got is not None:
            hold_request(got, raw, LIMITS)
            taken += 1
        assert facts_of_request(heads.read(raw)) == facts_of_request(got)
    assert taken > 500


def test_whatever_it_takes_of_the_responses_of_the_corpora_means_what_the_readable_path_finds_in_it() -> None:
    heads = ResponseHeads(RESPONSE_LIMITS)
    taken = 0
    for raw in corpus_heads(of_requests=False) * 2:
        got = heads.read(raw)
        if got is not None:
            hold_response(got, raw, RESPONSE_LIMITS, b"GET")
            taken += 1
        assert facts_of_response(heads.read(raw)) == facts_of_response(got)
    assert taken > 100


def test_a_head_that_comes_again_is_the_same_object_and_parsed_in_full_once() -> None:
    heads = RequestHeads(LIMITS)
    raw = request("Accept: */*")
    seen = [heads.read(bytes(bytearray(raw))) for _ in range(5)]
    assert seen[4] is not None
    assert seen[4] is seen[3]
    assert seen[4].head() is seen[4].head()


def test_what_only_a_trusted_proxy_may_say_is_left_out_and_told() -> None:
    got = RequestHeads(LIMITS).read(request("Accept: */*", "X_Forwarded-For: 1.2.3.4", "x-request-id: 1"))
    assert got is not None
    assert got.vouched
    assert got.lines == b"Accept: */*\r\n"


def test_close_is_heard_and_keep_alive_is_the_default() -> None:
    heads = RequestHeads(LIMITS)
    said = [heads.read(request(*each)) for each in ([], ["Connection: Keep-Alive"], ["connection: keep-alive, Close"])]
    assert [got.keep_alive for got in said if got is not None] == [True, True, False]


def test_a_204_has_no_length_whatever_it_says() -> None:
    got = ResponseHeads(RESPONSE_LIMITS).read(response("Content-Length: 7", first="HTTP/1.1 204 No Content"))
    assert got is not None
    assert got.length is None


# -- what it declines -----------------------------------------------------------------------------------------------

DECLINED = [
    *(request(first=f"{method} / HTTP/1.1") for method in ("TRACE", "CONNECT", "PROPFIND", "get", "G\tT")),
    *(
        request(first=f"GET {target} HTTP/1.1")
        for target in ("*", "http://a.test/", "", "a", "/%", "/%00", "/%g0", "/\\", "/#", "/?#", "/ ", "/\x7f", "/\xe4")
    ),
    request(first="OPTIONS * HTTP/1.1"),
    *(
        request(first=first)
        for first in ("GET / HTTP/1.0", "GET / HTTP/1.2", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", "GET /", "")
    ),
    *(
        request(line)
        for line in (
            *("Transfer-Encoding: chunked", "Expect: 100-continue", "Upgrade: websocket", "TE: trailers", "Trailer: X"),
            *("Via: 1.1 x", "Max-Forwards: 1", "HTTP2-Settings: AAA", "Host: b.test", "host: a.test", "Close: x"),
            *("Connection: upgrade", "Connection: X-Y", "Connection: close, x", 'Connection: "close"'),
            *("Content-Length: +5", "Content-Length: 5, 5", "Content-Length: ", "Content-Length: 0x5"),
            *("Content-Length: 9223372036854775808", "Content-Length: 00000000000000000005", "Content-Length: \xb2"),
            *("Content_Length: 5", "Content.Length: 5", "Transfer_Encoding: x", "X@Y: 5", "X.Y: 5", "!: 5"),
            *("X : y", " X: y", "X", ": y", "X: \x00", "X: \r", "X: \x7f", "X: a\x0bb", "", "\tfolded", "X:\x0c y"),
        )
    ),
    request("Content-Length: 1", "Content-Length: 1"),
    request("Content-Length: 1", "content-length: 2"),
    request("Authorization: a", "authorization: b"),
    request("Content-Type: a/b", "Content-Type: a/b"),
    head("GET / HTTP/1.1", "Accept: */*"),
    head("GET / HTTP/1.1"),
    *(head("GET / HTTP/1.1", f"Host: {host}") for host in ("", "a,b", "a b", "a:99999", "[::g]", "a..b", "u@a", "a/b")),
    *(
        request("A: b", "C: d").replace(b"A: b\r\n", b"A: b" + end, 1)
        for end in (b"\n", b"\r", b"\r\r\n", b"\n\n", b"\r\n\r\n", b"\n\r", b"\r\n ", b"\x0b\r\n\x00")
    ),
    request()[:-2],
    request()[:-1],
    request() + b"x",
    request()[:-3] + b"\n",
    b"\r\n" + request(),
    b"",
    b"\r\n\r\n",
    b"\r\n\r\n\r\n",
]


@pytest.mark.parametrize("raw", DECLINED)
def test_a_request_that_is_not_plain_is_declined_as_often_as_it_comes(raw: bytes) -> None:
    heads = RequestHeads(LIMITS)
    assert [heads.read(raw) for _ in range(4)] == [None] * 4
    assert heads.read(request()) is not None


DECLINED_RESPONSES = [
    *(
        response("Content-Length: 0", first=first)
        for first in (
            *("HTTP/1.1 100 Continue", "HTTP/1.1 101 Switching Protocols", "HTTP/1.1 199 X", "HTTP/1.1 600 X"),
            *("HTTP/1.0 200 OK", "HTTP/1.2 200 OK", "HTTP/1.1 20 OK", "HTTP/1.1  200 OK", "HTTP/1.1 200 \x00", ""),
            *("http/1.1 200 OK", "HTTP/1.1 200OK", "ICY 200 OK"),
        )
    ),
    *(
        response(line)
        for line in (
            *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: , chunked", "Transfer-Encoding: ", "Trailer: X"),
            *("Upgrade: x", "TE: x", "Host: a", "Proxy-Authenticate: Basic", "Connection: X-Y", "Close: x"),
            *("Content-Length: -1", "Content-Length: 1,1", "X : y", " X: y", "X", "X: \x00", "HTTP2-Settings: AAA"),
        )
    ),
    response("Content-Length: 5", "Transfer-Encoding: chunked"),
    response("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    response("Content-Length: 5", "Content-Length: 5"),
    response("Transfer-Encoding: chunked", first="HTTP/1.1 204 No Content"),
    response("Transfer-Encoding: chunked", first="HTTP/1.1 304 Not Modified"),
    response("X: a\n b"),
    response("X: a\r b"),
    b"",
    b"\r\n\r\n",
]


@pytest.mark.parametrize("raw", DECLINED_RESPONSES)
def test_a_response_that_is_not_plain_is_declined_as_often_as_it_comes(raw: bytes) -> None:
    heads = ResponseHeads(RESPONSE_LIMITS)
    assert [heads.read(raw) for _ in range(4)] == [None] * 4
    assert heads.read(response()) is not None


def test_limits_are_kept_to_the_byte() -> None:
    raw = request("A: b", first="GET /1234567 HTTP/1.1")
    assert RequestHeads(Limits(head=len(raw), headers=2, target=8)).read(raw) is not None
    for limits in (Limits(head=len(raw) - 1), Limits(headers=1), Limits(target=7)):
        assert RequestHeads(limits).read(raw) is None
    answer = response("A: b", "C: d")
    assert ResponseHeads(Limits(head=len(answer), headers=2)).read(answer) is not None
    for limits in (Limits(head=len(answer) - 1), Limits(headers=1)):
        assert ResponseHeads(limits).read(answer) is None


# -- what it keeps --------------------------------------------------------------------------------------------------


def held_by(root: object) -> int:
    """Bytes of all that can be reached from `root`, code aside."""
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen[id(one)] = one
        todo += gc.get_referents(one)
    return sum(map(sys.getsizeof, seen.values()))


SLACK = 3 << 20
"""Tables of the dicts, doors, what the modules share (bytes)."""


MOST_OF_REQUESTS = 2 * (express.MAX_HEADS_WEIGHT + express.MAX_FIELDS_WEIGHT + lines.MAX_LINES_WEIGHT) + SLACK
FORMS = 4 << 20


def flood(heads: RequestHeads | ResponseHeads, first: bytes, field: bytes, count: int) -> None:
    """`count` heads that nobody has sent before, each so often that all of it is worth keeping."""
    for number in range(count):
        raw = first + field % number + b"\r\n\r\n"
        for _ in range(5):
            assert heads.read(raw) is not None
        got = heads.read(raw)
        if isinstance(got, express.ExpressRequest):
            got.head()


@pytest.mark.parametrize(
    "field",
    [
        b"X-Id: %d",
        b"X-%d: y",
        b"X-Id: " + b"x" * 900 + b"%d",
        b"X-Id: " + b"x" * 3000 + b"%d",
        b"\r\n".join([b"%%d-%d:" % number for number in range(1)] + [b"a:"] * 90),
        b"Content-Type: %d",
        b"X-Forwarded-For: %d",
    ],
    ids=lambda field: field[:20].decode(),
)
def test_a_client_of_endless_new_heads_evicts_and_never_adds(field: bytes) -> None:
    heads = RequestHeads(LIMITS)
    flood(heads, b"GET / HTTP/1.1\r\nHost: a.test\r\n", field, 2500)
    assert held_by(heads) < MOST_OF_REQUESTS + FORMS


def test_a_client_of_endless_new_hosts_evicts_and_never_adds() -> None:
    heads = RequestHeads(LIMITS)
    flood(heads, b"GET / HTTP/1.1\r\n", b"Host: h%d.test", 5000)
    assert held_by(heads) < MOST_OF_REQUESTS + FORMS


def test_a_client_of_endless_new_forms_evicts_and_never_adds() -> None:
    heads = RequestHeads(LIMITS)
    for number in range(600):
        padding = b"X-Padding: %04d" % (number // 6) + b"x" * 1500
        other = b"X-Other: %04d" % number + b"x" * 1500
        for value in range(6):
            first = b"GET / HTTP/1.1\r\nHost: h%04d.test\r\n" % (number // 6)
            assert heads.read(b"\r\n".join([first + padding, b"X-Id: %d" % value, other, b"", b""])) is not None
    assert held_by(heads) < MOST_OF_REQUESTS + FORMS


@pytest.mark.parametrize("field", [b"Content-Length: %d", b"X-Id: " + b"x" * 1500 + b"%d"], ids=["length", "long"])
def test_an_endpoint_of_endless_new_heads_evicts_and_never_adds(field: bytes) -> None:
    heads = ResponseHeads(RESPONSE_LIMITS)
    flood(heads, b"HTTP/1.1 200 OK\r\n", field, 4000)
    assert held_by(heads) < 2 * (express.MAX_HEADS_WEIGHT + lines.MAX_LINES_WEIGHT) + SLACK


def test_fields_of_a_known_form_that_come_again_are_known_together() -> None:
    heads = RequestHeads(LIMITS)
    fields = ["User-Agent: " + "x" * 80, "X-Id: {}", "Accept: */*"]
    raws = [request(*fields, first=f"GET /{path} HTTP/1.1").replace(b"{}", b"%d" % value) for path, value in ORDER]
    read = [got.lines for raw in raws if (got := heads.read(raw)) is not None]
    assert len(read) == len(ORDER)
    assert read[-2] is read[-1]


ORDER = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 9), (5, 9), (6, 9)]
"""(path, id) of requests: four to learn the form from, then one client's."""


def test_an_attack_on_one_head_does_not_change_what_another_means() -> None:
    heads = RequestHeads(LIMITS)
    raw = request("A: b", "Content-Length: 5")
    before = facts_of_request(heads.read(raw))
    for bad in DECLINED * 2:
        assert heads.read(bad) is None
        assert facts_of_request(heads.read(raw)) == before
