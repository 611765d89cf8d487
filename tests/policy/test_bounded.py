"""Consistent hashing with bounded loads, against HAProxy's arithmetic and under a single hot key."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcpgate.policy.bounded import Bounds, bounds_of, choose
from tests.policy.fleet import KEYED, FakeMember, balancer, fleet, keys, picks, shares

keyed_kinds = pytest.mark.parametrize("kind", KEYED)
whole_weights = st.lists(st.integers(1, 256), min_size=1, max_size=12)


def haproxy_slots(weights: list[int], served: int, per_cent: int) -> list[int]:
    """`chash_server_is_eligible` of lb_chash.c, in whole numbers as there."""
    total_weight = sum(weights)
    total = ((served + 1) * per_cent + 99) // 100
    per_weight, remainder = divmod(total, total_weight)
    slots, cumulative = [], 0
    for weight in weights:
        own = weight * per_weight
        own += (cumulative + weight) * remainder // total_weight - cumulative * remainder // total_weight
        slots.append(max(1, own))
        cumulative += weight
    return slots


def busy(weights: list[int], in_flight: list[int]) -> list[FakeMember]:
    members = fleet(*weights)
    for member, count in zip(members, in_flight, strict=True):
        member.in_flight = count
    return members


@example(weights=[1], served=49, per_cent=110)  # 50 x 1.1 is a hair above 55
@given(weights=whole_weights, served=st.integers(0, 5000), per_cent=st.integers(100, 1000))
def test_slots_are_haproxys(weights: list[int], served: int, per_cent: int) -> None:
    members = busy(weights, [served, *[0] * (len(weights) - 1)])
    bounds = Bounds.of(members, per_cent / 100)
    in_all = bounds.slots_in_all()
    assert [bounds.slots(i, in_all) for i in range(len(weights))] == haproxy_slots(weights, served, per_cent)


@example(weights=[1.27], served=30, factor=1.0)  # 31 x 1.27 / 1.27 is a hair below 31
@given(
    weights=st.lists(st.floats(0.01, 256), min_size=1, max_size=12),
    served=st.integers(0, 5000),
    factor=st.floats(1, 10),
)
def test_there_is_always_a_slot_for_the_next_one(weights: list[float], served: int, factor: float) -> None:
    members = fleet(*weights)
    members[0].in_flight = served
    bounds = Bounds.of(members, factor)
    in_all = bounds.slots_in_all()
    assert sum(bounds.slots(i, in_all) for i in range(len(members))) >= served + 1


@keyed_kinds
@settings(max_examples=40)
@given(weights=st.lists(st.floats(0.1, 20), min_size=1, max_size=8), factor=st.floats(1, 4), key=st.integers(0, 2**64))
def test_one_hot_key_never_takes_a_member_over_its_bound(
    kind: str, weights: list[float], factor: float, key: int
) -> None:
    members = fleet(*weights)
    bounded = balancer(kind, members, bounded_load=factor)
    for served in range(60):
        picked = bounded.pick(key, (), 0.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
        share = math.ceil(factor * (served + 1)) * picked.weight / sum(weights)
        assert picked.in_flight <= max(1, math.ceil(share + 1e-6))


@keyed_kinds
def test_a_hot_key_fills_its_members_in_its_own_order(kind: str) -> None:
    members = fleet(1, 1, 1, 1)
    unbounded, bounded = balancer(kind, members), balancer(kind, members, bounded_load=2.0)
    order: list[str] = []
    while len(order) < 4:
        order += picks(unbounded, [99], order)
    names = []
    for _ in range(8):
        picked = bounded.pick(99, (), 0.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
        names.append(picked.name)
    # Slots for the 1st to 8th: 2, 4, 6 ... 16 in all, a quarter of them each.
    assert names[0] == order[0]
    assert set(names) <= set(order[:3])
    assert names.count(order[0]) == 4


@keyed_kinds
def test_without_a_hot_key_a_bound_moves_few_keys(kind: str) -> None:
    members = fleet(*[1] * 5)
    for member in members:
        member.in_flight = 20
    kept = zip(picks(balancer(kind, members), 200), picks(balancer(kind, members, bounded_load=1.25), 200), strict=True)
    assert all(was == now for was, now in kept)


@keyed_kinds
def test_a_bound_turns_no_work_away(kind: str) -> None:
    members = busy([1, 1, 1], [50, 0, 0])
    bounded = balancer(kind, members, bounded_load=1.0)
    assert picks(bounded, 20, skip={"b", "c"}) == ["a"] * 20
    members[1].limit = 0
    members[2].in_flight = 40
    # Both are above a third of 91, and b, which is not, is full: keys go where they belong.
    assert set(picks(bounded, 50)) == {"a", "c"}
    members[2].in_flight = 10
    assert set(picks(bounded, 50)) == {"c"}


@keyed_kinds
def test_a_member_that_is_full_sheds_its_keys_within_the_bound(kind: str) -> None:
    members = fleet(*[1] * 4)
    bounded = balancer(kind, members, bounded_load=1.25)
    members[0].limit = 0
    for key in keys(200):
        picked = bounded.pick(key, (), 0.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
    in_flight = {member.name: member.in_flight for member in members}
    assert in_flight.pop("a") == 0
    assert max(in_flight.values()) <= 200 * 1.25 / 4 + 1 + 200 / 4  # three share what four should


def test_at_no_load_nobody_else_is_asked() -> None:
    members = fleet(1, 1, 1)
    assert choose(members, [1, 0, 2], (), Bounds.of(members, 1.25)) is members[1]
    assert [member.asked for member in members] == [0, 1, 0]


def test_everybody_is_asked_at_most_once_for_all_slots() -> None:
    members = busy([1, 1, 1], [9, 9, 3])
    assert choose(members, [0, 1, 2], (), Bounds.of(members, 1.0)) is members[2]
    assert [member.asked for member in members] == [2, 2, 2]


def test_without_a_factor_there_are_no_bounds() -> None:
    assert bounds_of(fleet(1), None) is None
    assert choose(busy([1, 1], [99, 0]), [0, 1], (), None) is not None


def test_a_bounded_hash_still_goes_by_weight() -> None:
    members = fleet(6, 3, 1)
    bounded = balancer("maglev", members, bounded_load=1.25)
    got = shares(picks(bounded, 4000))
    assert got == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.03)
