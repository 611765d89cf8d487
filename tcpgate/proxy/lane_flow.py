"""A tcp listener's connection in the lane: the flow that `tcp.py` tells, by callbacks instead of a task.

    begin -> pick -> [name not known: a task looks it up] -> connecting -> relaying -> over
              ^------------- it failed, and there is another one ---'

The choice of endpoints, what they are told, the reasons and the record are those of `tcp.py` and `flow.py`; only the
waiting is different. A flow starts a task of its own for one thing, the look-up of an endpoint's name. Its times are
looked at by the lane's sweep: they are never early, and at most 250 ms late.

Owner: the listener (`rider.Host`), which is told when it is over.
"""

from __future__ import annotations

import logging
import math
import socket

import trio

from tcpgate.errors import GateError, Reason, Side, UpstreamError
from tcpgate.net.address import SocketAddress, Target, describe, number_of
from tcpgate.net.connect import Connecting
from tcpgate.net.ending import reset
from tcpgate.net.lane import Lane
from tcpgate.net.lane_relay import LaneRelay
from tcpgate.policy.hashing import hash64
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.flow import FlowTarget, close_books
from tcpgate.proxy.greet import flow_greeting
from tcpgate.proxy.plane import WORKER_LANE_EXCHANGES
from tcpgate.proxy.rider import Host
from tcpgate.proxy.tcp import CUT, FlowAttempt, FlowRecord, next_endpoint
from tcpgate.state.runtime import EndpointRuntime, UpstreamRuntime
from tcpgate.stats import plain

log = logging.getLogger("tcpgate.proxy.lane_flow")


class LaneFlow:
    """One client of a tcp listener."""

    # fmt: off
    __slots__ = (
        "_attempts", "_began", "_connected_after", "_connecting", "_counted_at", "_counted_in", "_counted_out",
        "_cut_at", "_endpoint", "_failure", "_generation", "_host", "_lane", "_over", "_plan", "_plane", "_relay",
        "_scope", "_sock", "_sockaddr", "_started", "_target", "arrived",
    )
    # fmt: on

    is_long = True

    def __init__(
        self,
        host: Host,
        lane: Lane,
        sock: socket.SocketType,
        sockaddr: SocketAddress,
        upstream: UpstreamRuntime,
        arrived: Arrived | None = None,
    ) -> None:
        """`sock`: accepted, non-blocking, in no lane; the flow's from now on."""
        self._host = host
        self._lane = lane
        self._plane = plane = host.plane
        self._plan = host.plan
        self._generation = plane.snapshot.generation
        self._sock: socket.SocketType | None = sock  # until a relay has it
        self._sockaddr = sockaddr
        self.arrived = arrived
        """How it came, where that was not plainly."""
        self._target = FlowTarget(upstream, self)  # holds the upstream, so no reload can take it away
        self._began = self._started = lane.clock()
        self._connected_after = 0.0
        """Seconds that the endpoint took to accept."""
        self._cut_at = math.inf
        self._over = False
        self._attempts: tuple[FlowAttempt, ...] = ()
        """Those that failed."""
        self._failure: UpstreamError | None = None
        self._endpoint: EndpointRuntime | None = None
        """The one that counts us in flight."""
        self._scope: trio.CancelScope | None = None
        self._connecting: Connecting | None = None
        self._relay: LaneRelay | None = None
        self._counted_in = self._counted_out = 0
        self._counted_at = 0.0
        """When the last of the bytes moved that are counted."""

    def begin(self) -> None:
        """Serve it. Whatever happens it comes to an end, so this does not raise."""
        self._lane.timed.add(self)
        try:
            self._try_next()
        except Exception as exc:  # a bug must cost one flow, not the listener
            log.exception("flow failed: listener=%s", self._plan.name)
            self.on_fault(exc)

    # -- what the listener asks -------------------------------------------------------------------------------------

    def leave(self) -> None:
        """A flow has no moment at which nothing is under way, so it ends at its deadline only."""

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`; infinity takes it back."""
        self._cut_at = deadline

    def stop(self) -> None:
        """Both sides are reset, now."""
        self._end(Side.GATEWAY, Reason.DRAINED, CUT)

    # -- what the lane calls ----------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Look whether a time is over."""
        relay = self._relay
        if now >= self._cut_at:
            self.stop()
        elif relay is not None and (now >= relay.due or relay.last != self._counted_at):
            self._count(relay)
            relay.sweep(now)

    def on_fault(self, exc: Exception) -> None:
        """A bug: whoever caught it has logged it."""
        self._end(Side.GATEWAY, Reason.BUG, "")

    # -- connecting -------------------------------------------------------------------------------------------------

    def _try_next(self) -> None:
        """Go on to another endpoint, or say why there is none."""
        key = hash64(self._client().encode()) if self._target.upstream.keyed else 0
        try:
            now = self._lane.clock()
            endpoint = next_endpoint(self._target, key, self._attempts, self._failure, now)
        except GateError as exc:
            self._end(exc.side, exc.reason, exc.detail)
            return
        self._began = now
        self._target.begin(endpoint)
        self._endpoint = endpoint
        targets = self._plane.resolver.known(endpoint.address)
        if targets is not None:
            self._connect(targets)
        else:
            self._host.start(self._look_up)

    def _connect(self, targets: tuple[Target, ...]) -> None:
        endpoint, client = self._endpoint, self._sock
        assert endpoint is not None
        assert client is not None
        deadline = self._began + self._target.timeouts.connect
        greeting = flow_greeting(endpoint, self._plane.contexts, client, self.arrived)
        self._connecting = Connecting(self._lane, targets, deadline, self, greeting)
        self._connecting.start()

    async def _look_up(self) -> None:
        """Connect once the endpoint's name is known. Cancelled: the flow is over."""
        endpoint = self._endpoint
        if endpoint is None:  # stopped before this task ran
            return
        found: tuple[Target, ...] | GateError = ()
        deadline = self._began + self._target.timeouts.connect
        try:
            with trio.CancelScope() as self._scope:
                found = await self._plane.resolver.resolve(endpoint.address, deadline=deadline)
        except GateError as exc:
            found = exc
        except trio.Cancelled:
            self.stop()
            raise
        self._scope = None
        if self._over:
            return
        try:
            if isinstance(found, GateError):
                self.connect_failed(found)
            else:
                self._connect(found)
        except Exception as exc:  # as in `begin`
            log.exception("flow failed: listener=%s", self._plan.name)
            self.on_fault(exc)

    def connect_failed(self, error: GateError) -> None:
        """The endpoint cannot be reached, or we have no descriptor left."""
        endpoint, self._connecting = self._endpoint, None
        assert endpoint is not None
        if not isinstance(error, UpstreamError):
            self._end(error.side, error.reason, error.detail)
            return
        now = self._lane.clock()
        self._target.connect_failed(endpoint, error, now)
        self._attempts += (FlowAttempt(endpoint.name, error.reason, now - self._began, error.detail),)
        self._failure = error
        self._release()
        self._try_next()

    def connected(self, sock: socket.SocketType, target: Target) -> None:
        """The endpoint has accepted."""
        client, endpoint = self._sock, self._endpoint
        assert client is not None
        assert endpoint is not None
        times = self._plan.spec.timeouts
        self._relay = relay = LaneRelay(
            self._lane, self._plane.pipes, client, sock, self, idle=times.idle, deadline=self._started + times.total
        )
        self._sock = self._connecting = None
        now = self._lane.clock()
        self._connected_after = now - self._began
        self._target.connected(endpoint, self._connected_after, now)
        try:
            relay.start()
        except OSError as exc:  # the user's allowance of epoll watches
            relay.cut(Reason.FILE_LIMIT, f"{target}: {exc.strerror}")

    # -- the end ----------------------------------------------------------------------------------------------------

    def relayed(self, reason: Reason, ended_by: Side, detail: str) -> None:
        """The relay is over, and both sockets are closed."""
        relay = self._relay
        assert relay is not None
        self._count(relay)
        self._close_books(ended_by, reason, detail)

    def _end(self, ended_by: Side, reason: Reason, detail: str) -> None:
        """It is over, for a reason that is ours or an endpoint's."""
        if self._relay is not None:
            self._relay.cut(reason, detail)  # which closes the books, too, unless a bug kept it from that
        if self._connecting is not None:
            self._connecting.cancel()
        if self._scope is not None:
            self._scope.cancel()
        if self._sock is not None:
            # Not closed in good order: an end of stream would look like an empty but complete answer.
            reset(self._sock)
            self._sock = None
        self._close_books(ended_by, reason, detail)

    def _close_books(self, ended_by: Side, reason: Reason, detail: str) -> None:
        """Leave everything that knows of us, and write the record. The sockets are closed. Idempotent."""
        if self._over:
            return
        self._over = True
        self._lane.timed.discard(self)
        relay, endpoint, upstream = self._relay, self._endpoint, self._target.name
        try:
            if relay is not None:
                self._plane.page[WORKER_LANE_EXCHANGES] += 1
            self._release()
            self._relay = None
            del self._target  # knows us: no circle may be left for the collector
            if relay is None or endpoint is None:
                self._write(upstream, "", ended_by, reason, detail, 0, 0)
            elif (
                reason is not Reason.OK
                or self._attempts
                or (self.arrived is not None and self.arrived.hello is not None)
                or not self._write_plain(upstream, endpoint.name, ended_by, relay)
            ):
                self._attempts += (FlowAttempt(endpoint.name, Reason.OK, self._connected_after),)
                moved = relay.client.moved, relay.endpoint.moved
                self._write(upstream, endpoint.name, ended_by, reason, detail, *moved)
        finally:
            self._host.ended(self)

    def _write_plain(self, upstream: str, endpoint: str, ended_by: Side, relay: LaneRelay) -> bool:
        """Close the books of a flow that went well at its first attempt: all that differs from `_write` is the cost."""
        plane, plan = self._plane, self._plan
        bytes_in, bytes_out = relay.client.moved, relay.endpoint.moved
        line = plain.render_flow(
            plane.stamp(),
            plane.new_id(),
            plan.name,
            upstream,
            endpoint,
            self._client(),
            describe(self._sockaddr),
            ended_by,
            self._connected_after,
            self._lane.clock() - self._started,
            bytes_in,
            bytes_out,
            self._generation,
        )
        if line is None:
            return False
        plane.count(plan.block, bytes_in, bytes_out)
        plane.write_lines((line,))
        return True

    def _write(
        self, upstream: str, endpoint: str, ended_by: Side, reason: Reason, detail: str, bytes_in: int, bytes_out: int
    ) -> None:
        """Close the books by the readable path's own words."""
        record = FlowRecord(
            listener=self._plan.name,
            upstream=upstream,
            endpoint=endpoint,
            client=describe(self._sockaddr),
            attempts=self._attempts,
            ended_by=ended_by,
            reason=reason,
            detail=detail,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            seconds=self._lane.clock() - self._started,
        )
        close_books(self._plane, self._plan, self._generation, self._client(), record, self.arrived)

    def _release(self) -> None:
        """The endpoint no longer counts us."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            self._target.end(endpoint)

    def _count(self, relay: LaneRelay) -> None:
        """Bring the endpoint's byte counters up to date; not at each move, which would cost more than the move."""
        arrived, sent = relay.client.moved - self._counted_in, relay.endpoint.moved - self._counted_out
        self._counted_at = relay.last
        if self._endpoint is not None and (arrived or sent):
            self._counted_in += arrived
            self._counted_out += sent
            self._target.moved(self._endpoint, arrived, sent)

    def _client(self) -> str:
        """The client's address, without the port."""
        host = self._sockaddr[0] if isinstance(self._sockaddr, tuple) else ""
        if host and ":" not in host:
            return host
        return str(number_of(self._sockaddr) or "unix:")  # one spelling for each IPv6 address
