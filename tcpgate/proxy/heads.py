"""The heads that leave: what of a client's goes to an endpoint, what of an endpoint's goes to the client. Synchronous.

Ties the codec's rules (`hop`, `forwarded`) to what the exchange knows: who the peer is, what the listener trusts, the
filters' edits, the request id.
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
    if not connection.is_trusted:
        return connection.address  # most peers speak for themselves, so nothing has to be read
    return forwarded.client_address(connection.address, connection.plan.spec.trusted_proxies, head.fields)


def id_of(connection: HttpConnection, head: RequestHead) -> str:
    """The request id: a trusted proxy's, else a new one."""
    if connection.is_trusted and (given := forwarded.request_id(head.fields)) is not None:
        return given.decode("ascii")
    return connection.plane.new_id()


def outgoing(exchange: Exchange) -> Fields:
    """The request fields as an endpoint gets them."""
    connection, head = exchange.connection, exchange.head
    fields = hop.upstream_fields(
        head,
        _forwarding(connection, head),
        trusted=connection.is_trusted,
        fallback_host=(exchange.record.upstream or "upstream").encode(),
    )
    if connection.is_trusted:
        fields = fields.without({b"x-request-id"})
    return exchange.view.request.apply(fields.plus([(b"X-Request-Id", exchange.record.id.encode())]))


def _forwarding(connection: HttpConnection, head: RequestHead) -> Fields:
    """X-Forwarded-*, Forwarded and Via. A peer that speaks for itself gets the same ones again for the same host."""
    constant = not connection.is_trusted and b"via" not in head.fields
    key = (head.authority, head.version)
    if constant and connection.forwarding is not None and connection.forwarding[0] == key:
        return connection.forwarding[1]
    fields = forwarded.forwarding_fields(
        head,
        peer=connection.address,
        trusted=connection.is_trusted,
        secure=False,
        port=connection.port,
        name=connection.plane.name,
    )
    if constant:
        connection.forwarding = (key, fields)
    return fields


def incoming(exchange: Exchange, response: ResponseHead) -> Fields:
    """The response fields as the client gets them."""
    fields = hop.downstream_fields(response, date=exchange.plane.date(), via=exchange.plane.name)
    if response.informational:
        return fields
    if b"x-request-id" in response.fields:
        fields = fields.without({b"x-request-id"})
    return exchange.view.response.apply(fields.plus([(b"X-Request-Id", exchange.record.id.encode())]))
