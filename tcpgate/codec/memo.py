"""A bounded memo: what a pure function once found for some bytes, as long as these bytes keep coming.

Theory of operation. A memo is a dict that the caller asks directly (`memo[key]`, or `map(memo.__getitem__, keys)`):
what is there costs one look-up in C, and only what is missing runs Python.
- *Two generations.* New entries go into the young one. When that is full, it becomes the old one, whose own rest is
  forgotten. What is found in the old one moves back into the young one, so what is used at least once in a generation
  stays, however many others come. There is no list to keep in order, as an LRU would need.
- *A doorkeeper.* Most of what is new never comes again: ids, traces, whole heads with a new path. So an entry is kept
  only from the second time that it is asked for. The doorkeeper remembers one hash per slot, in a list of fixed
  length; it may forget or mistake a key, which costs or saves one more call, and never changes an answer.
- *No verdict lives here.* The function's answer depends on the key alone, so it is the same whether it was kept or
  not, and whatever else was asked in between. What the function raises is passed on and not kept.
Bounded in entries and in weight: a peer that never repeats itself, or repeats all of it, evicts and never adds.

Source: Einziger, Friedman, Manes, "TinyLFU" (2017) for the doorkeeper. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

V = TypeVar("V")

_DOOR = 2048
"""Slots of the doorkeeper, a power of two: 16 KiB of pointers, and an int of 32 bytes for each."""


NEVER = 1 << 62
"""The weight of what is not to be kept."""


class Shelf(dict[bytes, V]):
    """What its owner finds for keys that come again. `get` looks into the young generation, at the cost of a dict."""

    __slots__ = ("_door", "_entries", "_left", "_old", "_room", "_weigh")

    def __init__(self, weigh: Callable[[bytes, V], int], *, entries: int, weight: int) -> None:
        """`entries`, `weight`: what one generation holds at most; `weigh` says what one entry weighs (bytes, about)."""
        super().__init__()
        self._weigh = weigh
        self._entries = entries
        self._room = self._left = weight
        self._old: dict[bytes, V] = {}
        self._door = [0] * _DOOR

    def offer(self, key: bytes, value: V) -> V:
        """What is known for `key`, which is not young, or else `value`, kept if `key` came before."""
        known = self._old.pop(key, None)
        if known is not None:
            value = known
        else:
            code = hash(key)
            slot = code & (_DOOR - 1)
            if self._door[slot] != code:
                self._door[slot] = code
                return value
        self._keep(key, value)
        return value

    def _keep(self, key: bytes, value: V) -> None:
        weight = self._weigh(key, value)
        if weight > self._room:
            return
        if weight > self._left or len(self) >= self._entries:
            # In place: callers hold this dict's bound methods, and may be in the middle of a `map`.
            self._old = self.copy()
            self.clear()
            self._left = self._room
        self[key] = value
        self._left -= weight

    def __repr__(self) -> str:
        # Not its keys: heads hold cookies and credentials, and a repr may end up in a log.
        return f"{type(self).__name__}({len(self)} young, {len(self._old)} old)"

    @property
    def old(self) -> dict[bytes, V]:
        """The old generation, to look at."""
        return self._old


class Memo(Shelf[V]):
    """`find(key)` for keys that come again: asked like a dict, which finds what is missing."""

    __slots__ = ("_find",)

    def __init__(
        self, find: Callable[[bytes], V], weigh: Callable[[bytes, V], int], *, entries: int, weight: int
    ) -> None:
        """`find` may raise; nothing is kept then."""
        super().__init__(weigh, entries=entries, weight=weight)
        self._find = find

    def __missing__(self, key: bytes) -> V:
        value = self._old.pop(key, None)
        if value is not None:
            self._keep(key, value)
            return value
        value = self._find(key)
        code = hash(key)  # as in `offer`, less one call
        slot = code & (_DOOR - 1)
        if self._door[slot] == code:
            self._keep(key, value)
        else:
            self._door[slot] = code
        return value
