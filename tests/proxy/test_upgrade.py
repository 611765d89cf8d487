"""Upgrades: the 101, what is sent around it, and the tunnel's life and ends."""

from __future__ import annotations

import errno
import random
import ssl
from pathlib import Path

import pytest
import trio
import trio.abc

from tests.conftest import Certificates
from tests.plane import serving
from tests.proxy.scripted import GET, OK, SWITCHING, UPGRADE, client, config, head, origin, rest, settled, until


async def echo(stream: trio.SocketStream) -> None:
    """Switch, then say back what is said."""
    await head(stream)
    await stream.send_all(SWITCHING)
    while data := await stream.receive_some(4096):
        await stream.send_all(data)


async def test_bytes_sent_with_the_request_and_with_the_101_are_not_lost(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await head(stream))
        await stream.send_all(SWITCHING + b"from the origin")
        got.append(await until(stream, b"client"))

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE + b"from the client")
        said = await until(stream, b"origin")
        await stream.aclose()
        await settled(plane)
    assert said.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nUpgrade: echo\r\n" in said
    assert said.endswith(b"\r\n\r\nfrom the origin")
    assert got[0].endswith(b"\r\n\r\n")
    assert got[1] == b"from the client"


@pytest.mark.parametrize("first", ["client", "origin"])
async def test_an_end_of_stream_sent_with_the_last_bytes_reaches_the_other_side(
    tmp_path: Path, nursery: trio.Nursery, first: str
) -> None:
    """Both at once with the 101: whoever sees the end first must not keep it."""
    ended: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(SWITCHING + b"last words")
        if first == "origin":
            await stream.send_eof()
        ended.append(await rest(stream))
        if first == "client":
            await stream.send_eof()

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        said = await until(stream, b"last words")
        await stream.send_all(b"bye")
        await stream.send_eof()
        assert await rest(stream) == b""
        record = await plane.record()
        await settled(plane)
    assert said.endswith(b"last words")
    assert ended == [b"bye"]
    assert (record.reason, record.status) == ("tunnel_closed", 101)


async def test_half_of_a_tunnel_may_end_before_the_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(SWITCHING)
        question = await rest(stream)
        await stream.send_all(b"answer to " + question)

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await head(stream)
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await rest(stream) == b"answer to question"


async def test_many_tunnels_at_once_lose_no_byte_and_no_end(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, echo))) as plane:

        async def one() -> None:
            async with client(plane) as stream:
                await stream.send_all(UPGRADE)
                await head(stream)
                await stream.send_all(b"ping")
                assert await until(stream, b"ping") == b"ping"
                await stream.send_eof()
                assert await rest(stream) == b""

        for _ in range(4):
            async with trio.open_nursery() as clients:
                for _ in range(25):
                    clients.start_soon(one)
        await settled(plane)
        assert [record.reason for record in plane.records] == ["tunnel_closed"] * 100


async def test_a_refused_upgrade_is_an_ordinary_answer(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        for request in (UPGRADE, GET):
            await stream.send_all(request)
            assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")


async def test_a_tunnel_outlives_the_time_of_its_route(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, echo), route='timeout = "800ms"')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await head(stream)
        await trio.sleep(1)
        await stream.send_all(b"still")
        assert await until(stream, b"still") == b"still"


async def test_a_tunnel_whose_endpoint_is_removed_is_cut_at_the_end_of_the_drain(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port, other = await origin(nursery, echo), await origin(nursery, echo)
    async with serving(tmp_path, config(port, gateway='drain = "1s"')) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await head(stream)
        plane.apply(config(other, gateway='drain = "1s"'))
        await stream.send_all(b"yet")
        assert await until(stream, b"yet") == b"yet"
        await rest(stream)
        record = await plane.record()
        await settled(plane)
        plane.plane.sweep(trio.current_time())
        assert not plane.plane.runtime.retired
    assert (record.reason, record.status) == ("drained", 101)


async def test_a_tunnel_whose_endpoint_comes_back_in_time_lives_on(tmp_path: Path, nursery: trio.Nursery) -> None:
    port, other = await origin(nursery, echo), await origin(nursery, echo)
    drain = 'drain = "150ms"'
    async with serving(tmp_path, config(port, gateway=drain)) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await head(stream)
        plane.apply(config(other, gateway=drain))
        plane.apply(config(port, gateway=drain))
        await trio.sleep(0.3)
        await stream.send_all(b"still")
        assert await until(stream, b"still") == b"still"


async def test_an_upgrade_that_ends_after_its_endpoint_was_removed_is_drained_too(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The removal tells those that have a tunnel; this one has not got it yet."""
    asked, go = trio.Event(), trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        await head(stream)
        asked.set()
        await go.wait()
        await stream.send_all(SWITCHING)
        await rest(stream)

    port, other = await origin(nursery, late), await origin(nursery, echo)
    drain = 'drain = "500ms"'
    async with serving(tmp_path, config(port, gateway=drain)) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await asked.wait()
        plane.apply(config(other, gateway=drain))
        go.set()
        assert (await head(stream)).startswith(b"HTTP/1.1 101 ")
        await rest(stream)
        assert (await plane.record()).reason == "drained"


async def test_a_drain_spreads_the_ends_of_tunnels(tmp_path: Path, nursery: trio.Nursery) -> None:
    ends: list[float] = []
    async with serving(tmp_path, config(await origin(nursery, echo))) as plane:
        started = trio.Event()

        async def one(task_status: trio.TaskStatus[None]) -> None:
            async with client(plane) as stream:
                await stream.send_all(UPGRADE)
                await head(stream)
                task_status.started()
                await started.wait()
                began = trio.current_time()
                await rest(stream)
                ends.append(trio.current_time() - began)

        async with trio.open_nursery() as clients:
            for _ in range(4):
                await clients.start(one)
            plane.servers["web"].retire(1.6)
            started.set()
        await settled(plane)
    ends.sort()
    assert ends[0] < 1.0
    assert ends[3] > 1.2
    assert ends[3] - ends[0] > 0.6


@pytest.mark.parametrize("lane", ["true", "false"])
async def test_a_tunnel_through_tls_carries_a_lot_both_ways(
    lane: str, tmp_path: Path, nursery: trio.Nursery, certificates: Certificates
) -> None:
    """The lane moves a TLS socket's bytes too; what goes over it at once is more than any buffer holds."""
    chain, key = certificates.issue("t.example")
    count, sent, back = 3 << 20, random.Random(7).randbytes(3 << 20), random.Random(8).randbytes(3 << 20)
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(SWITCHING)
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, back)
            got.append(await some(stream, count))
        await rest(stream)

    listener = f'tls = {{ certificates = [{{ cert = "{chain}", key = "{key}" }}] }}'
    text = config(await origin(nursery, play), listener=listener, gateway=f"lane = {lane}")
    trust = ssl.create_default_context(cafile=str(certificates.ca))
    async with serving(tmp_path, text) as plane, client(plane) as tcp:
        stream = trio.SSLStream(tcp, trust, server_hostname="t.example", https_compatible=True)
        await stream.send_all(UPGRADE)
        switched = b""
        while b"\r\n\r\n" not in switched:
            switched += await some(stream, 1)
        assert switched.startswith(b"HTTP/1.1 101 ")
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, sent)
            heard = await some(stream, count)
        await stream.aclose()
        record = await plane.record()
        await settled(plane)
    assert (got[0] == sent, heard == back) == (True, True)
    assert (record.reason, record.status) == ("tunnel_closed", 101)
    assert record.bytes_in > count
    assert record.bytes_out > count


async def some(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """So many bytes."""
    said = bytearray()
    with trio.fail_after(30):
        while len(said) < count and (chunk := await stream.receive_some(min(1 << 16, count - len(said)))):
            said += chunk
    return bytes(said)


async def test_a_tunnel_for_which_the_lane_has_no_room_is_told_so(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        monkeypatch.setattr(plane.plane.lane, "add", full)
        await stream.send_all(SWITCHING)
        await rest(stream)

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(UPGRADE)
        await rest(stream)
        record = await plane.record()
        monkeypatch.undo()
        await settled(plane)
    assert (record.status, record.reason, record.detail) == (101, "file_limit", "No space left on device")
