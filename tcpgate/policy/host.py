"""Which hosts a route serves. Pure.

A route's host is exact ("api.example.com", "10.0.0.1", "[::1]"), a wildcard ("*.example.com": any depth below it, not
example.com itself) or absent: any. It is compared with the host of a request as `codec.target` gives it: lower case, no
port, no final dot, IPv6 shortened.

Source: RFC 9110 7.2. Precedent: Envoy's virtual hosts, which are looked up in the same order.
"""

from __future__ import annotations

import attrs

from tcpgate.codec.target import parse_authority
from tcpgate.errors import ClientError

EXACT, WILDCARD, ANY = range(3)
"""Kinds of a route's host, the most specific first."""


@attrs.frozen
class HostPattern:
    """One host of a route, compiled."""

    kind: int
    name: bytes
    """For a wildcard without its "*."; b"" for any."""

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Sorts patterns, the most specific first: exact, longest wildcard, any."""
        return (self.kind, -self.name.count(b".") if self.kind == WILDCARD else 0, self.name)

    @property
    def reason(self) -> str:
        """How specific it is, in words."""
        return ("exact host", "wildcard host", "any host")[self.kind]

    def __str__(self) -> str:
        return ("", "*.", "*")[self.kind] + self.name.decode("ascii")

    def holds(self, host: bytes) -> bool:
        """True if it covers `host`."""
        if self.kind == EXACT:
            return host == self.name
        return self.kind == ANY or (len(host) > len(self.name) + 1 and host.endswith(b"." + self.name))


ANY_HOST = HostPattern(ANY, b"")


def compile_host(text: str) -> HostPattern:
    """The pattern that `text` means; ValueError says what is right."""
    kind, name = (WILDCARD, text[2:]) if text.startswith("*.") else (EXACT, text)
    if not name.isascii():
        raise ValueError(f"{text!r} is not ASCII; write it as clients send it, {_punycode(text)!r}")
    try:
        authority = parse_authority(name.encode("ascii"))
    except ClientError:
        authority = None
    if authority is None or (kind == WILDCARD and name.startswith("[")):
        raise ValueError(f'{text!r} is not a host; write it as "api.example.com", "*.example.com" or "[::1]"')
    if authority.port is not None:
        raise ValueError(f"{text!r} has a port, and routes look at the host only; ports are for listeners")
    return HostPattern(kind, authority.host)


def _punycode(text: str) -> str:
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        return "xn--..."
