"""Origins that tell what they were sent, and clients that speak byte by byte, for the tests of arriving connections."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import trio
import trustme

from tests.plane import TestPlane

GET = b"GET /there HTTP/1.1\r\nHost: a.example\r\n\r\n"


@cache
def authority() -> trustme.CA:
    """One for all tests: making keys costs time."""
    return trustme.CA()


def write_certificate(folder: Path, file: str, *names: str) -> str:
    """A certificate for these names beside the config; the table that names it."""
    cert = authority().issue_cert(*names)
    (folder / f"{file}.crt").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    (folder / f"{file}.key").write_bytes(cert.private_key_pem.bytes())
    return f'{{ cert = "{file}.crt", key = "{file}.key" }}'


def client_context(*alpn: str) -> ssl.SSLContext:
    """Of a client that trusts the tests' authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def telling_origin(nursery: trio.Nursery, name: str = "origin") -> int:
    """An HTTP origin that answers with the head that it was sent; its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                body = head + b"\nFrom: " + name.encode()
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return await _listen(nursery, serve)


async def greeting_origin(nursery: trio.Nursery, name: str) -> int:
    """A tcp server that says its name, then everything that it is sent; its port."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(name.encode() + b":")
            async for data in stream:
                await stream.send_all(data)

    return await _listen(nursery, serve)


async def tls_origin(nursery: trio.Nursery, context: ssl.SSLContext, name: str) -> int:
    """A TLS server that says its name, then everything that it is sent; its port."""

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True)
        try:
            await stream.send_all(name.encode() + b":")
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    return await _listen(nursery, serve)


async def _listen(nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def guarded(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    nursery.start_soon(trio.serve_listeners, guarded, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def say(plane: TestPlane, pieces: Sequence[bytes], *, listener: str = "web", pause: float = 0.0) -> bytes:
    """Connect, send the pieces one after another, then our end; everything that is said back, up to its end.

    A reset is an end here, too.
    """
    async with await trio.open_tcp_stream("127.0.0.1", plane.port(listener)) as stream:
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        try:
            for piece in pieces:
                await stream.send_all(piece)
                if pause:
                    await trio.sleep(pause)
            await stream.send_eof()
            while more := await stream.receive_some(65536):
                said += more
        except trio.BrokenResourceError:
            pass
        return said


async def ask(plane: TestPlane, *pieces: bytes, listener: str = "web", pause: float = 0.0) -> bytes:
    """Connect, send the pieces, and give the one answer (with a Content-Length) that comes; b"" for none."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port(listener)) as stream:
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                await stream.send_all(piece)
                if pause:
                    await trio.sleep(pause)
        except trio.BrokenResourceError:
            pass
        return await answer(stream)


async def answer(stream: trio.abc.ReceiveStream) -> bytes:
    """One answer with a Content-Length; what there is of it if the connection ends before."""
    said = b""
    try:
        while b"\r\n\r\n" not in said:
            more = await stream.receive_some(65536)
            if not more:
                return said
            said += more
        head, _, body = said.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        while len(body) < size:
            more = await stream.receive_some(65536)
            if not more:
                break
            body += more
            said += more
    except trio.BrokenResourceError:
        pass
    return said
