"""`ring_hash`: members have points on a ring, and a key belongs to the next point from where it falls. Pure.

160 points for each unit of weight. If a member comes or goes, only the keys next to its points move, about its share of
them. The points of a member depend on its name only, and less weight means fewer of the same points, so in slow start
it gets its own keys back little by little. Shares are off by some 8 % with 160 points (1 / sqrt(points)): `maglev` and
`rendezvous` are more even.

Cost: a pick is a bisection. `update` hashes and sorts all points when a name or a weight has changed: 1 ms per thousand
points or less. Above 262,144 points in all everyone gets fewer, in proportion.

Source: Karger et al., Consistent Hashing and Random Trees (1997); libketama, and nginx's `hash ... consistent` for the
160.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member, same_shape, shape_of
from tcpgate.policy.bounded import Bounds, bounds_of, choose
from tcpgate.policy.hashing import mix64

MOST_POINTS = 1 << 18
"""On a whole ring: 0.3 s to build, 25 MiB."""
_EIGHT = struct.Struct("<8Q")


@attrs.frozen(eq=False)
class _Ring:
    """All that a pick needs, so that a new one is swapped in by one assignment."""

    members: tuple[Member, ...]
    shape: list[tuple[str, float]]
    points: Sequence[int]
    """In order."""
    owners: Sequence[int]
    """Whose each point is: a place in `members`."""
    bounds: Bounds | None

    def owners_from(self, start: int) -> Iterator[int]:
        """Each owner once, in the order in which one meets them going round from the point at `start`."""
        seen: set[int] = set()
        for index in chain(range(start, len(self.owners)), range(start)):
            owner = self.owners[index]
            if owner not in seen:
                yield owner
                seen.add(owner)
                if len(seen) == len(self.members):
                    return


def lay_points(
    shape: Sequence[tuple[str, float]], points_per_weight: int, most: int = MOST_POINTS
) -> tuple[list[int], list[int]]:
    """All points in order, and for each the place in `shape` of its owner."""
    scale = min(points_per_weight, most / sum(weight for _, weight in shape))
    owner_of = {
        point: place
        for place, (name, weight) in enumerate(shape)
        for point in points_of(name, max(1, round(weight * scale)))
    }
    points = sorted(owner_of)
    return points, [owner_of[point] for point in points]


def points_of(name: str, count: int) -> list[int]:
    """The first `count` points of a member."""
    points: list[int] = []
    for block in range(-(-count // 8)):
        points += _EIGHT.unpack(blake2b(b"%s#%d" % (name.encode(), block)).digest())
    return points[:count]


@attrs.define(eq=False)
class RingHash:
    """The member whose point is next on the ring."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = True
    _ring: _Ring | None = attrs.field(default=None, init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Choose among `members` by their weights as they are now. May run in a thread while picks go on."""
        # By name, so that another order in the config is no change.
        ordered = tuple(sorted(members, key=lambda member: member.name))
        bounds = bounds_of(ordered, self.spec.bounded_load)
        if self._ring is not None and same_shape(ordered, self._ring.shape):
            self._ring = attrs.evolve(self._ring, members=ordered, bounds=bounds)
        elif not ordered:
            self._ring = None
        else:
            shape = shape_of(ordered)
            self._ring = _Ring(ordered, shape, *lay_points(shape, self.spec.ring_points), bounds)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The next on the ring that is neither in `skip` nor full nor over its bound."""
        ring = self._ring
        if ring is None:
            return None
        start = bisect_right(ring.points, mix64(key)) % len(ring.points)
        if ring.bounds is None:
            member = ring.members[ring.owners[start]]
            if not (member.name in skip or member.full()):
                return member
        return choose(ring.members, ring.owners_from(start), skip, ring.bounds)
