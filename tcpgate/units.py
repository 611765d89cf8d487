"""Spans of time, sizes, rates, networks and addresses, as people write them. Pure.

Config text such as "250ms", "64KiB", "100/s" or "10.0.0.0/8" becomes plain numbers here, once; the rest of the gateway
holds seconds (float), bytes (int), units per second (float) and `Networks`. "10.0.0.1:80", "[::1]:80" and "unix:/path"
become a `HostPort` or a `UnixPath`, whose str() is the one canonical text.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import NewType

import attrs

Seconds = NewType("Seconds", float)
Bytes = NewType("Bytes", int)
PerSecond = NewType("PerSecond", float)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SPAN_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
# ASCII digits only: str.isdigit() and float() accept far more ("²", "1_000", "inf") than a config should.
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,6})?)"
_SPAN = re.compile(_NUMBER + r"(ms|s|m|h|d)")
_SPAN_SUM = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+")
_SIZE = re.compile(_NUMBER + r"(B|[KMGT]i?B)")
_RATE = re.compile(_NUMBER + r"/(ms|s|m|h|d)")
_SIZE_RATE = re.compile(_NUMBER + r"(B|[KMGT]i?B)/s")


def parse_span(text: str) -> Seconds:
    """Seconds meant by "250ms", "2s", "1m30s"; ValueError says what is right."""
    if not _SPAN_SUM.fullmatch(text):
        raise ValueError(f'{text!r} is not a duration; write it as "250ms", "2s", "5m", "1h"')
    return Seconds(sum(float(number) * _SPAN_UNITS[unit] for number, unit in _SPAN.findall(text)))


def parse_size(text: str) -> Bytes:
    """Bytes meant by "64KiB" or "10MB"; ValueError says what is right."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a size; write it as "512B", "64KiB", "1MiB", "2GiB"')
    return Bytes(int(float(match[1]) * _SIZE_UNITS[match[2]]))


def parse_rate(text: str) -> PerSecond:
    """Units per second meant by "100/s" or "600/m"; ValueError says what is right."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a rate; write it as "100/s", "600/m"')
    return PerSecond(float(match[1]) / _SPAN_UNITS[match[2]])


def parse_size_rate(text: str) -> PerSecond:
    """Bytes per second meant by "1KiB/s"; ValueError says what is right."""
    match = _SIZE_RATE.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a data rate; write it as "1KiB/s", "10MB/s"')
    return PerSecond(float(match[1]) * _SIZE_UNITS[match[2]])


def format_span(seconds: float) -> str:
    """The shortest exact-looking text for a span: "250ms", "2s", "1m30s"."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{rest:g}s" if rest else ""]
    return "".join(parts)


def format_size(count: int) -> str:
    """`count` bytes for a person: "512B", "1.5KiB", "2GiB"."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g}{unit}"


def parse_network(text: str) -> Network:
    """The network meant by "10.0.0.0/8" or a bare address; ValueError says what is right."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValueError(f'{text!r} is not a network; write it as "10.0.0.0/8", "2001:db8::/32" ({exc})') from None
    # "::ffff:10.0.0.0/104" means IPv4, as such an address does in `Networks`; kept as IPv6 it would match nothing.
    if network.version == 6 and network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped):
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


class Networks:
    """A set of networks that answers `address in networks` by bisection over merged intervals.

    IPv4-mapped IPv6 addresses (`::ffff:a.b.c.d`, what a dual-stack listener reports) count as the IPv4 address.
    """

    __slots__ = ("_ends", "_starts", "networks")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self.networks: tuple[Network, ...] = tuple(networks)
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        for version in (4, 6):
            merged = sorted(
                (int(network.network_address), int(network.broadcast_address))
                for network in self.networks
                if network.version == version
            )
            starts, ends = self._starts[version], self._ends[version]
            for first, last in merged:
                if ends and first <= ends[-1] + 1:
                    ends[-1] = max(ends[-1], last)
                else:
                    starts.append(first)
                    ends.append(last)

    def __contains__(self, address: Address) -> bool:
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        number = int(address)
        index = bisect_right(self._starts[address.version], number) - 1
        return index >= 0 and number <= self._ends[address.version][index]

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __repr__(self) -> str:
        return f"Networks({', '.join(map(str, self.networks))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self.networks == other.networks

    def __hash__(self) -> int:
        return hash(self.networks)


# -- addresses ------------------------------------------------------------------------------------------------------


@attrs.frozen
class HostPort:
    """ "10.0.0.1:80", "[::1]:80" or "db.internal:5432". str() is the canonical text."""

    host: str
    """A numeric address in canonical form, without brackets, or a name in lower case."""
    port: int
    numeric: bool = attrs.field(eq=False, default=True)
    """Whether `host` is an address; a name has to be resolved."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class UnixPath:
    """ "unix:/run/app.sock"."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@attrs.frozen
class InheritedFd:
    """ "fd:web": a listening socket that was opened for us, by its name (systemd's FileDescriptorName)."""

    name: str

    def __str__(self) -> str:
        return f"fd:{self.name}"


EndpointAddress = HostPort | UnixPath
BindAddress = HostPort | UnixPath | InheritedFd

MAX_UNIX_PATH = 107
"""Bytes in sockaddr_un.sun_path on Linux, without the closing NUL (unix(7))."""
_HOST_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})")
# RFC 1123 2.1 labels; an underscore is no host name, but container and service names have them.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.{{254}})(?:{_LABEL}\.)*{_LABEL}\.?")
_FD_NAME = re.compile(r"[!-9;-~]{1,255}")  # systemd.socket(5): printable ASCII without ":"


def parse_endpoint(text: str) -> EndpointAddress:
    """Where to connect: "host:port", "[v6]:port" or "unix:/path"; ValueError says what is right."""
    if text.startswith("unix:"):
        return _parse_unix(text)
    address = _parse_host_port(text)
    if address.port == 0:
        raise ValueError(f"{text!r} has port 0; write one from 1 to 65535")
    return address


def parse_bind(text: str) -> BindAddress:
    """Where to listen: "0.0.0.0:80", "[::]:80", "localhost:80" (127.0.0.1), "unix:/path" or "fd:NAME".

    ValueError says what is right. Other names are refused: what they resolve to may change under a reload. With port 0
    the kernel chooses.
    """
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("fd:"):
        name = text.removeprefix("fd:")
        if not _FD_NAME.fullmatch(name):
            raise ValueError(f'{text!r} names no inherited socket; write it as "fd:NAME"')
        return InheritedFd(name)
    address = _parse_host_port(text)
    if address.host == "localhost":
        return HostPort("127.0.0.1", address.port)
    if not address.numeric:
        raise ValueError(f'{text!r}: listen on an address, not a name; write it as "0.0.0.0:80", "[::]:80"')
    return address


def _parse_unix(text: str) -> UnixPath:
    path = text.removeprefix("unix:")
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError(f'{text!r} is not a socket path; write it as "unix:/run/app.sock"')
    if len(path.encode()) > MAX_UNIX_PATH:
        raise ValueError(f"{text!r} is longer than the {MAX_UNIX_PATH} bytes that a socket path may have")
    return UnixPath(path)


def _parse_host_port(text: str) -> HostPort:
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f'{text!r} is not an address; write it as "10.0.0.1:80", "[::1]:80", "unix:/path"')
    bracketed, plain, port = match[1], match[2], int(match[3])
    try:
        if bracketed is not None:
            return HostPort(str(ipaddress.IPv6Address(bracketed)), port)
        if plain.rpartition(".")[2].isdigit():  # no top-level domain is a number, so it can only be an address
            return HostPort(str(ipaddress.IPv4Address(plain)), port)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not an address ({exc})") from None
    if not _NAME.fullmatch(plain):
        raise ValueError(f'{text!r} is not an address; write it as "10.0.0.1:80", "[::1]:80", "name:80"')
    return HostPort(plain.lower(), port, numeric=False)
