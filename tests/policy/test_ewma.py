"""The laws of the peak-sensitive average."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.policy.ewma import FLOOR, PENALTY, UNKNOWN, PeakEwma

seconds = st.floats(FLOOR, 60)
spans = st.floats(0, 100)


def at(value: float, now: float = 0.0, decay: float = 10.0) -> PeakEwma:
    """An average that is `value` at `now`."""
    average = PeakEwma(decay=decay)
    average.observe(value, now)
    return average


@given(before=seconds, slower=st.floats(1, 100), later=spans)
def test_a_slower_answer_counts_at_once_and_in_full(before: float, slower: float, later: float) -> None:
    average = at(before)
    average.observe(before * slower, later)
    assert average.value(later) == before * slower


@given(before=seconds, part=st.floats(0, 0.999), later=spans, decay=st.floats(0.1, 100))
def test_a_faster_answer_counts_by_the_time_that_has_passed(
    before: float, part: float, later: float, decay: float
) -> None:
    average = at(before, decay=decay)
    faster = max(FLOOR, before * part)
    average.observe(faster, later)
    kept = math.exp(-later / decay)
    assert average.value(later) == pytest.approx(before * kept + faster * (1 - kept))


@given(value=seconds, later=spans, decay=st.floats(0.1, 100))
def test_without_answers_it_fades(value: float, later: float, decay: float) -> None:
    assert at(value, decay=decay).value(later) == pytest.approx(max(FLOOR, value * math.exp(-later / decay)))


@given(value=seconds, one=spans, two=spans)
def test_it_never_grows_by_itself(value: float, one: float, two: float) -> None:
    average = at(value)
    assert average.value(min(one, two)) >= average.value(max(one, two))


@given(answers=st.lists(st.tuples(seconds, spans), min_size=1, max_size=10), looks=st.integers(1, 5))
def test_looking_changes_nothing(answers: list[tuple[float, float]], looks: int) -> None:
    watched, alone = PeakEwma(decay=10.0), PeakEwma(decay=10.0)
    now = 0.0
    for value, pause in answers:
        for look in range(looks):
            watched.value(now + pause * look / looks)
        now += pause
        watched.observe(value, now)
        alone.observe(value, now)
    assert watched.value(now + 3) == alone.value(now + 3)


@given(answers=st.lists(st.tuples(seconds, spans), min_size=1, max_size=10))
def test_it_stays_between_the_floor_and_the_slowest_answer(answers: list[tuple[float, float]]) -> None:
    average, now = PeakEwma(decay=10.0), 0.0
    for value, pause in answers:
        now += pause
        average.observe(value, now)
        assert FLOOR <= average.value(now) <= max(value for value, _ in answers) * (1 + 1e-12)


def test_what_was_never_asked_is_middling_and_fades_from_the_first_look_on() -> None:
    average = PeakEwma(decay=10.0)
    assert average.value(1000.0) == UNKNOWN
    assert average.value(1010.0) == pytest.approx(UNKNOWN / math.e)


def test_the_first_answer_takes_the_place_of_the_unknown() -> None:
    average = PeakEwma(decay=10.0)
    average.value(0.0)
    average.observe(0.001, 0.5)
    assert average.value(0.5) == 0.001


def test_a_failure_counts_as_very_slow_however_fast_it_came() -> None:
    average = at(0.001)
    average.fail(1.0)
    assert average.value(1.0) == PENALTY
    average.observe(0.001, 1.0)
    assert average.value(1.0) == PENALTY


def test_a_failure_does_not_make_a_slower_member_look_better() -> None:
    average = at(30.0)
    average.fail(0.0)
    assert average.value(0.0) == 30.0


def test_a_failure_before_any_answer_is_remembered() -> None:
    average = PeakEwma(decay=10.0)
    average.fail(5.0)
    assert average.value(5.0) == PENALTY


def test_a_failure_has_faded_to_ten_milliseconds_after_a_minute() -> None:
    average = PeakEwma(decay=10.0)
    average.fail(0.0)
    assert average.value(60.0) == pytest.approx(0.012, abs=0.001)
    assert average.value(65.0) < UNKNOWN


def test_however_long_nobody_asked_it_is_not_zero() -> None:
    assert at(0.5).value(1e9) == FLOOR
    assert at(0.0).value(0.0) == FLOOR


def test_a_clock_that_steps_back_changes_nothing() -> None:
    average = at(0.5, now=100.0)
    assert average.value(50.0) == 0.5
    average.observe(0.1, 50.0)
    assert average.value(50.0) == 0.5
    assert average.value(110.0) == pytest.approx(0.5 / math.e)


def test_a_decay_changed_live_counts_from_then_on() -> None:
    average = at(0.5)
    average.decay = 1.0
    assert average.value(1.0) == pytest.approx(0.5 / math.e)


def test_answers_of_one_turn_count_as_their_worst_or_pull_as_their_mean() -> None:
    slow, fast = PeakEwma(decay=10.0), PeakEwma(decay=10.0)
    for average in slow, fast:
        average.observe(0.1, 0.0)
    slow.observe_all([0.01, 0.3, 0.02], 1.0)
    assert slow.value(1.0) == 0.3
    alone = PeakEwma(decay=10.0)
    alone.observe(0.1, 0.0)
    alone.observe(0.03, 1.0)
    fast.observe_all([0.01, 0.03, 0.05], 1.0)
    assert fast.value(1.0) == pytest.approx(alone.value(1.0))
