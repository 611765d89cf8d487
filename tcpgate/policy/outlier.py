"""For how long live traffic's word takes an endpoint out: longer each time, forgiven by calm. Pure.

The first ejection lasts `eject_for`, each that follows soon after twice as long as the one before, up to
`eject_for_max`. Calm heals: each whole span of the current length that passes after an ejection, without another,
takes one doubling back.

`room` says how many of an upstream's endpoints may be out before live traffic may no longer eject.

Source: Envoy, outlier detection (base_ejection_time x number of ejections, max_ejection_time, max_ejection_percent
"but at least one"); doubling instead of adding, as in Kubernetes' crash-loop back-off.
"""

from __future__ import annotations

import attrs

from tcpgate.config.schema import Passive


def room(max_ejected: int, endpoints: int) -> int:
    """How many of `endpoints` may be out for live traffic to eject the last of them.

    Always less than all, unless `max_ejected` is 100: a single endpoint that fails is still better than none. At
    least one of two or more, unless it is 0: else 10 per cent of five endpoints would mean never.
    """
    if max_ejected == 0:
        return 0
    share = endpoints * max_ejected // 100
    return max(share, 1) if endpoints > 1 else share


@attrs.define
class Ejections:
    """One endpoint's record of ejections, and the one that runs."""

    spec: Passive
    count: int = attrs.field(default=0, init=False)
    """How many in a row, less what calm has healed."""
    until: float | None = attrs.field(default=None, init=False)
    """When the ejection that runs is over; None: none runs."""
    may_end_early: bool = attrs.field(default=False, init=False)
    """Whether a probe's successes may end it: see `policy/health.py`."""
    _ended: float = attrs.field(default=0.0, init=False)

    def span(self, count: int) -> float:
        """How long the `count`th ejection in a row lasts (seconds)."""
        return min(self.spec.eject_for_max, self.spec.eject_for * 2.0 ** (count - 1))

    def begin(self, now: float, *, connects: bool) -> float:
        """Eject; returns for how long. `connects`: for connects that failed, not for bad answers."""
        self._heal(now - self._ended)
        # Past the longest span the count stays, so that calm heals from there and not from some huge number.
        if self.count == 0 or self.span(self.count) < self.spec.eject_for_max:
            self.count += 1
        span = self.span(self.count)
        self.until = now + span
        self.may_end_early = connects and self.count == 1
        return span

    def end(self, now: float) -> None:
        """The ejection is over, by time or by a better witness."""
        if self.until is not None:
            self.until = None
            self._ended = now

    def _heal(self, calm: float) -> None:
        while self.count and calm >= (span := self.span(self.count)):
            calm -= span
            self.count -= 1
