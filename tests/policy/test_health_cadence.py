"""When an endpoint is asked next: what the config says is a promise, and endpoints do not march in step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.schema import Endpoint, Health, SlowStart, Upstream
from tcpgate.policy.cadence import FIRST_PROBES, Cadence, Pace
from tcpgate.policy.health import EndpointHealth
from tcpgate.policy.outlier import room
from tcpgate.policy.slow_start import factor
from tcpgate.units import Seconds

spans = st.floats(0.05, 3600).map(Seconds)
healths = st.builds(
    Health, tcp=st.just(True), interval=spans, fast_interval=st.none() | spans, rise=st.integers(1, 100)
)


@given(healths, st.floats(0, 1), st.integers(1, 5), st.sampled_from(Pace), st.integers())
def test_no_pause_is_longer_than_the_interval_nor_shorter_than_the_jittered_fast_one(
    health: Health, phase: float, asks: int, pace: Pace, seed: int
) -> None:
    cadence, rng = Cadence(phase, 0.0), random.Random(seed)
    fast = min(health.interval, health.interval / 4 if health.fast_interval is None else health.fast_interval)
    for _ in range(asks):
        cadence.began(0.0, rng)
    assert fast * 0.9 <= cadence.due(health, pace) <= health.interval


@given(healths, st.floats(0, 1), st.floats(0, 1e6))
def test_the_first_probe_comes_at_once_give_or_take_the_spread(health: Health, phase: float, now: float) -> None:
    cadence = Cadence(phase, 0.0)
    cadence.restart(now)
    assert now <= cadence.due(health, Pace.STEADY) <= now + FIRST_PROBES + 1e-9


@given(st.integers(2, 5), st.floats(0.05, 60).map(Seconds), st.integers())
def test_a_down_endpoint_is_back_within_one_interval_of_its_return(rise: int, interval: Seconds, seed: int) -> None:
    """Its return falls just behind the begin of a probe, the worst moment."""
    health = Health(tcp=True, interval=interval, rise=rise)
    cadence, rng, returned = Cadence(0.5, 0.0), random.Random(seed), 0.0
    cadence.began(returned, rng)
    now = cadence.due(health, Pace.DOWN)
    for _ in range(rise - 1):
        cadence.began(now, rng)
        now = cadence.due(health, Pace.CHANGING)
    # rise = 5 is one too many for a fast interval of a quarter: then all of them are fast.
    assert now - returned <= interval * max(1.0, rise / 4) + 1e-9


def test_a_hundred_endpoints_spread_over_the_interval_and_keep_their_places() -> None:
    rng, health = random.Random(7), Health(tcp=True, interval=Seconds(2.0))
    upstream = Upstream(endpoints=(Endpoint(address="10.0.0.1:80"),), health=health)
    seconds = []
    for n in range(100):
        names = [f"api/10.0.0.{n}:80"] * 2
        machines = [
            EndpointHealth(name=name, upstream=upstream, endpoint=upstream.endpoints[0], born=0.0) for name in names
        ]
        for machine in machines:
            machine.probe_began(0.0, rng)
        dues = {machine.next_probe() for machine in machines}
        assert len(dues) == 1, "the phase is the name's, not chance's"
        seconds.append(dues.pop() or 0.0)
    quarters = [sum(low <= due < low + 0.5 for due in seconds) for low in (0.5, 1.0, 1.5)]
    assert min(quarters) > 10


@given(st.floats(0.1, 3600).map(Seconds), st.floats(0.1, 10), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_climb_never_falls_and_stays_between_the_floor_and_the_whole(
    window: Seconds, aggression: float, floor: float, early: float, late: float
) -> None:
    spec = SlowStart(window=window, aggression=aggression, floor=floor)
    early, late = sorted((early * window, late * window))
    assert floor <= factor(early, spec) <= factor(late, spec) <= factor(window, spec) == 1.0


@pytest.mark.parametrize(
    ("max_ejected", "endpoints", "may_be_out"),
    [(50, 1, 0), (50, 2, 1), (50, 3, 1), (50, 4, 2), (10, 5, 1), (0, 5, 0), (100, 1, 1), (100, 3, 3), (99, 1, 0)],
)
def test_live_traffic_may_take_out_a_share_at_least_one_of_several_and_never_a_lone_one(
    max_ejected: int, endpoints: int, may_be_out: int
) -> None:
    assert room(max_ejected, endpoints) == may_be_out
