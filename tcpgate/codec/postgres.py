"""How PostgreSQL begins: what a client says before TLS, and how it is refused in words that it understands. Pure.

A client asks for TLS by a message of its own (SSLRequest), and goes on with the ClientHello once it was answered "S".
One that begins with the ClientHello (psql 17's `sslnegotiation=direct`) has asked, too. What a client says else in the
clear, its name, its password or the key that cancels a query, is not for us to read: only which message it is.

Source: PostgreSQL's manual 55.2.10 (SSL Session Encryption), 55.7 (Message Formats: SSLRequest, GSSENCRequest,
CancelRequest, StartupMessage, ErrorResponse), 55.8 (error fields). Called by `proxy/arrival.py`, `net/greeting.py`.
"""

from __future__ import annotations

from enum import Enum

from tcpgate.codec.partial import NeedMore

ASK_FOR_TLS = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""SSLRequest: its length, and 80877103."""
YES, NO = b"S", b"N"
ALPN = "postgresql"
"""What clients that begin with TLS insist on."""
ASKING_SIZE = 8
"""Bytes of SSLRequest and GSSENCRequest."""
MAX_STARTUP = 10_000
"""MAX_STARTUP_PACKET_LENGTH of the server."""

_TLS_RECORD = 22
_CODES = {80877102: 16, 80877103: 8, 80877104: 8}
"""Messages that are no StartupMessage, and their lengths."""


class First(Enum):
    """What a client begins with."""

    TLS = "TLS without asking"
    SSL_REQUEST = "SSLRequest"
    GSS_REQUEST = "GSSENCRequest"
    CANCEL = "CancelRequest"
    STARTUP = "StartupMessage"
    OTHER = "something else"


_FIRSTS = {80877102: First.CANCEL, 80877103: First.SSL_REQUEST, 80877104: First.GSS_REQUEST}


def parse(data: bytes) -> First | NeedMore:
    """What `data` begins with. A StartupMessage or a CancelRequest need not be whole."""
    if data[:1] == b"\x16":
        return First.TLS
    if data[:2] != b"\0\0"[: len(data)]:  # no message here has 64 KiB
        return First.OTHER
    if len(data) < ASKING_SIZE:
        return NeedMore(ASKING_SIZE)
    length, code = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    if code in _CODES:
        # Since PostgreSQL 18 a key may be longer than 4 bytes.
        fits = length >= _CODES[code] if code == 80877102 else length == _CODES[code]
        return _FIRSTS[code] if fits and length <= MAX_STARTUP else First.OTHER
    # Of version 3, or of a later one, which the server answers with those that it has.
    return First.STARTUP if code >> 16 in range(2, 5) and ASKING_SIZE <= length <= MAX_STARTUP else First.OTHER


def error(code: str, text: str) -> bytes:
    """An ErrorResponse that ends the connection. `code`: an SQLSTATE."""
    fields = (("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", text))
    body = b"".join(f"{kind}{value}".encode() + b"\0" for kind, value in fields) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


NOT_AUTHORIZED = "28000"
"""invalid_authorization_specification: what the server says itself where pg_hba.conf lets nobody in without TLS."""
