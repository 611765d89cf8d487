"""A relay between two loopback connections, with hands on both far ends."""

from __future__ import annotations

import hashlib
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from tcpgate.errors import Reason, Side
from tcpgate.net.pipes import PipePool
from tcpgate.net.relay import Flow, RelayOutcome, relay
from tcpgate.net.stream import Stream
from tests.net.loopback import Loopback

_RESET = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class End:
    """The far end of a connection: the client, or the endpoint's server."""

    sock: trio.socket.SocketType

    async def send(self, data: bytes) -> None:
        """All of it."""
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    def finish(self) -> None:
        """No more from us; we go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    async def exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        data = bytearray()
        while len(data) < count:
            piece = await self.sock.recv(count - len(data))
            assert piece, f"the stream ended after {len(data)} of {count} bytes"
            data += piece
        return bytes(data)

    async def rest(self) -> bytes:
        """Everything up to the end of stream; ConnectionResetError if there is none."""
        data = bytearray()
        while piece := await self.sock.recv(1 << 18):
            data += piece
        return bytes(data)

    async def digest(self) -> bytes:
        """Everything up to the end of stream, as its hash."""
        found = hashlib.sha256()
        while piece := await self.sock.recv(1 << 18):
            found.update(piece)
        return found.digest()

    async def is_reset(self) -> bool:
        """Whether the stream ends with a RST rather than in good order."""
        try:
            await self.rest()
        except ConnectionResetError:
            return True
        return False


@attrs.define(eq=False)
class Rig:
    """One running relay."""

    client: End
    server: End
    flow: Flow
    nursery: trio.Nursery
    over: trio.Event = attrs.field(factory=trio.Event)
    _outcome: RelayOutcome | None = None

    async def outcome(self) -> RelayOutcome:
        """How it ended, when it has."""
        await self.over.wait()
        assert self._outcome is not None
        return self._outcome


@asynccontextmanager
async def relaying(
    loopback: Loopback,
    pipes: PipePool,
    *,
    idle: float = 30.0,
    total: float = math.inf,
    closed: Reason = Reason.TUNNEL_CLOSED,
    to_upstream: bytes = b"",
    to_downstream: bytes = b"",
    buffer: int = 0,
    unix: bool = False,
    flow: Flow | None = None,
) -> AsyncIterator[Rig]:
    """A relay that runs until it is over or the block is left."""

    def pair() -> tuple[socket.socket, trio.socket.SocketType]:
        ours, theirs = socket.socketpair() if unix else loopback.pair(buffer=buffer)
        theirs.setblocking(False)
        return loopback.own(ours), trio.socket.from_stdlib_socket(loopback.own(theirs))

    (down, client), (up, server) = pair(), pair()
    downstream, upstream = Stream(down, Side.CLIENT), Stream(up, Side.UPSTREAM)
    async with trio.open_nursery() as nursery:
        rig = Rig(End(client), End(server), flow or Flow(), nursery)

        async def run() -> None:
            rig._outcome = await relay(
                downstream,
                upstream,
                idle=idle,
                deadline=trio.current_time() + total,
                pipes=pipes,
                flow=rig.flow,
                closed=closed,
                to_upstream=to_upstream,
                to_downstream=to_downstream,
            )
            assert downstream.closed
            assert upstream.closed
            rig.over.set()

        nursery.start_soon(run)
        yield rig
        nursery.cancel_scope.cancel()
