"""The collector's policy: what is walked when, what is left alone, and that every pause is told."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest

from tcpgate.process import collector as module
from tcpgate.process.collector import CONNECTIONS, LONGEST, PAUSES, THRESHOLDS, Collector
from tcpgate.stats.page import WORKER_FIELDS


class Circle:
    """Garbage once nobody else has it, and only the collector can tell."""

    def __init__(self) -> None:
        self.itself = self


class Cpu:
    """How long the process has computed."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self) -> float:
        return self.spent


@pytest.fixture
def cpu() -> Cpu:
    return Cpu()


@pytest.fixture
def collector(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """In force, with bounds that a test can reach, in a process that is calm."""
    monkeypatch.setattr(module, "OLD", 2_000)
    monkeypatch.setattr(module, "OLD_MOST", 20_000)
    page = memoryview(bytearray(8 * len(WORKER_FIELDS))).cast("q")
    with Collector(page, cpu=cpu) as made:
        made.tidy()
        made.sweep(0.0)
        yield made
    gc.unfreeze()


def grow_old(count: int) -> list[list[object]]:
    """So many containers that have seen two collections."""
    grown: list[list[object]] = [[] for _ in range(count)]
    gc.collect(1)
    return grown


def test_pythons_own_policy_is_in_force_again_afterwards() -> None:
    before, hearers = gc.get_threshold(), len(gc.callbacks)
    with Collector(memoryview(bytearray(8 * len(WORKER_FIELDS))).cast("q")):
        assert gc.get_threshold() == THRESHOLDS
        assert len(gc.callbacks) == hearers + 1
    assert gc.get_threshold() == before
    assert len(gc.callbacks) == hearers


def test_every_pause_is_counted_and_the_longest_kept(collector: Collector) -> None:
    page = collector.page
    times = iter([1.0, 1.5, 2.0, 2.25, 3.0, 3.0])
    page[PAUSES] = page[LONGEST] = 0
    collector.clock = lambda: next(times)
    gc.disable()  # no collection but the test's own may ask for the time
    try:
        for _ in range(3):
            gc.collect(0)
    finally:
        collector.clock = lambda: 0.0
        gc.enable()
    assert (page[PAUSES], page[LONGEST]) == (750_000, 500_000)


def test_the_first_tidy_is_no_pause_of_anybodys(cpu: Cpu) -> None:
    page = memoryview(bytearray(8 * len(WORKER_FIELDS))).cast("q")
    with Collector(page, cpu=cpu) as made:
        made.tidy()
        assert page[LONGEST] == 0
        made.tidy()
        assert page[LONGEST] > 0
    gc.unfreeze()


def test_what_has_grown_old_is_frozen_and_its_garbage_found(collector: Collector) -> None:
    circle = weakref.ref(Circle())
    frozen = gc.get_freeze_count()
    kept = grow_old(2_500)
    found = circle() is None  # by the collection that made the others old
    collector.sweep(1.0)
    assert gc.get_freeze_count() >= frozen + len(kept)
    assert found or circle() is None
    assert len(gc.get_objects(generation=2)) < 2_000


def test_a_circle_among_the_old_ones_is_found_before_they_are_frozen(collector: Collector) -> None:
    living = Circle()
    circle, kept = weakref.ref(living), grow_old(2_500)
    del living
    collector.sweep(1.0)
    assert circle() is None
    assert kept


def test_a_burst_is_frozen_without_a_walk(collector: Collector) -> None:
    living = Circle()
    circle, kept = weakref.ref(living), grow_old(25_000)
    del living
    collector.sweep(1.0)
    assert circle() is not None
    assert gc.get_freeze_count() > len(kept)
    collector.tidy()
    assert circle() is None  # the next tidy has it


def test_a_few_old_ones_are_left_alone(collector: Collector) -> None:
    frozen, kept = gc.get_freeze_count(), grow_old(500)
    collector.sweep(1.0)
    assert gc.get_freeze_count() <= frozen
    assert kept


def test_a_tidy_waits_for_its_time_and_then_for_calm(collector: Collector, cpu: Cpu) -> None:
    living = Circle()
    circle = weakref.ref(living)
    gc.freeze()
    del living
    collector.tidy_at = 5.0
    collector.sweep(4.0)
    assert circle() is not None
    cpu.spent += 0.5
    collector.sweep(5.0)  # half of the second was work
    assert circle() is not None
    collector.sweep(6.0)
    assert circle() is None
    assert collector.tidy_at == math.inf


def test_too_many_frozen_make_a_tidy_and_far_too_many_do_not_wait_for_calm(
    collector: Collector, cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 2 * gc.get_freeze_count() + 20_000
    monkeypatch.setattr(module, "SURPLUS", 20_000)
    monkeypatch.setattr(module, "TOO_MANY", 1.5)
    circle, kept = weakref.ref(Circle()), grow_old(bound + 1_000)
    cpu.spent += 1
    collector.sweep(1.0)
    assert collector.tidy_at == 1.0  # due, but the process is busy
    kept += grow_old(bound)
    cpu.spent += 1
    collector.sweep(2.0)
    assert collector.tidy_at == math.inf
    assert circle() is None
    assert len(kept) > bound


def test_open_connections_explain_what_is_frozen(
    collector: Collector, cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SURPLUS", 0)
    collector.page[CONNECTIONS] = 10_000
    kept = grow_old(2 * gc.get_freeze_count())
    collector.sweep(1.0)
    assert collector.tidy_at == math.inf
    collector.page[CONNECTIONS] = 0
    kept += grow_old(2_500)
    cpu.spent += 1  # busy, so that what is due stays so
    collector.sweep(2.0)
    assert collector.tidy_at == 2.0
    assert kept


def test_old_ones_that_are_freed_by_their_counts_make_no_tidy(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SURPLUS", 5_000)
    tidied: list[int] = []
    monkeypatch.setattr(Collector, "tidy", lambda self: tidied.append(1))
    for turn in range(1, 40):
        kept = grow_old(3_000)  # connections that come, and go
        collector.sweep(float(turn))
        del kept
    assert collector.tidy_at == math.inf
    assert not tidied
