"""The books of an exchange that fails in the lane. Of one that goes well: ledger.py.

The same facts as `account.py` leaves for an exchange on the readable path. Synchronous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpgate.errors import GateError, Side, UpstreamError
from tcpgate.proxy import account
from tcpgate.proxy.ride import FLOWING
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT
from tcpgate.stats.record import AccessRecord, Attempt, Phases

if TYPE_CHECKING:
    from tcpgate.proxy.express import HttpRider


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
    record = _record_of(ride, now, exc, bytes_in)
    by_gateway = record.answered_by is not Side.UPSTREAM
    account.count_route(plane.page, ride.prepared.plan.block, record.status, record.t.total, by_gateway=by_gateway)
    plane.close_books(ride.plan.block, record)


def _record_of(ride: HttpRider, now: float, failure: GateError, bytes_in: int) -> AccessRecord:
    """The access record of the exchange at hand."""
    prepared, plan = ride.prepared, ride.prepared.plan
    answered = ride.state == FLOWING
    method, host, path = (text.decode("ascii") for text in prepared.asked)
    record = AccessRecord(
        ts=ride.plane.wall(),
        id=ride.id.decode("ascii"),
        listener=ride.plan.name,
        route=plan.name,
        upstream=ride.upstream.name,
        endpoint=ride.endpoint.name,
        attempts=[Attempt(ride.endpoint.name, failure.reason, (now - ride.started) * 1000)],
        client=ride.client,
        peer=ride.peer,
        tls=ride.tls,
        auth=ride.identity,
        method=method,
        host=host,
        path=path,
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
    account.blame(record, failure)
    if answered:
        record.answered_by = Side.UPSTREAM
    return record
