"""`first`: every member in the order of the config, each filled to its connection limit before the next is used. Pure.

Packs the load onto as few endpoints as can carry it, so that the others can be switched off. Weights do not matter.

Source: HAProxy `balance first`.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import ClassVar

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member


@attrs.define(eq=False)
class First:
    """The first member that has room."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = False
    _members: tuple[Member, ...] = attrs.field(default=(), init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Fill `members` in this order."""
        self._members = tuple(members)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The first member that is neither in `skip` nor full."""
        for member in self._members:
            if not (member.name in skip or member.full()):
                return member
        return None
