"""However an arrival ends, nothing is left of it: no descriptor, no connection that counts, no object."""

from __future__ import annotations

import gc
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from tcpgate.codec.postgres import ASK_FOR_TLS
from tcpgate.net.tls_socket import TlsSocket
from tcpgate.proxy.arrival import Arrival
from tests.codec.proxy_vectors import VECTORS
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import GET, client_context, write_certificate

TIMES = 10
GOOD, BAD = VECTORS[0].data, next(one.data for one in VECTORS if one.verdict == "bad")


def hello(name: str = "a.example") -> bytes:
    """A ClientHello, as OpenSSL writes it."""
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        client_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


Step = Callable[[trio.SocketStream], Awaitable[None]]


def sends(*pieces: bytes) -> Step:
    async def step(raw: trio.SocketStream) -> None:
        for piece in pieces:
            await raw.send_all(piece)
            await trio.sleep(0.002)

    return step


def shakes(context: Callable[[], ssl.SSLContext], then: bytes = b"") -> Step:
    async def step(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context(), server_hostname="a.example", https_compatible=True)
        await stream.do_handshake()
        if then:
            await stream.send_all(then)
            await stream.receive_some()

    return step


async def reset_in_the_handshake(raw: trio.SocketStream) -> None:
    await raw.send_all(hello())
    await raw.receive_some()
    raw.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def distrustful() -> ssl.SSLContext:
    return ssl.create_default_context()


def old() -> ssl.SSLContext:
    context = client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA")
    return context


STEPS: dict[str, Step] = {
    "nothing": sends(),
    "half a PROXY header": sends(GOOD[:9]),
    "a bad PROXY header": sends(BAD),
    "a good one, and no more": sends(GOOD),
    "half a hello": sends(GOOD, hello()[:100]),
    "a hello, and no more": sends(hello()),
    "a hello of a name that is unknown": sends(hello("z.example")),
    "a hello that is none": sends(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00"),
    "no TLS": sends(GET),
    "a hello, then nonsense": sends(hello(), b"\x16\x03\x03\x00\x04nons"),
    "a hello, then an alert": sends(hello(), b"\x15\x03\x01\x00\x02\x02\x28"),
    "reset": reset_in_the_handshake,
    "no trust": shakes(distrustful),
    "no cipher in common": shakes(old),
    "shaken, and no more": shakes(client_context),
    "served": shakes(client_context, GET),
}


async def once(plane: TestPlane, step: Step) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        with suppress(trio.BrokenResourceError, ssl.SSLError):
            await step(raw)


async def settled(plane: TestPlane) -> None:
    with trio.fail_after(30):
        while plane.servers["web"].connections:
            await trio.sleep(0.01)


def alive() -> int:
    return sum(isinstance(one, Arrival | TlsSocket) for one in gc.get_objects())


@pytest.mark.parametrize("lane", ["true", "false"])
@pytest.mark.parametrize("name", STEPS)
async def test_nothing_is_left_of_one_that_ends_here(name: str, lane: str, tmp_path: Path) -> None:
    text = f"""
[gateway]
lane = {lane}
[listeners.web]
bind = ["127.0.0.1:0"]
trusted_proxies = ["127.0.0.1"]
proxy_protocol = "accept"
[listeners.web.tls]
strict_sni = true
certificates = [{write_certificate(tmp_path, "a", "a.example")}]
[routes.all.respond]
body = "here"
"""
    with trio.fail_after(60):
        async with serving(tmp_path, text) as plane:
            await once(plane, STEPS[name])  # whatever is made but once
            await settled(plane)
            gc.collect()
            before, objects = len(os.listdir("/proc/self/fd")), alive()
            gc.disable()
            try:
                for _ in range(TIMES):
                    await once(plane, STEPS[name])
                await settled(plane)
                await trio.testing.wait_all_tasks_blocked()
                assert alive() <= objects + 1, "a circle, that only the collector would find"
            finally:
                gc.enable()
            assert len(os.listdir("/proc/self/fd")) == before
            assert plane.counts("listener", "web")["connections"] == 0


async def test_nothing_is_left_of_who_asks_for_tls_and_no_more(tmp_path: Path) -> None:
    text = f"""
[listeners.web]
protocol = "tcp"
starttls = "postgres"
upstream = "nobody"
bind = ["127.0.0.1:0"]
[listeners.web.tls]
certificates = [{write_certificate(tmp_path, "a", "a.example")}]
[upstreams.nobody]
endpoints = ["127.0.0.1:1"]
"""
    with trio.fail_after(60):
        async with serving(tmp_path, text) as plane:
            await once(plane, sends(ASK_FOR_TLS))
            await settled(plane)
            before = len(os.listdir("/proc/self/fd"))
            for pieces in ((ASK_FOR_TLS,), (ASK_FOR_TLS[:4],), (ASK_FOR_TLS, hello()), (ASK_FOR_TLS, b"\0" * 9)):
                await once(plane, sends(*pieces))
            await settled(plane)
            assert len(os.listdir("/proc/self/fd")) == before
