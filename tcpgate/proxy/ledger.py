"""The books of exchanges that went well in the lane: their counters and their access lines, a turn of the lane at once.

Theory of operation. An exchange that has ended leaves its facts in the ledger of its listener, route and endpoint. At
the end of the turn the lane has every ledger closed, so no task sees an exchange that is over and not in the books.
What a turn brings is added up first and counted once. Only what others of the same turn go by is told at once, by the
rider: how many are in flight.

The same facts as `account.py` leaves for an exchange on the readable path. Synchronous. Owner: the listener's
`HttpListener`; the plane knows those that are open.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

from tcpgate.errors import Reason, Side
from tcpgate.state.runtime import EndpointRuntime
from tcpgate.state.snapshot import ROUTE_EXCHANGES, ROUTE_STATUS, ROUTE_TOTAL, ListenerPlan, RoutePlan
from tcpgate.stats import plain
from tcpgate.stats.histogram import BOUNDS, SUM
from tcpgate.stats.page import WORKER_FIELDS
from tcpgate.stats.record import AccessRecord, Attempt, Phases

if TYPE_CHECKING:
    from tcpgate.proxy.careful import Careful
    from tcpgate.proxy.plane import Plane
    from tcpgate.proxy.prepared import Prepared

WORKER_LANE_EXCHANGES = WORKER_FIELDS.index("lane_exchanges")


class Client(Protocol):
    """The connection that an exchange came by."""

    line: bytes
    """The part of access lines that is the same for all of its exchanges."""
    client: str
    peer: str
    tls: str
    identity: str
    """Who it is by its certificate."""
    tls_seconds: float
    """Of its handshake, that no line has told."""

    def on_fault(self, exc: Exception) -> None:
        """A bug in the books."""
        ...


Ended = tuple[
    "Client", "Prepared", "Careful | None", bytes, int, float, float, float, float, float, float, int, int, int, int
]
"""rider; prepared; careful; id; status; seconds of connecting; when it began, was given to the endpoint, was sent,
began to be answered, ended; bytes from the client, to it, from the endpoint, to it. A plain tuple: an object would
cost as much as all the rest of these books."""


class Ledger:
    """The exchanges of one listener and one route at one endpoint."""

    __slots__ = ("_ended", "_listener", "_plane", "_target", "endpoint", "plan")

    def __init__(self, plane: Plane, listener: ListenerPlan, plan: RoutePlan, endpoint: EndpointRuntime) -> None:
        self._plane = plane
        self._listener = listener
        self.plan = plan
        self.endpoint = endpoint
        self._target = plain.target_of(
            listener.name, plan.name, endpoint.upstream, endpoint.name, f"routes.{plan.name}"
        )
        self._ended: list[Ended] = []

    def enter(self, ended: Ended) -> None:
        """An exchange went well. Its endpoint has heard that it is over."""
        if not self._ended:
            self._plane.ledgers.append(self)
        self._ended.append(ended)

    def close(self) -> None:
        """Count what was entered, and write its lines."""
        ended, self._ended = self._ended, []
        try:
            self._close(ended)
        except Exception as exc:  # a bug must cost the connections that it meets, not the lane
            for rider, *_ in ended:
                self._plane.lane.fault(rider, exc)

    def _close(self, ended: list[Ended]) -> None:
        plane, plan, endpoint, target = self._plane, self.plan, self.endpoint, self._target
        page, stamp, render, bisect = plane.page, plane.stamp(), plain.render, bisect_left
        statuses, totals = plan.block + ROUTE_STATUS, plan.block + ROUTE_TOTAL
        all_in = all_out = all_arrived = all_sent = 0
        seconds = now = 0.0
        waits: list[float] = []
        lines: list[bytes] = []
        for facts in ended:
            (
                rider, prepared, careful, id_, status, connecting, began, started, sent_at, answered_at, now,
                bytes_in, bytes_out, arrived, sent,
            ) = facts  # fmt: skip
            total, wait = now - began, answered_at - sent_at
            line = render(
                stamp, id_, target, rider.line if careful is None else _connection_of(rider, careful), prepared.line,
                status, 0.0, connecting, wait, now - answered_at, total, (now - started) * 1000,
                bytes_in, bytes_out, prepared.generation, rider.tls_seconds,
            )  # fmt: skip
            if line is None or rider.identity or (careful is not None and (careful.view.auth or careful.view.limit)):
                plane.write(self._record(facts))
            else:
                lines.append(line)
                rider.tls_seconds = 0.0
            page[statuses + status // 100] += 1
            page[totals + bisect(BOUNDS, total)] += 1
            seconds += total
            all_in += bytes_in
            all_out += bytes_out
            all_arrived += arrived
            all_sent += sent
            if status < 500:
                waits.append(wait)
            else:
                endpoint.answered_badly(f"status {status}", now)
        plane.write_lines(lines)
        count = len(ended)
        page[WORKER_LANE_EXCHANGES] += count
        plane.count(self._listener.block, all_in, all_out, count)
        page[plan.block + ROUTE_EXCHANGES] += count
        page[totals + SUM] += int(seconds * 1_000_000)
        endpoint.exchanged(waits, all_arrived, all_sent, now)

    def _record(self, facts: Ended) -> AccessRecord:
        """The access record of one that has no plain line."""
        (
            rider, prepared, careful, id_, status, connecting, began, started, sent_at, answered_at, now,
            bytes_in, bytes_out, _, _,
        ) = facts  # fmt: skip
        plan, endpoint = self.plan, self.endpoint
        method, host, path = (text.decode("ascii") for text in prepared.asked)
        record = AccessRecord(
            ts=self._plane.wall(),
            id=id_.decode("latin-1"),
            listener=self._listener.name,
            route=plan.name,
            upstream=endpoint.upstream,
            endpoint=endpoint.name,
            attempts=[Attempt(endpoint.name, Reason.OK, (now - started) * 1000)],
            client=rider.client,
            peer=rider.peer,
            tls=rider.tls,
            auth=rider.identity,
            method=method,
            host=host,
            path=path,
            proto=prepared.proto.decode("ascii"),
            status=status,
            answered_by=Side.UPSTREAM,
            rule=f"routes.{plan.name}",
            t=Phases(
                tls=rider.tls_seconds,  # the first exchange of a connection tells what its handshake took
                connect=connecting,
                first_byte=answered_at - sent_at,
                body=now - answered_at,
                total=now - began,
            ),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            generation=prepared.generation,
        )
        rider.tls_seconds = 0.0
        if careful is not None:
            view = careful.view
            record.client, record.auth, record.limit = view.client_text, view.auth, view.limit
        return record


def _connection_of(rider: Client, careful: Careful) -> bytes:
    """The connection's part of the line of an exchange that took the longer way."""
    return plain.connection_of(careful.view.client_text, rider.peer, rider.tls)
