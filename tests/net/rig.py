"""A relay between two loopback connections, in tasks or in the lane, with hands on both far ends."""

from __future__ import annotations

import hashlib
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import attrs
import pytest
import trio

from tcpgate.errors import Reason, Side
from tcpgate.net.lane import Lane
from tcpgate.net.lane_relay import LaneRelay
from tcpgate.net.pipes import PipePool
from tcpgate.net.relay import Flow, RelayOutcome, relay
from tcpgate.net.stream import Stream
from tcpgate.net.tls_socket import TlsSocket
from tests.net.loopback import Loopback
from tests.net.tls_rig import as_tls, client_context, server_context, shake

_RESET = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class FarTls:
    """What `End` needs of a Trio socket, over TLS."""

    tls: TlsSocket

    async def send(self, data: bytes | memoryview) -> int:
        """Some of it."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self.tls.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.tls)

    async def recv(self, count: int) -> bytes:
        """At most so many bytes; b"" at the end."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self.tls.recv(count)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.tls)

    def shutdown(self, how: int) -> None:
        """As a socket's."""
        self.tls.shutdown(how)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        """As a socket's."""
        self.tls.setsockopt(level, option, value)

    def getsockname(self) -> tuple[str, int]:
        """As a socket's."""
        host, port = self.tls.getsockname()
        return host, port

    def close(self) -> None:
        """As a socket's."""
        self.tls.close()


Far = trio.socket.SocketType | FarTls
Sides = tuple[bool, bool]
"""Whether TLS is spoken with the client, with the endpoint."""
PLAIN: Sides = (False, False)
NAME = "gate.example"


@attrs.define(eq=False)
class End:
    """The far end of a connection: the client, or the endpoint's server."""

    sock: Far

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


class Watched(Protocol):
    """What can be seen of a relay, and the handle to cut it."""

    @property
    def bytes_in(self) -> int:
        """From the client, handed on."""
        ...

    @property
    def bytes_out(self) -> int:
        """From the endpoint, handed on."""
        ...

    def cut(self, reason: Reason) -> None:
        """End it with a reset of both sides."""
        ...


@attrs.define(eq=False)
class Rig:
    """One running relay."""

    client: End
    server: End
    flow: Watched
    nursery: trio.Nursery
    over: trio.Event = attrs.field(factory=trio.Event)
    _outcome: RelayOutcome | None = None

    async def outcome(self) -> RelayOutcome:
        """How it ended, when it has."""
        await self.over.wait()
        assert self._outcome is not None
        return self._outcome


class Relaying(Protocol):
    """`relaying` and `relaying_in_lane`, as far as both can do it."""

    def __call__(
        self,
        loopback: Loopback,
        pipes: PipePool,
        *,
        idle: float = 30.0,
        total: float = math.inf,
        closed: Reason = Reason.TUNNEL_CLOSED,
        buffer: int = 0,
        unix: bool = False,
        tls: Sides = PLAIN,
    ) -> AbstractAsyncContextManager[Rig]:
        """A relay that runs until it is over or the block is left."""
        ...


def _pairs(
    loopback: Loopback, unix: bool, buffer: int, tls: Sides
) -> tuple[tuple[socket.socket, Far], tuple[socket.socket, Far]]:
    """(ours, theirs) of the client and of the endpoint."""
    down, up = (_pair(loopback, unix, buffer, by_tls) for by_tls in tls)
    if tls[0]:
        down = _shaken(loopback, down, server=0)
    if tls[1]:
        up = _shaken(loopback, up, server=1)
    return (down[0], _far(down[1])), (up[0], _far(up[1]))


def _pair(loopback: Loopback, unix: bool, buffer: int, by_tls: bool) -> list[socket.socket]:
    pair = socket.socketpair() if unix else loopback.pair(buffer=buffer)
    return [one if by_tls else loopback.own(one) for one in pair]


def _shaken(loopback: Loopback, pair: list[socket.socket], server: int) -> list[socket.socket]:
    """The same with TLS between them, the handshake done."""
    ends = [
        as_tls(sock, server_context() if number == server else client_context(), None if number == server else NAME)
        for number, sock in enumerate(pair)
    ]
    shake(*ends)
    return [loopback.own(end) for end in ends]


def _far(sock: socket.socket) -> Far:
    sock.setblocking(False)
    return FarTls(sock) if isinstance(sock, TlsSocket) else trio.socket.from_stdlib_socket(sock)


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
    tls: Sides = PLAIN,
    flow: Flow | None = None,
) -> AsyncIterator[Rig]:
    """A relay that runs until it is over or the block is left."""

    (down, client), (up, server) = _pairs(loopback, unix, buffer, tls)
    downstream, upstream = Stream(down, Side.CLIENT), Stream(up, Side.UPSTREAM)
    flow = flow or Flow()
    async with trio.open_nursery() as nursery:
        rig = Rig(End(client), End(server), flow, nursery)

        async def run() -> None:
            rig._outcome = await relay(
                downstream,
                upstream,
                idle=idle,
                deadline=trio.current_time() + total,
                pipes=pipes,
                flow=flow,
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


@attrs.define(eq=False)
class LaneOwner:
    """The rider of a relay in the lane."""

    closed: Reason
    relay: LaneRelay | None = None
    rig: Rig | None = None
    fault: Exception | None = None

    @property
    def bytes_in(self) -> int:
        """From the client."""
        assert self.relay is not None
        return self.relay.client.moved

    @property
    def bytes_out(self) -> int:
        """From the endpoint."""
        assert self.relay is not None
        return self.relay.endpoint.moved

    def cut(self, reason: Reason) -> None:
        """As a drain does it."""
        assert self.relay is not None
        self.relay.cut(reason)

    def sweep(self, now: float) -> None:
        """The lane's sweep."""
        assert self.relay is not None
        if not self.relay.over:
            self.relay.sweep(now)

    def relayed(self, reason: Reason, ended_by: Side, detail: str) -> None:
        """Over."""
        assert self.rig is not None
        assert not self.rig.over.is_set()
        self.rig._outcome = RelayOutcome(
            reason=self.closed if reason is Reason.OK else reason,
            ended_by=ended_by,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            detail=detail,
        )
        self.rig.over.set()

    def on_fault(self, exc: Exception) -> None:
        """A bug."""
        self.fault = exc
        self.cut(Reason.BUG)


@asynccontextmanager
async def relaying_in_lane(
    loopback: Loopback,
    pipes: PipePool,
    *,
    idle: float = 30.0,
    total: float = math.inf,
    closed: Reason = Reason.TUNNEL_CLOSED,
    buffer: int = 0,
    unix: bool = False,
    tls: Sides = PLAIN,
) -> AsyncIterator[Rig]:
    """The same in a lane of its own."""
    (down, client), (up, server) = _pairs(loopback, unix, buffer, tls)
    lane, owner = Lane(trio.current_time), LaneOwner(closed)
    relay = owner.relay = LaneRelay(
        lane, pipes, raw(down), raw(up), owner, idle=idle, deadline=trio.current_time() + total
    )
    try:
        async with trio.open_nursery() as nursery:
            rig = owner.rig = Rig(End(client), End(server), owner, nursery)
            lane.timed.add(owner)
            relay.start()
            nursery.start_soon(lane.run_forever)
            nursery.start_soon(lane.sweep_forever)
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        relay.cut(Reason.DRAINED)
        rig.over.set()
        lane.close()
    assert owner.fault is None
    assert len(lane) == 0


def raw(sock: socket.socket) -> socket.SocketType:
    """The same connection as the lane has it."""
    sock.setblocking(False)
    if isinstance(sock, TlsSocket):
        return sock
    found = socket.SocketType(sock.family, sock.type | socket.SOCK_NONBLOCK, sock.proto, sock.detach())
    found.settimeout(0)
    return found


both_ways = pytest.mark.parametrize("relaying", [relaying, relaying_in_lane], ids=["task", "lane"])
"""For tests that hold in tasks and in the lane."""
