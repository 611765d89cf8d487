"""Which tier takes a request: tiers in order with graded spill, and what happens when too few endpoints are left. Pure.

Each tier has a balancer of its own over its usable members. A tier's *health* is min(100, overprovision x usable %),
where usable % goes by weight. Load is given to the tiers in order, to each as much as its health, until 100 % is given;
if all of them together do not come to 100, what they have is scaled up to it. With 1.4: a first tier that is 72 %
usable takes everything, at 50 % it takes 70 and the second tier 30. So a backup is warmed up by degrees and not hit by
everything at once.

If the tier that was drawn has nobody to pick (all tried, or full), the next ones are asked, then the ones before it:
one with no share too, because anything is better than a 503.

*Panic*: if fewer than `panic_below` % of all tiers' weight is usable, then either health is no longer believed and all
members share the load (a few survivors under everybody's load would only fall as well), or, with `fail`, nobody is
picked.

For a keyed balancer the tier is drawn by the key, so that a key stays with its tier, and so with its endpoint.

Source: Envoy, priority levels and panic threshold (load as in its "Priority levels" page; panic here is judged over all
tiers).
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import accumulate

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Balancer, Member
from tcpgate.policy.hashing import mix64, unit

SALT = 0x7469657273
"""Draws tiers by another number than the balancers use, else a tier would only ever see one arc of the ring."""


@attrs.define(eq=False)
class _Group:
    """A balancer, and what it was last told."""

    balancer: Balancer
    members: list[Member] = attrs.field(factory=list)
    weights: list[float] = attrs.field(factory=list)

    def tell(self, members: list[Member]) -> None:
        """Pass `members` on if they, or their weights, are not what the balancer knows."""
        weights = [member.weight for member in members]
        same = weights == self.weights and all(map(lambda a, b: a is b, members, self.members))
        if not same:
            self.balancer.update(members)
            self.members, self.weights = members, weights


def is_panic(spec: Upstream, usable: float, whole: float) -> bool:
    """Whether so little of the `whole` weight of all tiers is usable that health is no longer believed."""
    return 100 * usable < spec.panic_below * whole


def loads(healths: Mapping[int, float]) -> dict[int, float]:
    """Per cent of the load for each tier, from the tiers' healths (0 to 100): in order, each up to its health.

    They add up to 100, or are all 0 if no tier has any health.
    """
    scale = 100 / min(100.0, sum(healths.values()) or 100.0)
    left = 100.0
    shares: dict[int, float] = {}
    for tier in sorted(healths):
        shares[tier] = min(left, healths[tier] * scale)
        left -= shares[tier]
    return shares


@attrs.define(eq=False)
class Spread:
    """The tiers of one upstream."""

    spec: Upstream
    make: Callable[[], Balancer]
    """A new balancer of the upstream's kind."""
    rng: random.Random
    panic: bool = attrs.field(default=False, init=False)
    """Whether too few endpoints are usable to believe health."""
    keyed: bool = attrs.field(default=False, init=False)
    """Whether the key decides; where it does not, the caller need not make one."""
    _tiers: dict[int, _Group] = attrs.field(factory=dict, init=False)
    _everybody: _Group | None = attrs.field(default=None, init=False)
    """In panic: all members of all tiers."""
    _shares: dict[int, float] = attrs.field(factory=dict, init=False)
    _serving: tuple[Balancer, ...] = attrs.field(default=(), init=False)
    """Those with somebody to pick, in order."""
    _ends: tuple[float, ...] = attrs.field(default=(), init=False)
    """Shares of `_serving` added up; empty if the first one takes everything."""

    def update(self, members: Sequence[Member], usable: Container[str]) -> None:
        """Spread over `members` from now on; those not named in `usable` get traffic in panic only.

        Members that must never get any (in maintenance, draining) do not belong here. Weight 0 is left out.
        """
        tiers: dict[int, list[Member]] = {}
        for member in sorted(members, key=lambda member: member.tier):
            if member.weight > 0:
                tiers.setdefault(member.tier, []).append(member)
        fit = {tier: [member for member in group if member.name in usable] for tier, group in tiers.items()}
        weights = {tier: _weight(group) for tier, group in tiers.items()}
        fit_weights = {tier: _weight(group) for tier, group in fit.items()}
        self._tiers = {tier: self._tiers.get(tier) or _Group(self.make()) for tier in tiers}
        self.panic = is_panic(self.spec, sum(fit_weights.values()), sum(weights.values()))
        if self.panic:
            self._serve_in_panic([member for group in tiers.values() for member in group], weights)
            return
        overprovision = self.spec.overprovision
        healths = {tier: min(100.0, overprovision * 100 * fit_weights[tier] / weights[tier]) for tier in tiers}
        self._everybody = None
        self._serve_tiers(fit, loads(healths))

    def _serve_in_panic(self, members: list[Member], weights: Mapping[int, float]) -> None:
        if self.spec.panic == "fail":
            self._set_serving((), dict.fromkeys(weights, 0.0), ())
            return
        self._everybody = self._everybody or _Group(self.make())
        self._everybody.tell(members)
        whole = sum(weights.values())
        self._set_serving(
            (self._everybody.balancer,), {tier: 100 * weight / whole for tier, weight in weights.items()}, ()
        )

    def _serve_tiers(self, fit: Mapping[int, list[Member]], shares: dict[int, float]) -> None:
        for tier, group in self._tiers.items():
            group.tell(fit[tier])
        serving = [tier for tier in fit if fit[tier]]
        ends = tuple(accumulate(shares[tier] for tier in serving))
        whole = not ends or ends[0] == ends[-1]
        self._set_serving(tuple(self._tiers[tier].balancer for tier in serving), shares, () if whole else ends)

    def _set_serving(self, serving: tuple[Balancer, ...], shares: dict[int, float], ends: tuple[float, ...]) -> None:
        self._serving, self._shares, self._ends = serving, shares, ends
        self.keyed = bool(serving) and serving[0].keyed

    def pick(self, key: int, skip: Container[str], now: float) -> Member | None:
        """The member that takes the next work, never one that is in `skip` or full; None: there is none."""
        serving = self._serving
        if not serving:
            return None
        drawn = self._draw(key) if self._ends else 0
        member = serving[drawn].pick(key, skip, now)
        if member is None and len(serving) > 1:
            for balancer in (*serving[drawn + 1 :], *serving[:drawn]):
                member = balancer.pick(key, skip, now)
                if member is not None:
                    break
        return member

    def _draw(self, key: int) -> int:
        point = unit(mix64(key ^ SALT)) if self._serving[0].keyed else self.rng.random()
        return bisect_right(self._ends, point * self._ends[-1], 0, len(self._ends) - 1)

    def shares(self) -> dict[int, float]:
        """Per cent of the load that each tier gets now, by tier; all 0 if nobody can be picked."""
        return dict(self._shares)


def _weight(members: Sequence[Member]) -> float:
    return sum(member.weight for member in members)
