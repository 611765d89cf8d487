"""A stream over real sockets: what arrives, what a failure is called, what deadlines and cancellation leave
behind."""

from __future__ import annotations

import errno
import hashlib
import math
import random
import socket
import struct

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tcpgate.errors import Bug, ClientError, GateError, Reason, Refused, Retry, Side, UpstreamError
from tcpgate.net.stream import CREDIT, LEAST_CHARGE, Stream
from tests.net.loopback import Loopback

RESET = struct.pack("ii", 1, 0)


def reset(peer: trio.socket.SocketType) -> None:
    """End `peer`'s connection with a RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


async def read_all(peer: trio.socket.SocketType) -> bytes:
    """Everything up to the end of stream."""
    data = bytearray()
    while piece := await peer.recv(1 << 16):
        data += piece
    return bytes(data)


async def send_for_ever(stream: Stream) -> None:
    """Send until it fails."""
    while True:
        await stream.send_all([b"x" * 1000, b"y" * 1000])
        await trio.sleep(0.001)


# -- moving bytes ---------------------------------------------------------------------------------------------------


async def test_what_the_peer_sends_arrives_and_then_its_end(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    await peer.send(b"hello")
    assert await stream.receive_some() == b"hello"
    peer.close()
    assert await stream.receive_some() == b""
    assert stream.bytes_in == 5


async def test_receiving_waits_for_the_first_byte(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    assert stream.receive_nowait() is None
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await stream.receive_some(3) == b"lat"

        nursery.start_soon(receive)
        await wait_all_tasks_blocked(0.01)
        await peer.send(b"late")


async def test_many_buffers_leave_in_order_through_a_small_send_buffer(loopback: Loopback) -> None:
    stream, peer = loopback.stream(buffer=8192)
    chance = random.Random(7)
    buffers = [chance.randbytes(chance.choice([0, 1, 10, 5000])) for _ in range(500)]
    got = b""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            nonlocal got
            got = await read_all(peer)

        nursery.start_soon(read)
        await stream.send_all(buffers)
        stream.shut_write()
    assert hashlib.sha256(got).digest() == hashlib.sha256(b"".join(buffers)).digest()
    assert stream.bytes_out == sum(map(len, buffers))
    assert not stream.poisoned


@pytest.mark.parametrize("data", [b"one", bytearray(b"two"), memoryview(b"three"), b"", [], [b"", b""]])
async def test_any_kind_of_buffer_can_be_sent(
    loopback: Loopback, data: bytes | bytearray | memoryview | list[bytes]
) -> None:
    stream, peer = loopback.stream()
    await stream.send_all(data)
    stream.close()
    assert await read_all(peer) == (b"".join(data) if isinstance(data, list) else bytes(data))


async def test_the_end_of_our_stream_does_not_end_the_peers(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    stream.shut_write()
    stream.shut_write()
    assert await peer.recv(1) == b""
    await peer.send(b"still here")
    assert await stream.receive_some() == b"still here"


async def test_a_peer_that_is_always_ready_lets_other_tasks_run(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    await peer.send(b"x" * 1000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            await stream.receive_some(1)
        after_reading = turns
        for _ in range(1000):
            await stream.send_all(b"x")
        nursery.cancel_scope.cancel()
    expected = 1000 * LEAST_CHARGE // CREDIT - 2
    assert after_reading >= expected
    assert turns - after_reading >= expected


async def test_a_quiet_connection_is_one_that_is_open_and_silent(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    assert stream.is_quiet()
    await peer.send(b"x")
    await stream.wait_readable()
    assert not stream.is_quiet()
    assert stream.receive_nowait() == b"x", "asking must not take the byte"
    assert stream.is_quiet()
    peer.close()
    await stream.wait_readable()
    assert not stream.is_quiet()
    stream.close()
    assert not stream.is_quiet()


async def test_a_reset_connection_is_not_quiet(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    reset(peer)
    await stream.wait_readable()
    assert not stream.is_quiet()


# -- failures -------------------------------------------------------------------------------------------------------

LOST = ["ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ENOBUFS", "ECONNABORTED", "ENOTCONN", "EIO"]


@pytest.mark.parametrize("name", LOST)
def test_a_lost_client_is_a_client_abort_and_a_lost_endpoint_an_upstream_that_closed(
    loopback: Loopback, name: str
) -> None:
    exc = OSError(getattr(errno, name), "anything")
    client = loopback.stream(Side.CLIENT)[0].failed(exc, "receiving")
    assert isinstance(client, ClientError)
    assert (client.reason, client.detail) == (Reason.CLIENT_ABORT, f"{name} while receiving")
    endpoint = loopback.stream(Side.UPSTREAM)[0].failed(exc, "sending")
    assert isinstance(endpoint, UpstreamError)
    assert (endpoint.reason, endpoint.retry) == (Reason.UPSTREAM_CLOSED, Retry.SAFE)
    assert endpoint.detail == f"{name} while sending"


@pytest.mark.parametrize("side", [Side.CLIENT, Side.UPSTREAM])
async def test_a_reset_is_raised_from_the_kernels_own_error(loopback: Loopback, side: Side) -> None:
    stream, peer = loopback.stream(side)
    reset(peer)
    with pytest.raises(GateError) as caught:
        await stream.receive_some()
    assert caught.value.side is side
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_sending_to_a_peer_that_left_fails_sooner_or_later(loopback: Loopback) -> None:
    stream, peer = loopback.stream(Side.UPSTREAM)
    peer.close()
    with pytest.raises(UpstreamError) as caught:
        await send_for_ever(stream)
    assert caught.value.detail in ("EPIPE while sending", "ECONNRESET while sending")


@pytest.mark.parametrize(
    ("late", "kind", "retry"),
    [
        (Reason.HEAD_TIMEOUT, ClientError, Retry.NEVER),
        (Reason.FIRST_BYTE_TIMEOUT, UpstreamError, Retry.SAFE),
        (Reason.EXCHANGE_TIMEOUT, Refused, Retry.NEVER),
    ],
)
async def test_a_deadline_is_raised_as_what_the_caller_calls_it(
    loopback: Loopback, late: Reason, kind: type[GateError], retry: Retry
) -> None:
    stream, _ = loopback.stream()
    with pytest.raises(kind) as caught:
        await stream.receive_some(deadline=trio.current_time() + 0.01, late=late)
    assert (caught.value.reason, caught.value.retry) == (late, retry)


async def test_a_send_that_misses_its_deadline_poisons_the_stream(loopback: Loopback) -> None:
    stream, _ = loopback.stream(Side.UPSTREAM, buffer=8192)
    with pytest.raises(UpstreamError) as caught:
        await stream.send_all(b"x" * 1_000_000, deadline=trio.current_time() + 0.02, late=Reason.UPSTREAM_WRITE_TIMEOUT)
    assert caught.value.reason is Reason.UPSTREAM_WRITE_TIMEOUT
    assert stream.poisoned
    with pytest.raises(Bug):
        await stream.send_all(b"more")


async def test_what_is_already_here_is_given_even_after_the_deadline(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    await peer.send(b"x")
    await stream.wait_readable()
    assert await stream.receive_some(deadline=trio.current_time() - 1) == b"x"


async def test_ending_towards_a_peer_that_was_reset_is_told_by_the_next_receive(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    reset(peer)
    await stream.wait_readable()
    stream.shut_write()
    with pytest.raises(ClientError):
        await stream.receive_some()


# -- cancellation ---------------------------------------------------------------------------------------------------


async def test_cancelling_a_receive_loses_nothing(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    with trio.move_on_after(0.01) as scope:
        await stream.receive_some()
    assert scope.cancelled_caught
    await peer.send(b"later")
    assert await stream.receive_some() == b"later"


async def test_cancelling_a_send_half_way_poisons_the_stream(loopback: Loopback) -> None:
    stream, _ = loopback.stream(buffer=8192)
    with trio.move_on_after(0.02) as scope:
        await stream.send_all([b"x" * 500_000, b"y" * 500_000])
    assert scope.cancelled_caught
    assert 0 < stream.bytes_out < 1_000_000
    assert stream.poisoned


async def test_cancelling_a_send_before_its_first_byte_leaves_the_stream_good(loopback: Loopback) -> None:
    stream, peer = loopback.stream(buffer=8192)
    filled = 0
    while sent := stream.send_nowait(b"x" * 8192):
        filled += sent
    with trio.move_on_after(0.02) as scope:
        await stream.send_all(b"never")
    assert scope.cancelled_caught
    assert not stream.poisoned
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(b"but this")
            stream.shut_write()

        nursery.start_soon(send)
        assert await read_all(peer) == b"x" * filled + b"but this"


async def test_closing_under_a_waiting_reader_is_our_own_bug_and_wakes_it(loopback: Loopback) -> None:
    stream, _ = loopback.stream()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(Bug):
                await stream.receive_some()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked(0.01)
        stream.close()


# -- ending ---------------------------------------------------------------------------------------------------------


async def test_close_delivers_what_was_sent_and_abort_does_not_look_like_an_end(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    await stream.send_all(b"all of it")
    stream.close()
    stream.close()
    assert await read_all(peer) == b"all of it"
    stream, peer = loopback.stream()
    stream.abort()
    stream.abort()
    with pytest.raises(ConnectionResetError):
        await peer.recv(1)


async def test_a_closed_stream_says_whose_bug_it_is(loopback: Loopback) -> None:
    stream, _ = loopback.stream()
    stream.close()
    for use in (stream.receive_some(), stream.send_all(b"x"), stream.wait_readable(), stream.wait_writable()):
        with pytest.raises(Bug):
            await use
    with pytest.raises(Bug):
        stream.unsent()
    await stream.wait_flushed(math.inf)
    stream.shut_write()


def test_the_peers_address_is_told(loopback: Loopback) -> None:
    stream, peer = loopback.stream()
    assert stream.peer == "{}:{}".format(*peer.getsockname())


async def test_flushing_ends_when_the_peer_has_everything_or_at_its_deadline(loopback: Loopback) -> None:
    stream, peer = loopback.stream(buffer=8192)
    while stream.send_nowait(b"x" * 8192):
        pass
    started = trio.current_time()
    await stream.wait_flushed(started + 0.05)
    assert trio.current_time() >= started + 0.05
    assert stream.unsent() > 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, peer)
        await stream.wait_flushed(math.inf)
        assert stream.unsent() == 0
        stream.close()
