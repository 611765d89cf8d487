"""The end of an exchange: its counters, its phases, its access record. One function, for whatever the exchange came to.

Synchronous, called exactly once per exchange, so no cancellation can split the books. The lane ends its exchanges
here too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tcpgate.errors import GateError, Reason, Side
from tcpgate.state.snapshot import ROUTE_BY_GATEWAY, ROUTE_EXCHANGES, ROUTE_STATUS, ROUTE_TOTAL
from tcpgate.stats import histogram

if TYPE_CHECKING:
    from tcpgate.proxy.downstream import Downstream
    from tcpgate.proxy.exchange import Exchange
    from tcpgate.stats.record import AccessRecord


def end(exchange: Exchange) -> None:
    """Close the books of an exchange."""
    record = exchange.record
    _judge(exchange, record)
    record.auth, record.limit = exchange.view.auth, exchange.view.limit
    _phases(exchange)
    if exchange.plan is not None:
        began, by_gateway = exchange.connection.exchange_began, record.answered_by is not Side.UPSTREAM
        page, block, total = exchange.plane.page, exchange.plan.block, trio.current_time() - began
        count_route(page, block, record.status, total, by_gateway=by_gateway)
    write(exchange.connection, record)
    exchange.attempt = None  # it knows its exchange: a circle that only the garbage collector would undo


def count_route(page: memoryview, block: int, status: int, seconds: float, *, by_gateway: bool) -> None:
    """Count an exchange of the route at `block`, and its time from the first byte to the last."""
    page[block + ROUTE_EXCHANGES] += 1
    if 100 <= status < 600:
        page[block + ROUTE_STATUS + status // 100] += 1
    if by_gateway:
        page[block + ROUTE_BY_GATEWAY] += 1
    if status != 101:  # a tunnel's hours would say nothing about how soon the route answers
        histogram.observe(page, block + ROUTE_TOTAL, seconds)


def write(connection: Downstream, record: AccessRecord) -> None:
    """Fill in what the connection knows, and close the books; also for what was no request."""
    stream = connection.stream
    record.bytes_in = stream.bytes_in - connection.counted_in
    record.bytes_out = stream.bytes_out - connection.counted_out
    connection.counted_in, connection.counted_out = stream.bytes_in, stream.bytes_out
    record.t.total = trio.current_time() - connection.exchange_began
    connection.plane.close_books(connection.plan.block, record)


def _judge(exchange: Exchange, record: AccessRecord) -> None:
    """Who answered, and the one reason."""
    failure, attempt = exchange.failure, exchange.attempt
    if failure is not None:
        blame(record, failure)
        if attempt is not None and attempt.answered:
            record.answered_by = Side.UPSTREAM  # its status had gone out before it failed
    elif exchange.tunnel is not None:
        record.reason, record.answered_by = exchange.tunnel.reason, Side.UPSTREAM
        record.detail = exchange.tunnel.detail
    elif exchange.own is not None:
        record.reason, record.answered_by = exchange.own, Side.GATEWAY
    else:
        record.reason, record.answered_by = Reason.OK, Side.UPSTREAM
    if exchange.call is not None:
        record.detail = exchange.call.told(record.detail)


def blame(record: AccessRecord, failure: GateError) -> None:
    """Put a failure into the record: its reason, what the system said, and who ended it."""
    record.reason, record.detail = failure.reason, failure.detail
    record.answered_by = Side.CLIENT if failure.status == 499 else Side.GATEWAY
    record.status = record.status or failure.status
    record.rule = record.rule or RULES.get(failure.reason, "")


RULES = {
    Reason.HEAD_TIMEOUT: "timeouts.head",
    Reason.BODY_TIMEOUT: "timeouts.min_rate",
    Reason.CLIENT_SLOW: "timeouts.min_rate",
    Reason.BODY_TOO_LARGE: "limits.body",
    Reason.TARGET_TOO_LONG: "limits.target",
    Reason.HEAD_TOO_LARGE: "limits.head",
}
"""The listener's keys that decide some reasons; `listeners.NAME.` goes before."""


def _phases(exchange: Exchange) -> None:
    """Where the time went, from the points that the last attempt has left."""
    attempt, t = exchange.attempt, exchange.record.t
    t.head = exchange.connection.head_seconds
    if attempt is None:
        return
    if attempt.up is not None and not attempt.up.reused and not math.isnan(attempt.connected_at):
        t.connect = attempt.connected_at - attempt.started
    if not math.isnan(attempt.first_byte_at):
        t.first_byte = attempt.answered_after
        t.body = trio.current_time() - attempt.first_byte_at
