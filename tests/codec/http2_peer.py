"""The other end of an HTTP/2 connection, frame by frame: what a test says with it may be as wrong as it likes."""

from __future__ import annotations

from collections.abc import Iterable

from hpack import Encoder

from tcpgate.codec.events import Pair
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import ConnectionFailed, Event, HeadersReceived, StreamReset
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2.settings import Role, Settings

Said = tuple[int, int, int, bytes]
"""(type, flags, stream, payload) of one frame."""

GET: tuple[Pair, ...] = (
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":path", b"/"),
    (b":authority", b"example.com"),
)
POST: tuple[Pair, ...] = ((b":method", b"POST"), *GET[1:])
OK: tuple[Pair, ...] = ((b":status", b"200"),)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of any type, with any flags, on any stream."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def block(fields: Iterable[Pair]) -> bytes:
    """A header block that neither needs nor changes a table."""
    return Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def headers(stream: int, fields: Iterable[Pair] = GET, *, end: bool = True) -> bytes:
    """HEADERS in one frame."""
    return frame(frames.HEADERS, frames.END_HEADERS | (frames.END_STREAM if end else 0), stream, block(fields))


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    """DATA in one frame."""
    return frame(frames.DATA, frames.END_STREAM if end else 0, stream, payload)


def settings(*pairs: tuple[int, int]) -> bytes:
    """SETTINGS."""
    return frames.settings(pairs)


def said(stream_of_bytes: bytes) -> list[Said]:
    """The frames in `stream_of_bytes`, which must be whole."""
    found: list[Said] = []
    while stream_of_bytes:
        length = int.from_bytes(stream_of_bytes[:3], "big")
        number = int.from_bytes(stream_of_bytes[5:9], "big")
        payload = stream_of_bytes[9 : 9 + length]
        assert len(payload) == length, "a frame is cut"
        found.append((stream_of_bytes[3], stream_of_bytes[4], number, payload))
        stream_of_bytes = stream_of_bytes[9 + length :]
    return found


class Peer:
    """A machine under test and what was heard of it."""

    def __init__(self, role: Role = "server", ours: Settings | None = None, *, greeted: bool = True) -> None:
        self.machine = Http2(role, ours)
        self.now = 0.0
        self.events: list[Event] = []
        if greeted:
            preface = frames.PREFACE if role == "server" else b""
            self.say(preface + settings() + frames.SETTINGS_ACK)
            self.heard()
            self.events.clear()

    def say(self, *parts: bytes) -> list[Event]:
        """Send; what the machine tells of it."""
        found: list[Event] = []
        for part in parts:
            found += self.machine.receive(part, self.now)
        self.events += found
        return found

    def heard(self) -> list[Said]:
        """The frames that the machine sent since this was last asked."""
        out = self.machine.take_out()
        return said(out.removeprefix(frames.PREFACE))

    def failure(self) -> int | None:
        """The error that ended the connection, which was also said in a GOAWAY."""
        failed = [event for event in self.events if isinstance(event, ConnectionFailed)]
        if not failed:
            return None
        assert len(failed) == 1
        assert failed[0] is self.events[-1]
        kind, _, _, payload = said(bytes(self.machine.out))[-1]
        assert (kind, int.from_bytes(payload[4:8], "big")) == (frames.GOAWAY, failed[0].code)
        return failed[0].code

    def reset(self, stream: int) -> int | None:
        """The error that the machine reset `stream` with, if the connection still stands."""
        assert self.failure() is None, self.events
        codes = [int.from_bytes(payload, "big") for kind, _, of, payload in self.heard() if (kind, of) == (3, stream)]
        return codes[-1] if codes else None

    @property
    def requests(self) -> list[int]:
        """The streams whose heads came through."""
        return [event.stream for event in self.events if isinstance(event, HeadersReceived) and not event.trailers]

    @property
    def resets(self) -> list[tuple[int, int, bool]]:
        """(stream, code, by us) of each stream that was reset."""
        return [(event.stream, event.code, event.by_us) for event in self.events if isinstance(event, StreamReset)]
