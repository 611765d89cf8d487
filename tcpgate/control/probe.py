"""Ask an endpoint once whether it can work: the frame around every kind of probe.

A kind is an async function that asks and returns what it saw, or raises `Failed` with the cause; the frame gives it a
deadline, a connection, and turns whatever the kernel says into words. `probe_once` never raises for what an endpoint
does: the answer is a `ProbeResult`, also when the gateway itself was unable to ask (`ok=None`), which must not count
against the endpoint.

Sockets: each is closed when its kind ends, however that is. After a success by FIN: a server that is well must not be
hurt by being asked, and simple ones end with an exception at the RST that HAProxy sends here. After a failure, a
timeout or a cancellation by RST (SO_LINGER 0), so that a host that hangs collects neither connections nor TIME_WAITs.

What a connection to the endpoint begins with for a client, it begins with here: TLS as the upstream's table says, and
verified the same way; and a PROXY header, which says LOCAL, as HAProxy's checks do.

Source: HAProxy, "option tcp-check" and its causes (L4CON, L4TOUT, L7STS, ...), here as words.
Owner: called by the endpoint's task on `control/health.py`'s board; a cancelled probe leaves neither socket nor
process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self

import attrs
import trio

from tcpgate.codec.client_tls import ClientTls
from tcpgate.config.schema import Health
from tcpgate.errors import GateError
from tcpgate.net.address import Target, alternating, target_of
from tcpgate.net.greeting import Greeter, Greeting, TlsGreeting
from tcpgate.net.lane import WRITE
from tcpgate.net.tls_client import Contexts
from tcpgate.policy.health import ProbeResult
from tcpgate.state.reach import PLAIN, Reach
from tcpgate.units import HostPort, UnixPath, parse_endpoint

ANSWER_LIMIT = 64 << 10
"""Bytes of an answer that a probe looks at."""
EXCERPT = 80
"""Characters of an endpoint's answer that a cause may quote."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds
_KEEP_ON_CLOSE = struct.pack("ii", 0, 0)

OUR_TROUBLE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""The gateway lacks something: files, memory, processes. An endpoint has no part in that."""
_WORDS = {
    errno.ECONNREFUSED: "connect refused",
    errno.ECONNRESET: "reset in {phase}",
    errno.EPIPE: "closed in {phase}",
    errno.ENOTCONN: "closed in {phase}",
    errno.ETIMEDOUT: "timed out in {phase}",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ENOENT: "no such file",
}


class Failed(Exception):
    """The endpoint failed the probe; the message is the cause, for a person."""


@attrs.define(kw_only=True)
class Asking:
    """One probe under way: what is asked of whom, and how far it has come."""

    spec: Health
    address: str
    phase: str = "connect"
    """What it is waiting for: "timed out in body"."""
    size: int = 0
    """Bytes that came so far."""
    reach: Reach = PLAIN
    """How connections to it are made."""
    contexts: Contexts = attrs.field(factory=Contexts)


Ask = Callable[[Asking], Awaitable[str]]
"""A kind: what it saw, in a few words; raises Failed, or the OSError that stopped it."""


def kind_of(spec: Health) -> str:
    """Which kind of probe the table asks for; exactly one is set (the schema checks that)."""
    if spec.http is not None:
        return "http"
    if spec.expect is not None:
        return "expect"
    if spec.exec:
        return "exec"
    if spec.grpc is not None:
        return "grpc"
    return "tls" if spec.tls else "tcp"


async def probe_once(
    spec: Health,
    address: str,
    deadline: float,
    reach: Reach = PLAIN,
    *,
    kinds: Mapping[str, Ask],
    contexts: Contexts | None = None,
) -> ProbeResult:
    """What one probe of `address` finds until `deadline`. Cancelled, it has closed and killed whatever it opened."""
    began = trio.current_time()
    asking = Asking(spec=spec, address=address, reach=reach, contexts=contexts or Contexts())
    ok, cause = await _judge(kinds[kind_of(spec)], asking, deadline)
    return ProbeResult(ok=ok, cause=cause, latency=trio.current_time() - began, size=asking.size)


async def _judge(ask: Ask, asking: Asking, deadline: float) -> tuple[bool | None, str]:
    try:
        with trio.fail_at(deadline):
            return True, await ask(asking)
    except trio.TooSlowError:
        return False, f"timed out in {asking.phase}"
    except Failed as exc:
        return False, str(exc)
    except OSError as exc:
        if exc.errno in OUR_TROUBLE:
            return None, f"could not ask: {os.strerror(exc.errno)}"
        return False, describe_error(exc, asking.phase)


def describe_error(exc: OSError, phase: str) -> str:
    """An error of the kernel in a person's words."""
    text = _WORDS.get(exc.errno or 0)
    return text.format(phase=phase) if text else f"{exc.strerror or exc} in {phase}"


def excerpt(answer: bytes) -> str:
    """The begin of an answer as one short printable line."""
    text = answer[:EXCERPT].decode("utf-8", "backslashreplace")
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown[:EXCERPT] + ("..." if len(answer) > EXCERPT or len(shown) > EXCERPT else "")


def host_of(asking: Asking) -> str:
    """Whom a request is for."""
    # A unix socket has no host to name; localhost is what curl sends there.
    unix = isinstance(parse_endpoint(asking.address), UnixPath)
    return asking.spec.host or ("localhost" if unix else asking.address)


# -- connections ----------------------------------------------------------------------------------------------------


class Link:
    """A connection that has been greeted: Trio's socket interface, as far as a probe needs it, over TLS or not."""

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def send(self, data: bytes | memoryview) -> int:
        """How many bytes the connection took, at least one."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self.sock.send(data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)

    async def recv(self, size: int) -> bytes:
        """What has come, b"" at the end."""
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        """As a socket's."""
        self.sock.setsockopt(level, option, value)

    def close(self) -> None:
        """Idempotent."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


Connection = trio.socket.SocketType | Link


async def dial(asking: Asking, tls: ClientTls | None = None) -> Connection:
    """A connection to the endpoint, closed by RST unless `close_in_order` is called. OSError of the last address tried.

    A name's addresses are tried in turn, each with an equal share of the time that is left; `Failed` if the one that
    accepts does not go on with TLS.
    """
    sock = await _dial(asking)
    if tls is None and not asking.reach.local_header:
        return sock
    return await _greet(asking, sock, tls)


async def _greet(asking: Asking, sock: trio.socket.SocketType, tls: ClientTls | None) -> Link:
    """The connection once it has begun as the endpoint wants it."""
    asking.phase = "connect" if tls is None else "tls"
    address = parse_endpoint(asking.address)
    host = address.host if isinstance(address, HostPort) else ""
    greeting = Greeting(
        header=asking.reach.local_header,
        tls=None if tls is None else TlsGreeting(spec=tls, host=host, contexts=asking.contexts),
    )
    target = Target(sock.family, sock.getpeername())
    greeter = Greeter(greeting, socket.socket(fileno=sock.detach()), target)
    greeter.sock.setblocking(False)
    try:
        while events := greeter.step():
            await (trio.lowlevel.wait_writable if events == WRITE else trio.lowlevel.wait_readable)(greeter.sock)
    except GateError as exc:
        greeter.sock.close()
        raise Failed(f"{asking.phase}: {exc.detail.removeprefix(f'{target}: ')}") from exc
    except BaseException:
        greeter.sock.close()
        raise
    return Link(greeter.sock)


async def _dial(asking: Asking) -> trio.socket.SocketType:
    """As `dial`, without what comes first on the connection."""
    targets = await _resolve(asking)
    asking.phase = "connect"
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for index, target in enumerate(targets):
        left = trio.current_effective_deadline() - trio.current_time()
        with trio.move_on_after(left / (len(targets) - index)):
            try:
                return await _connect(target)
            except OSError as exc:
                failure = exc
                continue
        failure = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    raise failure


async def _resolve(asking: Asking) -> Sequence[Target]:
    endpoint = parse_endpoint(asking.address)
    if isinstance(endpoint, UnixPath) or endpoint.numeric:
        return [target_of(endpoint)]
    asking.phase = "resolve"
    try:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, socket.gaierror) else str(exc)
        raise Failed(f"name not resolved: {reason}") from exc
    return alternating(Target(entry[0], (str(entry[4][0]), *entry[4][1:])) for entry in found)


async def _connect(target: Target) -> trio.socket.SocketType:
    sock = trio.socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await sock.connect(target.sockaddr)
        check_connected(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def check_connected(sock: trio.socket.SocketType) -> None:
    """OSError if the kernel only made it look so.

    A full backlog of a unix socket is reported as EAGAIN, which every non-blocking caller takes for "under way". And
    a connect to a local port in the ephemeral range, where nobody listens, can be given that same port as its source:
    TCP's simultaneous open then connects the socket to itself.
    """
    if sock.family == socket.AF_UNIX:
        try:
            sock.getpeername()
        except OSError as exc:
            raise OSError(errno.ECONNREFUSED, "backlog full") from exc
    elif sock.getsockname() == sock.getpeername():
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def close_in_order(sock: Connection) -> None:
    """Close by FIN: the endpoint is well, and an RST would only show up in its log."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _KEEP_ON_CLOSE)
    sock.close()


async def send_all(asking: Asking, sock: Connection, data: bytes) -> None:
    """Send it all; the phase is "send" meanwhile."""
    asking.phase = "send"
    left = memoryview(data)
    while left:
        left = left[await sock.send(left) :]


async def receive(asking: Asking, sock: Connection) -> bytes:
    """What came, b"" at the end; counted."""
    data = await sock.recv(ANSWER_LIMIT)
    asking.size += len(data)
    return data
