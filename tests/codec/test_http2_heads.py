"""What is malformed in an HTTP/2 head: every rule with the smallest head that breaks it, and heads that break none."""

from __future__ import annotations

import pytest

from tcpgate.codec.events import Pair
from tcpgate.codec.http2.fields import NO_LENGTH, judge_trailers
from tcpgate.codec.http2.requests import judge_request
from tcpgate.codec.http2.responses import judge_response
from tests.codec.http2_peer import GET, OK

M, S, P, A = GET
CONNECT: tuple[Pair, ...] = ((b":method", b"CONNECT"), (b":authority", b"a.b:443"))
EXTENDED: tuple[Pair, ...] = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), S, P, A)


def with_(name: bytes, value: bytes) -> tuple[Pair, ...]:
    """GET with one pseudo-header field changed."""
    return tuple((name, value) if pair[0] == name else pair for pair in GET)


# What no head may hold, after the pseudo-header fields: field(s) -> part of the rule.
WRONG_FIELDS: list[tuple[tuple[Pair, ...], str]] = [
    (((b"", b"a"),), "empty name"),
    (((b"A", b"b"),), "upper case"),
    (((b"content-Length", b"0"),), "upper case"),
    (((b"a b", b"c"),), "not a token"),
    (((b"a:b", b"c"),), "not a token"),
    (((b"a\r\nb", b"c"),), "not a token"),
    (((b"a\nb", b"c"),), "not a token"),
    (((b"a\n", b"c"), (b"b", b"")), "not a token"),
    (((b"x\ny", b"c"), (b"a", b"")), "not a token"),
    (((b"a\x00", b"c"),), "not a token"),
    (((b"a\x7f", b"c"),), "not a token"),
    (((b"\xe4", b"c"),), "not a token"),
    (((b"a ", b"c"),), "not a token"),
    (((b"transfer-encoding ", b"chunked"),), "not a token"),
    (((b"a", b"b\r\nc: d"),), "control byte"),
    (((b"a", b"b\nc"),), "control byte"),
    (((b"a", b"b\rc"),), "control byte"),
    (((b"a", b"b\x00c"),), "control byte"),
    (((b"a", b"\x01"),), "control byte"),
    (((b"a", b"\x7f"),), "control byte"),
    (((b"a", b"\n"),), "control byte"),
    (((b"a", b" b"),), "white space"),
    (((b"a", b"b "),), "white space"),
    (((b"a", b"\tb"),), "white space"),
    (((b"a", b"b\t"), (b"c", b"d")), "white space"),
    (((b"a", b" "),), "white space"),
    (((b"connection", b"close"),), "HTTP/1"),
    (((b"connection", b""),), "HTTP/1"),
    (((b"keep-alive", b"timeout=5"),), "HTTP/1"),
    (((b"proxy-connection", b"keep-alive"),), "HTTP/1"),
    (((b"transfer-encoding", b"chunked"),), "HTTP/1"),
    (((b"upgrade", b"h2c"),), "HTTP/1"),
    (((b"te", b"gzip"),), "TE"),
    (((b"te", b"trailers, gzip"),), "TE"),
    (((b"te", b"trailers"), (b"te", b"gzip")), "TE"),
    (((b"te", b"gzip"), (b"te", b"trailers")), "TE"),
    (((b"a", b"b"), (b":path", b"/")), "pseudo-header"),
]
WRONG_LENGTHS: list[tuple[tuple[Pair, ...], str]] = [
    (((b"content-length", value),), "Content-Length")
    for value in (b"", b"-1", b"+1", b"1,1", b"1 1", b"0x1", b"1_0", b"9" * 19, b"1" * 20, b"\xb2")
] + [(((b"content-length", b"1"), (b"content-length", b"1")), "more than one")]

RIGHT_FIELDS: list[tuple[Pair, ...]] = [
    (),
    ((b"a", b""),),
    ((b"a", b"b c\td"),),
    ((b"a", b"\xff\x80"),),
    ((b"!#$%&'*+-.^_`|~09az", b"x"),),
    ((b"te", b"trailers"),),
    ((b"te", b"Trailers"),),
    ((b"cookie", b"a=b"), (b"cookie", b"c=d")),
    ((b"http2-settings", b"AAA"),),
]


@pytest.mark.parametrize(("fields", "rule"), WRONG_FIELDS + WRONG_LENGTHS)
def test_a_malformed_field_is_refused_in_requests_and_responses(fields: tuple[Pair, ...], rule: str) -> None:
    assert rule in judge_request(GET + fields).problem
    assert rule in judge_response(OK + fields).problem


@pytest.mark.parametrize(("fields", "rule"), WRONG_FIELDS)
def test_a_malformed_field_is_refused_in_trailers(fields: tuple[Pair, ...], rule: str) -> None:
    assert rule in judge_trailers(fields).problem


@pytest.mark.parametrize("fields", RIGHT_FIELDS)
def test_a_field_that_may_be_passes_everywhere(fields: tuple[Pair, ...]) -> None:
    assert judge_request(GET + fields).problem == ""
    assert judge_response(OK + fields).problem == ""
    assert judge_trailers(fields).problem == ""


WRONG_REQUESTS: list[tuple[tuple[Pair, ...], str]] = [
    ((), "missing"),
    ((S, P, A), "missing"),
    ((M, P, A), "missing"),
    ((M, S, A), "missing"),
    ((M, S, P), "neither"),
    ((*GET, M), "twice"),
    ((*GET, (b":path", b"/other")), "twice"),
    ((*GET, (b":authority", b"example.com")), "twice"),
    ((*GET, (b":status", b"200")), "no request has"),
    ((*GET, (b":unknown", b"x")), "no request has"),
    ((*GET, (b":", b"x")), "no request has"),
    ((*GET, (b":Path", b"/")), "no request has"),
    ((*GET, (b":protocol", b"websocket")), ":protocol"),
    ((M, (b"a", b"b"), S, P, A), "pseudo-header"),
    ((M, S, (b"host", b"a"), P), "pseudo-header"),
    (with_(b":method", b""), ":method"),
    (with_(b":method", b"GET / HTTP/1.1"), ":method"),
    (with_(b":method", b"G\r\n"), ":method"),
    (with_(b":scheme", b""), ":scheme"),
    (with_(b":scheme", b"ftp"), ":scheme"),
    (with_(b":scheme", b"http://evil.example/?"), ":scheme"),
    (with_(b":path", b""), ":path"),
    (with_(b":path", b"*"), ":path"),
    (with_(b":path", b"index.html"), ":path"),
    (with_(b":path", b"http://a.b/"), ":path"),
    (with_(b":path", b"/ HTTP/1.1\r\nx: y"), ":path"),
    (with_(b":path", b"/a b"), ":path"),
    (with_(b":path", b"/a#b"), ":path"),
    (with_(b":path", b"/\xe4"), ":path"),
    (with_(b":path", b"/\x00"), ":path"),
    (with_(b":authority", b""), ":authority"),
    (with_(b":authority", b"user@example.com"), ":authority"),
    (with_(b":authority", b"user:password@example.com"), ":authority"),
    (with_(b":authority", b"a b"), ":authority"),
    (with_(b":authority", b"a/b"), ":authority"),
    (with_(b":authority", b"a\r\nb"), ":authority"),
    (with_(b":authority", b"a:99999"), ":authority"),
    (with_(b":authority", b" a"), ":authority"),
    ((*GET, (b"host", b"other.example")), "differs"),
    ((*GET, (b"host", b"example.com:80")), "differs"),
    ((*GET, (b"host", b"")), "differs"),
    ((*GET, (b"host", b"example.com"), (b"host", b"example.com")), "more than one"),
    ((M, S, P, (b"host", b"a"), (b"host", b"b")), "more than one"),
    ((M, S, P, (b"host", b"")), ":authority"),
    ((*CONNECT, S), "CONNECT"),
    ((*CONNECT, P), "CONNECT"),
    ((*CONNECT, S, P), "CONNECT"),
    ((CONNECT[0],), "CONNECT"),
    ((CONNECT[0], (b"host", b"a.b:443")), "CONNECT"),
    ((CONNECT[0], (b":authority", b"a.b")), "port"),
    ((*EXTENDED[:2], S, P), "extended"),
    ((*EXTENDED[:2], S, A), "extended"),
    ((*EXTENDED[:2], P, A), "extended"),
    ((EXTENDED[0], (b":protocol", b""), S, P, A), ":protocol"),
    ((EXTENDED[0], (b":protocol", b"web socket"), S, P, A), ":protocol"),
    ((*EXTENDED[:2], S, (b":path", b""), A), ":path"),
    ((*EXTENDED, (b":status", b"200")), "extended"),
]

RIGHT_REQUESTS: list[tuple[Pair, ...]] = [
    GET,
    tuple(reversed(GET)),
    (M, S, P, (b"host", b"example.com")),
    (*GET, (b"host", b"Example.Com")),
    with_(b":scheme", b"https"),
    with_(b":scheme", b"HTTPS"),
    with_(b":method", b"PATCH"),
    with_(b":method", b"M-SEARCH"),
    with_(b":path", b'/a?b=%2f&c[]="d"'),
    with_(b":path", b"//a/../b"),
    with_(b":authority", b"[::1]:8080"),
    with_(b":authority", b"a_b.c"),
    ((b":method", b"OPTIONS"), S, (b":path", b"*"), A),
    CONNECT,
    ((b":method", b"CONNECT"), (b":authority", b"[::1]:22")),
    EXTENDED,
]


@pytest.mark.parametrize(("fields", "rule"), WRONG_REQUESTS)
def test_a_malformed_request_is_refused(fields: tuple[Pair, ...], rule: str) -> None:
    assert rule in judge_request(fields).problem


@pytest.mark.parametrize("fields", RIGHT_REQUESTS)
def test_a_request_that_may_be_passes(fields: tuple[Pair, ...]) -> None:
    assert judge_request(fields).problem == ""


def test_extended_connect_passes_only_where_it_was_offered() -> None:
    assert judge_request(EXTENDED).tunnel
    assert "offered" in judge_request(EXTENDED, extended=False).problem
    assert judge_request(CONNECT, extended=False).tunnel


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"007", 7), (b"9223372036854775807", 2**63 - 1)])
def test_the_length_is_what_content_length_says(value: bytes, length: int) -> None:
    field = ((b"content-length", value),)
    assert judge_request(GET + field).length == judge_response(OK + field).length == length
    assert judge_request(GET).length == judge_response(OK).length == NO_LENGTH


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ((), ":status"),
        (((b"a", b"b"),), ":status"),
        (((b"a", b"b"), *OK), ":status"),
        ((*OK, *OK), "twice"),
        ((*OK, P), "no response has"),
        ((P, *OK), ":status"),
        (((b":status", b""),), "three digits"),
        (((b":status", b"20"),), "three digits"),
        (((b":status", b"2000"),), "three digits"),
        (((b":status", b"099"),), "three digits"),
        (((b":status", b"600"),), "three digits"),
        (((b":status", b"200 OK"),), "three digits"),
        (((b":status", b"101"),), "101"),
    ],
)
def test_a_malformed_response_is_refused(fields: tuple[Pair, ...], rule: str) -> None:
    assert rule in judge_response(fields).problem


@pytest.mark.parametrize("status", [100, 103, 200, 204, 304, 599])
def test_the_status_is_read(status: int) -> None:
    judged = judge_response(((b":status", b"%d" % status), (b"a", b"b")))
    assert (judged.problem, judged.status) == ("", status)
