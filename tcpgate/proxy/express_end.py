"""The books of an exchange that ends in the lane: its counters, and its line or its record.

The same facts as `account.py` leaves for an exchange on the readable path, at a fraction of the cost where it went
well: one line from parts that were rendered before (`stats/plain.py`). Synchronous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpgate.errors import GateError, Reason, Side, UpstreamError
from tcpgate.proxy import account
from tcpgate.proxy.plane import WORKER_LANE_EXCHANGES
from tcpgate.proxy.ride import FLOWING
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT
from tcpgate.stats import plain
from tcpgate.stats.record import AccessRecord, Attempt, Phases

if TYPE_CHECKING:
    from tcpgate.proxy.express import HttpRider


def tell(ride: HttpRider, now: float) -> None:
    """It went well."""
    prepared, plane = ride.prepared, ride.plane
    total, bytes_in, bytes_out = now - ride.began, ride.bytes_in, ride.bytes_out
    ride.bytes_in = 0
    plane.page[WORKER_LANE_EXCHANGES] += 1
    account.count_route(plane.page, prepared.block, ride.status, total, by_gateway=False)
    plane.count(ride.plan.block, bytes_in, bytes_out)
    line = ride.line
    if ride.careful is not None:
        view = ride.careful.view
        if view.auth or view.limit:
            plane.write(record_of(ride, now, None, bytes_in))
            return
        line = plain.connection_of(view.client_text, ride.peer, tls_of(ride))
    elif line is None:
        line = ride.line = plain.connection_of(ride.client, ride.peer, tls_of(ride))
    if ride.tls_seconds:  # the first exchange of a connection tells what its handshake took
        plane.write(record_of(ride, now, None, bytes_in))
        return
    first_byte_at = ride.first_byte_at
    rendered = plain.render(
        plane.stamp(),
        ride.id,
        ride.shared.target(prepared.plan, ride.endpoint),
        line,
        prepared.line,
        ride.status,
        0.0,
        ride.connect_seconds,
        first_byte_at - ride.sent_at,
        now - first_byte_at,
        total,
        (now - ride.started) * 1000,
        bytes_in,
        bytes_out,
        ride.snapshot.generation,
    )
    if rendered is not None:
        plane.write_line(rendered)
    else:
        plane.write(record_of(ride, now, None, bytes_in))


def tls_of(ride: HttpRider) -> str:
    """What lines and records say of the connection's TLS."""
    return "" if ride.arrived is None else ride.arrived.text


def drop(ride: HttpRider, exc: GateError) -> None:
    """It failed: the endpoint's connection is closed, the books tell why."""
    ride.cancel_connect()
    now, endpoint, plane = ride.lane.clock(), ride.endpoint, ride.plane
    up, ride.up = ride.up, None
    if up is not None:
        up.close()
        endpoint.count(BYTES_IN, ride.upstream_in if ride.state == FLOWING else 0)
        endpoint.count(BYTES_OUT, ride.sent)
    if isinstance(exc, UpstreamError):
        endpoint.answered_badly(exc.detail or str(exc.reason), now)
    endpoint.end()
    bytes_in, ride.bytes_in = ride.bytes_in, 0
    record = record_of(ride, now, exc, bytes_in)
    by_gateway = record.answered_by is not Side.UPSTREAM
    account.count_route(plane.page, ride.prepared.block, record.status, record.t.total, by_gateway=by_gateway)
    plane.close_books(ride.plan.block, record)


def record_of(ride: HttpRider, now: float, failure: GateError | None, bytes_in: int) -> AccessRecord:
    """The access record of the exchange at hand."""
    prepared, plan = ride.prepared, ride.prepared.plan
    answered = failure is None or ride.state == FLOWING
    reason = Reason.OK if failure is None else failure.reason
    record = AccessRecord(
        ts=ride.plane.wall(),
        id=ride.id,
        listener=ride.plan.name,
        route=plan.name,
        upstream=ride.upstream.name,
        endpoint=ride.endpoint.name,
        attempts=[Attempt(ride.endpoint.name, reason, (now - ride.started) * 1000)],
        client=ride.client,
        peer=ride.peer,
        tls=tls_of(ride),
        method=prepared.method,
        host=prepared.host,
        path=prepared.path,
        proto="http/1.1",
        status=ride.status if answered else 0,
        rule=f"routes.{plan.name}",
        t=Phases(tls=ride.tls_seconds, connect=ride.connect_seconds, total=now - ride.began),
        bytes_in=bytes_in,
        bytes_out=ride.bytes_out if answered else 0,
        generation=ride.snapshot.generation,
    )
    if answered:
        record.t.first_byte, record.t.body = ride.first_byte_at - ride.sent_at, now - ride.first_byte_at
    ride.tls_seconds = 0.0
    if ride.careful is not None:
        view = ride.careful.view
        record.client, record.auth, record.limit = view.client_text, view.auth, view.limit
    if failure is not None:
        account.blame(record, failure)
    if answered:
        record.answered_by = Side.UPSTREAM
    return record
