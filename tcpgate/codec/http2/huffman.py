"""Huffman strings of HPACK, a byte at a time.

The `hpack` library's machine has 256 states and takes four bits at a time. Here two of its steps are one: a state is a
dict from the next byte to the state that follows and the text that comes out, so that a byte costs one look-up. An
entry is worked out when it is first asked for, and never changes: what is kept is a part of a table of 65,536 entries,
of which ordinary text needs some hundreds, and all of which would be 10 MB in a process.

Source: RFC 7541 5.2 and appendix B. Pure.
"""

from __future__ import annotations

import functools
from typing import Final

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

_STATES: Final = 256


class _State(dict[int, tuple["_State", bytes]]):
    """What follows each byte that came so far."""

    __slots__ = ("_number", "_states", "complete")

    def __init__(self, number: int, states: list[_State]) -> None:
        super().__init__()
        self._number = number
        self._states = states
        self.complete = number == 0
        """A string may end here."""

    def __missing__(self, byte: int) -> tuple[_State, bytes]:
        """Raises ValueError where no string goes on so."""
        number, text, flags = self._number, b"", 0
        for nibble in (byte >> 4, byte & 0x0F):
            number, flags, symbol = HUFFMAN_TABLE[number * 16 + nibble]
            if flags & HUFFMAN_FAIL:
                raise ValueError("no Huffman string")
            if flags & HUFFMAN_EMIT_SYMBOL:
                text += bytes((symbol,))
        following = self._states[number]
        following.complete = bool(flags & HUFFMAN_COMPLETE)
        step = self[byte] = (following, text)
        return step


@functools.cache
def _first() -> _State:
    """The state that every string begins in."""
    states: list[_State] = []
    states += [_State(number, states) for number in range(_STATES)]
    return states[0]


def decode_huffman(data: bytes) -> bytes:
    """What the string says. Raises ValueError: it is none."""
    state = _first()
    texts = []
    for byte in data:
        state, text = state[byte]
        texts.append(text)
    if not state.complete:
        raise ValueError("a Huffman string that is cut, or not padded as it must be")
    return b"".join(texts)
