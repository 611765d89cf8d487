"""A worker's time: Trio's, in a form that costs the lane one call into C.

The lane asks for the time four times an exchange. Trio's clock is `perf_counter` and a number that it draws for each
run; a run of our own need not add it. Times of one process mean nothing to another, with the number and without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio


class PlainClock(trio.abc.Clock):
    """Trio's own clock without the number that it adds for each run, so that the lane can ask the system itself."""

    def start_clock(self) -> None:
        """It always runs."""

    def current_time(self) -> float:
        """Seconds since some point in the past."""
        return time.perf_counter()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Seconds until `deadline`."""
        return deadline - time.perf_counter()


def cheap_clock() -> Callable[[], float]:
    """Trio's time, without the way to it where that may be left out: in a process of its own."""
    return time.perf_counter if isinstance(trio.lowlevel.current_clock(), PlainClock) else trio.current_time
