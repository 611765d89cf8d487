"""The smallest productions of HTTP, shared by every parser in this room: token, lists, quoted-string.

All work on bytes. Character classes are spelled out: `\\s`, `\\d`, `str.isdigit`, `bytes.split()` and `$` each accept
something that HTTP does not (0x0b, 0x0c, "²", a final newline), so none of them occurs here. Every pattern is used
with `fullmatch` and is linear: repeated classes are possessive, or exclude what follows them. (Only single classes are
possessive: before Python 3.11.5 a possessive *group* could match wrongly, cpython gh-106052.)

Source: RFC 9110 5.5, 5.6. Pure.
"""

from __future__ import annotations

import re
from typing import Final

TCHAR: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
TOKEN: Final = rb"[" + TCHAR + rb"]++"
VALUE_CHAR: Final = rb"\t\x20-\x7e\x80-\xff"
"""field-content: visible ASCII, obs-text, SP and HTAB. Neither NUL, CR, LF, DEL nor any other control."""
OWS: Final = b" \t"
QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'

is_token = re.compile(TOKEN).fullmatch
is_value = re.compile(rb"[" + VALUE_CHAR + rb"]*+").fullmatch
is_quoted = re.compile(QUOTED).fullmatch
_LIST_MARK = re.compile(rb'[\\",]')
_PARAMETER_MARK = re.compile(rb'[\\";]')
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(rb'["\\]')
_BACKSLASH, _QUOTE = b'\\"'


def _split(value: bytes, marks: re.Pattern[bytes]) -> list[bytes]:
    """Parts of `value` between separators that stand outside quoted strings; one pass, whatever the quotes."""
    parts, start, quoted, escaped = [], 0, False, -1
    for mark in marks.finditer(value):
        at = mark.start()
        if at == escaped:
            continue
        if value[at] == _BACKSLASH:
            escaped = at + 1 if quoted else -1
        elif value[at] == _QUOTE:
            quoted = not quoted
        elif not quoted:
            parts.append(value[start:at].strip(OWS))
            start = at + 1
    parts.append(value[start:].strip(OWS))
    return parts


def split_list(value: bytes) -> list[bytes]:
    """Members of a comma list, without the empty ones (RFC 9110 5.6.1.2: a recipient ignores them)."""
    if b'"' not in value:
        return [member for part in value.split(b",") if (member := part.strip(OWS))]
    return [part for part in _split(value, _LIST_MARK) if part]


def split_parameters(value: bytes) -> list[bytes]:
    """Parts of `a; b=c; d="e;f"` between semicolons, the empty ones dropped."""
    return [part for part in _split(value, _PARAMETER_MARK) if part]


def unquote(value: bytes) -> bytes | None:
    """What a token or quoted-string says; None if `value` is neither."""
    if is_token(value):
        return value
    if is_quoted(value):
        return _ESCAPED.sub(rb"\1", value[1:-1])
    return None


def quote(value: bytes) -> bytes:
    """`value` as a token if it is one, else as a quoted-string; it must hold no control bytes."""
    return value if is_token(value) else b'"' + _TO_ESCAPE.sub(rb"\\\g<0>", value) + b'"'
