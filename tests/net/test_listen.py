"""Opening listening sockets of each kind, what is said when that fails, and the accept loop under pressure."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tcpgate.net.address import SocketAddress, describe
from tcpgate.net.listen import BATCH, NEVER_MIND, SHORT_OF, accept_forever, bind
from tests.conftest import Eventually
from tests.net.loopback import Loopback

HAS_IPV6 = socket.has_ipv6 and os.path.exists("/proc/net/if_inet6")


def ignore(_: OSError) -> None:
    """Nobody is told."""


# -- bind -----------------------------------------------------------------------------------------------------------


def test_a_tcp_listener_is_non_blocking_and_its_connections_have_no_delay(loopback: Loopback) -> None:
    listener = loopback.own(bind("127.0.0.1:0"))
    assert listener.gettimeout() == 0
    client = loopback.own(socket.create_connection(listener.getsockname()))
    accepted = loopback.own(listener.accept()[0])
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert client.getpeername() == listener.getsockname()


def test_a_client_that_has_said_nothing_can_be_taken_before_its_listener_closes(loopback: Loopback) -> None:
    listener = bind("127.0.0.1:0")
    client = loopback.own(socket.create_connection(listener.getsockname()))
    accepted = loopback.own(listener.accept()[0])  # at once: the kernel keeps nobody back who is connected
    listener.close()
    client.sendall(b"hello")
    assert accepted.recv(5) == b"hello"


def test_a_restart_finds_its_port_free_although_old_connections_linger(loopback: Loopback) -> None:
    listener = bind("127.0.0.1:0")
    address = listener.getsockname()
    client = loopback.own(socket.create_connection(address))
    listener.accept()[0].close()  # we close first, so our end is the one in TIME_WAIT
    client.close()
    listener.close()
    assert loopback.own(bind(describe(address))).getsockname() == address


def test_a_port_in_use_is_said_to_be(loopback: Loopback) -> None:
    taken = describe(loopback.listener().getsockname())
    with pytest.raises(OSError, match=f"cannot listen on {taken}: the address is already in use") as caught:
        bind(taken)
    assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_host_is_said_to_be() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: no interface of this host") as caught:
        bind("192.0.2.1:0")
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_text_that_is_no_address_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="write it as"):
        bind("nonsense")


def is_free(port: int) -> bool:
    """Nobody has it in IPv4."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            sock.bind(("0.0.0.0", port))
            return True
    return False


@pytest.mark.skipif(not HAS_IPV6, reason="this host has no IPv6")
def test_all_of_ipv6_and_all_of_ipv4_can_have_the_same_port(loopback: Loopback) -> None:
    six = loopback.own(bind("[::]:0"))
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    while not is_free(six.getsockname()[1]):  # some other process has it, in IPv4 alone
        six = loopback.own(bind("[::]:0"))
    loopback.own(bind(f"0.0.0.0:{six.getsockname()[1]}"))


def test_a_unix_socket_has_the_mode_that_was_asked_for(loopback: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    listener = loopback.own(bind(f"unix:{path}", mode=0o640))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    client = loopback.own(socket.socket(socket.AF_UNIX))
    client.connect(str(path))
    loopback.own(listener.accept()[0])


def test_the_socket_file_of_a_dead_process_is_replaced(loopback: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    bind(f"unix:{path}").close()
    assert path.exists()
    loopback.own(bind(f"unix:{path}"))


def test_the_socket_file_of_a_living_process_is_left_alone(loopback: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    loopback.own(bind(f"unix:{path}"))
    with pytest.raises(OSError, match="another process listens there") as caught:
        bind(f"unix:{path}")
    assert caught.value.errno == errno.EADDRINUSE
    with loopback.own(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(path))


def test_a_living_process_with_a_full_backlog_is_not_taken_for_dead(loopback: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    loopback.own(bind(f"unix:{path}", backlog=1))
    while True:
        client = loopback.own(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        if client.connect_ex(str(path)) == errno.EAGAIN:
            break
    with pytest.raises(OSError, match="another process listens there"):
        bind(f"unix:{path}")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="a file that is not a socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "data"


def test_a_missing_directory_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the directory does not exist"):
        bind(f"unix:{tmp_path}/none/a.sock")


def test_an_inherited_socket_outlives_the_listener_that_used_it(loopback: Loopback) -> None:
    inherited = {"web": loopback.own(socket.create_server(("127.0.0.1", 0)))}
    for _ in range(2):
        with bind("fd:web", inherited=inherited) as listener:
            assert listener.gettimeout() == 0
            client = loopback.own(socket.create_connection(inherited["web"].getsockname()))
            accepted = loopback.own(listener.accept()[0])
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getpeername() == client.getsockname()


def test_an_inherited_socket_that_is_not_there_is_told_with_those_that_are(loopback: Loopback) -> None:
    inherited = {"web": loopback.own(socket.create_server(("127.0.0.1", 0)))}
    with pytest.raises(OSError, match=r"cannot listen on fd:wbe: no such socket .* \(it has web\)"):
        bind("fd:wbe", inherited=inherited)
    with pytest.raises(OSError, match="it has none at all"):
        bind("fd:web")


def test_an_inherited_socket_that_does_not_listen_is_refused(loopback: Loopback) -> None:
    with pytest.raises(OSError, match="not a listening stream socket"):
        bind("fd:web", inherited={"web": loopback.own(socket.socket())})


# -- accept_forever -------------------------------------------------------------------------------------------------


class FlakyListener(socket.socket):
    """A listening socket whose first accepts fail with these errors."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        """The next planned failure, else a connection."""
        if self.failures:
            raise OSError(self.failures.pop(0), "planned")
        return super().accept()


def flaky(loopback: Loopback, *failures: int) -> FlakyListener:
    """A flaky listener on a free port."""
    listener = FlakyListener()
    loopback.own(listener)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    listener.failures = list(failures)
    return listener


async def test_every_connection_is_handed_over_non_blocking_with_its_address(
    loopback: Loopback, eventually: Eventually
) -> None:
    listener = loopback.listener(backlog=256)
    clients = [loopback.own(socket.create_connection(listener.getsockname())) for _ in range(2 * BATCH + 3)]
    taken: dict[SocketAddress, socket.socket] = {}

    def take(sock: socket.socket, address: SocketAddress) -> None:
        taken[address] = loopback.own(sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, take, ignore)
        await eventually(lambda: len(taken) == len(clients))
        clients.append(loopback.own(socket.create_connection(listener.getsockname())))  # while it waits
        await eventually(lambda: len(taken) == len(clients))
        nursery.cancel_scope.cancel()
    assert taken.keys() == {client.getsockname() for client in clients}
    assert {sock.gettimeout() for sock in taken.values()} == {0}


async def test_a_flood_of_connections_lets_other_tasks_run(loopback: Loopback) -> None:
    listener = loopback.listener(backlog=256)
    for _ in range(3 * BATCH):
        loopback.own(socket.create_connection(listener.getsockname()))
    taken: list[socket.socket] = []
    seen: list[int] = []

    async def other() -> None:
        while True:
            seen.append(len(taken))
            await trio.lowlevel.checkpoint()

    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            nursery.start_soon(accept_forever, listener, lambda sock, _: taken.append(loopback.own(sock)), ignore)
            while len(taken) < 3 * BATCH:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert {BATCH, 2 * BATCH} & set(seen), "it looked in while connections were still waiting"
    assert len(taken) == 3 * BATCH


@pytest.mark.parametrize("failure", sorted(SHORT_OF))
async def test_without_descriptors_it_says_so_pauses_and_goes_on(loopback: Loopback, failure: int) -> None:
    listener = flaky(loopback, failure, failure)
    client = loopback.own(socket.create_connection(listener.getsockname()))
    told: list[int | None] = []
    started = trio.current_time()
    with trio.fail_after(20), trio.CancelScope() as scope:

        def take(sock: socket.socket, address: SocketAddress) -> None:
            loopback.own(sock)
            assert address == client.getsockname()
            scope.cancel()

        await accept_forever(listener, take, short=lambda exc: told.append(exc.errno))
    assert told == [failure, failure]
    assert trio.current_time() - started >= 0.2


@pytest.mark.parametrize("failure", sorted(NEVER_MIND))
async def test_a_connection_that_is_gone_before_it_is_accepted_costs_nothing(loopback: Loopback, failure: int) -> None:
    listener = flaky(loopback, failure)
    loopback.own(socket.create_connection(listener.getsockname()))
    with trio.fail_after(20), trio.CancelScope() as scope:

        def take(sock: socket.socket, _: SocketAddress) -> None:
            loopback.own(sock)
            scope.cancel()

        await accept_forever(listener, take, lambda exc: pytest.fail(f"paused for {exc}"))
    assert scope.cancelled_caught


async def test_a_listening_socket_that_is_broken_is_not_retried(loopback: Loopback) -> None:
    listener = loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))  # it does not listen
    with trio.fail_after(20), pytest.raises(OSError, match="Invalid argument"):
        await accept_forever(listener, lambda *_: None, ignore)


async def test_several_processes_can_accept_from_one_socket(loopback: Loopback, eventually: Eventually) -> None:
    listener = loopback.listener(backlog=256)
    taken: list[socket.socket] = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            # A duplicate is to epoll what the descriptor in another process is: all of them wake.
            shared = loopback.own(listener.dup())
            nursery.start_soon(accept_forever, shared, lambda sock, _: taken.append(loopback.own(sock)), ignore)
        for _ in range(100):
            loopback.own(socket.create_connection(listener.getsockname()))
            await trio.lowlevel.checkpoint()
        await eventually(lambda: len(taken) == 100)
        nursery.cancel_scope.cancel()


async def test_cancelling_it_loses_no_connection(loopback: Loopback) -> None:
    listener = loopback.listener()
    taken: list[socket.socket] = []
    with trio.move_on_after(0.01):
        await accept_forever(listener, lambda sock, _: taken.append(loopback.own(sock)), ignore)
    loopback.own(socket.create_connection(listener.getsockname()))
    assert not taken
    loopback.own(listener.accept()[0])
