"""Where a request wants to go: request-target and Host.

What is accepted is less than RFC 3986 allows wherever two recipients are known to read the rest differently:
- A host is a DNS-like name, an IPv4 address or an IPv6 literal. Percent-encoding and sub-delims (a comma!) are refused.
- A path holds pchar and the few raw bytes that browsers send (`[ ] | ^ { }`); a backslash, a bad percent triplet and
  %00 are refused, because some origins take them for "/", for themselves, and for the end.
- A query is any visible ASCII but "#": browsers and people send nearly all of it raw.

Source: RFC 9112 3.2, RFC 9110 4.2 and 7.2, RFC 3986 3.2. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal

import attrs

from tcpgate.codec.blame import CLIENT

MAX_HOST = 255
_NAME = re.compile(rb"([0-9A-Za-z._~-]++)(?::([0-9]*+))?")
_LITERAL = re.compile(rb"\[([0-9A-Fa-f:.]++)\](?::([0-9]*+))?")
PATH: Final = rb"/(?:[0-9A-Za-z\-._~!$&'()*+,;=:@/\[\]|^{}]++|%(?!00)[0-9A-Fa-f]{2})*"
QUERY: Final = rb"[\x21\x22\x24-\x7e]*+"
_PATH = re.compile(PATH)
_QUERY = re.compile(QUERY)
_ABSOLUTE = re.compile(rb"([A-Za-z][0-9A-Za-z+.-]*+)://([^/?]*+)(.*+)", re.DOTALL)
_SCHEMES = (b"http", b"https")


@attrs.frozen
class Authority:
    """A judged `host[:port]`."""

    text: bytes
    """As it was written, an empty port (`host:`) left out."""
    host: bytes
    """Lower-case, one final dot taken off, IPv6 shortened and in brackets."""
    port: int | None


@attrs.frozen
class Target:
    """A judged request-target."""

    form: Literal["origin", "absolute", "asterisk"]
    path: bytes
    query: bytes | None
    scheme: bytes | None = None
    authority: Authority | None = None


def parse_authority(text: bytes) -> Authority:
    """`host[:port]` as one recipient-independent thing. Raises ClientError, also for the empty text."""
    match = _NAME.fullmatch(text)
    if match is not None:
        host = _name(match[1])
    else:
        match = _LITERAL.fullmatch(text)
        if match is None:
            raise CLIENT.malformed("host: not a name or address with an optional port")
        host = _ipv6(match[1])
    digits = match[2]
    if not digits:
        return Authority(text.removesuffix(b":"), host, None)
    # Digits are bounded before int(): a long run of them is slow, and past 4300 an error of its own.
    if len(digits) > 5 or int(digits) > 65535:
        raise CLIENT.malformed("host: port above 65535")
    return Authority(text, host, int(digits))


def _name(text: bytes) -> bytes:
    host = text.lower().removesuffix(b".")
    if len(host) > MAX_HOST:
        raise CLIENT.malformed(f"host: longer than {MAX_HOST} bytes")
    if not host or host[0:1] == b"." or b".." in text:
        raise CLIENT.malformed("host: empty label")
    return host


def _ipv6(text: bytes) -> bytes:
    try:
        return b"[%s]" % ipaddress.IPv6Address(text.decode("ascii")).compressed.encode("ascii")
    except ValueError:
        raise CLIENT.malformed("host: not an IPv6 address in the brackets") from None


def parse_target(method: bytes, text: bytes) -> Target:
    """The target of a request that is not CONNECT. `text` is visible ASCII, not empty. Raises ClientError."""
    if text[0:1] == b"/":
        path, query = _path_and_query(text)
        return Target("origin", path, query)
    if text == b"*":
        if method != b"OPTIONS":
            raise CLIENT.malformed("request-target: * is for OPTIONS only")
        return Target("asterisk", b"*", None)
    return _absolute(method, text)


def _absolute(method: bytes, text: bytes) -> Target:
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise CLIENT.malformed("request-target: none of the forms that this method can have")
    scheme = match[1].lower()
    if scheme not in _SCHEMES:
        raise CLIENT.malformed("request-target: a scheme other than http or https")
    authority = parse_authority(match[2])
    rest = match[3]
    if not rest and method == b"OPTIONS":
        # RFC 9112 3.2.4: the last proxy sends "*" for an OPTIONS of an absolute URI with neither path nor query.
        return Target("absolute", b"*", None, scheme, authority)
    path, query = _path_and_query(rest if rest[0:1] == b"/" else b"/" + rest)
    return Target("absolute", path, query, scheme, authority)


def _path_and_query(text: bytes) -> tuple[bytes, bytes | None]:
    path, mark, query = text.partition(b"?")
    if not _PATH.fullmatch(path):
        raise CLIENT.malformed("request-target: a byte or percent triplet that no path may hold")
    if not _QUERY.fullmatch(query):
        raise CLIENT.malformed("request-target: a byte that no query may hold")
    return path, query if mark else None
