"""A pace: honest peers are never cut, slow ones always are, and only the time that we wait for them counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcpgate.policy.pace import CEILING, Pace

rates = st.floats(1, 1e9)
graces = st.floats(0.001, 1000)
waits = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**7)), max_size=50)


def test_a_silent_peer_has_its_grace_and_no_more() -> None:
    pace = Pace(min_rate=512, grace=10)
    assert pace.budget() == 10
    pace.waited(10, 0)
    assert pace.budget() == 0
    assert pace.late


def test_bytes_earn_the_time_that_they_may_take_at_the_minimum_rate() -> None:
    pace = Pace(min_rate=512, grace=10)
    pace.waited(9, 1024)
    assert pace.budget() == 3


def test_a_burst_cannot_buy_hours_of_silence() -> None:
    pace = Pace(min_rate=512, grace=10)
    pace.waited(0, 100_000_000)
    assert pace.budget() == CEILING


def test_a_grace_above_the_ceiling_stays_whole() -> None:
    pace = Pace(min_rate=512, grace=CEILING * 2)
    pace.waited(1, 10_000_000)
    assert pace.budget() == CEILING * 2


def test_a_peer_that_has_been_late_is_forgiven_by_what_it_moves_next() -> None:
    pace = Pace(min_rate=100, grace=1)
    pace.waited(2, 0)
    assert pace.late
    pace.waited(0, 200)
    assert not pace.late


@given(rates, graces, st.lists(st.floats(0.001, 1), max_size=100))
def test_a_peer_that_keeps_the_rate_and_pauses_within_the_grace_is_never_cut(
    rate: float, grace: float, spans: list[float]
) -> None:
    pace = Pace(min_rate=rate, grace=grace)
    for span in spans:
        wait = span * grace * 0.99
        assert pace.budget() > wait
        pace.waited(wait, int(wait * rate) + 1)
        assert not pace.late


@given(rates, graces, waits)
def test_the_allowance_is_never_more_than_the_average_since_the_start_would_give(
    rate: float, grace: float, moves: list[tuple[float, int]]
) -> None:
    pace, waited, moved = Pace(min_rate=rate, grace=grace), 0.0, 0
    for seconds, count in moves:
        pace.waited(seconds, count)
        waited, moved = waited + seconds, moved + count
        average = grace + moved / rate - waited
        assert pace.budget() <= max(0.0, average) * (1 + 1e-9) + 1e-6


@given(rates, graces, st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=50))
def test_below_the_ceiling_it_is_exactly_that_average(
    rate: float, grace: float, moves: list[tuple[float, float]]
) -> None:
    pace, average = Pace(min_rate=rate, grace=grace, ceiling=1e9), grace
    for seconds, earned in moves:
        pace.waited(seconds, int(earned * rate))
        average += int(earned * rate) / rate - seconds
        assert abs(pace.budget() - max(0.0, average)) < 1e-6


@given(rates, graces, waits)
def test_no_history_buys_a_silence_longer_than_the_ceiling(
    rate: float, grace: float, moves: list[tuple[float, int]]
) -> None:
    pace = Pace(min_rate=rate, grace=grace)
    for seconds, count in moves:
        pace.waited(seconds, count)
    pace.waited(max(CEILING, grace), 0)
    assert pace.late
