"""Connecting in the lane: the same ends as a dial has, told once, with nothing left open or registered."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.errors import GateError, Reason, Refused, Retry, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.connect import Connecting
from tcpgate.net.lane import Lane
from tests.net.loopback import Loopback


@attrs.define(eq=False)
class Asker:
    """A rider that wants a connection, and remembers what it was told."""

    sock: socket.SocketType | None = None
    target: Target | None = None
    error: GateError | None = None
    fault: Exception | None = None
    told: int = 0
    over: trio.Event = attrs.field(factory=trio.Event)

    def connected(self, sock: socket.SocketType, target: Target) -> None:
        """Noted."""
        self.sock, self.target = sock, target
        self._count()

    def connect_failed(self, error: GateError) -> None:
        """Noted."""
        self.error = error
        self._count()

    def on_fault(self, exc: Exception) -> None:
        """Noted."""
        self.fault = exc
        self._count()

    def _count(self) -> None:
        self.told += 1
        self.over.set()


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    """A lane that runs, and in the end has nothing in it."""
    lane = Lane(trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.run_forever)
        nursery.start_soon(lane.sweep_forever)
        yield lane
        nursery.cancel_scope.cancel()
    assert len(lane) == 0
    assert not lane.timed
    lane.close()


@contextmanager
def no_descriptor_is_lost() -> Iterator[None]:
    """As many descriptors are open afterwards as before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def target_of(listener: socket.socket) -> Target:
    """Where it listens."""
    return Target(listener.family, listener.getsockname())


def at(host: str, port: int) -> Target:
    """An IPv4 target."""
    return Target(socket.AF_INET, (host, port))


def deaf(loopback: Loopback, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listener whose backlog is full: it answers no SYN."""
    listener = loopback.listener(host, port, backlog=0)
    for _ in range(3):
        client = loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        client.connect_ex(listener.getsockname())
    return listener


def full_unix(loopback: Loopback, folder: Path) -> socket.socket:
    """A unix listener that has no room for another one."""
    listener = loopback.own(socket.socket(socket.AF_UNIX))
    listener.bind(str(folder / "a"))
    listener.listen(0)
    loopback.own(socket.socket(socket.AF_UNIX)).connect(str(folder / "a"))
    return listener


async def connect(lane: Lane, targets: Sequence[Target], seconds: float = 20.0) -> Asker:
    """What came of it."""
    asker = Asker()
    Connecting(lane, targets, trio.current_time() + seconds, asker).start()
    await asker.over.wait()
    assert asker.fault is None
    assert asker.told == 1
    return asker


async def test_a_local_connection_needs_no_event_and_carries_bytes_without_delay(
    lane: Lane, loopback: Loopback
) -> None:
    listener, asker = loopback.listener(), Asker()
    target = target_of(listener)
    Connecting(lane, (target,), trio.current_time() + 20, asker).start()
    assert asker.sock is not None, "told before anything was awaited"
    assert asker.target == target
    assert asker.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert asker.sock.gettimeout() == 0
    assert asker.sock.send(b"hello") == 5
    assert loopback.own(listener.accept()[0]).recv(5) == b"hello"
    asker.sock.close()


async def test_a_unix_socket_is_connected_to_by_its_path(lane: Lane, loopback: Loopback, tmp_path: Path) -> None:
    listener = loopback.own(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "a"))
    listener.listen()
    asker = await connect(lane, (target_of(listener),))
    assert asker.sock is not None
    asker.sock.close()


@pytest.mark.parametrize("where", ["port", "path", "long path"])
async def test_nobody_there_is_a_refusal_and_an_impossible_path_unreachable(
    lane: Lane, loopback: Loopback, tmp_path: Path, where: str
) -> None:
    paths = {"path": f"{tmp_path}/none", "long path": "/" + "a" * 200}
    target = at("127.0.0.1", loopback.refusing_port()) if where == "port" else Target(socket.AF_UNIX, paths[where])
    with no_descriptor_is_lost():
        error = (await connect(lane, (target,))).error
    assert isinstance(error, UpstreamError)
    assert error.retry is Retry.IF_UNSENT
    assert error.reason is (Reason.UNREACHABLE if where == "long path" else Reason.CONNECT_REFUSED)


async def test_a_refusal_is_told_as_a_dial_tells_it(lane: Lane, loopback: Loopback) -> None:
    port = loopback.refusing_port()
    error = (await connect(lane, (at("127.0.0.1", port),))).error
    assert error is not None
    assert error.detail == f"127.0.0.1:{port}: ECONNREFUSED"


async def test_a_host_that_does_not_answer_is_a_connect_timeout_found_by_the_sweep(
    lane: Lane, loopback: Loopback
) -> None:
    target, started = target_of(deaf(loopback)), trio.current_time()
    with no_descriptor_is_lost():
        error = (await connect(lane, (target,), 0.05)).error
    assert error is not None
    assert (error.reason, error.retry) == (Reason.CONNECT_TIMEOUT, Retry.IF_UNSENT)
    assert error.detail == f"{target}: no answer"
    assert 0.05 <= trio.current_time() - started < 20


async def test_a_host_that_answers_late_is_connected_to_by_an_event(lane: Lane, loopback: Loopback) -> None:
    listener = deaf(loopback)
    asker = Asker()
    Connecting(lane, (target_of(listener),), trio.current_time() + 30, asker).start()
    assert asker.told == 0
    assert len(lane) == 1
    listener.listen(16)
    while asker.told == 0:  # its SYN is sent again after a second
        await trio.sleep(0.01)
    assert asker.sock is not None
    assert len(lane) == 0
    asker.sock.close()


async def test_a_unix_socket_with_a_full_backlog_is_knocked_at_until_there_is_room(
    lane: Lane, loopback: Loopback, tmp_path: Path
) -> None:
    listener = full_unix(loopback, tmp_path)
    with no_descriptor_is_lost():
        late = await connect(lane, (target_of(listener),), 0.05)
    assert late.error is not None
    assert late.error.reason is Reason.CONNECT_TIMEOUT
    asker = Asker()
    Connecting(lane, (target_of(listener),), trio.current_time() + 20, asker).start()
    assert asker.told == 0
    loopback.own(listener.accept()[0])
    await asker.over.wait()
    assert asker.sock is not None
    asker.sock.close()


async def test_a_cancelled_one_closes_its_socket_and_tells_nobody(
    lane: Lane, loopback: Loopback, tmp_path: Path
) -> None:
    for listener in (deaf(loopback), full_unix(loopback, tmp_path)):
        asker = Asker()
        with no_descriptor_is_lost():
            connecting = Connecting(lane, (target_of(listener),), trio.current_time() + 20, asker)
            connecting.start()
            connecting.cancel()
            connecting.cancel()
            connecting.sweep(trio.current_time() + 99)
            connecting.on_ready(0)
        assert asker.told == 0


async def test_an_event_that_was_meant_for_another_does_no_harm(lane: Lane, loopback: Loopback) -> None:
    asker = Asker()
    connecting = Connecting(lane, (target_of(deaf(loopback)),), trio.current_time() + 20, asker)
    connecting.start()
    connecting.on_ready(0)
    assert asker.told == 0
    connecting.cancel()


async def test_a_gateway_without_descriptors_says_that_it_is_its_own_fault(lane: Lane, loopback: Loopback) -> None:
    targets = (target_of(loopback.listener()), at("127.0.0.1", loopback.refusing_port()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        error = (await connect(lane, targets)).error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(error, Refused)
    assert error.reason is Reason.FILE_LIMIT


async def test_an_epoll_set_without_room_is_the_gateways_own_fault_too(loopback: Loopback) -> None:
    class FullLane(Lane):
        def add(self, fd: int, callback: object, events: int = 0) -> None:
            raise OSError(errno.ENOSPC, f"planned for {fd} {callback} {events}")

    lane, asker = FullLane(trio.current_time), Asker()
    target = target_of(deaf(loopback))
    with no_descriptor_is_lost():
        Connecting(lane, (target,), trio.current_time() + 20, asker).start()
    assert asker.error is not None
    assert (asker.error.reason, asker.error.detail) == (Reason.FILE_LIMIT, f"{target}: ENOSPC")
    lane.close()


async def test_a_socket_that_connected_to_itself_is_refused(lane: Lane, loopback: Loopback) -> None:
    """Its own port is what a connect to a port in the range of local ones may be given; here it is bound to it."""
    asker = Asker()
    taken = loopback.own(socket.socket())
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    target = at(*taken.getsockname())
    connecting = Connecting(lane, (target,), trio.current_time() + 20, asker)
    taken.connect(target.sockaddr)
    connecting._sock = raw = socket.SocketType(fileno=taken.detach())
    connecting._settle(raw, target, 0)
    assert asker.error is not None
    assert (asker.error.reason, asker.error.detail) == (Reason.CONNECT_REFUSED, f"{target}: ECONNREFUSED")


async def test_the_next_address_is_tried_when_one_refuses(lane: Lane, loopback: Loopback) -> None:
    port = loopback.listener("127.0.0.1").getsockname()[1]
    asker = await connect(lane, (at("127.0.0.2", port), at("127.0.0.1", port)))
    assert asker.target == at("127.0.0.1", port)
    assert asker.sock is not None
    asker.sock.close()


async def test_a_deaf_address_has_only_its_share_of_the_time(lane: Lane, loopback: Loopback) -> None:
    port = loopback.listener("127.0.0.1").getsockname()[1]
    deaf(loopback, "127.0.0.2", port)
    started = trio.current_time()
    asker = await connect(lane, (at("127.0.0.2", port), at("127.0.0.1", port)), 1.0)
    assert asker.sock is not None, asker.error
    assert trio.current_time() - started >= 0.5
    asker.sock.close()


async def test_when_every_address_fails_all_of_them_are_told(lane: Lane, loopback: Loopback) -> None:
    port = loopback.refusing_port()
    with no_descriptor_is_lost():
        error = (await connect(lane, (at("127.0.0.2", port), at("127.0.0.3", port)))).error
    assert isinstance(error, UpstreamError)
    assert error.reason is Reason.CONNECT_REFUSED
    assert error.detail == f"127.0.0.2:{port}: ECONNREFUSED; 127.0.0.3:{port}: ECONNREFUSED"


async def test_a_caller_that_fails_when_it_is_told_hears_of_its_fault(lane: Lane, loopback: Loopback) -> None:
    class Broken(Asker):
        def connect_failed(self, error: GateError) -> None:
            raise ZeroDivisionError(str(error))

    asker = Broken()
    Connecting(lane, (target_of(deaf(loopback)),), trio.current_time(), asker).start()
    await asker.over.wait()
    assert isinstance(asker.fault, ZeroDivisionError)
    assert lane.faults == 1
