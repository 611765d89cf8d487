"""Who the client is, and how the next hop is told: X-Forwarded-*, Forwarded, Via.

A request's own word about its origin counts only if the peer is a trusted proxy. Then the addresses are walked from
the right, the nearest hop first: as long as a hop is trusted, so is what it says of the one before it. The first
address that is not trusted is the client. A malformed or hidden one ends the walk at the last good address.

If both X-Forwarded-For and Forwarded came, X-Forwarded-For is believed: nearly every proxy appends to that one, while a
Forwarded that the client invented passes through most of them untouched.

Source: RFC 7239 (Forwarded), RFC 9110 7.6.3 (Via), Envoy's and nginx's documents on X-Forwarded-For. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Protocol

from tcpgate.codec.events import Fields, Pair, Version
from tcpgate.codec.grammar import cgi_name, is_disguised
from tcpgate.codec.syntax import is_token, quote, split_parameters, unquote
from tcpgate.codec.target import parse_authority
from tcpgate.errors import ClientError
from tcpgate.units import Address, Networks

_OWN = frozenset(
    {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"forwarded", b"via"}
)
"""Fields that `forwarding_fields` writes anew for every request."""
CLIENT_CERTIFICATE = frozenset({b"client-cert", b"client-cert-chain", b"x-forwarded-client-cert"})
"""Fields in which a proxy says who the client has proved to be (`client_cert.py`)."""
_VOUCHED = _OWN | CLIENT_CERTIFICATE | {b"x-real-ip", b"x-request-id"}
"""Fields that origins believe because a proxy stands before them; so is everything else that begins x-forwarded-."""

_PORT = rb"(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]{1,64}))?"
_V4 = re.compile(rb"([0-9.]{7,15})" + _PORT)
_V6_IN_BRACKETS = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})\]" + _PORT)
_V6 = re.compile(rb"([0-9A-Fa-f:.]{2,45})")
_PORT_NUMBER = re.compile(rb"[0-9]{1,5}")
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")


# -- reading --------------------------------------------------------------------------------------------------------


def parse_node(text: bytes) -> Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]:80`; None for all else, also "unknown".

    An IPv4-mapped IPv6 address is given as the IPv4 address: one client, one text.
    """
    match = _V4.fullmatch(text) or _V6_IN_BRACKETS.fullmatch(text) or _V6.fullmatch(text)
    if match is None:
        return None
    try:
        return plain(ipaddress.ip_address(match[1].decode("ascii")))
    except ValueError:
        return None


def plain(address: Address) -> Address:
    """`address`, or the IPv4 address that is mapped into it."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_forwarded(fields: Fields) -> list[dict[bytes, bytes] | None]:
    """Elements of Forwarded, client first, as lower-case parameter -> unquoted value; None for a malformed one."""
    return [_parse_element(element) for element in fields.members(b"forwarded")]


def _parse_element(element: bytes) -> dict[bytes, bytes] | None:
    parameters: dict[bytes, bytes] = {}
    for pair in split_parameters(element):
        name, equals, raw = pair.partition(b"=")
        value = unquote(raw)
        # RFC 7239 4: no white space around "=", and no parameter twice in an element.
        if not equals or value is None or not is_token(name) or name.lower() in parameters:
            return None
        parameters[name.lower()] = value
    return parameters


def is_trusted(peer: Address | None, trusted: Networks) -> bool:
    """`peer` may speak for others. A peer on a unix socket (None) may wherever any proxy may."""
    return bool(trusted) if peer is None else peer in trusted


def client_address(peer: Address | None, trusted: Networks, fields: Fields) -> Address | None:
    """Where the request came from as far as it can be believed; None: from a unix socket, and nobody said more."""
    client = None if peer is None else plain(peer)
    if not is_trusted(peer, trusted):
        return client
    for hop in _hops_from_nearest(fields):
        if hop is None:
            break
        client = hop
        if hop not in trusted:
            break
    return client


def _hops_from_nearest(fields: Fields) -> Iterator[Address | None]:
    if b"x-forwarded-for" in fields:
        for member in reversed(fields.members(b"x-forwarded-for")):
            yield parse_node(member)
    else:
        for element in reversed(fields.members(b"forwarded")):
            parameters = _parse_element(element)
            yield None if parameters is None else parse_node(parameters.get(b"for", b""))


def request_id(fields: Fields) -> bytes | None:
    """The X-Request-Id, if there is one of a harmless form; whether to believe it is the caller's to say."""
    values = fields.all(b"x-request-id")
    return values[0] if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]) else None


def passed_through(fields: Fields, name: bytes) -> bool:
    """A Via says that this request already went through the gateway of that `name`: a loop."""
    for member in fields.members(b"via"):
        received_by = member.replace(b"\t", b" ").split(b" ")[1:2]
        if received_by == [name]:
            return True
    return False


# -- writing --------------------------------------------------------------------------------------------------------


def believes_proxy(name: bytes, *, trusted: bool) -> bool:
    """A client's field `name` must not reach the origin: we write it ourselves, or the origin would believe it.

    In disguise (X_Forwarded_For, which CGI cannot tell from the real one) it must not either, whoever sent it.
    """
    lower = name.lower()
    if lower in _OWN or is_disguised(name, _VOUCHED):
        return True
    vouched = lower in _VOUCHED or cgi_name(name).startswith(b"x-forwarded-")
    return vouched and not trusted


class Received(Protocol):
    """What of a request decides its forwarding fields; `RequestHead` has it."""

    @property
    def authority(self) -> bytes:
        """As in `RequestHead`."""
        ...

    @property
    def fields(self) -> Fields:
        """As in `RequestHead`."""
        ...

    @property
    def version(self) -> Version:
        """As in `RequestHead`."""
        ...


def forwarding_fields(
    head: Received, *, peer: Address | None, trusted: bool, secure: bool, port: int | None, name: bytes
) -> Fields:
    """The X-Forwarded-*, Forwarded and Via of the request that goes upstream.

    A trusted peer's are continued, anyone else's are replaced. `port`: what the client connected to, None on a unix
    socket. `name`: the gateway's pseudonym in Via, a token.
    """
    came = head.fields if trusted else Fields()
    scheme = b"https" if secure else b"http"
    chain, elements = _chain(came)
    node = _text(peer if peer is None else plain(peer))
    pairs: list[Pair] = [
        (b"X-Forwarded-For", b", ".join([*chain, node])),
        (b"X-Forwarded-Proto", _proto(came) or scheme),
        (b"Forwarded", b", ".join([*elements, _element(_bracketed(node), head.authority, scheme)])),
        (b"Via", b", ".join([*head.fields.members(b"via"), b"%b %b" % (head.version, name)])),
    ]
    if host := _host(came) or head.authority:
        pairs.append((b"X-Forwarded-Host", host))
    if listening := _port(came) or (b"" if port is None else b"%d" % port):
        pairs.append((b"X-Forwarded-Port", listening))
    return Fields(pairs)


def _chain(came: Fields) -> tuple[list[bytes], list[bytes]]:
    """X-Forwarded-For members and Forwarded elements so far; where only one of them came, the other tells the same."""
    members, elements = came.members(b"x-forwarded-for"), came.members(b"forwarded")
    parsed = parse_forwarded(came)
    good = [parameters for parameters in parsed if parameters is not None]
    if len(good) < len(parsed):
        elements, good = [], []
    if members and not elements:
        return members, [b"for=" + quote(_bracketed(member)) for member in members]
    if elements and not members:
        return [_text(parse_node(parameters.get(b"for", b""))) for parameters in good], elements
    return members, elements


def _text(address: Address | None) -> bytes:
    return b"unknown" if address is None else str(address).encode("ascii")


def _bracketed(node: bytes) -> bytes:
    """A node as Forwarded writes it: IPv6 in brackets (RFC 7239 6)."""
    return b"[%b]" % node if _V6.fullmatch(node) and b":" in node and not _V4.fullmatch(node) else node


def _element(node: bytes, host: bytes, scheme: bytes) -> bytes:
    parts = [b"for=" + quote(node), b"host=" + quote(host) if host else b"", b"proto=" + scheme]
    return b";".join(part for part in parts if part)


def _proto(came: Fields) -> bytes | None:
    first = came.tokens(b"x-forwarded-proto")[:1]
    return first[0] if first in ([b"http"], [b"https"]) else None


def _host(came: Fields) -> bytes | None:
    for member in came.members(b"x-forwarded-host")[:1]:
        try:
            return parse_authority(member).text
        except ClientError:
            return None
    return None


def _port(came: Fields) -> bytes | None:
    for member in came.members(b"x-forwarded-port")[:1]:
        return member if _PORT_NUMBER.fullmatch(member) else None
    return None
