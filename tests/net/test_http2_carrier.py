"""Streams of an HTTP/2 connection as carriers, over a real socket pair: windows, room, ends, and being cancelled."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest
import trio

from tcpgate.codec.events import Pair
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import DataReceived, HeadersReceived, StreamReset, WindowOpened
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2.settings import Settings
from tcpgate.codec.http2_stream import END, Block, Inflow, LastBlock
from tcpgate.codec.sides import Content
from tcpgate.errors import ClientError, GateError, Reason, Side
from tcpgate.net.http2_link import MOST_UNSENT, Http2Link
from tcpgate.net.http2_stream import StreamCarrier
from tcpgate.net.stream import Stream
from tcpgate.policy.pace import Pace

REQUEST: tuple[Pair, ...] = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"t"))


@attrs.define(eq=False)
class Ends:
    """Both ends of one connection: ours with its link, the client's with a machine of its own."""

    link: Http2Link
    peer: Http2
    sock: trio.SocketStream
    inflows: dict[int, Inflow] = attrs.field(factory=dict)

    async def flush(self) -> None:
        """The client says what it has to say."""
        await self.sock.send_all(self.peer.take_out())

    async def open(self) -> StreamCarrier:
        """A stream that the client has begun."""
        number = self.peer.open_stream(REQUEST, False)
        await self.flush()
        with trio.fail_after(30):
            while number not in self.link.streams:
                await trio.sleep(0.001)
        return self.link.streams[number]

    async def hear(self, count: int) -> bytes:
        """So many bytes of body data, and what comes with them."""
        data = b""
        with trio.fail_after(30):
            while len(data) < count:
                for event in self.peer.receive(await self.sock.receive_some(65536), trio.current_time()):
                    if isinstance(event, DataReceived):
                        data += event.data
        return data


@contextlib.asynccontextmanager
async def ends(settings: Settings | None = None) -> AsyncIterator[Ends]:
    """A connection, read and written."""
    ours, theirs = socket.socketpair()
    link = Http2Link(Stream(ours, Side.CLIENT, "test"), Http2("server"))
    both = Ends(link, Http2("client", settings), trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))

    async def read() -> None:
        with contextlib.suppress(GateError):
            while (events := await link.receive()) is not None:
                for event in events:
                    _on_event(both, event)

    async with trio.open_nursery() as nursery:
        link.wake()
        nursery.start_soon(link.write_forever)
        nursery.start_soon(read)
        await both.flush()
        yield both
        nursery.cancel_scope.cancel()
    link.stream.close()
    await both.sock.aclose()


def _on_event(both: Ends, event: object) -> None:
    link = both.link
    if isinstance(event, HeadersReceived):
        inflow = both.inflows[event.stream] = Inflow()
        link.streams[event.stream] = StreamCarrier(link, event.stream, inflow)
    elif isinstance(event, DataReceived):
        both.inflows[event.stream].put(event.data)
        both.inflows[event.stream].ended = event.end
        link.streams[event.stream].heard()
    elif isinstance(event, StreamReset):
        link.streams[event.stream].fail(link.reset_error(event))
    elif isinstance(event, WindowOpened):
        for carrier in link.streams.values():
            carrier.room_made()


async def test_what_is_received_gives_the_peer_its_window_back() -> None:
    async with ends() as both:
        carrier = await both.open()
        sent = 0
        with trio.fail_after(30):
            while sent < 300_000:
                sent += both.peer.send_data(carrier.number, b"x" * 16384)
                await both.flush()
                assert await carrier.receive_some()
                with trio.move_on_after(0.001):
                    both.peer.receive(await both.sock.receive_some(65536), trio.current_time())


async def test_the_end_of_the_peers_half_is_an_end_of_stream() -> None:
    async with ends() as both:
        carrier = await both.open()
        assert carrier.receive_nowait() is None
        both.peer.send_data(carrier.number, b"last", True)
        await both.flush()
        assert await carrier.receive_some() == b"last"
        assert await carrier.receive_some() == b""
        assert carrier.receive_nowait() == b""


async def test_a_send_waits_for_the_streams_window_and_is_whole_in_the_end() -> None:
    async with ends() as both:
        carrier = await both.open()
        data = bytes(range(256)) * 1024
        got = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carrier.send_all, [Block(b"\x88"), Content(data), END])
            while len(got) < len(data):
                got += await both.hear(1)
                both.peer.release(carrier.number)
                await both.flush()
    assert got == data
    assert carrier.write_ended
    assert carrier.bytes_out == len(data) + 10


async def test_what_all_streams_have_unsent_is_bounded_while_nobody_reads() -> None:
    async with ends(Settings(window=1 << 24, connection_window=1 << 26)) as both:
        carriers = [await both.open() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for carrier in carriers:
                nursery.start_soon(carrier.send_all, [Block(b"\x88"), Content(b"x" * (4 << 20))])
            await trio.sleep(0.1)
            assert len(both.link.machine.out) <= MOST_UNSENT + 4096
            assert not carriers[0].write_ended
            got = b""
            while len(got) < 16 << 20:
                got += await both.hear(1)
                for carrier in carriers:
                    both.peer.release(carrier.number)
                await both.flush()
    assert len(got) == 16 << 20


async def test_a_reset_wakes_who_sends_and_who_receives() -> None:
    failures: list[GateError] = []

    async def run(work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except GateError as exc:
            failures.append(exc)

    async with ends() as both:
        carrier = await both.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, lambda: carrier.send_all(Content(b"x" * (1 << 20))))
            nursery.start_soon(run, carrier.receive_some)
            nursery.start_soon(run, carrier.wait_lost)
            await trio.sleep(0.05)
            both.peer.reset(carrier.number, frames.CANCEL)
            await both.flush()
        with pytest.raises(ClientError):
            await carrier.send_all(b"x")
    assert [exc.reason for exc in failures] == [Reason.CLIENT_ABORT] * 3


async def test_the_loss_of_the_connection_is_that_of_its_streams() -> None:
    async with ends() as both:
        carrier = await both.open()
        both.link.fail(ClientError(Reason.CLIENT_ABORT, "gone"))
        with pytest.raises(ClientError):
            await carrier.receive_some()
        with pytest.raises(ClientError):
            await carrier.send_all(LastBlock(b"\x88"))
        assert StreamCarrier(both.link, 99, Inflow()).lost is not None


async def test_a_peer_below_its_pace_is_slow() -> None:
    async with ends() as both:
        carrier = await both.open()
        with pytest.raises(ClientError) as caught:
            await carrier.send_all(Content(b"x" * (1 << 20)), pace=Pace(min_rate=1 << 20, grace=0.1))
        assert caught.value.reason is Reason.CLIENT_SLOW
        with pytest.raises(ClientError) as caught:
            await carrier.receive_some(pace=Pace(min_rate=1 << 20, grace=0.1))
        assert caught.value.reason is Reason.BODY_TIMEOUT


async def test_a_deadline_is_raised_as_the_reason_that_the_caller_names() -> None:
    async with ends() as both:
        carrier = await both.open()
        soon = trio.current_time() + 0.05
        with pytest.raises(GateError) as caught:
            await carrier.receive_some(deadline=soon, late=Reason.UPSTREAM_IDLE)
        assert caught.value.reason is Reason.UPSTREAM_IDLE
        with pytest.raises(GateError) as caught:
            await carrier.send_all(Content(b"x" * (1 << 20)), deadline=soon, late=Reason.UPSTREAM_WRITE_TIMEOUT)
        assert caught.value.reason is Reason.UPSTREAM_WRITE_TIMEOUT


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async with ends() as both:
        carrier = await both.open()
        with trio.move_on_after(0.05):
            await carrier.receive_some()
        both.peer.send_data(carrier.number, b"here", False)
        await both.flush()
        assert await carrier.receive_some() == b"here"


async def test_a_send_that_is_cancelled_leaves_whole_frames_and_can_be_reset() -> None:
    async with ends() as both:
        carrier = await both.open()
        with trio.move_on_after(0.05):
            await carrier.send_all([Block(b"\x88"), Content(b"x" * (1 << 20))])
        carrier.reset(frames.INTERNAL_ERROR)
        codes: list[int] = []
        with trio.fail_after(30):
            while not codes:
                events = both.peer.receive(await both.sock.receive_some(65536), trio.current_time())
                codes = [event.code for event in events if isinstance(event, StreamReset)]
    assert codes == [frames.INTERNAL_ERROR]


async def test_closing_in_good_order_ends_our_half_and_wants_no_more_of_the_peers() -> None:
    async with ends() as both:
        carrier = await both.open()
        await carrier.send_all([Block(b"\x88"), Content(b"x")])
        carrier.close()
        carrier.close()
        ended = False
        codes: list[int] = []
        with trio.fail_after(30):
            while not codes:
                for event in both.peer.receive(await both.sock.receive_some(65536), trio.current_time()):
                    ended = ended or (isinstance(event, DataReceived) and event.end)
                    codes += [event.code] if isinstance(event, StreamReset) else []
    assert (ended, codes) == (True, [frames.NO_ERROR])
