"""`round_robin`: one after the other, each as often as any. Pure.

Weights do not matter; `weighted_round_robin` has them.

Whoever is out (in `skip`, or full) is passed over, and the turn moves on past the one picked, so the neighbour of a
full member does not get its share as well.

The turn starts at a random place, drawn from `rng`: else every worker, and every gateway after a common restart, would
send its first request to the same endpoint.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member, carry_turn


@attrs.define(eq=False)
class RoundRobin:
    """The member whose turn it is."""

    spec: Upstream
    rng: random.Random
    offset: int | None = attrs.field(default=None, kw_only=True)
    """Where the first turn is; None draws it."""
    keyed: ClassVar[bool] = False
    _members: tuple[Member, ...] = attrs.field(default=(), init=False)
    _turn: int = attrs.field(default=0, init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Go round `members`; the turn stays with whoever has it, or goes to the next one that is left."""
        turn = carry_turn(self._members, self._turn, members)
        if turn is None and members:
            turn = self.rng.randrange(len(members)) if self.offset is None else self.offset % len(members)
        self._members, self._turn = tuple(members), turn or 0

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The next member that is neither in `skip` nor full."""
        members, turn = self._members, self._turn
        for _ in members:
            member = members[turn]
            turn += 1
            if turn == len(members):
                turn = 0
            if not (member.name in skip or member.full()):
                self._turn = turn
                return member
        return None
