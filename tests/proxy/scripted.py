"""Clients and origins that do exactly what a test says, byte by byte, around the data plane of tests/plane.py."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from tests.plane import TestPlane

Play = Callable[[trio.SocketStream], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET / HTTP/1.1\r\nHost: t\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"


def post(length: int, *fields: bytes) -> bytes:
    """The head of a POST of so many bytes."""
    lines = [b"POST / HTTP/1.1", b"Host: t", b"Content-Length: %d" % length, *fields, b"", b""]
    return b"\r\n".join(lines)


def config(*ports: int, listener: str = "", route: str = "", upstream: str = "", gateway: str = "") -> str:
    """One listener, one route, one upstream with an endpoint for each port, and what a test adds to them."""
    endpoints = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    return f"""
[gateway]
{gateway}
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[routes.all]
upstream = "api"
{route}
[upstreams.api]
endpoints = [{endpoints}]
{upstream}
"""


async def origin(nursery: trio.Nursery, play: Play) -> int:
    """The port of an origin that plays every connection so, and then closes it."""

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await play(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, one, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


def answering(*answers: bytes) -> Play:
    """An origin's play: one answer for each request head on a connection, then the close."""

    async def play(stream: trio.SocketStream) -> None:
        for answer in answers:
            if not await head(stream):
                return
            await stream.send_all(answer)

    return play


async def always_ok(stream: trio.SocketStream) -> None:
    """An origin's play: 200 to every request without a body."""
    while await head(stream):
        await stream.send_all(OK)


async def silent(stream: trio.SocketStream) -> None:
    """An origin's play: it reads, and never says a word."""
    while await stream.receive_some(65536):
        pass


async def until(stream: trio.SocketStream, end: bytes, *, within: float = 30.0) -> bytes:
    """What comes up to and with `end`, or up to the end of the stream; no byte more is read than comes with it."""
    said = b""
    with trio.fail_after(within):
        while end not in said and (chunk := await stream.receive_some(65536)):
            said += chunk
    return said


async def head(stream: trio.SocketStream) -> bytes:
    """One request or response head (and what came with it); b"" at the end of the stream."""
    return await until(stream, b"\r\n\r\n")


async def rest(stream: trio.SocketStream, *, within: float = 30.0) -> bytes:
    """Everything up to the end of the stream; a reset counts as one."""
    said = b""
    with trio.fail_after(within), contextlib.suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some(1 << 20):
            said += chunk
    return said


@contextlib.asynccontextmanager
async def client(plane: TestPlane, listener: str = "web") -> AsyncIterator[trio.SocketStream]:
    """A connection to the gateway."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port(listener)) as stream:
        yield stream


async def settled(plane: TestPlane, *, connections: int = 0) -> None:
    """Returns once nothing is in flight: no exchange, no upstream connection but the idle ones, so many of clients."""
    with trio.move_on_after(30):
        while in_flight(plane) != (0, 0, connections):
            await trio.sleep(0.002)
    assert in_flight(plane) == (0, 0, connections), "(exchanges, upstream connections in use, client connections)"


async def busy(plane: TestPlane, exchanges: int = 1) -> None:
    """Returns once so many exchanges wait for their endpoints."""
    with trio.move_on_after(30):
        while in_flight(plane)[:2] != (exchanges, exchanges):
            await trio.sleep(0.002)
    assert in_flight(plane)[:2] == (exchanges, exchanges), "(exchanges, upstream connections in use)"


def in_flight(plane: TestPlane) -> tuple[int, int, int]:
    """(exchanges, upstream connections in use, client connections), by the gauges."""
    active = used = 0
    for endpoint in plane.plane.runtime.endpoints():
        counts = plane.counts("endpoint", f"{endpoint.upstream}/{endpoint.name}")
        active += counts["active"]
        used += counts["connections"] - len(endpoint.idle)
    clients = sum(plane.counts("listener", name)["connections"] for name in plane.config.listeners)
    return active, used, clients
