"""An HTTP/2 request judged: written as the HTTP/1.1 head that says the same, and put before the one strict grammar.

So there is one meaning of a request in the gateway, whatever brought it, and a downgrade can smuggle nothing: what
would not be a request of one meaning in HTTP/1.1 is none here. Decisions beyond the grammar's:
- The target is the path alone: a `:path` in absolute form would name a second authority. An authority that `:authority`
  and Host tell differently is refused (9113 8.3.1).
- Nothing that could end a line, or a name early, gets as far as being written.
- Without END_STREAM and without Content-Length a body of unknown length follows: `Transfer-Encoding: chunked`.
- `https` where the connection is not secure is 421, as for an absolute target in HTTP/1.1 (RFC 9110 7.4).
- Cookie lines are one line upstream, joined by "; " (9113 8.2.3).
- An extended CONNECT for a WebSocket (RFC 8441) is the GET with Upgrade that asks an HTTP/1.1 origin for one; its key
  is ours, for the client has none. Any other CONNECT is refused.

Source: RFC 9113 8.2, 8.3; RFC 8441 4, 5. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import random

import attrs

from tcpgate.codec.blame import CLIENT
from tcpgate.codec.chunked import NEVER_TRAILERS
from tcpgate.codec.events import Fields, Limits, Pair, RequestHead
from tcpgate.codec.grammar import FRAMING_NAMES, cgi_name, parse_request
from tcpgate.codec.machine import head_bytes
from tcpgate.codec.syntax import is_token, is_value
from tcpgate.errors import ClientError, Reason

CONNECTION_SPECIFIC = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
"""Fields that no HTTP/2 message may hold (9113 8.2.2)."""
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SCHEMES = (b"http", b"https")


@attrs.frozen
class Judged:
    """A request of one HTTP/2 stream."""

    head: RequestHead
    key: bytes | None = None
    """Of a WebSocket: the Sec-WebSocket-Key that we offer; the stream is a tunnel once it is accepted."""


def judge(pairs: tuple[Pair, ...], *, end: bool, limits: Limits, secure: bool, rng: random.Random) -> Judged:
    """The one meaning of a request's header block, or a ClientError that says which rule it breaks.

    `end`: no content follows. `secure`: the connection is TLS, or its peer may speak for one that was. `rng`: for the
    key of a WebSocket, which only has to be another one each time (RFC 6455 10.3).
    """
    head, key = write(pairs, end=end, secure=secure, rng=rng)
    return Judged(attrs.evolve(parse_request(head, limits, secure=secure), version=b"2.0"), key)


def write(pairs: tuple[Pair, ...], *, end: bool, secure: bool, rng: random.Random) -> tuple[bytes, bytes | None]:
    """The head of HTTP/1.1 that says the same, not judged by its grammar yet, and the key of `Judged`. As `judge`."""
    pseudo, fields = _split(pairs)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    key = None
    if method == b"CONNECT":
        if pseudo.get(b":protocol") != b"websocket":
            raise ClientError(Reason.METHOD_UNSUPPORTED, "method: CONNECT for anything but a WebSocket")
        if end:
            raise CLIENT.malformed("CONNECT: with the end of the stream")
        key = base64.b64encode(rng.randbytes(16))
        method, fields = b"GET", _upgrading(fields, key)
    _check_scheme(pseudo.get(b":scheme", b"").lower(), secure=secure)
    if not is_token(method):
        raise CLIENT.malformed("method: not a token")
    if not _is_path(path, method):
        raise CLIENT.malformed(":path: neither a path nor * for OPTIONS")
    lines: list[Pair] = [(b"host", _authority(pseudo, fields))]
    lines += [pair for pair in fields if pair[0] not in (b"host", b"cookie")]
    if cookies := [value for name, value in fields if name == b"cookie"]:
        lines.append((b"cookie", b"; ".join(cookies)))
    if not end and key is None and not any(name == b"content-length" for name, _ in fields):
        lines.append((b"transfer-encoding", b"chunked"))
    return head_bytes(b"%b %b HTTP/1.1" % (method, path), lines), key


def _split(pairs: tuple[Pair, ...]) -> tuple[dict[bytes, bytes], list[Pair]]:
    """Pseudo-header fields, and the others, of which none can be two in HTTP/1.1."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[Pair] = []
    for name, value in pairs:
        if not is_value(value):
            raise CLIENT.malformed("field: a control byte in the value")
        if name[0:1] == b":":
            if name in pseudo or fields:
                raise CLIENT.malformed("pseudo-header field: twice, or behind a field")
            pseudo[name] = value
        elif not is_token(name) or name in CONNECTION_SPECIFIC:
            raise CLIENT.malformed("field: the name is not a token, or is of HTTP/1.1's connections")
        else:
            fields.append((name, value))
    return pseudo, fields


def _check_scheme(scheme: bytes, *, secure: bool) -> None:
    if scheme not in _SCHEMES:
        raise CLIENT.malformed(":scheme: neither http nor https")
    if scheme == b"https" and not secure:
        raise ClientError(Reason.BAD_REQUEST, ":scheme: https over a connection that is not", status=421)


def _is_path(path: bytes, method: bytes) -> bool:
    return path[0:1] == b"/" or (path == b"*" and method == b"OPTIONS")


def _authority(pseudo: dict[bytes, bytes], fields: list[Pair]) -> bytes:
    hosts = [value for name, value in fields if name == b"host"]
    named = pseudo.get(b":authority")
    if named is None:
        if len(hosts) != 1:
            raise CLIENT.malformed(":authority: missing, and not one Host")
        return hosts[0]
    if any(host.lower() != named.lower() for host in hosts):
        raise CLIENT.malformed(":authority: not the Host")
    return named


# -- trailers -------------------------------------------------------------------------------------------------------


def trailers(pairs: tuple[Pair, ...]) -> Fields:
    """Of a trailer section what may be passed on; the rules are those of chunked bodies."""
    return Fields([pair for pair in pairs if _may_follow(pair)])


def _may_follow(pair: Pair) -> bool:
    name = cgi_name(pair[0])
    return name not in NEVER_TRAILERS and name not in FRAMING_NAMES and bool(is_token(pair[0]) and is_value(pair[1]))


# -- WebSockets -----------------------------------------------------------------------------------------------------


def _upgrading(fields: list[Pair], key: bytes) -> list[Pair]:
    """The fields that ask an HTTP/1.1 origin for a WebSocket."""
    if any(name in (b"content-length", b"expect") for name, _ in fields):
        raise CLIENT.malformed("CONNECT: with content")
    kept = [pair for pair in fields if pair[0] != b"sec-websocket-key"]
    return [*kept, (b"connection", b"upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-key", key)]


def acceptance(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers `key` (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def is_accepted(key: bytes, fields: Fields) -> bool:
    """Whether the fields of a 101 are the answer to `key`."""
    return fields.all(b"sec-websocket-accept") == [acceptance(key)]
