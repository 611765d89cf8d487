"""An upgraded connection: after the 101 both sides speak another protocol, and bytes move as they are.

Owner: the exchange, which lasts as long as the tunnel does; so does the endpoint's in-flight count. A reload does not
touch a tunnel; a reload that removes its endpoint, and a drain, give it until their deadline
(`Downstream.cut_by`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tcpgate.net.relay import RelayOutcome, relay
from tcpgate.proxy.upstream import Upstream

if TYPE_CHECKING:
    from tcpgate.proxy.exchange import Exchange


async def run(exchange: Exchange, up: Upstream) -> RelayOutcome:
    """Relay until it is over; both streams are closed then. Cancelled: both are aborted."""
    connection = exchange.connection
    exchange.scope.deadline = math.inf  # the route's timeout was for the exchange, which the 101 has ended
    connection.is_long = True
    up.endpoint.flows.add(connection)
    if up.endpoint.retired:  # after those that had a tunnel then were told
        connection.cut_by(trio.current_time() + exchange.plane.snapshot.config.gateway.drain)
    try:
        return await relay(
            connection.stream,
            up.stream,
            idle=connection.plan.spec.timeouts.tunnel,
            pipes=connection.plane.pipes,
            # Nobody's bytes are lost on the way here: what a side sent with or after the 101 is with its codec, and an
            # end of stream is read from the socket again, as often as one asks.
            to_upstream=connection.codec.switched(),
            to_downstream=up.codec.switched(),
        )
    finally:
        up.endpoint.flows.discard(connection)
        connection.is_long = False
