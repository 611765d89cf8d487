"""What an express verdict must agree with: the grammar, the hop's rules, both codecs' bytes, and h11 on its own."""

from __future__ import annotations

import re

import h11

from tcpgate.codec.events import NO_BODY, Fields, Limits, ResponseHead, of_length
from tcpgate.codec.express import ExpressRequest, ExpressResponse
from tcpgate.codec.forwarded import believes_proxy, forwarding_fields
from tcpgate.codec.grammar import parse_request, parse_response
from tcpgate.codec.hop import downstream_fields, upstream_fields
from tcpgate.codec.http1 import ClientCodec, ServerCodec
from tests.codec.memory_gateway import DATE, NAME, PEER

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
_FRAMING = re.compile(rb"(Content-Length: [0-9]+\r\n|Transfer-Encoding: chunked\r\n)?(Connection: close\r\n)?\r\n")
_SHORT = 1 << 16
"""Bodies that are sent to h11, to see where they end (bytes)."""


def facts_of_request(got: ExpressRequest | None) -> tuple[object, ...] | None:
    """All that a verdict says."""
    if got is None:
        return None
    target = (got.method, got.path, got.query, got.host, got.authority)
    return (*target, got.length, got.keep_alive, got.vouched, got.size, got.lines, got.raw)


def facts_of_response(got: ExpressResponse | None) -> tuple[object, ...] | None:
    """All that a verdict says."""
    if got is None:
        return None
    facts = (got.status, got.reason, got.version, got.length, got.chunked, got.keep_alive)
    return (*facts, got.has_date, got.lines, got.size, got.raw)


# -- requests -------------------------------------------------------------------------------------------------------


def hold_request(got: ExpressRequest, raw: bytes, limits: Limits) -> None:
    """`got` is what the readable path makes of `raw`, to the byte."""
    head = parse_request(raw, limits)
    assert got.head() == head
    facts = (head.method, head.path, head.query, head.host, head.authority, head.keep_alive, head.size)
    assert (got.method, got.path, got.query, got.host, got.authority, got.keep_alive, got.size) == facts
    assert head.framing == (NO_BODY if got.length is None else of_length(got.length))
    assert (head.form, head.version, head.expect_continue, head.upgrade) == ("origin", b"1.1", False, None)
    assert head.max_forwards is None
    assert got.vouched == any(believes_proxy(name, trusted=False) for name, _ in head.fields)
    assert got.raw == raw

    forwarding = forwarding_fields(head, peer=PEER, trusted=False, secure=False, port=80, name=NAME)
    codec = ClientCodec()
    sent = codec.send_request(head.method, head.upstream_target, upstream_fields(head, forwarding), head.framing)
    target = got.path if got.query is None else got.path + b"?" + got.query
    before = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (got.method, target, got.authority, got.lines)
    framing = b"" if got.length is None else b"Content-Length: %d\r\n" % got.length
    assert sent == before + _lines(forwarding) + framing + b"\r\n"
    _hear_request(got, raw)


def _lines(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in fields)


def _hear_request(got: ExpressRequest, raw: bytes) -> None:
    wire = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    wire.receive_data(raw)
    event = wire.next_event()
    assert isinstance(event, h11.Request)
    assert wire.trailing_data[0] == b""
    target = got.path if got.query is None else got.path + b"?" + got.query
    assert (event.method, event.target, event.http_version) == (got.method, target, b"1.1")
    assert next(value for name, value in event.headers if name == b"host").removesuffix(b":") == got.authority
    _hear_body(wire, got.length or 0, keep_alive=got.keep_alive)


def _hear_body(wire: h11.Connection, length: int, *, keep_alive: bool) -> None:
    """A body of `length`, not one byte less or more, ends the message; then the connection goes on or not."""
    if length > _SHORT:
        return
    if length:
        assert wire.next_event() is h11.NEED_DATA
        wire.receive_data(bytes(length))
        while isinstance(event := wire.next_event(), h11.Data):
            pass
    else:
        event = wire.next_event()
    assert isinstance(event, h11.EndOfMessage)
    assert wire.their_state is (h11.DONE if keep_alive else h11.MUST_CLOSE)


# -- responses ------------------------------------------------------------------------------------------------------


def hold_response(got: ExpressResponse, raw: bytes, limits: Limits, method: bytes) -> None:
    """`got` is what the readable path makes of `raw` as an answer to `method`, to the byte."""
    head = parse_response(raw, method, limits)
    assert _heard(raw, method, limits) == head
    assert (got.status, got.reason, got.version, got.size) == (head.status, head.reason, head.version, head.size)
    assert got.raw == raw
    without_body = method == b"HEAD" or head.status in (204, 304)
    if not without_body:
        assert (got.length, got.chunked) == (head.framing.length, head.framing.kind.value == "chunked")
        assert head.framing.kind.value != "none"
    elif not got.chunked:
        assert got.length == head.framing.length
    until_close = not without_body and got.length is None and not got.chunked
    assert head.keep_alive == (got.keep_alive and not until_close)

    fields = downstream_fields(head, date=DATE, via=NAME).without({b"x-request-id"})
    codec = ServerCodec(Limits())
    codec.receive(GET if method == b"GET" else GET.replace(b"GET", method, 1))
    codec.next_event(), codec.next_event()
    sent = codec.send_response(head.status, fields, head.framing, reason=head.reason)
    date = b"" if got.has_date else b"Date: %b\r\n" % DATE
    before = b"HTTP/1.1 %d %b\r\n%b%bVia: 1.1 %b\r\n" % (got.status, got.reason, got.lines, date, NAME)
    assert sent.startswith(before)
    assert _FRAMING.fullmatch(sent, len(before))
    _hear_response(got, raw, method)


def _heard(raw: bytes, method: bytes, limits: Limits) -> ResponseHead:
    codec = ClientCodec(limits)
    codec.send_request(method, b"/", Fields([(b"Host", b"a.test")]), NO_BODY)
    codec.end()
    codec.receive(raw)
    head = codec.next_event()
    assert isinstance(head, ResponseHead)
    return head


def _hear_response(got: ExpressResponse, raw: bytes, method: bytes) -> None:
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    wire.send(h11.Request(method=method, target="/", headers=[("Host", "a.test")]))
    wire.send(h11.EndOfMessage())
    wire.receive_data(raw)
    event = wire.next_event()
    assert isinstance(event, h11.Response)
    assert (event.status_code, event.reason.strip(b" \t"), event.http_version) == (got.status, got.reason, b"1.1")
    if method == b"HEAD" or got.status in (204, 304):
        _hear_body(wire, 0, keep_alive=got.keep_alive)
    elif got.chunked:
        wire.receive_data(b"0\r\n\r\n")
        _hear_body(wire, 0, keep_alive=got.keep_alive)
    elif got.length is not None:
        _hear_body(wire, got.length, keep_alive=got.keep_alive)
    else:
        assert wire.next_event() is h11.NEED_DATA
        wire.receive_data(b"")
        assert isinstance(wire.next_event(), h11.EndOfMessage)
