"""An HTTP exchange in the lane: plain ones move by callbacks, everything else becomes a task's.

    on_client       a head has come: sent to an endpoint, or handed over (asking.py)
    on_upstream     the answer's head has come: rewritten, sent; what does not go at once is `Outflow`'s (outflow.py)
    finish          the exchange went well: its books (express_end.py), then the next one

Until the first byte of an answer has gone to the client, an exchange can be given up: the readable path goes on with
it. So whatever can go wrong before (a stale connection, an endpoint that says something unusual, a deadline) is
judged, retried and told in one place only, and the lane decides nothing that the readable path would decide otherwise.
After that it can only end well or be cut short, and both are told here.

One class in three files: the connection (ride.py), the request (asking.py), the answer. They are one object because
each exchange walks through all of it, and a call from one object to another costs what the lane is there to save.

Owner: the listener, as ride.py has it.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from tcpgate.codec.blame import UPSTREAM_BODY
from tcpgate.codec.chunked import ChunkScanner
from tcpgate.codec.events import RESPONSE_LIMITS
from tcpgate.codec.express import ExpressResponse
from tcpgate.errors import Bug, ClientError, GateError, Reason, Refused, Side
from tcpgate.net.address import SocketAddress
from tcpgate.net.lane import NOTHING, READ, WRITE
from tcpgate.net.stream import READ_SIZE, lost
from tcpgate.net.tls_socket import TlsSocket
from tcpgate.proxy import express_end, pool
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.asking import Asking
from tcpgate.proxy.http import LINGER_PAUSE
from tcpgate.proxy.ledger import Ledger
from tcpgate.proxy.outflow import Broken, Outflow, frame
from tcpgate.proxy.plane import WORKER_LANE_FAULTS
from tcpgate.proxy.prepared import HttpListener
from tcpgate.proxy.ride import ASKED, AWAY, CONNECTING, FLOWING, GONE, IDLE, LINGERING
from tcpgate.proxy.rider import Host
from tcpgate.stats import plain

READ_AHEAD = 64 << 10
"""Bytes of next requests that are read before the exchange at hand is over."""
DRAINED = "cut at the end of the drain"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class HttpRider(Asking):
    """One client's connection, and the exchange at hand, to its end."""

    __slots__ = ("answer", "bytes_out", "first_byte_at", "flow", "ledger", "line", "status", "upstream_in")

    def __init__(
        self,
        host: Host,
        shared: HttpListener,
        sock: socket.SocketType,
        sockaddr: SocketAddress,
        port: int | None,
        arrived: Arrived | None = None,
    ) -> None:
        super().__init__(host, shared, sock, sockaddr, port, arrived)
        self.flow: Outflow | None = None
        self.line = b""
        """The part of access lines that is the same for the connection, once there was one."""
        self.ledger: Ledger | None = None
        """Of the last exchange that went well."""
        self.bytes_out = self.upstream_in = 0
        """To the client, and from the endpoint, in the exchange at hand, once its answer has begun."""

    # -- the client speaks ------------------------------------------------------------------------------------------

    def on_client(self, ready: int) -> None:
        """The client's socket is readable, or has room again, or has hung up."""
        if ready & WRITE and self.flow is not None:
            self.flow.on_writable()
            if not ready & ~WRITE or self.state in (GONE, AWAY):
                return
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._client_broke(exc)
            return
        self.bytes_in += len(data)
        if self.state != IDLE:
            self._client_spoke(data)
        elif data:
            self.take(self.data + data if self.data else data)
        elif self.data:
            self.hand_over(self.data)
        else:
            if isinstance(self.sock, TlsSocket):
                self.sock.spare_goodbye()
            self.gone()

    def _client_broke(self, exc: OSError) -> None:
        """The client's connection was reset."""
        if self.state == FLOWING:
            self.cut(lost(Side.CLIENT, exc, "receiving"))
        elif self.state in (CONNECTING, ASKED):
            self.give_up(client_broke=exc)
        elif self.state == IDLE and self.data:
            self.hand_over(self.data, client_broke=exc)
        else:
            self.gone()

    def _client_spoke(self, data: bytes) -> None:
        """While an exchange is under way: the next requests come, or it leaves."""
        if self.state == LINGERING:
            if data:
                self.deadline = self.lane.clock() + LINGER_PAUSE
            else:
                self.gone()
        elif data:
            if self.more is None:
                self.more = bytearray()
            self.more += data
            self.rewatch()
        elif self.state == FLOWING:
            self.cut(ClientError(Reason.CLIENT_ABORT, "closed before the response was over"))
        else:
            self.give_up()

    def rewatch(self) -> None:
        """While an exchange is under way: read on as long as not too much is held, write where the answer waits."""
        held = self.more is not None and len(self.more) > READ_AHEAD
        blocked = self.flow is not None and self.flow.blocked
        self.watch((NOTHING if held else READ) | (WRITE if blocked else NOTHING))

    # -- the answer comes -------------------------------------------------------------------------------------------

    def on_upstream(self, _ready: int) -> None:
        """The endpoint's connection is readable, or has hung up."""
        if self.flow is not None:
            self.flow.on_upstream()
            return
        assert self.up is not None
        try:
            data = self.up.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.give_up(broken=exc)
            return
        response = self.plane.answers.begin(data)
        if response is None:
            self.give_up(data)
            return
        end = response.size
        if response.measured < 0 or self.prepared.is_head:
            self._answer_unlike(response, data, end)
        elif len(data) - end > response.measured:
            self.give_up(data)  # it does not end where it says
        else:
            self._answer(response, data, data[end:], response.measured - len(data) + end)

    def _answer_unlike(self, response: ExpressResponse, data: bytes, end: int) -> None:
        """Answers whose end is not simply at their length."""
        if not response.chunked:
            is_bare = response.status in (204, 304)
            if data[end:] or not (is_bare or (self.prepared.is_head and response.length is not None)):
                self.give_up(data)
            else:
                self._answer(response, data, b"", 0)
            return
        scanner, buffer = ChunkScanner(RESPONSE_LIMITS, UPSTREAM_BODY), bytearray(data[end:])
        try:
            rest = frame(scanner, buffer)
        except Broken:
            rest = None
        if rest is None or self.prepared.is_head or (scanner.done and buffer):
            self.give_up(data)
        else:
            self._answer(response, data, rest, 0, scanner, buffer)

    def _answer(
        self,
        response: ExpressResponse,
        data: bytes,
        rest: bytes,
        left: int,
        scanner: ChunkScanner | None = None,
        buffer: bytearray | None = None,
    ) -> None:
        """Pass the head on, with as much of the body as has come: `rest`, behind which `left` bytes are missing."""
        self.first_byte_at = self.lane.clock()
        self.upstream_in = len(data)
        self.status, self.answer = response.status, response
        if self.is_leaving:
            self.closes = True
        if self.careful is not None:
            wire = self.careful.response(response, close=self.closes) + rest
        else:
            before, after = response.note or self._learn(response)
            if not response.has_date:
                before = b"%bDate: %b\r\n%b" % (before, self.plane.date(), self.plane.via)
            wire = b"".join((before, self.id, after if not self.closes else after[:-2] + _CLOSE, rest))
        try:
            self.bytes_out = sent = self.sock.send(wire)
        except BlockingIOError:
            self.bytes_out = sent = 0
        except OSError as exc:
            self.state, self.bytes_out = FLOWING, 0
            self.cut(lost(Side.CLIENT, exc, "sending"))
            return
        self.state = FLOWING  # whatever goes wrong from here on, nothing else may be answered
        if sent == len(wire) and not left and (scanner is None or scanner.done):
            self._finish(self.lane.clock())
            return
        self.deadline = self.began + self.prepared.timeout
        assert self.up is not None
        body = bytearray() if buffer is None else buffer
        self.flow = Outflow(self, self.up, left, scanner, body, self.plan.spec.timeouts, self.upstream.spec.timeouts)
        self.flow.begin(memoryview(wire)[sent:])

    def _learn(self, response: ExpressResponse) -> tuple[bytes, bytes]:
        """What goes before the request id and after it, for every answer with this head."""
        before = b"HTTP/1.1 %d %b\r\n%b" % (response.status, response.reason, response.lines)
        if response.has_date:
            before += self.plane.via
        after = b"\r\n\r\n"
        if response.length is not None:
            after = b"\r\nContent-Length: %d\r\n\r\n" % response.length
        elif response.chunked:
            after = b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        response.note = before, after
        return before, after

    # -- the end ----------------------------------------------------------------------------------------------------

    def done(self) -> None:
        """`Outflow` has moved the rest."""
        assert self.flow is not None
        flow, self.flow = self.flow, None
        flow.close()
        self._finish(self.lane.clock(), clean=not flow.buffer)

    def _finish(self, now: float, *, clean: bool = True) -> None:
        """The exchange went well: its books, then the next one. `clean`: nothing came behind the answer."""
        up = self.up
        assert up is not None
        bytes_in, self.bytes_in = self.bytes_in, 0
        endpoint, prepared, ledger = self.endpoint, self.prepared, self.ledger
        endpoint.end()
        if ledger is None or ledger.endpoint is not endpoint or ledger.plan is not prepared.plan:
            ledger = self.ledger = self.shared.ledger(prepared.plan, endpoint)
            self.line = self.line or plain.connection_of(self.client, self.peer, self.tls)
        ledger.enter((
            self, prepared, self.careful, self.id, self.status, self.connect_seconds, self.began, self.started,
            self.sent_at, self.first_byte_at, now, bytes_in, self.bytes_out, self.upstream_in, self.sent,
        ))  # fmt: skip
        self.up = None
        if clean and self.answer.keep_alive:
            pool.keep(up, now)
        else:
            up.close()
        rest = b""
        if self.used < len(self.data):
            rest = self.data[self.used :]
        if self.more is not None:
            rest += self.more
            self.more = None
        if self.events != READ:
            self.watch(READ)
        self.wire = self.data = b""
        if self.closes:
            if self.request.keep_alive:
                self.linger(now)
            else:
                self.gone()
            return
        self.state = IDLE
        self.deadline = now + self.idle
        if rest:
            self.take_next(rest)
        elif self.is_leaving:
            self.end_idle()
        else:  # it may be idle for long, and heads can be large
            del self.request, self.prepared, self.answer, self.snapshot
            self.careful = None

    def cut(self, exc: GateError) -> None:
        """The answer has begun and cannot be finished: tear the connection down, and tell why."""
        if self.state != FLOWING:
            return
        flow, self.flow = self.flow, None
        if flow is not None:
            flow.close()
        try:
            express_end.drop(self, exc)
        finally:
            with suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.gone()

    def stop(self) -> None:
        """The worker is being cancelled; a task ends by its own cancellation."""
        if self.state == FLOWING:
            self.cut(Refused(Reason.DRAINED, DRAINED))
        elif self.state in (CONNECTING, ASKED):
            self.give_up()  # the task is cancelled at its first step, and then tells the client
        elif self.state == IDLE and self.data:
            self.hand_over(self.data)
        elif self.state != AWAY:
            self.gone()

    def on_fault(self, exc: Exception) -> None:
        """A bug in what the lane called. Before the answer has begun the readable path may do better, or says 500."""
        self.plane.page[WORKER_LANE_FAULTS] += 1
        if self.state == FLOWING:
            self.cut(Bug(repr(exc)))
        elif self.state in (CONNECTING, ASKED):
            self.give_up(failure=Bug(repr(exc)))
        elif self.state == IDLE and self.data:
            self.hand_over(self.data)
        elif self.state != AWAY:
            self.gone()

    # -- time -------------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """A time limit may have passed."""
        if self.flow is not None:
            self.flow.sweep(now)
        if now < self.deadline and now < self.cut_at:
            return
        if self.state in (CONNECTING, ASKED):
            self.give_up()  # what has passed is judged there, by the same clock
        elif self.state == FLOWING:
            if now >= self.cut_at:
                self.cut(Refused(Reason.DRAINED, DRAINED))
            else:
                self.cut(Refused(Reason.EXCHANGE_TIMEOUT, f"the route allows {self.prepared.timeout:g}s"))
        elif self.state == IDLE and self.data:
            self.hand_over(self.data)
        else:
            self.gone()


_CLOSE = b"Connection: close\r\n\r\n"
