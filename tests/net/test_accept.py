"""Accepting in the lane: who is taken, who is left to others, and what a socket that stops leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.net import accept
from tcpgate.net.accept import BATCH, Acceptor
from tcpgate.net.address import SocketAddress
from tcpgate.net.lane import Lane
from tcpgate.net.listen import NEVER_MIND, SHORT_OF
from tests.conftest import Eventually
from tests.net.loopback import Loopback


@attrs.define(eq=False)
class Server:
    """Takes connections, and can be told how many of them are its share."""

    loopback: Loopback
    nursery: trio.Nursery
    rooms: list[int] = attrs.field(factory=list)
    """What `room` says, one after the other; then there is always room."""
    taken: list[tuple[socket.SocketType, SocketAddress, int | None]] = attrs.field(factory=list)
    told: list[int | None] = attrs.field(factory=list)
    batches: list[int] = attrs.field(factory=list)
    """How many had been taken each time that `room` was asked."""

    def accepted(self, sock: socket.SocketType, sockaddr: SocketAddress, port: int | None) -> None:
        """One more."""
        self.loopback.stack.callback(sock.close)
        self.taken.append((sock, sockaddr, port))

    def cannot_accept(self, exc: OSError) -> None:
        """Remember why."""
        self.told.append(exc.errno)

    def room(self) -> int:
        """As the test has it."""
        self.batches.append(len(self.taken))
        return self.rooms.pop(0) if self.rooms else BATCH

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """A task of the test's."""
        self.nursery.start_soon(work)


class FlakyListener(socket.socket):
    """A listening socket whose first accepts fail with these errors."""

    failures: list[int]

    def _accept(self) -> tuple[int, SocketAddress]:
        if self.failures:
            raise OSError(self.failures.pop(0), "planned")
        found: tuple[int, SocketAddress] = super()._accept()  # type: ignore[misc]
        return found


def flaky(loopback: Loopback, *failures: int) -> FlakyListener:
    """A flaky listener on a free port."""
    listener = FlakyListener()
    loopback.own(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    listener.setblocking(False)
    listener.failures = list(failures)
    return listener


@asynccontextmanager
async def accepting(
    loopback: Loopback, *listeners: socket.socket
) -> AsyncIterator[tuple[Lane, Server, list[Acceptor]]]:
    """A lane under way that accepts from these; all of them have stopped at the end, and nothing is left in it."""
    lane = Lane(trio.current_time)
    loopback.stack.callback(lane.close)
    async with trio.open_nursery() as nursery:
        server = Server(loopback, nursery)
        acceptors = [Acceptor(lane, listener, server) for listener in listeners]
        nursery.start_soon(lane.run_forever)
        for acceptor in acceptors:
            acceptor.begin()
        yield lane, server, acceptors
        for acceptor in acceptors:
            acceptor.stop()
        assert len(lane) == 0
        nursery.cancel_scope.cancel()


def dial(loopback: Loopback, listener: socket.socket, count: int = 1) -> list[socket.socket]:
    """So many clients."""
    return [loopback.own(socket.create_connection(listener.getsockname())) for _ in range(count)]


async def test_every_connection_is_taken_non_blocking_with_its_address_and_our_port(
    loopback: Loopback, eventually: Eventually
) -> None:
    listener = loopback.listener(backlog=256)
    clients = dial(loopback, listener, 2 * BATCH + 3)
    async with accepting(loopback, listener) as (_, server, _):
        await eventually(lambda: len(server.taken) == len(clients))
        clients += dial(loopback, listener)  # while it waits
        await eventually(lambda: len(server.taken) == len(clients))
    assert {address for _, address, _ in server.taken} == {client.getsockname() for client in clients}
    assert {port for _, _, port in server.taken} == {listener.getsockname()[1]}
    for sock, _, _ in server.taken:
        with pytest.raises(BlockingIOError):
            sock.recv(1)


async def test_a_unix_socket_has_no_port(loopback: Loopback, eventually: Eventually, tmp_path: Path) -> None:
    listener = loopback.own(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "sock"))
    listener.listen()
    listener.setblocking(False)
    client = loopback.own(socket.socket(socket.AF_UNIX))
    client.connect(listener.getsockname())
    async with accepting(loopback, listener) as (_, server, _):
        await eventually(lambda: len(server.taken) == 1)
    assert server.taken[0][1:] == ("", None)


async def test_a_burst_is_taken_in_batches_between_which_others_ride(
    loopback: Loopback, eventually: Eventually
) -> None:
    listener = loopback.listener(backlog=256)
    dial(loopback, listener, 3 * BATCH)
    async with accepting(loopback, listener) as (_, server, _):
        await eventually(lambda: len(server.taken) == 3 * BATCH)
    assert server.batches[:3] == [0, BATCH, 2 * BATCH]


async def test_who_has_more_than_its_share_leaves_the_lane_for_a_moment_and_then_takes_one(
    loopback: Loopback, eventually: Eventually
) -> None:
    listener = loopback.listener(backlog=256)
    dial(loopback, listener, 6)
    async with accepting(loopback, listener) as (_, server, _):
        server.rooms += [2, 0, -3, 0, 0]
        await eventually(lambda: len(server.taken) == 6)
    # Room for two; none, so it rests; none, but it has waited: one; the same again; then all the rest.
    assert server.batches[:6] == [0, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("failure", sorted(SHORT_OF))
async def test_without_descriptors_it_says_so_pauses_and_goes_on(
    loopback: Loopback, eventually: Eventually, failure: int
) -> None:
    listener = flaky(loopback, failure, failure)
    dial(loopback, listener)
    started = trio.current_time()
    async with accepting(loopback, listener) as (_, server, _):
        await eventually(lambda: len(server.taken) == 1)
    assert server.told == [failure, failure]
    assert trio.current_time() - started >= 0.2


@pytest.mark.parametrize("failure", sorted(NEVER_MIND))
async def test_a_connection_that_is_gone_before_it_is_accepted_costs_nothing(
    loopback: Loopback, eventually: Eventually, failure: int
) -> None:
    listener = flaky(loopback, failure)
    dial(loopback, listener)
    async with accepting(loopback, listener) as (lane, server, _):
        await eventually(lambda: len(server.taken) == 1)
    assert (server.told, lane.faults) == ([], 0)


async def test_a_listening_socket_that_is_broken_fails_the_owners_tasks(loopback: Loopback) -> None:
    listener = flaky(loopback, errno.EINVAL)
    dial(loopback, listener)
    broken = pytest.RaisesExc(OSError, match="planned")
    with trio.fail_after(20), pytest.RaisesGroup(broken):
        async with accepting(loopback, listener):
            await trio.sleep_forever()


async def test_a_full_lane_is_a_shortage_like_any_other(
    loopback: Loopback, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = loopback.listener()
    dial(loopback, listener)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(monkeypatch.context())
        full.setattr(Lane, "add", no_room)
        async with accepting(loopback, listener) as (_, server, _):
            await eventually(lambda: len(server.told) == 2)
            stack.close()
            await eventually(lambda: len(server.taken) == 1)
    assert set(server.told) == {errno.ENOSPC}


async def test_several_can_accept_from_one_socket(loopback: Loopback, eventually: Eventually) -> None:
    listener = loopback.listener(backlog=256)
    # A duplicate is to epoll what the descriptor in another process is: all of them wake.
    shared = [loopback.own(listener.dup()) for _ in range(3)]
    async with accepting(loopback, *shared) as (lane, server, _):
        for _ in range(100):
            dial(loopback, listener)
            await trio.lowlevel.checkpoint()
        await eventually(lambda: len(server.taken) == 100)
    assert lane.faults == 0


@pytest.mark.parametrize("when", ["before it has begun", "while it rests", "while it waits"])
async def test_one_that_stops_takes_nobody_any_more_and_its_number_may_be_used_again(
    loopback: Loopback, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(accept, "COURTESY", 30.0)
    listener, other = loopback.listener(), loopback.listener()
    async with accepting(loopback, listener) as (lane, server, (acceptor,)):
        if when != "before it has begun":
            await eventually(lambda: len(lane) == 1)
        if when == "while it rests":
            server.rooms += [0]
            dial(loopback, listener)
            await eventually(lambda: bool(server.batches))
        acceptor.stop()
        acceptor.stop()
        number = listener.fileno()
        rest = [] if when != "while it rests" else [listener.accept()[0]]
        listener.close()
        another = loopback.own(socket.socket(fileno=os.dup2(other.fileno(), number)))
        another.setblocking(False)
        fresh = Acceptor(lane, another, server)
        fresh.begin()
        await eventually(lambda: len(lane) == 1)
        acceptor.stop()
        dial(loopback, another)
        await eventually(lambda: len(server.taken) == 1)
        fresh.stop()
        for sock in rest:
            sock.close()
    assert server.taken[0][2] == another.getsockname()[1]
    assert lane.faults == 0


async def test_another_may_take_a_socket_over_before_the_first_has_stopped(
    loopback: Loopback, eventually: Eventually
) -> None:
    """As where a reload moves an address from one listener to another."""
    listener = loopback.listener()
    async with accepting(loopback, listener) as (lane, server, (first,)):
        await eventually(lambda: len(lane) == 1)
        second = Acceptor(lane, listener, server)
        second.begin()
        first.stop()
        dial(loopback, listener)
        await eventually(lambda: len(server.taken) == 1)
        second.stop()
    assert lane.faults == 0
