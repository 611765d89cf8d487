"""Chunked bodies, strictly: takes framing off, finds exactly where the message ends, keeps nothing of what follows it.

Theory of operation. The scanner eats from the front of the caller's buffer. It is always at the beginning of one
element: a size line, chunk data, the CRLF after the data, a trailer line. An element that breaks a rule is never eaten:
what came before it is returned first, and the next call meets it again and raises. So the caller sees the same data and
the same error however the bytes were cut into reads. Lines are searched from where the last search stopped.

Decisions where RFC 9112 7.1 leaves room:
- A size has 1 to 16 hex digits and is at most 2^63-1; lines end in CRLF, nothing else.
- Extensions must be grammatical, are bounded per line and per body, and are dropped (7.1.1: ignore unknown ones).
- White space around an extension's ";" and "=" is BWS, which a recipient MUST parse and remove (RFC 9110 5.6.3). White
  space anywhere else in a size line is not in the grammar and is refused, also before the CRLF.
- Trailers that frame a message are an attack and are refused. Others that must not be trailers (RFC 9110 6.5.1:
  routing, authentication, conditions, content handling) or that only the gateway may say are dropped.

Source: RFC 9112 7.1, RFC 9110 6.5.1. Pure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection

import attrs

from tcpgate.codec.blame import Blame
from tcpgate.codec.events import Fields, Limits, Pair
from tcpgate.codec.grammar import FRAMING_NAMES, MAX_LENGTH, cgi_name, parse_field
from tcpgate.codec.syntax import QUOTED, TOKEN
from tcpgate.errors import GateError, Reason

MAX_SIZE_LINE = 1024
"""A size line with its extensions; nobody has a use for more, and each may carry one byte of body only."""
_EXTENSION = rb"[ \t]*+;[ \t]*+" + TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + TOKEN + rb"|" + QUOTED + rb"))?"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]++)((?:" + _EXTENSION + rb")*)")
_MAX_SIZE_DIGITS = 16
_CR = 0x0D

NEVER_TRAILERS = frozenset(
    b"""
    host connection keep-alive proxy-connection te trailer upgrade http2-settings
    cache-control expect max-forwards pragma range
    if-match if-none-match if-modified-since if-unmodified-since if-range
    authorization proxy-authorization proxy-authenticate www-authenticate proxy-authentication-info authentication-info
    cookie set-cookie age expires date location retry-after vary warning
    content-encoding content-type content-range content-location
    forwarded via x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-real-ip x-request-id proxy
    client-cert client-cert-chain x-forwarded-client-cert
    """.split()  # our own text: the traps of bytes.split() do not apply
)


class _At(enum.Enum):
    """The element that the scanner stands before."""

    SIZE = "size"
    DATA = "data"
    DATA_END = "data_end"
    TRAILER = "trailer"
    END = "end"


@attrs.define
class ChunkScanner:
    """Decodes one chunked body out of a buffer that it shares with its caller."""

    limits: Limits
    blame: Blame
    connection: Collection[bytes] = ()
    """Connection options of the head (lower-case): trailers of these names are hop-by-hop and dropped."""
    _trailers: list[Pair] = attrs.field(factory=list, init=False)
    """Those that may be forwarded."""
    _at: _At = _At.SIZE
    _left: int = 0
    """Bytes of the chunk at hand not yet taken."""
    _declared: int = 0
    """Bytes of all chunks begun so far."""
    _searched: int = 0
    """How far into the buffer no LF was found."""
    _overhead: int = 0
    """Bytes of extensions, then of trailers, so far."""
    _fields: int = 0

    @property
    def done(self) -> bool:
        """The message is complete; the next byte of the buffer is not ours."""
        return self._at is _At.END

    @property
    def trailers(self) -> Fields:
        """What may be forwarded; complete when `done`."""
        return Fields(self._trailers)

    def take(self, buffer: bytearray) -> bytes:
        """All body data at the front of `buffer`, which is eaten with its framing; b"" if more must come or `done`.

        Raises `blame`'s error once everything before the fault has been returned.
        """
        pieces: list[bytes] = []
        eaten = 0
        try:
            while self._at is not _At.END:
                after = self._step(buffer, eaten, pieces)
                if after is None:
                    break
                eaten = after
        except GateError:
            if not pieces:
                raise
        finally:
            del buffer[:eaten]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _step(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int | None:
        """Where the element at `start` ends, None if it is not all there. Raises without having changed anything."""
        if self._at is _At.DATA:
            return self._data(buffer, start, pieces)
        if self._at is _At.DATA_END:
            return self._data_end(buffer, start)
        end = self._line_end(buffer, start)
        if end is None:
            return None
        line = bytes(buffer[start : end - 1])
        if self._at is _At.SIZE:
            self._size_line(line)
        else:
            self._trailer_line(line)
        return end + 1

    def _line_end(self, buffer: bytearray, start: int) -> int | None:
        """Index of the LF that ends the line at `start`."""
        end = buffer.find(b"\n", start + self._searched)
        length = (end if end >= 0 else len(buffer)) - start
        if self._at is _At.SIZE and length > MAX_SIZE_LINE:
            raise self.blame.malformed("chunked: a size line that is too long")
        if length > self.limits.head:
            raise self.blame.too_large(f"trailers: more than {self.limits.head} bytes")
        if end < 0:
            self._searched = len(buffer) - start
            return None
        if end == start or buffer[end - 1] != _CR:
            raise self.blame.malformed("chunked: a line that ends in a bare LF")
        self._searched = 0
        return end

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise self.blame.malformed("chunked: a size line that is not hex digits and extensions")
        if len(match[1]) > _MAX_SIZE_DIGITS or (size := int(match[1], 16)) > MAX_LENGTH:
            raise self.blame.malformed("chunked: a size above 2^63-1")
        body = self.limits.body
        if body is not None and self._declared + size > body:
            raise self.blame.error(Reason.BODY_TOO_LARGE, f"body: more than {body} bytes", retry=self.blame.retry)
        if self._overhead + len(match[2]) > self.limits.head:
            raise self.blame.malformed("chunked: too many bytes of extensions")
        self._overhead += len(match[2])
        self._declared += size
        self._left = size
        self._at = _At.DATA if size else _At.TRAILER

    def _data(self, buffer: bytearray, start: int, pieces: list[bytes]) -> int | None:
        count = min(self._left, len(buffer) - start)
        if not count:
            return None
        with memoryview(buffer) as view:
            pieces.append(bytes(view[start : start + count]))
        self._left -= count
        if not self._left:
            self._at = _At.DATA_END
        return start + count

    def _data_end(self, buffer: bytearray, start: int) -> int | None:
        found = bytes(buffer[start : start + 2])
        if not b"\r\n".startswith(found):
            raise self.blame.malformed("chunked: a chunk that is longer than its size")
        if len(found) < 2:
            return None
        self._at = _At.SIZE
        return start + 2

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self._at = _At.END
            return
        pair = parse_field(line, self.blame)
        if self._fields == self.limits.headers:
            raise self.blame.too_large(f"trailers: more than {self.limits.headers} fields")
        if self._overhead + len(line) > self.limits.head:
            raise self.blame.too_large(f"trailers: more than {self.limits.head} bytes")
        if cgi_name(pair[0]) in FRAMING_NAMES:
            raise self.blame.malformed("trailers: a framing field")
        self._fields += 1
        self._overhead += len(line)
        if self._may_follow(pair):
            self._trailers.append(pair)

    def _may_follow(self, pair: Pair) -> bool:
        name = pair[0].lower()
        return name not in self.connection and cgi_name(name) not in NEVER_TRAILERS
