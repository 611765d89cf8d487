"""The bounded memo: right whatever it holds, small whatever it is asked, and true to what is used."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.memo import NEVER, Memo, Shelf


class Counted:
    """A function that knows how often it was asked for what."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()

    def __call__(self, key: bytes) -> bytes:
        self.asked[key] += 1
        if key.startswith(b"!"):
            raise LookupError
        return b"<" + key + b">"


def weight_of(key: bytes, value: bytes) -> int:
    return NEVER if b"never" in key else len(key) + len(value)


def test_a_key_is_found_twice_and_then_known() -> None:
    find = Counted()
    memo = Memo(find, weight_of, entries=10, weight=1000)
    assert [memo[b"a"] for _ in range(5)] == [b"<a>"] * 5
    assert find.asked[b"a"] == 2
    assert list(memo) == [b"a"]


def test_what_comes_once_is_not_kept() -> None:
    memo = Memo(Counted(), weight_of, entries=10, weight=1000)
    for number in range(50):
        assert memo[b"%d" % number] == b"<%d>" % number
    assert len(memo) <= 1  # one at the door may pass for another


def test_a_well_used_key_survives_a_flood() -> None:
    find = Counted()
    memo = Memo(find, weight_of, entries=100, weight=100_000)
    for number in range(10_000):
        flood = b"%d" % number
        assert memo[flood] == memo[flood] == b"<" + flood + b">"
        if number % 60 == 0:
            assert memo[b"used"] == b"<used>"
    assert find.asked[b"used"] <= 3
    assert len(memo) + len(memo.old) <= 200


def test_a_key_that_nobody_asks_for_is_forgotten_after_two_generations() -> None:
    find = Counted()
    memo = Memo(find, weight_of, entries=4, weight=1000)
    for key in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i"):
        memo[key], memo[key]
    assert b"a" not in memo
    assert b"a" not in memo.old
    assert b"e" in memo.old
    assert memo[b"e"] == b"<e>"
    assert find.asked[b"e"] == 2
    assert b"e" not in memo.old


def test_weight_is_bounded_as_entries_are() -> None:
    memo = Memo(Counted(), weight_of, entries=1000, weight=500)
    for number in range(300):
        memo[b"%0100d" % number], memo[b"%0100d" % number]
        for generation in (memo, memo.old):
            assert sum(weight_of(key, value) for key, value in generation.items()) <= 500


@pytest.mark.parametrize("key", [b"never", b"x" * 400])
def test_what_is_too_heavy_is_found_each_time(key: bytes) -> None:
    find = Counted()
    memo = Memo(find, weight_of, entries=10, weight=500)
    assert {memo[key] for _ in range(4)} == {b"<" + key + b">"}
    assert find.asked[key] == 4
    assert not memo


def test_what_cannot_be_found_is_asked_each_time() -> None:
    find = Counted()
    memo = Memo(find, weight_of, entries=10, weight=500)
    for _ in range(3):
        with pytest.raises(LookupError):
            memo[b"!"]
    assert find.asked[b"!"] == 3
    assert not memo


def test_generations_may_turn_while_keys_are_mapped() -> None:
    memo = Memo(Counted(), weight_of, entries=2, weight=500)
    ask = memo.__getitem__
    keys = [b"%d" % number for number in range(20)] * 2
    for _ in range(3):
        assert list(map(ask, keys)) == [b"<" + key + b">" for key in keys]


def test_a_shelf_keeps_what_is_offered_twice_and_gives_back_the_first_of_it() -> None:
    shelf: Shelf[bytes] = Shelf(weight_of, entries=2, weight=500)
    first, second, third = bytes(bytearray(b"a1")), bytes(bytearray(b"a1")), bytes(bytearray(b"a1"))
    assert shelf.offer(b"a", first) is first
    assert shelf.get(b"a") is None
    assert shelf.offer(b"a", second) is second
    assert shelf.get(b"a") is second
    for key in (b"b", b"c"):
        shelf.offer(key, key)
        shelf.offer(key, key)
    assert shelf.get(b"a") is None
    assert shelf.offer(b"a", third) is second  # it was old
    assert shelf.get(b"a") is second


def test_a_repr_tells_no_keys() -> None:
    memo = Memo(Counted(), weight_of, entries=2, weight=500)
    memo[b"Cookie: secret"], memo[b"Cookie: secret"]
    assert repr(memo) == "Memo(1 young, 0 old)"


@given(st.lists(st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"never", b"x" * 60]), max_size=80))
def test_whatever_is_asked_in_whatever_order_the_answer_is_the_same(keys: list[bytes]) -> None:
    memo = Memo(Counted(), weight_of, entries=2, weight=100)
    for key in keys:
        assert memo[key] == b"<" + key + b">"
        assert len(memo) <= 2
        assert len(memo.old) <= 2
        assert not memo.keys() & memo.old.keys()
