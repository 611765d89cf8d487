"""An HTTP/2 connection's socket: what its streams share. Frames come in by one reader and go out by one writer.

Theory of operation. The machine (`codec/http2`) turns bytes into events and holds what must go out. Whoever puts
something there calls `wake`; the writer then takes all of it in one piece, so that what many streams say in the same
instant is one system call. What the machine may hold is bounded: a stream that has body data to send waits while there
is no `room`, and is told when the kernel has taken what was there. Control frames need no room: the machine ends the
connection of a peer that makes us say more and more without reading. Heads need none, either; a peer that has let too
many of them wait is not read.

Either role: the client's side of the gateway has streams that the peer opens, an endpoint's side those that we open.

Source: RFC 9113. Owner: the task of the connection, which runs `write_forever` beside its own reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import ConnectionFailed, Event, StreamReset
from tcpgate.codec.http2.machine import Http2
from tcpgate.errors import ClientError, GateError, Reason, Retry, Side, UpstreamError
from tcpgate.net.stream import Pacing, Stream

if TYPE_CHECKING:
    from tcpgate.net.http2_stream import StreamCarrier

MOST_UNSENT = 128 << 10
"""Bytes of body data in the machine for all streams together; a socket buffer's worth. Envoy's watermark: 256 KiB."""
MOST_WAITING = 4 * MOST_UNSENT
"""Bytes of all frames that wait to be sent; a peer that has let them become more is not read until it has read."""


class Http2Link:
    """One connection: its socket, its machine, its streams."""

    def __init__(
        self,
        stream: Stream,
        machine: Http2,
        pace: Callable[[], Pacing] | None = None,
        on_lost: Callable[[GateError], None] | None = None,
    ) -> None:
        """`pace`: makes the least speed at which the peer has to take what one send gives. `on_lost`: told once."""
        self.stream = stream
        self.machine = machine
        self.streams: dict[int, StreamCarrier] = {}
        """Those that somebody works with."""
        self.lost: GateError | None = None
        """Why no stream can go on."""
        self._pace = pace
        self._on_lost = on_lost
        self._has_work = trio.Event()
        self._sending = False
        self._flushed = trio.Event()
        self._flushed.set()
        self._has_sent = trio.Event()

    # -- in ---------------------------------------------------------------------------------------------------------

    async def receive(self) -> list[Event] | None:
        """What the peer says next; None once it has ended. GateError if the connection is lost. Cancelled: nothing is.

        The answers that the machine has to it are on their way.
        """
        # Heads need no room, so a client that asks on and reads no answer must not be read, either. Where it is body
        # data that waits, reading goes on: a peer may want to be read before it reads.
        while self._sending and len(self.machine.out) > MOST_WAITING and self.lost is None:
            await self._has_sent.wait()
        data = await self.stream.receive_some()
        if not data:
            return None
        return self.take(data)

    def take(self, data: bytes) -> list[Event]:
        """As `receive`, of bytes that were read before."""
        events = self.machine.receive(data, trio.current_time())
        self.wake()
        return events

    def fail(self, exc: GateError) -> None:
        """The connection is lost: so are all its streams."""
        if self.lost is None:
            self.lost = exc
            for carrier in list(self.streams.values()):
                carrier.fail(exc)
            if self._on_lost is not None:
                self._on_lost(exc)

    def reset_error(self, event: StreamReset | ConnectionFailed) -> GateError:
        """What it means for a stream's exchange that the peer ended it, or broke a rule."""
        name = frames.error_name(event.code)
        told = event.text or name
        if self.stream.side is Side.CLIENT:
            if isinstance(event, ConnectionFailed) or event.by_us:
                return ClientError(Reason.BAD_REQUEST, told)
            return ClientError(Reason.CLIENT_ABORT, f"RST_STREAM: {name}")
        if isinstance(event, ConnectionFailed) or event.by_us:
            return UpstreamError(Reason.UPSTREAM_PROTOCOL, told, retry=Retry.SAFE)
        refused = event.code == frames.REFUSED_STREAM
        retry = Retry.IF_UNSENT if refused else Retry.SAFE
        return UpstreamError(Reason.UPSTREAM_CLOSED, f"RST_STREAM: {name}", retry=retry)

    # -- out --------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes of body data that may be added to what waits to be sent."""
        return max(0, MOST_UNSENT - len(self.machine.out))

    def window_opened(self, number: int) -> None:
        """The peer takes more: on one stream, or (0) on all."""
        if number in self.streams:
            self.streams[number].room_made()
        elif not number:
            for carrier in list(self.streams.values()):
                carrier.room_made()

    def wake(self) -> None:
        """There may be something to send."""
        if self.machine.out:
            self._has_work.set()
            if self._flushed.is_set():
                self._flushed = trio.Event()

    async def write_forever(self) -> None:
        """Send what the machine has to say, as it comes. Returns once the connection is lost by it."""
        try:
            while True:
                await self._has_work.wait()
                self._has_work = trio.Event()
                await self._write()
        except GateError as exc:
            self.fail(exc)
            self._flushed.set()
            self._has_sent.set()

    async def _write(self) -> None:
        self._sending = True
        while data := self.machine.take_out():
            await self.stream.send_all(data, pace=None if self._pace is None else self._pace())
            self._has_sent.set()
            self._has_sent = trio.Event()
            for carrier in list(self.streams.values()):
                carrier.room_made()
        self._sending = False
        self._flushed.set()

    async def wait_flushed(self, deadline: float = math.inf) -> None:
        """Until the kernel has all that was to be said by now, the connection is lost, or `deadline`."""
        with trio.CancelScope(deadline=deadline):
            await self._flushed.wait()

    def write_last(self) -> None:
        """Send what goes without waiting: the end of a connection whose tasks are cancelled."""
        if not (self._sending or self.stream.poisoned or self.stream.closed):
            with suppress(GateError):
                self.stream.send_nowait(self.machine.take_out())
