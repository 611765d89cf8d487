"""Between the addresses of a config and those of the socket module: what to connect or bind to, and how a peer is
told.

`units.parse_endpoint` and `parse_bind` give a value; here a numeric value becomes a `Target` (family and sockaddr),
and a sockaddr that the kernel reports becomes the text of logs or the number that `Networks` is asked about. Nothing
here blocks.

Source: socket(7), ip(7), ipv6(7), unix(7).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import attrs

from tcpgate.units import Address, HostPort, UnixPath

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""What the socket module calls an address: (host, port), (host, port, flow, scope) or a path."""


@attrs.frozen
class Target:
    """One thing that a socket can be bound or connected to. str() as `describe` writes it."""

    family: int
    sockaddr: SocketAddress

    def __str__(self) -> str:
        return describe(self.sockaddr)


def target_of(address: HostPort | UnixPath) -> Target:
    """The target of a path or a numeric address; ValueError for a name (see `resolve.py`) or an unknown zone."""
    if isinstance(address, UnixPath):
        return Target(socket.AF_UNIX, address.path)
    if not address.numeric:
        raise ValueError(f"{address} is a name, it has to be resolved")
    if ":" not in address.host:
        return Target(socket.AF_INET, (address.host, address.port))
    host, _, zone = address.host.partition("%")
    return Target(socket.AF_INET6, (host, address.port, 0, _scope_of(zone) if zone else 0))


def with_port(family: int, sockaddr: tuple[object, ...] | str | bytes, port: int) -> Target:
    """The target of a TCP sockaddr, as getaddrinfo gives it, with this port instead of its own."""
    match sockaddr:
        case (str(host), _):
            return Target(family, (host, port))
        case (str(host), _, int(flow), int(scope)):
            return Target(family, (host, port, flow, scope))
    raise ValueError(f"{sockaddr!r} is not an internet address")


def _scope_of(zone: str) -> int:
    """The interface's number that a zone such as "eth0" or "2" means (RFC 4007 11)."""
    if zone.isascii() and zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError as exc:
        raise ValueError(f"this host has no interface {zone!r}") from exc


def describe(sockaddr: SocketAddress) -> str:
    """The text of an address, as an endpoint is written; an IPv4 peer of a dual-stack socket as IPv4."""
    if isinstance(sockaddr, bytes):  # Linux's abstract sockets, which begin with a NUL
        return f"unix:@{sockaddr[1:].decode(errors='replace')}" if sockaddr else "unix:"
    if isinstance(sockaddr, str):
        return f"unix:{sockaddr}"  # the client end of a unix connection has no name: "unix:"
    host, port = sockaddr[0].removeprefix("::ffff:"), sockaddr[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def number_of(sockaddr: SocketAddress) -> Address | None:
    """The peer's address for `Networks`; None for a unix socket, which no network holds."""
    if isinstance(sockaddr, str | bytes):
        return None
    return ipaddress.ip_address(sockaddr[0].partition("%")[0])


def alternating(targets: Iterable[Target]) -> tuple[Target, ...]:
    """The same targets, families taking turns from the first one's, so that one dead family costs one attempt.

    Source: RFC 8305 4, with a First Address Family Count of 1.
    """
    ordered = list(targets)
    if not ordered:
        return ()
    first = [target for target in ordered if target.family == ordered[0].family]
    others = [target for target in ordered if target.family != ordered[0].family]
    mixed = [target for pair in zip(first, others, strict=False) for target in pair]
    shorter = min(len(first), len(others))
    return (*mixed, *first[shorter:], *others[shorter:])


def port_of(sockaddr: SocketAddress) -> int | None:
    """The port; None for a unix socket, which has none."""
    return None if isinstance(sockaddr, str | bytes) else sockaddr[1]
