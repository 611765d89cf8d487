"""An exchange that the lane has begun and does not end: all that the readable path has to know to go on with it.

The lane gives an exchange up only while nothing of an answer has gone to the client. What it has done until then falls
into steps that must not be done twice, because they count: the filters were asked, an endpoint was picked, a
connection was taken or its dial failed, some of the request was sent, some of the answer has come. Whatever is not
told here (the head, the route) is found anew from the same bytes and the same snapshot, so it is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from tcpgate.errors import GateError
from tcpgate.filters.base import RequestView, Verdict
from tcpgate.state.runtime import EndpointRuntime, UpstreamRuntime
from tcpgate.state.snapshot import Snapshot

if TYPE_CHECKING:
    from tcpgate.proxy.pool import UpstreamConnection


@attrs.define(kw_only=True, eq=False)
class Begun:
    """How far the lane came. What it did not come to is None, or the field's default."""

    id: str
    """The request's."""
    snapshot: Snapshot
    """The generation that it was begun by."""
    routed_at: float
    """When the route's time began (Trio time)."""
    view: RequestView | None = None
    """With what the filters have noted."""
    filters_done: int = 0
    """How many of the route's filters were asked."""
    verdict: Verdict | None = None
    """What the last of them said, if it was not to continue."""
    upstream: UpstreamRuntime | None = None
    endpoint: EndpointRuntime | None = None
    """The one picked. Its `begin` was called."""
    started: float = math.nan
    """When it was picked."""
    failure: GateError | None = None
    """Why it could not be connected to; the endpoint has been told."""
    up: UpstreamConnection | None = None
    """The connection to it."""
    connected_at: float = math.nan
    sent: int = 0
    """Bytes of the request, as it goes upstream, that are with the kernel."""
    sent_at: float = math.nan
    """When the last of them was; nan: not all are."""
    received: bytes = b""
    """What the endpoint has said so far."""
    broken: OSError | None = None
    """What its connection failed of after that."""

    def abandon(self) -> None:
        """Nobody goes on with it: its endpoint no longer counts it."""
        if self.up is not None:
            self.up.close()
        if self.endpoint is not None:
            self.endpoint.end()
