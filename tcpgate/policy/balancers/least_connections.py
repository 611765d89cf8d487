"""`least_connections`: the member with the fewest exchanges in flight for its weight, (active + 1) / weight. Pure.

`active()` counts over all workers, so this sees the whole host. Among equals it goes round, or a quiet upstream would
send everything to the first. The one about to begin counts (+ 1): of two idle members the heavier is taken.

Up to 32 members each one is asked. Above that, a comb of 32 evenly spaced ones is, moved on by one with each pick:
among 320, one that becomes idle is seen within ten picks or so, and a pick costs no more than among 32.

Source: nginx `least_conn`, HAProxy `leastconn`; Mitzenmacher for how little is lost by looking at some only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import SCAN, Member, carry_turn


@attrs.define(eq=False)
class LeastConnections:
    """The least loaded member."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = False
    _members: tuple[Member, ...] = attrs.field(default=(), init=False)
    _weights: tuple[float, ...] = attrs.field(default=(), init=False)
    _turn: int = attrs.field(default=0, init=False)
    """Where the next look begins: behind the last pick."""

    def update(self, members: Sequence[Member]) -> None:
        """Choose among `members`; the round among equals goes on where it was. The first begins at a random place."""
        turn = carry_turn(self._members, self._turn, members)
        if turn is None and members:
            turn = self.rng.randrange(len(members))
        self._members, self._turn = tuple(members), turn or 0
        self._weights = tuple(member.weight for member in members)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The least loaded member that is neither in `skip` nor full."""
        count = len(self._members)
        stride = max(1, count // SCAN)
        best = self._least(range(self._turn, self._turn + min(count, SCAN) * stride, stride), skip)
        if best < 0 and count > SCAN:
            best = self._least(range(self._turn, self._turn + count), skip)
        if best < 0:
            return None
        self._turn = (best + 1) % count
        return self._members[best]

    def _least(self, places: range, skip: Container[str]) -> int:
        """The place of the least loaded member at `places` (modulo their count), the first among equals; -1: nobody."""
        members, weights = self._members, self._weights
        count = len(members)
        best, least = -1, math.inf
        for place in places:
            if place >= count:
                place -= count
            member = members[place]
            load = (member.active() + 1) / weights[place]
            if load < least and not (member.name in skip or member.full()):
                best, least = place, load
        return best
