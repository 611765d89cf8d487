"""`p2c`: of two different members drawn at random, the less loaded one. Pure.

Two choices are enough: with n requests on n endpoints the fullest has about ln ln n of them instead of ln n / ln ln n,
and unlike "the least loaded of all", many gateways that see the same counts do not all rush to the same endpoint.

Weights: both draws are in proportion to them, and load is active / weight. Of two equally loaded the first drawn is
taken, so an idle upstream is shared exactly by weight. With equal weights this is the textbook's: two uniform draws,
fewer in flight wins.

Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001); nginx `random two least_conn`.
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
class PowerOfTwo:
    """The better of two."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = False
    _wheel: Wheel = attrs.field(factory=lambda: Wheel.of(()), init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Draw among `members` by their weights as they are now."""
        self._wheel = Wheel.of(members)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The less loaded of two members that are neither in `skip` nor full."""
        wheel = self._wheel
        first = wheel.draw(self.rng, skip)
        if first == NOBODY:
            return None
        second = wheel.draw(self.rng, skip, first)
        one = wheel.members[first]
        if second == NOBODY:
            return one
        other = wheel.members[second]
        busier = one.active() / wheel.weights[first] > other.active() / wheel.weights[second]
        return other if busier else one
