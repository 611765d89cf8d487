"""Long bodies move in flat memory, both ways, as fast as the slower side reads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.loopback import HELD
from tests.plane import serving
from tests.proxy.scripted import GET, OK, client, config, head, origin, post, settled, until

SIZE = 200 << 20
PIECE = bytes(1 << 18)
ROOM = 8 << 20
"""What the whole process may need more at the peak: the pieces of the two ends, and a few reads' worth of ours."""
LONG = HELD + (8 << 20)


async def count(stream: trio.SocketStream, wanted: int) -> int:
    """Read so many bytes, keeping none."""
    seen = 0
    while seen < wanted and (chunk := await stream.receive_some(1 << 18)):
        seen += len(chunk)
    return seen


async def pour(stream: trio.SocketStream, size: int) -> None:
    """Write so many bytes."""
    for _ in range(size // len(PIECE)):
        await stream.send_all(PIECE)


@pytest.mark.slow
async def test_200_MB_each_way_at_once_take_no_more_memory_than_a_few_reads(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    got: list[int] = []

    async def both(stream: trio.SocketStream) -> None:
        begun = (await head(stream)).partition(b"\r\n\r\n")[2]
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        async with trio.open_nursery() as halves:
            halves.start_soon(pour, stream, SIZE)
            got.append(len(begun) + await count(stream, SIZE - len(begun)))

    async with serving(tmp_path, config(await origin(nursery, both))) as plane, client(plane) as stream:
        tracemalloc.start()
        try:
            async with trio.open_nursery() as halves:
                await stream.send_all(post(SIZE))
                halves.start_soon(pour, stream, SIZE)
                begun = (await head(stream)).partition(b"\r\n\r\n")[2]
                got.append(len(begun) + await count(stream, SIZE - len(begun)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        record = await plane.record()
        await stream.aclose()
        await settled(plane)
    assert got == [SIZE, SIZE]
    assert peak < ROOM, peak
    assert record.reason == "ok"
    assert min(record.bytes_in, record.bytes_out) > SIZE


async def test_a_client_that_does_not_read_holds_the_endpoint_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    sent = 0

    async def endless(stream: trio.SocketStream) -> None:
        nonlocal sent
        await head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"40000\r\n" + PIECE + b"\r\n")
            sent += len(PIECE)

    async with serving(tmp_path, config(await origin(nursery, endless))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        before = -1
        while not before == sent > 0:  # until no more is taken
            before = sent
            await trio.sleep(0.1)
            await wait_all_tasks_blocked(0.05)
            assert sent < HELD


async def test_an_endpoint_that_does_not_read_holds_the_client_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    go = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        begun = (await head(stream)).partition(b"\r\n\r\n")[2]
        await go.wait()
        await count(stream, LONG - len(begun))
        await stream.send_all(OK)

    sent = 0
    async with serving(tmp_path, config(await origin(nursery, slow))) as plane, client(plane) as stream:
        await stream.send_all(post(LONG))
        with trio.move_on_after(0.3):
            while True:
                sent += await stream.socket.send(PIECE)
        (connection,) = plane.servers["web"].connections
        assert connection.buffered < 200_000  # type: ignore[attr-defined]
        assert sent < LONG
        go.set()
        while sent < LONG:
            sent += await stream.socket.send(PIECE[: LONG - sent])
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
