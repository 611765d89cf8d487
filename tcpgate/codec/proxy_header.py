"""The PROXY protocol: what a proxy in front says of a connection before its first byte; read, and written. Pure.

Version 1 is a line, version 2 is binary and carries TLVs. Either is read in whole or refused: the specification forbids
to guess. Where it leaves a choice:

- a v2 header may be as long as it can say (64 KiB); nothing here is kept but the TLVs' values;
- v2 for UNSPEC and for datagrams falls back to the real endpoints, as LOCAL and v1's UNKNOWN do. So it asks of
  receivers that do not implement a valid combination, and datagrams cannot have come by this connection;
- an IPv6 address may be written as "::ffff:1.2.3.4", since inet_ntop writes it so for a client of a dual-stack socket;
- TLVs that stand behind the addresses are read, and refused where their lengths do not add up. A checksum is verified.

Source: doc/proxy-protocol.txt of HAProxy (2.1, 2.2), RFC 4960 appendix B (CRC32c). Called by `proxy/arrival.py` for
clients, and by whoever connects to an endpoint that wants one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal, Protocol

import attrs

from tcpgate.codec.crc32c import crc32c
from tcpgate.codec.partial import NeedMore
from tcpgate.errors import ClientError, Reason

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_LINE = 107
"""The longest v1 header, its line end included (2.1)."""
_V2_START = 16
MAX_HEADER = _V2_START + 0xFFFF
"""The longest v2 header that its own length field can tell."""

ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
SSL_VERSION, SSL_CN, SSL_CIPHER, SSL_SIG_ALG, SSL_KEY_ALG = 0x21, 0x22, 0x23, 0x24, 0x25
CLIENT_SSL, CLIENT_CERT_CONN, CLIENT_CERT_SESS = 0x01, 0x02, 0x04
MAX_UNIQUE_ID = 128

_LOCAL, _PROXY = 0, 1
_INET, _INET6, _UNIX = 1, 2, 3
_STREAM, _DGRAM = 1, 2
_ADDRESS_SIZES = {_INET: 12, _INET6: 36, _UNIX: 216}
_FAMILIES = {b"TCP4": 4, b"TCP6": 6}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_V4 = re.compile(rb"[0-9.]{7,15}")
_V6 = re.compile(rb"[0-9A-Fa-f:.]{2,45}")

End = tuple[str, int] | str | None
"""(host, port), the path of a unix socket, or not told."""


@attrs.frozen
class NotProxy:
    """No PROXY header begins here, whatever else it is."""


@attrs.frozen(kw_only=True)
class ProxySsl:
    """What a header says of the client's TLS, that the proxy in front has ended."""

    over_tls: bool
    has_certificate: bool
    """On this connection, or on the session that it resumes."""
    verified: bool
    """The certificate was shown, and found good."""
    version: str
    cipher: str
    common_name: str


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """One header."""

    local: bool
    """It names nobody: the connection counts for its real ends."""
    source: End = None
    destination: End = None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """In their order, without padding and checksum."""
    size: int
    """Bytes that it takes; the connection's own begin there."""

    def value(self, kind: int) -> bytes | None:
        """The first TLV of a kind."""
        return next((value for one, value in self.tlvs if one == kind), None)

    @property
    def authority(self) -> str:
        """The host name that the client asked for (SNI), or ""."""
        return (self.value(AUTHORITY) or b"").decode("utf-8", "replace")

    @property
    def ssl(self) -> ProxySsl | None:
        """The client's TLS, if it is told."""
        value = self.value(SSL)
        if value is None:
            return None
        flags = value[0]
        subs = dict(_tlvs(value[5:]))
        return ProxySsl(
            over_tls=bool(flags & CLIENT_SSL),
            has_certificate=bool(flags & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)),
            verified=bool(flags & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)) and not any(value[1:5]),
            version=subs.get(SSL_VERSION, b"").decode("ascii", "replace"),
            cipher=subs.get(SSL_CIPHER, b"").decode("ascii", "replace"),
            common_name=subs.get(SSL_CN, b"").decode("utf-8", "replace"),
        )


NOT_PROXY = NotProxy()


def _malformed(what: str) -> ClientError:
    return ClientError(Reason.BAD_REQUEST, f"PROXY header: {what}")


# -- reading --------------------------------------------------------------------------------------------------------


def parse(data: bytes) -> ProxyHeader | NeedMore | NotProxy:
    """The header that `data` begins with. Raises ClientError for one that is malformed.

    The letters PROXY are enough for one of v1, the signature for one of v2 (2.2).
    """
    if data[:5] == b"PROXY"[: len(data)]:
        return _parse_line(data) if len(data) >= 5 else NeedMore(5)
    if data[:12] == SIGNATURE[: len(data)]:
        return _parse_binary(data)
    return NOT_PROXY


def _parse_line(data: bytes) -> ProxyHeader | NeedMore:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise _malformed(f"no line end in its first {MAX_LINE} bytes")
        if b"\n" in data and not data.startswith(b"PROXY UNKNOWN"):
            raise _malformed("its line ends without CR")
        return NeedMore(len(data) + 1)
    words = data[:end].split(b" ")
    if words[0] != b"PROXY":
        raise _malformed("no space behind PROXY")
    if words[1:2] == [b"UNKNOWN"]:  # "the receiver must ignore anything presented before the CRLF"
        return ProxyHeader(local=True, size=end + 2)
    if len(words) != 6 or words[1] not in _FAMILIES:
        raise _malformed("not TCP4 or TCP6, two addresses and two ports")
    version = _FAMILIES[words[1]]
    source, destination = _host(words[2], version), _host(words[3], version)
    return ProxyHeader(
        local=False,
        source=(source, _port(words[4])),
        destination=(destination, _port(words[5])),
        size=end + 2,
    )


def _host(text: bytes, version: int) -> str:
    try:
        if version == 4 and _V4.fullmatch(text):
            return str(ipaddress.IPv4Address(text.decode("ascii")))
        if version == 6 and _V6.fullmatch(text):
            return _v6(ipaddress.IPv6Address(text.decode("ascii")))
    except ValueError:
        pass
    raise _malformed(f"{text[:45]!r} is no IPv{version} address")


def _v6(address: ipaddress.IPv6Address) -> str:
    """Its text; a mapped IPv4 address in the kernel's own spelling, whatever this Python's is."""
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _port(text: bytes) -> int:
    if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
        raise _malformed(f"{text[:8]!r} is no port")
    return int(text)


def _parse_binary(data: bytes) -> ProxyHeader | NeedMore:
    if len(data) >= 13:
        _check_command(data[12])
    if len(data) < _V2_START:
        return NeedMore(_V2_START)
    size = _V2_START + int.from_bytes(data[14:16], "big")
    family, transport = data[13] >> 4, data[13] & 0xF
    if data[12] & 0xF == _LOCAL:  # "discard the protocol block including the family which is ignored"
        return ProxyHeader(local=True, size=size) if len(data) >= size else NeedMore(size)
    if family > _UNIX or transport > _DGRAM:
        raise _malformed(f"family and protocol are 0x{data[13]:02x}")
    known = _ADDRESS_SIZES[family] if family and transport else 0
    if size - _V2_START < known:
        raise _malformed(f"{size - _V2_START} bytes cannot hold its addresses")
    if len(data) < size:
        return NeedMore(size)
    header = data[:size]
    if not family or not transport:
        # Where its addresses end nobody can say, so what follows may be TLVs or not.
        return ProxyHeader(local=True, size=size)
    block = header[_V2_START : _V2_START + known]
    tlvs = tuple(_tlvs(header[_V2_START + known :]))
    _check_tlvs(header, _V2_START + known, tlvs)
    kept = tuple(pair for pair in tlvs if pair[0] not in (NOOP, CRC32C))
    if transport == _DGRAM:
        return ProxyHeader(local=True, tlvs=kept, size=size)
    source, destination = _ends(family, block)
    return ProxyHeader(local=False, source=source, destination=destination, tlvs=kept, size=size)


def _check_command(byte: int) -> None:
    if byte >> 4 != 2:
        raise _malformed(f"version {byte >> 4}")
    if byte & 0xF not in (_LOCAL, _PROXY):
        raise _malformed(f"command {byte & 0xF}")


def _ends(family: int, block: bytes) -> tuple[End, End]:
    if family == _UNIX:
        return _path(block[:108]), _path(block[108:])
    ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
    if family == _INET:
        hosts = str(ipaddress.IPv4Address(block[:4])), str(ipaddress.IPv4Address(block[4:8]))
    else:
        hosts = _v6(ipaddress.IPv6Address(block[:16])), _v6(ipaddress.IPv6Address(block[16:32]))
    return (hosts[0], ports[0]), (hosts[1], ports[1])


def _path(raw: bytes) -> str:
    """Of a unix socket: up to the first NUL; an abstract one begins with a NUL, and is written with "@"."""
    if raw[:1] == b"\0":
        name = raw[1:].rstrip(b"\0")
        return f"@{name.decode(errors='replace')}" if name else ""
    return raw.partition(b"\0")[0].decode(errors="replace")


def _tlvs(block: bytes) -> Iterable[tuple[int, bytes]]:
    """Each TLV of a block that holds nothing else."""
    at = 0
    while at < len(block):
        start = at + 3
        end = start + int.from_bytes(block[at + 1 : start], "big")
        if start > len(block) or end > len(block):
            raise _malformed("a TLV is cut short")
        yield block[at], block[start:end]
        at = end


def _check_tlvs(header: bytes, start: int, tlvs: tuple[tuple[int, bytes], ...]) -> None:
    """Raise for a TLV that cannot be what it says, or a checksum that does not hold."""
    at, sums = start, 0
    for kind, value in tlvs:
        if kind == CRC32C:
            sums += 1
            if len(value) != 4 or sums > 1:
                raise _malformed("its checksum is not one number")
            zeroed = b"".join((header[: at + 3], bytes(4), header[at + 7 :]))
            if crc32c(zeroed) != int.from_bytes(value, "big"):
                raise _malformed("its checksum is wrong")
        elif kind == UNIQUE_ID and len(value) > MAX_UNIQUE_ID:
            raise _malformed(f"its unique id has more than {MAX_UNIQUE_ID} bytes")
        elif kind == SSL:
            if len(value) < 5:
                raise _malformed("its SSL TLV is cut short")
            for _ in _tlvs(value[5:]):
                pass  # raises where one is cut short
        at += 3 + len(value)


# -- writing --------------------------------------------------------------------------------------------------------


class Certificate(Protocol):
    """A client's certificate; `codec.tls_facts.ClientCert` is one."""

    @property
    def common_name(self) -> str:
        """The subject's CN, or ""."""
        ...


class Tls(Protocol):
    """A client's TLS connection; `codec.tls_facts.TlsFacts` is one."""

    @property
    def version(self) -> str:
        """As "TLSv1.3"."""
        ...

    @property
    def cipher(self) -> str:
        """By OpenSSL's name."""
        ...

    @property
    def client(self) -> Certificate | None:
        """Verified, or there is none."""
        ...


def render(
    version: Literal["v1", "v2"],
    source: End,
    destination: End,
    *,
    tls: Tls | None = None,
    authority: str = "",
    alpn: str = "",
) -> bytes:
    """The header that tells of a client at `source` who came to `destination`. v1 has no room for the rest.

    Two address families, or a unix socket in v1, are told as UNKNOWN; IPv4 beside IPv6 as mapped into it.
    """
    ends = _pair(source, destination)
    if version == "v1":
        if ends is None:
            return b"PROXY UNKNOWN\r\n"
        (one, one_port), (other, other_port) = ends
        # "TCP6" for a mapped address too: the family tells how it is written.
        return b"PROXY TCP%d %b %b %d %d\r\n" % (
            one.version,
            _written(one),
            _written(other),
            one_port,
            other_port,
        )
    kind, block = _block(source, destination, ends)
    tlvs = b"".join(_told(tls, authority, alpn))
    checksum = _tlv(CRC32C, bytes(4))
    size = len(block) + len(tlvs) + len(checksum)
    header = b"".join((SIGNATURE, bytes((0x21, kind)), size.to_bytes(2, "big"), block, tlvs, checksum))
    return header[:-4] + crc32c(header).to_bytes(4, "big")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _pair(source: End, destination: End) -> tuple[tuple[_Address, int], tuple[_Address, int]] | None:
    """Both ends, in one family; None where they have none in common."""
    if not isinstance(source, tuple) or not isinstance(destination, tuple):
        return None
    one, other = _plain(source[0]), _plain(destination[0])
    if one.version != other.version:
        one, other = _mapped(one), _mapped(other)
    return (one, source[1]), (other, destination[1])


def _plain(host: str) -> _Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def _mapped(address: _Address) -> ipaddress.IPv6Address:
    return address if isinstance(address, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{address}")


def _written(address: _Address) -> bytes:
    return (_v6(address) if isinstance(address, ipaddress.IPv6Address) else str(address)).encode("ascii")


def _block(
    source: End, destination: End, ends: tuple[tuple[_Address, int], tuple[_Address, int]] | None
) -> tuple[int, bytes]:
    """Family and protocol, and the addresses."""
    if ends is not None:
        (one, one_port), (other, other_port) = ends
        ports = one_port.to_bytes(2, "big") + other_port.to_bytes(2, "big")
        return (0x11 if one.version == 4 else 0x21), one.packed + other.packed + ports
    if isinstance(source, str) and isinstance(destination, str):
        return 0x31, _raw_path(source) + _raw_path(destination)
    return 0x00, b""


def _raw_path(path: str) -> bytes:
    raw = b"\0" + path[1:].encode() if path.startswith("@") else path.encode()
    return raw[:108].ljust(108, b"\0")


def _told(tls: Tls | None, authority: str, alpn: str) -> Iterable[bytes]:
    """The TLVs, but for the checksum."""
    if alpn:
        yield _tlv(ALPN, alpn.encode("latin-1"))
    if authority:
        yield _tlv(AUTHORITY, authority.encode()[:255])
    if tls is not None:
        flags, subs = CLIENT_SSL, [_tlv(SSL_VERSION, tls.version.encode()), _tlv(SSL_CIPHER, tls.cipher.encode())]
        if tls.client is not None:
            flags |= CLIENT_CERT_CONN | CLIENT_CERT_SESS
            subs.append(_tlv(SSL_CN, tls.client.common_name.encode()[:255]))
        verify = (0 if tls.client is not None else 1).to_bytes(4, "big")
        yield _tlv(SSL, b"".join((bytes((flags,)), verify, *subs)))


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value
