"""Connections to endpoints: taken from the idle ones or dialled, given back or closed. One exchange each at a time.

The idle ones belong to their `EndpointRuntime`, so they outlive a reload and die with the endpoint. Nothing here
awaits but the dial, so no cancellation can lose a connection or count it twice: `closed()` runs exactly once per
connection, from `close`.

An idle connection has no task. It rides in the lane, where the kernel tells at once of one that was closed, or that
sent bytes nobody asked for: either makes it unusable (RFC 9112 9.5). Of a batch of events these are the first that
the lane looks at, so what it reuses was silent when the batch began: good enough for a request that may be sent again.
Before any other request, before a task reuses one, and in the worker's sweep, `alive()` asks the kernel as well, which
costs as much as sending does. The race that remains, a close that crosses our request, shows as an `UpstreamError`
with `retry=IF_REUSED`.

Over TLS the socket is a `TlsSocket`, which rides like a plain one; but what comes of it while it is idle may be a
session ticket, which is no end (RFC 8446 4.6.1). A connection that was made in a way that a reload has changed since,
or that has said who its client is (a PROXY header), is not used again.

In the lane a connection is a bare socket whose bytes go to `serving`; a task asks for its `stream` and its `codec`,
which are made when they are first asked for.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from tcpgate.codec.http1 import ClientCodec
from tcpgate.config import schema
from tcpgate.errors import Side, UpstreamError
from tcpgate.net.dial import dial
from tcpgate.net.lane import ENDS, READ, Lane
from tcpgate.net.stream import Stream
from tcpgate.net.tls_client import EndpointSocket
from tcpgate.proxy.greet import greeting_of
from tcpgate.state.reach import Reach
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, CONNECTS, REUSED, WITHDRAWN, EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.proxy.plane import Plane


class Serving(Protocol):
    """Who works with a connection in the lane."""

    def on_upstream(self, ready: int) -> None:
        """It is readable, or has hung up."""
        ...

    def on_fault(self, exc: Exception) -> None:
        """`on_upstream` raised."""
        ...


@attrs.define(eq=False)
class UpstreamConnection:
    """One HTTP/1.1 connection to an endpoint."""

    endpoint: EndpointRuntime
    sock: socket.SocketType
    peer: str
    lane: Lane
    """Where it rides while no task has it."""
    reach: Reach
    """The way it was made; the endpoint's may be another by now."""
    exchanges: int = 0
    """Exchanges begun on it; above 1 it is a reused one."""
    serving: Serving | None = None
    """In the lane: who its bytes are for; None: nobody, it is idle."""
    in_lane: bool = False
    ends: bool = False
    """In the lane: its other end has been heard to close."""
    idle_since: float = 0.0
    is_open: bool = True
    counted_in: int = 0
    counted_out: int = 0
    """How much of the stream's bytes the endpoint's counters have."""
    fd: int = attrs.field(init=False)
    _poll: select.poll = attrs.field(init=False)
    _stream: Stream | None = None
    _codec: ClientCodec | None = None

    def __attrs_post_init__(self) -> None:
        self.fd = self.sock.fileno()
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    @property
    def stream(self) -> Stream:
        """For a task; the connection must have left the lane."""
        if self._stream is None:
            self._stream = Stream(self.sock, Side.UPSTREAM, self.peer)
        return self._stream

    @property
    def codec(self) -> ClientCodec:
        """For a task. It knows nothing of the exchanges that the lane moved but how many they were."""
        if self._codec is None:
            self._codec = ClientCodec()
            self._codec.exchanges = self.exchanges - 1
        return self._codec

    @property
    def reused(self) -> bool:
        """Whether it has served before this exchange."""
        return self.exchanges > 1

    def alive(self) -> bool:
        """Whether an idle connection can be used: open, and silent. The kernel knows before the lane has heard."""
        return self.is_open and (not self._poll.poll(0) or self._is_quiet())

    def _is_quiet(self) -> bool:
        """What has come are no bytes: TLS has messages of its own."""
        return isinstance(self.sock, EndpointSocket) and self.sock.is_quiet()

    # -- in the lane ------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Ride in the lane from now on."""
        if not self.in_lane:
            self.lane.add(self.fd, self.on_ready, READ | ENDS)
            self.in_lane = True

    def leave(self) -> None:
        """A task takes it: Trio's loop looks after the socket now."""
        self.serving = None
        self.pause()

    def pause(self) -> None:
        """Hear nothing of it for a while, its hang-up included."""
        if self.in_lane:
            self.lane.remove(self.fd)
            self.in_lane = False

    def resume(self) -> None:
        """Take a pause back."""
        if self.is_open:
            self.enter()

    def on_ready(self, ready: int) -> None:
        """Something has come, or it was closed."""
        if self.serving is not None:
            if ready != READ:
                self.ends = True
            self.serving.on_upstream(ready)
        elif not self._is_quiet():
            self.endpoint.idle.remove(self)
            self.close()

    def on_fault(self, exc: Exception) -> None:
        """A bug in what was done with it."""
        if self.serving is not None:
            self.serving.on_fault(exc)
        else:
            self.close()

    # -- its end ----------------------------------------------------------------------------------------------------

    def give_back(self, now: float, *, usable: bool) -> None:
        """As the function; for who holds an `Upstream`."""
        give_back(self, now, usable=usable)

    def close(self) -> None:
        """Give it up. Idempotent."""
        if self.is_open:
            self.is_open = False
            if self.in_lane:
                self.lane.forget(self.fd)
                self.in_lane = False
            self.endpoint.closed()
            if self._stream is not None:
                self._stream.close()
            else:
                self.sock.close()


def take_idle(endpoint: EndpointRuntime, *, look: bool = True) -> UpstreamConnection | None:
    """An idle connection that still lives, or None. Dead ones found on the way are closed.

    It is still in the lane; a task calls its `leave`. Without a `look` it lived when the lane's batch began.
    """
    idle = endpoint.idle
    while idle:
        connection: UpstreamConnection = idle.pop()  # type: ignore[assignment]  # the newest is the least likely stale
        if not look or connection.alive():
            connection.lane.first.discard(connection.fd)
            connection.exchanges += 1
            endpoint.count(REUSED)
            return connection
        connection.close()
    return None


async def connect(
    endpoint: EndpointRuntime, plane: Plane, timeouts: schema.UpstreamTimeouts, header: bytes | None = None
) -> UpstreamConnection:
    """A new connection; UpstreamError or Refused (no file left) if there is none to be had.

    `header`: the PROXY header that tells of its client, if the endpoint wants one. Cancelled while it connects: no
    socket is left behind.
    """
    reach = endpoint.reach
    stream = await open_stream(endpoint, plane, timeouts, header)
    return UpstreamConnection(endpoint, stream.sock, stream.peer, plane.lane, reach, exchanges=1, stream=stream)


async def open_stream(
    endpoint: EndpointRuntime, plane: Plane, timeouts: schema.UpstreamTimeouts, header: bytes | None = None
) -> Stream:
    """As `connect`, for another kind of connection: the stream alone. It counts as one of the endpoint's until its
    owner says `endpoint.closed()`."""
    endpoint.opening()  # counted before the wait, so that a burst of connects cannot pass the endpoint's limit
    try:
        deadline = trio.current_time() + timeouts.connect
        greeting = greeting_of(endpoint, plane.contexts, header=header)
        stream = await dial(endpoint.address, deadline=deadline, resolver=plane.resolver, greeting=greeting)
    except BaseException as exc:
        endpoint.closed()
        if isinstance(exc, UpstreamError):
            endpoint.connect_failed(exc.detail or str(exc.reason), trio.current_time())
        raise
    endpoint.count(CONNECTS)
    return stream


def give_back(connection: UpstreamConnection, now: float, *, usable: bool = True) -> None:
    """An exchange is over: count its bytes, then keep the connection if it can serve another, else close it.

    `usable`: False where the user knows better than the codec.
    """
    endpoint, stream = connection.endpoint, connection.stream
    endpoint.count(BYTES_IN, stream.bytes_in - connection.counted_in)
    endpoint.count(BYTES_OUT, stream.bytes_out - connection.counted_out)
    connection.counted_in, connection.counted_out = stream.bytes_in, stream.bytes_out
    if not usable or not connection.is_open or stream.poisoned or not connection.codec.can_reuse:
        connection.close()
    else:
        keep(connection, now)


def keep(connection: UpstreamConnection, now: float) -> None:
    """Nothing stands against another exchange on `connection`: make it an idle one, if there is room for it."""
    endpoint = connection.endpoint
    if (
        connection.ends
        or endpoint.state in WITHDRAWN  # by an operator, or by a reload that removed it
        or len(endpoint.idle) >= endpoint.limits.idle
        or connection.exchanges >= endpoint.limits.max_exchanges
        # A record brought more than the answer's end: bytes that nobody asked for, and that no descriptor tells of.
        or (isinstance(connection.sock, EndpointSocket) and connection.sock.pending())
        or connection.reach is not endpoint.reach
        or connection.reach.proxy != "off"
    ):
        connection.close()
        return
    if connection.exchanges == 1 and isinstance(connection.sock, EndpointSocket):
        connection.sock.keep_session()
    connection.serving = None
    connection.idle_since = now
    try:
        connection.enter()
    except OSError:  # the user's allowance of epoll watches: nobody would hear of its end
        connection.close()
    else:
        connection.lane.first.add(connection.fd)
        endpoint.idle.append(connection)
