"""An HTTP/2 request judged: the one HTTP/1.1 head that says the same, or a refusal."""

from __future__ import annotations

import base64
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec import http2_request
from tcpgate.codec.events import CHUNKED, NO_BODY, Limits, Pair, RequestHead, of_length
from tcpgate.codec.grammar import parse_request
from tcpgate.codec.hop import upstream_fields
from tcpgate.codec.machine import framed, request_bytes
from tcpgate.errors import ClientError, Reason

GET: list[Pair] = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a?b=c"), (b":authority", b"T.example:80")]
CONNECT: list[Pair] = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":path", b"/chat"),
    (b":authority", b"t.example"),
]


def judged(pairs: list[Pair], *, end: bool = True, secure: bool = False) -> http2_request.Judged:
    return http2_request.judge(tuple(pairs), end=end, limits=Limits(), secure=secure, rng=random.Random(1))


def head(pairs: list[Pair], *, end: bool = True, secure: bool = False) -> RequestHead:
    return judged(pairs, end=end, secure=secure).head


def but(**changes: bytes | None) -> list[Pair]:
    """The plain request with other pseudo-header fields; None leaves one out."""
    pairs = dict(GET) | {b":" + name.encode(): value for name, value in changes.items()}
    return [(name, value) for name, value in pairs.items() if value is not None]


def test_a_request_is_the_head_that_says_the_same() -> None:
    found = head([*GET, (b"accept", b"*/*")])
    same = parse_request(b"GET /a?b=c HTTP/1.1\r\nhost: T.example:80\r\naccept: */*\r\n\r\n", Limits())
    assert found == attrs.evolve(same, version=b"2.0")
    assert (found.host, found.authority, found.path, found.query) == (b"t.example", b"T.example:80", b"/a", b"b=c")


def test_host_stands_for_an_authority_that_is_not_there() -> None:
    assert head([*but(authority=None), (b"host", b"h.example")]).host == b"h.example"


def test_framing_follows_from_the_length_and_the_end() -> None:
    assert head(GET).framing == NO_BODY
    assert head(but(method=b"POST"), end=False).framing == CHUNKED
    assert head([*but(method=b"POST"), (b"content-length", b"5")], end=False).framing == of_length(5)
    assert head([*but(method=b"POST"), (b"content-length", b"0")]).framing == of_length(0)


def test_cookies_are_one_line() -> None:
    found = head([*GET, (b"cookie", b"a=1"), (b"accept", b"x"), (b"cookie", b"b=2")])
    assert found.fields.all(b"cookie") == [b"a=1; b=2"]


def test_an_expectation_is_known_where_content_follows() -> None:
    assert head([*but(method=b"POST"), (b"expect", b"100-continue")], end=False).expect_continue
    assert not head([*GET, (b"expect", b"100-continue")]).expect_continue


@pytest.mark.parametrize(
    "pairs",
    [
        but(path=b""),
        but(path=b"a"),
        but(path=b"*"),
        but(path=b"http://other.example/"),
        but(path=b"//x HTTP/1.1\r\nx: y"),
        but(path=b"/ HTTP/1.1\r\nHost: evil\r\n\r\nGET /"),
        but(path=b"/a b"),
        but(path=b"/a#b"),
        but(path=b"/%00"),
        but(path=None),
        but(method=b"GET / HTTP/1.1\r\n\r\nPOST"),
        but(method=b"GE T"),
        but(method=None),
        but(scheme=b"ftp"),
        but(scheme=b"https://evil/?"),
        but(scheme=None),
        but(authority=b"a@b"),
        but(authority=b"a\r\nx: y"),
        but(authority=b""),
        but(authority=b"a/b"),
        but(authority=None),
        [*GET, (b"host", b"other.example")],
        [*but(authority=None), (b"host", b"a"), (b"host", b"b")],
        [*GET, (b":path", b"/other")],
        [GET[0], GET[1], GET[2], (b"accept", b"x"), GET[3]],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"connection", b"x-a")],
        [*GET, (b"upgrade", b"websocket")],
        [*GET, (b"keep-alive", b"1")],
        [*GET, (b"proxy-connection", b"1")],
        [*GET, (b"x-a", b"1\r\nx-b: 2")],
        [*GET, (b"x-a", b"1\0")],
        [*GET, (b"x-a", b"\n")],
        [*GET, (b"x-a: 1\r\nx-b", b"2")],
        [*GET, (b"x-a:", b"2")],
        [*GET, (b"x a", b"2")],
        [*GET, (b"", b"2")],
        [*GET, (b"content_length", b"2")],
        [*GET, (b"content-length", b"1"), (b"content-length", b"1")],
        [*GET, (b"content-length", b"+1")],
        [*GET, (b"authorization", b"a"), (b"authorization", b"b")],
    ],
)
def test_what_could_be_another_request_to_somebody_is_refused(pairs: list[Pair]) -> None:
    with pytest.raises(ClientError) as caught:
        judged(pairs, end=False)
    assert caught.value.reason is Reason.BAD_REQUEST


def test_https_over_a_connection_that_is_not_is_misdirected() -> None:
    with pytest.raises(ClientError) as caught:
        head(but(scheme=b"https"))
    assert caught.value.status == 421
    assert head(but(scheme=b"https"), secure=True).host == b"t.example"


def test_a_plain_connect_is_not_served() -> None:
    with pytest.raises(ClientError) as caught:
        judged([(b":method", b"CONNECT"), (b":authority", b"t.example:443")], end=False)
    assert caught.value.reason is Reason.METHOD_UNSUPPORTED


def test_an_extended_connect_is_an_upgrade_with_a_key_of_ours() -> None:
    found = judged([*CONNECT, (b"sec-websocket-key", b"theirs"), (b"origin", b"x")], end=False, secure=True)
    assert (found.head.method, found.head.upgrade, found.head.path) == (b"GET", b"websocket", b"/chat")
    assert found.head.framing == NO_BODY
    assert found.head.fields.all(b"sec-websocket-key") == [found.key]
    assert len(base64.b64decode(found.key or b"", validate=True)) == 16
    assert (b"Upgrade", b"websocket") in list(upstream_fields(found.head))


@pytest.mark.parametrize("more", [[(b"content-length", b"5")], [(b"expect", b"100-continue")]])
def test_an_extended_connect_with_content_is_refused(more: list[Pair]) -> None:
    with pytest.raises(ClientError):
        judged([*CONNECT, *more], end=False, secure=True)
    with pytest.raises(ClientError):
        judged(CONNECT, end=True, secure=True)


def test_trailers_are_those_of_chunked_bodies() -> None:
    pairs = (
        (b"grpc-status", b"0"),
        (b"content-length", b"5"),
        (b"authorization", b"x"),
        (b"x-a", b"1\n2"),
        (b"x_b", b"1"),
    )
    assert list(http2_request.trailers(pairs)) == [(b"grpc-status", b"0"), (b"x_b", b"1")]


NAMES = st.sampled_from(
    [b":method", b":path", b":scheme", b":authority", b"host", b"cookie", b"content-length", b"te", b"x-a"]
)
PARTS = st.sampled_from(
    [b"GET", b"POST", b"/", b"/a", b"http", b"t.example", b"\r\n", b"\n", b" ", b":", b"0", b"5", b"*", b"%2e"]
)
VALUES = st.lists(PARTS | st.binary(max_size=3), max_size=4).map(b"".join)
FIELD = st.tuples(NAMES | st.binary(max_size=8), VALUES)


@given(st.lists(FIELD, max_size=6), st.booleans(), st.data())
def test_whatever_comes_in_one_head_comes_out_or_none(more: list[Pair], end: bool, data: st.DataObject) -> None:
    pairs = data.draw(st.permutations([*GET, *more])) if data.draw(st.booleans()) else [*GET, *more]
    try:
        found = head(list(pairs), end=end)
    except ClientError:
        return
    wire = request_bytes(found.method, found.upstream_target, framed(upstream_fields(found), found.framing))
    again = parse_request(wire, Limits())  # as whoever is behind us reads it
    assert (again.method, again.upstream_target, again.host) == (found.method, found.upstream_target, found.host)
    assert again.framing == found.framing
    assert wire.count(b"\r\n\r\n") == 1
