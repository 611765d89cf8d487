"""PROXY headers by name, and what a receiver must make of each. For the parser's tests, and for a listener's."""

from __future__ import annotations

from typing import Literal

import attrs

from tcpgate.codec.crc32c import crc32c
from tcpgate.codec.proxy_header import SIGNATURE

Verdict = Literal["named", "local", "bad", "not"]
"""It names the client; it is good and names nobody; it is malformed; it is no PROXY header."""


@attrs.frozen
class Vector:
    """One header."""

    name: str
    data: bytes
    verdict: Verdict
    client: str = ""
    """Whom it names."""


A4, B4, PORTS = bytes((192, 0, 2, 7)), bytes((198, 51, 100, 9)), (4711).to_bytes(2, "big") + (8443).to_bytes(2, "big")
V4 = A4 + B4 + PORTS
A6 = bytes.fromhex("20010db8") + bytes(11) + b"\x07"
MAPPED = bytes(10) + b"\xff\xff" + A4
V6 = A6 + bytes(15) + b"\x01" + PORTS
UNIX = b"/run/c".ljust(108, b"\0") + b"/run/s".ljust(108, b"\0")


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    return bytes((kind,)) + (len(value) if length is None else length).to_bytes(2, "big") + value


def v2(block: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + block


def summed(block: bytes, family: int = 0x11, behind: bytes = b"", flip: int = 0, over: int = 0) -> bytes:
    """With a checksum between `block` and `behind`, `flip`ped, over all but the first `over` bytes."""
    whole = v2(block + tlv(3, bytes(4)) + behind, family)
    at = 16 + len(block) + 3
    return whole[:at] + (crc32c(whole[over:]) ^ flip).to_bytes(4, "big") + whole[at + 4 :]


def v1(text: str) -> bytes:
    return b"PROXY " + text.encode("latin-1")


SSL = b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"TLS_AES_256_GCM_SHA384")
C4, C6 = "192.0.2.7", "2001:db8::7"
LONGEST6 = "TCP6 " + " ".join(["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2) + " 65535 65535\r\n"


def _named(name: str, data: bytes, client: str = C4) -> Vector:
    return Vector(name, data, "named", client)


def _local(name: str, data: bytes) -> Vector:
    return Vector(name, data, "local")


def _bad(name: str, data: bytes) -> Vector:
    return Vector(name, data, "bad")


def _not(name: str, data: bytes) -> Vector:
    return Vector(name, data, "not")


LINES = (
    _named("v1 TCP4", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _named("v1 TCP6", v1("TCP6 2001:db8::7 ::1 4711 8443\r\n"), C6),
    _named("v1 TCP6, upper case and whole", v1("TCP6 2001:DB8:0:0:0:0:0:7 ::1 4711 8443\r\n"), C6),
    _named("v1 TCP6, mapped", v1("TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 4711 8443\r\n")),
    _named("v1 TCP6, the longest", v1(LONGEST6), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    _named("v1 ports 0", v1("TCP4 192.0.2.7 198.51.100.9 0 0\r\n")),
    _named("v1 ports 65535", v1("TCP4 192.0.2.7 198.51.100.9 65535 65535\r\n")),
    _local("v1 UNKNOWN", v1("UNKNOWN\r\n")),
    _local("v1 UNKNOWN with addresses", v1("UNKNOWN 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _local("v1 UNKNOWN with nonsense", v1("UNKNOWN \x01 \t who knows\n\r\n")),
    _local("v1 UNKNOWN of 107 bytes", v1("UNKNOWN " + "x" * 91 + "\r\n")),
    _bad("v1 UNKNOWN of 108 bytes", v1("UNKNOWN " + "x" * 92 + "\r\n")),
    _bad("v1 TCP4 of 108 bytes", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443" + " " * 63 + "\r\n")),
    _bad("v1 without an end", v1("TCP4 " + "1" * 200)),
    _bad("v1 alone", b"PROXY\r\n"),
    _bad("v1 no family", v1("\r\n")),
    _bad("v1 no addresses", v1("TCP4\r\n")),
    _bad("v1 a port is missing", v1("TCP4 192.0.2.7 198.51.100.9 4711\r\n")),
    _bad("v1 a word too many", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443 1\r\n")),
    _bad("v1 TCP5", v1("TCP5 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 UDP4", v1("UDP4 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 family in lower case", v1("tcp4 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 unknown in lower case", v1("unknown\r\n")),
    _bad("v1 UNKNOWNX", v1("UNKNOWNX\r\n")),
    _not("v1 proxy in lower case", b"proxy TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"),
    _not("v1 Proxy", b"Proxy TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"),
    _not("v1 a space before", b" PROXY TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"),
    _bad("v1 PROXY and no space", b"PROXYTCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"),
    _bad("v1 a tab behind PROXY", b"PROXY\tTCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"),
    _bad("v1 a tab between", v1("TCP4 192.0.2.7\t198.51.100.9 4711 8443\r\n")),
    _bad("v1 two spaces behind PROXY", v1(" TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 two spaces between", v1("TCP4 192.0.2.7  198.51.100.9 4711 8443\r\n")),
    _bad("v1 a space at the end", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443 \r\n")),
    _bad("v1 LF only", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443\n")),
    _bad("v1 CR only", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443\r" + " " * 80)),
    _bad("v1 two CR", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443\r\r\n")),
    _bad("v1 a NUL", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443\0\r\n")),
    _bad("v1 a second header inside", v1("TCP4 192.0.2.7 198.51.100.9 4711 8443 PROXY UNKNOWN\r\n")),
    _bad("v1 port 65536", v1("TCP4 192.0.2.7 198.51.100.9 65536 8443\r\n")),
    _bad("v1 a port of many digits", v1("TCP4 192.0.2.7 198.51.100.9 4711 000000008443\r\n")),
    _bad("v1 a port with a leading zero", v1("TCP4 192.0.2.7 198.51.100.9 04711 8443\r\n")),
    _bad("v1 a negative port", v1("TCP4 192.0.2.7 198.51.100.9 -1 8443\r\n")),
    _bad("v1 a port with a plus", v1("TCP4 192.0.2.7 198.51.100.9 +1 8443\r\n")),
    _bad("v1 a port with an underscore", v1("TCP4 192.0.2.7 198.51.100.9 4_7 8443\r\n")),
    _bad("v1 a hexadecimal port", v1("TCP4 192.0.2.7 198.51.100.9 0x10 8443\r\n")),
    _bad("v1 an octet with a leading zero", v1("TCP4 192.0.02.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 an octet above 255", v1("TCP4 192.0.2.256 198.51.100.9 4711 8443\r\n")),
    _bad("v1 three octets", v1("TCP4 192.0.2 198.51.100.9 4711 8443\r\n")),
    _bad("v1 a name for an address", v1("TCP4 localhost 198.51.100.9 4711 8443\r\n")),
    _bad("v1 IPv6 in TCP4", v1("TCP4 ::1 ::1 4711 8443\r\n")),
    _bad("v1 IPv4 in TCP6", v1("TCP6 192.0.2.7 198.51.100.9 4711 8443\r\n")),
    _bad("v1 two families", v1("TCP6 ::1 198.51.100.9 4711 8443\r\n")),
    _bad("v1 an IPv6 zone", v1("TCP6 fe80::1%eth0 ::1 4711 8443\r\n")),
    _bad("v1 IPv6 in brackets", v1("TCP6 [::1] ::1 4711 8443\r\n")),
    _bad("v1 two ellipses in IPv6", v1("TCP6 1::2::3 ::1 4711 8443\r\n")),
    _bad("v1 digits of another script", b"PROXY TCP4 192.0.2.7 198.51.100.9 \xd9\xa1 8443\r\n"),
)
BINARY = (
    _named("v2 TCP over IPv4", v2(V4)),
    _named("v2 TCP over IPv6", v2(V6, 0x21), C6),
    _named("v2 mapped", v2(MAPPED + MAPPED + PORTS, 0x21)),
    _named("v2 ports 0", v2(A4 + B4 + bytes(4))),
    _named("v2 with a checksum", summed(V4)),
    _named("v2 a checksum over what follows it, too", summed(V4, behind=tlv(2, b"a.example"))),
    _named("v2 a checksum behind others", summed(V4 + tlv(2, b"a.example"))),
    _named("v2 with padding", v2(V4 + tlv(4, bytes(100)))),
    _named("v2 with SSL", v2(V4 + tlv(0x20, SSL))),
    _named("v2 with ALPN, authority, unique id, namespace", v2(
        V4 + tlv(1, b"h2") + tlv(2, b"a.example") + tlv(5, bytes(128)) + tlv(0x30, b"blue")
    )),
    _named("v2 with kinds that nobody knows", v2(V4 + tlv(0xEA, b"vpce-1") + tlv(0xEE, b"") + tlv(0x99, b"x"))),
    _named("v2 of 64 KiB", v2(V4 + tlv(4, bytes(65535 - 12 - 3)))),
    _local("v2 AF_UNIX", v2(UNIX, 0x31)),
    _local("v2 LOCAL", v2(b"", 0x00, 0x20)),
    _local("v2 LOCAL with addresses", v2(V4, 0x11, 0x20)),
    _local("v2 LOCAL with nonsense", v2(b"nonsense", 0x99, 0x20)),
    _local("v2 LOCAL of 64 KiB", v2(bytes(65535), 0x00, 0x20)),
    _local("v2 UNSPEC", v2(b"", 0x00)),
    _local("v2 UNSPEC with what looks like addresses", v2(V4, 0x00)),
    _local("v2 UDP over IPv4", v2(V4, 0x12)),
    _local("v2 UDP over IPv6", v2(V6, 0x22)),
    _bad("v2 version 1", v2(V4, 0x11, 0x11)),
    _bad("v2 version 3", v2(V4, 0x11, 0x31)),
    _bad("v2 command 2", v2(V4, 0x11, 0x22)),
    _bad("v2 family 4", v2(V4, 0x41)),
    _bad("v2 transport 3", v2(V4, 0x13)),
    _bad("v2 IPv4 in 11 bytes", v2(V4[:-1])),
    _bad("v2 IPv4 in no bytes", v2(b"")),
    _bad("v2 IPv6 in 35 bytes", v2(V6[:-1], 0x21)),
    _bad("v2 AF_UNIX in 215 bytes", v2(UNIX[:-1], 0x31)),
    _bad("v2 a TLV without a length", v2(V4 + b"\x04\x00")),
    _bad("v2 a TLV beyond the end", v2(V4 + tlv(4, b"abc", 4))),
    _bad("v2 a TLV far beyond the end", v2(V4 + tlv(0xEA, b"", 0xFFFF))),
    _bad("v2 a TLV beyond the end, behind a good one", v2(V4 + tlv(2, b"a") + tlv(2, b"abc", 9))),
    _bad("v2 one byte behind the addresses", v2(V4 + b"\0")),
    _bad("v2 a wrong checksum", summed(V4, flip=1)),
    _bad("v2 a checksum of zero", v2(V4 + tlv(3, bytes(4)))),
    _bad("v2 a checksum of 3 bytes", v2(V4 + tlv(3, bytes(3)))),
    _bad("v2 a checksum without the signature", summed(V4, over=12)),
    _bad("v2 two checksums", summed(V4 + tlv(3, bytes(4)))),
    _bad("v2 a unique id of 129 bytes", v2(V4 + tlv(5, bytes(129)))),
    _bad("v2 SSL of 4 bytes", v2(V4 + tlv(0x20, b"\x01\0\0\0"))),
    _bad("v2 a part of SSL beyond its end", v2(V4 + tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"TLSv1.3", 8)))),
    _bad("v2 a part of SSL that reaches into the next TLV", v2(
        V4 + tlv(0x20, b"\x01\0\0\0\0" + tlv(0x21, b"", 12)) + tlv(2, b"a.example")
    )),
    _not("v2 a changed signature", b"\r\n\r\n\0\r\nQUIT\r" + v2(V4)[12:]),
    _not("v2 without its first line end", v2(V4)[2:]),
)  # fmt: skip
VECTORS = (*LINES, *BINARY)
