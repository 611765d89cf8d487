"""A client's connection over several exchanges: what goes on, what ends it, and who may be idle for how long."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tests.plane import serving
from tests.proxy.scripted import GET, OK, always_ok, client, config, head, origin, rest, settled, until


async def ask(stream: trio.SocketStream, request: bytes = GET) -> bytes:
    """One exchange."""
    await stream.send_all(request)
    return await until(stream, b"ok")


async def test_a_connection_serves_one_request_after_the_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(5):
            assert (await ask(stream)).startswith(b"HTTP/1.1 200 OK\r\n")
        await settled(plane, connections=1)
        counts = plane.counts("endpoint", f"api/127.0.0.1:{port}")
    assert (counts["connects"], counts["reused"]) == (1, 4)
    assert {record.peer for record in plane.records} == {plane.records[0].peer}
    assert all(record.bytes_in == len(GET) and record.bytes_out > 80 for record in plane.records)


@pytest.mark.parametrize(
    "request_",
    [GET[:-2] + b"Connection: close\r\n\r\n", b"GET / HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\n\r\n"],
)
async def test_a_client_that_asks_for_the_close_and_a_1_0_client_get_it(
    tmp_path: Path, nursery: trio.Nursery, request_: bytes
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await stream.send_all(request_)
        said = await rest(stream)
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(b"\r\n\r\nok")


async def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok), listener='timeouts = { idle = "100ms", head = "500ms" }')
    async with serving(tmp_path, text) as plane, client(plane) as stream, client(plane) as fresh:
        await ask(stream)
        assert await rest(stream) == b""
        assert await rest(fresh) == b""  # one that never sent a byte goes after the time of a head
        await settled(plane)
    assert len(plane.records) == 1


async def test_leaving_closes_idle_connections_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await ask(stream)
        await settled(plane, connections=1)
        plane.servers["web"].retire(30)
        with trio.fail_after(20):
            assert await rest(stream) == b""
            await plane.servers["web"].wait_ended()


async def test_leaving_answers_busy_connections_with_close(tmp_path: Path, nursery: trio.Nursery) -> None:
    asked, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        asked.set()
        await go.wait()
        await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, slow))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await asked.wait()
        plane.servers["web"].retire(30)
        go.set()
        said = await rest(stream)
        await stream.aclose()
        with trio.fail_after(20):
            await plane.servers["web"].wait_ended()
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(b"\r\n\r\nok")


async def test_a_request_that_arrives_together_with_the_leave_is_served(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await ask(stream)
        await settled(plane, connections=1)
        # Straight into the kernel: no task of the gateway runs between the request and the leave.
        assert socket.socket.send(stream.socket._sock, GET) == len(GET)  # type: ignore[attr-defined]
        plane.servers["web"].retire(30)
        said = await rest(stream)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in said


async def test_a_request_behind_an_answer_that_did_not_say_close_is_served_while_leaving(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The head went out before the leave, so the client was right to send the next request."""
    half, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(OK[:-1])
        half.set()
        await go.wait()
        await stream.send_all(OK[-1:])
        await always_ok(stream)

    async with serving(tmp_path, config(await origin(nursery, slow))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"\r\n\r\no")
        plane.servers["web"].retire(30)
        await stream.send_all(GET)
        go.set()
        said = await rest(stream)
    assert said.startswith(b"kHTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in said


async def test_a_client_that_has_just_connected_may_still_ask_while_we_leave(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await settled(plane, connections=1)
        plane.servers["web"].retire(30)
        await trio.sleep(0.05)
        assert (await ask(stream)).startswith(b"HTTP/1.1 200 ")


async def test_requests_of_a_connection_whose_listener_was_removed_still_find_their_routes(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    half, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(OK[:-1])
        half.set()
        await go.wait()
        await stream.send_all(OK[-1:])
        await always_ok(stream)

    text = config(await origin(nursery, slow))
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"\r\n\r\no")
        await stream.send_all(GET)
        plane.apply(text.replace("listeners.web", "listeners.other"))
        go.set()
        said = await rest(stream)
        record = await plane.record(2)
    assert said.startswith(b"kHTTP/1.1 200 ")
    assert (record.status, record.generation) == (200, 1)


async def test_a_reload_of_the_listener_leaves_open_connections_their_limits(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await origin(nursery, always_ok)
    long = b"GET /%b HTTP/1.1\r\nHost: t\r\n\r\n" % (b"a" * 300)
    async with serving(tmp_path, config(port)) as plane, client(plane) as old:
        await ask(old)
        plane.apply(config(port, listener='limits = { target = "100B" }'))
        async with client(plane) as new:
            assert (await ask(old, long)).startswith(b"HTTP/1.1 200 ")
            await new.send_all(long)
            assert (await rest(new)).startswith(b"HTTP/1.1 414 ")
    assert plane.records[1].generation == 2  # routes and all else are the new generation's at once


async def test_unix_sockets_and_ipv6_serve_on_both_sides(tmp_path: Path, nursery: trio.Nursery) -> None:
    seen: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        seen.append(await head(stream))
        await stream.send_all(OK)

    behind = trio.socket.socket(socket.AF_UNIX)
    await behind.bind(str(tmp_path / "origin.sock"))
    behind.listen(8)
    nursery.start_soon(trio.serve_listeners, play, [trio.SocketListener(behind)])
    six = await trio.open_tcp_listeners(0, host="::1")
    nursery.start_soon(trio.serve_listeners, play, six)
    text = f"""
[listeners.web]
bind = ["unix:{tmp_path}/front.sock", "[::1]:0"]
[routes.a]
path = "/a"
upstream = "a"
[routes.b]
path = "/b"
upstream = "b"
[upstreams.a]
endpoints = ["unix:{tmp_path}/origin.sock"]
[upstreams.b]
endpoints = ["[::1]:{six[0].socket.getsockname()[1]}"]
"""
    async with serving(tmp_path, text) as plane:
        port = plane.sockets["[::1]:0"].getsockname()[1]
        for path in (b"/a", b"/b"):
            async with await trio.open_tcp_stream("::1", port) as stream:
                assert (await ask(stream, GET.replace(b"/ ", path + b" "))).startswith(b"HTTP/1.1 200 ")
            async with await trio.open_unix_socket(tmp_path / "front.sock") as stream:
                assert (await ask(stream, GET.replace(b"/ ", path + b" "))).startswith(b"HTTP/1.1 200 ")
        await settled(plane)
        clients = [record.client for record in plane.records]
    assert clients == ["::1", "unix", "::1", "unix"]
    assert b"X-Forwarded-For: ::1\r\n" in seen[0]
    assert b'Forwarded: for="[::1]"' in seen[0]
    assert b"X-Forwarded-For: unknown\r\n" in seen[1]
