"""WebSockets of a test's own, on both sides of the gateway: by trio-websocket, and byte by byte."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

from tests.plane import TestPlane
from tests.proxy.scripted import head, rest

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ASK = (
    b"GET / HTTP/1.1\r\nHost: t\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x11\x22\x33\x44"


def agree(key: bytes) -> bytes:
    """The head of a 101 to `key`, but for the empty line (RFC 6455 4.2.2)."""
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n"
    )


def frame(opcode: int, payload: bytes = b"", *, masked: bool, fin: bool = True, bits: int = 0) -> bytes:
    """One frame (RFC 6455 5.2); `bits`: the reserved ones."""
    size, mask_bit = len(payload), 0x80 if masked else 0
    start = bytes([(0x80 if fin else 0) | bits << 4 | opcode])
    if size < 126:
        start += bytes([mask_bit | size])
    elif size < 1 << 16:
        start += struct.pack("!BH", mask_bit | 126, size)
    else:
        start += struct.pack("!BQ", mask_bit | 127, size)
    if masked:
        payload = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
        start += MASK
    return start + payload


def close(code: int | None = None, text: bytes = b"", *, masked: bool) -> bytes:
    """A Close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + text, masked=masked)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload unmasked) of each whole frame in `data`."""
    found = []
    while len(data) >= 2:
        masked, size, at = data[1] & 0x80, data[1] & 0x7F, 2
        if size == 126:
            size, at = struct.unpack_from("!H", data, 2)[0], 4
        elif size == 127:
            size, at = struct.unpack_from("!Q", data, 2)[0], 10
        mask = data[at : at + 4] if masked else bytes(4)
        at += 4 if masked else 0
        if len(data) < at + size:
            break
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[at : at + size]))
        found.append((data[0] & 15, payload))
        data = data[at + size :]
    return found


def code_of(payload: bytes) -> int:
    """A Close's code."""
    return int(struct.unpack_from("!H", payload)[0])


# -- by trio-websocket ----------------------------------------------------------------------------------------------


async def echo(request: WebSocketRequest) -> None:
    """A server's play: every message goes back."""
    socket = await request.accept()
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send_message(await socket.get_message())


async def server(nursery: trio.Nursery, play: Callable[[WebSocketRequest], Awaitable[None]] = echo) -> int:
    """The port of a WebSocket server that plays so."""
    running = await nursery.start(serve_websocket, play, "127.0.0.1", 0, None)
    port: int = running.port
    return port


@contextlib.asynccontextmanager
async def socket(plane: TestPlane) -> AsyncIterator[WebSocketConnection]:
    """A client's WebSocket through the gateway."""
    async with open_websocket_url(f"ws://127.0.0.1:{plane.port()}/") as found:
        try:
            yield found
        finally:
            if found.closed is not None:  # it leaves the TCP connection to the server then, for ever if need be
                await found._stream.aclose()


# -- byte by byte ---------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Raw:
    """Both ends of a WebSocket, whose frames the test makes itself."""

    client: trio.SocketStream
    server: trio.SocketStream

    async def closes(self) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """What both ends still get, to their ends of stream: (the client, the server)."""
        return frames(await rest(self.client)), frames(await rest(self.server))


@contextlib.asynccontextmanager
async def raw(plane: TestPlane, accepted: trio.MemoryReceiveChannel[trio.SocketStream]) -> AsyncIterator[Raw]:
    """An open WebSocket to the origin of `hand_over`."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream:
        await stream.send_all(ASK)
        server_side = await accepted.receive()
        assert (await head(stream)).startswith(b"HTTP/1.1 101 ")
        yield Raw(stream, server_side)


async def hand_over(nursery: trio.Nursery, *fields: bytes) -> tuple[int, trio.MemoryReceiveChannel[trio.SocketStream]]:
    """An origin that agrees to every WebSocket (with more `fields`) and leaves the rest to the test."""
    send, receive = trio.open_memory_channel[trio.SocketStream](100)

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            asked = await head(stream)
            key = re.search(rb"\r\nsec-websocket-key: *(\S+)", asked, re.IGNORECASE)
            assert key is not None
            await stream.send_all(agree(key[1]) + b"".join(field + b"\r\n" for field in fields) + b"\r\n")
            await send.send(stream)
            await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, one, listeners)
    return listeners[0].socket.getsockname()[1], receive
