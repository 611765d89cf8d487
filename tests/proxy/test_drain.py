"""Listeners that come and go: who is still accepted, who is told, and what a full house says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tests.plane import serving
from tests.proxy.scripted import GET, always_ok, busy, client, config, head, origin, rest, settled, silent, until


async def test_a_connection_that_wakes_the_accept_loop_as_its_socket_closes_harms_nobody(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"ok")
        listener = plane.sockets["127.0.0.1:0"]
        with socket.create_connection(listener.getsockname()):
            await trio.lowlevel.checkpoint()  # the loop is due, and has not run
            plane.servers["web"].retire(30)
            listener.close()
            await trio.sleep(0.05)
        await stream.aclose()
        with trio.fail_after(20):
            await plane.servers["web"].wait_ended()


@pytest.mark.parametrize("told", [False, True])
async def test_what_waits_in_the_backlog_when_a_listener_goes_is_served(
    told: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """`told`: those that were open have been asked to leave before."""
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as other:
        await settled(plane, connections=1)
        listener, server = plane.sockets["127.0.0.1:0"], plane.servers["web"]
        with socket.create_connection(listener.getsockname()) as waiting:
            waiting.sendall(GET)
            server.retire(30)
            if told:
                await trio.sleep(0.01)
            server.accept_rest([listener])
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(waiting.dup()))
            async with stream:
                said = await rest(stream)
        await other.aclose()
        with trio.fail_after(20):
            await server.wait_ended()
        server.accept_rest([listener])  # nobody serves any more, so nobody accepts
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in said


async def test_a_listener_may_be_retired_before_it_has_begun(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok))
    async with serving(tmp_path, text) as plane:
        plane.apply(text + '[listeners.more]\nbind = ["127.0.0.2:0"]\n')
        server = plane.servers["more"]
        plane.apply(text)
        with trio.fail_after(20):
            await server.wait_ended()


async def test_an_address_that_moves_to_another_listener_goes_on_being_served(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    text = config(await origin(nursery, always_ok))
    async with serving(tmp_path, text) as plane, client(plane) as old:
        await old.send_all(GET)
        await until(old, b"ok")
        plane.apply(text.replace("listeners.web", "listeners.other"))
        async with client(plane, "other") as new:
            await new.send_all(GET)
            assert (await until(new, b"ok")).startswith(b"HTTP/1.1 200 ")
        assert await rest(old) == b""
        await plane.record(2)
    assert [record.listener for record in plane.records] == ["web", "other"]


async def test_work_that_outlasts_the_drain_is_cut(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, silent))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await busy(plane)
        began = trio.current_time()
        plane.servers["web"].retire(0.2)
        with trio.fail_after(20):
            await plane.servers["web"].wait_ended()
        assert trio.current_time() - began > 0.15
        assert (await rest(stream)).startswith(b"HTTP/1.1 503 ")
        await settled(plane)


async def test_a_full_house_says_so_and_has_room_again_when_one_leaves(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok), listener="max_connections = 2")
    async with serving(tmp_path, text) as plane, client(plane) as first, client(plane):
        await settled(plane, connections=2)
        async with client(plane) as third:
            said = await rest(third)
        await first.aclose()
        await settled(plane, connections=1)
        async with client(plane) as fourth:
            await fourth.send_all(GET)
            assert (await head(fourth)).startswith(b"HTTP/1.1 200 ")
        refused = plane.counts("listener", "web")["refused"]
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"connection_limit" in said
    assert refused == 1


TCP = """
[listeners.db]
protocol = "tcp"
bind = ["127.0.0.1:0"]
upstream = "pg"
[upstreams.pg]
endpoints = ["127.0.0.1:{port}"]
[gateway]
drain = "200ms"
"""


async def echo(stream: trio.SocketStream) -> None:
    """Says back what is said."""
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def test_a_flow_lives_through_reloads_until_its_endpoint_is_removed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port, other = await origin(nursery, echo), await origin(nursery, echo)
    text = TCP.format(port=port)
    async with serving(tmp_path, text) as plane, client(plane, "db") as stream:
        await stream.send_all(b"one")
        assert await until(stream, b"one") == b"one"
        assert plane.counts("endpoint", f"pg/127.0.0.1:{port}")["active"] == 1
        plane.apply(text.replace("endpoints", 'balance = "random"\nendpoints'))
        plane.apply(TCP.format(port=other))
        plane.apply(text)
        await trio.sleep(0.3)  # the removal was taken back in time
        await stream.send_all(b"two")
        assert await until(stream, b"two") == b"two"
        plane.apply(TCP.format(port=other))
        with pytest.raises(trio.BrokenResourceError):
            await until(stream, b"never")
        record = await plane.record()
        await settled(plane)
    assert (record.reason, record.bytes_in, record.bytes_out, record.generation) == ("drained", 6, 6, 1)


async def test_a_flow_accepted_as_its_upstream_is_renamed_is_served_all_the_same(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    text = TCP.format(port=await origin(nursery, echo))
    async with serving(tmp_path, text) as plane:
        await trio.sleep(0.01)
        server = plane.servers["db"]
        with socket.create_connection(plane.sockets["127.0.0.1:0"].getsockname()) as waiting:
            server.accept_rest([plane.sockets["127.0.0.1:0"]])
            plane.apply(text.replace("pg", "postgres"))  # between the accept and the first step of its task
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(waiting.dup()))
            async with stream:
                await stream.send_all(b"ping")
                assert await until(stream, b"ping") == b"ping"
        await settled(plane)
