"""The keyed ones: `source_hash`, `rendezvous`, `ring_hash`, `maglev`, and the numbers that they stand on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.policy.balancers import maglev, ring_hash
from tcpgate.policy.balancers.rendezvous import Rendezvous
from tcpgate.policy.hashing import MASK, hash64, mix64, unit
from tcpgate.policy.hrw import REMEMBERED, Lots
from tests.policy.fleet import KEYED, FakeMember, balancer, fleet, keys, picks, shares

keyed_kinds = pytest.mark.parametrize("kind", KEYED)
consistent_kinds = pytest.mark.parametrize("kind", [kind for kind in KEYED if kind != "maglev"])
numbers = st.integers(0, MASK)
weights = st.floats(0.1, 20) | st.integers(1, 20).map(float)


def moves(before: Sequence[str], after: Sequence[str]) -> Counter[tuple[str, str]]:
    """How many keys went from whom to whom."""
    return Counter((was, now) for was, now in zip(before, after, strict=True) if was != now)


# -- numbers --------------------------------------------------------------------------------------------------------


def test_hash64_is_blake2b_read_from_its_low_end() -> None:
    # RFC 7693's function with 8 bytes of digest, as `printf 192.0.2.1 | b2sum -l 64` prints it.
    assert hash64(b"192.0.2.1").to_bytes(8, "little").hex() == "c874face288b2811"


def test_mix64_is_splitmix64() -> None:
    # The first two outputs of the reference generator seeded with 0.
    assert mix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert mix64(2 * 0x9E3779B97F4A7C15 & MASK) == 0x6E789E6AA1B965F4


@given(number=numbers, bit=st.integers(0, 63))
def test_one_bit_more_changes_about_half_the_bits(number: int, bit: int) -> None:
    assert 10 <= (mix64(number) ^ mix64(number ^ (1 << bit))).bit_count() <= 54


@given(number=st.sampled_from((0, MASK)) | numbers)
def test_a_unit_is_never_zero_and_never_one(number: int) -> None:
    assert 0 < unit(number) < 1


# -- rendezvous -----------------------------------------------------------------------------------------------------


@given(by_weight=st.lists(weights, min_size=1, max_size=12), key=numbers)
def test_the_winner_is_first_in_the_order(by_weight: list[float], key: int) -> None:
    lots = Lots([f"m{i}" for i in range(len(by_weight))], by_weight)
    order = lots.order(key)
    assert order[0] == lots.winner(key) == lots.winner(key)
    assert sorted(order) == list(range(len(by_weight)))


@given(by_weight=st.lists(weights, min_size=2, max_size=12), key=numbers, data=st.data())
def test_an_order_without_a_member_is_the_order_less_that_member(
    by_weight: list[float], key: int, data: st.DataObject
) -> None:
    names = [f"m{i}" for i in range(len(by_weight))]
    gone = data.draw(st.integers(0, len(names) - 1))
    order = [names[place] for place in Lots(names, by_weight).order(key) if place != gone]
    left = names[:gone] + names[gone + 1 :]
    assert [left[place] for place in Lots(left, by_weight[:gone] + by_weight[gone + 1 :]).order(key)] == order


def test_keys_that_were_forgotten_still_have_the_same_winner() -> None:
    lots, asked = Lots(["a", "b", "c"], [1, 2, 3]), keys(3 * REMEMBERED)
    before = [lots.winner(key) for key in asked]
    assert [lots.winner(key) for key in asked] == before
    assert [Lots(["a", "b", "c"], [1, 2, 3]).winner(key) for key in asked[:100]] == before[:100]


def remembered(lots: Lots) -> set[int]:
    return lots._young.keys() | lots._old.keys()


def test_endless_new_keys_do_not_grow_the_memory() -> None:
    lots = Lots(["a", "b"], [1, 1])
    for key in range(5 * REMEMBERED):
        lots.winner(key)
    assert len(remembered(lots)) <= 2 * REMEMBERED


def test_keys_in_use_are_not_forgotten_by_a_flood_of_new_ones() -> None:
    lots = Lots(["a", "b"], [1, 1])
    lots.winner(MASK)
    for key in range(5 * REMEMBERED):
        lots.winner(key)
        if key % 1000 == 0:
            assert MASK in remembered(lots)
            lots.winner(MASK)
    assert 0 not in remembered(lots)


def test_an_update_with_the_same_weights_keeps_what_is_remembered() -> None:
    members = fleet(1, 2, 3)
    same = balancer("rendezvous", members)
    assert isinstance(same, Rendezvous)
    lots = same._lots
    same.update([FakeMember(member.name, member.weight) for member in members])
    assert same._lots is lots


# -- shares and disruption, for all ---------------------------------------------------------------------------------


@keyed_kinds
def test_keys_are_shared_by_weight(kind: str) -> None:
    got = shares(picks(balancer(kind, fleet(5, 3, 2), table_size=10007, ring_points=160), 10000))
    assert got == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.04 if kind == "ring_hash" else 0.015)


@keyed_kinds
def test_with_equal_weights_keys_are_shared_equally(kind: str) -> None:
    got = shares(picks(balancer(kind, fleet(*[1] * 10), table_size=10007, ring_points=160), 20000))
    assert got == pytest.approx(dict.fromkeys("abcdefghij", 0.1), abs=0.025 if kind == "ring_hash" else 0.008)


@consistent_kinds
@settings(max_examples=30)
@given(by_weight=st.lists(weights, min_size=2, max_size=10), gone=st.integers(0, 9))
def test_if_a_member_goes_exactly_its_keys_move(kind: str, by_weight: list[float], gone: int) -> None:
    members = fleet(*by_weight)
    under_test = balancer(kind, members)
    before = picks(under_test, 200)
    removed = members.pop(gone % len(members)).name
    under_test.update(members)
    after = picks(under_test, 200)
    assert sum(moves(before, after).values()) == before.count(removed)
    assert removed not in after


@consistent_kinds
@settings(max_examples=30)
@given(by_weight=st.lists(weights, min_size=1, max_size=10), new=weights)
def test_if_a_member_comes_keys_move_to_it_only(kind: str, by_weight: list[float], new: float) -> None:
    members = fleet(*by_weight)
    under_test = balancer(kind, members)
    before = picks(under_test, 200)
    under_test.update([FakeMember("new", new), *members])
    assert {now for _, now in moves(before, picks(under_test, 200))} <= {"new"}


@consistent_kinds
@settings(max_examples=30)
@given(by_weight=st.lists(weights, min_size=2, max_size=10), share=st.floats(0.1, 0.99))
def test_less_weight_moves_keys_away_from_that_member_only(kind: str, by_weight: list[float], share: float) -> None:
    """So in slow start a member gets its own keys back, little by little, and no others are disturbed."""
    members = fleet(*by_weight)
    under_test = balancer(kind, members)
    before = picks(under_test, 200)
    members[0].weight *= share
    under_test.update(members)
    assert {was for was, _ in moves(before, picks(under_test, 200))} <= {"a"}


@keyed_kinds
def test_about_one_in_n_keys_moves_when_one_of_n_members_comes_or_goes(kind: str) -> None:
    members = fleet(*[1] * 10)
    under_test = balancer(kind, members, table_size=65537, ring_points=160)
    before = picks(under_test, 5000)
    under_test.update([*members, FakeMember("new")])
    came = sum(moves(before, picks(under_test, 5000)).values()) / 5000
    under_test.update(members[1:])
    went = sum(moves(before, picks(under_test, 5000)).values()) / 5000
    assert 0.06 < came < 0.13
    assert 0.07 < went < 0.13


# -- ring -----------------------------------------------------------------------------------------------------------


def test_a_member_has_160_points_for_each_unit_of_weight() -> None:
    points, owners = ring_hash.lay_points([("a", 1.0), ("b", 3.0), ("c", 0.5)], 160)
    assert Counter(owners) == {0: 160, 1: 480, 2: 80}
    assert points == sorted(points)


def test_even_the_lightest_member_has_a_point() -> None:
    assert Counter(ring_hash.lay_points([("a", 1.0), ("b", 0.001)], 160)[1])[1] == 1


def test_a_lighter_member_has_some_of_the_same_points() -> None:
    assert ring_hash.points_of("a", 13) == ring_hash.points_of("a", 160)[:13]


def test_a_huge_ring_is_laid_with_fewer_points_in_proportion() -> None:
    _, owners = ring_hash.lay_points([("a", 200.0), ("b", 50.0)], 160, most=1000)
    assert Counter(owners) == {0: 800, 1: 200}


def test_a_walk_round_the_ring_ends_even_if_a_member_lost_its_points_to_another() -> None:
    members = tuple(fleet(1, 1, 1))
    ring = ring_hash._Ring(members, [], points=[5, 6, 7], owners=[0, 2, 0], bounds=None)
    assert list(ring.owners_from(1)) == [2, 0]


@settings(max_examples=30)
@given(by_weight=st.lists(weights, min_size=1, max_size=8), key=numbers, data=st.data())
def test_a_key_belongs_to_the_next_point_and_then_to_the_next_of_another_member(
    by_weight: list[float], key: int, data: st.DataObject
) -> None:
    members = sorted(fleet(*by_weight), key=lambda member: member.name)
    points, owners = ring_hash.lay_points([(member.name, member.weight) for member in members], 4)
    at = mix64(key)
    clockwise = sorted(zip(points, owners, strict=True), key=lambda laid: (laid[0] - at - 1) & MASK)
    skip = data.draw(st.sets(st.sampled_from([member.name for member in members]), max_size=len(members) - 1))
    expected = next(members[owner].name for _, owner in clockwise if members[owner].name not in skip)
    assert picks(balancer("ring_hash", members), [key], skip) == [expected]


def test_another_order_in_the_config_lays_no_new_ring() -> None:
    members = fleet(1, 2, 3)
    same = balancer("ring_hash", members)
    assert isinstance(same, ring_hash.RingHash)
    assert same._ring is not None
    points = same._ring.points
    same.update(members[::-1])
    assert same._ring.points is points


# -- maglev ---------------------------------------------------------------------------------------------------------


def populate(permutation: list[list[int]], size: int) -> list[int]:
    """Pseudocode 1 of the paper, word for word."""
    following = [0] * len(permutation)
    entry = [-1] * size
    filled = 0
    while True:
        for i in range(len(permutation)):
            c = permutation[i][following[i]]
            while entry[c] >= 0:
                following[i] += 1
                c = permutation[i][following[i]]
            entry[c] = i
            following[i] += 1
            filled += 1
            if filled == size:
                return entry


@settings(max_examples=40)
@given(count=st.integers(1, 20), size=st.sampled_from((251, 499, 1009)), salt=st.integers(0, 1000))
def test_with_equal_weights_the_table_is_the_papers(count: int, size: int, salt: int) -> None:
    names = [f"{salt}-{i}" for i in range(count)]
    permutation = []
    for name in names:
        offset = hash64(name.encode() + b"/offset") % size
        skip = hash64(name.encode() + b"/skip") % (size - 1) + 1
        permutation.append([(offset + j * skip) % size for j in range(size)])
    assert list(maglev.fill(names, [2.0] * count, size)) == populate(permutation, size)


@settings(max_examples=40)
@given(by_weight=st.lists(weights, min_size=1, max_size=20))
def test_everyone_has_slots_in_proportion_to_its_weight_to_within_two(by_weight: list[float]) -> None:
    slots = Counter(maglev.fill([f"m{i}" for i in range(len(by_weight))], by_weight, 1009))
    assert slots.total() == 1009
    spare = 1009 - len(by_weight)  # everyone has one turn first
    for place, weight in enumerate(by_weight):
        assert abs(slots[place] - 1 - spare * weight / sum(by_weight)) <= 1 + len(by_weight) * weight / sum(by_weight)


def test_more_members_than_slots_is_no_trouble() -> None:
    crowded = balancer("maglev", fleet(*[1] * 300), table_size=251)
    assert "-" not in picks(crowded, 100)
    skip = {f"a{i}" for i in range(26, 300)} | set("abcdefghijklmnopqrstuvwxy")
    assert picks(crowded, 5, skip) == ["z"] * 5


def test_a_table_size_that_is_no_prime_becomes_the_next_one() -> None:
    members = fleet(1, 2, 3)
    assert picks(balancer("maglev", members, table_size=1000), 300) == picks(
        balancer("maglev", members, table_size=1009), 300
    )


@pytest.mark.parametrize("by_weight", [[1.0] * 10, [1.0, 2.0, 3.0, 4.0, 5.0] * 2])
def test_maglev_moves_few_keys_that_need_not_move(by_weight: list[float]) -> None:
    """The price for even shares: 0.3 % of all keys here, where a tenth must move."""
    names = [f"10.0.0.{i}:8080" for i in range(10)]
    before = maglev.fill(names, by_weight, 65537)
    for gone in (0, 4, 9):
        left = [i for i in range(10) if i != gone]
        after = maglev.fill([names[i] for i in left], [by_weight[i] for i in left], 65537)
        needless = sum(was not in (gone, left[now]) for was, now in zip(before, after, strict=True))
        assert needless / 65537 < 0.005


def test_an_update_with_the_same_weights_builds_no_table() -> None:
    members = fleet(1, 2, 3)
    same = balancer("maglev", members)
    assert isinstance(same, maglev.Maglev)
    assert same._table is not None
    slots = same._table.slots
    same.update([FakeMember(member.name, member.weight) for member in reversed(members)])
    assert same._table.slots is slots


# -- source hash ----------------------------------------------------------------------------------------------------


def test_clients_in_one_network_do_not_all_go_to_one_member() -> None:
    """As they do with nginx's ip_hash, which looks at three octets."""
    office = [hash64(f"198.51.100.{host}".encode()) for host in range(250)]
    got = Counter(picks(balancer("source_hash", fleet(1, 1)), office))
    assert min(got["a"], got["b"]) > 95


def test_a_client_keeps_its_member_through_random_changes_elsewhere() -> None:
    rng = random.Random(5)
    members = fleet(*[1] * 12)
    sticky = balancer("source_hash", members)
    home = picks(sticky, 50)
    for _ in range(50):
        present = [member for member in members if rng.random() < 0.7]
        sticky.update(present)
        names = {member.name for member in present}
        now = picks(sticky, 50)
        assert all(was == new for was, new in zip(home, now, strict=True) if was in names)
