"""A client's HTTP connection as it rides in the lane, whatever exchange is under way.

While it rides, a connection has no task: it is this object, in its listener's set and in the lane's. What the lane
cannot do it *hands over*: a task starts, with the bytes as they came and with what was done already (`Begun`), serves
that one exchange on the readable path (http.py) and hands the connection back.

States: IDLE (waits for a head, or for the rest of a small body), CONNECTING, ASKED (the request is with the
endpoint), FLOWING (the answer has begun to go out), LINGERING (answered and ended; what still comes is dropped), AWAY
(a task has it), GONE. What happens in CONNECTING, ASKED and FLOWING is told by `express.py`.

Owner: the listener (serve.py). Nothing here awaits, and no time limit has a timer: `sweep` looks at `deadline`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from abc import ABC, abstractmethod
from functools import partial

from tcpgate.errors import Side
from tcpgate.net.address import SocketAddress, describe
from tcpgate.net.lane import READ
from tcpgate.net.stream import READ_SIZE, Stream
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.http import FRESH_GRACE, LINGER, LINGER_PAUSE, HttpConnection
from tcpgate.proxy.plane import WORKER_LANE_HANDED
from tcpgate.proxy.prepared import HttpListener
from tcpgate.proxy.rider import Host

IDLE, CONNECTING, ASKED, FLOWING, LINGERING, AWAY, GONE = range(7)

log = logging.getLogger("tcpgate.proxy.ride")


class Ride(ABC):
    """One client's connection. Not an attrs class: thousands idle, and each exchange walks through these fields."""

    __slots__ = (
        "address", "arrived", "began", "bytes_in", "client", "cut_at", "data", "deadline", "events", "fd", "host",
        "identity", "idle", "is_fresh", "is_leaving", "lane", "more", "peer", "plan", "plane", "port", "rides",
        "shared", "snapshot", "sock", "state", "task", "tls", "tls_seconds", "waits_since",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        shared: HttpListener,
        sock: socket.SocketType,
        sockaddr: SocketAddress,
        port: int | None,
        arrived: Arrived | None = None,
    ) -> None:
        self.host = host
        self.plane = host.plane
        self.arrived = arrived
        """How it came, where that was not plainly."""
        self.identity = "" if arrived is None else arrived.identity
        """Who the client is by its certificate, for records."""
        self.tls = "" if arrived is None else arrived.text
        """Version and cipher, for records; "": we had no TLS with the client."""
        self.tls_seconds = 0.0 if arrived is None else arrived.seconds
        """Of its handshake, that no record has told."""
        self.plan = shared.plan
        """The listener as it was when the connection came."""
        self.shared = shared
        self.snapshot = host.snapshot
        """What the exchange at hand is looked up in. Between two there is none: it would keep an old generation."""
        self.lane = self.plane.lane
        self.rides = self.snapshot.config.gateway.lane
        """The config has not switched the lane off."""
        self.idle = shared.plan.spec.timeouts.idle
        self.sock = sock
        self.fd = sock.fileno()
        self.events = 0
        """Of the client's socket, that the lane tells."""
        self.port = port
        """Ours, that the client came to; None: a unix socket."""
        self.address, self.client = shared.client_of(sockaddr[0] if isinstance(sockaddr, tuple) else "")
        self.peer = describe(sockaddr)
        self.state = IDLE
        self.is_fresh = True
        """No request has come yet."""
        self.is_leaving = False
        self.cut_at = math.inf
        self.deadline = math.inf
        """When the sweep has to do something."""
        self.data = b""
        """What the client has sent and has not got an answer to, from the head at hand on."""
        self.more: bytearray | None = None
        """What came after `data`, while the exchange at hand was under way."""
        self.began = 0.0
        """When the exchange at hand began."""
        self.waits_since: float | None = None
        """When the head at hand came, if its body did not come with it."""
        self.bytes_in = 0
        """From the client, that no record has counted yet."""
        self.task: HttpConnection | None = None
        """Who has it while it is AWAY."""

    # -- asked from outside -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to serve; the listener has it in its set by now."""
        if not self.rides:
            self.hand_over(b"")
            return
        self._ride()
        self.deadline = self.lane.clock() + self.plan.spec.timeouts.head
        if self.is_leaving:
            self.leave()

    @property
    def is_long(self) -> bool:
        """A tunnel."""
        return self.task is not None and self.task.is_long

    @property
    def buffered(self) -> int:
        """Bytes of the client's that are held for later."""
        if self.task is not None:
            return self.task.codec.buffered
        return len(self.data) + len(self.more or b"")

    def leave(self) -> None:
        """End as soon as no exchange is under way; the answer to the current one says Connection: close."""
        self.is_leaving = True
        if self.task is not None:
            self.task.leave()
        elif self.state == IDLE and not self.data:
            if self.is_fresh:
                self.deadline = min(self.deadline, self.lane.clock() + FRESH_GRACE)
            else:
                self.end_idle()

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`, whatever is under way; infinity takes it back."""
        self.cut_at = deadline
        if self.task is not None:
            self.task.cut_by(deadline)

    # -- in the lane and out of it ----------------------------------------------------------------------------------

    def _ride(self) -> None:
        self.events = READ
        self.lane.add(self.fd, self.on_client)
        self.lane.timed.add(self)

    def watch(self, events: int) -> None:
        """Be told these events of the client's socket."""
        if events != self.events:
            self.events = events
            self.lane.change(self.fd, events)

    def _leave_lane(self) -> None:
        self.lane.remove(self.fd)
        self.lane.timed.discard(self)

    def hand_over(self, data: bytes, begun: Begun | None = None, client_broke: OSError | None = None) -> None:
        """Give the exchange at hand to a task, with everything that the client has sent of it and after it."""
        if self.rides:
            self._leave_lane()
            self.plane.page[WORKER_LANE_HANDED] += 1
        if self.more:
            data += self.more
            self.more = None
        self.state, self.data, self.deadline = AWAY, b"", math.inf
        stream = Stream(self.sock, Side.CLIENT, self.peer)
        stream.give_back(b"", client_broke)
        task = self.task = HttpConnection(
            self.plane, self.plan, stream, self.address, self.snapshot, lane=self.rides, arrived=self.arrived
        )
        task.tls_seconds, self.tls_seconds = self.tls_seconds, 0.0
        if data:
            task.take_over(data, self.bytes_in, self.waits_since if begun is None else self.began, begun)
        task.is_fresh = self.is_fresh
        task.is_leaving = self.is_leaving
        task.cut_by(self.cut_at)
        self.bytes_in, self.waits_since = 0, None
        try:
            self.host.start(partial(self._run, task))
        except RuntimeError:  # the listener has just been cancelled: its nursery takes no task any more
            self.task = None
            task.stream.close()
            if begun is not None:
                begun.abandon()
            self.gone()

    async def _run(self, task: HttpConnection) -> None:
        """The task: serve on the readable path, then come back, or be gone."""
        leftover = None
        try:
            leftover = await task.run()
        finally:
            self.task = None
            if leftover is None:
                self.gone()
            else:
                self._come_back(leftover, task)

    def _come_back(self, leftover: bytes, task: HttpConnection) -> None:
        self.state, self.is_fresh = IDLE, False
        self.is_leaving = task.is_leaving
        try:
            self._ride()
        except OSError as exc:  # the user's allowance of epoll watches
            log.warning("the lane has no room: listener=%s error=%s", self.plan.name, exc)
            self.gone()
            return
        self.deadline = self.lane.clock() + self.plan.spec.timeouts.idle
        self.bytes_in = task.stream.bytes_in - task.counted_in
        if leftover:
            self.take_next(leftover)
        elif self.is_leaving:
            self.end_idle()

    def take_next(self, data: bytes) -> None:
        """As `take`, where the lane has not called this connection, so that it would not tell it of a bug."""
        try:
            self.take(data)
        except Exception as exc:
            log.exception("a request behind another failed: listener=%s", self.plan.name)
            self.on_fault(exc)

    def gone(self) -> None:
        """The connection is over."""
        if self.state == GONE:
            return
        if self.state != AWAY:
            self.lane.forget(self.fd)
            self.lane.timed.discard(self)
            self.sock.close()
        self.state, self.data, self.more = GONE, b"", None
        self.host.ended(self)

    def end_idle(self) -> None:
        """Nothing is under way: close. But a request may have come in this very moment, and closing would lose it."""
        data = b""
        with contextlib.suppress(OSError):
            data = self.sock.recv(READ_SIZE)
        if data:
            self.bytes_in += len(data)
            self.take_next(self.data + data)
        else:
            self.gone()

    def linger(self, now: float) -> None:
        """Our end of stream, then read and drop what still comes, for a while (RFC 9112 9.6)."""
        self.state = LINGERING
        self.deadline = now + LINGER_PAUSE
        self.cut_at = min(self.cut_at, now + LINGER)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.gone()

    # -- what an exchange brings ------------------------------------------------------------------------------------

    @abstractmethod
    def on_client(self, ready: int) -> None:
        """The client's socket is readable, or has room again, or has hung up."""

    @abstractmethod
    def take(self, data: bytes) -> None:
        """A next request begins with `data`."""

    @abstractmethod
    def stop(self) -> None:
        """The worker is being cancelled."""

    @abstractmethod
    def on_fault(self, exc: Exception) -> None:
        """A bug in what the lane called."""

    @abstractmethod
    def sweep(self, now: float) -> None:
        """A time limit may have passed."""
