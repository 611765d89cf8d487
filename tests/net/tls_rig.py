"""Certificates and connected TLS ends over loopback, for tests."""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import suppress
from functools import cache

import trustme

from tcpgate.codec.client_hello import ClientHello, parse
from tcpgate.net.tls_server import TlsServer
from tcpgate.net.tls_socket import TlsSocket, prepare
from tests.net.loopback import Loopback

PATIENCE = 20.0
"""Seconds that a test waits for what must come."""


@cache
def authority() -> trustme.CA:
    """One for all tests: making keys costs time."""
    return trustme.CA()


@cache
def leaf(*names: str) -> trustme.LeafCert:
    """A certificate for these names."""
    return authority().issue_cert(*names)


def server_context(*names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """For the accepting side; `version`: that one only."""
    context = prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    leaf(*(names or ("gate.example",))).configure_cert(context)
    return only(context, version)


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """For the asking side, which trusts the tests' authority."""
    context = prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    authority().configure_trust(context)
    return only(context, version)


def only(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    """`context`, held to one version."""
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def shake(*ends: ssl.SSLSocket) -> None:
    """Bring both ends' handshakes to their end."""
    left, until = list(ends), time.monotonic() + PATIENCE
    while left:
        assert time.monotonic() < until, "the handshake does not end"
        for end in tuple(left):
            try:
                end.do_handshake()
                left.remove(end)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue


def as_tls(sock: socket.socket, context: ssl.SSLContext, name: str | None = None) -> TlsSocket:
    """`sock`, before its handshake; `name` makes it a client's."""
    sock.setblocking(False)
    with suppress(OSError):  # a unix socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the gateway does; or handshakes take 40 ms
    made = context.wrap_socket(sock, server_side=name is None, server_hostname=name, do_handshake_on_connect=False)
    assert isinstance(made, TlsSocket)
    return made


def tls_pair(
    loopback: Loopback, version: ssl.TLSVersion | None = None, *, buffer: int = 0
) -> tuple[TlsSocket, TlsSocket]:
    """The server's end and the client's, shaken."""
    here, there = loopback.pair(buffer=buffer)
    server = as_tls(here, server_context(version=version))
    client = as_tls(there, client_context(version), "gate.example")
    loopback.own(server)
    loopback.own(client)
    shake(server, client)
    return server, client


def wait(sock: socket.socket, events: int = select.EPOLLIN, seconds: float = PATIENCE) -> int:
    """What epoll (level-triggered) says of `sock`; 0 after so many seconds."""
    with select.epoll() as epoll:
        epoll.register(sock, events)
        ready = epoll.poll(seconds)
    return ready[0][1] if ready else 0


def receive(sock: socket.socket, size: int | None = None, ask: int = 65536) -> bytes:
    """So many bytes, or all up to the end of the stream; waits by epoll only."""
    got = bytearray()
    while size is None or len(got) < size:
        assert wait(sock), f"{len(got)} bytes came, then nothing"
        try:
            data = sock.recv(ask)
        except BlockingIOError:
            continue
        if not data:
            assert size is None, f"the end came after {len(got)} bytes"
            break
        got += data
    return bytes(got)


def begin(
    loopback: Loopback, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> tuple[socket.socket, TlsSocket]:
    """(server's socket, on which a hello lies, client's end)."""
    here, there = loopback.pair()
    there.setblocking(False)
    client = context.wrap_socket(there, server_hostname=name, do_handshake_on_connect=False, session=session)
    assert isinstance(client, TlsSocket)
    loopback.own(client)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    here.setblocking(False)
    assert wait(here)
    return here, client


def connect(
    loopback: Loopback, server: TlsServer, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> tuple[TlsSocket, TlsSocket]:
    """(server's end, client's end), shaken."""
    here, client = begin(loopback, context, name, session)
    hello = parse(here.recv(65536, socket.MSG_PEEK))
    assert isinstance(hello, ClientHello)
    tls = server.wrap(here, hello)
    loopback.own(tls)
    shake(tls, client)
    return tls, client
