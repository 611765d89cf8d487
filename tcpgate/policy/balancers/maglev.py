"""`maglev`: a table of slots, a prime number of them; a key's slot says whose it is. Pure.

Each member has a permutation of the slots, made from its name. They take turns in taking the next free slot of their
own permutation until the table is full; a heavier member has more turns. So shares are even to within a slot or two, a
pick is one lookup however many members there are, and if a member goes nearly all others' keys stay (a few move: that
is the price for evenness; with ten members 0.3 % of all keys).

A key whose member is out goes to the highest of its rendezvous lots (`policy/hrw.py`), so the keys of a full member
spread over all.

Cost of `update`, when a name or a weight has changed: 65,537 slots take 30 ms with equal weights and 50 ms with others,
whatever the number of members; time grows a little faster than the table. With a table of five million (7 s) call it in
a thread: what serves is swapped in one assignment at the end.

Source: Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer (2016), section 3.4; weights by
turns as in Envoy's maglev_lb.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Container, Iterator, Sequence
from heapq import heapreplace
from itertools import cycle, islice
from typing import ClassVar

import attrs

from tcpgate.config.prime import next_prime
from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member, same_shape, shape_of
from tcpgate.policy.bounded import Bounds, bounds_of, choose
from tcpgate.policy.hashing import hash64
from tcpgate.policy.hrw import Lots

FREE = -1


def fill(names: Sequence[str], weights: Sequence[float], size: int) -> array[int]:
    """The table: for each of `size` slots (a prime), the place in `names` of its owner."""
    slots = [hash64(name.encode() + b"/offset") % size for name in names]
    steps = [hash64(name.encode() + b"/skip") % (size - 1) + 1 for name in names]
    table = [FREE] * size
    for place in islice(_turns(weights), size):
        slot, step = slots[place], steps[place]
        while table[slot] != FREE:
            slot += step
            if slot >= size:
                slot -= size
        table[slot] = place
        slots[place] = slot
    return array("I", table)


def _turns(weights: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, for ever: everybody once, then each in proportion to its weight."""
    if len(set(weights)) == 1:
        yield from cycle(range(len(weights)))
    heap = [(0.0, place) for place in range(len(weights))]  # sorted, so it is a heap
    while True:
        due, place = heap[0]
        yield place
        heapreplace(heap, (due + 1 / weights[place], place))


@attrs.frozen(eq=False)
class _Table:
    """All that a pick needs, so that a new one is swapped in by one assignment."""

    members: tuple[Member, ...]
    shape: list[tuple[str, float]]
    slots: Sequence[int]
    lots: Lots
    bounds: Bounds | None


@attrs.define(eq=False)
class Maglev:
    """The member that owns the key's slot."""

    spec: Upstream
    rng: random.Random
    keyed: ClassVar[bool] = True
    _table: _Table | None = attrs.field(default=None, init=False)

    def update(self, members: Sequence[Member]) -> None:
        """Choose among `members` by their weights as they are now. May run in a thread while picks go on."""
        # By name, so that the order of the config does not decide who takes the first slot.
        ordered = tuple(sorted(members, key=lambda member: member.name))
        bounds = bounds_of(ordered, self.spec.bounded_load)
        if self._table is not None and same_shape(ordered, self._table.shape):
            self._table = attrs.evolve(self._table, members=ordered, bounds=bounds)
        elif not ordered:
            self._table = None
        else:
            shape = shape_of(ordered)
            names, weights = [name for name, _ in shape], [weight for _, weight in shape]
            slots = fill(names, weights, next_prime(self.spec.table_size))
            self._table = _Table(ordered, shape, slots, Lots(names, weights), bounds)

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The slot's owner, or by the key's lots the next that is neither in `skip` nor full nor over its bound."""
        table = self._table
        if table is None:
            return None
        owner = table.slots[key % len(table.slots)]
        if table.bounds is None:
            member = table.members[owner]
            if not (member.name in skip or member.full()):
                return member
        return choose(table.members, _owner_first(owner, table.lots, key), skip, table.bounds)


def _owner_first(owner: int, lots: Lots, key: int) -> Iterator[int]:
    """The owner; everybody by the key's lots only if the owner will not do, as they cost more than all the rest."""
    yield owner
    yield from lots.order(key)
