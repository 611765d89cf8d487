"""How the endpoints of an upstream are reached: what a new connection begins with, before its first byte of payload.

An endpoint keeps its `Reach` beside its idle connections. When a reload changes it, those that were made the old way
must not be used any more: they were verified by another authority, or say who another client is.

Pure. Who calls: `runtime.py`, for connections in workers; the supervisor's probes.
"""

from __future__ import annotations

import base64

import attrs

from tcpgate.codec.client_tls import PIN, ClientTls
from tcpgate.codec.proxy_header import SIGNATURE
from tcpgate.config import schema
from tcpgate.config.schema_tls import UpstreamTls

_LOCAL: dict[str, bytes] = {"off": b"", "v1": b"PROXY UNKNOWN\r\n", "v2": SIGNATURE + b"\x20\x00\x00\x00"}


@attrs.frozen(kw_only=True)
class Reach:
    """How one upstream's endpoints are spoken to. By value."""

    http: ClientTls | None = None
    """TLS of connections for requests; None: in the clear."""
    tcp: ClientTls | None = None
    """TLS of flows, which offer no protocol of their own."""
    version: str = "http/1.1"
    """Of HTTP."""
    proxy: schema.ProxyOut = "off"
    """PROXY header that a connection begins with: "off", "v1", "v2"."""

    @property
    def local_header(self) -> bytes:
        """The PROXY header of a connection that is the gateway's own: for nobody, a probe's for example."""
        return _LOCAL[self.proxy]

    @property
    def is_shared(self) -> bool:
        """A connection may serve one client after another."""
        return self.proxy == "off"

    @property
    def in_lane(self) -> bool:
        """The lane can make such a connection: it speaks HTTP/1.1, and need not tell who the client is."""
        return self.proxy == "off" and self.version == "http/1.1"


PLAIN = Reach()
"""Nothing but TCP."""


def reach_of(spec: schema.Upstream) -> Reach:
    """The way that the config asks for."""
    if spec.tls is None and spec.proxy_protocol == "off" and spec.http == PLAIN.version:
        return PLAIN
    return Reach(
        http=None if spec.tls is None else client_tls(spec.tls, alpn=(spec.http,), alpn_required=spec.http == "h2"),
        tcp=None if spec.tls is None else client_tls(spec.tls),
        version=spec.http,
        proxy=spec.proxy_protocol,
    )


def client_tls(spec: UpstreamTls, *, alpn: tuple[str, ...] = (), alpn_required: bool = False) -> ClientTls:
    """An upstream's TLS table as plain values."""
    ca, cert, key = (None if pem is None else pem.reveal() for pem in (spec.ca_pem, spec.cert_pem, spec.key_pem))
    return ClientTls(
        ca=ca,
        name=spec.name,
        verify=spec.verify,
        pins=frozenset(base64.b64decode(pin.removeprefix(PIN)) for pin in spec.pin),
        cert=cert,
        key=key,
        min_version=spec.min_version,
        alpn=alpn,
        alpn_required=alpn_required,
    )
