"""What every kind of balancer keeps to, whatever it is: the suite is parametrised over the table of kinds."""

from __future__ import annotations

import random
from collections import deque

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate import kinds
from tcpgate.policy.balancers.base import Balancer
from tests.policy.fleet import (
    KEYED,
    KINDS,
    WEIGHTED,
    FakeMember,
    balancer,
    fleet,
    keys,
    name_of,
    picks,
    shares,
    upstream,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
keyed_kinds = pytest.mark.parametrize("kind", KEYED)

weights = st.floats(0.05, 20, allow_nan=False) | st.integers(1, 20).map(float)


@st.composite
def fleets(draw: st.DrawFn, least: int = 0, most: int = 40) -> list[FakeMember]:
    """Members with any weights and any load, some of them full."""
    members = fleet(*draw(st.lists(weights, min_size=least, max_size=most)))
    for member in members:
        member.in_flight = draw(st.integers(0, 3))
        member.limit = draw(st.sampled_from((2, 1000)))
    return members


def carry(under_test: Balancer, requests: int, in_flight: int) -> list[str]:
    """Picks with `in_flight` exchanges open at any time, the oldest ending first."""
    opened: deque[FakeMember] = deque()
    names = []
    for key in keys(requests):
        member = under_test.pick(key, (), 0.0)
        assert isinstance(member, FakeMember)
        member.in_flight += 1
        names.append(member.name)
        opened.append(member)
        if len(opened) > in_flight:
            opened.popleft().in_flight -= 1
    for member in opened:
        member.in_flight -= 1
    return names


def test_every_kind_that_the_config_knows_has_a_class_and_no_other_has() -> None:
    assert set(kinds.BALANCERS) == set(KINDS)


def test_exactly_the_hashing_kinds_need_a_key() -> None:
    assert set(KEYED) == {"source_hash", "ring_hash", "maglev", "rendezvous"}


@every_kind
def test_nobody_is_picked_from_nobody(kind: str) -> None:
    fresh = kinds.BALANCERS[kind](upstream(kind), random.Random(1))
    assert fresh.pick(1, (), 0.0) is None
    fresh.update(())
    assert fresh.pick(1, (), 0.0) is None


@every_kind
def test_after_the_last_member_left_nobody_is_picked(kind: str) -> None:
    emptied = balancer(kind, fleet(1, 2))
    emptied.update([])
    assert picks(emptied, 3) == ["-"] * 3
    emptied.update(fleet(1))
    assert picks(emptied, 3) == ["a"] * 3


@every_kind
def test_a_single_member_gets_everything(kind: str) -> None:
    alone = fleet(3)
    one = balancer(kind, alone)
    assert picks(one, 10) == ["a"] * 10
    assert picks(one, 3, skip={"a"}) == ["-"] * 3
    alone[0].limit = 0
    assert picks(one, 3) == ["-"] * 3


@every_kind
@settings(max_examples=50)
@given(data=st.data(), members=fleets(), bounded=st.none() | st.floats(1, 3), seed=st.integers(0, 99))
def test_a_pick_is_never_skipped_and_never_full_and_there_is_one_if_anybody_is_left(
    kind: str, data: st.DataObject, members: list[FakeMember], bounded: float | None, seed: int
) -> None:
    under_test = balancer(kind, members, seed, bounded_load=bounded, table_size=251)
    for key in keys(12, seed):
        skip = data.draw(st.sets(st.sampled_from([member.name for member in members]))) if members else set()
        open_to_all = {member.name for member in members if member.name not in skip and not member.full()}
        picked = under_test.pick(key, skip, 5.0)
        if picked is None:
            assert not open_to_all
        else:
            assert picked.name in open_to_all
            data.draw(st.sampled_from(members)).in_flight += 1


@every_kind
def test_skip_may_be_any_container(kind: str) -> None:
    for skip in (["a"], ("a",), {"a"}, {"a": 1}, frozenset("a")):
        assert picks(balancer(kind, fleet(1, 1)), 5, skip) == ["b"] * 5


@every_kind
@settings(max_examples=50)
@given(members=fleets(least=1), seed=st.integers(0, 99))
def test_equal_seeds_give_equal_picks(kind: str, members: list[FakeMember], seed: int) -> None:
    assert picks(balancer(kind, members, seed), 20) == picks(balancer(kind, members, seed), 20)


@every_kind
@settings(max_examples=50)
@given(members=fleets(least=1), before=st.integers(0, 20))
def test_an_update_that_changes_nothing_changes_no_later_pick(
    kind: str, members: list[FakeMember], before: int
) -> None:
    told_once, told_twice = balancer(kind, members), balancer(kind, members)
    picks(told_once, before), picks(told_twice, before)
    told_twice.update(members)
    assert picks(told_once, 20) == picks(told_twice, 20)


@every_kind
@settings(max_examples=50)
@given(members=fleets(least=1))
def test_picks_are_the_objects_of_the_last_update(kind: str, members: list[FakeMember]) -> None:
    renewed = balancer(kind, members)
    twins = [attrs.evolve(member) for member in members]
    renewed.update(twins)
    for key in keys(10):
        picked = renewed.pick(key, (), 0.0)
        assert picked is None or any(picked is twin for twin in twins)


@every_kind
def test_who_left_is_not_picked_and_who_came_is(kind: str) -> None:
    members = fleet(2, 1, 3)
    changing = balancer(kind, members)
    carry(changing, 5, in_flight=9)
    changing.update(members[1:])
    assert "a" not in carry(changing, 50, in_flight=9)
    changing.update([FakeMember("new", 2.0), *members[1:]])
    assert "new" in carry(changing, 50, in_flight=9)


@every_kind
def test_a_thousand_members_are_no_trouble(kind: str) -> None:
    members = fleet(*(1 + i % 5 for i in range(1000)))
    large = balancer(kind, members, table_size=10007)
    for member in members[:990]:
        member.limit = 0
    assert set(picks(large, 40)) <= {member.name for member in members[990:]}
    members[995].limit = 0
    skip = {member.name for member in members[996:]}
    assert set(picks(large, 40, skip)) <= {member.name for member in members[990:995]}


@pytest.mark.parametrize("kind", WEIGHTED)
def test_traffic_under_load_goes_by_weight(kind: str) -> None:
    loaded = balancer(kind, fleet(5, 3, 2), table_size=1009, ring_points=160)
    got = shares(carry(loaded, 4000, in_flight=60))
    # A ring with 160 points per weight is off by up to a tenth; the others are much closer.
    assert got == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.05 if kind == "ring_hash" else 0.025)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_weight_changed_live_counts_from_the_update_on(kind: str) -> None:
    members = fleet(1, 1, 1)
    live = balancer(kind, members, ring_points=160)
    carry(live, 500, in_flight=60)
    members[0].weight = 8.0
    live.update(members)
    got = shares(carry(live, 4000, in_flight=60))
    assert got == pytest.approx({"a": 0.8, "b": 0.1, "c": 0.1}, abs=0.05 if kind == "ring_hash" else 0.025)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in KEYED])
def test_the_key_does_not_matter_to_kinds_without_one(kind: str) -> None:
    members = fleet(3, 2, 1)
    assert picks(balancer(kind, members), [0] * 30) == picks(balancer(kind, members), 30)


@keyed_kinds
@settings(max_examples=50)
@given(members=fleets(least=1), key=st.integers(0, 2**64 - 1), order=st.randoms(use_true_random=False))
def test_a_key_stays_with_its_member_whatever_the_order_of_the_config(
    kind: str, members: list[FakeMember], key: int, order: random.Random
) -> None:
    for member in members:
        member.limit = 1000
    shuffled = list(members)
    order.shuffle(shuffled)
    assert len(set(picks(balancer(kind, members, seed=1), [key] * 3))) == 1
    assert picks(balancer(kind, members, seed=1), [key]) == picks(balancer(kind, shuffled, seed=2), [key])


@keyed_kinds
@settings(max_examples=25)
@given(members=fleets(least=2, most=12), gone=st.integers(0, 11))
def test_while_a_member_is_out_only_its_keys_go_elsewhere(kind: str, members: list[FakeMember], gone: int) -> None:
    for member in members:
        member.in_flight, member.limit = 0, 1000
    under_test = balancer(kind, members)
    out = members[gone % len(members)]
    before = picks(under_test, 100)
    during = picks(under_test, 100, skip={out.name})
    assert all(was == now for was, now in zip(before, during, strict=True) if was != out.name)
    assert out.name not in during
    assert picks(under_test, 100) == before


@keyed_kinds
def test_the_keys_of_a_member_that_is_out_spread_over_all_others(kind: str) -> None:
    under_test = balancer(kind, fleet(*[1] * 6), ring_points=160)
    moved = [
        now for was, now in zip(picks(under_test, 3000), picks(under_test, 3000, {"a"}), strict=True) if was == "a"
    ]
    assert {name: round(share, 1) for name, share in shares(moved).items()} == pytest.approx(
        dict.fromkeys("bcdef", 0.2), abs=0.11
    )


@keyed_kinds
def test_keys_that_are_small_numbers_spread_as_well(kind: str) -> None:
    got = shares(picks(balancer(kind, fleet(1, 1, 1, 1), ring_points=160), range(2000)))
    assert got == pytest.approx(dict.fromkeys("abcd", 0.25), abs=0.06)


PLACEMENTS = {
    "source_hash": "4511250722525223715744431501514752602117",
    "ring_hash": "5412267147741471450521241344465723402025",
    "maglev": "7462550457715422225022112752420322277754",
    "rendezvous": "4511250722525223715744431501514752602117",
}


@keyed_kinds
def test_keys_are_where_they_have_always_been(kind: str) -> None:
    """Written down once: a release that fails here would move every client of every gateway that is upgraded."""
    members = [FakeMember(f"10.0.0.{i}:8080", float(1 + i % 3)) for i in range(8)]
    placed = balancer(kind, members, table_size=65537, ring_points=160)
    assert "".join(name_of(placed.pick(key, (), 0.0))[7] for key in keys(40)) == PLACEMENTS[kind]
