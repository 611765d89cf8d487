"""The heads that leave: what of a client's goes to an endpoint, what of an endpoint's goes to the client. Synchronous.

Ties the codec's rules (`hop`, `forwarded`) to what the exchange knows: who the peer is, what the listener trusts, the
filters' edits, the request id. Both paths come here, the lane only where its own shorter way would not do.
"""

from __future__ import annotations

from typing import Protocol

from tcpgate.codec import forwarded, hop
from tcpgate.codec.client_cert import client_cert_fields
from tcpgate.codec.events import NO_FIELDS, Fields, RequestHead, ResponseHead
from tcpgate.filters.base import Edits
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.plane import Plane
from tcpgate.state.snapshot import ListenerPlan
from tcpgate.units import Address


class Peer(Protocol):
    """The connection that a request came by."""

    address: Address | None
    """None: a unix socket."""
    plane: Plane
    plan: ListenerPlan
    is_trusted: bool
    """It may speak for others."""
    port: int | None
    """That it connected to."""
    arrived: Arrived | None
    """How it came, where that was not plainly."""
    forwarding: tuple[tuple[bytes, bytes], Fields] | None
    """What the last request's forwarding fields were, and for which host and version."""


def client_of(peer: Peer, head: RequestHead) -> Address | None:
    """Who asks, as far as trusted proxies can be believed; None: from a unix socket, and nobody said more."""
    if not peer.is_trusted:
        return peer.address  # most peers speak for themselves, so nothing has to be read
    return forwarded.client_address(peer.address, peer.plan.spec.trusted_proxies, head.fields)


def id_of(peer: Peer, head: RequestHead) -> str:
    """The request id: a trusted proxy's, else a new one."""
    if peer.is_trusted and (given := forwarded.request_id(head.fields)) is not None:
        return given.decode("ascii")
    return peer.plane.new_id()


def outgoing(peer: Peer, head: RequestHead, edits: Edits, request_id: str, upstream: str) -> Fields:
    """The request fields as an endpoint of `upstream` gets them."""
    fields = hop.upstream_fields(
        head,
        _forwarding(peer, head),
        trusted=peer.is_trusted,
        fallback_host=(upstream or "upstream").encode(),
    )
    if peer.is_trusted:
        fields = fields.without({b"x-request-id"})
        if tells_client(peer.plan) and not _OURS.isdisjoint(name.lower() for name, _ in head.fields):
            # One fact, one witness: what the proxy in front says of its client would stand beside who that proxy is.
            fields = fields.without(_OURS).plus(certificate_fields(peer.plan, peer.arrived))
    return edits.apply(fields.plus([(b"X-Request-Id", request_id.encode())]))


def _forwarding(peer: Peer, head: RequestHead) -> Fields:
    """X-Forwarded-*, Forwarded and Via. A peer that speaks for itself gets the same ones again for the same host."""
    constant = not peer.is_trusted and b"via" not in head.fields
    key = (head.authority, head.version)
    if constant and peer.forwarding is not None and peer.forwarding[0] == key:
        return peer.forwarding[1]
    fields = forwarded.forwarding_fields(
        head,
        peer=peer.address,
        trusted=peer.is_trusted,
        secure=peer.arrived is not None and peer.arrived.secure,
        port=peer.port,
        name=peer.plane.name,
    )
    if tells_client(peer.plan):
        fields = certificate_fields(peer.plan, peer.arrived).plus(fields)
    if constant:
        peer.forwarding = (key, fields)
    return fields


_OURS = forwarded.CLIENT_CERTIFICATE


def tells_client(plan: ListenerPlan) -> bool:
    """Whether endpoints are told of clients' certificates."""
    return plan.spec.tls is not None and plan.spec.tls.forward_client


def certificate_fields(plan: ListenerPlan, arrived: Arrived | None) -> Fields:
    """What endpoints are told of the connection's client certificate."""
    if not tells_client(plan) or arrived is None or arrived.tls is None:
        return NO_FIELDS
    return client_cert_fields(arrived.tls.client)


def incoming(plane: Plane, response: ResponseHead, edits: Edits, request_id: str) -> Fields:
    """The response fields as the client gets them."""
    fields = hop.downstream_fields(response, date=plane.date(), via=plane.name)
    if response.informational:
        return fields
    if b"x-request-id" in response.fields:
        fields = fields.without({b"x-request-id"})
    return edits.apply(fields.plus([(b"X-Request-Id", request_id.encode())]))
