"""Probes against real sockets: what each finds, in which words, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from tcpgate.config.schema import Health
from tcpgate.control.probe import check_connected, describe_error, excerpt, kind_of, probe_once
from tcpgate.control.probe_kinds import unescape
from tcpgate.kinds import PROBES
from tcpgate.policy.health import ProbeResult

TCP, TLS = Health(tcp=True), Health(tls=True)
Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def ask(spec: Health, address: str, timeout: float = 5.0) -> ProbeResult:  # noqa: ASYNC109 - a test's shorthand
    return await probe_once(spec, address, trio.current_time() + timeout, kinds=PROBES)


@contextlib.asynccontextmanager
async def origin(handle: Handler) -> AsyncIterator[str]:
    """The address of a server on loopback, for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, handle, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def says(*answers: bytes, then_hang: bool = False) -> Handler:
    """A server that reads one request, says these, and closes (or does not)."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            for answer in answers:
                await stream.send_all(answer)
            if then_hang:
                await trio.sleep_forever()
            await stream.aclose()

    return handle


async def hang(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def close_at_once(stream: trio.SocketStream) -> None:
    await stream.aclose()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- tcp ------------------------------------------------------------------------------------------------------------


async def test_a_connect_is_enough_for_tcp() -> None:
    async with origin(hang) as address:
        result = await ask(TCP, address)
    assert (result.ok, result.cause) == (True, "connected")
    assert 0 < result.latency < 5


@pytest.mark.parametrize(
    ("spec", "end"),
    [(TCP, "FIN"), (Health(expect="hello"), "FIN"), (Health(expect="goodbye"), "RST"), (TLS, "RST")],
)
async def test_a_probe_closes_in_order_if_the_endpoint_is_well_and_by_reset_if_not(spec: Health, end: str) -> None:
    ends, ended = trio.open_memory_channel[str](1)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(b"hello")
            while await stream.receive_some():
                pass
            ends_with = "FIN"
        except trio.BrokenResourceError:
            ends_with = "RST"
        ends.send_nowait(ends_with)

    async with origin(handle) as address:
        await ask(spec, address, timeout=1.0)
        with trio.fail_after(20):
            assert await ended.receive() == end


async def test_a_closed_port_refuses(free_port: Callable[[], int]) -> None:
    result = await ask(TCP, f"127.0.0.1:{free_port()}")
    assert (result.ok, result.cause) == (False, "connect refused")


async def test_a_host_that_does_not_answer_times_out_in_connect() -> None:
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())  # the backlog is full now: the kernel drops the next SYN
        result = await ask(TCP, f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.1)
    assert (result.ok, result.cause) == (False, "timed out in connect")
    assert 0.1 <= result.latency < 20


async def test_a_unix_socket_is_asked_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    missing = await ask(TCP, f"unix:{path}")
    assert (missing.ok, missing.cause) == (False, "no such file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        refused = await ask(TCP, f"unix:{path}")
        assert (refused.ok, refused.cause) == (False, "connect refused")
        listener.listen()
        found = await ask(TCP, f"unix:{path}")
        assert (found.ok, found.cause) == (True, "connected")


async def test_a_unix_socket_with_a_full_backlog_is_not_taken_for_connected(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as fillers:
        listener.bind(path)
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(path)
        result = await ask(TCP, f"unix:{path}")
    assert (result.ok, result.cause) == (False, "connect refused")


async def test_a_socket_that_the_kernel_connected_to_itself_counts_as_refused() -> None:
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        await sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError):
            check_connected(sock)


async def test_ipv6_addresses_are_asked_in_brackets() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6 loopback")
        listener.listen()
        assert (await ask(TCP, f"[::1]:{listener.getsockname()[1]}")).ok


# -- names ----------------------------------------------------------------------------------------------------------


class Names(trio.abc.HostnameResolver):
    """Resolves from a table; what is not in it does not exist."""

    def __init__(self, table: Mapping[str, list[tuple[str, int]]], delay: float = 0.0) -> None:
        self.table = table
        self.delay = delay

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *rest: int) -> list[Any]:  # noqa: ANN401
        await trio.sleep(self.delay)
        found = self.table.get(host.decode())
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:  # noqa: ANN401
        raise AssertionError("nobody asks for names of addresses")


async def test_each_address_of_a_name_is_tried_until_one_connects(free_port: Callable[[], int]) -> None:
    with socket.socket() as full, socket.socket() as filler, socket.socket() as good:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        good.bind(("127.0.0.1", 0))
        good.listen()
        trio.socket.set_custom_hostname_resolver(
            Names({"db.test": [("127.0.0.1", free_port()), full.getsockname(), good.getsockname()]})
        )
        result = await ask(TCP, "db.test:5432", timeout=2.0)
        assert (result.ok, result.cause) == (True, "connected")
        assert 0.8 < result.latency < 2.0, "the one that hangs got its share of the time and no more"


async def test_the_last_address_of_a_name_says_why(free_port: Callable[[], int]) -> None:
    with socket.socket() as full, socket.socket() as filler:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler.connect(full.getsockname())
        refusing = ("127.0.0.1", free_port())
        trio.socket.set_custom_hostname_resolver(Names({"a.test": [full.getsockname(), refusing]}))
        assert (await ask(TCP, "a.test:1", timeout=1.0)).cause == "connect refused"
        trio.socket.set_custom_hostname_resolver(Names({"a.test": [refusing, full.getsockname()]}))
        assert (await ask(TCP, "a.test:1", timeout=0.1)).cause == "timed out in connect"


async def test_a_name_that_does_not_resolve_says_so() -> None:
    trio.socket.set_custom_hostname_resolver(Names({}))
    result = await ask(TCP, "nobody.test:80")
    assert (result.ok, result.cause) == (False, "name not resolved: Name or service not known")


async def test_a_resolver_that_hangs_is_told_from_a_host_that_does() -> None:
    trio.socket.set_custom_hostname_resolver(Names({}, delay=60.0))
    result = await ask(TCP, "slow.test:80", timeout=0.05)
    assert (result.ok, result.cause) == (False, "timed out in resolve")


# -- the gateway's own troubles -------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_gateway_without_files_does_not_blame_the_endpoint() -> None:
    async with origin(hang) as address:
        with no_file_left():
            result = await ask(TCP, address)
    assert (result.ok, result.cause) == (None, "could not ask: Too many open files")


async def test_a_bug_in_a_kind_is_not_taken_for_a_failure() -> None:
    async def broken(asking: object) -> str:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await probe_once(TCP, "127.0.0.1:1", trio.current_time() + 1, kinds={"tcp": broken})


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ECONNRESET, "reset in head"),
        (errno.EPIPE, "closed in head"),
        (errno.EHOSTUNREACH, "host unreachable"),
        (errno.EIO, "Input/output error in head"),
    ],
)
def test_kernel_errors_become_words(number: int, text: str) -> None:
    assert describe_error(OSError(number, os.strerror(number)), "head") == text


def test_an_error_without_a_number_still_says_something() -> None:
    assert describe_error(OSError("odd"), "head") == "odd in head"


def test_an_excerpt_is_one_short_printable_line() -> None:
    assert excerpt(b"+PONG\r\n\x00\xff caf\xc3\xa9") == "+PONG\\r\\n\\x00\\xff café"
    assert excerpt(b"x" * 1000) == "x" * 80 + "..."
    assert excerpt(b"\x00" * 80) == "\\x00" * 20 + "..."


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (TCP, "tcp"),
        (TLS, "tls"),
        (Health(http="/"), "http"),
        (Health(exec=("true",)), "exec"),
        (Health(grpc=""), "grpc"),
        (Health(send="x", expect=""), "expect"),
    ],
)
def test_the_table_says_which_kind_it_is(spec: Health, kind: str) -> None:
    assert kind_of(spec) == kind
    assert kind in PROBES


# -- tls ------------------------------------------------------------------------------------------------------------


def tls_handler(names: list[str | None]) -> Handler:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("origin.test").configure_cert(context)
    context.sni_callback = lambda conn, name, ctx: names.append(name)

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).receive_some()

    return handle


async def test_a_tls_handshake_is_enough_whoever_signed_the_certificate() -> None:
    names: list[str | None] = []
    async with origin(tls_handler(names)) as address:
        result = await ask(TLS, address)
        assert (result.ok, result.cause) == (True, "TLSv1.3 handshake")
        host, _, port = address.rpartition(":")
        trio.socket.set_custom_hostname_resolver(Names({"origin.test": [(host, int(port))]}))
        assert (await ask(TLS, f"origin.test:{port}")).ok
    assert names == [None, "origin.test"]


async def test_an_endpoint_that_speaks_no_tls_fails_with_what_it_did() -> None:
    async with origin(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        result = await ask(TLS, address)
        assert result.ok is False
        assert result.cause.startswith("tls: "), result.cause
    async with origin(close_at_once) as address:
        cause = (await ask(TLS, address)).cause
        assert cause in ("tls: closed in the handshake", "tls: reset in the handshake")  # by whose packet is first
    async with origin(hang) as address:
        assert (await ask(TLS, address, timeout=0.5)).cause == "timed out in tls"


# -- send and expect ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("PING\\r\\n", b"PING\r\n"),
        ("\\x00\\xfF\\t\\\\x41", b"\x00\xff\t\\x41"),
        ("café\\", "café\\".encode()),
        ("\\q\\x4", b"\\q\\x4"),
        ("real\r\n", b"real\r\n"),
        ("", b""),
    ],
)
def test_escapes_in_send_become_bytes(text: str, data: bytes) -> None:
    assert unescape(text) == data


async def test_send_and_expect_meet_in_the_middle_of_an_answer_that_comes_in_pieces() -> None:
    heard: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some())
        for piece in (b"role:ma", b"ster\r\n"):
            await stream.send_all(piece)
            await trio.sleep(0.01)
        await trio.sleep_forever()

    async with origin(handle) as address:
        result = await ask(Health(send="INFO\\r\\n", expect=r"role:(master|active)"), address)
    assert (result.ok, result.cause, result.size) == (True, "answered role:master", 13)
    assert heard == [b"INFO\r\n"]


async def test_expect_matches_raw_bytes() -> None:
    async with origin(says(b"\x00\xfe\xff", then_hang=True)) as address:
        assert (await ask(Health(send="x", expect=r"\xfe\xff$"), address)).ok


async def test_a_banner_is_expected_without_sending_anything() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail ESMTP\r\n")
        await trio.sleep_forever()

    async with origin(greet) as address:
        assert (await ask(Health(expect="^220 "), address)).ok


@pytest.mark.parametrize(
    ("handle", "cause"),
    [
        (says(b"-NOAUTH Authentication required.\r\n"), r"answer did not match: -NOAUTH Authentication required.\r\n"),
        (says(), "answer did not match: nothing came"),
        (says(b"-" * 200_000, then_hang=True), "answer did not match: " + "-" * 80 + "..."),
        (says(b"-ERR", then_hang=True), "timed out in answer"),
    ],
)
async def test_an_unexpected_answer_is_quoted(handle: Handler, cause: str) -> None:
    async with origin(handle) as address:
        result = await ask(Health(send="PING\\r\\n", expect=r"\+PONG"), address, timeout=0.6)
    assert (result.ok, result.cause) == (False, cause)


# -- cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [TLS, Health(expect="never"), Health(http="/")])
async def test_a_cancelled_probe_leaves_no_socket(spec: Health) -> None:
    reached, ended = trio.Event(), trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        reached.set()
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        ended.set()

    async with origin(handle) as address:
        gc.collect()  # or what other tests left may go meanwhile
        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, spec, address)
            await reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            await ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert open_files() == before


async def test_a_probe_cancelled_in_connect_leaves_no_socket() -> None:
    with socket.socket() as listener, socket.socket() as filler:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filler.connect(listener.getsockname())
        before = open_files()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, TCP, f"127.0.0.1:{listener.getsockname()[1]}")
            await trio.testing.wait_all_tasks_blocked()
            assert open_files() == before + 1
            nursery.cancel_scope.cancel()
        assert open_files() == before
