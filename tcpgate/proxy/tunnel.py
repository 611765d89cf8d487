"""An upgraded connection: after the 101 both sides speak another protocol, and bytes move as they are.

A tunnel takes one of three ways:

    in the lane   both sides have sockets of their own: `net/lane_relay.py` moves the bytes by callbacks, and the
                  exchange's task only waits for the end. Its time limit is the lane's sweep's.
    in tasks      one side is a stream of a connection that carries many, or the lane is off: `net/relay.py`
    inspected     a WebSocket of a route that says so: `websocket.py` reads its frames

Owner: the exchange, which lasts as long as the tunnel does; so does the endpoint's in-flight count. A reload does not
touch a tunnel; a reload that removes its endpoint, and a drain, give it until their deadline
(`Downstream.cut_by`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

import trio

from tcpgate.codec.events import NO_FIELDS
from tcpgate.errors import Reason, Side
from tcpgate.net.lane_relay import LaneRelay
from tcpgate.net.relay import RelayOutcome, relay
from tcpgate.net.stream import Stream
from tcpgate.proxy import websocket
from tcpgate.proxy.plane import Plane
from tcpgate.proxy.upstream import Upstream

if TYPE_CHECKING:
    from tcpgate.net.carrier import Carrier
    from tcpgate.proxy.exchange import Exchange


async def run(exchange: Exchange, up: Upstream) -> RelayOutcome:
    """Relay until it is over; both streams are closed then. Cancelled: both are aborted."""
    connection = exchange.connection
    exchange.scope.deadline = math.inf  # the route's timeout was for the exchange, which the 101 has ended
    exchange.outgoing_fields = NO_FIELDS  # it may last for days, and does not need them
    connection.is_long = True
    up.endpoint.flows.add(connection)
    if up.endpoint.retired:  # after those that had a tunnel then were told
        connection.cut_by(trio.current_time() + exchange.plane.snapshot.config.gateway.drain)
    try:
        return await _move(exchange, up)
    finally:
        up.endpoint.flows.discard(connection)
        connection.is_long = False


async def _move(exchange: Exchange, up: Upstream) -> RelayOutcome:
    connection, plane = exchange.connection, exchange.plane
    down, over = connection.stream, up.stream
    # Nobody's bytes are lost on the way here: what a side sent with or after the 101 is with its codec, and an end of
    # stream is read from the socket again, as often as one asks.
    to_upstream, to_downstream = connection.codec.switched(), up.codec.switched()
    inspect = exchange.plan.spec.websocket if exchange.plan is not None else None
    if inspect is not None and exchange.head.upgrade == websocket.TOKEN:
        return await websocket.run(exchange, up, inspect, to_upstream, to_downstream)
    idle = connection.plan.spec.timeouts.tunnel
    if exchange.snapshot.config.gateway.lane and _can_ride(down) and _can_ride(over):
        return await _Riding(plane, down, over, idle).run(to_upstream, to_downstream)
    return await relay(down, over, idle=idle, pipes=plane.pipes, to_upstream=to_upstream, to_downstream=to_downstream)


def _can_ride(carrier: Carrier) -> TypeGuard[Stream]:
    """Whether all that comes of it comes from a socket of its own."""
    return isinstance(carrier, Stream) and not carrier.closed and not carrier.is_ahead


class _Riding:
    """A tunnel in the lane, and the task that waits for its end."""

    __slots__ = ("_down", "_outcome", "_plane", "_relay", "_task", "_up")

    def __init__(self, plane: Plane, down: Stream, up: Stream, idle: float) -> None:
        self._plane = plane
        self._down = down
        self._up = up
        self._task: trio.lowlevel.Task | None = None
        """Waits; without an event, which would be 800 bytes more for each idle tunnel."""
        self._outcome = Reason.BUG, Side.GATEWAY, ""
        self._relay = LaneRelay(plane.lane, plane.pipes, down.sock, up.sock, self, idle=idle, deadline=math.inf)

    async def run(self, to_upstream: bytes, to_downstream: bytes) -> RelayOutcome:
        """As `relay`. The streams have the counts, however it ends."""
        relay, timed = self._relay, self._plane.lane.timed
        timed.add(self)
        try:
            try:
                relay.start(to_upstream, to_downstream)
            except OSError as exc:  # the user's allowance of epoll watches
                relay.cut(Reason.FILE_LIMIT, exc.strerror or "")
            if not relay.over:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        finally:
            timed.discard(self)
            relay.cut(Reason.DRAINED)  # cancelled; else it is over already
            self._count(len(to_upstream), len(to_downstream))
            self._down.close()  # the sockets are closed: the streams are told
            self._up.close()
            del self._relay  # knows us: no circle may be left for the collector
        reason, ended_by, detail = self._outcome
        moved = relay.client.moved, relay.endpoint.moved
        return RelayOutcome(reason=reason, ended_by=ended_by, bytes_in=moved[0], bytes_out=moved[1], detail=detail)

    def _count(self, from_client: int, from_endpoint: int) -> None:
        """Put what moved on the streams' accounts. What went first, so many bytes, was counted as it was received."""
        relay, down, up = self._relay, self._down, self._up
        down.bytes_in += max(0, relay.client.moved - from_client)
        up.bytes_out += relay.client.moved
        up.bytes_in += max(0, relay.endpoint.moved - from_endpoint)
        down.bytes_out += relay.endpoint.moved

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        """It is cancelled."""
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        """The task need not wait any more."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    # -- what the lane and the relay call ---------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Look whether the idle time is over."""
        if now >= self._relay.due:
            self._relay.sweep(now)

    def relayed(self, reason: Reason, ended_by: Side, detail: str) -> None:
        """The relay is over, and both sockets are closed."""
        self._outcome = Reason.TUNNEL_CLOSED if reason is Reason.OK else reason, ended_by, detail
        self._wake()

    def on_fault(self, exc: Exception) -> None:
        """A bug: whoever caught it has logged it."""
        try:
            self._relay.cut(Reason.BUG)
        finally:
            self._wake()
