"""`random`: anybody, with odds in proportion to the weights. Pure.

Needs no state to agree on, so many gateways in front of the same endpoints do not get in step; `p2c` is better wherever
the load can be seen.

Source: Envoy's RANDOM, HAProxy's `random(1)`.
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
class RandomPick:
    """A member drawn by weight."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = False
    _wheel: Wheel = attrs.field(factory=lambda: Wheel.of(()), init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Draw among `members` by their weights as they are now."""
        self._wheel = Wheel.of(members)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """A member that is neither in `skip` nor full."""
        wheel = self._wheel
        place = wheel.draw(self.rng, skip)
        return None if place == NOBODY else wheel.members[place]
