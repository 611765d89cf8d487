"""The ClientHello: what a TLS client says before anything is encrypted, as far as a proxy goes by it. Pure.

It is read where it lies: the records that carry it stay in the kernel for whoever does the handshake, be it OpenSSL
or, where the bytes pass untouched, an endpoint. So nothing here has to judge what they will judge; but what is read
must not be two things to two readers, so a message whose lengths do not add up, that has an extension twice, or that
names two hosts, is refused.

With Encrypted Client Hello, the name here is the outer one (the provider's public name), and the inner one is for the
endpoint alone: `has_ech` tells. A client may also send random bytes as ECH and mean the outer name (GREASE).

Source: RFC 8446 4.1.2 and 5.1, RFC 6066 3 (server_name), RFC 7301 (ALPN), RFC 8701 (GREASE), RFC 9849 (ECH). Called by
`proxy/arrival.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import attrs

from tcpgate.codec.partial import NeedMore
from tcpgate.errors import ClientError, Reason

MAX_HELLO = 64 << 10
"""Bytes, records' heads included. With post-quantum key shares a hello has about 2 KiB, with a long ticket 20."""
MAX_RECORD = 1 << 14
"""RFC 8446 5.1."""
MAX_RECORDS = 256
"""Pieces that a hello may come in. Some clients cut it up to hide its name; each look at it walks through them all."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS, _ECH = 0, 16, 43, 0xFE0D
_HOST_NAME = re.compile(rb"[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*")
_MAX_NAME = 253
MAX_KEPT = 128
"""Bytes of an extension that may be remembered, with what it means: a client decides what, so a bound on all of it."""
_T = TypeVar("_T")

DECODE_ERROR, ILLEGAL_PARAMETER, INTERNAL_ERROR, UNRECOGNIZED_NAME = 50, 47, 80, 112


@attrs.frozen
class NotTls:
    """No TLS begins here; perhaps HTTP, or a hello of SSL 2."""


@attrs.frozen(kw_only=True)
class ClientHello:
    """What a client asks for."""

    server_name: str = ""
    """Lower case, in ASCII as it travels (A-labels); "" if it names none."""
    alpn: tuple[str, ...] = ()
    """Protocols in its order, GREASE left out."""
    versions: tuple[int, ...] = ()
    """That it speaks, GREASE left out: 0x0304 is TLS 1.3."""
    has_ech: bool = False
    """It has, or pretends to have, an encrypted hello inside."""
    size: int = 0
    """Bytes of the records that carry it."""


NOT_TLS = NotTls()


def alert(description: int) -> bytes:
    """A record with a fatal alert, as one is sent before anything was agreed on (RFC 8446 6)."""
    return bytes((21, 3, 3, 0, 2, 2, description))


def is_grease(value: int) -> bool:
    """RFC 8701: 0x0A0A, 0x1A1A, ... 0xFAFA mean nothing."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


def _malformed(what: str) -> ClientError:
    return ClientError(Reason.BAD_REQUEST, f"ClientHello: {what}")


def parse(data: bytes, limit: int = MAX_HELLO) -> ClientHello | NeedMore | NotTls:
    """The hello that `data` begins with. Raises ClientError for one that is malformed, or takes over `limit` bytes."""
    if data[:1] not in (b"", b"\x16") or data[1:2] not in (b"", b"\x03"):
        return NOT_TLS
    message, at, whole, records = b"", 0, 4, 0
    while len(message) < whole:
        start = at + 5
        if start > limit:
            raise _malformed(f"over {limit} bytes")
        if len(data) < start:
            return NeedMore(start)
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            raise _malformed("something else comes before its end")
        length = int.from_bytes(data[at + 3 : start], "big")
        if not 0 < length <= MAX_RECORD:
            raise _malformed(f"a record of {length} bytes")
        at, records = start + length, records + 1
        message += data[start:at]
        if message and message[0] != _CLIENT_HELLO:
            raise _malformed(f"message {message[0]} comes first")
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
        if at > limit or whole > limit or records > MAX_RECORDS:
            raise _malformed(f"over {limit} bytes, or {MAX_RECORDS} records")
        if len(data) < at:
            return NeedMore(at)
    return _read(message[4:whole], at)


def _vector(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """What a length of `size` bytes at `at` announces, and where it ends."""
    start = at + size
    end = start + int.from_bytes(data[at:start], "big")
    if end > len(data) or start > len(data):
        raise _malformed("a length points beyond its end")
    return data[start:end], end


def _whole(value: bytes, size: int, what: str) -> bytes:
    """What a list holds that fills `value`, and is not empty."""
    found, end = _vector(value, 0, size)
    if end != len(value) or not found:
        raise _malformed(f"a list of {what} that is empty, or too long")
    return found


def _read(body: bytes, size: int) -> ClientHello:
    session, at = _vector(body, 34, 1)  # behind the version and the random
    if len(session) > 32:
        raise _malformed("a session id of over 32 bytes")
    suites, at = _vector(body, at, 2)
    if not suites or len(suites) % 2:
        raise _malformed("a list of cipher suites that is empty or odd")
    compression, at = _vector(body, at, 1)
    if not compression:
        raise _malformed("no compression method")
    extensions = _extensions(body, at) if at < len(body) else {}  # TLS 1.2 may do without
    name, alpn, versions = (extensions.get(kind) for kind in (_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS))
    return ClientHello(
        server_name="" if name is None else _kept(_server_name, name),
        alpn=() if alpn is None else _kept(_protocols, alpn),
        versions=(int.from_bytes(body[:2], "big"),) if versions is None else _kept(_versions, versions),
        has_ech=_ECH in extensions,
        size=size,
    )


def _extensions(body: bytes, at: int) -> dict[int, bytes]:
    """Each by its number. Not made of `_vector`: there are a dozen in each hello, and this is most of its reading."""
    block, end = _vector(body, at, 2)
    if end != len(body):
        raise _malformed("more than it says")
    found: dict[int, bytes] = {}
    at, end = 0, len(block)
    while at < end:
        start = at + 4
        kind = block[at] << 8 | block[at + 1] if start <= end else -1
        at = start + (block[at + 2] << 8 | block[at + 3]) if start <= end else end + 1
        if at > end:
            raise _malformed("a length points beyond its end")
        if kind in found:
            raise _malformed(f"extension {kind} twice")
        found[kind] = block[start:at]
    return found


def _kept(read: Callable[[bytes], _T], value: bytes) -> _T:
    """What `read` makes of an extension. Clients say mostly what others have said before."""
    return _remembered(read, value) if len(value) <= MAX_KEPT else read(value)


@lru_cache(4096)
def _remembered(read: Callable[[bytes], _T], value: bytes) -> _T:
    return read(value)


def _server_name(value: bytes) -> str:
    """The one host_name; other kinds of names are passed over."""
    names, at = _whole(value, 2, "names"), 0
    hosts = []
    while at < len(names):
        kind = names[at]
        name, at = _vector(names, at + 1, 2)
        if not name:
            raise _malformed("an empty name")
        if kind == 0:
            hosts.append(name)
    if len(hosts) > 1:
        raise _malformed("two host names")
    return _host_name(hosts[0]) if hosts else ""


def _host_name(raw: bytes) -> str:
    bare = raw[:-1] if raw.endswith(b".") else raw  # RFC 6066 leaves the dot out, not all clients do
    if len(bare) > _MAX_NAME or not _HOST_NAME.fullmatch(bare):
        raise _malformed("a host name that is none")
    return bare.decode("ascii").lower()


def _protocols(value: bytes) -> tuple[str, ...]:
    return tuple(_each_protocol(value))


def _each_protocol(value: bytes) -> Iterator[str]:
    names, at = _whole(value, 2, "protocols"), 0
    while at < len(names):
        name, at = _vector(names, at, 1)
        if not name:
            raise _malformed("an empty protocol")
        if len(name) != 2 or not is_grease(int.from_bytes(name, "big")):
            yield name.decode("latin-1")


def _versions(value: bytes) -> tuple[int, ...]:
    numbers = _whole(value, 1, "versions")
    if len(numbers) % 2:
        raise _malformed("half a version")
    every = (high << 8 | low for high, low in zip(numbers[::2], numbers[1::2], strict=True))
    return tuple(number for number in every if not is_grease(number))
