"""The share of its weight that an endpoint has after it came back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.schema import SlowStart
from tcpgate.policy.slow_start import factor
from tcpgate.units import Seconds

specs = st.builds(
    lambda window, aggression, floor: SlowStart(window=Seconds(window), aggression=aggression, floor=floor),
    st.floats(0, 3600),
    st.floats(0.1, 10),
    st.floats(0.01, 1),
)
moments = st.floats(-10, 7200)


@given(spec=specs, one=moments, two=moments)
def test_it_never_falls_as_time_passes(spec: SlowStart, one: float, two: float) -> None:
    assert factor(min(one, two), spec) <= factor(max(one, two), spec)


@given(spec=specs, elapsed=moments)
def test_it_is_from_the_floor_to_one(spec: SlowStart, elapsed: float) -> None:
    assert spec.floor <= factor(elapsed, spec) <= 1


@given(spec=specs, beyond=st.floats(0, 100))
def test_after_the_window_it_is_all(spec: SlowStart, beyond: float) -> None:
    assert factor(spec.window + beyond, spec) == 1.0


@pytest.mark.parametrize(
    ("aggression", "elapsed", "expected"),
    [
        (1.0, 0, 0.1),
        (1.0, 6, 0.1),
        (1.0, 15, 0.25),
        (1.0, 30, 0.5),
        (1.0, 60, 1.0),
        (2.0, 15, 0.5),
        (2.0, 0.15, 0.1),
        (0.5, 30, 0.25),
    ],
)
def test_it_is_envoys_formula(aggression: float, elapsed: float, expected: float) -> None:
    spec = SlowStart(window=Seconds(60.0), aggression=aggression, floor=0.1)
    assert factor(elapsed, spec) == pytest.approx(expected)


def test_without_a_window_it_is_all_at_once() -> None:
    assert factor(0.0, SlowStart()) == factor(-1.0, SlowStart()) == 1.0
