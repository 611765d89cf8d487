"""`rendezvous`: each key has an order of preference over the members, by weighted rendezvous hashing. Pure.

If a member goes, exactly its keys move, and they spread over all that are left; no table to build, and shares exactly
by weight. The best of the consistent kinds below a hundred members; see `policy/hrw.py` for how and for what it costs.

Source: Thaler and Ravishankar (1998), Schindelhauer and Schomaker (2005); Traefik's `hrw`.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member, same_shape, shape_of
from tcpgate.policy.bounded import Bounds, bounds_of, choose
from tcpgate.policy.hrw import Lots


@attrs.define(eq=False)
class Rendezvous:
    """The member with the highest lot for the key."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = True
    _members: tuple[Member, ...] = attrs.field(default=(), init=False)
    _shape: list[tuple[str, float]] = attrs.field(factory=list, init=False)
    _lots: Lots = attrs.field(factory=lambda: Lots((), ()), init=False)
    _bounds: Bounds | None = attrs.field(default=None, init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Choose among `members` by their weights as they are now."""
        if not same_shape(members, self._shape):
            self._shape = shape_of(members)
            self._lots = Lots([name for name, _ in self._shape], [weight for _, weight in self._shape])
        self._members, self._bounds = tuple(members), bounds_of(members, self.spec.bounded_load)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The first in the key's order that is neither in `skip` nor full nor over its bound."""
        if not self._members:
            return None
        if self._bounds is None:
            member = self._members[self._lots.winner(key)]
            if not (member.name in skip or member.full()):
                return member
        return choose(self._members, self._lots.order(key), skip, self._bounds)
