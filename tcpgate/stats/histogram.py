"""Durations, counted by size, in consecutive slots of the shared page.

A histogram is one slot per bucket and one for the sum. The buckets are the 1-2-5 series, even on a log scale: a
quantile is off by at most its bucket's width, and a promise such as "95 % within 100 ms" is counted exactly, because
100 ms is a bound. As on the rest of the page each process counts for itself and a reader adds up the pages, so
merging is addition; two readings subtracted are a window.

Source: Prometheus' classic histogram (`le` means at most) and its `histogram_quantile`. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import attrs

from tcpgate.units import format_span

BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Upper end of each bucket (seconds), itself included; the last bucket is all beyond. 60 s is nginx's
proxy_read_timeout, our default for the first byte."""
SUM = len(BOUNDS) + 1
"""Slot of the sum (microseconds), counted from the block's first."""
SLOTS = len(BOUNDS) + 2


def field_names(prefix: str) -> tuple[str, ...]:
    """The names of a histogram's slots, in order, for `page.FIELDS`: "total_le_0.5ms" to "total_sum_us"."""
    return (*(f"{prefix}_le_{format_span(bound)}" for bound in BOUNDS), f"{prefix}_le_inf", f"{prefix}_sum_us")


def observe(page: memoryview[int], first: int, seconds: float) -> None:
    """Count one duration in the block at `first` of one's own page."""
    page[first + bisect_left(BOUNDS, seconds)] += 1
    page[first + SUM] += int(seconds * 1_000_000)


def observe_all(page: memoryview[int], first: int, spans: Sequence[float]) -> None:
    """Count durations (seconds), as `observe` counts one."""
    for seconds in spans:
        page[first + bisect_left(BOUNDS, seconds)] += 1
    page[first + SUM] += int(sum(spans) * 1_000_000)


@attrs.frozen
class Durations:
    """What a histogram held when it was read."""

    counts: tuple[int, ...] = (0,) * (SLOTS - 1)
    """By bucket, each its own (not cumulative)."""
    sum_us: int = 0

    @property
    def count(self) -> int:
        """How many durations."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Seconds; 0.0 of none."""
        count = self.count
        return self.sum_us / 1_000_000 / count if count else 0.0

    def __add__(self, other: Durations) -> Durations:
        """Both together."""
        return Durations(tuple(map(int.__add__, self.counts, other.counts)), self.sum_us + other.sum_us)

    def __sub__(self, earlier: Durations) -> Durations:
        """What came since `earlier`."""
        return Durations(tuple(map(int.__sub__, self.counts, earlier.counts)), self.sum_us - earlier.sum_us)

    def cumulative(self) -> list[int]:
        """How many were at most each bound, and at last all of them: Prometheus' `le` series."""
        total, totals = 0, []
        for count in self.counts:
            total += count
            totals.append(total)
        return totals

    def quantile(self, q: float) -> float:
        """Seconds within which the share `q` (0 to 1) of the durations lies; 0.0 of none.

        Within its bucket the durations are taken as evenly spread. Beyond the last bound it answers that bound: the
        truth is "at least this".
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is from 0 to 1, not {q}")
        rank, below = q * self.count, 0
        for index, count in enumerate(self.counts[:-1]):
            if count and below + count >= rank:
                lower = BOUNDS[index - 1] if index else 0.0
                return lower + (BOUNDS[index] - lower) * max(0.0, rank - below) / count
            below += count
        return BOUNDS[-1] if self.count else 0.0


def read(pages: Iterable[memoryview[int]], first: int) -> Durations:
    """The histogram at `first`, summed over `pages`."""
    slots = [0] * SLOTS
    for page in pages:
        slots = [sum(pair) for pair in zip(slots, page[first : first + SLOTS], strict=True)]
    return Durations(tuple(slots[:SUM]), slots[SUM])
