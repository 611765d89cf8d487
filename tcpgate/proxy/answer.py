"""The gateway's own answers: to what failed, and for routes that answer by themselves.

What a client reads has the reason, the request id, and what is wrong with its request; what it never reads is an
address of an endpoint or what the system said about one: that is in the access record of the same id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from tcpgate.codec import reply
from tcpgate.codec.events import NO_BODY, NO_FIELDS, Fields, Framing, ResponseHead, of_length
from tcpgate.codec.machine import phrase
from tcpgate.codec.sides import ServerSide
from tcpgate.config import schema
from tcpgate.errors import GateError, Reason, Side
from tcpgate.net.stream import Buffer
from tcpgate.policy.pace import Pace

if TYPE_CHECKING:
    from tcpgate.proxy.downstream import Downstream
    from tcpgate.proxy.exchange import Exchange

SEND_WITHIN = 10.0
"""Seconds in which a client must take an answer to its fault; a few hundred bytes, so mostly they fit its window."""
RETRY_AFTER = frozenset(
    {Reason.NO_ENDPOINT, Reason.ENDPOINT_LIMIT, Reason.CONNECTION_LIMIT, Reason.FILE_LIMIT, Reason.DRAINED}
)
"""Refusals that pass by themselves."""


async def send_failure(exchange: Exchange, exc: GateError) -> None:
    """Answer a failed exchange, unless the client has begun to get another answer, or is gone."""
    connection = exchange.connection
    wire = _failure(exchange, exc, close=connection.is_leaving or not exchange.body.discard())
    if wire is None:
        connection.is_spoilt = True  # the client must not take the torn answer for a whole one
    else:
        await _send(connection, wire)


def send_failure_nowait(exchange: Exchange, exc: GateError) -> None:
    """As `send_failure` where there is no time to wait, and the connection ends: only what the kernel takes goes."""
    connection = exchange.connection
    wire = _failure(exchange, exc, close=True)
    if wire is None or connection.stream.poisoned or connection.stream.closed:
        connection.is_spoilt = True
        return
    try:
        connection.is_spoilt = not connection.send_last_nowait(wire)
    except GateError:
        connection.is_spoilt = True


def _failure(exchange: Exchange, exc: GateError, *, close: bool) -> list[Buffer] | None:
    """What tells the client of `exc`, its status noted; None: there is nobody to get it, or no way to tell any more."""
    codec, attempt, call = exchange.connection.codec, exchange.attempt, exchange.call
    if exc.status in (0, 499):
        return None
    if codec.responding or (attempt is not None and attempt.answered):
        is_open = attempt is not None and attempt.response is not None and attempt.response.framing.length is None
        end = codec.end(call.ending(exc, exchange.record.id)) if call is not None and is_open else b""
        return [end] if end else None
    made = _made(exchange, exc)
    framing = made.framing if call is None else NO_BODY
    return _wire(codec, made.status, made.fields, made.body, framing, close=close)


def _made(exchange: Exchange, exc: GateError) -> reply.Answer:
    """The answer that tells `exc`, the filters' edits made, its status noted."""
    made = reply.answer(
        exc.reason,
        status=exc.status,
        detail=exc.detail if exc.facts.side is Side.CLIENT else "",
        request_id=exchange.record.id,
        accept=exchange.head.fields.get(b"accept"),
        extra=Fields([(b"Retry-After", b"1")]) if exc.reason in RETRY_AFTER else NO_FIELDS,
    )
    if exchange.call is not None:
        made = exchange.call.failure(exc, made, exchange.record.id)
    fields = _filtered(exchange, made.status, made.fields)
    exchange.record.status = made.status
    return attrs.evolve(made, fields=fields)


async def send_unread(connection: Downstream, request_id: str, exc: GateError) -> None:
    """Answer what could not be read as a request; the connection ends with it."""
    answer = reply.answer(exc.reason, status=exc.status, detail=exc.detail, request_id=request_id)
    fields = answer.fields.plus(
        [(b"Date", connection.plane.date()), (b"X-Request-Id", request_id.encode()), (b"Server", b"tcpgate")]
    )
    await _send(connection, _wire(connection.codec, answer.status, fields, answer.body, answer.framing, close=True))


def refusal(request_id: str) -> bytes:
    """The whole answer to a connection that there is no room for, in one piece that goes out without waiting."""
    answer = reply.answer(Reason.CONNECTION_LIMIT, request_id=request_id)
    fields = [*answer.fields, (b"Retry-After", b"1"), (b"X-Request-Id", request_id.encode())]
    fields += [(b"Content-Length", b"%d" % len(answer.body)), (b"Connection", b"close")]
    lines = [b"HTTP/1.1 %d %b" % (answer.status, phrase(answer.status)), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join([*lines, b"", answer.body])


async def send_own(exchange: Exchange, spec: schema.Route) -> None:
    """The answer of a route that responds or redirects by itself."""
    if spec.redirect is not None:
        exchange.own, status, body = Reason.REDIRECT, int(spec.redirect.status), b""
        pairs = [(b"Location", _location(exchange, spec.redirect.to))]
    else:
        assert spec.respond is not None
        exchange.own, status, body = Reason.RESPOND, spec.respond.status, spec.respond.body.encode()
        pairs = [(b"Content-Type", spec.respond.content_type.encode())]
    await _send_own(exchange, status, Fields(pairs), body)


async def send_final_recipient(exchange: Exchange) -> None:
    """The answer to a request that is not to be forwarded any more (Max-Forwards: 0)."""
    made = reply.final_recipient(exchange.head)
    exchange.own = Reason.RESPOND
    await _send_own(exchange, made.status, made.fields, made.body)


async def _send_own(exchange: Exchange, status: int, fields: Fields, body: bytes) -> None:
    fields = _filtered(exchange, status, fields)
    exchange.record.status = status
    connection = exchange.connection
    close = connection.is_leaving or not exchange.body.discard()  # where not all was read nothing can follow
    await _send(connection, _wire(connection.codec, status, fields, body, of_length(len(body)), close=close))


async def _send(connection: Downstream, wire: list[Buffer]) -> None:
    timeouts = connection.plan.spec.timeouts
    pace = Pace(min_rate=timeouts.min_rate, grace=timeouts.stall)
    try:
        await connection.stream.send_all(wire, deadline=trio.current_time() + SEND_WITHIN, pace=pace)
    except GateError:
        connection.is_spoilt = True  # it did not wait for the answer; what it did wrong is in the record


def _wire(
    codec: ServerSide, status: int, fields: Fields, body: bytes, framing: Framing, *, close: bool
) -> list[Buffer]:
    """A whole response, as it goes out."""
    return [codec.send_response(status, fields, framing, close=close), *codec.send_data(body), codec.end()]


def _filtered(exchange: Exchange, status: int, fields: Fields) -> Fields:
    """The fields of an answer of ours after the filters' edits."""
    for _, filter_ in reversed(exchange.plan.filters if exchange.plan else ()):
        filter_.on_response(exchange.view, _as_response(status, fields))
    return exchange.view.response.apply(fields.plus(_ours(exchange)))


def _ours(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    return [
        (b"Date", exchange.plane.date()),
        (b"X-Request-Id", exchange.record.id.encode()),
        (b"Server", b"tcpgate"),
    ]


def _as_response(status: int, fields: Fields) -> ResponseHead:
    """The gateway's own answer, as a filter sees responses."""
    return ResponseHead(
        status=status, reason=b"", version=b"1.1", fields=fields, framing=of_length(0), keep_alive=True, size=0
    )


def _location(exchange: Exchange, template: str) -> bytes:
    """{host}, {path} and {query} filled in. All have passed the grammar: no byte of them can end a header line."""
    head = exchange.head
    query = b"" if head.query is None else b"?" + head.query
    text = template.encode()
    for name, value in ((b"{host}", head.host), (b"{path}", head.path), (b"{query}", query)):
        text = text.replace(name, value)
    return text
