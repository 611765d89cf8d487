"""The relay's ends: who closed, who broke, what ran out of time, and what each side then sees."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tcpgate.errors import Reason, Side
from tcpgate.net.lane import SWEEP_EVERY
from tcpgate.net.pipes import PipePool
from tcpgate.net.relay import GOODBYE, Flow, relay
from tests.net.loopback import Loopback
from tests.net.rig import Relaying, both_ways
from tests.net.rig import relaying as relaying_in_tasks

LOST = r"reset|Broken pipe"

# -- good ends ------------------------------------------------------------------------------------------------------


async def test_bytes_go_both_ways_and_are_counted_while_they_move(loopback: Loopback, pipes: PipePool) -> None:
    told: list[tuple[int, int]] = []
    flow = Flow(lambda to_endpoint, from_endpoint: told.append((to_endpoint, from_endpoint)))
    async with relaying_in_tasks(loopback, pipes, flow=flow) as rig:
        began = flow.last_activity
        for _ in range(3):
            await rig.client.send(b"ping")
            assert await rig.server.exactly(4) == b"ping"
            await rig.server.send(b"answer")
            assert await rig.client.exactly(6) == b"answer"
        assert (flow.bytes_in, flow.bytes_out) == (12, 18)
        assert flow.last_activity > began
    assert (sum(one for one, _ in told), sum(other for _, other in told)) == (12, 18)


@pytest.mark.parametrize("unix", [False, True])
@both_ways
async def test_a_client_that_ends_first_still_gets_its_answer(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, unix: bool
) -> None:
    async with relaying(loopback, pipes, unix=unix) as rig:
        await rig.client.send(b"question")
        rig.client.finish()
        assert await rig.server.rest() == b"question"
        await trio.sleep(0.02)
        assert not rig.over.is_set()
        await rig.server.send(b"late answer")
        rig.server.sock.close()
        assert await rig.client.rest() == b"late answer"
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.TUNNEL_CLOSED, Side.CLIENT)
    assert (outcome.bytes_in, outcome.bytes_out) == (8, 11)


@pytest.mark.parametrize("unix", [False, True])
@both_ways
async def test_a_server_that_ends_first_still_hears_its_client(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, unix: bool
) -> None:
    async with relaying(loopback, pipes, closed=Reason.OK, unix=unix) as rig:
        await rig.server.send(b"greeting")
        rig.server.finish()
        assert await rig.client.rest() == b"greeting"
        await trio.sleep(0.02)
        assert not rig.over.is_set()
        await rig.client.send(b"last words")
        rig.client.finish()
        assert await rig.server.rest() == b"last words"
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.OK, Side.UPSTREAM)


@both_ways
async def test_a_connection_without_a_byte_ends_well(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes) as rig:
        rig.client.finish()
        assert await rig.server.rest() == b""
        rig.server.finish()
        assert await rig.client.rest() == b""
        assert (await rig.outcome()).reason is Reason.TUNNEL_CLOSED


async def test_what_was_already_read_goes_first(loopback: Loopback, pipes: PipePool) -> None:
    hello, banner = b"h" * 300_000, b"b" * 200_000
    async with relaying_in_tasks(loopback, pipes, to_upstream=hello, to_downstream=banner, buffer=16384) as rig:
        await rig.client.send(b"!")
        assert await rig.server.exactly(len(hello) + 1) == hello + b"!"
        assert await rig.client.exactly(len(banner)) == banner
        assert (rig.flow.bytes_in, rig.flow.bytes_out) == (len(hello) + 1, len(banner))


# -- broken ends ----------------------------------------------------------------------------------------------------


@both_ways
async def test_a_clients_reset_reaches_the_server(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes) as rig:
        await rig.client.send(b"x")
        await rig.server.exactly(1)
        rig.client.reset()
        assert await rig.server.is_reset()
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.CLIENT_ABORT, Side.CLIENT)
    assert outcome.detail == "ECONNRESET while receiving"


@both_ways
async def test_a_servers_reset_reaches_the_client(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes) as rig:
        await rig.server.send(b"x")
        await rig.client.exactly(1)
        rig.server.reset()
        assert await rig.client.is_reset()
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.UPSTREAM_CLOSED, Side.UPSTREAM)


@both_ways
async def test_an_answer_that_came_just_before_a_reset_is_delivered_before_it(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    # A server that closes without having read its whole request: its kernel sends the answer, then RST.
    async with relaying(loopback, pipes, buffer=200_000) as rig:
        await rig.client.send(b"request that nobody reads")
        await wait_all_tasks_blocked(0.01)
        await rig.server.send(b"a" * 100_000)
        rig.server.sock.close()
        await trio.sleep(0.05)
        assert await rig.client.exactly(100_000) == b"a" * 100_000
        assert await rig.client.is_reset()
        assert (await rig.outcome()).reason is Reason.UPSTREAM_CLOSED


@both_ways
async def test_a_client_that_does_not_read_cannot_hold_a_broken_flow_for_long(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes, buffer=16384) as rig:
        with trio.move_on_after(0.1):
            await rig.client.send(b"x" * 1_000_000)  # fills the way to the server, so that its reset is noticed
        with trio.move_on_after(0.1):
            await rig.server.send(b"a" * 1_000_000)  # and the way to the client, so that there is something to deliver
        started = trio.current_time()
        rig.server.reset()
        assert (await rig.outcome()).reason is Reason.UPSTREAM_CLOSED
    assert GOODBYE <= trio.current_time() - started < GOODBYE + 20


@both_ways
async def test_a_client_that_is_gone_stops_the_server(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes) as rig:
        rig.client.sock.close()
        with pytest.raises(OSError, match=LOST):
            await rig.server.send(b"x" * 50_000_000)
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.CLIENT_ABORT, Side.CLIENT)


# -- time -----------------------------------------------------------------------------------------------------------


@both_ways
async def test_a_flow_in_which_nothing_moves_is_ended_in_good_order(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    started = trio.current_time()
    async with relaying(loopback, pipes, idle=0.1) as rig:
        assert await rig.client.rest() == b""
        assert await rig.server.rest() == b""
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.IDLE_TIMEOUT, Side.GATEWAY)
    assert 0.1 <= trio.current_time() - started < 20


@pytest.mark.parametrize("talker", ["client", "server"])
@both_ways
async def test_one_side_that_talks_keeps_both_alive(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, mock_clock: MockClock, talker: str
) -> None:
    async with relaying(loopback, pipes, idle=0.1) as rig:
        speaker, listener = (rig.client, rig.server) if talker == "client" else (rig.server, rig.client)
        for _ in range(10):
            mock_clock.jump(0.09)
            await speaker.send(b".")
            await listener.exactly(1)
        await wait_all_tasks_blocked()
        mock_clock.jump(0.09)
        await wait_all_tasks_blocked()
        assert not rig.over.is_set()
        mock_clock.jump(0.11 + SWEEP_EVERY)  # the lane finds it at its next sweep
        assert (await rig.outcome()).reason is Reason.IDLE_TIMEOUT


@both_ways
async def test_a_half_closed_flow_is_still_bounded_by_the_idle_time(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes, idle=0.05) as rig:
        rig.client.finish()
        assert (await rig.outcome()).reason is Reason.IDLE_TIMEOUT


@both_ways
async def test_a_reader_that_stalls_is_idle_too(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    async with relaying(loopback, pipes, idle=0.1, buffer=16384) as rig:
        with pytest.raises(OSError, match=LOST):
            await rig.server.send(b"x" * 10_000_000)
        assert (await rig.outcome()).reason is Reason.IDLE_TIMEOUT


@both_ways
async def test_the_whole_time_of_a_flow_is_bounded_however_busy_it_is(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes, total=0.1) as rig:

        async def send_for_ever() -> None:
            with suppress(OSError):
                while True:
                    await rig.client.send(b"x" * 100_000)

        rig.nursery.start_soon(send_for_ever)
        assert await rig.server.is_reset(), "a torn stream must not look like a whole one"
        outcome = await rig.outcome()
    assert (outcome.reason, outcome.ended_by) == (Reason.EXCHANGE_TIMEOUT, Side.GATEWAY)


# -- cuts -----------------------------------------------------------------------------------------------------------


@both_ways
async def test_a_drain_cuts_a_flow_with_its_reason_and_a_reset(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes) as rig:
        await rig.client.send(b"x")
        await rig.server.exactly(1)
        rig.flow.cut(Reason.DRAINED)
        rig.flow.cut(Reason.BUG)
        outcome = await rig.outcome()
        assert await rig.client.is_reset()
        assert await rig.server.is_reset()
    assert (outcome.reason, outcome.ended_by, outcome.bytes_in) == (Reason.DRAINED, Side.GATEWAY, 1)


async def test_a_flow_that_is_cut_before_it_starts_ends_at_once(loopback: Loopback, pipes: PipePool) -> None:
    flow = Flow()
    flow.cut(Reason.DRAINED)
    async with relaying_in_tasks(loopback, pipes, flow=flow) as rig:
        assert (await rig.outcome()).reason is Reason.DRAINED


async def test_cancelling_the_caller_resets_both_sides_and_raises_nothing_but_cancelled(
    loopback: Loopback, pipes: PipePool
) -> None:
    downstream, client = loopback.stream(Side.CLIENT)
    upstream, server = loopback.stream(Side.UPSTREAM)
    flow = Flow()
    await client.send(b"abc")

    async def run() -> None:
        with pytest.raises(trio.Cancelled):
            await relay(downstream, upstream, idle=9, pipes=pipes, flow=flow)
        await trio.lowlevel.checkpoint()

    with trio.move_on_after(0.05):
        await run()
    assert flow.bytes_in == 3
    assert downstream.closed
    assert upstream.closed
    assert await server.recv(10) == b"abc"
    for peer in (client, server):
        with pytest.raises(ConnectionResetError):
            await peer.recv(1)


async def test_a_bug_in_a_half_leaves_as_itself_and_closes_both_sides(loopback: Loopback, pipes: PipePool) -> None:
    downstream, client = loopback.stream(Side.CLIENT)
    upstream, _ = loopback.stream(Side.UPSTREAM)
    await client.send(b"abc")

    def broken(to_endpoint: int, from_endpoint: int) -> None:
        raise ZeroDivisionError(f"{to_endpoint} {from_endpoint}")

    with pytest.raises(ZeroDivisionError):
        await relay(downstream, upstream, idle=9, pipes=pipes, flow=Flow(broken))
    assert downstream.closed
    assert upstream.closed
