"""What is known of a connection once it has arrived: who its client is, and how it came. Values only.

A connection that came by a listener with none of PROXY, TLS, HTTP/2 or names to choose by has none of this (None): what
the kernel says of its socket is all. `arrival.py` makes it; every kind of connection carries it as `arrived`.
"""

from __future__ import annotations

import attrs

from tcpgate.codec.client_hello import ClientHello
from tcpgate.codec.proxy_header import End, ProxyHeader
from tcpgate.codec.tls_facts import TlsFacts
from tcpgate.net.address import SocketAddress, port_of
from tcpgate.net.tls_server import TlsServer, Trust


@attrs.frozen(kw_only=True)
class Arrived:
    """One connection's arrival."""

    sockaddr: SocketAddress
    """The client's: the peer's, or that of whom a trusted peer's PROXY header names."""
    port: int | None
    """Ours, that the client came to, by the same word; None: a unix socket."""
    local: SocketAddress | None = None
    """Where the client came to, if a PROXY header says it; None: as the socket itself says."""
    peer: SocketAddress | None = None
    """Who is really at the other end, where that is not the client: the proxy in front."""
    proxy: ProxyHeader | None = None
    hello: ClientHello | None = None
    """What the client asked for, where it was looked at; without TLS of ours the bytes are still to be read."""
    tls: TlsFacts | None = None
    """Of the client's TLS with us."""
    trust: Trust | None = None
    """What the client has proved, to us; None: it did not come by TLS of ours."""
    starttls: bool = False
    """Its protocol asks for TLS in words of its own, and so must we of endpoints (PostgreSQL)."""
    seconds: float = 0.0
    """That the TLS handshake took, from the hello's first byte."""

    @property
    def secure(self) -> bool:
        """The client came by TLS: to us, or to the proxy in front, by that one's word."""
        if self.tls is not None:
            return True
        ssl = None if self.proxy is None else self.proxy.ssl
        return ssl is not None and ssl.over_tls

    def covers(self, host: bytes, server: TlsServer | None) -> bool:
        """Whether this client may ask for `host` on this connection: it has proved what that one's rules ask. `server`:
        the TLS that the listener has by now."""
        return self.trust is None or self.trust.covers(host, server)

    @property
    def identity(self) -> str:
        """For the access record: who the client is by its certificate; "" if it has shown none."""
        return "" if self.tls is None or self.tls.client is None else self.tls.client.name

    @property
    def text(self) -> str:
        """For the access record: version and cipher, or "" if we had no TLS with the client."""
        return "" if self.tls is None else self.tls.text


def told_by(header: ProxyHeader, peer: SocketAddress, port: int | None) -> Arrived:
    """The arrival that a trusted `peer`'s header tells of; `port`: ours, that the peer came to."""
    if header.local or header.source is None:
        return Arrived(sockaddr=peer, port=port, proxy=header)
    local = None if header.destination is None else _sockaddr(header.destination)
    port = None if local is None else port_of(local)
    return Arrived(sockaddr=_sockaddr(header.source), port=port, local=local, peer=peer, proxy=header)


def _sockaddr(end: End) -> SocketAddress:
    """As the kernel would give it; a mapped IPv4 address as what it is."""
    if isinstance(end, tuple):
        host = end[0].removeprefix("::ffff:")
        return (*end, 0, 0) if ":" in host else (host, end[1])
    return end or ""
