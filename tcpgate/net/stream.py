"""A stream: one non-blocking socket, owned by one task, whose errors are ours.

Theory of operation. The socket is a plain one from the socket module. Every operation tries it first and only waits
(Trio's epoll) when the kernel says "not now": most reads and writes on a busy connection then cost one system call
and no task switch. A peer that is always ready could keep its task running for ever, so each stream has a credit of
bytes after which it passes a checkpoint; the checkpoint comes *before* the system call, so a cancelled call never
loses bytes that were read.

This is the one place where an OSError of a connection becomes a `GateError` (`from exc`): a lost client is
CLIENT_ABORT, a lost endpoint UPSTREAM_CLOSED with Retry.SAFE, since a request may have been acted upon. A deadline
that passes is raised as the reason that the caller names, because only the caller knows what it was waiting for.

A *pace* (`policy/pace.py`) bounds how slow a client may be. Reading, it earns by what arrives. Writing, by what the
kernel has really got rid of (SIOCOUTQ), not by what fits into the send buffer: with 2 MB of buffer the socket becomes
writable again only when a third is gone, which takes an honest client on a thin line minutes.

Closing: `close` ends in good order (FIN, the kernel delivers what is in its buffer), `abort` tears the connection
down (RST) so that the peer cannot take a cut stream for a whole one. Both are sync and may be called twice.

Source: tcp(7), socket(7), send(2), recv(2). Owner: the connection's task. One task may read while another writes; two
must not do the same.
"""

from __future__ import annotations

import errno
import fcntl
import math
import socket
import struct
import termios
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import attrs
import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

from tcpgate.errors import REASONS, Bug, ClientError, GateError, Reason, Refused, Retry, Side, UpstreamError
from tcpgate.net.address import describe
from tcpgate.net.tls_socket import TlsSocket
from tcpgate.net.unsent import Buffer as Buffer  # what `send_all` takes, for its callers
from tcpgate.net.unsent import Unsent

READ_SIZE = 65536
"""What one read asks for (bytes): the kernel's default pipe and a good part of a socket buffer; Envoy and HAProxy 16
KiB."""
CREDIT = 1 << 18
"""Bytes after which a stream lets other tasks run: about 100 us of copying."""
LEAST_CHARGE = 4096
"""What the smallest operation costs of the credit, so that endless tiny reads pass a checkpoint too."""
MAX_BUFFERS = 64
"""Buffers given to one sendmsg; IOV_MAX is 1024, but the kernel copies the whole list each time."""
FLUSH_POLL = 0.001
"""Seconds before the first second look at a send buffer; doubles to 50 of them."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds


class Pacing(Protocol):
    """How slow a client may be; `policy.pace.Pace` is one. Endpoints have deadlines instead."""

    def budget(self) -> float:
        """Seconds that we may wait for the next bytes."""
        ...

    def waited(self, seconds: float, moved: int) -> None:
        """We waited, and the peer moved so many bytes."""
        ...


@attrs.define(eq=False)
class Stream:
    """One connection to a client or to an endpoint."""

    sock: socket.SocketType
    side: Side
    """Who is at the other end: CLIENT or UPSTREAM. It decides whose fault a failure is."""
    peer: str = ""
    """The other end's address, for logs; asked of the kernel if it is not given."""
    bytes_in: int = attrs.field(init=False, default=0)
    """Received from the peer."""
    bytes_out: int = attrs.field(init=False, default=0)
    """Accepted by the kernel for the peer."""
    poisoned: bool = attrs.field(init=False, default=False)
    """A send was cut after a part of its data: nothing that is sent now would be understood. Close or abort."""
    closed: bool = attrs.field(init=False, default=False)
    write_closed: bool = attrs.field(init=False, default=False)
    _credit: int = attrs.field(init=False, default=CREDIT)
    _returned: list[bytes | OSError] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        if self.sock.gettimeout() != 0:  # an accepted or dialled one is non-blocking already
            self.sock.setblocking(False)
        if not self.peer:
            with suppress(OSError):  # it may have left already
                self.peer = describe(self.sock.getpeername())

    @property
    def plain(self) -> bool:
        """Whether the socket's bytes are exactly the stream's, so that splice(2) may move them."""
        return not isinstance(self.sock, TlsSocket)

    # -- receiving --------------------------------------------------------------------------------------------------

    def receive_nowait(self, max_bytes: int = READ_SIZE) -> bytes | None:
        """What is here now: bytes, b"" at the peer's end of stream, None if there is nothing yet."""
        try:
            data = self.sock.recv(max_bytes) if not self._returned else self._take_returned(max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise self.failed(exc, "receiving") from exc
        self.bytes_in += len(data)
        return data

    def give_back(self, data: bytes, broken: OSError | None = None) -> None:
        """Put back what somebody else has received from the socket, and what it then failed of: the next receives
        give it again."""
        self._returned += [data] if data else []
        self._returned += [broken] if broken is not None else []

    @property
    def is_ahead(self) -> bool:
        """Whether something was given back, so that the socket is not all that there is to receive."""
        return bool(self._returned)

    def _take_returned(self, max_bytes: int) -> bytes:
        first = self._returned.pop(0)
        if isinstance(first, OSError):
            raise first
        if len(first) > max_bytes:
            self._returned.insert(0, first[max_bytes:])
        return first[:max_bytes]

    def is_quiet(self) -> bool:
        """Whether the connection is open and nothing has come: what an idle one must be to be used again."""
        if self.closed:
            return False
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def receive_some(
        self,
        max_bytes: int = READ_SIZE,
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> bytes:
        """At least one byte, or b"" at the peer's end of stream. Not always a checkpoint, see the module.

        Raises ClientError or UpstreamError if the connection is lost, the error of `late` once `deadline` has passed,
        and ClientError(BODY_TIMEOUT) once the peer is below its `pace`. Cancelled: nothing was taken from the stream.
        """
        if self._credit <= 0:
            await self.breathe()
        data = self.receive_nowait(max_bytes)
        while data is None:
            await self.wait_readable(deadline=deadline, late=late, pace=pace)
            data = self.receive_nowait(max_bytes)
        self.charge(len(data))
        if pace is not None:
            pace.waited(0.0, len(data))
        return data

    async def wait_readable(
        self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT, pace: Pacing | None = None
    ) -> None:
        """Until there may be something to receive. Raises as `receive_some`; a checkpoint."""
        patience = pace.budget() if pace is not None else math.inf
        started = trio.current_time()
        if await self._wait(wait_readable, min(deadline, started + patience)):
            if pace is not None:
                pace.waited(trio.current_time() - started, 0)
            return
        if pace is not None and started + patience <= deadline:
            raise ClientError(Reason.BODY_TIMEOUT, f"nothing came for {trio.current_time() - started:.1f}s")
        raise timed_out(late, "receiving")

    # -- sending ----------------------------------------------------------------------------------------------------

    def send_nowait(self, data: Buffer) -> int:
        """How many bytes of `data` the kernel took; 0 if there is no room now."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self.failed(exc, "sending") from exc
        self.bytes_out += sent
        return sent

    async def send_all(
        self,
        data: Buffer | Sequence[Buffer],
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> None:
        """Hand all of `data`, one buffer or several, to the kernel. Not always a checkpoint, see the module.

        Raises as `receive_some`, with ClientError(CLIENT_SLOW) for a peer below its `pace`. Cancelled or failed after
        some of the bytes had gone: the stream is `poisoned` and only good for closing.
        """
        if self.poisoned:
            raise Bug(f"sending to {self.peer} after a send that was cut")
        if self._credit <= 0:
            await self.breathe()
        buffers = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        size = sum(map(len, buffers))
        sent = self._send_buffers(buffers)
        if sent < size:
            await self._send_rest(Unsent(buffers, sent), sent > 0 or not self.plain, deadline, late, pace)
        self.charge(size)

    async def _send_rest(self, left: Unsent, begun: bool, deadline: float, late: Reason, pace: Pacing | None) -> None:
        """Send what did not fit at once. `begun`: some of the data has gone, or is sealed by TLS."""
        drained = _Drained(self) if pace is not None else None
        while left.size:
            self.poisoned = begun
            await self._wait_writable(deadline, late, pace, drained)
            sent = self._send_buffers(left.buffers)
            left.drop(sent)
            begun = begun or sent > 0
        self.poisoned = False

    def _send_buffers(self, buffers: Sequence[Buffer]) -> int:
        """As `send_nowait`, for several buffers in one system call."""
        if len(buffers) == 1:
            return self.send_nowait(buffers[0])
        try:
            sent = self.sock.sendmsg(buffers[:MAX_BUFFERS])
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self.failed(exc, "sending") from exc
        self.bytes_out += sent
        return sent

    async def wait_writable(self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT) -> None:
        """Until the kernel may have room. Raises as `send_all`; a checkpoint."""
        if not await self._wait(wait_writable, deadline):
            raise timed_out(late, "sending")

    async def _wait_writable(
        self, deadline: float, late: Reason, pace: Pacing | None, drained: _Drained | None
    ) -> None:
        if pace is None or drained is None:
            await self.wait_writable(deadline=deadline, late=late)
            return
        started, writable = trio.current_time(), False
        while not writable:
            limit = started + pace.budget()
            writable = await self._wait(wait_writable, min(deadline, limit))
            now = trio.current_time()
            pace.waited(now - started, drained.take())
            started = now
            if not writable and now >= deadline:
                raise timed_out(late, "sending")
            if not writable and pace.budget() <= 0.0:
                raise ClientError(Reason.CLIENT_SLOW, f"{self.unsent()} bytes wait to be read")

    def unsent(self) -> int:
        """Bytes in the kernel's send buffer that the peer has not acknowledged (SIOCOUTQ)."""
        if self.closed:
            raise Bug(f"asking about {self.peer} after it was closed")
        try:
            return unsent(self.sock)
        except OSError as exc:
            raise self.failed(exc, "sending") from exc

    async def wait_flushed(self, deadline: float) -> None:
        """Until the peer has acknowledged everything, or `deadline`. Never raises a GateError: a lost peer needs
        nothing.

        The kernel wakes nobody for this, so it is polled; for the rare goodbye only.
        """
        pause = FLUSH_POLL
        with suppress(GateError):
            while self.unsent() and (now := trio.current_time()) < deadline:
                await trio.sleep(min(pause, deadline - now))
                pause = min(2 * pause, 50 * FLUSH_POLL)

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def _wait(self, ready: _Wait, deadline: float) -> bool:
        """Whether the socket became ready before `deadline`."""
        if self.closed:  # Trio would keep a waiter for descriptor -1, and take the next one for its rival
            raise Bug(f"waiting for {self.peer} on a stream that is closed")
        try:
            if deadline == math.inf:
                await ready(self.sock)
                return True
            with trio.CancelScope(deadline=deadline) as scope:
                await ready(self.sock)
            return not scope.cancelled_caught
        except (trio.ClosedResourceError, ValueError, OSError) as exc:
            # epoll itself refused, or somebody closed the stream under its owner: neither is the peer's doing.
            raise Bug(f"waiting for {self.peer} on a stream that was closed meanwhile") from exc

    def charge(self, count: int) -> None:
        """`count` bytes were moved without letting others run."""
        self._credit -= max(count, LEAST_CHARGE)

    async def breathe(self) -> None:
        """Let other tasks run if this stream has had its share; else return at once."""
        if self._credit <= 0:
            self._credit = CREDIT
            await checkpoint()

    # -- ending -----------------------------------------------------------------------------------------------------

    def shut_write(self) -> None:
        """Send our end of stream (FIN); receiving goes on. A peer that is already gone is told by the next
        receive."""
        if self.closed or self.write_closed:
            return
        self.write_closed = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:
                raise self.failed(exc, "ending") from exc

    def close(self) -> None:
        """End both directions in good order. What the kernel holds for the peer is still delivered."""
        if self.closed:
            return
        self.closed = True
        if self.sock.fileno() >= 0:
            notify_closing(self.sock)
            self.sock.close()

    def abort(self) -> None:
        """Tear the connection down (RST): what is unsent is dropped, and the peer's next read fails."""
        if not self.closed and self.sock.fileno() >= 0:
            # A unix socket takes the option and ignores it; its peer sees an end of stream.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    # -- errors -----------------------------------------------------------------------------------------------------

    def failed(self, exc: OSError, doing: str) -> GateError:
        """What `exc` means, given who is at the other end. Raise it `from exc`."""
        if exc.errno == errno.EBADF or self.closed:
            return Bug(f"{doing} on a closed stream to {self.peer}")
        return lost(self.side, exc, doing)


def lost(side: Side, exc: OSError, doing: str) -> GateError:
    """What it means that the connection to `side` failed while we were `doing` something. Raise it `from exc`."""
    detail = f"{errno.errorcode.get(exc.errno or 0, 'error')} while {doing}"
    if side is Side.CLIENT:
        return ClientError(Reason.CLIENT_ABORT, detail)
    if exc.errno == errno.EPROTO:  # TLS; with 1.3 our certificate is judged after the handshake
        return UpstreamError(Reason.TLS_HANDSHAKE, f"{exc.strerror} while {doing}", retry=Retry.SAFE)
    return UpstreamError(Reason.UPSTREAM_CLOSED, detail, retry=Retry.SAFE)


def unsent(sock: socket.SocketType) -> int:
    """Bytes in the kernel's send buffer that the peer has not acknowledged (SIOCOUTQ). OSError."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))
    return int(count)


class _Wait(Protocol):
    """`trio.lowlevel.wait_readable` or `wait_writable`."""

    async def __call__(self, sock: socket.SocketType, /) -> None: ...


def timed_out(reason: Reason, doing: str) -> GateError:
    """The error for a deadline that passed: the class of the reason's side."""
    detail = f"deadline passed while {doing}"
    side = REASONS[reason].side
    if side is Side.CLIENT:
        return ClientError(reason, detail)
    if side is Side.UPSTREAM:
        return UpstreamError(reason, detail, retry=Retry.SAFE)
    return Refused(reason, detail)


class _Drained:
    """How many bytes the peer has taken of what the kernel holds for it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._taken = stream.bytes_out - stream.unsent()

    def take(self) -> int:
        """Bytes since the last call."""
        before, self._taken = self._taken, self._stream.bytes_out - self._stream.unsent()
        return max(0, self._taken - before)
