"""Tiers with graded spill, and panic."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Sequence
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate import kinds
from tcpgate.config.schema import Upstream
from tcpgate.policy.balancers.base import Member
from tcpgate.policy.balancers.round_robin import RoundRobin
from tcpgate.policy.spread import Spread, loads
from tests.policy.fleet import KEYED, KINDS, FakeMember, fleet, keys, name_of, shares, upstream


def spread(
    members: Sequence[FakeMember], usable: Iterable[str], balance: str = "round_robin", **options: object
) -> Spread:
    """A spread over `members`, of whom those named in `usable` can work."""
    spec, rng = upstream(balance, **options), random.Random(3)
    made = Spread(spec, lambda: kinds.BALANCERS[balance](spec, rng), rng)
    made.update(members, set(usable))
    return made


def tiers(*sizes: int) -> list[FakeMember]:
    """Members of several tiers: p0, p1 ... in the first, q0 ... in the second, r0 ... in the third."""
    return [
        FakeMember(f"{'pqr'[tier]}{number}", tier=tier) for tier, size in enumerate(sizes) for number in range(size)
    ]


def names(members: Iterable[Member]) -> set[str]:
    return {member.name for member in members}


def picked(of: Spread, count: int, skip: Container[str] = ()) -> list[str]:
    return [name_of(of.pick(key, skip, 0.0)) for key in keys(count)]


def panicking(of: Spread) -> bool:
    """Asked through a function, because a type checker believes that an attribute stays as it was."""
    return of.panic


def by_tier(of: Spread, count: int) -> dict[str, float]:
    return shares(name[0] for name in picked(of, count))


# -- loads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        # Envoy's documentation, "Priority levels": per cent usable in each tier, and what each gets.
        ((100, 100), (100, 0)),
        ((72, 100), (100, 0)),
        ((71, 100), (99.4, 0.6)),
        ((50, 100), (70, 30)),
        ((25, 100), (35, 65)),
        ((0, 100), (0, 100)),
        ((25, 25), (50, 50)),
        ((50, 0), (100, 0)),
        ((0, 0), (0, 0)),
        ((20, 20, 10), (40, 40, 20)),
        ((20, 40, 100), (28, 56, 16)),
        ((0, 0, 10), (0, 0, 100)),
    ],
)
def test_load_is_given_to_tiers_in_order_of_preference(usable: tuple[int, ...], expected: tuple[float, ...]) -> None:
    members = tiers(*[100] * len(usable))
    spilled = spread(members, (f"{'pqr'[tier]}{n}" for tier, per_cent in enumerate(usable) for n in range(per_cent)))
    assert spilled.shares() == pytest.approx(dict(enumerate(expected)))
    assert not spilled.panic


@given(healths=st.dictionaries(st.integers(0, 15), st.floats(0, 100), max_size=6))
def test_loads_add_up_to_all_or_nothing(healths: dict[int, float]) -> None:
    given_out = loads(healths)
    assert given_out.keys() == healths.keys()
    assert sum(given_out.values()) == pytest.approx(100 if sum(healths.values()) > 0 else 0)
    assert all(load >= 0 for load in given_out.values())


@given(healths=st.dictionaries(st.integers(0, 15), st.floats(0, 100), min_size=1, max_size=6))
def test_a_later_tier_is_used_only_when_all_before_it_are_at_their_health(healths: dict[int, float]) -> None:
    given_out = loads(healths)
    if sum(healths.values()) >= 100:
        for tier in healths:
            if any(given_out[later] > 1e-9 for later in healths if later > tier):
                assert given_out[tier] == pytest.approx(healths[tier])


def test_usable_goes_by_weight() -> None:
    members = [FakeMember("p0", 3), FakeMember("p1", 1), FakeMember("q0", tier=1)]
    assert spread(members, {"p1", "q0"}).shares() == pytest.approx({0: 35, 1: 65})
    assert spread(members, {"p0", "q0"}).shares() == pytest.approx({0: 100, 1: 0})


def test_an_operator_can_ask_for_more_or_less_headroom() -> None:
    members = tiers(4, 1)
    assert spread(members, {"p0", "p1", "q0"}, overprovision=2.0).shares() == pytest.approx({0: 100, 1: 0})
    assert spread(members, {"p0", "p1", "q0"}, overprovision=1.0).shares() == pytest.approx({0: 50, 1: 50})


# -- picks ----------------------------------------------------------------------------------------------------------


def test_a_healthy_first_tier_takes_everything() -> None:
    assert by_tier(spread(tiers(2, 2), {"p0", "p1", "q0", "q1"}), 100) == {"p": 1.0}


@pytest.mark.parametrize("balance", KINDS)
def test_picks_spill_as_the_shares_say(balance: str) -> None:
    spilled = spread(tiers(10, 10), {"p0", "p1", "p2", "p3", "p4", *(f"q{n}" for n in range(10))}, balance)
    assert by_tier(spilled, 6000) == pytest.approx({"p": 0.7, "q": 0.3}, abs=0.02)


@pytest.mark.parametrize("balance", KEYED)
def test_a_key_stays_with_its_tier_and_its_endpoint(balance: str) -> None:
    spilled = spread(tiers(10, 10), {"p0", "p1", "p2", "p3", "p4", *(f"q{n}" for n in range(10))}, balance)
    assert picked(spilled, 300) == picked(spilled, 300)


@pytest.mark.parametrize("balance", KEYED)
def test_the_keys_that_spill_come_from_everywhere(balance: str) -> None:
    """If the tier were drawn by the number that the ring goes by, the backups would see one arc of it only."""
    usable = {"p0", "p1", "p2", "p3", "p4", *(f"q{n}" for n in range(10))}
    spilled = spread(tiers(10, 10), usable, balance, ring_points=3)
    assert set(picked(spilled, 3000)) == usable


def test_only_usable_members_are_picked() -> None:
    assert set(picked(spread(tiers(4), {"p1", "p3"}), 20)) == {"p1", "p3"}


def test_a_member_of_weight_zero_takes_nothing_and_counts_for_nothing() -> None:
    members = [FakeMember("p0", 0), FakeMember("p1", 1), FakeMember("q0", tier=1)]
    drained = spread(members, {"p0", "p1", "q0"})
    assert drained.shares() == pytest.approx({0: 100, 1: 0})
    assert set(picked(drained, 10)) == {"p1"}


def test_if_its_tier_has_nobody_left_the_next_ones_are_asked_then_those_before() -> None:
    members = tiers(2, 2, 2)
    everybody = spread(members, names(members))
    assert set(picked(everybody, 20, skip={"p0", "p1"})) == {"q0", "q1"}
    for member in members[2:4]:
        member.limit = 0
    assert set(picked(everybody, 20, skip={"p0", "p1"})) == {"r0", "r1"}
    spilled = spread(members, {"p0", "q0", "q1", "r0"})  # p takes 70, q the rest
    assert set(picked(spilled, 60, skip={"r0"})) == {"p0"}
    assert set(picked(spilled, 20, skip={"p0", "r0"})) == {"-"}


def test_the_order_of_tiers_does_not_depend_on_the_order_of_the_config() -> None:
    members = tiers(1, 1, 1)
    for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1)):
        shuffled = spread([members[tier] for tier in order], names(members))
        assert picked(shuffled, 1) == ["p0"]
        assert picked(shuffled, 1, skip={"p0"}) == ["q0"]
        assert picked(shuffled, 1, skip={"p0", "q0"}) == ["r0"]


def test_a_retry_never_gets_an_endpoint_that_was_tried() -> None:
    members = tiers(3, 1)
    everybody = spread(members, names(members))
    tried: set[str] = set()
    for _ in range(4):
        name = name_of(everybody.pick(0, tried, 0.0))
        assert name not in tried
        tried.add(name)
    assert tried == {"p0", "p1", "p2", "q0"}
    assert everybody.pick(0, tried, 0.0) is None


def test_with_one_tier_and_everybody_tried_there_is_nobody() -> None:
    members = tiers(2)
    assert picked(spread(members, names(members)), 2, skip={"p0", "p1"}) == ["-", "-"]


def test_nobody_at_all_is_no_panic() -> None:
    nobody = spread([], (), panic_below=50)
    assert nobody.pick(0, (), 0.0) is None
    assert nobody.shares() == {}
    assert not nobody.panic


# -- panic ----------------------------------------------------------------------------------------------------------


def test_in_panic_everybody_is_picked_usable_or_not_whatever_the_tier() -> None:
    members = tiers(4, 2)
    anybody = spread(members, {"p0", "q0"}, panic_below=50)
    assert anybody.panic
    assert set(picked(anybody, 60)) == names(members)
    assert anybody.shares() == pytest.approx({0: 400 / 6, 1: 200 / 6})
    assert by_tier(anybody, 60) == pytest.approx({"p": 4 / 6, "q": 2 / 6})


def test_in_panic_an_endpoint_that_was_tried_is_still_not_picked_again() -> None:
    anybody = spread(tiers(3), (), panic_below=50)
    assert set(picked(anybody, 20, skip={"p0"})) == {"p1", "p2"}


def test_panic_may_also_mean_to_fail_fast() -> None:
    failing = spread(tiers(4, 2), {"p0", "q0"}, panic_below=50, panic="fail")
    assert failing.panic
    assert picked(failing, 5) == ["-"] * 5
    assert failing.shares() == {0: 0.0, 1: 0.0}


def test_panic_begins_below_the_threshold_and_not_at_it() -> None:
    members = tiers(10)
    assert not spread(members, (f"p{n}" for n in range(5)), panic_below=50).panic
    assert spread(members, (f"p{n}" for n in range(4)), panic_below=50).panic


def test_without_a_threshold_there_is_never_panic() -> None:
    all_down = spread(tiers(4), ())
    assert not all_down.panic
    assert picked(all_down, 3) == ["-"] * 3
    assert all_down.shares() == {0: 0.0}


def test_panic_ends_when_enough_are_usable_again() -> None:
    members = tiers(4, 2)
    recovering = spread(members, {"p0"}, panic_below=50)
    assert panicking(recovering)
    recovering.update(members, {"p0", "p1", "p2"})
    assert not panicking(recovering)
    assert set(picked(recovering, 20)) == {"p0", "p1", "p2"}
    recovering.update(members, ())
    assert panicking(recovering)
    assert set(picked(recovering, 60)) == names(members)


# -- updates --------------------------------------------------------------------------------------------------------


class Told(RoundRobin):
    """A round robin that notes what it is told."""

    updates: ClassVar[list[list[str]]] = []

    def update(self, members: Sequence[Member]) -> None:
        self.updates.append([member.name for member in members])
        super().update(members)


@pytest.fixture
def told() -> list[list[str]]:
    Told.updates.clear()
    return Told.updates


def told_spread(spec: Upstream) -> Spread:
    rng = random.Random(1)
    return Spread(spec, lambda: Told(spec, rng, offset=0), rng)


def test_only_a_tier_that_changed_is_told(told: list[list[str]]) -> None:
    members = tiers(2, 2)
    watched = told_spread(upstream())
    watched.update(members, names(members))
    assert told == [["p0", "p1"], ["q0", "q1"]]
    told.clear()
    watched.update(members, names(members))
    assert told == []
    watched.update(members, {"p0", "p1", "q1"})
    assert told == [["q1"]]
    told.clear()
    members[0].weight = 0.5
    watched.update(members, {"p0", "p1", "q1"})
    assert told == [["p0", "p1"]]
    told.clear()
    members[1] = FakeMember("p1")
    watched.update(members, {"p0", "p1", "q1"})
    assert told == [["p0", "p1"]]


def test_a_tier_that_is_gone_is_forgotten_and_begins_anew_when_it_comes_back(told: list[list[str]]) -> None:
    members = tiers(1, 3)
    watched = told_spread(upstream())
    watched.update(members, names(members))
    assert picked(watched, 1, skip={"p0"}) == ["q0"]
    watched.update(members[:1], names(members))
    assert watched.shares() == {0: 100.0}
    assert picked(watched, 2, skip={"p0"}) == ["-", "-"]
    watched.update(members, names(members))
    assert picked(watched, 1, skip={"p0"}) == ["q0"]


def test_the_balancer_goes_on_where_it_was_when_others_change_their_health(told: list[list[str]]) -> None:
    members = tiers(4)
    watched = told_spread(upstream())
    watched.update(members, names(members))
    assert picked(watched, 2) == ["p0", "p1"]
    watched.update(members, {"p0", "p2", "p3"})
    assert picked(watched, 3) == ["p2", "p3", "p0"]


@pytest.mark.parametrize("balance", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_is_usable_a_pick_is_of_them_unless_in_panic(balance: str, data: st.DataObject) -> None:
    members = tiers(*data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    changing = spread([], (), balance, panic_below=data.draw(st.sampled_from((0, 40))), table_size=251)
    for _ in range(3):
        usable = data.draw(st.sets(st.sampled_from(sorted(names(members)))) if members else st.just(set()))
        skip = data.draw(st.sets(st.sampled_from(sorted(names(members)))) if members else st.just(set()))
        for member in members:
            member.weight = data.draw(st.sampled_from((0.0, 0.3, 1.0, 4.0)))
        changing.update(members, usable)
        able = {member.name for member in members if member.weight and (changing.panic or member.name in usable)}
        assert changing.panic or sum(changing.shares().values()) == pytest.approx(100 if able else 0)
        for name in picked(changing, 4, skip):
            assert name in able - skip if able - skip else name == "-"


def test_first_fills_the_first_tier_before_the_second() -> None:
    members = [*fleet(1, 1, tier=1, prefix="late-"), *fleet(1, 1, prefix="early-")]
    for member in members:
        member.limit = 1
    packed = spread(members, names(members), "first")
    got = []
    for _ in range(4):
        taken = packed.pick(0, (), 0.0)
        assert isinstance(taken, FakeMember)
        taken.in_flight += 1
        got.append(taken.name)
    assert got == ["early-a", "early-b", "late-a", "late-b"]
