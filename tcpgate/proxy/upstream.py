"""What an attempt asks of its connection to an endpoint, whatever protocol it speaks: a whole one (`pool.py`), or one
stream of an HTTP/2 connection that carries many.

Owner: the attempt that has it, until it is given back.
"""

from __future__ import annotations

from typing import Protocol

from tcpgate.codec.sides import ClientSide
from tcpgate.net.carrier import Carrier
from tcpgate.state.runtime import EndpointRuntime


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
