"""How fast an endpoint answers, remembering the worst for a while: the peak-sensitive moving average. Pure.

A slower answer than the average counts at once and in full; a faster one pulls the average down only as time passes,
with the weight 1 - exp(-dt / decay). Without any answers the average fades towards zero, so an endpoint that looked
slow, or was never asked, is tried again sooner or later. A failure counts as a very slow answer: an endpoint that
refuses in a tenth of a millisecond is not a fast one.

Source: Finagle and tower's PeakEwma, Envoy's peak_ewma extension (default of 10 ms). Unlike tower's, reading changes
nothing, so the result does not depend on how often somebody looked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

UNKNOWN = 0.010
"""What an endpoint counts as before its first answer (seconds); Envoy's 10 ms. It fades too."""
FLOOR = 0.00001
"""The least there is (seconds): with 0, an endpoint idle for hours would cost nothing however much is in flight."""
PENALTY = 5.0
"""What a failure counts as (seconds), at least. With the default decay it has faded to 10 ms after a minute."""


@attrs.define(eq=False)
class PeakEwma:
    """One endpoint's latency as one worker has seen it. Seconds throughout."""

    decay: float
    """After this many seconds an old average counts for 1/e. May be changed at any time."""
    _average: float = attrs.field(default=UNKNOWN, init=False)
    _stamp: float | None = attrs.field(default=None, init=False)
    """When `_average` was true. The unknown's time begins when somebody first asks."""
    _answered: bool = attrs.field(default=False, init=False)

    def value(self, now: float) -> float:
        """The latency to expect now, faded by the time since the last answer."""
        if self._stamp is None:
            self._stamp = now
        # A clock that steps back must not make the past worse than it was.
        elapsed = max(0.0, now - self._stamp)
        return max(FLOOR, self._average * math.exp(-elapsed / self.decay))

    def observe(self, seconds: float, now: float) -> None:
        """A good answer came after `seconds`."""
        if seconds < FLOOR:
            seconds = FLOOR
        stamp = now if self._stamp is None else self._stamp
        if seconds >= self._average or not self._answered:
            self._average = seconds
        elif now > stamp:
            kept = math.exp((stamp - now) / self.decay)
            self._average = self._average * kept + seconds * (1 - kept)
        if now >= stamp:
            self._stamp = now
        self._answered = True

    def observe_all(self, waits: Sequence[float], now: float) -> None:
        """Good answers came at about the same time. One that is slower than the average counts in full, as ever."""
        longest = max(waits)
        self.observe(longest if longest >= self._average else sum(waits) / len(waits), now)

    def fail(self, now: float) -> None:
        """A connect or an answer failed, however quickly."""
        self.observe(max(PENALTY, self.value(now)), now)
