"""Those that look at the load, and the drawing of members: `least_connections`, `random`, `p2c`, `peak_ewma`."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tcpgate.policy.draw import NOBODY, Wheel
from tests.policy.fleet import FakeMember, balancer, fleet, name_of, picks, shares

weights = st.floats(0.01, 256) | st.integers(1, 256).map(float)
loads = st.integers(0, 50)
LARGEST = 1 - 2.0**-53
"""The largest that `random()` returns."""


class Fixed(random.Random):
    """Always the same number, for the edges that chance never finds."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self.number = number

    def random(self) -> float:
        return self.number


def loaded(in_flight: list[int], by_weight: list[float] | None = None) -> list[FakeMember]:
    members = fleet(*(by_weight or [1] * len(in_flight)))
    for member, count in zip(members, in_flight, strict=True):
        member.in_flight = count
    return members


# -- least connections ----------------------------------------------------------------------------------------------


@given(data=st.data(), in_flight=st.lists(loads, min_size=1, max_size=32))
def test_up_to_32_members_the_least_loaded_of_all_is_picked(data: st.DataObject, in_flight: list[int]) -> None:
    count = len(in_flight)
    members = loaded(in_flight, data.draw(st.lists(weights, min_size=count, max_size=count)))
    skip = data.draw(st.sets(st.sampled_from([member.name for member in members]), max_size=count - 1))
    picked = balancer("least_connections", members).pick(0, skip, 0.0)
    assert isinstance(picked, FakeMember)
    left = [member for member in members if member.name not in skip]
    assert (picked.in_flight + 1) / picked.weight == min((m.in_flight + 1) / m.weight for m in left)


def test_the_exchange_about_to_begin_counts() -> None:
    # (3 + 1) / 4 is less than (1 + 1) / 1, and (0 + 1) / 4 less than (0 + 1) / 1.
    assert picks(balancer("least_connections", loaded([1, 3], [1, 4])), 1) == ["b"]
    assert picks(balancer("least_connections", loaded([0, 0], [1, 4])), 5) == ["b"] * 5


@pytest.mark.parametrize("count", [1, 5, 32, 33, 100])
def test_among_equals_it_goes_round(count: int) -> None:
    counts = Counter(picks(balancer("least_connections", loaded([7] * count)), 3 * count))
    assert set(counts.values()) == {3}
    assert len(counts) == count


def test_the_round_goes_on_where_it_was_when_members_come_and_go() -> None:
    members = fleet(1, 1, 1, 1)
    going = balancer("least_connections", members, seed=3)
    last = picks(going, 1)[0]
    following = members[(("abcd".index(last)) + 1) % 4]
    going.update([FakeMember("new"), *(member for member in members if member.name != last)])
    assert picks(going, 1) == [following.name]


@given(count=st.integers(33, 400), data=st.data())
def test_among_many_an_idle_member_is_soon_seen(count: int, data: st.DataObject) -> None:
    members = loaded([5] * count)
    members[data.draw(st.integers(0, count - 1))].in_flight = 0
    many = balancer("least_connections", members, seed=data.draw(st.integers(0, 50)))
    seen = []
    for _ in range(count // 32 + 32):
        picked = many.pick(0, (), 0.0)
        assert isinstance(picked, FakeMember)
        seen.append(picked.in_flight)
        picked.in_flight += 1
    assert 0 in seen


def test_among_many_a_pick_asks_only_a_few() -> None:
    members = loaded([1] * 1000)
    balancer("least_connections", members).pick(0, (), 0.0)
    assert sum(member.asked for member in members) == 32


# -- drawing --------------------------------------------------------------------------------------------------------


@given(
    by_weight=st.lists(weights, min_size=2, max_size=40),
    number=st.sampled_from((0.0, LARGEST)) | st.floats(0, LARGEST),
    data=st.data(),
)
def test_the_second_draw_is_never_the_first(by_weight: list[float], number: float, data: st.DataObject) -> None:
    wheel = Wheel.of(fleet(*by_weight))
    first = wheel.draw(Fixed(data.draw(st.sampled_from((0.0, LARGEST)))), ())
    second = wheel.draw(Fixed(number), (), first)
    assert 0 <= second < len(by_weight)
    assert second != first


@given(by_weight=st.lists(weights, min_size=1, max_size=40), number=st.floats(0, LARGEST))
def test_a_draw_hits_the_piece_that_the_point_is_on(by_weight: list[float], number: float) -> None:
    place = Wheel.of(fleet(*by_weight)).draw(Fixed(number), ())
    point = number * sum(by_weight)
    assert sum(by_weight[:place]) <= point + 1e-6
    assert point - 1e-6 <= sum(by_weight[: place + 1])


@given(count=st.integers(2, 40), data=st.data(), seed=st.integers(0, 99))
def test_nor_is_it_if_all_but_those_two_are_out(count: int, data: st.DataObject, seed: int) -> None:
    members = fleet(*[1] * count)
    two = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    skip = {member.name for place, member in enumerate(members) if place not in two}
    assert Wheel.of(members).draw(random.Random(seed), skip, two[0]) == two[1]


def test_there_is_no_second_of_one() -> None:
    wheel = Wheel.of(fleet(1))
    assert wheel.draw(random.Random(1), ()) == 0
    assert wheel.draw(random.Random(1), (), 0) == NOBODY
    assert Wheel.of(()).draw(random.Random(1), ()) == NOBODY


def test_second_draws_are_by_weight_among_the_others() -> None:
    wheel, rng = Wheel.of(fleet(6, 1, 2, 3)), random.Random(11)
    drawn = shares(str(wheel.draw(rng, (), 0)) for _ in range(12000))
    assert drawn == pytest.approx({"1": 1 / 6, "2": 2 / 6, "3": 3 / 6}, abs=0.015)
    drawn = shares(str(wheel.draw(rng, (), 2)) for _ in range(12000))
    assert drawn == pytest.approx({"0": 0.6, "1": 0.1, "3": 0.3}, abs=0.015)


def test_the_odds_among_the_others_stay_right_while_some_are_out() -> None:
    members = fleet(20, 1, 20, 3, 20, 2)
    members[0].limit = members[2].limit = members[4].limit = 0
    got = shares(picks(balancer("random", members), 12000))
    assert got == pytest.approx({"b": 1 / 6, "d": 3 / 6, "f": 2 / 6}, abs=0.015)


def test_random_picks_by_weight() -> None:
    got = shares(picks(balancer("random", fleet(5, 3, 2)), 12000))
    assert got == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.015)


# -- p2c ------------------------------------------------------------------------------------------------------------


@given(in_flight=st.lists(loads, min_size=2, max_size=2), by_weight=st.lists(weights, min_size=2, max_size=2))
def test_of_two_members_p2c_takes_the_less_loaded_always(in_flight: list[int], by_weight: list[float]) -> None:
    """With replacement it would look at one of them twice, and take the worse, a quarter of the time."""
    per_weight = [count / weight for count, weight in zip(in_flight, by_weight, strict=True)]
    assume(per_weight[0] != per_weight[1])
    better = "ab"[per_weight[1] < per_weight[0]]
    assert picks(balancer("p2c", loaded(in_flight, by_weight)), 20) == [better] * 20


def test_p2c_compares_every_pair_equally_often() -> None:
    # With loads 0 to 3, member i wins exactly the pairs with a more loaded one: 3, 2, 1 and 0 of 6.
    got = shares(picks(balancer("p2c", loaded([0, 1, 2, 3])), 12000))
    assert got == pytest.approx({"a": 3 / 6, "b": 2 / 6, "c": 1 / 6}, abs=0.015)


def test_p2c_shares_an_idle_upstream_by_weight() -> None:
    got = shares(picks(balancer("p2c", fleet(5, 1, 1, 3)), 12000))
    assert got == pytest.approx({"a": 0.5, "b": 0.1, "c": 0.1, "d": 0.3}, abs=0.015)


def fullest(kind: str, seed: int) -> int:
    members = fleet(*[1] * 1000)
    thrown = balancer(kind, members, seed)
    for _ in members:
        picked = thrown.pick(0, (), 0.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
    return max(member.in_flight for member in members)


def test_two_choices_keep_the_fullest_member_low() -> None:
    """1000 balls into 1000 bins: about ln n / ln ln n for one choice, ln ln n / ln 2 + O(1) for two."""
    assert [fullest("p2c", seed) for seed in range(3)] == [3] * 3
    assert min(fullest("random", seed) for seed in range(3)) >= 5


# -- peak ewma ------------------------------------------------------------------------------------------------------


def timed(*milliseconds: float) -> list[FakeMember]:
    """Members that have just answered in so many milliseconds, at time 0."""
    members = fleet(*[1] * len(milliseconds))
    for member, ms in zip(members, milliseconds, strict=True):
        member.latency.observe(ms / 1000, 0.0)
    return members


@given(
    milliseconds=st.lists(st.floats(0.1, 1000), min_size=2, max_size=2),
    in_flight=st.lists(loads, min_size=2, max_size=2),
    later=st.floats(0, 20),
)
def test_of_two_members_the_cheaper_is_taken(milliseconds: list[float], in_flight: list[int], later: float) -> None:
    members = timed(*milliseconds)
    for member, count in zip(members, in_flight, strict=True):
        member.in_flight = count
    costs = [member.latency.value(later) * (member.in_flight + 1) for member in members]
    assume(abs(costs[0] - costs[1]) > 1e-9)
    under_test = balancer("peak_ewma", members)
    assert {name_of(under_test.pick(0, (), later)) for _ in range(10)} == {"ab"[costs[1] < costs[0]]}


def test_weights_count_in_relation_to_each_other_only() -> None:
    members = timed(10, 11)
    members[0].in_flight, members[1].in_flight = 30, 10
    for scale in (1.0, 50.0):
        members[0].weight, members[1].weight = 3 * scale, scale
        under_test = balancer("peak_ewma", members)
        # Each has ten in flight for its share, so the faster one is cheaper, though it has 30.
        assert picks(under_test, 5) == ["a"] * 5
        members[0].in_flight = 39
        assert picks(under_test, 5) == ["b"] * 5
        members[0].in_flight = 30


def test_with_equal_latencies_an_idle_upstream_is_shared_by_weight() -> None:
    got = shares(picks(balancer("peak_ewma", fleet(6, 2, 2)), 12000))
    assert got == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2}, abs=0.015)


class Traffic:
    """Requests one after the other over members that answer in `seconds`, or fail at once (0)."""

    def __init__(self, seconds: dict[str, float], seed: int = 1) -> None:
        self.seconds = seconds
        self.members = [FakeMember(name) for name in seconds]
        self.under_test = balancer("peak_ewma", self.members, seed)
        self.now = 0.0

    def run(self, requests: int, per_second: float = 50.0) -> Counter[str]:
        counts: Counter[str] = Counter()
        for _ in range(requests):
            self.now += 1 / per_second
            picked = self.under_test.pick(0, (), self.now)
            assert picked is not None
            counts[picked.name] += 1
            if self.seconds[picked.name]:
                picked.latency.observe(self.seconds[picked.name], self.now)
            else:
                picked.latency.fail(self.now)
        return counts


def test_the_faster_members_get_more() -> None:
    counts = Traffic({"fast": 0.005, "also": 0.005, "slow": 0.100}).run(1000)
    assert counts["slow"] < 0.1 * 1000
    assert counts["fast"] > 300
    assert counts["also"] > 300


def test_a_member_that_stalls_loses_at_once_and_is_tried_again_later() -> None:
    traffic = Traffic({"steady": 0.010, "other": 0.010, "stalls": 0.010})
    traffic.run(300)
    traffic.seconds["stalls"] = 2.0
    assert traffic.run(300)["stalls"] <= 2
    traffic.seconds["stalls"] = 0.010
    traffic.run(3000)  # a minute, in which two seconds fade to ten milliseconds
    assert traffic.run(6000)["stalls"] > 600


def test_a_member_that_fails_fast_does_not_look_fast() -> None:
    traffic = Traffic({"steady": 0.010, "other": 0.010, "refuses": 0.0})
    assert traffic.run(2000)["refuses"] <= 3
    traffic.seconds["refuses"] = 0.010
    assert traffic.run(8000)["refuses"] > 800


@pytest.mark.parametrize("others", [0.001, 0.200])
def test_a_new_member_neither_wins_nor_loses_for_ever(others: float) -> None:
    """Its unknown 10 ms are slow among some and fast among others; either way it soon has answers of its own."""
    traffic = Traffic({"old": others, "older": others})
    traffic.run(500)
    newcomer = FakeMember("new")
    traffic.members.append(newcomer)
    traffic.seconds["new"] = others
    traffic.under_test.update(traffic.members)
    first = traffic.run(100)
    assert first["new"] < 90
    later = traffic.run(3000)
    assert 600 < later["new"] < 1400


@settings(max_examples=30)
@given(seed=st.integers(0, 99))
def test_after_hours_without_traffic_what_is_in_flight_still_counts(seed: int) -> None:
    members = timed(5, 20, 80)
    burst = balancer("peak_ewma", members, seed)
    for _ in range(300):
        picked = burst.pick(0, (), 50_000.0)
        assert isinstance(picked, FakeMember)
        picked.in_flight += 1
    assert max(member.in_flight for member in members) <= 110
