"""An upgraded connection: after the 101 both sides speak another protocol, and bytes move as they are.

Owner: the exchange, which lasts as long as the tunnel does; so does the endpoint's in-flight count. A reload does not touch a tunnel;
a reload that removes its endpoint, and a drain, give it until their deadline (`HttpConnection.cut_by`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tcpgate.net.relay import Flow, RelayOutcome, relay
from tcpgate.proxy.pool import UpstreamConnection

if TYPE_CHECKING:
    from tcpgate.proxy.exchange import Exchange


async def run(exchange: Exchange, up: UpstreamConnection, flow: Flow) -> RelayOutcome:
    """Relay until it is over; both streams are closed then. Cancelled: both are aborted, `flow` has the counts."""
    connection = exchange.connection
    exchange.scope.deadline = math.inf  # the route's timeout was for the exchange, which the 101 has ended
    connection.is_long = True
    up.endpoint.flows.add(connection)
    try:
        return await relay(
            connection.stream,
            up.stream,
            idle=connection.plan.spec.timeouts.tunnel,
            pipes=connection.plane.pipes,
            flow=flow,
            to_upstream=connection.codec.switched(),
            to_downstream=up.codec.switched(),
        )
    finally:
        up.endpoint.flows.discard(connection)
        connection.is_long = False
