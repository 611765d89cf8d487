"""Consistent hashing with bounded loads: no member gets more than a set multiple of the mean. Pure.

A popular key would drown its member. So at each pick `ceil((in flight + 1) x factor)` slots are dealt out in proportion
to the weights, at least one to each; a member whose slots are all taken is passed over, and the key goes to the next
one in its own order of preference. There are never fewer slots than exchanges, so somebody always has room.

The bound shares load out, it does not turn work away: if everybody with room is out (tried already, or full), the key
goes to the first one in its order that is not.

Source: Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads (2016); the slots as in HAProxy's
`chash_server_is_eligible`, which deals remainders by cumulative weight so that they add up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from itertools import accumulate

import attrs

from tcpgate.policy.balancers.base import Member

# Products and quotients of floats may miss a whole number by a hair; a slot must not be lost or won by that.
HAIR = 1e-9


@attrs.frozen(eq=False)
class Bounds:
    """The slots of a fixed set of members."""

    members: tuple[Member, ...]
    factor: float
    ends: tuple[float, ...]
    """Weights added up, member by member."""

    @classmethod
    def of(cls, members: Sequence[Member], factor: float) -> Bounds:
        """The bounds of `members`, with their weights as they are now."""
        return cls(tuple(members), factor, tuple(accumulate(member.weight for member in members)))

    def slots_in_all(self) -> int:
        """Slots to deal out for the exchange that is about to begin. Asks every member, so ask once per pick."""
        served = sum(member.active() for member in self.members)
        return math.ceil((served + 1) * self.factor - HAIR)

    def slots(self, place: int, in_all: int) -> int:
        """How many of `in_all` slots the member at `place` has: its share, at least one."""
        before = self._dealt(self.ends[place - 1], in_all) if place else 0
        return max(1, self._dealt(self.ends[place], in_all) - before)

    def _dealt(self, end: float, in_all: int) -> int:
        return int(in_all * end / self.ends[-1] + HAIR)


def bounds_of(members: Sequence[Member], factor: float | None) -> Bounds | None:
    """The bounds of `members` if the config has any."""
    return None if factor is None else Bounds.of(members, factor)


def choose(
    members: Sequence[Member], order: Iterable[int], skip: Container[str], bounds: Bounds | None
) -> Member | None:
    """The first member in `order` that is not out and, under `bounds`, has room; else the first that is not out."""
    spare: Member | None = None
    in_all = 0
    for place in order:
        member = members[place]
        if member.name in skip or member.full():
            continue
        if bounds is None:
            return member
        active = member.active()
        if not active:
            return member  # everyone has at least one slot: at low load nobody else need be asked
        in_all = in_all or bounds.slots_in_all()
        if active < bounds.slots(place, in_all):
            return member
        if spare is None:
            spare = member
    return spare
