"""One TCP flow: pick an endpoint, connect to it, relay, and tell how it went.

Nothing of the client's bytes is looked at. Until the first byte has moved nothing is lost by trying again, so a
failed connect goes to another endpoint, as often as the upstream's retry policy allows; afterwards there is no second
attempt. A client that cannot be served is reset, not closed: an end of stream would look like an empty but complete
answer.

What a flow needs of the state (an upstream that picks, takes feedback and counts) is the `FlowUpstream` protocol.
Exactly one `FlowRecord` leaves for every flow, also when the flow is cancelled.

Owner: one task per flow, in the worker's nursery of open connections.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

import attrs
import trio

from tcpgate.config.schema import ClientTimeouts, RetryPolicy, UpstreamTimeouts
from tcpgate.errors import GateError, Reason, Refused, Side, UpstreamError
from tcpgate.net.dial import dial
from tcpgate.net.greeting import Greeting
from tcpgate.net.pipes import PipePool
from tcpgate.net.relay import Flow, RelayOutcome, relay
from tcpgate.net.resolve import Resolver
from tcpgate.net.stream import Stream
from tcpgate.units import EndpointAddress

# -- what a flow needs of others ------------------------------------------------------------------------------------


class FlowEndpoint(Protocol):
    """One address that flows can go to."""

    @property
    def name(self) -> str:
        """Its identity, for the skip set and the record."""
        ...

    @property
    def address(self) -> EndpointAddress:
        """Where to connect."""
        ...


E = TypeVar("E", bound=FlowEndpoint)


class FlowUpstream(Protocol[E]):
    """An upstream as a flow sees it. All of it is sync and never raises."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    @property
    def timeouts(self) -> UpstreamTimeouts:
        """`connect` is used."""
        ...

    @property
    def retry(self) -> RetryPolicy:
        """`attempts` is used."""
        ...

    def pick(self, key: int, skip: Container[str], now: float) -> E | None:
        """An endpoint that may take the flow and is not in `skip`, or None."""
        ...

    def why_none(self) -> str:
        """Why `pick` gave nothing: each endpoint's state, in words."""
        ...

    def begin(self, endpoint: E) -> None:
        """An attempt begins; it counts as in flight until `end`."""
        ...

    def end(self, endpoint: E) -> None:
        """The attempt, and the flow if there was one, is over."""
        ...

    def connected(self, endpoint: E, seconds: float, now: float) -> None:
        """The endpoint accepted the connection after so many seconds."""
        ...

    def connect_failed(self, endpoint: E, cause: UpstreamError, now: float) -> None:
        """The endpoint did not."""
        ...

    def moved(self, endpoint: E, to_endpoint: int, from_endpoint: int) -> None:
        """So many bytes were handed on."""
        ...

    def flow_ended(self, endpoint: E, outcome: RelayOutcome, now: float) -> None:
        """The flow over a connection that was made has ended (not called if the flow's task was cancelled)."""
        ...


@attrs.frozen
class FlowAttempt:
    """One try at an endpoint."""

    endpoint: str
    reason: Reason
    """OK if it connected."""
    seconds: float
    detail: str = ""


@attrs.frozen(kw_only=True)
class FlowRecord:
    """What is told of a flow when it is over."""

    listener: str
    upstream: str
    endpoint: str
    """The one that took it; "" if none did."""
    client: str
    attempts: tuple[FlowAttempt, ...]
    ended_by: Side
    reason: Reason
    detail: str
    bytes_in: int
    """From the client, handed on to the endpoint."""
    bytes_out: int
    """From the endpoint, handed on to the client."""
    seconds: float
    """The flow's whole life, connecting included."""


@attrs.frozen(kw_only=True)
class FlowService(Generic[E]):
    """What all flows of one tcp listener share."""

    listener: str
    upstream: FlowUpstream[E]
    timeouts: ClientTimeouts
    """`idle` and `total` are used."""
    resolver: Resolver
    pipes: PipePool
    record: Callable[[FlowRecord], object]
    flows: set[Flow]
    """Those that are open: what a drain cuts and `tcpgate tree` shows."""
    greet: Callable[[E], Greeting | None] = lambda _: None
    """What a connection to an endpoint begins with."""


CUT = "cut while it was open"
"""The detail of a flow that a drain, or the worker's end, has cut."""

# -- a flow's life --------------------------------------------------------------------------------------------------


async def serve_flow(downstream: Stream, service: FlowService[E], *, key: int, first: bytes = b"") -> None:
    """Serve one client from its first byte to its last, whatever happens; `downstream` is closed by then.

    `key` is what hashing balancers go by. `first` is what was already read of the client (a peeked ClientHello).
    Raises nothing but Cancelled, upon which both sides are reset.
    """
    story = _Story(trio.current_time())
    service.flows.add(story.flow)
    try:
        await _connect_and_relay(downstream, service, key, first, story)
    except GateError as exc:
        story.end(exc.side, exc.reason, exc.detail)
    except trio.Cancelled:
        story.end(Side.GATEWAY, Reason.DRAINED, CUT)
        raise
    finally:
        downstream.abort()  # the relay has closed it, unless there was none
        service.flows.discard(story.flow)
        service.record(story.told(service.listener, service.upstream.name, downstream.peer))


async def _connect_and_relay(
    downstream: Stream, service: FlowService[E], key: int, first: bytes, story: _Story
) -> None:
    """Try endpoints until one connects, then relay over it. Raises the last attempt's error, or Refused."""
    while True:
        endpoint = next_endpoint(service.upstream, key, story.attempts, story.failure, trio.current_time())
        with _in_flight(service.upstream, endpoint):
            upstream = await _attempt(service, endpoint, story)
            if upstream is None:
                continue
            story.endpoint = endpoint.name
            story.flow.moved = partial(service.upstream.moved, endpoint)
            outcome = await relay(
                downstream,
                upstream,
                idle=service.timeouts.idle,
                deadline=story.started + service.timeouts.total,
                pipes=service.pipes,
                flow=story.flow,
                closed=Reason.OK,
                to_upstream=first,
            )
            service.upstream.flow_ended(endpoint, outcome, trio.current_time())
            story.end(outcome.ended_by, outcome.reason, outcome.detail)
            return


def next_endpoint(
    upstream: FlowUpstream[E], key: int, attempts: Sequence[FlowAttempt], failure: UpstreamError | None, now: float
) -> E:
    """Another endpoint than those that were tried; raises the last `failure` if there is none, or no attempt left."""
    if len(attempts) < upstream.retry.attempts:
        tried = {attempt.endpoint for attempt in attempts} if attempts else ()
        endpoint = upstream.pick(key, tried, now)
        if endpoint is not None:
            return endpoint
    raise failure or Refused(Reason.NO_ENDPOINT, upstream.why_none())


@contextmanager
def _in_flight(upstream: FlowUpstream[E], endpoint: E) -> Iterator[None]:
    upstream.begin(endpoint)
    try:
        yield
    finally:
        upstream.end(endpoint)


async def _attempt(service: FlowService[E], endpoint: E, story: _Story) -> Stream | None:
    """A connection to `endpoint`, or None if it failed in a way that another endpoint may do better."""
    started = trio.current_time()
    deadline = started + service.upstream.timeouts.connect
    try:
        greeting = service.greet(endpoint)
        stream = await dial(endpoint.address, deadline=deadline, resolver=service.resolver, greeting=greeting)
    except UpstreamError as exc:
        now = trio.current_time()
        service.upstream.connect_failed(endpoint, exc, now)
        story.attempts.append(FlowAttempt(endpoint.name, exc.reason, now - started, exc.detail))
        story.failure = exc
        return None
    now = trio.current_time()
    service.upstream.connected(endpoint, now - started, now)
    story.attempts.append(FlowAttempt(endpoint.name, Reason.OK, now - started))
    return stream


@attrs.define(eq=False)
class _Story:
    """A flow's record while it is being lived."""

    started: float
    flow: Flow = attrs.field(factory=Flow)
    attempts: list[FlowAttempt] = attrs.field(factory=list)
    failure: UpstreamError | None = None
    endpoint: str = ""
    # What stands here only leaves if an exception that is not ours ends the flow.
    ended_by: Side = Side.GATEWAY
    reason: Reason = Reason.BUG
    detail: str = ""

    def end(self, ended_by: Side, reason: Reason, detail: str) -> None:
        """How it ended."""
        self.ended_by, self.reason, self.detail = ended_by, reason, detail

    def told(self, listener: str, upstream: str, client: str) -> FlowRecord:
        """The record of the whole flow, now."""
        return FlowRecord(
            listener=listener,
            upstream=upstream,
            endpoint=self.endpoint,
            client=client,
            attempts=tuple(self.attempts),
            ended_by=self.ended_by,
            reason=self.reason,
            detail=self.detail,
            bytes_in=self.flow.bytes_in,
            bytes_out=self.flow.bytes_out,
            seconds=trio.current_time() - self.started,
        )
