"""Those that go round: `round_robin`, `weighted_round_robin`, `first`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.policy.balancers.base import Balancer, Member
from tcpgate.policy.balancers.round_robin import RoundRobin
from tcpgate.policy.balancers.weighted_round_robin import WeightedRoundRobin
from tests.policy.fleet import FakeMember, balancer, fleet, name_of, picks, shares, upstream

whole_weights = st.integers(1, 12)


def from_the_start(kind: type[RoundRobin | WeightedRoundRobin], members: Sequence[Member]) -> Balancer:
    """A balancer without a random start."""
    made = kind(upstream(), random.Random(1), offset=0)
    made.update(members)
    return made


# -- round robin ----------------------------------------------------------------------------------------------------


def test_round_robin_takes_each_in_turn() -> None:
    assert "".join(picks(from_the_start(RoundRobin, fleet(1, 1, 1)), 7)) == "abcabca"


def test_round_robin_does_not_look_at_weights() -> None:
    assert "".join(picks(from_the_start(RoundRobin, fleet(9, 1, 1)), 6)) == "abcabc"


@pytest.mark.parametrize("kind", ["round_robin", "weighted_round_robin", "least_connections"])
def test_workers_start_at_different_members(kind: str) -> None:
    first = Counter(picks(balancer(kind, fleet(1, 1, 1, 1), seed), 1)[0] for seed in range(400))
    assert all(70 <= first[name] <= 130 for name in "abcd")


def test_weighted_workers_start_anywhere_in_the_cycle() -> None:
    first = shares(picks(balancer("weighted_round_robin", fleet(5, 1, 1), seed), 1)[0] for seed in range(700))
    assert first == pytest.approx({"a": 5 / 7, "b": 1 / 7, "c": 1 / 7}, abs=0.04)


@given(count=st.integers(1, 50), rounds=st.integers(1, 4), seed=st.integers(0, 99))
def test_round_robin_gives_each_the_same_in_every_round(count: int, rounds: int, seed: int) -> None:
    members = fleet(*[1] * count)
    counts = Counter(picks(balancer("round_robin", members, seed), count * rounds))
    assert counts == {member.name: rounds for member in members}


def test_the_neighbour_of_a_full_member_does_not_get_its_share_as_well() -> None:
    members = fleet(1, 1, 1)
    members[0].limit = 0
    assert "".join(picks(from_the_start(RoundRobin, members), 6)) == "bcbcbc"


def test_the_turn_stays_with_whoever_has_it_when_others_come_and_go() -> None:
    members = fleet(1, 1, 1, 1)
    going = from_the_start(RoundRobin, members)
    picks(going, 2)  # c is next
    going.update([FakeMember("new"), *members])
    assert picks(going, 1) == ["c"]
    going.update(members[1:])
    assert picks(going, 1) == ["d"]


def test_the_turn_of_a_member_that_left_goes_to_the_next_one() -> None:
    members = fleet(1, 1, 1, 1)
    going = from_the_start(RoundRobin, members)
    picks(going, 2)  # c is next
    going.update([members[0], members[1], members[3]])
    assert "".join(picks(going, 3)) == "dab"


def test_an_offset_beyond_the_end_comes_round() -> None:
    going = RoundRobin(upstream(), random.Random(1), offset=5)
    going.update(fleet(1, 1, 1))
    assert "".join(picks(going, 3)) == "cab"


# -- weighted round robin: the sequence -----------------------------------------------------------------------------


def nginx(weights: Sequence[int], count: int) -> list[int]:
    """The first `count` picks of nginx's smooth weighted round robin, as its changeset tells it."""
    current = [0] * len(weights)
    chosen = []
    for _ in range(count):
        current = [has + weight for has, weight in zip(current, weights, strict=True)]
        best = max(range(len(weights)), key=lambda i: (current[i], -i))
        current[best] -= sum(weights)
        chosen.append(best)
    return chosen


def test_weights_five_one_one_give_a_a_b_a_c_a_a() -> None:
    smooth = from_the_start(WeightedRoundRobin, fleet(5, 1, 1))
    assert "".join(picks(smooth, 14)) == "aabacaa" * 2


def test_an_offset_leaves_out_the_first_picks_of_the_cycle() -> None:
    smooth = WeightedRoundRobin(upstream(), random.Random(1), offset=3)
    smooth.update(fleet(5, 1, 1))
    assert "".join(picks(smooth, 7)) == "acaaaab"


@given(weights=st.lists(whole_weights, min_size=1, max_size=32))
def test_up_to_32_members_every_pick_is_nginxs(weights: list[int]) -> None:
    members = fleet(*weights)
    expected = nginx(weights, 2 * sum(weights))
    assert picks(from_the_start(WeightedRoundRobin, members), len(expected)) == [members[i].name for i in expected]


@given(weights=st.lists(whole_weights, min_size=2, max_size=8), data=st.data())
def test_while_members_are_out_for_long_the_others_share_exactly_by_weight(
    weights: list[int], data: st.DataObject
) -> None:
    members = fleet(*weights)
    out = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1, max_size=len(weights) - 1))
    skip = {members[i].name for i in out}
    left = [weight for i, weight in enumerate(weights) if i not in out]
    smooth = from_the_start(WeightedRoundRobin, members)
    picks(smooth, 4 * sum(weights) * len(weights), skip)
    counts = Counter(picks(smooth, 3 * sum(left), skip))
    assert counts == {
        member.name: 3 * w for i, (member, w) in enumerate(zip(members, weights, strict=True)) if i not in out
    }


@given(weights=st.lists(whole_weights, min_size=1, max_size=60), seed=st.integers(0, 99), skew=st.integers(0, 30))
def test_over_any_sum_of_weights_picks_each_is_picked_weight_times(weights: list[int], seed: int, skew: int) -> None:
    members = fleet(*weights)
    rotation = balancer("weighted_round_robin", members, seed)
    picks(rotation, skew)
    for _ in range(2):
        counts = Counter(picks(rotation, sum(weights)))
        assert counts == {member.name: weight for member, weight in zip(members, weights, strict=True)}


@given(weights=st.lists(whole_weights, min_size=1, max_size=60), seed=st.integers(0, 99))
def test_nobody_waits_much_longer_than_its_weight_says(weights: list[int], seed: int) -> None:
    members = fleet(*weights)
    total = sum(weights)
    names = picks(balancer("weighted_round_robin", members, seed), 3 * total)
    for member, weight in zip(members, weights, strict=True):
        turns = [at for at, name in enumerate(names) if name == member.name]
        longest = max(after - before for before, after in pairwise(turns))
        bound = 2 * total / weight if len(weights) <= 32 else total / weight + len(weights)
        assert longest <= bound + 1


@given(weights=st.lists(st.floats(0.01, 256), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_fractional_weights_are_kept_to_within_a_pick_or_two(weights: list[float], seed: int) -> None:
    members = fleet(*weights)
    counts = Counter(picks(balancer("weighted_round_robin", members, seed), 400))
    for member in members:
        share = member.weight / sum(weights)
        # By deadlines, each member may be one turn off the clock, and all of them together move the clock.
        bound = 2 if len(weights) <= 32 else 1 + share * len(weights)
        assert abs(counts[member.name] - 400 * share) <= bound


# -- weighted round robin: what changes while it runs ---------------------------------------------------------------


def owed_after(
    rotation: Balancer, members: Sequence[FakeMember], steps: int, change: st.DataObject
) -> dict[str, float]:
    """How far each is from what the weights of each moment would have given it, after weights changed all the time."""
    owed = dict.fromkeys((member.name for member in members), 0.0)
    for _ in range(steps):
        members[change.draw(st.integers(0, len(members) - 1))].weight = float(change.draw(whole_weights))
        rotation.update(members)
        for _ in range(change.draw(st.integers(1, 3))):
            total = sum(member.weight for member in members)
            for member in members:
                owed[member.name] += member.weight / total
            owed[name_of(rotation.pick(0, (), 0.0))] -= 1
    return owed


@pytest.mark.parametrize("count", [3, 34])
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 99))
def test_weights_that_change_all_the_time_start_no_burst(count: int, data: st.DataObject, seed: int) -> None:
    members = fleet(*[1] * count)
    rotation = balancer("weighted_round_robin", members, seed)
    owed = owed_after(rotation, members, 40, data)
    assert max(map(abs, owed.values())) < 2.5


def test_the_heaviest_does_not_win_each_time_another_weight_changes() -> None:
    members = fleet(5, 1, 1)
    rotation = from_the_start(WeightedRoundRobin, members)
    names = []
    for step in range(350):
        members[1].weight = 1.0 + 0.01 * (step % 2)
        rotation.update(members)
        names += picks(rotation, 2)
    assert shares(names) == pytest.approx({"a": 5 / 7, "b": 1 / 7, "c": 1 / 7}, abs=0.01)


@pytest.mark.parametrize("count", [4, 40])
def test_a_member_that_joins_gets_its_share_and_no_more(count: int) -> None:
    members = fleet(*[1] * count)
    rotation = balancer("weighted_round_robin", members)
    picks(rotation, 1000)
    members.append(FakeMember("new"))
    rotation.update(members)
    turns = [at for at, name in enumerate(picks(rotation, 4 * (count + 1))) if name == "new"]
    assert len(turns) == 4
    assert turns[0] <= count
    assert all(after - before <= 2 * count for before, after in pairwise(turns))


def test_members_that_leave_just_after_their_turn_leave_no_debt_behind() -> None:
    """Each was ahead of its time; were that kept by those who stay, newcomers would wait for them to catch up."""
    members = fleet(*[1] * 32)
    rotation = from_the_start(WeightedRoundRobin, members)
    while len(members) > 2:
        served = picks(rotation, 1)
        members = [member for member in members if member.name not in served]
        rotation.update(members)
    members += fleet(*[1] * 6, prefix="new-")
    rotation.update(members)
    assert sorted(picks(rotation, 8)) == sorted(member.name for member in members)


@pytest.mark.parametrize("count", [3, 40])
def test_a_member_that_was_full_for_long_is_owed_no_more_than_a_turn_or_two(count: int) -> None:
    members = fleet(4, *[2] * (count - 1))
    rotation = balancer("weighted_round_robin", members)
    members[0].limit = 0
    assert "a" not in picks(rotation, 5000)
    members[0].limit = 1000
    cycle = 4 + 2 * (count - 1)
    assert 4 <= picks(rotation, cycle).count("a") <= 6
    assert 3 <= picks(rotation, cycle).count("a") <= 5


@pytest.mark.parametrize("count", [3, 40])
def test_a_moment_when_all_are_full_costs_nobody_its_turn(count: int) -> None:
    members = fleet(*range(1, count + 1))
    undisturbed, disturbed = (balancer("weighted_round_robin", members) for _ in range(2))
    expected = picks(undisturbed, 100)
    got = picks(disturbed, 50)
    for member in members:
        member.limit = 0
    assert picks(disturbed, 10) == ["-"] * 10
    for member in members:
        member.limit = 1000
    assert got + picks(disturbed, 50) == expected


def test_growing_past_32_members_and_back_starts_no_burst() -> None:
    members = fleet(6, *[1] * 31)
    grown = [*members, FakeMember("new")]
    rotation = balancer("weighted_round_robin", members)
    names = []
    for step in range(200):
        rotation.update(grown if step % 2 else members)
        names += picks(rotation, 3)
    got = shares(names)
    assert got["a"] == pytest.approx(6 / 37.5, abs=0.02)
    assert max(share for name, share in got.items() if name != "a") < 1.6 / 37.5


# -- first ----------------------------------------------------------------------------------------------------------


def test_first_fills_one_member_before_it_uses_the_next() -> None:
    members = fleet(1, 1, 1)
    for member in members:
        member.limit = 3
    packed = balancer("first", members)
    names = []
    for _ in range(8):
        picked = packed.pick(0, (), 0.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
        names.append(picked.name)
    assert "".join(names) == "aaabbbcc"
    members[0].in_flight -= 1
    assert picks(packed, 1) == ["a"]


def test_first_keeps_the_order_of_the_config() -> None:
    members = fleet(1, 1, 1)
    assert picks(balancer("first", members[::-1]), 2) == ["c", "c"]
