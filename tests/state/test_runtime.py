"""What outlives generations: endpoints keep their identity, and what they are doing, over every change around them."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config import schema
from tcpgate.policy.health import EndpointState
from tcpgate.state.messages import EndpointStatus
from tcpgate.units import Seconds
from tests.state.world import config, upstream, world


@attrs.define(eq=False)
class Thing:
    """Something that can be closed (an idle connection) or cut (a flow)."""

    closed: bool = False
    deadline: float = 0.0

    def close(self) -> None:
        self.closed = True

    def cut_by(self, deadline: float) -> None:
        self.deadline = deadline


def status(state: str, *, endpoint: str = "a:1", weight: float = 1.0, unproved: bool = False) -> EndpointStatus:
    return EndpointStatus(
        upstream="api", endpoint=endpoint, state=EndpointState(state), weight=weight, cause="test", unproved=unproved
    )


def test_an_endpoint_that_stays_is_the_same_object_with_its_connections() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1")))
        group = here.runtime.upstreams["api"]
        kept, idle = group.endpoints["a:1"], Thing()
        kept.idle.append(idle)
        assert here.apply(config(api=upstream("c:1", "a:1", weight=5), other=upstream("a:1"))) == list(
            here.runtime.retired.values()
        )
        assert here.runtime.upstreams["api"].endpoints["a:1"] is kept
        assert (kept.weight, idle.closed) == (5.0, False)
        assert list(here.runtime.upstreams["api"].endpoints) == ["c:1", "a:1"]  # the config's order
        assert here.runtime.upstreams["other"].endpoints["a:1"] is not kept  # another upstream, another identity


def test_what_the_spread_does_not_read_leaves_the_spread_alone() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1", balance="weighted_round_robin")))
        spread = here.runtime.upstreams["api"].spread
        changed = attrs.evolve(
            upstream("a:1", "b:1", balance="weighted_round_robin"),
            timeouts=schema.UpstreamTimeouts(connect=Seconds(1.0)),
            pool=schema.Pool(idle=3),
        )
        here.apply(config(api=changed))
        assert here.runtime.upstreams["api"].spread is spread
        assert here.runtime.upstreams["api"].endpoints["a:1"].limits.idle == 3
        here.apply(config(api=attrs.evolve(changed, balance="maglev")))
        assert here.runtime.upstreams["api"].spread is not spread


def test_a_removed_endpoint_is_retired_and_comes_back_as_itself_with_its_flows_uncut() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1")))
        gone, idle, flow = here.runtime.upstreams["api"].endpoints["a:1"], Thing(), Thing()
        gone.idle.append(idle)
        gone.flows.add(flow)
        assert here.apply(config(api=upstream("b:1"))) == [gone]
        assert (gone.retired, gone.state, idle.closed) == (True, EndpointState.DRAINING, True)
        assert gone in list(here.runtime.endpoints())
        assert here.apply(config(api=upstream("b:1", "a:1"))) == []
        assert here.runtime.upstreams["api"].endpoints["a:1"] is gone
        assert (gone.retired, gone.state, flow.deadline) == (False, EndpointState.HEALTHY, math.inf)


def test_a_removed_upstream_retires_its_endpoints_and_a_retired_one_can_be_forgotten() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1")))
        (gone,) = here.apply(config())
        assert here.runtime.upstreams == {}
        here.runtime.forget(gone)
        assert list(here.runtime.endpoints()) == []


def test_a_retired_endpoint_reports_nothing() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1")))
        endpoint = here.runtime.upstreams["api"].endpoints["a:1"]
        endpoint.connect_failed("refused", 1.0)
        here.apply(config(api=upstream("b:1")))
        endpoint.connect_failed("refused", 2.0)
        assert [seen.connect_failures for seen in here.reported] == [1]


def test_an_endpoint_that_is_probed_is_not_picked_before_its_first_answer_while_another_is_good() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1", health=True)))
        group = here.runtime.upstreams["api"]
        picked = group.pick(0, (), 0.0)
        assert picked is not None  # nobody is proved, and that is better than a 503
        here.runtime.set_statuses([status("healthy", endpoint="b:1")])
        assert group.pick(0, (), 0.0) is group.endpoints["b:1"]


@pytest.mark.parametrize("state", ["down", "ejected", "draining", "maint"])
def test_an_endpoint_that_goes_out_is_not_picked_and_its_idle_connections_are_closed(state: str) -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1", "b:1")))
        group, idle = here.runtime.upstreams["api"], Thing()
        group.endpoints["a:1"].idle.append(idle)
        assert here.runtime.set_statuses([status(state)]) == [group.endpoints["a:1"]]
        assert idle.closed
        assert group.pick(0, (), 0.0) is group.endpoints["b:1"]
        assert group.why_none() == f"a:1 {state} (test), b:1 healthy"
        assert here.runtime.set_statuses([status(state)]) == []


def test_coming_back_forgets_what_live_traffic_said_before() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1")))
        endpoint = here.runtime.upstreams["api"].endpoints["a:1"]
        endpoint.answered_badly("status 500", 1.0)
        here.runtime.set_statuses([status("ejected")])
        here.runtime.set_statuses([status("healthy")])
        endpoint.answered_badly("status 500", 2.0)
        assert [seen.bad_answers for seen in here.reported] == [1, 1]


def test_a_status_for_what_is_no_longer_there_is_dropped() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1")))
        assert here.runtime.set_statuses([status("down", endpoint="z:1")]) == []
        here.apply(config())
        assert here.runtime.set_statuses([status("down")]) == []


def test_in_flight_and_the_connection_limit_count_every_worker() -> None:
    with world() as here:
        spec = attrs.evolve(upstream("a:1", "b:1"), pool=schema.Pool(max_connections=2))
        here.apply(config(api=spec))
        group = here.runtime.upstreams["api"]
        endpoint = group.endpoints["a:1"]
        endpoint.begin()
        here.shared.pages[2][endpoint.block] += 3  # "active" of another worker
        assert endpoint.active() == 4
        endpoint.end()
        endpoint.opening()
        assert not endpoint.full()
        here.shared.pages[2][endpoint.block + 1] += 1  # "connections" of another worker
        assert endpoint.full()
        assert group.pick(0, (), 0.0) is group.endpoints["b:1"]
        endpoint.idle.append(Thing())  # an idle one of ours is always room
        assert not endpoint.full()
        endpoint.close_idle()
        endpoint.closed()
        assert not endpoint.full()


def test_answers_are_counted_and_feed_the_latency() -> None:
    with world() as here:
        here.apply(config(api=upstream("a:1")))
        endpoint = here.runtime.upstreams["api"].endpoints["a:1"]
        endpoint.answered_well(0.5, 1.0)
        assert endpoint.latency.value(1.0) == pytest.approx(0.5)
        endpoint.answered_well(None, 1.0)
        endpoint.connect_failed("refused", 1.0)
        assert endpoint.latency.value(1.0) > 0.5  # a refusal is not a fast answer


addresses = st.lists(st.sampled_from(["a:1", "b:1", "c:1", "d:1"]), min_size=1, max_size=4, unique=True)


@given(st.lists(st.dictionaries(st.sampled_from(["x", "y"]), addresses), min_size=1, max_size=8))
def test_whatever_reloads_do_identity_decides(story: list[dict[str, list[str]]]) -> None:
    with world() as here:
        known: dict[tuple[str, str], object] = {}
        for wanted in story:
            here.apply(schema.Config(upstreams={name: upstream(*group) for name, group in wanted.items()}))
            assert {name: list(group.endpoints) for name, group in here.runtime.upstreams.items()} == wanted
            for endpoint in here.runtime.endpoints():
                # Nothing was forgotten, so every endpoint that ever was is still the same object.
                assert known.setdefault((endpoint.upstream, endpoint.name), endpoint) is endpoint
                assert endpoint.retired is (endpoint.name not in wanted.get(endpoint.upstream, []))
