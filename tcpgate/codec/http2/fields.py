"""What any header block may hold: names, values, and the fields that HTTP/2 has no place for.

All names, and all values, are judged together: a few passes in C over one string for a whole head, since a client's
heads differ from one another and few could be looked up. Both are held to the strict grammar's classes, which
are narrower than RFC 9113 8.2.1 (it lets other control bytes pass): the head is written as HTTP/1.1 next.

Source: RFC 9113 8.2; RFC 9110 5.1, 5.5, 8.6. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from tcpgate.codec.http2.events import FieldPairs
from tcpgate.codec.syntax import TCHAR

CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
"""About one HTTP/1 connection (8.2.2): malformed where they come, left out where we write."""

_ALL_BYTES: Final = bytes(range(256))
_IN_NAMES: Final = bytes(byte for byte in _ALL_BYTES if re.match(rb"[" + TCHAR + rb"\n]", bytes((byte,)))).translate(
    None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_IN_VALUES: Final = b"\t\n" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_LARGEST_LENGTH: Final = 2**63 - 1

NO_LENGTH: Final = -1


class Judged:
    """What was found about a block: what is wrong with it, or what its framing and its stream follow from."""

    __slots__ = ("length", "problem", "status", "tunnel")

    def __init__(self, problem: str, length: int = NO_LENGTH, *, tunnel: bool = False, status: int = 0) -> None:
        self.problem = problem
        """The rule that is broken; "": none is."""
        self.length = length
        """What Content-Length says, or NO_LENGTH."""
        self.tunnel = tunnel
        """A request is a CONNECT, plain or extended."""
        self.status = status
        """Of a response."""


def wrong_with_fields(fields: FieldPairs) -> str:
    """The rule that regular fields break, or "". A pseudo-header field among them breaks that of names."""
    if not fields:
        return ""
    count = len(fields) - 1
    names = b"\n".join([name for name, _ in fields])
    # A line feed inside one would make more lines than there are fields.
    if names.translate(None, _IN_NAMES) or names.count(b"\n") != count or b"\n\n" in b"\n%b\n" % names:
        return _wrong_with_names(fields)
    values = b"\n%b\n" % b"\n".join([value for _, value in fields])
    if values.translate(None, _IN_VALUES) or values.count(b"\n") != count + 2:
        return "field: a control byte in the value"
    if b"\n " in values or b" \n" in values or b"\n\t" in values or b"\t\n" in values:
        return "field: white space around the value"
    only = dict(fields)
    if not CONNECTION_FIELDS.isdisjoint(only):
        return "field: one that is about an HTTP/1 connection"
    if b"te" in only and any(name == b"te" and value.lower() != b"trailers" for name, value in fields):
        return "TE: other than trailers"
    return ""


def _wrong_with_names(fields: FieldPairs) -> str:
    for name, _ in fields:
        if name.startswith(b":"):
            return "pseudo-header field: after a regular field, or in trailers"
        if not name:
            return "field: an empty name"
        if name != name.lower():
            return "field: upper case in the name"
    return "field: the name is not a token"


def content_length(fields: FieldPairs) -> tuple[str, int]:
    """(rule that is broken or "", length or NO_LENGTH). As strict as with HTTP/1: one line, digits only."""
    values = [value for name, value in fields if name == b"content-length"]
    if not values:
        return "", NO_LENGTH
    if len(values) > 1:
        return "Content-Length: more than one", NO_LENGTH
    if _DIGITS.fullmatch(values[0]) is None or int(values[0]) > _LARGEST_LENGTH:
        return "Content-Length: not a single decimal number below 2^63", NO_LENGTH
    return "", int(values[0])


def judge_trailers(fields: FieldPairs) -> Judged:
    """Trailers are fields, and no pseudo-header fields (8.1)."""
    return Judged(wrong_with_fields(fields))
