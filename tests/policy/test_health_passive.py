"""What a worker tells of live traffic: everything that can change a state, and little else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcpgate.policy.passive import BURST, RATE, LiveCounts, Observation


def told(connects: int, bad: int, cause: str = "") -> Observation:
    return Observation(connect_failures=connects, bad_answers=bad, cause=cause)


def test_failures_are_told_one_by_one_from_the_first_and_the_end_of_the_run_once() -> None:
    counts = LiveCounts()
    assert counts.good(0.0) is None
    assert counts.connect_failed("connect refused", 1.0) == told(1, 0, "connect refused")
    assert counts.connect_failed("connect timed out", 1.0) == told(2, 0, "connect timed out")
    assert counts.good(1.1) == told(0, 0)
    assert counts.good(1.2) is None


def test_an_answer_however_bad_ends_the_run_of_failed_connects() -> None:
    counts = LiveCounts()
    counts.connect_failed("connect refused", 1.0)
    assert counts.bad("status 503", 1.0) == told(0, 1, "status 503")
    assert counts.connect_failed("connect refused", 1.0) == told(1, 1, "connect refused")
    assert counts.bad("status 503", 1.0) == told(0, 2, "status 503")


def test_a_flood_of_failures_is_told_at_a_bounded_rate_and_none_is_lost_from_the_count() -> None:
    counts = LiveCounts()
    sent = [counts.bad("status 500", n / 1000) for n in range(1001)]
    heard = [each for each in sent if each is not None]
    assert BURST + RATE - 1 <= len(heard) <= BURST + RATE + 1
    assert heard[-1].bad_answers > 900


def test_the_end_of_a_run_that_nobody_heard_of_is_not_told() -> None:
    counts = LiveCounts()
    for _ in range(int(BURST)):
        counts.bad("status 500", 0.0)
        assert counts.good(0.0) is not None
    assert counts.bad("status 500", 0.0) is None
    assert counts.good(0.0) is None


def test_what_was_before_an_absence_no_longer_counts() -> None:
    counts = LiveCounts()
    counts.connect_failed("connect refused", 0.0)
    counts.reset()
    assert counts.good(0.0) is None
    assert counts.connect_failed("connect refused", 0.0) == told(1, 0, "connect refused")


@given(st.lists(st.tuples(st.sampled_from(["connect", "bad", "good"]), st.floats(0, 1)), max_size=200))
def test_the_supervisor_is_never_left_with_a_run_that_has_ended(events: list[tuple[str, float]]) -> None:
    counts, now, connects, bad = LiveCounts(), 0.0, 0, 0
    heard = told(0, 0)
    messages = 0
    for kind, pause in events:
        now += pause
        if kind == "connect":
            connects += 1
            observation = counts.connect_failed("x", now)
        elif kind == "bad":
            connects, bad = 0, bad + 1
            observation = counts.bad("y", now)
        else:
            connects = bad = 0
            observation = counts.good(now)
        if observation is not None:
            messages += kind != "good"
            heard = observation
            assert (heard.connect_failures, heard.bad_answers) == (connects, bad)
        if kind == "good":
            assert (heard.connect_failures, heard.bad_answers) == (0, 0)
    assert messages <= BURST + now * RATE + 1
