"""Connecting: what each failure is called, that nothing is left open, and how several addresses share the time."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tcpgate.errors import GateError, Reason, Refused, Retry, Side, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.dial import _connect, connect_failed, dial
from tcpgate.net.resolve import Resolver
from tcpgate.units import HostPort
from tests.net.loopback import Loopback

ANY = Target(socket.AF_INET, ("10.0.0.1", 80))


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return trio.current_time() + seconds


@contextmanager
def no_descriptor_is_lost() -> Iterator[None]:
    """As many descriptors are open afterwards as before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def deaf(loopback: Loopback, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listener whose backlog is full: it answers no SYN."""
    listener = loopback.listener(host, port, backlog=0)
    for _ in range(3):
        client = loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        client.connect_ex(listener.getsockname())
    return listener


async def test_a_connection_carries_bytes_without_delay_and_knows_its_peer(loopback: Loopback) -> None:
    listener = loopback.listener()
    address = "{}:{}".format(*listener.getsockname())
    stream = await dial(address, deadline=soon())
    peer = loopback.own(listener.accept()[0])
    await stream.send_all(b"hello")
    assert peer.recv(5) == b"hello"
    assert (stream.side, stream.peer) == (Side.UPSTREAM, address)
    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    stream.close()


async def test_a_unix_socket_is_dialled_by_its_path(loopback: Loopback, tmp_path: Path) -> None:
    listener = loopback.own(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "a"))
    listener.listen()
    stream = await dial(f"unix:{tmp_path}/a", deadline=soon())
    loopback.own(listener.accept()[0])
    assert stream.peer == f"unix:{tmp_path}/a"
    stream.close()


async def test_a_closed_port_refuses(loopback: Loopback) -> None:
    port = loopback.refusing_port()
    with no_descriptor_is_lost(), pytest.raises(UpstreamError) as caught:
        await dial(f"127.0.0.1:{port}", deadline=soon())
    assert (caught.value.reason, caught.value.retry) == (Reason.CONNECT_REFUSED, Retry.IF_UNSENT)
    assert caught.value.detail.endswith(": ECONNREFUSED")
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_missing_unix_socket_refuses(tmp_path: Path) -> None:
    with no_descriptor_is_lost(), pytest.raises(UpstreamError) as caught:
        await dial(f"unix:{tmp_path}/none", deadline=soon())
    assert caught.value.reason is Reason.CONNECT_REFUSED


async def test_a_host_that_does_not_answer_is_a_connect_timeout(loopback: Loopback) -> None:
    listener = deaf(loopback)
    with no_descriptor_is_lost(), pytest.raises(UpstreamError) as caught:
        await dial("{}:{}".format(*listener.getsockname()), deadline=soon(0.05))
    assert (caught.value.reason, caught.value.retry) == (Reason.CONNECT_TIMEOUT, Retry.IF_UNSENT)


async def test_a_unix_socket_with_a_full_backlog_is_knocked_at_until_there_is_room(
    loopback: Loopback, tmp_path: Path
) -> None:
    listener = loopback.own(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "a"))
    listener.listen(0)
    loopback.own(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "a"))
    with no_descriptor_is_lost(), pytest.raises(UpstreamError) as caught:
        await dial(f"unix:{tmp_path}/a", deadline=soon(0.05))
    assert caught.value.reason is Reason.CONNECT_TIMEOUT
    async with trio.open_nursery() as nursery:

        async def make_room() -> None:
            await trio.sleep(0.03)
            loopback.own(listener.accept()[0])

        nursery.start_soon(make_room)
        (await dial(f"unix:{tmp_path}/a", deadline=soon())).close()


async def test_cancelling_a_dial_closes_its_socket(loopback: Loopback) -> None:
    listener = deaf(loopback)
    with no_descriptor_is_lost(), trio.move_on_after(0.02) as scope:
        await dial("{}:{}".format(*listener.getsockname()), deadline=soon())
    assert scope.cancelled_caught


async def test_a_gateway_without_descriptors_says_that_it_is_its_own_fault(loopback: Loopback) -> None:
    address = "{}:{}".format(*loopback.listener().getsockname())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Refused) as caught:
            await dial(address, deadline=soon())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.reason is Reason.FILE_LIMIT


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ECONNREFUSED", Reason.CONNECT_REFUSED),
        ("ECONNRESET", Reason.CONNECT_REFUSED),
        ("ENOENT", Reason.CONNECT_REFUSED),
        ("ETIMEDOUT", Reason.CONNECT_TIMEOUT),
        ("EHOSTUNREACH", Reason.UNREACHABLE),
        ("ENETUNREACH", Reason.UNREACHABLE),
        ("ENETDOWN", Reason.UNREACHABLE),
        ("EADDRNOTAVAIL", Reason.UNREACHABLE),
        ("EACCES", Reason.UNREACHABLE),
        ("EPERM", Reason.UNREACHABLE),
        ("EAFNOSUPPORT", Reason.UNREACHABLE),
        ("EPROTOTYPE", Reason.UNREACHABLE),
        ("EMFILE", Reason.FILE_LIMIT),
        ("ENFILE", Reason.FILE_LIMIT),
        ("ENOBUFS", Reason.FILE_LIMIT),
        ("ENOMEM", Reason.FILE_LIMIT),
    ],
)
def test_each_errno_of_connect_has_its_reason(name: str, reason: Reason) -> None:
    found = connect_failed(OSError(getattr(errno, name), "anything"), ANY)
    assert (found.reason, found.detail) == (reason, f"10.0.0.1:80: {name}")
    if reason is Reason.FILE_LIMIT:
        assert isinstance(found, Refused)
    else:
        assert isinstance(found, UpstreamError)
        assert found.retry is Retry.IF_UNSENT


async def test_a_socket_that_connected_to_itself_is_refused(loopback: Loopback) -> None:
    sock = loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    sock.bind(("127.0.0.1", 0))
    with pytest.raises(OSError, match="connected to itself"):
        await _connect(sock, Target(socket.AF_INET, sock.getsockname()))


# -- several addresses ----------------------------------------------------------------------------------------------


def named(*hosts: str) -> Resolver:
    """A resolver to which every name means these addresses."""
    return Resolver(lambda _: [Target(socket.AF_INET, (host, 0)) for host in hosts])


async def test_the_next_address_is_tried_when_one_refuses(loopback: Loopback) -> None:
    port = loopback.listener("127.0.0.1").getsockname()[1]
    resolver = named("127.0.0.2", "127.0.0.1")
    stream = await dial(HostPort("db.test", port, numeric=False), deadline=soon(), resolver=resolver)
    assert stream.peer == f"127.0.0.1:{port}"
    stream.close()


async def test_a_deaf_address_has_only_its_share_of_the_time(loopback: Loopback) -> None:
    port = loopback.listener("127.0.0.1").getsockname()[1]
    deaf(loopback, "127.0.0.2", port)
    started = trio.current_time()
    stream = await dial(
        HostPort("db.test", port, numeric=False), deadline=soon(1.6), resolver=named("127.0.0.2", "127.0.0.1")
    )
    assert stream.peer == f"127.0.0.1:{port}"
    assert 0.8 <= trio.current_time() - started < 1.6
    stream.close()


async def test_when_every_address_fails_all_of_them_are_told(loopback: Loopback) -> None:
    port = loopback.refusing_port()
    with no_descriptor_is_lost(), pytest.raises(UpstreamError) as caught:
        await dial(HostPort("db.test", port, numeric=False), deadline=soon(), resolver=named("127.0.0.2", "127.0.0.3"))
    assert caught.value.reason is Reason.CONNECT_REFUSED
    assert caught.value.detail == f"127.0.0.2:{port}: ECONNREFUSED; 127.0.0.3:{port}: ECONNREFUSED"


async def test_a_name_without_a_resolver_is_a_failed_name() -> None:
    with pytest.raises(GateError) as caught:
        await dial("db.test:80", deadline=soon())
    assert caught.value.reason is Reason.DNS_FAILED
