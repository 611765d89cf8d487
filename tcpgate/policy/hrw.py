"""Rendezvous hashing: each member draws a lot for a key, and the highest lot wins. Pure.

A lot depends on the key and on that one member only. So if a member goes, exactly its keys move, each to whoever had
its second highest lot; if one comes, it takes its share evenly from all; and the order of the config does not matter.
With h in (0, 1) from key and name, the lot is -weight / ln(h), which makes the share of keys exactly the share of the
weight.

A lot costs about 0.15 us, so a pick is linear in the members: 2 us for ten. The winners of recent keys are therefore
remembered, in two generations: when the young one is full it becomes the old one and the old one is forgotten, so
endless new keys can evict, never grow. A remembered pick costs as much as a dict lookup.

Source: Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates (1998); Schindelhauer and Schomaker,
Weighted Distributed Hash Tables (2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from tcpgate.policy.hashing import MASK, hash64, mix64, unit

REMEMBERED = 2048
"""Keys in one generation; two of them take at most half a MiB."""


@attrs.define(eq=False)
class Lots:
    """The lots of a fixed set of members; a changed set is a new one of these."""

    names: Sequence[str]
    weights: Sequence[float]
    _seeds: list[tuple[int, int]] = attrs.field(init=False)
    _even: bool = attrs.field(init=False)
    _young: dict[int, int] = attrs.field(factory=dict, init=False)
    _old: dict[int, int] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._seeds = [_seeds(name) for name in self.names]
        self._even = len(set(self.weights)) < 2

    def winner(self, key: int) -> int:
        """The place of the member with the highest lot. There must be one."""
        place = self._young.get(key)
        if place is None:
            place = self._old.get(key)
            if place is None:
                lots = self._lots(key)
                place = lots.index(max(lots))
            self._remember(key, place)
        return place

    def order(self, key: int) -> list[int]:
        """Every place, the highest lot first."""
        lots = self._lots(key)
        return sorted(range(len(lots)), key=lots.__getitem__, reverse=True)

    def _lots(self, key: int) -> Sequence[float]:
        """One number per member that orders them as their lots do."""
        key = mix64(key)  # keys that differ in a few bits only must not have lots that resemble each other
        # A 128-bit product folded in half: every bit of key and seeds reaches every bit of the lot.
        folded = [((lot := (key ^ seed) * factor) >> 64 ^ lot) & MASK for seed, factor in self._seeds]
        if self._even:
            return folded  # the logarithm would not change the order
        return [math.log(unit(lot)) / weight for lot, weight in zip(folded, self.weights, strict=True)]

    def _remember(self, key: int, place: int) -> None:
        if len(self._young) >= REMEMBERED:
            self._old, self._young = self._young, {}
        self._young[key] = place


def _seeds(name: str) -> tuple[int, int]:
    """Two numbers of a member's own; the second is a factor, so it must be odd to lose no bit."""
    data = name.encode()
    return hash64(data + b"/seed"), hash64(data + b"/factor") | 1
