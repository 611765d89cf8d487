"""The rest of an answer in the lane: what did not come, or did not go out, together with its head.

Theory of operation. One direction, from the endpoint to the client, one piece at a time: what was received is sent
before the next is received. While the client takes no more, the endpoint's connection is out of the lane, so TCP's own
windows hold it back, and memory is bounded by one piece. A long body of known length moves by splice(2) through a
borrowed pipe (`net/pipes.py`), without passing through this process.

Time: the endpoint has `timeouts.read` for each piece; the client has its pace (`policy/pace.py`), earned by what the
kernel got rid of, looked at by the sweep; the exchange has the route's time, which the rider keeps.

Nothing here is handed to the readable path any more: with the head the client has begun to get this very answer. So it
ends here, well or cut short (`Out.done`, `Out.cut`).

Owner: the rider whose exchange it is.
"""

from __future__ import annotations

import socket
from typing import Protocol

from tcpgate.codec.blame import UPSTREAM_BODY
from tcpgate.codec.chunked import ChunkScanner
from tcpgate.config import schema
from tcpgate.errors import ClientError, GateError, Reason, Side
from tcpgate.net.lane import Lane
from tcpgate.net.pipes import NOT_SUPPORTED, Pipe
from tcpgate.net.stream import READ_SIZE, lost, timed_out, unsent
from tcpgate.net.tls_socket import PIECE, RECORD, TlsSocket
from tcpgate.policy.pace import Pace
from tcpgate.proxy.plane import Plane
from tcpgate.proxy.pool import UpstreamConnection

SPLICE_FROM = 256 << 10
"""Bytes left of a body from which it is spliced; below, copying costs less than the pipe does."""
MOST = 256 << 10
"""Bytes of the largest piece that is copied, to a client that takes all of it at once."""


class Out(Protocol):
    """The rider, as far as its answer's rest needs it."""

    sock: socket.SocketType
    fd: int
    lane: Lane
    plane: Plane
    bytes_out: int
    """To the client, this exchange."""
    upstream_in: int
    """From the endpoint, this exchange."""

    def rewatch(self) -> None:
        """`blocked` has changed: be told of the client's socket what is wanted now."""
        ...

    def done(self) -> None:
        """The answer is with the kernel, whole."""
        ...

    def cut(self, exc: GateError) -> None:
        """The answer cannot be finished."""
        ...


class Outflow:
    """What is left of one answer."""

    __slots__ = (
        "_acked", "_blocked_at", "_pace", "_pending", "_pipe", "_read_by", "_size",
        "_spec", "buffer", "left", "out", "scanner", "timeouts", "up",
    )  # fmt: skip

    def __init__(
        self,
        out: Out,
        up: UpstreamConnection,
        left: int,
        scanner: ChunkScanner | None,
        buffer: bytearray,
        spec: schema.ClientTimeouts,
        timeouts: schema.UpstreamTimeouts,
    ) -> None:
        self.out = out
        self.up = up
        self.left = left
        """Of a body of known length: bytes that the endpoint has still to send."""
        self.scanner = scanner
        """Of a chunked one."""
        self.buffer = buffer
        """Of a chunked one: what the scanner has not eaten yet."""
        self.timeouts = timeouts
        self._spec = spec
        self._pending = memoryview(b"")
        """Received, and not yet taken by the client's socket."""
        self._size = READ_SIZE
        """Of the next piece: it grows while the client takes all, so that who is slow costs no more memory."""
        self._pipe: Pipe | None = None
        """Holds the same, while it does."""
        self._pace: Pace | None = None
        self._blocked_at: float | None = None
        """Since when the client takes no more, or has been seen to."""
        self._acked = 0
        """Bytes that the kernel had got rid of then."""
        self._read_by = out.lane.clock() + timeouts.read

    @property
    def is_whole(self) -> bool:
        """Everything has come."""
        return self.left == 0 if self.scanner is None else self.scanner.done

    @property
    def blocked(self) -> bool:
        """The client takes no more for now."""
        return self._blocked_at is not None

    # -- what the lane tells ----------------------------------------------------------------------------------------

    def begin(self, unsent_of_first: memoryview) -> None:
        """Go on behind the first send, which left this much to do."""
        if isinstance(self.out.sock, TlsSocket):
            self.out.sock.piece = PIECE  # what is pending stays the same until all of it is sent
        self._pending = unsent_of_first
        if unsent_of_first:
            self._block()
        elif self.is_whole:
            self.out.done()

    def on_upstream(self) -> None:
        """The endpoint's connection is readable."""
        if self.left >= SPLICE_FROM and self._splice():
            return
        try:
            data = self.up.sock.recv(READ_SIZE if self.scanner is not None else min(self._size, self.left))
        except BlockingIOError:
            return
        except OSError as exc:
            self.out.cut(lost(Side.UPSTREAM, exc, "receiving"))
            return
        if not data:
            self.out.cut(_cut_short())
            return
        self._read_by = self.out.lane.clock() + self.timeouts.read
        self.out.upstream_in += len(data)
        if self.scanner is None:
            self.left -= len(data)
            self._send(data)
            return
        self.buffer += data
        fault: GateError | None = None
        try:
            framed = frame(self.scanner, self.buffer)
        except Broken as exc:
            framed, fault = exc.before, exc.fault
        if framed:
            self._send(framed)
        if fault is not None:
            self.out.cut(fault)

    def on_writable(self) -> None:
        """The client's socket has room again."""
        if self._blocked_at is None:
            return
        self._account(self.out.lane.clock())
        if self._pipe is not None:
            self._drain(self._pipe)
        else:
            self._push()

    def sweep(self, now: float) -> None:
        """Look whether one side has been silent for too long."""
        if self._blocked_at is None:
            if now >= self._read_by:
                self.out.cut(timed_out(Reason.UPSTREAM_IDLE, "receiving"))
            return
        self._account(now)
        if self._pace is not None and self._pace.late:
            self.out.cut(ClientError(Reason.CLIENT_SLOW, f"{self._outq()} bytes wait to be read"))

    def close(self) -> None:
        """Give the pipe back. What it holds is dropped."""
        if isinstance(self.out.sock, TlsSocket):
            self.out.sock.piece = RECORD
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self.out.plane.pipes.give_back(pipe)

    # -- copying ----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self._pending = memoryview(data)
        self._push()

    def _push(self) -> None:
        """Send what is pending; then go on, or wait for room."""
        try:
            sent = self.out.sock.send(self._pending)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.out.cut(lost(Side.CLIENT, exc, "sending"))
            return
        self.out.bytes_out += sent
        self._pending = self._pending[sent:]
        if self._pending:
            self._size = READ_SIZE
            self._block()
        else:
            self._size = min(2 * self._size, MOST)
            self._go_on()

    # -- splicing ---------------------------------------------------------------------------------------------------

    def _splice(self) -> bool:
        """Move some by splice; False: that cannot be done now, so copy."""
        if isinstance(self.up.sock, TlsSocket) or isinstance(self.out.sock, TlsSocket):
            return False
        pipe = self.out.plane.pipes.borrow()
        if pipe is None:
            return False
        try:
            count = pipe.fill(self.up.fd, self.left)
        except OSError as exc:
            self.out.plane.pipes.give_back(pipe)
            if exc.errno in NOT_SUPPORTED:
                return False
            self.out.cut(lost(Side.UPSTREAM, exc, "receiving"))
            return True
        if not count:
            self.out.plane.pipes.give_back(pipe)
            if count == 0:
                self.out.cut(_cut_short())
            return True
        self._read_by = self.out.lane.clock() + self.timeouts.read
        self.out.upstream_in += count
        self.left -= count
        self._pipe = pipe
        self._drain(pipe)
        return True

    def _drain(self, pipe: Pipe) -> None:
        """Send what is in the pipe; then go on, or wait for room."""
        try:
            sent = pipe.drain(self.out.fd)
        except OSError as exc:
            if exc.errno not in NOT_SUPPORTED:
                self.out.cut(lost(Side.CLIENT, exc, "sending"))
                return
            data = pipe.take_back()
            self.close()
            self._send(data)
            return
        self.out.bytes_out += sent
        if pipe.held:
            self._block()
        else:
            self.close()
            self._go_on()

    # -- the client that takes no more ------------------------------------------------------------------------------

    def _block(self) -> None:
        """Wait for room at the client's; the endpoint waits with us."""
        if self._blocked_at is not None:
            return
        if self._pace is None:
            self._pace = Pace(min_rate=self._spec.min_rate, grace=self._spec.stall)
        self._blocked_at = self.out.lane.clock()
        self._acked = self.out.bytes_out - self._outq()
        self.up.pause()
        self.out.rewatch()

    def _go_on(self) -> None:
        """Everything received is sent."""
        if self._blocked_at is not None:
            self._blocked_at = None
            self.out.rewatch()
            self.up.resume()
            self._read_by = self.out.lane.clock() + self.timeouts.read
        if self.is_whole:
            self.out.done()

    def _account(self, now: float) -> None:
        """Tell the pace how long the client has made us wait, and what it took meanwhile."""
        assert self._blocked_at is not None
        assert self._pace is not None
        acked = self.out.bytes_out - self._outq()
        self._pace.waited(now - self._blocked_at, max(0, acked - self._acked))
        self._blocked_at, self._acked = now, acked

    def _outq(self) -> int:
        try:
            return unsent(self.out.sock)
        except OSError:  # it is gone; the next send says so
            return 0


class Broken(Exception):
    """A chunked body broke its framing after `before`, which is well-formed and framed anew."""

    def __init__(self, before: bytes, fault: GateError) -> None:
        super().__init__(before, fault)
        self.before = before
        self.fault = fault


def frame(scanner: ChunkScanner, buffer: bytearray) -> bytes:
    """What the scanner finds in `buffer`, as chunks of ours; with the end, if it is there. Raises `Broken`.

    The same bytes as h11 writes: a chunk for each piece, and the trailers that may be forwarded.
    """
    pieces: list[bytes] = []
    try:
        while data := scanner.take(buffer):
            pieces += (b"%x\r\n" % len(data), data, b"\r\n")
    except GateError as fault:
        raise Broken(b"".join(pieces), fault) from fault
    if scanner.done:
        trailers = b"".join([b"%b: %b\r\n" % pair for pair in scanner.trailers])
        pieces += (b"0\r\n", trailers, b"\r\n")
    return b"".join(pieces)


def _cut_short() -> GateError:
    return UPSTREAM_BODY.cut_short("body: the connection closed before its end")
