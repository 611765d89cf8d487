"""Slow bodies both ways: who is cut, after how long, and who is not."""

from __future__ import annotations

import math

import pytest
import trio

from tcpgate.errors import ClientError, Reason, Refused
from tcpgate.net.stream import Stream
from tcpgate.policy.pace import Pace
from tests.net.loopback import Loopback


async def read_slowly(peer: trio.socket.SocketType, size: int, pause: float) -> None:
    """Read `size` bytes every `pause` seconds, for ever."""
    while True:
        await peer.recv(size)
        await trio.sleep(pause)


async def write_slowly(peer: trio.socket.SocketType, data: bytes, pause: float) -> None:
    """Send `data` every `pause` seconds, for ever."""
    while True:
        await peer.send(data)
        await trio.sleep(pause)


async def read_for_ever(stream: Stream, pace: Pace, deadline: float = math.inf) -> None:
    """As an exchange reads a request body."""
    while await stream.receive_some(pace=pace, deadline=deadline):
        pass


async def test_a_body_that_stalls_is_cut_after_the_grace(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    await peer.send(b"x" * 10)
    started = trio.current_time()
    with pytest.raises(ClientError) as caught:
        await read_for_ever(stream, Pace(min_rate=1000, grace=0.1))
    assert caught.value.reason is Reason.BODY_TIMEOUT
    assert 0.1 <= trio.current_time() - started < 20


async def test_a_body_that_trickles_below_the_minimum_rate_is_cut(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_slowly, peer, b"x", 0.01)
        with pytest.raises(ClientError) as caught:
            await read_for_ever(stream, Pace(min_rate=1000, grace=0.4))
        nursery.cancel_scope.cancel()
    assert caught.value.reason is Reason.BODY_TIMEOUT
    assert stream.bytes_in > 1, "it was not cut for a stall, but for its average"


async def test_a_body_above_the_minimum_rate_goes_on(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    pace = Pace(min_rate=1000, grace=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_slowly, peer, b"x" * 100, 0.01)
        with trio.move_on_after(0.9) as scope:
            await read_for_ever(stream, pace)
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught
    assert not pace.late


async def test_our_own_slowness_is_not_the_clients(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    pace = Pace(min_rate=1000, grace=0.5)
    await peer.send(b"x")
    await stream.receive_some(pace=pace)
    await trio.sleep(0.6)  # the endpoint takes its time
    await peer.send(b"x")
    assert await stream.receive_some(pace=pace) == b"x"
    assert pace.budget() > 0.05


async def test_the_exchanges_deadline_counts_beside_the_pace(loopback: Loopback) -> None:
    stream, _ = loopback.stream()
    with pytest.raises(Refused) as caught:
        await read_for_ever(stream, Pace(min_rate=1000, grace=10), deadline=trio.current_time() + 0.02)
    assert caught.value.reason is Reason.EXCHANGE_TIMEOUT
    with pytest.raises(Refused):
        await stream.send_all(
            b"x" * 20_000_000, pace=Pace(min_rate=1000, grace=10), deadline=trio.current_time() + 0.02
        )


async def test_a_reader_that_stalls_is_cut_after_the_grace(loopback: Loopback) -> None:
    stream, _ = loopback.stream(buffer=16384)
    started = trio.current_time()
    with pytest.raises(ClientError) as caught:
        await stream.send_all(b"x" * 1_000_000, pace=Pace(min_rate=1000, grace=0.1, ceiling=0.2))
    assert caught.value.reason is Reason.CLIENT_SLOW
    assert 0.1 <= trio.current_time() - started < 20
    assert stream.poisoned


async def test_a_reader_below_the_minimum_rate_is_cut(loopback: Loopback) -> None:
    stream, peer = loopback.stream(buffer=16384)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly, peer, 100, 0.01)
        with pytest.raises(ClientError) as caught:
            await stream.send_all(b"x" * 5_000_000, pace=Pace(min_rate=1_000_000, grace=0.1, ceiling=0.2))
        nursery.cancel_scope.cancel()
    assert caught.value.reason is Reason.CLIENT_SLOW


async def test_an_honest_reader_is_judged_by_what_it_took_and_not_by_when_the_socket_is_writable_again(
    loopback: Loopback,
) -> None:
    # Megabytes wait in the send buffer, which the kernel calls writable again only when a third of them is gone: at
    # 640 KB/s after two seconds. The reader is three times as fast as it has to be.
    stream, peer = loopback.stream()
    pace = Pace(min_rate=200_000, grace=0.5, ceiling=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly, peer, 32_000, 0.05)
        with trio.move_on_after(1.2) as scope:
            await stream.send_all(b"x" * 20_000_000, pace=pace)
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught, "it was still being served"
    assert stream.unsent() > 1_000_000
