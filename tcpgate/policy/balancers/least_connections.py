"""`least_connections`: the member with the fewest exchanges in flight for its weight, (active + 1) / weight. Pure.

`active()` counts over all workers, so this sees the whole host. Among equals it goes round, or a quiet upstream would
send everything to the first. The one about to begin counts (+ 1): of two idle members the heavier is taken.

Up to 32 members each one is asked. Above that, a window of 32 is, which moves on with each pick: within a few picks of
anyone's becoming idle it is seen, and a pick among a thousand costs no more than one among 32.

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
        members, weights = self._members, self._weights
        count = len(members)
        best, least = -1, math.inf
        for step in range(count):
            if step >= SCAN and best >= 0:
                break  # a window without anybody to pick is no reason to give up
            place = (self._turn + step) % count
            member = members[place]
            load = (member.active() + 1) / weights[place]
            if load < least and not (member.name in skip or member.full()):
                best, least = place, load
        if best < 0:
            return None
        self._turn = (best + 1) % count
        return members[best]
