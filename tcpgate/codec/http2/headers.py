"""HPACK: header blocks into fields, and fields into header blocks.

Theory of operation. *In* there is a dynamic table, as every client uses one. The decoder is our own, one pass over the
block, held to the `hpack` library by property tests; that library gives the static table and Huffman's code. A
block that came before, and inserts nothing into a table which has not changed since, means what it meant: its `Block`
is kept, with what `requests` or `responses` found about it. The memo is forgotten when the table changes, and small:
a client repeats a few blocks or none.

*Out* there is none: literals without indexing and the static table. A block then means the same whenever it is sent, so
streams need no common order, one encoder serves all connections, and a line that was encoded once is encoded for all.
No Huffman: it would save a fifth of the bytes for more time than all the rest costs. Credentials are never indexed
(RFC 7541 7.1.3), so that no proxy after us puts them into a table either.

A block that decodes to more than we take is decoded to its end for the table's sake, but its fields are dropped
meanwhile: a few bytes that name a large entry a thousand times (the "HPACK bomb") cost no memory.

Source: RFC 7541; RFC 9113 4.3, 8.2.2, 10.5.1. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hpack.table import HeaderTable

from tcpgate.codec.events import Pair
from tcpgate.codec.http2.events import FieldPairs
from tcpgate.codec.http2.fields import CONNECTION_FIELDS, Judged
from tcpgate.codec.http2.huffman import decode_huffman

TABLE_SIZE: Final = 4096
"""Bytes of the dynamic table that a peer may fill: what HTTP/2 begins with, and we ask for no more."""
_STATIC: Final[tuple[Pair, ...]] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_FIRST_DYNAMIC: Final = len(_STATIC)
_OVERHEAD: Final = 32
_MOST_KNOWN: Final = 16
_LONGEST_KNOWN: Final = 1024
_DOOR: Final = 64
_MOST_STRINGS: Final = 128
_LONGEST_STRING: Final = 64


class CompressionError(Exception):
    """The block is no HPACK, so neither is anything after it: the connection is over (COMPRESSION_ERROR)."""


class Block:
    """A decoded header block, and what was found about it."""

    __slots__ = ("fields", "head", "too_large", "trailers")

    def __init__(self, fields: FieldPairs, too_large: bool) -> None:
        self.fields = fields
        """Empty if `too_large`."""
        self.too_large = too_large
        self.head: Judged | None = None
        """As a request or response, once that was asked."""
        self.trailers: Judged | None = None


class HpackIn:
    """The decoder of one connection."""

    __slots__ = ("_door", "_headers", "_known", "_list_size", "_maximum", "_size", "_strings", "_table")

    def __init__(self, list_size: int, headers: int) -> None:
        """`list_size`, `headers`: the most that a block may decode to, in bytes (RFC 9113 6.5.2) and in fields."""
        self._list_size = list_size
        self._headers = headers
        self._table: list[Pair] = []
        """The dynamic table, its newest entry last."""
        self._size = 0
        self._maximum = TABLE_SIZE
        self._known: dict[bytes, Block] = {}
        self._door: set[int] = set()
        """Hashes of blocks that came once: only what comes twice is kept."""
        self._strings: dict[bytes, bytes] = {}
        """Huffman strings that were decoded."""

    def decode(self, data: bytes) -> Block:
        """What the block says. Raises CompressionError."""
        block = self._known.get(data)
        return block if block is not None else self._decode(data)

    def _decode(self, data: bytes) -> Block:
        fields: list[Pair] = []
        table = self._table
        at, end, size, changed, began = 0, len(data), 0, False, False
        try:
            while at < end:
                first = data[at]
                at += 1
                if first >= 0x80:  # indexed
                    index = first & 0x7F
                    if index == 0x7F:
                        index, at = _integer(data, at, index)
                    pair = _STATIC[index] if index < _FIRST_DYNAMIC else table[_FIRST_DYNAMIC - 1 - index]
                    if not index:
                        raise CompressionError("HPACK: index 0")
                elif 0x20 <= first < 0x40:  # dynamic table size update
                    at = self._resize(data, at, first & 0x1F, began)
                    changed = True
                    continue
                else:
                    inserts = first >= 0x40
                    mask = 0x3F if inserts else 0x0F
                    index = first & mask
                    if not index:
                        name, at = self._string(data, at)
                    else:
                        if index == mask:
                            index, at = _integer(data, at, mask)
                        entry = _STATIC[index] if index < _FIRST_DYNAMIC else table[_FIRST_DYNAMIC - 1 - index]
                        name = entry[0]
                    value, at = self._string(data, at)
                    pair = (name, value)
                    if inserts:
                        self._insert(pair)
                        changed = True
                began = True
                size += _OVERHEAD + len(pair[0]) + len(pair[1])
                if size <= self._list_size:
                    fields.append(pair)
        except IndexError:
            raise CompressionError("HPACK: a truncated block, or an index that no table has") from None
        except ValueError as error:
            raise CompressionError(f"HPACK: {error}") from error
        return self._remember(data, self._block(fields, size), changed)

    def _block(self, fields: list[Pair], size: int) -> Block:
        most = self._headers
        if size > self._list_size or (
            len(fields) > most and sum(1 for name, _ in fields if not name.startswith(b":")) > most
        ):
            return Block((), True)
        return Block(tuple(fields), False)

    def _remember(self, data: bytes, block: Block, changed: bool) -> Block:
        if changed:
            self._known.clear()
        elif len(data) <= _LONGEST_KNOWN:
            mark = hash(data)
            if mark in self._door:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[data] = block
            else:
                if len(self._door) >= _DOOR:
                    self._door.clear()
                self._door.add(mark)
        return block

    def _string(self, data: bytes, at: int) -> tuple[bytes, int]:
        """A string literal (5.2) and where it ends."""
        first = data[at]
        at += 1
        length = first & 0x7F
        if length == 0x7F:
            length, at = _integer(data, at, length)
        end = at + length
        text = data[at:end]
        if len(text) != length:
            raise CompressionError("HPACK: a string longer than its block")
        if first < 0x80:
            return text, end
        known = self._strings.get(text)
        if known is None:
            known = decode_huffman(text)
            if length <= _LONGEST_STRING:
                if len(self._strings) >= _MOST_STRINGS:
                    self._strings.clear()
                self._strings[text] = known
        return known, end

    def _insert(self, pair: Pair) -> None:
        size = _OVERHEAD + len(pair[0]) + len(pair[1])
        self._evict(self._maximum - size)
        if size <= self._maximum:  # 4.4: what is larger than the table empties it, and is no error
            self._table.append(pair)
            self._size += size

    def _evict(self, most: int) -> None:
        while self._table and self._size > most:
            name, value = self._table.pop(0)
            self._size -= _OVERHEAD + len(name) + len(value)

    def _resize(self, data: bytes, at: int, prefix: int, began: bool) -> int:
        if began:
            raise CompressionError("HPACK: a table size update after a field")
        size = prefix
        if prefix == 0x1F:
            size, at = _integer(data, at, prefix)
        if size > TABLE_SIZE:
            raise CompressionError("HPACK: a table larger than SETTINGS_HEADER_TABLE_SIZE")
        self._maximum = size
        self._evict(size)
        return at


def _integer(data: bytes, at: int, number: int) -> tuple[int, int]:
    """The rest of an integer (5.1) whose prefix is full, and where it ends. Five octets are more than we take."""
    shift = 0
    while True:
        byte = data[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 28:
            raise CompressionError("HPACK: an integer of too many octets")


# -- out ------------------------------------------------------------------------------------------------------------

NEVER_INDEXED: Final = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key", b"x-auth-token"}
)
_MOST_LINES: Final = 2048
_LONGEST_LINE: Final = 256

_PAIRS: Final[dict[Pair, int]] = {pair: index for index, pair in enumerate(_STATIC) if index and pair[1]}
_NAMES: Final[dict[bytes, int]] = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC))) if index}


class HpackOut(dict[Pair, bytes]):
    """Lines that were encoded; one for all connections, since what it writes depends on nothing that was written."""

    __slots__ = ()

    def block(self, fields: Iterable[Pair]) -> bytes:
        """A header block that says `fields`, names in lower case, without what is about an HTTP/1 connection only."""
        return b"".join(map(self.__getitem__, fields))

    def __missing__(self, pair: Pair) -> bytes:
        name, value = pair[0].lower(), pair[1]
        if name in CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
            return b""
        secret = name in NEVER_INDEXED
        line = encode_line(name, value, secret)
        if not secret and len(line) <= _LONGEST_LINE:
            if len(self) >= _MOST_LINES:
                self.clear()
            self[pair] = line
        return line

    def __repr__(self) -> str:
        return f"HpackOut({len(self)} lines)"


def encode_line(name: bytes, value: bytes, secret: bool) -> bytes:
    """One field, its name in lower case: an index of the static table, or a literal without indexing."""
    index = _PAIRS.get((name, value))
    if index is not None and not secret:
        return bytes((0x80 | index,))
    kind = 0x10 if secret else 0x00
    known = _NAMES.get(name)
    head = _prefixed(kind, 4, known) if known is not None else b"%c%b%b" % (kind, _prefixed(0, 7, len(name)), name)
    return head + _prefixed(0, 7, len(value)) + value


def _prefixed(kind: int, bits: int, number: int) -> bytes:
    """An integer (5.1) after the `8 - bits` bits of `kind`."""
    full = (1 << bits) - 1
    if number < full:
        return bytes((kind | number,))
    octets = bytearray((kind | full,))
    number -= full
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)
