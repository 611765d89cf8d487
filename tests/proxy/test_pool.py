"""Upstream connections: which are kept, which are used again, and which never."""

from __future__ import annotations

from pathlib import Path

import trio

from tcpgate.proxy.pool import UpstreamConnection
from tests.plane import TestPlane, serving
from tests.proxy.scripted import GET, OK, always_ok, client, config, head, origin, post, rest, settled, until


async def ok(stream: trio.SocketStream, request: bytes = GET) -> None:
    """One good exchange."""
    await stream.send_all(request)
    assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")


def idle(plane: TestPlane, port: int) -> list[UpstreamConnection]:
    """The idle connections to an endpoint."""
    return [one for one in plane.endpoint("api", f"127.0.0.1:{port}").idle if isinstance(one, UpstreamConnection)]


async def test_a_connection_is_used_again_and_the_newest_first(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port)) as plane, client(plane) as one, client(plane) as two:
        async with trio.open_nursery() as both:
            both.start_soon(ok, one)
            both.start_soon(ok, two)
        await settled(plane, connections=2)
        first, last = idle(plane, port)
        await ok(one)
        await settled(plane, connections=2)
        assert idle(plane, port) == [first, last]
        assert (first.exchanges, last.exchanges) == (1, 2)


async def test_a_connection_that_speaks_unasked_is_never_used(tmp_path: Path, nursery: trio.Nursery) -> None:
    spoken, hear = trio.open_memory_channel[None](3)

    async def chatty(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(OK)
            await trio.sleep(0.02)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")
            await spoken.send(None)

    port = await origin(nursery, chatty)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(3):
            await ok(stream)
            await hear.receive()
        assert plane.counts("endpoint", f"api/127.0.0.1:{port}")["reused"] == 0


async def test_bytes_behind_an_answer_cost_the_connection(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def more(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")

    port = await origin(nursery, more)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(3):
            await ok(stream)
        await settled(plane, connections=1)
        assert not idle(plane, port)


async def test_an_early_refusal_costs_the_connection(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def early(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(OK.replace(b"200 OK", b"403 No"))
        await rest(stream)

    port = await origin(nursery, early)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(post(10) + b"some")
        assert b"\r\nConnection: close\r\n" in await until(stream, b"ok")
        await stream.aclose()
        await settled(plane)
        assert not idle(plane, port)


async def test_an_answer_while_the_last_piece_of_the_body_is_stuck_costs_the_connection(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """What came next on that connection would be garbage to the origin."""

    async def deaf(stream: trio.SocketStream) -> None:
        await head(stream)
        await trio.sleep(0.3)
        await stream.send_all(OK)
        await trio.sleep(0.2)

    port = await origin(nursery, deaf)
    size = 16_000_000
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        with trio.move_on_after(0.25):
            await stream.send_all(post(size) + bytes(size))
        await until(stream, b"ok")
        await stream.aclose()
        await settled(plane)
        assert not idle(plane, port)


async def test_limits_of_the_pool_are_kept(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    text = config(port, upstream="pool = { idle = 1, max_exchanges = 2 }")
    async with serving(tmp_path, text) as plane, client(plane) as one, client(plane) as two:
        async with trio.open_nursery() as both:
            both.start_soon(ok, one)
            both.start_soon(ok, two)
        await settled(plane, connections=2)
        assert len(idle(plane, port)) == 1
        await ok(one)
        await settled(plane, connections=2)
        assert not idle(plane, port)  # it had served twice


async def test_the_sweep_closes_what_is_old_or_dead(tmp_path: Path, nursery: trio.Nursery) -> None:
    leave = trio.Event()

    async def once(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(OK)
        await leave.wait()

    port = await origin(nursery, once)
    async with serving(tmp_path, config(port, upstream='pool = { idle_timeout = "10s" }')) as plane:
        async with client(plane) as stream:
            await ok(stream)
        await settled(plane)
        plane.plane.sweep(trio.current_time() + 9)
        assert len(idle(plane, port)) == 1
        plane.plane.sweep(trio.current_time() + 11)
        assert not idle(plane, port)
        async with client(plane) as stream:
            await ok(stream)
        await settled(plane)
        leave.set()
        await trio.sleep(0.05)
        plane.plane.sweep(trio.current_time())
        assert not idle(plane, port)
        await settled(plane)


async def test_an_endpoint_that_goes_out_gives_its_idle_connections_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    asked, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        asked.set()
        await go.wait()
        await stream.send_all(OK)
        await rest(stream)

    port = await origin(nursery, slow)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await asked.wait()
        plane.set_status("api", f"127.0.0.1:{port}", "maint")
        go.set()
        await until(stream, b"ok")  # the exchange goes on, its connection does not
        await settled(plane, connections=1)
        assert not idle(plane, port)


async def test_an_exchange_outlives_the_removal_of_its_endpoint(tmp_path: Path, nursery: trio.Nursery) -> None:
    asked, go = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await head(stream)
        asked.set()
        await go.wait()
        await stream.send_all(OK)
        await rest(stream)

    port, other = await origin(nursery, slow), await origin(nursery, always_ok)
    async with serving(tmp_path, config(port, gateway='drain = "50ms"')) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await asked.wait()
        (retired,) = plane.apply(config(other, gateway='drain = "50ms"'))
        await trio.sleep(0.1)
        plane.plane.sweep(trio.current_time())
        assert list(plane.plane.runtime.retired.values()) == [retired]
        go.set()
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
        await settled(plane, connections=1)
        plane.plane.sweep(trio.current_time())
        assert not plane.plane.runtime.retired
        await ok(stream)  # the next one goes to the new endpoint


async def test_a_comeback_forgets_the_failures_of_before(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    name = f"127.0.0.1:{port}"
    async with serving(tmp_path, config(port)) as plane:
        endpoint = plane.endpoint("api", name)
        endpoint.answered_badly("status 500", trio.current_time())
        endpoint.answered_badly("status 500", trio.current_time())
        plane.set_status("api", name, "ejected")
        plane.set_status("api", name, "healthy")
        endpoint.answered_badly("status 500", trio.current_time())
    assert [seen.bad_answers for seen in plane.observed] == [1, 2, 1]


async def test_an_endpoint_that_closes_behind_its_answer_gets_no_other_request(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """It does not say so in the head, but its end of stream is there with the answer."""

    async def hasty(stream: trio.SocketStream) -> None:
        assert (await head(stream)).startswith(b"GET ")
        await stream.send_all(OK)
        await stream.send_eof()

    port = await origin(nursery, hasty)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(5):
            await ok(stream)
        counts = plane.counts("endpoint", f"api/127.0.0.1:{port}")
        assert counts["answers_good"] == 5
        assert counts["answers_bad"] == 0
