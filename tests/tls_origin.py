"""TLS endpoints for tests: `openssl s_server` as it is, one of Python's own whose every byte a test says, and the
certificates that they show."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path

import attrs
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tcpgate.net.tls_client import load_pair

NAME = "api.internal"
"""Whom the endpoints' certificates are for, and their address."""


@cache
def authority() -> trustme.CA:
    """The one that counts; keys cost time, so there is one for all tests."""
    return trustme.CA()


@cache
def stranger() -> trustme.CA:
    """One that nobody knows."""
    return trustme.CA()


@attrs.frozen
class Shown:
    """A certificate with its chain and key, as PEM texts."""

    chain: str
    key: str

    @property
    def both(self) -> str:
        """In one text."""
        return self.key + self.chain

    @property
    def pin(self) -> str:
        """What the config would say of its key."""
        key = x509.load_pem_x509_certificate(self.chain.encode()).public_key()
        raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return "sha256/" + base64.b64encode(hashlib.sha256(raw).digest()).decode()


def shown(leaf: trustme.LeafCert) -> Shown:
    """What trustme has made."""
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return Shown(chain.decode(), leaf.private_key_pem.bytes().decode())


@cache
def good() -> Shown:
    """For NAME, 127.0.0.1 and localhost, by the authority that counts."""
    return shown(authority().issue_cert(NAME, "127.0.0.1", "localhost"))


@cache
def of_another() -> Shown:
    """Good, but for other names."""
    return shown(authority().issue_cert("other.internal", "127.0.0.2"))


@cache
def expired() -> Shown:
    """Was good once."""
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    leaf = authority().issue_cert(NAME, "127.0.0.1", not_before=past, not_after=past + datetime.timedelta(days=1))
    return shown(leaf)


@cache
def unknown() -> Shown:
    """By an authority that nobody knows."""
    return shown(stranger().issue_cert(NAME, "127.0.0.1"))


@cache
def self_signed() -> Shown:
    """By itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return Shown(made.public_bytes(serialization.Encoding.PEM).decode(), pem.decode())


@cache
def client() -> Shown:
    """Our own, for endpoints that ask for one."""
    return shown(authority().issue_cert("gateway.internal"))


def ca_pem() -> str:
    """The authority that counts."""
    return authority().cert_pem.bytes().decode()


# -- openssl s_server -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def s_server(folder: Path, port: int, certificate: Shown, *options: str) -> Iterator[int]:
    """An `openssl s_server` that answers any GET with a page about the connection; its port."""
    folder.mkdir(exist_ok=True)
    pem = folder / "s_server.pem"
    pem.write_text(certificate.both)
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(pem), "-key", str(pem)]
    with (folder / "s_server.log").open("wb") as log:
        process = subprocess.Popen([*command, "-www", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server did not start")


# -- one of our own -------------------------------------------------------------------------------------------------

Play = Callable[["Wire"], Awaitable[None]]


@attrs.define(eq=False)
class Wire:
    """One connection as the endpoint has it."""

    origin: TlsOrigin
    raw: trio.SocketStream
    tls: trio.SSLStream[trio.SocketStream]
    header: bytes = b""
    """What came before the TLS handshake, where the origin reads a PROXY header."""

    async def head(self) -> bytes:
        """One request's head; b"" at the end."""
        got = b""
        while b"\r\n\r\n" not in got:
            data = await self.tls.receive_some(65536)
            if not data:
                return b""
            got += data
        return got

    async def say(self, data: bytes) -> None:
        """Send it."""
        await self.tls.send_all(data)


@attrs.define(eq=False)
class TlsOrigin:
    """An endpoint, and what it has seen."""

    port: int = 0
    wires: list[Wire] = attrs.field(factory=list)
    resumed: list[bool] = attrs.field(factory=list)
    heads: list[bytes] = attrs.field(factory=list)
    names: list[str | None] = attrs.field(factory=list)
    """What server names were asked for."""


def server_context(certificate: Shown | None = None, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """For an endpoint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, (certificate or good()).both.encode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answering(*answers: bytes) -> Play:
    """Answers one head after the other, the last answer again and again."""

    async def play(wire: Wire) -> None:
        index = 0
        while head := await wire.head():
            wire.origin.heads.append(head)
            await wire.say(answers[min(index, len(answers) - 1)])
            index += 1

    return play


@contextlib.asynccontextmanager
async def tls_origin(
    play: Play | None = None, context: ssl.SSLContext | None = None, *, header: int = 0
) -> AsyncIterator[TlsOrigin]:
    """An endpoint whose every connection is played so, after the handshake. `header`: bytes before that."""
    origin, context = TlsOrigin(), context or server_context()
    context.sni_callback = lambda _, name, __: origin.names.append(name)

    async def one(raw: trio.SocketStream) -> None:
        before = b""
        while len(before) < header:
            before += await raw.receive_some(header - len(before))
        wire = Wire(origin, raw, trio.SSLStream(raw, context, server_side=True), before)
        origin.wires.append(wire)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            try:
                await wire.tls.do_handshake()
                origin.resumed.append(bool(wire.tls.session_reused))
                await (play or answering(OK))(wire)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await wire.tls.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    origin.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, one, listeners)
        yield origin
        nursery.cancel_scope.cancel()
