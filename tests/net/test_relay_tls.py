"""The relay with TLS on either side or on both: the same ends, the same bytes, in tasks and in the lane."""

from __future__ import annotations

import hashlib
import random
import socket
from contextlib import suppress

import pytest
import trio

from tcpgate.errors import Reason, Side
from tcpgate.net.pipes import PipePool
from tests.net.loopback import Loopback
from tests.net.rig import End, FarTls, Relaying, Sides, both_ways

LOST = r"reset|Broken pipe"
SIDES = pytest.mark.parametrize("tls", [(True, False), (False, True), (True, True)], ids=["in", "out", "both"])


@SIDES
@both_ways
async def test_a_client_that_ends_first_still_gets_its_answer(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides
) -> None:
    async with relaying(loopback, pipes, tls=tls) as rig:
        await rig.client.send(b"question")
        rig.client.finish()
        assert await rig.server.rest() == b"question"
        assert not rig.over.is_set()
        await rig.server.send(b"late answer" * 10_000)
        rig.server.sock.close()
        assert await rig.client.rest() == b"late answer" * 10_000
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.TUNNEL_CLOSED, Side.CLIENT)
    assert (outcome.bytes_in, outcome.bytes_out) == (8, 110_000)


@SIDES
@both_ways
async def test_a_server_that_ends_first_still_hears_its_client(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides
) -> None:
    async with relaying(loopback, pipes, closed=Reason.OK, tls=tls) as rig:
        await rig.server.send(b"greeting")
        rig.server.finish()
        assert await rig.client.rest() == b"greeting"
        assert not rig.over.is_set()
        await rig.client.send(b"last words")
        rig.client.finish()
        assert await rig.server.rest() == b"last words"
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.OK, Side.UPSTREAM)


@SIDES
@both_ways
async def test_an_end_by_close_notify_alone_is_passed_on(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides
) -> None:
    async with relaying(loopback, pipes, tls=tls) as rig:
        for end, other in ((rig.client, rig.server), (rig.server, rig.client)):
            await end.send(b"all that there is")
            if isinstance(end.sock, FarTls):
                assert end.sock.tls.say_goodbye()  # no FIN: many wait for the other side's first
            else:
                end.finish()
            assert await other.rest() == b"all that there is"
        assert (await rig.outcome()).reason is Reason.TUNNEL_CLOSED


@pytest.mark.parametrize("buffer", [4096, 0])
@SIDES
@both_ways
async def test_megabytes_each_way_at_once_arrive_unchanged(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides, buffer: int
) -> None:
    size = 2_000_003 if buffer else 12_000_007
    up, down = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    got: dict[str, bytes] = {}

    async def send(end: End, data: bytes) -> None:
        await end.send(data)
        end.finish()

    async def receive(end: End, name: str) -> None:
        got[name] = await end.digest()

    with trio.fail_after(60):
        async with relaying(loopback, pipes, tls=tls, buffer=buffer) as rig:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, rig.client, up)
                nursery.start_soon(send, rig.server, down)
                nursery.start_soon(receive, rig.client, "client")
                nursery.start_soon(receive, rig.server, "server")
            outcome = await rig.outcome()
    assert got["server"] == hashlib.sha256(up).digest()
    assert got["client"] == hashlib.sha256(down).digest()
    assert (outcome.bytes_in, outcome.bytes_out) == (size, size)
    assert pipes.made == 0  # splice knows no keys


@pytest.mark.parametrize("first", ["client", "server"])
@both_ways
async def test_an_end_behind_a_full_socket_waits_for_room_instead_of_being_a_cut(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, first: str
) -> None:
    for extra in range(0, 4000, 400):  # one of them leaves no room for close_notify
        async with relaying(loopback, pipes, tls=(True, True), buffer=4096) as rig:
            source, sink = (rig.client, rig.server) if first == "client" else (rig.server, rig.client)
            data = random.Random(extra).randbytes(100_000 + extra)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_and_finish, source, data)
                await trio.sleep(0.01)  # everything gets full
                assert await sink.rest() == data  # a cut would be a ConnectionResetError for an endpoint's end
            assert not rig.over.is_set()


async def _send_and_finish(end: End, data: bytes) -> None:
    await end.send(data)
    assert isinstance(end.sock, FarTls)
    while not end.sock.tls.say_goodbye():
        await trio.lowlevel.wait_writable(end.sock.tls)
    end.finish()


@SIDES
@both_ways
async def test_a_reset_reaches_the_other_side_as_no_good_end(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides
) -> None:
    async with relaying(loopback, pipes, tls=tls) as rig:
        await rig.client.send(b"x")
        await rig.server.exactly(1)
        rig.client.reset()
        with pytest.raises(OSError, match=LOST):
            await rig.server.rest()
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.CLIENT_ABORT, Side.CLIENT)


@both_ways
async def test_an_endpoints_stream_that_is_cut_is_no_good_end_for_the_client(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes, tls=(True, True)) as rig:
        await rig.server.send(b"half of it")
        assert await rig.client.exactly(10) == b"half of it"
        assert isinstance(rig.server.sock, FarTls)
        socket.socket.shutdown(rig.server.sock.tls, socket.SHUT_WR)  # a FIN that no key has signed
        assert await rig.client.is_reset()
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.UPSTREAM_CLOSED, Side.UPSTREAM)


@both_ways
async def test_a_clients_bare_end_is_an_end(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes, tls=(True, True)) as rig:
        assert isinstance(rig.client.sock, FarTls)
        await rig.client.send(b"question")
        socket.socket.shutdown(rig.client.sock.tls, socket.SHUT_WR)
        assert await rig.server.rest() == b"question"
        await rig.server.send(b"answer")
        rig.server.finish()
        assert await rig.client.rest() == b"answer"
        assert (await rig.outcome()).reason is Reason.TUNNEL_CLOSED


@SIDES
@both_ways
async def test_a_flow_in_which_nothing_moves_is_ended_in_good_order(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, tls: Sides
) -> None:
    async with relaying(loopback, pipes, idle=0.3, tls=tls) as rig:
        assert await rig.client.rest() == b""
        with suppress(ConnectionResetError):  # ours was closed: nobody reads what its tickets say
            assert await rig.server.rest() == b""
        assert (await rig.outcome()).reason is Reason.IDLE_TIMEOUT
