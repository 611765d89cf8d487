"""A tcp listener's connection: fits the runtime's upstreams and the access record to a flow (`tcp.py`).

Owner: the listener's nursery (serve.py), one task each. `cut_by` ends it at a deadline, as a drain or the removal of
its endpoint does.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from functools import partial

import attrs
import trio

from tcpgate.config import schema
from tcpgate.errors import UpstreamError
from tcpgate.net.relay import RelayOutcome
from tcpgate.net.stream import Stream
from tcpgate.policy.hashing import hash64
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.greet import flow_greeting
from tcpgate.proxy.plane import Plane
from tcpgate.proxy.rider import Host
from tcpgate.proxy.tcp import FlowRecord, FlowService, serve_flow
from tcpgate.state.held import Cuttable
from tcpgate.state.runtime import (
    BYTES_IN,
    BYTES_OUT,
    CONNECTS,
    EndpointRuntime,
    UpstreamRuntime,
)
from tcpgate.state.snapshot import ListenerPlan
from tcpgate.stats.record import AccessRecord, Attempt, Phases
from tcpgate.units import Address

log = logging.getLogger("tcpgate.proxy.flow")


class TcpConnection:
    """One client of a tcp listener."""

    is_long = True

    def __init__(
        self,
        host: Host,
        stream: Stream,
        address: Address | None,
        upstream: UpstreamRuntime,
        arrived: Arrived | None = None,
    ) -> None:
        self.host = host
        self.plane = host.plane
        self.plan = host.plan
        self.stream = stream
        self.arrived = arrived
        """How it came, where that was not plainly."""
        self.client = str(address) if address is not None else "unix:"
        self._upstream = upstream  # held, so no reload can take it away
        self._generation = host.plane.snapshot.generation
        self._scope = trio.CancelScope()

    def begin(self) -> None:
        """Start the flow's task."""
        self.host.start(self._run)

    async def _run(self) -> None:
        try:
            await self.run()
        finally:
            self.host.ended(self)

    def leave(self) -> None:
        """A flow has no moment at which nothing is under way, so it ends at its deadline only."""

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`; infinity takes it back."""
        self._scope.deadline = deadline

    def stop(self) -> None:
        """Its task is cancelled, and writes the record."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve the flow to its end."""
        service = FlowService(
            listener=self.plan.name,
            upstream=FlowTarget(self._upstream, self),
            timeouts=self.plan.spec.timeouts,
            resolver=self.plane.resolver,
            pipes=self.plane.pipes,
            record=self._record,
            flows=set(),
            greet=partial(flow_greeting, contexts=self.plane.contexts, client=self.stream.sock, arrived=self.arrived),
        )
        try:
            with self._scope:
                await serve_flow(self.stream, service, key=hash64(self.client.encode()))
        except Exception:  # a bug must cost one flow, not the worker
            log.exception("flow failed: listener=%s peer=%s", self.plan.name, self.stream.peer)

    def _record(self, flow: FlowRecord) -> None:
        close_books(self.plane, self.plan, self._generation, self.client, flow, self.arrived)


def close_books(
    plane: Plane, plan: ListenerPlan, generation: int, client: str, flow: FlowRecord, arrived: Arrived | None = None
) -> None:
    """The end of every flow: its counters and its access record. `client`: its address, without the port."""
    connecting = sum(attempt.seconds for attempt in flow.attempts)
    plane.close_books(
        plan.block,
        AccessRecord(
            ts=plane.wall(),
            id=plane.new_id(),
            listener=flow.listener,
            upstream=flow.upstream,
            endpoint=flow.endpoint,
            attempts=[Attempt(one.endpoint, one.reason, one.seconds * 1000) for one in flow.attempts],
            client=client,
            peer=flow.client,
            tls="" if arrived is None else arrived.text,
            auth="" if arrived is None else arrived.identity,
            host="" if arrived is None or arrived.hello is None else arrived.hello.server_name,
            proto="tcp",
            answered_by=flow.ended_by,
            reason=flow.reason,
            rule=f"listeners.{flow.listener}",
            detail=flow.detail,
            t=Phases(tls=0.0 if arrived is None else arrived.seconds, connect=connecting, total=flow.seconds),
            bytes_in=flow.bytes_in,
            bytes_out=flow.bytes_out,
            generation=generation,
        ),
    )


@attrs.define(eq=False)
class FlowTarget:
    """An upstream as a flow uses it; satisfies `tcp.FlowUpstream`."""

    upstream: UpstreamRuntime
    flow: Cuttable

    @property
    def name(self) -> str:
        """For the record."""
        return self.upstream.name

    @property
    def timeouts(self) -> schema.UpstreamTimeouts:
        """How long a connect may take."""
        return self.upstream.spec.timeouts

    @property
    def retry(self) -> schema.RetryPolicy:
        """How many endpoints may be tried."""
        return self.upstream.spec.retry

    def pick(self, key: int, skip: Container[str], now: float) -> EndpointRuntime | None:
        """An endpoint that may take the flow."""
        return self.upstream.pick(key, skip, now)

    def why_none(self) -> str:
        """Each endpoint's state, in words."""
        return self.upstream.why_none()

    def begin(self, endpoint: EndpointRuntime) -> None:
        """It counts as in flight, and against the endpoint's connections, from before the connect."""
        endpoint.begin()
        endpoint.opening()
        endpoint.flows.add(self.flow)

    def end(self, endpoint: EndpointRuntime) -> None:
        """The attempt, and the flow if there was one, is over."""
        endpoint.flows.discard(self.flow)
        endpoint.closed()
        endpoint.end()

    def connected(self, endpoint: EndpointRuntime, seconds: float, now: float) -> None:
        """A connect is the only answer time that a flow has."""
        endpoint.count(CONNECTS)
        endpoint.answered_well(seconds, now)

    def connect_failed(self, endpoint: EndpointRuntime, cause: UpstreamError, now: float) -> None:
        """The endpoint did not accept."""
        endpoint.connect_failed(cause.detail or str(cause.reason), now)

    def moved(self, endpoint: EndpointRuntime, to_endpoint: int, from_endpoint: int) -> None:
        """So many bytes were handed on."""
        endpoint.count(BYTES_OUT, to_endpoint)
        endpoint.count(BYTES_IN, from_endpoint)

    def flow_ended(self, endpoint: EndpointRuntime, outcome: RelayOutcome, now: float) -> None:
        """A reset in the middle is no proof against an endpoint: protocols end so. Only its connects judge it."""
