"""Drawing members at random, in proportion to their weights; two different ones if asked. Pure.

Members lie side by side on a line, each as long as its weight; a draw is a random point, found by bisection. The second
of two draws leaves the first one's piece out, so that it is different by construction: with two endpoints, draws with
replacement would compare one with itself half of the time.

A member that is out (in `skip`, or full) is drawn again, which keeps the odds among the others right; after a few such
draws everybody is looked at once, so that a pick ends.

Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001), for why two.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Container, Sequence
from itertools import accumulate

import attrs

from tcpgate.policy.balancers.base import Member

NOBODY = -1
TRIES = 4
"""Draws that may hit somebody who is out before all are looked at: below 1 in 16 if half of them are out."""


@attrs.frozen(eq=False)
class Wheel:
    """Members and the line that they lie on."""

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    ends: tuple[float, ...]
    """Where each member's piece ends."""

    @classmethod
    def of(cls, members: Sequence[Member]) -> Wheel:
        """The wheel of `members`, with their weights as they are now."""
        weights = tuple(member.weight for member in members)
        return cls(tuple(members), weights, tuple(accumulate(weights)))

    def draw(self, rng: random.Random, skip: Container[str], other_than: int = NOBODY) -> int:
        """The place of a member that can be picked and is not at `other_than`; NOBODY if there is none."""
        members = self.members
        if len(members) <= (other_than != NOBODY):
            return NOBODY
        for _ in range(TRIES):
            place = self._spin(rng.random()) if other_than == NOBODY else self._spin_past(rng.random(), other_than)
            member = members[place]
            if not (member.name in skip or member.full()):
                return place
        return self._draw_from_open(rng, skip, other_than)

    def _spin(self, point: float) -> int:
        ends = self.ends
        # The upper bound catches a point that rounding put on the very end.
        return bisect_right(ends, point * ends[-1], 0, len(ends) - 1)

    def _spin_past(self, point: float, taken: int) -> int:
        """As if `taken` had no piece on the line. The bisection's bounds keep it out whatever rounding does."""
        ends = self.ends
        before = ends[taken - 1] if taken else 0.0
        at = point * (before + ends[-1] - ends[taken])
        if taken == len(ends) - 1 or (taken and at < before):
            return bisect_right(ends, at, 0, taken - 1)
        return bisect_right(ends, at - before + ends[taken], taken + 1, len(ends) - 1)

    def _draw_from_open(self, rng: random.Random, skip: Container[str], other_than: int) -> int:
        places = [
            place
            for place, member in enumerate(self.members)
            if place != other_than and member.name not in skip and not member.full()
        ]
        if not places:
            return NOBODY
        return rng.choices(places, [self.weights[place] for place in places])[0]
