"""Trio's own conformance suite for half-closeable streams, run over ours through a thin adapter.

The adapter gives what Trio's contract asks for beyond ours: a checkpoint in every call, Trio's exceptions, and a
complaint when two tasks send at once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import check_half_closeable_stream

from tcpgate.errors import Bug, GateError, Side
from tcpgate.net.stream import Stream
from tcpgate.net.unsent import Buffer
from tests.net.loopback import Loopback
from tests.net.tls_rig import tls_pair


@contextmanager
def as_trio_says() -> Iterator[None]:
    """Our errors as Trio's."""
    try:
        yield
    except Bug as exc:
        raise trio.ClosedResourceError from exc
    except GateError as exc:
        raise trio.BrokenResourceError from exc


class Adapter(trio.abc.HalfCloseableStream):
    """A `Stream` behind Trio's interface."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sending = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.sending:
            raise trio.BusyResourceError("another task sends")
        self.sending = True
        try:
            yield
        finally:
            self.sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError("max_bytes must be positive")
        await trio.lowlevel.checkpoint()
        with as_trio_says():
            return await self.stream.receive_some(65536 if max_bytes is None else max_bytes)

    async def send_all(self, data: Buffer) -> None:
        with self._alone():
            await trio.lowlevel.checkpoint()
            if self.stream.write_closed:
                raise trio.ClosedResourceError
            with as_trio_says():
                await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        with self._alone():
            await trio.lowlevel.checkpoint()
            with as_trio_says():
                await self.stream.wait_writable()

    async def send_eof(self) -> None:
        with self._alone():
            await trio.lowlevel.checkpoint()
            with as_trio_says():
                self.stream.shut_write()

    async def aclose(self) -> None:
        self.stream.close()
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("family", ["tcp", "unix", "tls"])
async def test_the_stream_passes_trios_conformance_suite(loopback: Loopback, family: str) -> None:
    def connected() -> tuple[socket.socket, socket.socket]:
        if family == "tcp":
            return loopback.pair(buffer=16384)
        if family == "tls":
            return tls_pair(loopback, buffer=16384)
        ours, theirs = socket.socketpair()
        return loopback.own(ours), loopback.own(theirs)

    async def make() -> tuple[Adapter, Adapter]:
        await trio.lowlevel.checkpoint()
        ours, theirs = connected()
        return Adapter(Stream(ours, Side.CLIENT)), Adapter(Stream(theirs, Side.UPSTREAM))

    async def make_clogged() -> tuple[Adapter, Adapter]:
        left, right = await make()
        full = 0
        while full < 5:  # between two tries the kernel moves what it can to the other end's buffer
            sent = left.stream.send_nowait(b"x" * 16384) + right.stream.send_nowait(b"x" * 16384)
            full = 0 if sent else full + 1
            await trio.sleep(0.001)
        return left, right

    # Over TLS a send that finds no room has begun: what a suite sends behind it would not be what was sealed.
    await check_half_closeable_stream(make, None if family == "tls" else make_clogged)
