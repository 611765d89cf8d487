"""The relay in bulk: splice moves every byte right, memory stays flat, small flows stay quick, no descriptor leaks."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

import attrs
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tcpgate.errors import Reason, Side
from tcpgate.net.pipes import PIPE_SIZE, Pipe, PipePool
from tcpgate.net.relay import BULKY_AFTER, Flow, _Half
from tcpgate.net.stream import CREDIT, READ_SIZE
from tests.net.loopback import Loopback
from tests.net.rig import End, Relaying, Rig, both_ways

MIB = 1 << 20
FAR_ENDS = 2
"""Descriptors that a test's rig leaves open until the test is over."""


def resident() -> int:
    """This process's resident memory, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors() -> int:
    """How many there are."""
    return len(os.listdir("/proc/self/fd"))


async def exchange(rig: Rig, up: bytes, down: bytes, *, repeat: int = 1) -> None:
    """Send `up` and `down` so often, both at once, and compare what arrived by hash."""
    sizes: dict[str, bytes] = {}

    async def send(end: End, data: bytes) -> None:
        for _ in range(repeat):
            await end.send(data)
        end.finish()

    async def receive(name: str, end: End) -> None:
        sizes[name] = await end.digest()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, rig.client, up)
        nursery.start_soon(send, rig.server, down)
        nursery.start_soon(receive, "up", rig.server)
        nursery.start_soon(receive, "down", rig.client)
    for name, data in (("up", up), ("down", down)):
        expected = hashlib.sha256()
        for _ in range(repeat):
            expected.update(data)
        assert sizes[name] == expected.digest(), name


@pytest.mark.parametrize("unix", [False, True])
@both_ways
async def test_64_mib_each_way_at_once_arrive_unchanged_through_splice(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, unix: bool
) -> None:
    chance = random.Random(1)
    up, down = chance.randbytes(MIB + 17), chance.randbytes(MIB + 4099)
    async with relaying(loopback, pipes, unix=unix, closed=Reason.OK) as rig:
        await exchange(rig, up, down, repeat=64)
        outcome = await rig.outcome()
    assert outcome.reason is Reason.OK
    assert (outcome.bytes_in, outcome.bytes_out) == (64 * len(up), 64 * len(down))
    assert pipes.made > 0, "nothing was spliced"


@pytest.mark.parametrize("size", [0, 1, READ_SIZE - 1, READ_SIZE, BULKY_AFTER, BULKY_AFTER + 1, 3 * MIB])
@both_ways
async def test_any_size_arrives_whole_around_the_switch_to_splice(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, size: int
) -> None:
    data = random.Random(size).randbytes(size)
    async with relaying(loopback, pipes) as rig:
        await exchange(rig, data, data)


@both_ways
async def test_bulk_and_trickle_by_turns_arrive_in_order(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    chance = random.Random(3)
    async with relaying(loopback, pipes) as rig:
        for _ in range(4):
            for size in (2 * MIB, 1, 100, 20_000):
                data = chance.randbytes(size)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rig.client.send, data)
                    assert await rig.server.exactly(size) == data
    assert pipes.made == 1


@both_ways
async def test_a_slow_reader_holds_its_sender_back_and_costs_no_memory(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    buffer = 65536
    async with relaying(loopback, pipes, buffer=buffer) as rig:
        rig.nursery.start_soon(rig.server.send, bytes(64 * MIB))
        await trio.sleep(0.1)
        before = resident()
        for _ in range(20):
            await rig.client.exactly(10_000)
            await trio.sleep(0.005)
        # Handed on, but not yet read: what the kernel holds on the client's side (it doubles what one asks for).
        assert rig.flow.bytes_out <= 20 * 10_000 + 6 * buffer
        assert resident() - before < 4 * MIB


@both_ways
async def test_a_small_flow_stays_quick_beside_a_bulky_one(
    loopback: Loopback, pipes: PipePool, relaying: Relaying
) -> None:
    async with relaying(loopback, pipes) as bulky, relaying(loopback, pipes) as small:

        async def drain() -> None:
            while await bulky.client.sock.recv(1 << 20):
                pass

        async def flood() -> None:
            chunk = bytes(MIB)
            while True:
                await bulky.server.send(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            nursery.start_soon(flood)
            await trio.sleep(0.05)
            moved = bulky.flow.bytes_out
            started = time.monotonic()
            for _ in range(50):
                await small.client.send(b"ping")
                await small.server.exactly(4)
                await small.server.send(b"pong")
                await small.client.exactly(4)
            spent = time.monotonic() - started
            assert bulky.flow.bytes_out > moved + MIB, "the bulky flow went on meanwhile"
            nursery.cancel_scope.cancel()
    assert spent < 10, f"50 round trips took {spent:.2f} s"


@pytest.mark.parametrize("way", ["copy", "splice"])
async def test_a_direction_that_has_had_its_share_lets_others_run(
    loopback: Loopback, pipes: PipePool, way: str
) -> None:
    source, sender = loopback.stream(Side.UPSTREAM)
    sink, _ = loopback.stream(Side.CLIENT)
    half = _Half(Flow(), pipes, source, sink, can_splice=True)
    await sender.send(b"x" * READ_SIZE)
    await source.wait_readable()
    sink.charge(CREDIT)
    with assert_checkpoints():
        await (half.move_by_copy() if way == "copy" else half.move_by_splice())
    assert half.flow.bytes_out > 0


@pytest.mark.parametrize("breaker", ["client", "server"])
@both_ways
async def test_a_reset_in_the_middle_of_bulk_reaches_the_other_side(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, breaker: str
) -> None:
    async with relaying(loopback, pipes) as rig:

        async def flood() -> None:
            with suppress(OSError, trio.ClosedResourceError):
                while True:
                    await rig.server.send(bytes(MIB))

        rig.nursery.start_soon(flood)
        while pipes.made == 0 or rig.flow.bytes_out < 8 * MIB:
            await rig.client.exactly(MIB)
        if breaker == "server":
            rig.server.reset()
            assert await rig.client.is_reset()
        else:
            rig.client.reset()
        outcome = await rig.outcome()
    assert outcome.reason is (Reason.CLIENT_ABORT if breaker == "client" else Reason.UPSTREAM_CLOSED)
    assert outcome.detail.startswith(("ECONNRESET", "EPIPE"))


# -- where splice ends ----------------------------------------------------------------------------------------------


@both_ways
async def test_without_a_pipe_to_be_had_bytes_are_copied(loopback: Loopback, relaying: Relaying) -> None:
    none = PipePool(most=0)
    data = random.Random(4).randbytes(8 * MIB)
    async with relaying(loopback, none) as rig:
        await exchange(rig, data, data)
    assert none.made == 0


@attrs.define(eq=False)
class UnwillingPipe(Pipe):
    """A pipe that cannot be filled from, or cannot be drained into, this socket, as on a kernel without it."""

    refuses: str = "fill"

    def fill(self, source: int, most: int = PIPE_SIZE) -> int | None:
        """As asked."""
        if self.refuses == "fill":
            raise OSError(errno.EINVAL, "planned")
        return super().fill(source, most)

    def drain(self, sink: int) -> int:
        """As asked."""
        if self.refuses == "drain":
            raise OSError(errno.EINVAL, "planned")
        return super().drain(sink)


@attrs.define(eq=False)
class UnwillingPool(PipePool):
    """Gives out pipes that refuse."""

    refuses: str = "fill"
    lent: int = 0

    def borrow(self) -> Pipe | None:
        """An unwilling pipe."""
        self.lent += 1
        self.made += 1
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return UnwillingPipe(read_fd, write_fd, 65536, refuses=self.refuses)


@pytest.mark.parametrize("refuses", ["fill", "drain"])
@both_ways
async def test_where_splice_is_not_supported_the_flow_falls_back_to_copying(
    loopback: Loopback, relaying: Relaying, refuses: str
) -> None:
    pool = UnwillingPool(refuses=refuses)
    data = random.Random(5).randbytes(8 * MIB)
    before = open_descriptors()
    async with relaying(loopback, pool) as rig:
        await exchange(rig, data, data)
    pool.close()
    assert pool.lent == 2, "one try per direction"
    assert pool.made == 0
    assert open_descriptors() - before <= FAR_ENDS


# -- what is left behind --------------------------------------------------------------------------------------------


ENDS: dict[str, Callable[[Rig], None]] = {
    "the worker stops": lambda rig: rig.nursery.cancel_scope.cancel(),
    "a drain cuts it": lambda rig: rig.flow.cut(Reason.DRAINED),
    "the client breaks": lambda rig: rig.client.reset(),
    "the server breaks": lambda rig: rig.server.reset(),
}


@pytest.mark.parametrize("end", ENDS)
@both_ways
async def test_a_bulky_flow_that_ends_with_bytes_in_its_pipe_leaves_no_descriptor(
    loopback: Loopback, pipes: PipePool, relaying: Relaying, end: str
) -> None:
    before = open_descriptors()
    async with relaying(loopback, pipes, buffer=1 << 18, idle=1.0) as rig:

        async def flood() -> None:
            with suppress(OSError, trio.ClosedResourceError):
                await rig.server.send(bytes(64 * MIB))

        rig.nursery.start_soon(flood)
        while pipes.made == 0:  # the client reads until the flow is bulky, then no more
            await rig.client.exactly(100_000)
        moved = -1
        while moved < rig.flow.bytes_out:  # until the client's side is full
            moved = rig.flow.bytes_out
            await trio.sleep(0.05)
            await wait_all_tasks_blocked(0.01)
        assert (pipes.made, pipes.free) == (1, 0)
        ENDS[end](rig)
        await rig.over.wait()
    assert pipes.made == 0, "a pipe with bytes in it must not be used again"
    assert open_descriptors() - before <= FAR_ENDS


@both_ways
async def test_an_idle_bulky_flow_holds_no_pipe(loopback: Loopback, pipes: PipePool, relaying: Relaying) -> None:
    flows = 5
    async with trio.open_nursery() as nursery:
        done = trio.Event()
        ready = 0

        async def one() -> None:
            nonlocal ready
            async with relaying(loopback, pipes) as rig:
                rig.nursery.start_soon(rig.server.send, bytes(4 * MIB))
                await rig.client.exactly(4 * MIB)
                ready += 1
                if ready == flows:
                    done.set()
                await done.wait()
                await trio.sleep(0.01)
                assert pipes.made == pipes.free, "every pipe is back while the flows wait"

        for _ in range(flows):
            nursery.start_soon(one)
    assert pipes.made >= 1
