"""HTTP/2 connections to one endpoint: as few as its exchanges need, each shared by many of them.

An exchange takes a stream of a connection that has room (`take`), or waits for one (`connect`). Who waits has made sure
that a connection is being dialled, and shares it with the others that wait; a stream that becomes free meanwhile serves
as well. They are served in the order in which they came. So a burst of exchanges at an endpoint to which there is no
connection makes one, not one each.

A dial is a task of the worker's, which then serves the connection to its end (http2_upstream.py): whoever began it may
be cancelled, and neither the others that wait nor those that get a stream hear of it.

The pool belongs to its `EndpointRuntime` and outlives reloads. `withdraw` (another way to reach the endpoint, ill
health, a removal) lets what runs finish, and whoever waits get what is being dialled for him.

A connection that says who its client is (a PROXY header) serves one exchange: it has a pool of its own.

Source: RFC 9113 5.1.2, 9.1. Who calls: `upstream.py`.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from tcpgate.config import schema
from tcpgate.errors import GateError, Reason, Retry, UpstreamError
from tcpgate.proxy.http2_upstream import STREAMS, Http2Upstream, StreamToEndpoint
from tcpgate.proxy.pool import open_stream
from tcpgate.state.runtime import CONNECTIONS, REUSED, EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.proxy.plane import Plane

VERSION = "h2"
"""As the config says it."""


class _Waiter:
    """An exchange that waits for a stream."""

    __slots__ = ("error", "over", "stream")

    def __init__(self) -> None:
        self.over = trio.Event()
        self.stream: StreamToEndpoint | None = None
        self.error: GateError | None = None


class Http2Pool:
    """The connections to one endpoint; satisfies `runtime.Shared`."""

    def __init__(self, endpoint: EndpointRuntime, plane: Plane, header: bytes | None = None) -> None:
        """`header`: the PROXY header of the one exchange that it is for."""
        self.endpoint = endpoint
        self.plane = plane
        self.connections: list[Http2Upstream] = []
        """Those that may take exchanges, the oldest first."""
        self._header = header
        self._most = STREAMS if header is None else 1
        self._expected = self._most
        """How many streams the next connection is expected to take."""
        self._dials = 0
        """Connections that are not greeted yet."""
        self._starting = 0
        """Of these, those that the endpoint's counter does not have yet."""
        self._waiters: deque[_Waiter] = deque()
        self._epoch = 0
        """How often what there was has been withdrawn."""

    # -- asked by the runtime ---------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """As `runtime.Shared`; a connection that is being dialled counts."""
        return any(one.room for one in self.connections) or len(self._waiters) < self._dials * self._expected

    def withdraw(self) -> None:
        """As `runtime.Shared`."""
        self._epoch += 1
        for connection in self.connections:
            connection.leave()
        self.connections.clear()

    # -- asked by exchanges -----------------------------------------------------------------------------------------

    def take(self) -> StreamToEndpoint | None:
        """A stream of a connection that has room: of the oldest, so that those that are not needed become idle."""
        for connection in self.connections:
            if connection.room:
                if connection.exchanges:
                    self.endpoint.count(REUSED)
                return connection.begin()
        return None

    async def connect(self, timeouts: schema.UpstreamTimeouts) -> StreamToEndpoint:
        """A stream, once there is one. Cancelled: nothing is left of it."""
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._dial_for_waiters(timeouts)
        try:
            with trio.CancelScope(deadline=trio.current_time() + timeouts.connect):
                await waiter.over.wait()
            stream, waiter.stream = waiter.stream, None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.stream is not None:  # cancelled in the moment in which it got one
                waiter.stream.give_back(trio.current_time(), usable=False)
        if stream is not None:
            return stream
        raise waiter.error or UpstreamError(
            Reason.CONNECT_TIMEOUT,
            f"{self.endpoint.name}: no stream was free, nor a new connection ready, within {timeouts.connect:g}s",
            retry=Retry.IF_UNSENT,
        )

    # -- asked by connections ---------------------------------------------------------------------------------------

    def made_room(self) -> None:
        """A connection may take more exchanges than before: those that wait come first."""
        while self._waiters and (stream := self.take()) is not None:
            waiter = self._waiters.popleft()
            waiter.stream = stream
            waiter.over.set()

    def may_idle(self, connection: Http2Upstream) -> bool:
        """Whether a connection without streams is kept."""
        quiet = sum(1 for one in self.connections if one.is_quiet and one is not connection)
        return connection in self.connections and self._header is None and quiet < self.endpoint.limits.idle

    # -- new connections --------------------------------------------------------------------------------------------

    def _dial_for_waiters(self, timeouts: schema.UpstreamTimeouts) -> None:
        """Have as many connections made as those that wait will need, within the endpoint's limit."""
        endpoint = self.endpoint
        meter, most = endpoint.meter, endpoint.limits.max_connections
        while len(self._waiters) > self._dials * self._expected:
            if meter.shared.total(endpoint.block + CONNECTIONS, meter.processes) + self._starting >= most:
                return
            if any(one.link.machine.peer.streams == 0 for one in self.connections):
                return  # the endpoint takes no streams now: others would have none either
            self._dials += 1
            self._starting += 1
            self.plane.start(partial(self._dial, timeouts))

    async def _dial(self, timeouts: schema.UpstreamTimeouts) -> None:
        """Make a connection, and serve it to its end. A task of the worker's; raises nothing but Cancelled."""
        endpoint, reach = self.endpoint, self.endpoint.reach
        deadline = trio.current_time() + timeouts.connect
        greeted = partial(self._greeted, self._epoch, timeouts)
        connection: Http2Upstream | None = None
        failure: GateError | None = None
        self._starting -= 1
        try:
            stream = await open_stream(endpoint, self.plane, timeouts, self._header)
            connection = Http2Upstream(self, stream, reach, self._most, greeted)
            await connection.run(deadline)
        except GateError as exc:
            failure = exc
            if connection is not None and isinstance(exc, UpstreamError):
                endpoint.connect_failed(exc.detail or str(exc.reason), trio.current_time())
        finally:
            if connection is None or not connection.is_greeted:
                self._dials -= 1
            elif connection in self.connections:
                self.connections.remove(connection)
        if failure is None and connection is not None and not connection.exchanges:
            failure = connection.link.lost  # it was of no use to anyone: whoever still waits would wait for the same
        if failure is not None:
            self._fail_waiters(failure)
        self._dial_for_waiters(timeouts)

    def _greeted(self, epoch: int, timeouts: schema.UpstreamTimeouts, connection: Http2Upstream) -> None:
        """A connection is there: it serves those that wait."""
        self._dials -= 1
        self._expected = max(1, min(self._most, connection.link.machine.peer.streams))
        self.connections.append(connection)
        self.made_room()
        if epoch != self._epoch or (self._header is not None and connection.is_quiet):
            # It was made for those that waited, in a way that is not wanted any more; or nobody is left to want it.
            self.connections.remove(connection)
            connection.leave()
        elif connection.exchanges:
            self._dial_for_waiters(timeouts)

    def _fail_waiters(self, exc: GateError) -> None:
        """No connection came about: for those that wait, but for as many as others are being dialled for."""
        while len(self._waiters) > self._dials * self._expected:
            waiter = self._waiters.popleft()
            waiter.error = type(exc)(exc.reason, exc.detail, retry=exc.retry)
            waiter.over.set()


# -- of an endpoint -------------------------------------------------------------------------------------------------


def take(endpoint: EndpointRuntime) -> StreamToEndpoint | None:
    """A stream of a connection to `endpoint` that there is, or None."""
    pool = endpoint.shared
    if not isinstance(pool, Http2Pool) or not endpoint.reach.is_shared:
        return None
    return pool.take()


async def connect(
    endpoint: EndpointRuntime, plane: Plane, timeouts: schema.UpstreamTimeouts, header: bytes | None = None
) -> StreamToEndpoint:
    """A stream to `endpoint`, of a new connection or of one that has got room; errors as `pool.connect` has them."""
    if not endpoint.reach.is_shared:
        alone = Http2Pool(endpoint, plane, endpoint.reach.local_header if header is None else header)
        return await alone.connect(timeouts)
    pool = endpoint.shared
    if not isinstance(pool, Http2Pool):
        pool = endpoint.shared = Http2Pool(endpoint, plane)
    return await pool.connect(timeouts)
