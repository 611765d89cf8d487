"""Connections to endpoints: taken from the idle ones or dialled, given back or closed. One exchange each at a time.

The idle ones belong to their `EndpointRuntime`, so they outlive a reload and die with the endpoint. Nothing here
awaits but the dial, so no cancellation can lose a connection or count it twice: `closed()` runs exactly once per
connection, from `close`.

An idle connection has no task. Before reuse, and in the worker's sweep, `alive()` asks the kernel: an endpoint that
closed, or that sent bytes nobody asked for, makes it unusable (RFC 9112 9.5). The race that remains, a close that
crosses our request, shows as an `UpstreamError` with `retry=IF_REUSED`.
"""

from __future__ import annotations

import attrs
import trio

from tcpgate.codec.http1 import ClientCodec
from tcpgate.config import schema
from tcpgate.errors import UpstreamError
from tcpgate.net.dial import dial
from tcpgate.net.resolve import Resolver
from tcpgate.net.stream import Stream
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, CONNECTS, REUSED, WITHDRAWN, EndpointRuntime


@attrs.define(eq=False)
class UpstreamConnection:
    """One HTTP/1.1 connection to an endpoint."""

    endpoint: EndpointRuntime
    stream: Stream
    codec: ClientCodec
    exchanges: int = 0
    """Exchanges begun on it; above 1 it is a reused one."""
    idle_since: float = 0.0
    is_open: bool = True
    counted_in: int = 0
    counted_out: int = 0
    """How much of the stream's bytes the endpoint's counters have."""

    @property
    def reused(self) -> bool:
        """Whether it has served before this exchange."""
        return self.exchanges > 1

    def alive(self) -> bool:
        """Whether an idle connection can be used: open, and silent."""
        return self.stream.is_quiet()

    def close(self) -> None:
        """Give it up. Idempotent."""
        if self.is_open:
            self.is_open = False
            self.endpoint.closed()
            self.stream.close()


def take_idle(endpoint: EndpointRuntime) -> UpstreamConnection | None:
    """An idle connection that still lives, or None. Dead ones found on the way are closed."""
    while (connection := endpoint.take_idle()) is not None:
        assert isinstance(connection, UpstreamConnection)
        if connection.alive():
            connection.exchanges += 1
            endpoint.count(REUSED)
            return connection
        connection.close()
    return None


async def connect(
    endpoint: EndpointRuntime, resolver: Resolver, timeouts: schema.UpstreamTimeouts
) -> UpstreamConnection:
    """A new connection; UpstreamError or Refused (no file left) if there is none to be had.

    Cancelled while it connects: no socket is left behind.
    """
    endpoint.opening()  # counted before the wait, so that a burst of connects cannot pass the endpoint's limit
    try:
        deadline = trio.current_time() + timeouts.connect
        stream = await dial(endpoint.address, deadline=deadline, resolver=resolver)
    except BaseException as exc:
        endpoint.closed()
        if isinstance(exc, UpstreamError):
            endpoint.connect_failed(exc.detail or str(exc.reason), trio.current_time())
        raise
    endpoint.count(CONNECTS)
    return UpstreamConnection(endpoint, stream, ClientCodec(), exchanges=1)


def give_back(connection: UpstreamConnection, now: float, *, usable: bool = True) -> None:
    """An exchange is over: count its bytes, then keep the connection if it can serve another, else close it.

    `usable`: False where the user knows better than the codec.
    """
    endpoint, stream = connection.endpoint, connection.stream
    endpoint.count(BYTES_IN, stream.bytes_in - connection.counted_in)
    endpoint.count(BYTES_OUT, stream.bytes_out - connection.counted_out)
    connection.counted_in, connection.counted_out = stream.bytes_in, stream.bytes_out
    if (
        not usable
        or not connection.is_open
        or stream.poisoned
        or not connection.codec.can_reuse
        or endpoint.state in WITHDRAWN  # by an operator, or by a reload that removed it
        or len(endpoint.idle) >= endpoint.limits.idle
        or connection.exchanges >= endpoint.limits.max_exchanges
    ):
        connection.close()
        return
    connection.idle_since = now
    endpoint.idle.append(connection)
