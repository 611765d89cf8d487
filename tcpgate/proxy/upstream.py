"""What an attempt asks of its connection to an endpoint, whatever protocol it speaks: a whole one (`pool.py`), or one
stream of an HTTP/2 connection that carries many.

Owner: the attempt that has it, until it is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tcpgate.codec.sides import ClientSide
from tcpgate.config import schema
from tcpgate.net.carrier import Carrier
from tcpgate.proxy import http2_pool, pool
from tcpgate.state.runtime import EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.proxy.plane import Plane


class Upstream(Protocol):
    """One exchange's way to an endpoint."""

    endpoint: EndpointRuntime

    @property
    def stream(self) -> Carrier:
        """What carries the bytes."""
        ...

    @property
    def codec(self) -> ClientSide:
        """What they mean."""
        ...

    @property
    def reused(self) -> bool:
        """Whether the connection has served before this exchange, so that it may have gone stale."""
        ...

    def give_back(self, now: float, *, usable: bool) -> None:
        """The exchange is over: count its bytes, keep the connection if it can serve another.

        `usable`: False where the user knows that the request did not go out whole, whatever the codec thinks.
        """
        ...


def take(endpoint: EndpointRuntime) -> Upstream | None:
    """A way over a connection that there is, for a task; None: one has to be made."""
    if endpoint.reach.version == http2_pool.VERSION:
        return http2_pool.take(endpoint)
    idle = pool.take_idle(endpoint)
    if idle is not None:
        idle.leave()
    return idle


async def connect(
    endpoint: EndpointRuntime, plane: Plane, timeouts: schema.UpstreamTimeouts, header: bytes | None = None
) -> Upstream:
    """A way over a new connection, or over one that has got room meanwhile. Errors as `pool.connect` has them."""
    if endpoint.reach.version == http2_pool.VERSION:
        return await http2_pool.connect(endpoint, plane, timeouts, header)
    return await pool.connect(endpoint, plane, timeouts, header)
