"""The bytes that one peer sent and nobody has understood yet; heads and bodies are taken off its front.

The cut of the reads never changes the outcome: a head is judged line by line as lines end, and the fault that lies
first in the bytes is the one that is told. Every search resumes where the last one stopped, so a head that trickles
in byte by byte costs the same as one that comes whole.

Source: RFC 9112 2.2 (line ends, empty lines before a request), 6.3 (body lengths), 8 (incomplete messages). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

import attrs

from tcpgate.codec.blame import CLIENT, UPSTREAM_HEAD, Blame
from tcpgate.codec.chunked import ChunkScanner
from tcpgate.codec.events import NO_FIELDS, Fields, Framing, Kind, Limits
from tcpgate.codec.grammar import MAX_METHOD
from tcpgate.codec.syntax import TCHAR
from tcpgate.errors import ClientError, Reason

_CR = 0x0D


class Opening(Protocol):
    """Judges a first line before it is complete; raises as soon as what is there cannot begin a head."""

    def __call__(self, start: bytes, length: int, /) -> None:
        """`start`: the first bytes, up to 64. `length`: what the line without its end has at least."""


@attrs.define
class Inbox:
    """A buffer with an end-of-file mark."""

    limits: Limits
    blame: Blame
    opening: Opening
    blanks: int = 0
    """Empty lines still tolerated before the next head."""
    buffer: bytearray = attrs.field(factory=bytearray)
    eof: bool = False
    _searched: int = 0
    _line: int = 0
    """Where the line begins that is being searched for its end."""

    def receive(self, data: bytes) -> None:
        """Append what a read gave; b"" is the end."""
        if data:
            self.buffer += data
        else:
            self.eof = True

    def take_head(self) -> bytes | None:
        """The next head, its empty line included; None: it is not all there. Raises `blame`'s error."""
        buffer = self.buffer
        while buffer:
            end = buffer.find(b"\n", self._searched)
            self._check_size(end)
            if end < 0:
                self._searched = len(buffer)
                return None
            self._check_line(end)
            self._searched = end + 1
            if end - 1 > self._line:
                self._line = end + 1
            elif self._line:
                return self._cut(end + 1)
            else:
                self._cut(end + 1)
                if not self.blanks:
                    raise self.blame.malformed("head: an empty line before it")
                self.blanks -= 1
        return None

    def _cut(self, count: int) -> bytes:
        piece = bytes(self.buffer[:count])
        del self.buffer[:count]
        self._searched = self._line = 0
        return piece

    def _check_size(self, end: int) -> None:
        """`end`: index of the LF of the line at hand, -1 if it has not come."""
        count = end + 1 if end >= 0 else len(self.buffer)
        if not self._line:
            # The last byte may be the CR, and is not the line's; the rest is, whether the LF has come or not.
            self.opening(bytes(self.buffer[:_OPENING]), count - 2 if end >= 0 else count - 1)
        elif count > self.limits.head:
            raise self.blame.too_large(f"head: more than {self.limits.head} bytes")

    def _check_line(self, end: int) -> None:
        if end == self._line or self.buffer[end - 1] != _CR:
            raise self.blame.malformed("head: a line that ends in a bare LF")
        if self.buffer.find(b"\r", self._line, end - 1) >= 0:
            raise self.blame.malformed("head: a bare CR")


_OPENING = 64
"""As much of a first line as an `Opening` needs to see."""


@attrs.define
class Body:
    """Takes the body of one message out of an inbox, by its framing."""

    inbox: Inbox
    framing: Framing
    blame: Blame
    connection: Collection[bytes] = ()
    _left: int = 0
    _scanner: ChunkScanner | None = None

    def __attrs_post_init__(self) -> None:
        if self.framing.kind is Kind.CHUNKED:
            self._scanner = ChunkScanner(self.inbox.limits, self.blame, self.connection)
        elif self.framing.kind is Kind.LENGTH:
            self._left = self.framing.length or 0

    @property
    def done(self) -> bool:
        """The message is complete."""
        if self._scanner is not None:
            return self._scanner.done
        if self.framing.kind is Kind.CLOSE:
            return self.inbox.eof and not self.inbox.buffer
        return not self._left

    @property
    def trailers(self) -> Fields:
        """Trailers that may be forwarded, once `done`."""
        return NO_FIELDS if self._scanner is None else self._scanner.trailers

    def take(self) -> bytes:
        """Body data that is there; b"" if more must come or the body is done. Raises `blame`'s error."""
        self._check_length()
        buffer = self.inbox.buffer
        if self._scanner is not None:
            data = self._scanner.take(buffer)
        else:
            count = len(buffer) if self.framing.kind is Kind.CLOSE else min(self._left, len(buffer))
            with memoryview(buffer) as view:
                data = bytes(view[:count])
            del buffer[:count]
            self._left = max(0, self._left - count)
        if not data and not self.done and self.inbox.eof:
            raise self.blame.cut_short("body: the connection closed before its end")
        return data

    def _check_length(self) -> None:
        limit = self.inbox.limits.body
        if limit is not None and self.framing.kind is Kind.LENGTH and (self.framing.length or 0) > limit:
            raise self.blame.error(Reason.BODY_TOO_LARGE, f"body: more than {limit} bytes", retry=self.blame.retry)


# -- first lines ----------------------------------------------------------------------------------------------------

_begins_request = re.compile(rb"[\r\n" + TCHAR + rb"]").match
_STATUS_LINE_START = b"HTTP/1."


def request_opening(limits: Limits) -> Opening:
    """Tells early that no request begins like this, or that its first line is too long."""
    longest = min(limits.target + MAX_METHOD + len("  HTTP/1.1"), limits.head)

    def judge(start: bytes, length: int) -> None:
        if not _begins_request(start):
            raise CLIENT.malformed("request line: the first byte cannot begin one (TLS on a plain port?)")
        if length > longest and b" " not in start[: MAX_METHOD + 1]:
            raise ClientError(Reason.METHOD_UNSUPPORTED, f"method: longer than {MAX_METHOD} bytes")
        if length > longest:
            raise ClientError(Reason.TARGET_TOO_LONG, f"request-target: more than {limits.target} bytes")

    return judge


def response_opening(limits: Limits) -> Opening:
    """Tells early that no response begins like this, or that its first line is too long."""

    def judge(start: bytes, length: int) -> None:
        if not start.startswith(_STATUS_LINE_START[: len(start)]):
            raise UPSTREAM_HEAD.malformed("status line: not HTTP/1.x")
        if length > limits.head:
            raise UPSTREAM_HEAD.too_large(f"head: more than {limits.head} bytes")

    return judge
