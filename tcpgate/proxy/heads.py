"""The heads that leave: what of the client's goes to an endpoint, what of the endpoint's goes to the client. Synchronous.

Ties the codec's rules (`hop`, `forwarded`) to what the exchange knows: who the peer is, what the listener trusts, the filters' edits,
the request id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpgate.codec import forwarded, hop
from tcpgate.codec.events import Fields, RequestHead, ResponseHead
from tcpgate.units import Address

if TYPE_CHECKING:
    from tcpgate.proxy.exchange import Exchange
    from tcpgate.proxy.http import HttpConnection


def client_of(connection: HttpConnection, head: RequestHead) -> Address | None:
    """Who asks, as far as trusted proxies can be believed; None: from a unix socket, and nobody said more."""
    return forwarded.client_address(connection.address, connection.plan.spec.trusted_proxies, head.fields)


def id_of(connection: HttpConnection, head: RequestHead) -> str:
    """The request id: a trusted proxy's, else a new one."""
    if connection.is_trusted and (given := forwarded.request_id(head.fields)) is not None:
        return given.decode("ascii")
    return connection.plane.new_id()


def outgoing(exchange: Exchange) -> Fields:
    """The request fields as an endpoint gets them."""
    connection, head = exchange.connection, exchange.head
    forwarding = forwarded.forwarding_fields(
        head,
        peer=connection.address,
        trusted=connection.is_trusted,
        secure=False,
        port=connection.port,
        name=exchange.plane.name,
    )
    fields = hop.upstream_fields(
        head, forwarding, trusted=connection.is_trusted, fallback_host=(exchange.record.upstream or "upstream").encode()
    )
    fields = fields.without({b"x-request-id"}).plus([(b"X-Request-Id", exchange.record.id.encode())])
    return exchange.view.request.apply(fields)


def incoming(exchange: Exchange, response: ResponseHead) -> Fields:
    """The response fields as the client gets them."""
    fields = hop.downstream_fields(response, date=exchange.plane.date(), via=exchange.plane.name)
    if response.informational:
        return fields
    fields = fields.without({b"x-request-id"}).plus([(b"X-Request-Id", exchange.record.id.encode())])
    return exchange.view.response.apply(fields)
