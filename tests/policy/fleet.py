"""Members without a network behind them, and balancers over them. For tests of the policy room."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import get_args

import attrs

from tcpgate import kinds
from tcpgate.config.schema import Balance, Endpoint, Upstream
from tcpgate.policy.balancers.base import Balancer, Member
from tcpgate.policy.ewma import PeakEwma

KINDS: tuple[str, ...] = get_args(Balance)
KEYED = tuple(kind for kind in KINDS if kinds.BALANCERS[kind].keyed)
WEIGHTED = tuple(kind for kind in KINDS if kind not in ("round_robin", "first"))


@attrs.define(eq=False)
class FakeMember:
    """An endpoint whose numbers the test sets."""

    name: str
    weight: float = 1.0
    tier: int = 0
    in_flight: int = 0
    limit: int = 1_000_000
    latency: PeakEwma = attrs.field(factory=lambda: PeakEwma(decay=10.0))
    asked: int = 0
    """How often it was asked what is in flight."""

    def active(self) -> int:
        self.asked += 1
        return self.in_flight

    def full(self) -> bool:
        return self.in_flight >= self.limit


def fleet(*weights: float, tier: int = 0, prefix: str = "") -> list[FakeMember]:
    """One member per weight, named a, b, c ... and beyond z a26, a27 ..."""
    return [FakeMember(prefix + (chr(97 + i) if i < 26 else f"a{i}"), float(w), tier) for i, w in enumerate(weights)]


def upstream(balance: str = "round_robin", **options: object) -> Upstream:
    """A spec; which endpoints it names does not matter to a balancer."""
    # Small tables, unless the test asks: tests build thousands of them.
    settings: dict[str, object] = {"table_size": 1009, "ring_points": 4, **options}
    return Upstream(balance=balance, endpoints=(Endpoint(address="any:1"),), **settings)  # type: ignore[arg-type]


def balancer(kind: str, members: Sequence[Member] = (), seed: int = 1, **options: object) -> Balancer:
    """A balancer of `kind` over `members`."""
    made = kinds.BALANCERS[kind](upstream(kind, **options), random.Random(seed))
    made.update(members)
    return made


def keys(count: int, seed: int = 7) -> list[int]:
    """Keys as `hash64` would make them."""
    rng = random.Random(seed)
    return [rng.getrandbits(64) for _ in range(count)]


def name_of(member: Member | None) -> str:
    """Its name, "-" for nobody."""
    return "-" if member is None else member.name


def picks(of: Balancer, asked: int | Iterable[int], skip: Container[str] = ()) -> list[str]:
    """Names picked, one for each key (a number means that many different keys)."""
    asked = keys(asked) if isinstance(asked, int) else asked
    return [name_of(of.pick(key, skip, 0.0)) for key in asked]


def shares(names: Iterable[str]) -> dict[str, float]:
    """The fraction that each name has."""
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}
