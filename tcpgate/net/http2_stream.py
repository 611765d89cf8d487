"""One stream of an HTTP/2 connection as an exchange's carrier: what `stream.Stream` is for a connection of its own.

Receiving takes bytes out of the stream's `Inflow`, and only that gives the peer its window back: an exchange that does
not read holds its peer back, and what the stream can make us hold is one window. Sending hands body data to the
machine as far as both windows and the connection's `room` allow, and then waits for more of them, as a `Stream` waits
for the kernel. Header blocks need no window.

An error of the stream (a reset, a fault, the end of the connection) is raised by whatever waits or comes next; data
that came whole before it is still given.

Source: RFC 9113 5.2, 8.1. Owner: the exchange's tasks. One may receive while another sends; two must not do the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from tcpgate.codec.http2 import frames
from tcpgate.codec.http2_stream import Block, End, Inflow, LastBlock
from tcpgate.errors import ClientError, GateError, Reason, Retry, Side, UpstreamError
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.stream import READ_SIZE, Pacing, Stream, timed_out
from tcpgate.net.unsent import Buffer

HEAD_SIZE = 9
REST_PAUSE = 1.0
"""Seconds that a peer whose body is still wanted may pause once it has the whole answer. Some clients then send
no more and say nothing either: they wait to be told by a RST_STREAM without an error (RFC 9113 8.1)."""


class StreamCarrier:
    """One stream; satisfies `Carrier`."""

    plain = False
    poisoned = False
    """A send that was cut left whole frames behind: a RST_STREAM would still be understood."""

    def __init__(self, link: Http2Link, number: int, inflow: Inflow) -> None:
        self.number = number
        self.side: Side = link.stream.side
        self.peer = link.stream.peer
        self.bytes_in = self.bytes_out = 0
        """Heads as they were or would be written, and data."""
        self.closed = False
        self.write_ended = False
        """Our half of the stream has its end."""
        self.lost: GateError | None = link.lost
        """Why it cannot go on."""
        self._link = link
        self._inflow = inflow
        self._news = trio.Event()
        self._news_of_head = False
        self._has_room = trio.Event()
        self._is_lost = trio.Event()

    @property
    def under(self) -> Stream:
        """The connection that carries it: for its addresses."""
        return self._link.stream

    # -- what the connection's reader tells -------------------------------------------------------------------------

    def heard(self) -> None:
        """Data came, or the end: it is in the inflow."""
        self._news.set()

    def heard_head(self) -> None:
        """A head came, of which the codec knows: the next receive returns, with b"" if there is nothing else."""
        self._news_of_head = True
        self._news.set()

    def room_made(self) -> None:
        """A window opened, or what waited was sent."""
        self._has_room.set()

    def fail(self, exc: GateError) -> None:
        """The stream is over before its time."""
        if self.lost is None:
            self.lost = exc
            self._is_lost.set()
            self._news.set()
            self._has_room.set()

    async def wait_lost(self) -> None:
        """Raises, once it is, why the stream is over before its time."""
        await self._is_lost.wait()
        assert self.lost is not None
        raise self.lost

    # -- receiving --------------------------------------------------------------------------------------------------

    def receive_nowait(self, max_bytes: int = READ_SIZE) -> bytes | None:
        """As `Stream.receive_nowait`; also b"" where a head came and nothing else."""
        inflow = self._inflow
        if self.lost is not None and not inflow.ended:
            raise self.lost
        if inflow.size:
            data = inflow.take(max_bytes)
            self.bytes_in += len(data)
            self._link.machine.acknowledge(self.number, len(data))
            self._link.wake()
            return data
        if inflow.ended or self._news_of_head:
            self._news_of_head = False
            return b""
        return None

    async def receive_some(
        self,
        max_bytes: int = READ_SIZE,
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> bytes:
        """As `Stream.receive_some`."""
        while (data := self.receive_nowait(max_bytes)) is None:
            await self.wait_readable(deadline=deadline, late=late, pace=pace)
        if pace is not None:
            pace.waited(0.0, len(data))
        return data

    async def wait_readable(
        self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT, pace: Pacing | None = None
    ) -> None:
        """As `Stream.wait_readable`."""
        inflow = self._inflow
        if inflow.size or inflow.ended or self._news_of_head or self.lost is not None:
            await trio.lowlevel.checkpoint()
            return
        patience = pace.budget() if pace is not None else math.inf
        if pace is not None and self.write_ended:
            patience = min(patience, REST_PAUSE)
        started = trio.current_time()
        self._news = trio.Event()
        if await _wait(self._news, min(deadline, started + patience)):
            if pace is not None:
                pace.waited(trio.current_time() - started, 0)
            return
        if pace is not None and started + patience <= deadline:
            raise ClientError(Reason.BODY_TIMEOUT, f"nothing came for {trio.current_time() - started:.1f}s")
        raise timed_out(late, "receiving")

    # -- sending ----------------------------------------------------------------------------------------------------

    def send_nowait(self, data: Buffer) -> int:
        """How many bytes of body data were taken; 0 if there is no room now."""
        return self._send_data(data, end=False)

    def _send_data(self, data: Buffer, *, end: bool) -> int:
        """How much of `data` went. `end`: the stream ends with it, if all of it went."""
        machine, size = self._link.machine, len(data)
        if self.lost is not None or not machine.may_send(self.number):
            raise self._gone()
        count = min(size, self._link.room, machine.window(self.number))
        if size and not count:
            return 0
        piece = data if count == size and isinstance(data, bytes) else bytes(data[:count])
        machine.send_data(self.number, piece, end and count == size)
        if end and count == size:
            self._note_end()
        self.bytes_out += count
        self._link.wake()
        return count

    def _gone(self) -> GateError:
        """The machine has no such stream any more, and nobody said why."""
        if self.lost is not None:
            return self.lost
        if self.side is Side.CLIENT:
            return ClientError(Reason.CLIENT_ABORT, "the stream is over")
        return UpstreamError(Reason.UPSTREAM_CLOSED, "the stream is over", retry=Retry.SAFE)

    async def send_all(
        self,
        data: Buffer | Sequence[Buffer],
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> None:
        """As `Stream.send_all`. Header blocks and ends go out as such, all else as body data."""
        left = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        while left:
            self.send_ready(left)
            if left:
                await self._wait_room(left, deadline, late, pace)

    def send_ready(self, left: list[Buffer]) -> None:
        """Send of `left` what goes without waiting, and take it off."""
        while left:
            first = left[0]
            if isinstance(first, Block):
                self._send_block(first)
            elif isinstance(first, End):
                self._send_data(b"", end=True)
            elif first:
                ends = len(left) == 2 and isinstance(left[1], End)
                sent = self._send_data(first, end=ends)
                if sent < len(first):
                    left[0] = memoryview(first)[sent:]
                    return
                if ends:
                    left.pop()
            left.pop(0)

    def _send_block(self, block: Block) -> None:
        if self.lost is not None or not self._link.machine.may_send(self.number):
            raise self._gone()
        self._link.machine.send_block(self.number, block, isinstance(block, LastBlock))
        if isinstance(block, LastBlock):
            self._note_end()
        self.bytes_out += HEAD_SIZE + len(block)
        self._link.wake()

    def _note_end(self) -> None:
        self.write_ended = True
        self._news.set()  # who waits for the rest of a body now has less patience

    async def _wait_room(self, left: list[Buffer], deadline: float, late: Reason, pace: Pacing | None) -> None:
        """Until some of `left` may go; the time that it takes is the peer's, and what then goes it has earned."""
        if pace is None:
            await self.wait_writable(deadline=deadline, late=late)
            return
        started, before = trio.current_time(), self.bytes_out
        patience = pace.budget()
        self._has_room = trio.Event()
        opened = await _wait(self._has_room, min(deadline, started + patience))
        if opened:
            self.send_ready(left)
        pace.waited(trio.current_time() - started, self.bytes_out - before)
        if not opened and started + patience <= deadline:
            raise ClientError(Reason.CLIENT_SLOW, f"{sum(map(len, left))} bytes wait for the stream's window")
        if not opened:
            raise timed_out(late, "sending")

    async def wait_writable(self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT) -> None:
        """Until there may be room: a window has opened, or what waited was sent."""
        self._has_room = trio.Event()
        if self.lost is None and not (self._link.room and self._link.machine.window(self.number)):
            if not await _wait(self._has_room, deadline):
                raise timed_out(late, "sending")
        else:
            await trio.lowlevel.checkpoint()

    async def wait_flushed(self, deadline: float) -> None:
        """Until the kernel has what was sent; when the peer has it, HTTP/2 does not say."""
        await self._link.wait_flushed(deadline)

    def charge(self, count: int) -> None:
        """As `Stream.charge`: the connection's credit is its streams'."""
        self._link.stream.charge(count)

    async def breathe(self) -> None:
        """As `Stream.breathe`."""
        await self._link.stream.breathe()

    # -- ending -----------------------------------------------------------------------------------------------------

    def shut_write(self) -> None:
        """Send END_STREAM, if it was not sent."""
        if self.lost is None and self._link.machine.may_send(self.number):
            self._send_data(b"", end=True)

    def close(self) -> None:
        """End both directions in good order: what the peer still sends is wanted by nobody."""
        if not self.closed:
            self.shut_write()
            self.reset(frames.NO_ERROR)

    def abort(self) -> None:
        """RST_STREAM with CANCEL, as RFC 8441 5 has it for a connection that was reset."""
        self.reset(frames.CANCEL)

    def reset(self, code: int) -> None:
        """End the stream with RST_STREAM, if it has not ended; what nobody has read of it is dropped."""
        if self.closed:
            return
        self.closed = True
        machine = self._link.machine
        if machine.is_open(self.number):
            machine.reset(self.number, code)
        else:
            machine.release(self.number)
        self._link.wake()


async def _wait(event: trio.Event, deadline: float) -> bool:
    """Whether `event` came before `deadline`."""
    with trio.CancelScope(deadline=deadline) as scope:
        await event.wait()
    return not scope.cancelled_caught
