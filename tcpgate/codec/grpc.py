"""gRPC as far as a gateway has to know it: which requests are its, how long they may take, and how errors are told.

Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md), "HTTP to gRPC Status Code Mapping"
(grpc/doc/http-grpc-status-mapping.md), status codes (grpc/doc/statuscodes.md). Pure.
"""

from __future__ import annotations

import re

from tcpgate.codec.events import Fields, Pair, RequestHead

CONTENT_TYPE = b"application/grpc"
OK = 0
UNKNOWN = 2
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16
_BY_STATUS = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
_TYPE = re.compile(CONTENT_TYPE + rb"(?:[+; ]|\Z)", re.IGNORECASE)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_STATUS = re.compile(rb"[0-9]{1,3}")


def is_grpc(head: RequestHead) -> bool:
    """Whether a request is a gRPC call: over HTTP/2, by its content type. gRPC-Web is something else."""
    kind = head.fields.get(b"content-type")
    return kind is not None and head.version == b"2.0" and is_call_type(kind)


def is_call_type(kind: bytes) -> bool:
    """Whether a Content-Type is that of gRPC's messages."""
    return _TYPE.match(kind) is not None


def timeout_of(fields: Fields) -> float | None:
    """Seconds that the caller waits; None if it does not say, or not in a form that means anything."""
    values = fields.all(b"grpc-timeout")
    match = _TIMEOUT.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def code_of(status: int) -> int:
    """The code that a caller would make of an HTTP status, had it no other word."""
    return _BY_STATUS.get(status, UNKNOWN)


def status_fields(code: int, message: str) -> list[Pair]:
    """What ends a call: trailers, or fields of a head that is also the end."""
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", escape(message))]


def escape(message: str) -> bytes:
    """`message` as grpc-message has it: UTF-8, with all but printable ASCII percent-encoded, and the percent sign."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )


def status_in(fields: Fields) -> int | None:
    """The code that trailers, or a head that is also the end, tell."""
    value = fields.get(b"grpc-status")
    return int(value) if value is not None and _STATUS.fullmatch(value) else None
