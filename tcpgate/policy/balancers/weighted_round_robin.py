"""`weighted_round_robin`: over sum(weights) picks each member exactly weight times, and those spread out evenly. Pure.

Two ways, because the best for a few members is too slow for many:

- **Smooth**, up to 32 members. Each pick adds its weight to every member's credit, takes the highest credit, and
  charges the winner the sum of the weights. Weights 5, 1, 1 give a a b a c a a. Linear in the members: 0.6 us for ten.
- **Deadlines**, above. A member of weight w is due every 1/w of a cycle; the one that is due first is taken and is due
  again 1/w later. Logarithmic in the members: 0.5 us for a thousand.

Whoever is out (in `skip`, or full) when it would win is passed over and collects nothing by it, so when it comes back
it is owed a turn, and not all that it has missed.

A new weight or a new member does not start the cycle again, or the heaviest would win each time a weight changes (and
in slow start that is often): what each one is owed, in turns, is kept by name across updates, and between the two ways.

The cycle starts at a random place, drawn from `rng`, so that workers do not all send their first request to the
heaviest.

Source: nginx's smooth weighted round robin (changeset 52327e0627383dbce1e8, 2012), whose picks the first way matches
one by one; Nagle's and Demers' fair queueing, as Envoy's EDF scheduler has it, for the second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import ClassVar, Protocol

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import SCAN, Member, same_shape, shape_of

LONGEST_START = 256
"""The most picks that a random start skips; it is a loop, and the 256th turn of a longer cycle is random enough."""


class _Cycle(Protocol):
    """One of the two ways."""

    members: tuple[Member, ...]

    def pick(self, skip: Container[str]) -> Member | None:
        """The member whose turn it is, among those that are not out."""
        ...

    def owed(self) -> dict[str, float]:
        """How many turns each member is owed, by name: 0 is none, below 0 it was ahead of its time."""
        ...


@attrs.define(eq=False)
class _Smooth:
    """The highest credit wins. Credits add up to 0, and each stays within the sum of the weights."""

    members: tuple[Member, ...]
    weights: list[float]
    credits: list[float]
    total: float

    @classmethod
    def of(cls, members: Sequence[Member], owed: Mapping[str, float]) -> _Smooth:
        weights = [member.weight for member in members]
        total = math.fsum(weights)
        credit = [owed.get(member.name, 0.0) * total for member in members]
        # Members that left took their credit with them. It is shared out by weight, which is what time would do.
        rest = math.fsum(credit) / total
        return cls(tuple(members), weights, [has - rest * w for has, w in zip(credit, weights, strict=True)], total)

    def pick(self, skip: Container[str]) -> Member | None:
        credit = self.credits
        best, most = 0, -math.inf
        for place, weight in enumerate(self.weights):
            credit[place] = has = credit[place] + weight
            if has > most:
                best, most = place, has
        member = self.members[best]
        if member.name in skip or member.full():
            return self._pick_among_open(skip)
        credit[best] = most - self.total
        return member

    def _pick_among_open(self, skip: Container[str]) -> Member | None:
        """Finish a pick whose winner is out: take back what those who are out have collected, and choose again."""
        credit = self.credits
        best, most, total = -1, -math.inf, 0.0
        for place, (member, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            if member.name in skip or member.full():
                credit[place] -= weight
                continue
            total += weight
            if credit[place] > most:
                best, most = place, credit[place]
        if best < 0:
            return None
        credit[best] = most - total
        return self.members[best]

    def owed(self) -> dict[str, float]:
        return {member.name: has / self.total for member, has in zip(self.members, self.credits, strict=True)}


@attrs.define(eq=False)
class _Deadlines:
    """The earliest deadline wins. The clock is the last winner's deadline; 1.0 of it is one cycle."""

    members: tuple[Member, ...]
    gaps: list[float]
    """Between a member's turns: 1 / weight."""
    heap: list[tuple[float, int]]
    """(deadline, place), none before the clock."""
    clock: float = 0.0

    @classmethod
    def of(cls, members: Sequence[Member], owed: Mapping[str, float], draw: Callable[[], float]) -> _Deadlines:
        gaps = [1 / member.weight for member in members]
        # Owed nothing is half a gap away from the next turn. Nobody is due before the clock, whatever it is owed.
        heap = [
            (max(0.0, 0.5 - owed.get(member.name, draw())) * gap, place)
            for place, (member, gap) in enumerate(zip(members, gaps, strict=True))
        ]
        heapify(heap)
        return cls(tuple(members), gaps, heap)

    def pick(self, skip: Container[str]) -> Member | None:
        deadline, place = self.heap[0]
        member = self.members[place]
        if member.name in skip or member.full():
            return self._pick_past(skip)
        self.clock = deadline
        heapreplace(self.heap, (deadline + self.gaps[place], place))
        return member

    def _pick_past(self, skip: Container[str]) -> Member | None:
        """Pass over those who are out until somebody is not; each one passed over has lost its turn."""
        passed: list[tuple[float, int]] = []
        while self.heap:
            deadline, place = heappop(self.heap)
            member = self.members[place]
            if member.name in skip or member.full():
                passed.append((deadline, place))
                continue
            self.clock = deadline
            for _, lost in passed:
                heappush(self.heap, (deadline + self.gaps[lost], lost))
            heappush(self.heap, (deadline + self.gaps[place], place))
            return member
        self.heap = passed  # sorted, so it is a heap
        return None

    def owed(self) -> dict[str, float]:
        return {
            self.members[place].name: 0.5 - (deadline - self.clock) / self.gaps[place] for deadline, place in self.heap
        }


@attrs.define(eq=False)
class WeightedRoundRobin:
    """The member that is owed most."""

    spec: Upstream
    rng: random.Random
    offset: int | None = attrs.field(default=None, kw_only=True)
    """How many picks of the cycle to leave out at the start; None draws it. 0: weights 5, 1, 1 give a a b a c a a."""
    keyed: ClassVar[bool] = False
    _shape: list[tuple[str, float]] = attrs.field(factory=list, init=False)
    _cycle: _Cycle | None = attrs.field(default=None, init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Share out among `members` by their weights as they are now; what they were owed they are still owed."""
        if self._cycle is not None and same_shape(members, self._shape):
            self._cycle.members = tuple(members)
            return
        owed = self._cycle.owed() if self._cycle is not None else {}
        self._shape = shape_of(members)
        self._cycle = self._make(members, owed) if members else None
        if self._cycle is not None and not any(member.name in owed for member in members):
            for _ in range(self._start()):
                self._cycle.pick(())

    def _make(self, members: Sequence[Member], owed: Mapping[str, float]) -> _Cycle:
        if len(members) <= SCAN:
            return _Smooth.of(members, owed)
        # Without `offset` every member starts at a random place of its own turn.
        return _Deadlines.of(members, owed, lambda: self.rng.random() - 0.5 if self.offset is None else 0.0)

    def _start(self) -> int:
        if self.offset is not None:
            return self.offset
        cycle = round(sum(weight for _, weight in self._shape))
        return self.rng.randrange(min(LONGEST_START, max(len(self._shape), cycle)))

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The member whose turn it is, among those neither in `skip` nor full."""
        return None if self._cycle is None else self._cycle.pick(skip)
