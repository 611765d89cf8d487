"""The gateway's own answers: to what failed, and for routes that answer by themselves.

What a client reads has the reason, the request id, and what is wrong with its request; what it never reads is an address of an endpoint
or what the system said about one: that is in the access record of the same id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tcpgate.codec import reply
from tcpgate.codec.events import NO_FIELDS, Fields, ResponseHead, of_length
from tcpgate.codec.http1 import phrase
from tcpgate.config import schema
from tcpgate.errors import GateError, Reason, Side
from tcpgate.net.stream import Buffer
from tcpgate.policy.pace import Pace

if TYPE_CHECKING:
    from tcpgate.proxy.exchange import Exchange
    from tcpgate.proxy.http import HttpConnection

SEND_WITHIN = 10.0
"""Seconds in which a client must take an answer to its fault; a few hundred bytes, so mostly they fit its window."""
RETRY_AFTER = frozenset({Reason.NO_ENDPOINT, Reason.ENDPOINT_LIMIT, Reason.CONNECTION_LIMIT, Reason.FILE_LIMIT, Reason.DRAINED})
"""Refusals that pass by themselves."""


async def send_failure(exchange: Exchange, exc: GateError) -> None:
    """Answer a failed exchange, unless the client has begun to get another answer, or is gone."""
    connection = exchange.connection
    if (exchange.attempt is not None and exchange.attempt.response is not None) or exc.status in (0, 499):
        connection.is_spoilt = True  # the client must not take the torn answer for a whole one
        return
    answer = reply.answer(
        exc.reason,
        status=exc.status,
        detail=exc.detail if exc.facts.side is Side.CLIENT else "",
        request_id=exchange.record.id,
        accept=exchange.head.fields.get(b"accept"),
        extra=Fields([(b"Retry-After", b"1")]) if exc.reason in RETRY_AFTER else NO_FIELDS,
    )
    for _, filter_ in reversed(exchange.plan.filters if exchange.plan else ()):
        filter_.on_response(exchange.view, _as_response(answer.status, answer.fields))
    fields = exchange.view.response.apply(answer.fields.plus(_ours(exchange)))
    exchange.record.status = answer.status
    await _send(connection, answer.status, fields, answer.body, whole=exchange.body.discard())


async def send_unread(connection: HttpConnection, request_id: str, exc: GateError) -> None:
    """Answer what could not be read as a request; the connection ends with it."""
    answer = reply.answer(exc.reason, status=exc.status, detail=exc.detail, request_id=request_id)
    fields = answer.fields.plus(
        [(b"Date", connection.plane.date()), (b"X-Request-Id", request_id.encode()), (b"Server", b"tcpgate")]
    )
    await _send(connection, answer.status, fields, answer.body, whole=False)


def refusal(request_id: str) -> bytes:
    """The whole answer to a connection that there is no room for, in one piece, so that it can go out without waiting."""
    answer = reply.answer(Reason.CONNECTION_LIMIT, request_id=request_id)
    fields = [*answer.fields, (b"Retry-After", b"1"), (b"X-Request-Id", request_id.encode())]
    fields += [(b"Content-Length", b"%d" % len(answer.body)), (b"Connection", b"close")]
    lines = [b"HTTP/1.1 %d %b" % (answer.status, phrase(answer.status)), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join([*lines, b"", answer.body])


async def send_own(exchange: Exchange, spec: schema.Route) -> None:
    """The answer of a route that responds or redirects by itself."""
    if spec.redirect is not None:
        status, body = int(spec.redirect.status), b""
        pairs = [(b"Location", _location(exchange, spec.redirect.to))]
    else:
        assert spec.respond is not None
        status, body = spec.respond.status, spec.respond.body.encode()
        pairs = [(b"Content-Type", spec.respond.content_type.encode())]
    for _, filter_ in reversed(exchange.plan.filters if exchange.plan else ()):
        filter_.on_response(exchange.view, _as_response(status, Fields(pairs)))
    exchange.record.status = status
    fields = exchange.view.response.apply(Fields([*pairs, *_ours(exchange)]))
    await _send(exchange.connection, status, fields, body, whole=exchange.body.discard())


async def _send(connection: HttpConnection, status: int, fields: Fields, body: bytes, *, whole: bool) -> None:
    """`whole`: all of the request has been read, so the connection may go on."""
    codec = connection.codec
    close = connection.is_leaving or not whole
    buffers: list[Buffer] = [codec.send_response(status, fields, of_length(len(body)), close=close)]
    buffers += codec.send_data(body)
    buffers.append(codec.end())
    timeouts = connection.plan.spec.timeouts
    try:
        with trio.fail_after(SEND_WITHIN):
            await connection.stream.send_all(buffers, pace=Pace(min_rate=timeouts.min_rate, grace=timeouts.stall))
    except (GateError, trio.TooSlowError):
        connection.is_spoilt = True  # it did not wait for the answer; what it did wrong is in the record


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
    """{host}, {path} and {query} filled in. All three have passed the grammar: no byte of them can end a header line."""
    head = exchange.head
    query = b"" if head.query is None else b"?" + head.query
    text = template.encode()
    for name, value in ((b"{host}", head.host), (b"{path}", head.path), (b"{query}", query)):
        text = text.replace(name, value)
    return text
