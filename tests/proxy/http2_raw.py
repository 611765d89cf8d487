"""A client of HTTP/2 that says what no library would: header blocks and frames as a test gives them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import hpack
import trio

from tcpgate.codec.http2 import frames
from tests.plane import TestPlane

Pair = tuple[bytes, bytes]
NAMES = dict(enumerate(("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH", "PING", "GOAWAY")))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame, right or wrong."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def block(pairs: Sequence[Pair]) -> bytes:
    """A header block of literals that nobody has to remember; any byte may stand in it."""
    out = b""
    for name, value in pairs:
        out += b"\0" + _string(name) + _string(value)
    return out


def _string(text: bytes) -> bytes:
    """A string literal (RFC 7541 5.2), without Huffman's code."""
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    prefix = b"\x7f"
    while size >= 128:
        prefix += bytes((size % 128 + 128,))
        size //= 128
    return prefix + bytes((size,)) + text


def headers(pairs: Sequence[Pair], *, end: bool = True, stream: int = 1, most: int = 16384) -> bytes:
    """HEADERS, and CONTINUATION for what does not fit."""
    whole = block(pairs)
    pieces = [whole[at : at + most] for at in range(0, len(whole), most)] or [b""]
    said = b""
    for index, piece in enumerate(pieces):
        flags = frames.END_HEADERS if index == len(pieces) - 1 else 0
        flags |= frames.END_STREAM if end and not index else 0
        said += frame(frames.HEADERS if not index else 9, flags, stream, piece)
    return said


def data(content: bytes = b"", *, end: bool = True, stream: int = 1) -> bytes:
    """DATA."""
    return frame(frames.DATA, frames.END_STREAM if end else 0, stream, content)


class RawClient:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.fields: dict[int, list[Pair]] = {}
        """Of the last head on each stream."""
        self.informational: list[bytes] = []
        """Statuses that came before."""
        self.trailers: list[Pair] = []
        self.body = b""
        self._decoder = hpack.Decoder()
        self._rest = b""

    async def outcome(self, number: int = 1) -> str:
        """How a stream ended: its status, or "reset NAME" if there was none, "cut NAME" if it came after one; or
        "goaway NAME" or "closed" where the connection ended."""
        status = ""
        with trio.fail_after(20):
            while True:
                kind, flags, stream, payload = await self._frame()
                if kind == frames.GOAWAY or kind < 0:
                    return f"goaway {_name(payload[4:8])}" if payload else "closed"
                if kind == frames.HEADERS and stream == number:
                    status = self._heard_head(stream, payload, status)
                elif kind == frames.DATA and stream == number:
                    self.body += payload
                elif kind == frames.RST_STREAM and stream == number:
                    return f"{'cut' if status else 'reset'} {_name(payload)}"
                if stream == number and kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
                    return status

    def _heard_head(self, stream: int, payload: bytes, status: str) -> str:
        pairs = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(payload, raw=True)]
        if status:
            self.trailers = pairs
            return status
        if pairs[0][1][:1] == b"1":
            self.informational.append(pairs[0][1])
            return ""
        self.fields[stream] = pairs
        return pairs[0][1].decode()

    async def _frame(self) -> tuple[int, int, int, bytes]:
        while len(self._rest) < 9 or len(self._rest) < 9 + int.from_bytes(self._rest[:3], "big"):
            try:
                more = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                more = b""
            if not more:
                return -1, 0, 0, b""
            self._rest += more
        size = 9 + int.from_bytes(self._rest[:3], "big")
        one, self._rest = self._rest[:size], self._rest[size:]
        return one[3], one[4], int.from_bytes(one[5:9], "big"), one[9:]


def _name(code: bytes) -> str:
    return frames.error_name(int.from_bytes(code[:4], "big"))


@contextlib.asynccontextmanager
async def raw_client(plane: TestPlane, listener: str = "web") -> AsyncIterator[RawClient]:
    """A connection that has said its preface and its (empty) SETTINGS, and acknowledged ours."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port(listener)) as stream:
        await stream.send_all(frames.PREFACE + frame(frames.SETTINGS, 0, 0) + frame(frames.SETTINGS, 1, 0))
        yield RawClient(stream)
