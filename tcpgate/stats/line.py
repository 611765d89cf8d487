"""One log line: how text becomes JSON that is always valid, on one line, and always short.

Whatever a client sent, a line is ASCII, holds no raw line end, parses in every JSON reader (RFC 8259 8.2: a lone
surrogate does not), and is at most `LINE_LIMIT` bytes with its line end, so that a pipe that several workers share
takes it whole. Access records, journal events and diagnostics are all written with these words. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from json.encoder import encode_basestring_ascii as quote

__all__ = ["CUT_MARK", "LINE_LIMIT", "SCHEMA", "cut", "quote", "scalar"]

SCHEMA = 1
"""`"v"` of every line; it grows when a field changes its meaning or goes, not when one is added."""
LINE_LIMIT = 4096
"""Linux's PIPE_BUF (pipe(7)): a write of at most this many bytes to a pipe is never mixed with another process's."""
CUT_MARK = "..."
"""Ends a text that was cut."""


def cut(text: str, room: int) -> str:
    """`text` such that its JSON form has at most `room` bytes between the quotes; a cut one ends in `CUT_MARK`.

    It counts escaped bytes, because one control character of a client's is six bytes in the line. Lone surrogates (how
    Python holds a byte that was not UTF-8) become \\udcNN in letters.
    """
    # Each character takes at least a byte, so what lies beyond `room` is not worth a look.
    clean = text[: room + 1].encode("utf-8", "backslashreplace").decode()
    if len(quote(clean)) - 2 <= room:
        return clean
    longest = bisect_right(range(len(clean)), room - len(CUT_MARK), key=lambda kept: len(quote(clean[:kept])) - 2)
    return clean[: longest - 1] + CUT_MARK


def scalar(value: str | float) -> str:
    """`value` as JSON; a number that JSON does not have (nan, inf) becomes text."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or math.isfinite(value):
        return repr(value)
    return quote(repr(value))
