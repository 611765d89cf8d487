"""Which side of a split a key is on, and who moves when the weights change."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.policy.hashing import hash64
from tcpgate.policy.split import Split

KEYS = [hash64(b"user-%d" % number) for number in range(20_000)]


def sides(weights: dict[str, int]) -> list[str]:
    split = Split(weights)
    return [split.choose(key) for key in KEYS]


def share(chosen: list[str], name: str) -> float:
    return chosen.count(name) / len(chosen)


@pytest.mark.parametrize("weights", [{"api": 95, "canary": 5}, {"a": 1, "b": 1}, {"a": 1, "b": 2, "c": 7}, {"only": 3}])
def test_each_side_gets_its_share_of_the_keys(weights: dict[str, int]) -> None:
    chosen = sides(weights)
    for name, weight in weights.items():
        assert share(chosen, name) == pytest.approx(weight / sum(weights.values()), abs=0.01)


def test_a_side_of_weight_zero_gets_nobody() -> None:
    assert set(sides({"api": 1, "canary": 0})) == {"api"}


def test_raising_the_canary_from_5_to_10_moves_5_per_cent_of_the_keys_and_only_to_it() -> None:
    moves = Counter(zip(sides({"api": 95, "canary": 5}), sides({"api": 90, "canary": 10}), strict=True))
    assert moves["canary", "api"] == 0
    assert moves["api", "canary"] / len(KEYS) == pytest.approx(0.05, abs=0.005)


def test_raising_one_of_three_moves_keys_only_to_it() -> None:
    moves = Counter(zip(sides({"a": 4, "b": 4, "c": 2}), sides({"a": 4, "b": 4, "c": 4}), strict=True))
    assert {after for before, after in moves if before != after} == {"c"}
    moved = sum(count for (before, after), count in moves.items() if before != after)
    assert moved / len(KEYS) == pytest.approx(4 / 12 - 2 / 10, abs=0.01)


def test_a_side_that_goes_moves_its_own_keys_only() -> None:
    moves = Counter(zip(sides({"a": 4, "b": 4, "c": 2}), sides({"a": 4, "b": 4}), strict=True))
    assert {before for before, after in moves if before != after} == {"c"}


def test_the_sides_of_two_splits_are_independent_of_each_other() -> None:
    first, second = sides({"api": 90, "canary": 10}), sides({"old": 50, "new": 50})
    inside = [after for before, after in zip(first, second, strict=True) if before == "canary"]
    assert share(inside, "new") == pytest.approx(0.5, abs=0.05)


@given(
    st.dictionaries(st.text(max_size=4), st.integers(0, 1000), min_size=1, max_size=6).filter(
        lambda w: any(w.values())
    ),
    st.integers(0, 2**64 - 1),
    st.randoms(),
)
def test_a_key_stays_on_its_side_while_the_weights_stand(weights: dict[str, int], key: int, random: Random) -> None:
    names = list(weights)
    random.shuffle(names)
    side = Split(weights).choose(key)
    assert weights[side] > 0
    assert Split({name: weights[name] for name in names}).choose(key) == side


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 0, "b": 0}, {"a": 2, "b": -1}])
def test_a_split_with_nowhere_to_go_cannot_be_made(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="weight above zero"):
        Split(weights)
