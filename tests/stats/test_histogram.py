"""The histogram: what goes into the slots comes out as counts, sums and quantiles."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.stats.histogram import BOUNDS, SLOTS, SUM, Durations, field_names, observe, observe_all, read

TIMES = st.lists(st.floats(0, 300), max_size=200)


def a_page(slots: int = SLOTS + 10) -> memoryview[int]:
    return memoryview(bytearray(8 * slots)).cast("q")


def counted(times: list[float], first: int = 3) -> Durations:
    page = a_page()
    for seconds in times:
        observe(page, first, seconds)
    return read([page], first)


def test_the_slots_are_the_buckets_and_the_sum() -> None:
    names = field_names("total")
    assert len(names) == SLOTS == len(set(names))
    assert names[0] == "total_le_0.5ms"
    assert names[-2] == "total_le_inf"
    assert names[SUM] == "total_sum_us"


@pytest.mark.parametrize("index", range(len(BOUNDS)))
def test_a_bound_belongs_to_its_own_bucket(index: int) -> None:
    assert counted([BOUNDS[index]]).counts.index(1) == index
    assert counted([math.nextafter(BOUNDS[index], math.inf)]).counts.index(1) == index + 1


def test_what_is_beyond_the_last_bound_is_counted_too() -> None:
    durations = counted([3600.0])
    assert durations.counts[-1] == 1
    assert durations.quantile(0.5) == BOUNDS[-1]
    assert durations.mean == 3600.0


def test_only_the_blocks_own_slots_are_touched() -> None:
    page = a_page()
    for seconds in (0.0, *BOUNDS, 1e6):
        observe(page, 3, seconds)
    assert not any(page[:3])
    assert not any(page[3 + SLOTS :])


def test_of_nothing_all_figures_are_zero() -> None:
    assert (Durations().count, Durations().mean, Durations().quantile(0.99)) == (0, 0.0, 0.0)


def test_quantiles_of_an_even_spread_are_exact_at_the_bounds() -> None:
    durations = counted([n / 1000 for n in range(1, 101)])  # 1 to 100 ms
    assert durations.quantile(0.1) == pytest.approx(0.010)
    assert durations.quantile(0.5) == pytest.approx(0.050)
    assert durations.quantile(1.0) == pytest.approx(0.100)
    assert durations.quantile(0.75) == pytest.approx(0.075)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_zero_to_one_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        counted([1.0]).quantile(q)


@given(times=TIMES)
def test_every_duration_is_counted_once_and_summed(times: list[float]) -> None:
    durations = counted(times)
    assert durations.count == len(times)
    assert durations.sum_us == sum(int(seconds * 1_000_000) for seconds in times)
    assert durations.cumulative() == [sum(t <= bound for t in times) for bound in (*BOUNDS, math.inf)]


@given(first=TIMES, second=TIMES)
def test_two_processes_merge_into_what_one_would_have_counted(first: list[float], second: list[float]) -> None:
    pages = [a_page(), a_page()]
    for page, times in zip(pages, (first, second), strict=True):
        for seconds in times:
            observe(page, 3, seconds)
    assert read(pages, 3) == counted(first) + counted(second) == counted(first + second)


@given(before=TIMES, after=TIMES)
def test_two_readings_subtracted_are_what_came_between(before: list[float], after: list[float]) -> None:
    assert counted(before + after) - counted(before) == counted(after)


@given(times=st.lists(st.floats(0, 60), min_size=1, max_size=200), q=st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(times: list[float], q: float) -> None:
    true = sorted(times)[max(0, math.ceil(q * len(times)) - 1)]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = max((bound for bound in BOUNDS if bound < upper), default=0.0)
    assert lower <= counted(times).quantile(q) <= upper


@given(times=TIMES)
def test_quantiles_never_go_back(times: list[float]) -> None:
    durations = counted(times)
    quantiles = [durations.quantile(n / 20) for n in range(21)]
    assert quantiles == sorted(quantiles)


def test_a_lognormal_service_is_told_within_a_quarter() -> None:
    rng = random.Random(7)
    times = [rng.lognormvariate(math.log(0.03), 0.8) for _ in range(20_000)]
    durations = counted(times)
    for q in (0.5, 0.9, 0.99):
        true = sorted(times)[int(q * len(times))]
        assert durations.quantile(q) == pytest.approx(true, rel=0.25)


def test_durations_counted_together_are_those_counted_one_by_one() -> None:
    spans = [0.0, 0.0005, 0.0006, 0.25, 61.0]
    together, single = memoryview(bytearray(8 * SLOTS)).cast("q"), memoryview(bytearray(8 * SLOTS)).cast("q")
    observe_all(together, 0, spans)
    for span in spans:
        observe(single, 0, span)
    assert read([together], 0).counts == read([single], 0).counts
    assert read([together], 0).sum_us == pytest.approx(read([single], 0).sum_us, abs=len(spans))
