"""What outlives generations in a worker: endpoints with their health, latency, in-flight counts and idle connections.

A snapshot says what should be; the runtime is what is. It is keyed by identity (upstream name, endpoint address), so
a reload touches only what its diff names: an endpoint that stays keeps its object, its connections and its counters.
One that a reload removes is *retired*: it is no longer picked, but whoever works with it holds it and ends in peace;
if a later reload brings it back in time, it is the same object again.

All bookkeeping here is synchronous, so no await can split it. Pure: sockets are held only as things with a `close()`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import attrs

from tcpgate.config import schema
from tcpgate.policy.balancers.base import Balancer
from tcpgate.policy.ewma import PeakEwma
from tcpgate.policy.health import EndpointState
from tcpgate.policy.passive import LiveCounts, Observation
from tcpgate.policy.spread import Spread
from tcpgate.state.held import Cuttable, Idle, Shared
from tcpgate.state.messages import EndpointStatus, Observed
from tcpgate.state.reach import PLAIN, Reach, reach_of
from tcpgate.stats import histogram
from tcpgate.stats.page import ENDPOINT_FIELDS, SharedPage
from tcpgate.units import EndpointAddress, parse_endpoint

ACTIVE = ENDPOINT_FIELDS.index("active")
CONNECTIONS = ENDPOINT_FIELDS.index("connections")
ATTEMPTS = ENDPOINT_FIELDS.index("attempts")
GOOD = ENDPOINT_FIELDS.index("answers_good")
BAD = ENDPOINT_FIELDS.index("answers_bad")
CONNECT_FAILURES = ENDPOINT_FIELDS.index("connect_failures")
CONNECTS = ENDPOINT_FIELDS.index("connects")
REUSED = ENDPOINT_FIELDS.index("reused")
BYTES_IN = ENDPOINT_FIELDS.index("bytes_in")
BYTES_OUT = ENDPOINT_FIELDS.index("bytes_out")
FIRST_BYTE = ENDPOINT_FIELDS.index(histogram.field_names("first_byte")[0])

USABLE = frozenset({EndpointState.HEALTHY, EndpointState.DEGRADED})
NOT_PROBED = "not yet probed"
WITHDRAWN = frozenset({EndpointState.DRAINING, EndpointState.MAINT})
"""An operator's word or a removal: not even panic sends new work there."""


@attrs.define(eq=False, kw_only=True)
class Meter:
    """This worker's page and everybody's, as the endpoints use them."""

    shared: SharedPage
    page: memoryview
    """The one page that this process writes."""
    processes: int
    """How many workers' pages to sum over; raised when a reload starts more."""


@attrs.define(eq=False, kw_only=True)
class EndpointRuntime:
    """One endpoint as this worker knows it. Satisfies `policy.balancers.base.Member`."""

    upstream: str
    name: str
    address: EndpointAddress
    spec: schema.Endpoint
    limits: schema.Pool
    block: int
    """First slot of its counters on the shared page."""
    meter: Meter
    latency: PeakEwma
    live: LiveCounts
    report: Callable[[Observed], None]
    """Carries what can change a state to the supervisor; never blocks."""
    state: EndpointState = EndpointState.HEALTHY
    weight: float = 1.0
    cause: str = ""
    unproved: bool = False
    retired: bool = False
    reach: Reach = PLAIN
    """How connections to it are made."""
    session: Any = None
    """TLS session that the next connection can go on with (`net/tls_client.Session`)."""
    idle: deque[Idle] = attrs.field(factory=deque)
    shared: Shared | None = None
    """Those of HTTP/2; None: there has been none."""
    flows: set[Cuttable] = attrs.field(factory=set)

    @property
    def tier(self) -> int:
        """0 is the first choice."""
        return self.spec.tier

    def take(self, status: EndpointStatus) -> None:
        """The supervisor's word."""
        if status.state in USABLE and self.state not in USABLE:
            self.live.reset()  # what it did before its absence no longer counts
        self.state, self.weight, self.cause = status.state, status.weight, status.cause
        self.unproved = status.unproved

    def active(self) -> int:
        """Exchanges and flows in flight now, over all workers."""
        return self.meter.shared.total(self.block + ACTIVE, self.meter.processes)

    def full(self) -> bool:
        """Whether another connection would pass the limit, over all workers. An idle one of ours is always room."""
        if self.idle or (self.shared is not None and self.shared.has_room):
            return False
        return self.meter.shared.total(self.block + CONNECTIONS, self.meter.processes) >= self.limits.max_connections

    def count(self, field: int, n: int = 1) -> None:
        """Add `n` to one of this worker's counters."""
        self.meter.page[self.block + field] += n

    def begin(self) -> None:
        """An attempt starts."""
        page, block = self.meter.page, self.block
        page[block + ACTIVE] += 1
        page[block + ATTEMPTS] += 1

    def end(self) -> None:
        """An attempt is over, however it went."""
        self.meter.page[self.block + ACTIVE] -= 1

    def opening(self) -> None:
        """A connection is about to be dialled; it counts against the limit from now on."""
        self.count(CONNECTIONS)

    def closed(self) -> None:
        """A connection is gone, or did not come about."""
        self.count(CONNECTIONS, -1)

    def connect_failed(self, cause: str, now: float) -> None:
        """A connect failed: counts against it, and the supervisor hears."""
        self.session = None  # whoever answers there next may be another
        self.count(CONNECT_FAILURES)
        self.latency.fail(now)
        self._send(self.live.connect_failed(cause, now))

    def answered_well(self, seconds: float | None, now: float) -> None:
        """A good answer, `seconds` after the request was sent; a flow's connect counts as one.

        None: a filter's own question, whose time is no client's.
        """
        page, block = self.meter.page, self.block
        page[block + GOOD] += 1
        if seconds is not None:
            histogram.observe(page, block + FIRST_BYTE, seconds)
            self.latency.observe(seconds, now)
        live = self.live
        if live.connect_failures or live.bad_answers:
            self._send(live.good(now))

    def exchanged(self, waits: Sequence[float], bytes_in: int, bytes_out: int, now: float) -> None:
        """The bytes of attempts that have ended in the lane, and the good answers among them.

        `waits`: how many seconds after its request each of these began. They have come at about the same time.
        """
        page, block = self.meter.page, self.block
        page[block + BYTES_IN] += bytes_in
        page[block + BYTES_OUT] += bytes_out
        if not waits:
            return
        page[block + GOOD] += len(waits)
        histogram.observe_all(page, block + FIRST_BYTE, waits)
        self.latency.observe_all(waits, now)
        live = self.live
        if live.connect_failures or live.bad_answers:
            self._send(live.good(now))

    def answered_badly(self, cause: str, now: float) -> None:
        """A 5xx, a broken or a late answer."""
        self.count(BAD)
        self.latency.fail(now)
        self._send(self.live.bad(cause, now))

    def reach_by(self, reach: Reach) -> None:
        """Make connections this way from now on. Those of another way are not used again."""
        if self.reach != reach:
            self.reach, self.session = reach, None
            self.withdraw()

    def close_idle(self) -> None:
        """Close every idle connection."""
        while self.idle:
            self.idle.pop().close()

    def withdraw(self) -> None:
        """No new work goes over the connections that there are."""
        self.close_idle()
        if self.shared is not None:
            self.shared.withdraw()

    def _send(self, seen: Observation | None) -> None:
        if seen is not None and not self.retired:
            self.report(
                Observed(
                    upstream=self.upstream,
                    endpoint=self.name,
                    connect_failures=seen.connect_failures,
                    bad_answers=seen.bad_answers,
                    cause=seen.cause,
                )
            )


@attrs.define(eq=False, kw_only=True)
class UpstreamRuntime:
    """One upstream's endpoints and the spread over them."""

    name: str
    spec: schema.Upstream
    spread: Spread
    endpoints: dict[str, EndpointRuntime] = attrs.field(factory=dict)

    @property
    def keyed(self) -> bool:
        """Whether `pick` looks at its key."""
        return self.spread.keyed

    def pick(self, key: int, skip: Container[str], now: float) -> EndpointRuntime | None:
        """The endpoint that takes the next work, or None."""
        found = self.spread.pick(key, skip, now)
        return found if isinstance(found, EndpointRuntime) else None

    def refresh(self) -> None:
        """Tell the spread what changed: members, weights, who is usable."""
        members = [e for e in self.endpoints.values() if e.state not in WITHDRAWN and e.weight > 0]
        usable = {e.name for e in members if e.state in USABLE}
        # A reload may bring nothing but endpoints that no probe has reached yet. They are better than a 503.
        self.spread.update(members, usable or {e.name for e in members if e.unproved})

    def why_none(self) -> str:
        """For a 503: each endpoint's state, in words."""
        return ", ".join(f"{e.name} {e.state}" + (f" ({e.cause})" if e.cause else "") for e in self.endpoints.values())


@attrs.define(eq=False, kw_only=True)
class Runtime:
    """Every upstream of a worker."""

    meter: Meter
    report: Callable[[Observed], None]
    make_balancer: Callable[[schema.Upstream], Balancer]
    make_spread: Callable[[schema.Upstream, Callable[[], Balancer]], Spread]
    upstreams: dict[str, UpstreamRuntime] = attrs.field(factory=dict)
    retired: dict[tuple[str, str], EndpointRuntime] = attrs.field(factory=dict)

    def apply(
        self, upstreams: Mapping[str, schema.Upstream], slots: Mapping[str, int], statuses: Iterable[EndpointStatus]
    ) -> list[EndpointRuntime]:
        """Make the runtime be what the config says; returns the endpoints that are retired by it."""
        known = {(status.upstream, status.endpoint): status for status in statuses}
        gone: list[EndpointRuntime] = []
        for name in self.upstreams.keys() - upstreams.keys():
            gone += self.upstreams.pop(name).endpoints.values()
        for name, spec in upstreams.items():
            gone += self._apply_upstream(name, spec, slots, known)
        for endpoint in gone:
            endpoint.retired = True
            endpoint.state = EndpointState.DRAINING
            endpoint.cause = "removed by a reload"
            endpoint.withdraw()
            self.retired[endpoint.upstream, endpoint.name] = endpoint
        return gone

    def _apply_upstream(
        self,
        name: str,
        spec: schema.Upstream,
        slots: Mapping[str, int],
        known: Mapping[tuple[str, str], EndpointStatus],
    ) -> list[EndpointRuntime]:
        upstream = self.upstreams.get(name)
        if upstream is None or upstream.spec != spec:
            upstream = self._renew(name, spec, upstream)
        reach = reach_of(spec)
        wanted = {endpoint.address: endpoint for endpoint in spec.endpoints}
        gone = [upstream.endpoints.pop(address) for address in upstream.endpoints.keys() - wanted.keys()]
        for address, endpoint_spec in wanted.items():
            endpoint = upstream.endpoints.get(address) or self._endpoint(name, address, endpoint_spec, spec, slots)
            endpoint.spec, endpoint.limits = endpoint_spec, spec.pool
            endpoint.weight = float(endpoint_spec.weight)
            endpoint.reach_by(reach)
            upstream.endpoints[address] = endpoint
            if (status := known.get((name, address))) is not None:
                endpoint.take(status)
        # The order of the config decides for `first` and for ties, so keep it after additions and removals.
        upstream.endpoints = {address: upstream.endpoints[address] for address in wanted}
        upstream.refresh()
        return gone

    def _renew(self, name: str, spec: schema.Upstream, old: UpstreamRuntime | None) -> UpstreamRuntime:
        """A changed spec. The spread, and with it the balancer's state, stays if nothing that it reads has changed."""
        if old is not None and _balance_spec(old.spec) == _balance_spec(spec):
            old.spec = spec
            return old
        spread = self.make_spread(spec, lambda: self.make_balancer(spec))
        upstream = UpstreamRuntime(name=name, spec=spec, spread=spread, endpoints=old.endpoints if old else {})
        for endpoint in upstream.endpoints.values():
            endpoint.latency.decay = spec.decay
        self.upstreams[name] = upstream
        return upstream

    def _endpoint(
        self, upstream: str, address: str, spec: schema.Endpoint, group: schema.Upstream, slots: Mapping[str, int]
    ) -> EndpointRuntime:
        probed = group.health is not None
        back = self.retired.pop((upstream, address), None)
        if back is not None:
            # What it was before its absence is no proof for now, no more than for one that was never here.
            back.retired, back.unproved = False, probed
            back.state = EndpointState.DOWN if probed else EndpointState.HEALTHY
            back.cause = NOT_PROBED if probed else ""
            for flow in list(back.flows):
                flow.cut_by(math.inf)
            return back
        return EndpointRuntime(
            upstream=upstream,
            name=address,
            address=parse_endpoint(address),
            spec=spec,
            limits=group.pool,
            block=slots[f"endpoint/{upstream}/{address}"],
            meter=self.meter,
            latency=PeakEwma(decay=group.decay),
            live=LiveCounts(),
            report=self.report,
            state=EndpointState.DOWN if probed else EndpointState.HEALTHY,
            cause=NOT_PROBED if probed else "",
            unproved=probed,
        )

    def set_statuses(self, statuses: Iterable[EndpointStatus]) -> list[EndpointRuntime]:
        """Take the supervisor's word on endpoints; returns those that went out (their idle connections are closed)."""
        touched: dict[str, UpstreamRuntime] = {}
        out: list[EndpointRuntime] = []
        for status in statuses:
            upstream = self.upstreams.get(status.upstream)
            endpoint = upstream.endpoints.get(status.endpoint) if upstream else None
            if upstream is None or endpoint is None:
                continue  # it was removed while the message was under way
            was_usable = endpoint.state in USABLE
            endpoint.take(status)
            if was_usable and endpoint.state not in USABLE:
                endpoint.withdraw()
                out.append(endpoint)
            touched[upstream.name] = upstream
        for upstream in touched.values():
            upstream.refresh()
        return out

    def forget(self, endpoint: EndpointRuntime) -> None:
        """A retired endpoint has nothing open any more."""
        self.retired.pop((endpoint.upstream, endpoint.name), None)

    def endpoints(self) -> Iterable[EndpointRuntime]:
        """Every endpoint, the retired ones too."""
        for upstream in self.upstreams.values():
            yield from upstream.endpoints.values()
        yield from self.retired.values()


def _balance_spec(spec: schema.Upstream) -> schema.Upstream:
    """The part of a spec that a spread and its balancer read: everything but endpoints and how one talks to them."""
    return attrs.evolve(
        spec,
        endpoints=(schema.Endpoint(address="any:1"),),
        hash_key="source",
        health=None,
        passive=schema.Passive(),
        pool=schema.Pool(),
        timeouts=schema.UpstreamTimeouts(),
        retry=schema.RetryPolicy(),
        slow_start=schema.SlowStart(),
        tls=None,
        http="http/1.1",
        proxy_protocol="off",
    )
