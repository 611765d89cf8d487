"""What a balancer is, and what it chooses among: two protocols, and the two rules that every kind keeps. Pure.

A balancer gets the members that may take traffic (`update`, whenever one comes, goes or changes its weight) and answers
one question (`pick`), synchronously and on the path of every request. It never raises, and it never gives a member that
is in `skip` (already tried) or `full()`; if nobody is left, it gives None.

Each kind is one class in one file of this folder; `kinds.py` knows them by name. `policy/spread.py` owns one per tier.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import ClassVar, Protocol

from tcpgate.config.schema import Upstream
from tcpgate.policy.ewma import PeakEwma

SCAN = 32
"""Up to this many members a kind may look at each one for a pick; above it, a pick costs less than in proportion."""


class Member(Protocol):
    """An endpoint as a balancer sees it. `state/runtime.py` has the real one."""

    @property
    def name(self) -> str:
        """Its identity: the address, as in the config. State is kept by it."""
        ...

    @property
    def weight(self) -> float:
        """Its share of the traffic, more than 0: the config's or the operator's, times slow start."""
        ...

    @property
    def tier(self) -> int:
        """0 is the first choice; higher ones are backups."""
        ...

    @property
    def latency(self) -> PeakEwma:
        """How fast it answers, as this worker has seen."""
        ...

    def active(self) -> int:
        """Exchanges and flows in flight now, over all workers."""
        ...

    def full(self) -> bool:
        """Whether it is at its connection limit."""
        ...


class Balancer(Protocol):
    """One way to choose a member."""

    keyed: ClassVar[bool]
    """Whether the key decides, so that one key stays with one member. Without it the caller need not make a key."""

    def __init__(self, spec: Upstream, rng: random.Random) -> None: ...

    def update(self, members: Sequence[Member]) -> None:
        """Choose among `members` from now on, in this order of preference where order matters.

        State is kept by name: a member that stays goes on where it was, and an update that changes nothing changes no
        later pick.
        """
        ...

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The member that takes the next work, or None. `key`: 64 bits from `hashing.hash64`; `now`: seconds."""
        ...


def same_shape(members: Sequence[Member], shape: Sequence[tuple[str, float]]) -> bool:
    """Whether `members` have the names and weights that were noted as `shape`, in that order."""
    return len(members) == len(shape) and all(
        member.name == name and member.weight == weight for member, (name, weight) in zip(members, shape, strict=True)
    )


def shape_of(members: Sequence[Member]) -> list[tuple[str, float]]:
    """Names and weights as they are now: a member's weight may change under a balancer before it is told."""
    return [(member.name, member.weight) for member in members]


def carry_turn(old: Sequence[Member], turn: int, new: Sequence[Member]) -> int | None:
    """Where in `new` the one stands whose turn it was in `old`, or the next after it that is left; None: nobody is."""
    places = {member.name: place for place, member in enumerate(new)}
    for member in (*old[turn:], *old[:turn]):
        if member.name in places:
            return places[member.name]
    return None
