"""`peak_ewma`: of two different members drawn at random, the one that should answer sooner. Pure.

The cost of a member is its expected latency times what is in flight there: `ewma x (active / share + 1)`, where share
is its weight in relation to the mean weight; with equal weights that is `ewma x (active + 1)`. The latency
(`policy/ewma.py`) jumps up with each slow answer or failure and fades with time. So a member that stalls loses at once,
before its queue shows it; one that has not been asked for a while is asked again; and one that was never asked begins
with a middling latency, takes a few and is known.

Draws are in proportion to the weights, as in `p2c`. Two and not all, because the latency is yesterday's news: the best
of all would get everything until the news came in.

Source: Finagle's and tower's peak EWMA; Envoy's peak_ewma extension.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member
from tcpgate.policy.draw import NOBODY, Wheel


@attrs.define(eq=False)
class LeastLatency:
    """The sooner of two."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = False
    _wheel: Wheel = attrs.field(factory=lambda: Wheel.of(()), init=False)
    _shares: tuple[float, ...] = attrs.field(default=(), init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Draw among `members` by their weights as they are now. What is known of each one's latency is its own."""
        wheel = Wheel.of(members)
        whole = sum(wheel.weights)
        self._shares = tuple(weight * len(members) / whole for weight in wheel.weights)
        self._wheel = wheel

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The cheaper of two members that are neither in `skip` nor full."""
        members = self._wheel.members
        first = self._wheel.draw(self.rng, skip)
        if first == NOBODY:
            return None
        second = self._wheel.draw(self.rng, skip, first)
        if second == NOBODY or self._cost(first, now) <= self._cost(second, now):
            return members[first]
        return members[second]

    def _cost(self, place: int, now: float) -> float:
        member = self._wheel.members[place]
        return member.latency.value(now) * (member.active() / self._shares[place] + 1)
