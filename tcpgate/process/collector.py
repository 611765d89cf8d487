"""When the garbage collector may walk what, so that its pauses stay out of the tail of a worker's answer times.

Theory of operation. Reference counts free nearly everything at once; the collector is there for circles. Exchanges
leave none, some failures do, a replaced generation may be a large one. What pauses a worker is not garbage but the
living: a full collection walks every container there is, 0.3 to 0.7 us each, five or so per connection in the lane, 75
per connection that has a task. So here

- the young and the middle generation are collected as ever, but are kept so small that it takes 1 or 2 ms at most;
- what has come to be old since the last look is collected once more, a bounded lot at a time, and then *frozen*: moved
  out of the collector's sight, where reference counts go on to free it. More than that lot is frozen unseen;
- a *tidy* thaws and walks everything: at the first generation, when there is no traffic yet; some time after a reload,
  for the generation that it replaced; and when so much is frozen that circles may be among it. It waits until the
  process is calm, unless the frozen have grown so far that memory goes first.

Every pause is on the shared page: their sum and the longest one. Longest seen, with Python's thresholds and with these
(ms of CPU, on two cores that others used too): 18,500 connections come into the lane, 25 and 3.9; load on the readable
path beside as many, 1170 and 8.8; beside 5,000, 380 and 5.5.

Source: CPython 3.11, Modules/gcmodule.c; gc.freeze as Instagram uses it. Owner: the worker; its sweep calls `sweep`.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from typing import Self

import attrs

from tcpgate.stats.page import WORKER_FIELDS

PAUSES, LONGEST = WORKER_FIELDS.index("gc_pauses_us"), WORKER_FIELDS.index("gc_longest_us")
CONNECTIONS = WORKER_FIELDS.index("connections")

THRESHOLDS = (1_000, 5, 1_000_000)
"""Objects that make a young collection; young ones that make a middle one; and never a full one by itself."""
OLD = 10_000
"""Objects old and not frozen from which they are collected and frozen: about 3 ms."""
OLD_MOST = 30_000
"""So many are frozen without a look, because that would take longer than an answer may: a burst of connections."""
SURPLUS = 200_000
"""Frozen objects from which circles are suspected, besides twice those of the last tidy and the connections'."""
PER_CONNECTION = 100
"""What an open connection explains, if it has a task."""
TOO_MANY = 4
"""So many times as many, and a tidy waits for calm no more."""
CALM = 0.1
"""Share of its time that a calm process computes, at most."""


@attrs.define(eq=False)
class Collector:
    """One process's policy; in force while it is entered."""

    page: memoryview
    clock: Callable[[], float] = time.perf_counter
    """For pauses."""
    cpu: Callable[[], float] = time.process_time
    tidy_at: float = math.inf
    """From when on a tidy is due, on the sweep's clock; infinity: none is."""
    _thresholds: tuple[int, int, int] = attrs.field(factory=gc.get_threshold)
    _started: float = 0.0
    _frozen: int = 0
    """At most so many are frozen: what was there when they were counted, and all that were frozen since."""
    _kept: int = 0
    """So many were, after the last tidy."""
    _swept: tuple[float, float] = (math.nan, math.nan)
    """The last sweep's time, and the CPU time then."""

    def __enter__(self) -> Self:
        gc.set_threshold(*THRESHOLDS)
        gc.callbacks.append(self._paused)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._paused)
        gc.set_threshold(*self._thresholds)

    def tidy(self) -> None:
        """Look for garbage everywhere, then freeze what is left: it is likely to live as long as its generation."""
        self.tidy_at = math.inf
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        if not self._kept:  # the first one: nobody has been kept waiting so far
            self.page[LONGEST] = 0
        self._kept = self._frozen = gc.get_freeze_count()

    def sweep(self, now: float) -> None:
        """Do what is due. To be called about once a second."""
        calm = self._is_calm(now)
        # The count of middle collections since the last full one: each has made at most some thousand objects old.
        if gc.get_count()[2] and (old := len(gc.get_objects(generation=2))) >= OLD:
            if old < OLD_MOST:
                gc.collect()
            gc.freeze()
            self._frozen += old
        bound = 2 * self._kept + SURPLUS + PER_CONNECTION * self.page[CONNECTIONS]
        if self._frozen > bound:
            # To count is a walk too, though a quick one; so that it is seldom, only what was added is kept in mind.
            self._frozen = gc.get_freeze_count()
            if self._frozen > bound:
                self.tidy_at = min(self.tidy_at, now)
        if now >= self.tidy_at and (calm or self._frozen > TOO_MANY * bound):
            self.tidy()

    def _is_calm(self, now: float) -> bool:
        (before, spent_before), spent = self._swept, self.cpu()
        self._swept = now, spent
        return spent - spent_before <= CALM * (now - before)

    def _paused(self, phase: str, info: Mapping[str, int]) -> None:
        """`gc.callbacks`: whichever thread collects, all of them wait."""
        if phase == "start":
            self._started = self.clock()
            return
        pause = int((self.clock() - self._started) * 1e6)
        page = self.page
        page[PAUSES] += pause
        page[LONGEST] = max(page[LONGEST], pause)
