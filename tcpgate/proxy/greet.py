"""What connections to an endpoint begin with, as the config wants it: who the client is, and TLS.

The PROXY header names the connection's client: whoever is at its other end, or whom that one's own PROXY header named.
Not whom X-Forwarded-For names: that is told in the request, and may change from one to the next.

A connection that has said who its client is can serve nobody else, so it serves one exchange and is not pooled. Who
asks on nobody's behalf (a filter's subrequest) says LOCAL.

Source: doc/proxy-protocol.txt of HAProxy, 2.2. Who calls: `pool.py`, `asking.py`, `lane_flow.py`, `flow.py`.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import attrs

from tcpgate.codec.proxy_header import End, render
from tcpgate.net.address import SocketAddress
from tcpgate.net.greeting import Greeting, TlsGreeting
from tcpgate.net.http2_stream import StreamCarrier
from tcpgate.net.stream import Stream
from tcpgate.net.tls_client import Contexts, Session
from tcpgate.proxy.arrived import Arrived
from tcpgate.state.reach import PLAIN, Reach
from tcpgate.state.runtime import EndpointRuntime
from tcpgate.units import HostPort

if TYPE_CHECKING:
    from tcpgate.proxy.downstream import Downstream


def greeting_of(
    endpoint: EndpointRuntime, contexts: Contexts, *, header: bytes | None = None, flow: bool = False
) -> Greeting | None:
    """What a new connection to `endpoint` begins with; None: nothing. `header`: the PROXY header, by default LOCAL's
    if there has to be one. `flow`: of a tcp listener, not for requests."""
    reach = endpoint.reach
    if reach is PLAIN:
        return None
    spec = reach.tcp if flow else reach.http
    tls = None
    if spec is not None:
        address = endpoint.address
        tls = TlsGreeting(
            spec=spec,
            host=address.host if isinstance(address, HostPort) else "",
            contexts=contexts,
            session=endpoint.session,
            remember=partial(_remember, endpoint, reach),
        )
    said = reach.local_header if header is None else header
    return Greeting(header=said, tls=tls) if said or tls else None


def _remember(endpoint: EndpointRuntime, reach: Reach, session: Session) -> None:
    if endpoint.reach is reach:  # else a reload wants endpoints to prove themselves in another way
        endpoint.session = session


def header_for(client: Downstream, reach: Reach) -> bytes | None:
    """The PROXY header of a connection for requests of `client`."""
    if reach.is_shared:
        return None
    carrier = client.stream
    if isinstance(carrier, StreamCarrier):
        carrier = carrier.under
    return header_of(reach, carrier.sock if isinstance(carrier, Stream) else None, client.arrived)


def flow_greeting(
    endpoint: EndpointRuntime, contexts: Contexts, client: socket.SocketType, arrived: Arrived | None
) -> Greeting | None:
    """What the connection of a flow for `client` begins with."""
    reach = endpoint.reach
    header = None if reach.is_shared else header_of(reach, client, arrived)
    greeting = greeting_of(endpoint, contexts, header=header, flow=True)
    # Asked for where TLS is to follow: ours with the endpoint, or the client's, which passes.
    if arrived is not None and arrived.starttls and (arrived.tls is None or reach.tcp is not None):
        return Greeting(asks=True) if greeting is None else attrs.evolve(greeting, asks=True)
    return greeting


def header_of(reach: Reach, client: socket.SocketType | None, arrived: Arrived | None) -> bytes:
    """The PROXY header that tells of the client at the other end of a socket, or of the one that `arrived` by it."""
    if reach.proxy == "off":
        return b""
    source, destination = (None, None) if client is None else _ends_of(client)
    tls, authority = None, ""
    if arrived is not None:
        source, destination, tls = arrived.sockaddr, arrived.local or destination, arrived.tls
        if arrived.hello is not None:
            authority = arrived.hello.server_name
        elif arrived.proxy is not None:
            authority = arrived.proxy.authority
    alpn = "" if tls is None else tls.alpn
    return render(reach.proxy, _end(source), _end(destination), tls=tls, authority=authority, alpn=alpn)


def _ends_of(sock: socket.SocketType) -> tuple[SocketAddress | None, SocketAddress | None]:
    """Who is at the other end of a client's connection, and where it came to; None: it has left already."""
    try:
        return sock.getpeername(), sock.getsockname()
    except OSError:
        return None, None


def _end(address: SocketAddress | None) -> End:
    if isinstance(address, tuple):
        return address[0], address[1]
    if isinstance(address, bytes):  # an abstract socket's name
        return "@" + address[1:].decode(errors="replace") if address else ""
    return address
