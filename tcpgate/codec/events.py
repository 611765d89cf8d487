"""What the codec says and is told: heads, fields, framing, body data, the end. Immutable values.

A `RequestHead` is a request after judgement: whoever holds one holds a head with exactly one meaning. Framing and
routing facts are fields of their own, so that nobody reads Content-Length, Transfer-Encoding, Connection or Host again.

Source: RFC 9110 (semantics), RFC 9112 (messages). Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Iterator
from typing import Literal

import attrs

from tcpgate.codec.syntax import split_list

Pair = tuple[bytes, bytes]


class Fields:
    """Header or trailer fields in their order: names as sent, values trimmed. Look up by lower-case name."""

    __slots__ = ("_by_name", "_pairs")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._pairs: tuple[Pair, ...] = tuple(pairs)
        self._by_name: dict[bytes, list[bytes]] | None = None

    def _index(self) -> dict[bytes, list[bytes]]:
        if self._by_name is None:
            self._by_name = {}
            for name, value in self._pairs:
                self._by_name.setdefault(name.lower(), []).append(value)
        return self._by_name

    def get(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower-case), or None."""
        values = self._index().get(name)
        return values[0] if values else None

    def all(self, name: bytes) -> list[bytes]:
        """Every value of `name` (lower-case), in order."""
        return list(self._index().get(name, ()))

    def members(self, name: bytes) -> list[bytes]:
        """Members of the comma list that all lines of `name` make together, as sent."""
        return [member for value in self._index().get(name, ()) for member in split_list(value)]

    def tokens(self, name: bytes) -> list[bytes]:
        """`members`, lower-cased: for fields whose members are case-insensitive."""
        return [member.lower() for member in self.members(name)]

    def without(self, names: Container[bytes]) -> Fields:
        """These fields less those named (lower-case)."""
        return Fields(pair for pair in self._pairs if pair[0].lower() not in names)

    def plus(self, pairs: Iterable[Pair]) -> Fields:
        """These fields, then `pairs`."""
        return Fields((*self._pairs, *pairs))

    def __contains__(self, name: object) -> bool:
        return name in self._index()

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        # Names only: values hold cookies and credentials, and a repr may end up in a log.
        return f"Fields({b', '.join(name for name, _ in self._pairs).decode('ascii', 'replace')})"


NO_FIELDS = Fields()


class Kind(enum.Enum):
    """How the end of a body is known (RFC 9112 6.3)."""

    NONE = "none"
    """There is no body."""
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    """A response body that ends with the connection."""


@attrs.frozen
class Framing:
    """The framing of one body. With `Kind.NONE`, `length` is what a HEAD or 304 response says that a GET would have."""

    kind: Kind
    length: int | None = None


NO_BODY = Framing(Kind.NONE)
CHUNKED = Framing(Kind.CHUNKED)
UNTIL_CLOSE = Framing(Kind.CLOSE)


def of_length(length: int) -> Framing:
    """A body of `length` bytes."""
    return Framing(Kind.LENGTH, length)


@attrs.frozen(kw_only=True)
class Limits:
    """How large one message may be. The defaults are a listener's; `RESPONSE_LIMITS` are for endpoints."""

    head: int = 32 << 10
    """Start line and fields together (bytes); also what trailers and chunk extensions of one body may add up to."""
    headers: int = 100
    """Fields in one head, or in one trailer section."""
    target: int = 8 << 10
    """Request target (bytes)."""
    body: int | None = None
    """Body (bytes); None: not the codec's to judge. Judged when the body is read, not with the head: whoever holds a
    `RequestHead` may look at `framing.length` before it opens anything."""


RESPONSE_LIMITS = Limits(head=64 << 10, headers=200)
"""Endpoints are ours, and some set many cookies; Envoy's 60 KiB."""

Version = Literal[b"2.0", b"1.1", b"1.0"]


@attrs.frozen(kw_only=True)
class RequestHead:
    """One request, judged by `grammar.parse_request`."""

    method: bytes
    target: bytes = attrs.field(repr=False)
    """As sent."""
    form: Literal["origin", "absolute", "asterisk"]
    path: bytes
    """Begins with "/", still percent-encoded; b"*" for the server as a whole (OPTIONS only)."""
    query: bytes | None = attrs.field(repr=False)
    """After the "?", still percent-encoded; None: there is no "?"."""
    scheme: bytes | None
    """Of an absolute-form target: b"http" or b"https"."""
    host: bytes
    """Lower-case, without port and final dot, IPv6 in brackets; b"" only for a 1.0 request that names none."""
    authority: bytes
    """What goes upstream in Host: host[:port] as the client wrote it; b"" as for `host`."""
    version: Version
    fields: Fields
    framing: Framing
    keep_alive: bool
    expect_continue: bool
    """The client waits for a 100 before it sends the body, which is not empty."""
    upgrade: bytes | None
    """The one protocol, lower-case, that may be offered upstream."""
    max_forwards: int | None
    """Of OPTIONS and TRACE: how many more hops; at 0 the gateway answers itself (RFC 9110 7.6.2)."""
    size: int
    """Bytes of the head on the wire."""

    @property
    def upstream_target(self) -> bytes:
        """What goes upstream in the request line: origin-form or "*", whatever the client's form was."""
        return self.path if self.query is None else self.path + b"?" + self.query


@attrs.frozen(kw_only=True)
class ResponseHead:
    """One response, judged by `grammar.parse_response`."""

    status: int
    reason: bytes
    version: Version
    fields: Fields
    framing: Framing
    keep_alive: bool
    """The connection outlives this response."""
    upgrade: bytes | None = None
    """Of a 101: the protocol that the connection now speaks."""
    size: int

    @property
    def informational(self) -> bool:
        """A 1xx that another head follows; 101 is the last of its connection."""
        return self.status < 200 and self.status != 101


@attrs.frozen
class Data:
    """Some of a body, never empty, framing removed."""

    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class EndOfBody:
    """The message is complete."""

    trailers: Fields = NO_FIELDS


@attrs.frozen
class NeedData:
    """Nothing more to say until more bytes are received, or until the exchange at hand is over."""


@attrs.frozen
class Closed:
    """The peer closed between messages."""


NEED_DATA = NeedData()
CLOSED = Closed()

ServerEvent = RequestHead | Data | EndOfBody | NeedData | Closed
ClientEvent = ResponseHead | Data | EndOfBody | NeedData | Closed
