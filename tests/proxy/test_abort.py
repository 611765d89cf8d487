"""Exchanges that end in the middle, by the client's leaving or by a cut: nothing stays open, no gauge stays up."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.plane import TestPlane, serving
from tests.proxy.scripted import (
    GET,
    SWITCHING,
    UPGRADE,
    busy,
    client,
    config,
    head,
    in_flight,
    origin,
    post,
    rest,
    settled,
    silent,
    until,
)

Stage = Callable[[trio.Nursery], Awaitable[int]]


@asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """The port of an endpoint that never answers a SYN: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with ExitStack() as callers:
            for _ in range(3):
                caller = callers.enter_context(socket.socket())
                caller.setblocking(False)
                assert caller.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
            yield listener.getsockname()[1]


async def pouring(stream: trio.SocketStream) -> None:
    """An endpoint that answers with a body without end."""
    await head(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"10000\r\n" + bytes(0x10000) + b"\r\n")


async def trickling(stream: trio.SocketStream) -> None:
    """An endpoint that begins its answer and then falls silent."""
    await head(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await rest(stream)


async def deaf_to_bodies(stream: trio.SocketStream) -> None:
    """An endpoint that takes a connection and reads nothing."""
    await trio.sleep_forever()


async def switching(stream: trio.SocketStream) -> None:
    """An endpoint that makes a tunnel of it."""
    await head(stream)
    await stream.send_all(SWITCHING)
    await rest(stream)


PHASES = {
    "waiting for an answer": (silent, GET),
    "reading the body": (silent, post(1000) + b"some"),
    "waiting for the 100": (silent, post(1000, b"Expect: 100-continue")),
    "passing the answer on": (pouring, GET),
    "in the middle of a quiet answer": (trickling, GET),
    "sending to a deaf endpoint": (deaf_to_bodies, post(50_000_000) + bytes(20_000_000)),
    "in a tunnel": (switching, UPGRADE),
}


async def reach(plane: TestPlane, stream: trio.SocketStream, raw: bytes) -> None:
    """Send `raw`, as much as is taken, and come to where the exchange waits."""
    with trio.move_on_after(0.1):
        await stream.send_all(raw)
    await busy(plane)
    await trio.sleep(0.05)
    assert in_flight(plane) == (1, 1, 1)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cut_in_the_middle_leaves_nothing_behind(phase: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    play, raw = PHASES[phase]
    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await reach(plane, stream, raw)
        (connection,) = plane.servers["web"].connections
        connection.cut_by(trio.current_time())
        await settled(plane)
        (record,) = plane.records
        assert [one.reason for one in record.attempts] == ["drained"]
        assert record.reason == "drained"
        endpoint = next(iter(plane.plane.runtime.endpoints()))
        assert not endpoint.idle
        assert not endpoint.flows


async def test_a_cut_in_the_middle_of_a_connect_leaves_nothing_behind(tmp_path: Path) -> None:
    async with deaf() as port, serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await reach(plane, stream, GET)
        (connection,) = plane.servers["web"].connections
        connection.cut_by(trio.current_time())
        said = await rest(stream)
        await settled(plane)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"drained" in said


async def test_a_client_that_was_promised_nothing_yet_gets_a_503_at_the_cut(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, config(await origin(nursery, silent))) as plane, client(plane) as stream:
        await reach(plane, stream, GET)
        plane.servers["web"].retire(0)
        said = await rest(stream)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nConnection: close\r\n" in said
    assert record.id.encode() in said
    assert (record.status, record.reason) == (503, "drained")


async def test_an_answer_that_is_cut_does_not_look_whole(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, trickling))) as plane, client(plane) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\nHost: t\r\n\r\n")  # its body ends with the connection
        await head(stream)
        (connection,) = plane.servers["web"].connections
        connection.cut_by(trio.current_time())
        with pytest.raises(trio.BrokenResourceError):
            await until(stream, b"never")
        record = await plane.record()
    assert (record.status, record.reason) == (200, "drained")


@pytest.mark.parametrize("phase", ["waiting for an answer", "reading the body", "in the middle of a quiet answer"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_ends_the_work_for_it_at_once(
    phase: str, how: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    play, raw = PHASES[phase]
    gone = trio.Event()

    async def noticing(stream: trio.SocketStream) -> None:
        await play(stream)
        gone.set()

    port = await origin(nursery, noticing)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await reach(plane, stream, raw)
        await stream.receive_some() if phase == "in the middle of a quiet answer" else None
        if how == "reset":
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        with trio.fail_after(20):
            await gone.wait()
        await settled(plane)
        (record,) = plane.records
        bad = plane.counts("endpoint", f"api/127.0.0.1:{port}")["answers_bad"]
    assert (record.reason, record.answered_by) == (
        "client_abort",
        "upstream" if phase == "in the middle of a quiet answer" else "client",
    )
    assert record.status == (200 if phase == "in the middle of a quiet answer" else 499)
    assert bad == 0


async def test_a_client_that_leaves_during_a_connect_ends_it_at_once(tmp_path: Path) -> None:
    async with deaf() as port, serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await reach(plane, stream, GET)
        await stream.aclose()
        with trio.fail_after(20):
            record = await plane.record()
        await settled(plane)
    assert (record.reason, record.status) == ("client_abort", 499)
    assert [one.reason for one in record.attempts] == ["client_abort"]


async def test_a_client_that_leaves_with_the_last_byte_has_got_its_answer(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await trio.sleep(0.05)
        await stream.send_all(b"k")

    async with serving(tmp_path, config(await origin(nursery, slow))) as plane:
        for _ in range(5):
            async with client(plane) as stream:
                await stream.send_all(GET)
                said = b""
                while not said.endswith(b"ok"):
                    said += await stream.receive_some()
        await settled(plane)
    assert [record.reason for record in plane.records] == ["ok"] * 5


async def test_an_answer_to_nobody_is_not_taken_for_the_next_one(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A connection that was left in the middle of an exchange never serves another."""
    asked = 0

    async def late(stream: trio.SocketStream) -> None:
        nonlocal asked
        while line := (await head(stream)).partition(b" HTTP")[0]:
            asked += 1
            await trio.sleep(0.1 if asked == 1 else 0)
            body = line.partition(b" ")[2]
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with serving(tmp_path, config(await origin(nursery, late))) as plane:
        async with client(plane) as stream:
            await stream.send_all(GET.replace(b"/ ", b"/first "))
            await trio.sleep(0.05)
        async with client(plane) as stream:
            await stream.send_all(GET.replace(b"/ ", b"/second "))
            said = b""
            while not said.endswith(b"/second"):
                said += await stream.receive_some()
    assert b"/first" not in said
