"""The runtime outlives generations: what stays keeps its object, what goes ends in peace, what returns is the same."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.policy.health import EndpointState
from tcpgate.policy.spread import Spread
from tcpgate.state.messages import EndpointStatus, Observed
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, GOOD, EndpointRuntime, Meter, Runtime
from tcpgate.stats.page import FIELDS, OFFSETS, Layout, SharedPage, size_of
from tcpgate.units import Seconds

PAGES = 3
A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@attrs.define(eq=False)
class Connection:
    """An idle one."""

    closed: bool = False

    def close(self) -> None:
        self.closed = True


@attrs.define(eq=False)
class Tunnel:
    """Long-lived work."""

    deadline: float = math.inf

    def cut_by(self, deadline: float) -> None:
        self.deadline = deadline


@attrs.define(eq=False)
class Bench:
    """A runtime, and what it reported."""

    shared: SharedPage
    layout: Layout = attrs.field(factory=Layout)
    reported: list[Observed] = attrs.field(factory=list)
    runtime: Runtime = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        rng = random.Random(1)
        self.runtime = Runtime(
            meter=Meter(shared=self.shared, page=self.shared.pages[1], processes=PAGES - 1),
            report=self.reported.append,
            make_balancer=lambda spec: kinds.BALANCERS[spec.balance](spec, rng),
            make_spread=lambda spec, make: Spread(spec, make, rng),
        )

    def apply(
        self, upstreams: Mapping[str, schema.Upstream], statuses: tuple[EndpointStatus, ...] = ()
    ) -> list[EndpointRuntime]:
        for name, spec in upstreams.items():
            for endpoint in spec.endpoints:
                self.layout.reserve("endpoint", f"{name}/{endpoint.address}")
        return self.runtime.apply(upstreams, self.layout.blocks, statuses)

    def endpoint(self, address: str, upstream: str = "u") -> EndpointRuntime:
        return self.runtime.upstreams[upstream].endpoints[address]

    def picks(self, count: int = 12, upstream: str = "u") -> list[str]:
        found = (self.runtime.upstreams[upstream].pick(0, (), 0.0) for _ in range(count))
        return [one.name for one in found if one is not None]


@pytest.fixture(scope="module")
def page() -> Iterator[SharedPage]:
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(PAGES))
    shared = SharedPage(fd, PAGES)
    yield shared
    shared.close()
    os.close(fd)


@pytest.fixture
def bench(page: SharedPage) -> Bench:
    return Bench(page)


PROBED = schema.Health(tcp=True)


def upstream(*addresses: str | schema.Endpoint, **more: object) -> schema.Upstream:
    endpoints = tuple(one if isinstance(one, schema.Endpoint) else schema.Endpoint(address=one) for one in addresses)
    return schema.Upstream(endpoints=endpoints, **more)  # type: ignore[arg-type]


def status(address: str, state: EndpointState, *, weight: float = 1.0, unproved: bool = False) -> EndpointStatus:
    return EndpointStatus(upstream="u", endpoint=address, state=state, weight=weight, cause="said", unproved=unproved)


HEALTHY, DOWN, EJECTED = EndpointState.HEALTHY, EndpointState.DOWN, EndpointState.EJECTED
DRAINING, MAINT, DEGRADED = EndpointState.DRAINING, EndpointState.MAINT, EndpointState.DEGRADED

# -- what stays -----------------------------------------------------------------------------------------------------


def test_an_endpoint_that_stays_keeps_its_object_its_connections_and_its_latency(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B)})
    kept, idle = bench.endpoint(A), Connection()
    kept.idle.append(idle)
    kept.answered_well(0.5, 1.0)
    latency = kept.latency
    gone = bench.apply({"u": upstream(schema.Endpoint(address=A, weight=5), C, pool=schema.Pool(max_connections=9))})
    assert bench.endpoint(A) is kept
    assert (kept.weight, kept.limits.max_connections) == (5.0, 9)
    assert kept.latency is latency
    assert list(kept.idle) == [idle]
    assert not idle.closed
    assert [one.name for one in gone] == [B]


def test_a_balancers_rotation_goes_on_where_nothing_it_reads_has_changed(bench: Bench) -> None:
    spec = upstream(A, B, C, balance="weighted_round_robin")
    bench.apply({"u": spec})
    spread = bench.runtime.upstreams["u"].spread
    before = bench.picks(2)
    bench.apply({"u": attrs.evolve(spec, timeouts=schema.UpstreamTimeouts(connect=Seconds(9.0)))})
    assert bench.runtime.upstreams["u"].spread is spread
    assert bench.runtime.upstreams["u"].spec.timeouts.connect == 9.0
    assert before + bench.picks(1) == [A, B, C]


def test_another_balancer_begins_afresh_over_the_same_endpoints(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B, balance="round_robin")})
    kept, spread = bench.endpoint(A), bench.runtime.upstreams["u"].spread
    bench.apply({"u": upstream(A, B, balance="first")})
    assert bench.runtime.upstreams["u"].spread is not spread
    assert bench.endpoint(A) is kept
    assert set(bench.picks()) == {A}


def test_the_order_of_the_config_is_the_order_of_first_after_every_reload(bench: Bench) -> None:
    bench.apply({"u": upstream(B, balance="first")})
    bench.apply({"u": upstream(A, B, balance="first")})
    assert set(bench.picks()) == {A}
    bench.apply({"u": upstream(B, A, balance="first")})
    assert set(bench.picks()) == {B}


# -- what goes ------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_removed_takes_nothing_new_and_keeps_what_it_has(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B)})
    leaver, idle, tunnel = bench.endpoint(B), Connection(), Tunnel()
    leaver.idle.append(idle)
    leaver.flows.add(tunnel)
    leaver.begin()
    assert bench.apply({"u": upstream(A)}) == [leaver]
    assert leaver.retired
    assert idle.closed
    assert set(bench.picks()) == {A}
    assert tunnel in leaver.flows  # the caller says until when
    leaver.end()
    assert leaver in list(bench.runtime.endpoints())
    bench.runtime.forget(leaver)
    assert leaver not in list(bench.runtime.endpoints())


def test_a_whole_upstream_that_goes_retires_every_endpoint(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B), "v": upstream(A)})
    gone = bench.apply({"v": upstream(A)})
    assert {(one.upstream, one.name) for one in gone} == {("u", A), ("u", B)}
    assert bench.runtime.upstreams.keys() == {"v"}


def test_a_retired_endpoint_reports_nothing_more(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B)})
    leaver = bench.endpoint(B)
    bench.apply({"u": upstream(A)})
    leaver.connect_failed("refused", 1.0)
    assert bench.reported == []


def test_one_that_comes_back_in_time_is_the_same_object_and_its_flows_may_stay(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B)})
    leaver, tunnel = bench.endpoint(B), Tunnel()
    leaver.flows.add(tunnel)
    bench.apply({"u": upstream(A)})
    tunnel.cut_by(5.0)
    assert bench.apply({"u": upstream(A, B)}) == []
    assert bench.endpoint(B) is leaver
    assert not leaver.retired
    assert tunnel.deadline == math.inf
    assert set(bench.picks()) == {A, B}
    leaver.connect_failed("refused", 1.0)
    assert len(bench.reported) == 1


def test_one_that_comes_back_where_there_are_probes_has_to_be_proved_again(bench: Bench) -> None:
    both = (status(A, HEALTHY), status(B, HEALTHY))
    bench.apply({"u": upstream(A, B, health=PROBED)}, both)
    bench.apply({"u": upstream(A, health=PROBED)}, both[:1])
    bench.apply({"u": upstream(A, B, health=PROBED)}, both[:1])
    assert (bench.endpoint(B).state, bench.endpoint(B).unproved) == (DOWN, True)
    assert set(bench.picks()) == {A}


# -- what the supervisor says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "taken"),
    [(HEALTHY, True), (DEGRADED, True), (DOWN, False), (EJECTED, False), (DRAINING, False), (MAINT, False)],
)
def test_a_state_decides_who_takes_work(bench: Bench, state: EndpointState, taken: bool) -> None:
    bench.apply({"u": upstream(A, B)})
    bench.runtime.set_statuses([status(B, state)])
    assert set(bench.picks()) == ({A, B} if taken else {A})


def test_one_that_goes_out_loses_its_idle_connections_and_nothing_else(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B)})
    idle, tunnel = Connection(), Tunnel()
    bench.endpoint(A).idle.append(idle)
    bench.endpoint(A).flows.add(tunnel)
    assert bench.runtime.set_statuses([status(A, DOWN), status(B, DEGRADED)]) == [bench.endpoint(A)]
    assert idle.closed
    assert tunnel.deadline == math.inf
    assert bench.runtime.set_statuses([status(A, EJECTED)]) == []  # it was out before


def test_weights_follow_the_word_of_the_supervisor(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B, balance="weighted_round_robin")})
    bench.runtime.set_statuses([status(A, HEALTHY, weight=3.0)])
    picks = bench.picks(40)
    assert (picks.count(A), picks.count(B)) == (30, 10)
    bench.runtime.set_statuses([status(A, HEALTHY, weight=0.0)])
    assert set(bench.picks()) == {B}


def test_a_word_on_what_is_gone_is_dropped(bench: Bench) -> None:
    bench.apply({"u": upstream(A)})
    stray = attrs.evolve(status(A, DOWN), upstream="other")
    assert bench.runtime.set_statuses([status(B, DOWN), stray]) == []
    assert set(bench.picks()) == {A}


def test_before_any_probe_has_answered_endpoints_are_better_than_a_503(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B, health=PROBED)})
    assert set(bench.picks()) == {A, B}
    bench.runtime.set_statuses([status(A, HEALTHY)])
    assert set(bench.picks()) == {A}
    bench.runtime.set_statuses([status(B, DOWN)])
    bench.runtime.set_statuses([status(A, DOWN)])
    assert bench.picks() == []
    assert bench.runtime.upstreams["u"].why_none() == f"{A} down (said), {B} down (said)"


def test_what_is_known_at_the_commit_is_known_at_the_first_pick(bench: Bench) -> None:
    bench.apply({"u": upstream(A, B, health=PROBED)}, (status(A, DOWN), status(B, HEALTHY, weight=2.0)))
    assert set(bench.picks()) == {B}
    assert bench.endpoint(B).weight == 2.0


# -- counting -------------------------------------------------------------------------------------------------------


def test_what_is_in_flight_is_summed_over_all_workers(bench: Bench) -> None:
    bench.apply({"u": upstream(A, pool=schema.Pool(max_connections=5))})
    endpoint, fields = bench.endpoint(A), OFFSETS["endpoint"]
    before = endpoint.active()
    endpoint.begin()
    other = bench.shared.pages[2]
    other[endpoint.block + fields["active"]] += 2
    assert endpoint.active() == before + 3
    other[endpoint.block + fields["connections"]] += 5
    assert endpoint.full()
    endpoint.idle.append(Connection())
    assert not endpoint.full()  # an idle one of ours is always room
    endpoint.end()
    other[endpoint.block + fields["active"]] -= 2
    other[endpoint.block + fields["connections"]] -= 5
    assert endpoint.active() == before


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_an_exchange_in_one_call_leaves_what_its_parts_leave(bench: Bench, status: int) -> None:
    bench.apply({"u": upstream(A, B, health=PROBED, passive=schema.Passive(bad_answers=2))})
    whole, parts = bench.endpoint(A), bench.endpoint(B)
    page, size = bench.shared.pages[1], len(FIELDS["endpoint"])

    def counters(endpoint: EndpointRuntime) -> list[int]:
        return [*page[endpoint.block : endpoint.block + size]]

    before = counters(whole), counters(parts)  # other tests have counted on the same page
    for now in 1.0, 2.0:
        for endpoint in whole, parts:
            endpoint.begin()
            endpoint.answered_badly("planted", now)
            endpoint.end()
        whole.begin()
        whole.end()
        if status >= 500:
            whole.answered_badly(f"status {status}", now)
        whole.exchanged([0.25] if status < 500 else [], 100, 20, now)
        parts.begin()
        parts.end()
        parts.count(BYTES_IN, 100)
        parts.count(BYTES_OUT, 20)
        if status < 500:
            parts.answered_well(0.25, now)
        else:
            parts.answered_badly(f"status {status}", now)
    grown = [list(map(int.__sub__, counters(one), old)) for one, old in zip((whole, parts), before, strict=True)]
    assert grown[0] == grown[1]
    assert grown[0][BYTES_IN] == 200
    assert grown[0][GOOD] == (2 if status < 500 else 0)
    assert whole.latency.value(3.0) == parts.latency.value(3.0)
    assert {one.endpoint for one in bench.reported} == {A, B}
    assert [attrs.evolve(one, endpoint=B) for one in bench.reported if one.endpoint == A] == [
        one for one in bench.reported if one.endpoint == B
    ]


# -- any chain of reloads -------------------------------------------------------------------------------------------

SETS = st.dictionaries(st.sampled_from("uv"), st.lists(st.sampled_from([A, B, C]), min_size=1, unique=True))


@given(st.lists(SETS, min_size=1, max_size=8))
def test_after_any_chain_of_reloads_the_runtime_is_what_the_last_config_says(chain: list[dict[str, list[str]]]) -> None:
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(PAGES))
    shared = SharedPage(fd, PAGES)
    bench = Bench(shared)
    seen: dict[tuple[str, str], EndpointRuntime] = {}
    for config in chain:
        gone = bench.apply({name: upstream(*addresses) for name, addresses in config.items()})
        now = {
            (name, address): one
            for name, group in bench.runtime.upstreams.items()
            for address, one in group.endpoints.items()
        }
        assert {name: list(group.endpoints) for name, group in bench.runtime.upstreams.items()} == config
        assert now.keys() & bench.runtime.retired.keys() == set()
        assert {*now, *bench.runtime.retired} == {*seen, *now}
        assert all(one is seen.get(key, one) for key, one in now.items())  # nothing was forgotten in between
        assert not any(one.retired for one in now.values())
        assert all(one.retired for one in gone)
        seen |= now
    shared.close()
    os.close(fd)
