"""Fields from hop to hop, where the corpus does not look: what is added, where, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import Fields, Limits, RequestHead, ResponseHead
from tcpgate.codec.grammar import parse_request, parse_response
from tcpgate.codec.hop import downstream_fields, http_date, upstream_fields

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


def request(*fields: bytes, version: bytes = b"1.1", host: bytes = b"a.test") -> RequestHead:
    lines = [b"GET / HTTP/" + version, *([b"Host: " + host] if host else []), *fields, b"", b""]
    return parse_request(b"\r\n".join(lines), Limits())


def response(*fields: bytes, status: int = 200, upgrade: bytes | None = None) -> ResponseHead:
    raw = b"\r\n".join([b"HTTP/1.1 %d X" % status, *fields, b"", b""])
    return parse_response(raw, b"GET", upgrade=upgrade)


def test_host_comes_first_and_is_the_authority() -> None:
    head = request(b"X-A: 1", b"connection: x-b", b"X-B: 2")
    assert list(upstream_fields(head)) == [(b"Host", b"a.test"), (b"X-A", b"1")]


def test_a_1_0_request_without_host_gets_the_fallback() -> None:
    head = request(version=b"1.0", host=b"")
    assert list(upstream_fields(head, fallback_host=b"10.0.0.1:80")) == [(b"Host", b"10.0.0.1:80")]
    assert list(upstream_fields(request(), fallback_host=b"x")) == [(b"Host", b"a.test")]


def test_forwarding_fields_take_the_clients_place() -> None:
    forwarding = Fields([(b"X-Forwarded-For", b"192.0.2.1")])
    head = request(b"X-Forwarded-For: 6.6.6.6", b"X-Real-IP: 6.6.6.6")
    assert list(upstream_fields(head, forwarding))[1:] == [(b"X-Forwarded-For", b"192.0.2.1")]
    trusted = upstream_fields(head, forwarding, trusted=True)
    assert list(trusted)[1:] == [(b"X-Real-IP", b"6.6.6.6"), (b"X-Forwarded-For", b"192.0.2.1")]


def test_connection_options_of_this_hop_are_told_together() -> None:
    head = request(b"Connection: TE, Upgrade", b"TE: trailers", b"Upgrade: websocket")
    assert list(upstream_fields(head))[1:] == [
        (b"TE", b"trailers"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"TE, upgrade"),
    ]


@given(st.lists(st.sampled_from([b"Host", b"X-Forwarded-For", b"Via", b"Content-Length", b"TE", b"close"]), max_size=5))
def test_naming_what_the_gateway_writes_takes_nothing_away(options: list[bytes]) -> None:
    forwarding = Fields([(b"X-Forwarded-For", b"192.0.2.1"), (b"Via", b"1.1 gate")])
    head = request(b"Connection: " + b", ".join(options), b"Content-Length: 5", b"Via: 1.0 x")
    fields = upstream_fields(head, forwarding)
    assert list(fields) == [(b"Host", b"a.test"), *forwarding]
    assert head.framing.length == 5


def test_a_response_gets_a_date_and_our_name_if_it_is_wanted() -> None:
    assert list(downstream_fields(response(), date=DATE)) == [(b"Date", DATE)]
    assert list(downstream_fields(response(b"Date: x"), date=DATE)) == [(b"Date", b"x")]
    assert list(downstream_fields(response(b"Date: x", b"Via: 1.1 y"), date=DATE, via=b"gate")) == [
        (b"Date", b"x"),
        (b"Via", b"1.1 y"),
        (b"Via", b"1.1 gate"),
    ]
    assert not list(downstream_fields(response(status=103), date=DATE)), "a 1xx needs no Date"


def test_a_101_tells_the_protocol_anew() -> None:
    head = response(
        b"Upgrade: WebSocket", b"Connection: upgrade", b"Sec-WebSocket-Accept: x", status=101, upgrade=b"websocket"
    )
    assert list(downstream_fields(head, date=DATE)) == [
        (b"Sec-WebSocket-Accept", b"x"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"upgrade"),
    ]


@pytest.mark.parametrize(
    ("now", "date"),
    [
        (784111777.0, DATE),
        (0.0, b"Thu, 01 Jan 1970 00:00:00 GMT"),
        (1709164800.9, b"Thu, 29 Feb 2024 00:00:00 GMT"),
    ],
)
def test_a_date_is_an_imf_fixdate(now: float, date: bytes) -> None:
    assert http_date(now) == date
