"""What a request's path means: the one form that is forwarded, and every way in which recipients may read it. Pure.

A route guards a path only as far as gateway and upstream agree on what the path is. They disagree in two ways, and each
has its own cure.

*Spellings of the same path* (RFC 3986 6.2.2): `/%61dmin`, `/x/../admin` and `/x/%2e%2E/admin` are `/admin`.
`match_path` writes each in its normal form, and that form is what is routed **and** what goes upstream, so nobody
behind the gateway can resolve it to something else. Most paths are in normal form already and travel as they came,
byte for byte. What is no path at all (a bad escape, a raw control, space, backslash, `#` or non-ASCII byte, `%00`) is
refused.

*Paths that recipients read differently*: `/a%2Fb`, `//admin`, `/admin;x`, `/%2561dmin`, `/admin%3Fx`. By the RFC each
is a path of its own, and nothing in it may be rewritten: GitLab, npm and RabbitMQ put %2F into a segment, others a
whole URL with its `//`. But many an origin decodes %2F and %5C, merges slashes, drops `;parameters`, decodes twice or
cuts at a decoded `?`, and then sees `/admin`. So `readings` gives the strict reading and the lenient ones, and
`RouteTable.match` serves the path only if every reading leads to the same route; else the answer is 400.

Why so few readings are enough for all the origins in between: leniency only turns an unclean segment into clean ones,
so the longest clean prefix of any reading lies between that of the strict reading and that of the most lenient one;
if both lead to the same route, so do all between. (A cut shortens the path, hence one more reading per kind of cut.)
Three things make it true: no reading has a dot segment (`..%2F`, `..;`, `%252e%252e` are refused), no encoded slash
hides in a parameter (refused, because dropping the parameter or splitting it lead apart), and a route's own path has
one reading (`rule.py`).

Beyond reach: origins that ignore case, and those that accept overlong UTF-8.

Source: RFC 3986 2.3, 3.3, 5.2.4, 6.2.2; RFC 9110 4.2.3. Precedents: Envoy normalize_path (forwards what it matched),
merge_slashes, path_with_escaped_slashes_action; HAProxy normalize-uri; nginx (matches decoded and merged, forwards
raw); Traefik 3.6 request-path (refused %2F %5C %3B %25 %3F %23, then made it an option because users' URLs broke);
Jetty UriCompliance and Tomcat encodedSolidusHandling (400 by default).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NewType

NormalPath = NewType("NormalPath", bytes)
"""What `match_path` gives: the path to route and to forward. Nothing else makes one."""

ASTERISK = b"*"
"""The path of `OPTIONS *` (RFC 9112 3.2.4): under "/" as every path is, and forwarded as it is."""

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PLAIN = _UNRESERVED + b"!$&'()*+,=:@/"
"""What RFC 3986 3.3 allows in a path and every recipient reads alike: all but ";" and escapes."""

# A possessive class, but no possessive group: before Python 3.11.5 those could match wrongly (cpython gh-106052).
_LEGAL = re.compile(rb"/(?:[!\"$&->@-\[\]-~]++|%(?!00)[0-9A-Fa-f]{2})*")
"""Escapes and visible ASCII but `#`, `?`, `\\`. Like us, nginx answers %00 with 400."""

_is_plainest = re.compile(rb"(?:/[0-9A-Za-z_~!$&'()*+,=:@-][0-9A-Za-z_~!$&'()*+,=:@.-]*+)+/?").fullmatch
"""Segments of `_PLAIN` that are not empty and begin with no dot: most paths, at a third of the cost of `is_plain`."""

_NO_URI_CHARACTER = {bytes((code,)): b"%%%02X" % code for code in b'"<>[]^`{|}'}
"""Bytes that clients send raw although RFC 3986 has them only as escapes."""

_PARAMETER = re.compile(rb";[^/]*+")
_HIDDEN_SLASH = re.compile(rb";[^/;\\]*+\\")
_SLASHES = re.compile(rb"//++")
_LAYERS = 3
"""Layers of escapes that a lenient reading takes off; a path with more is refused."""


def _table(kept: bytes, spell: bytes) -> dict[bytes, bytes]:
    """For each two hex digits, what `%` and they become: the byte itself, or %XX (upper case) where it is not
    `kept`."""
    table: dict[bytes, bytes] = {}
    for pair in itertools.product(b"0123456789abcdefABCDEF", repeat=2):
        digits = bytes(pair)
        code = int(digits, 16)
        table[digits] = bytes((code,)) if code in kept else b"%" + digits.upper()
    if spell:
        table |= dict.fromkeys((b"2f", b"2F"), spell)
    return table


_EVERY_BYTE = bytes(range(256))
_NORMAL = _table(_UNRESERVED, b"")
_STRICT = _table(bytes(set(_EVERY_BYTE) - set(b"/\\;?#%\x00")), b"")
_RAW = _table(_EVERY_BYTE, b"")
_ALL = _table(_EVERY_BYTE, b"\\")
"""Decodes an encoded slash to a backslash, which a lenient recipient takes for one; real slashes stay apart."""


def match_path(raw: bytes) -> NormalPath | None:
    """The normal form of the absolute path (without query) of a request target; None: no path, answer 400.

    An empty path is "/" (RFC 9110 4.2.3); "*" stays "*".
    """
    if is_plain(raw) or raw == ASTERISK:
        return NormalPath(raw)
    if not raw:
        return NormalPath(b"/")
    if not _LEGAL.fullmatch(raw):
        return None
    path = raw
    for character, escape in _NO_URI_CHARACTER.items():
        path = path.replace(character, escape)
    path = _remove_dot_segments(_unescape(path, _NORMAL))
    return None if _is_trap(path) else NormalPath(path)


def is_plain(path: bytes) -> bool:
    """True for a path in normal form that has one reading only, as nearly all have."""
    return _is_plainest(path) is not None or (
        path[:1] == b"/"
        and not path.translate(None, _PLAIN)
        and b"//" not in path
        and (b"/." not in path or not _has_dot_segment(path))
    )


def is_single(path: bytes) -> bool:
    """True if `path` can be read in one way only. Asks just what its being normal leaves open."""
    return b"%" not in path and b";" not in path and b"//" not in path


def readings(path: NormalPath) -> list[bytes]:
    """Every way to read `path`, the strict one first; often they are the same, and there is only one.

    Readings are for looking up, not for sending: in them escapes of harmless bytes are decoded (`%21` and `!` mean
    the same to every recipient), so a route can say `/café` and need not care how a client spells it.
    """
    if is_single(path):
        return [path]
    return list(dict.fromkeys((_unescape(path, _STRICT), *_lenient_readings(_decode(path)))))


def decode_escapes(text: bytes) -> bytes:
    """`text` with one layer of escapes taken off; a `%` that begins none stays."""
    return _unescape(text, _RAW)


def _is_trap(path: bytes) -> bool:
    """True if some recipient would climb or lose its way in this path, so that no reading of it may be served."""
    decoded = _decode(path)
    return (
        b"\x00" in decoded
        or _unescape(decoded, _ALL) != decoded
        or _HIDDEN_SLASH.search(decoded) is not None
        or any(map(_has_dot_segment, _lenient_readings(decoded)))
    )


def _lenient_readings(decoded: bytes) -> Iterator[bytes]:
    """What recipients make of a decoded path that drop parameters, take backslashes for slashes, and merge slashes.

    The second and third reading are of those who besides cut it at the first `?` or `#`.
    """
    yield _lenient(decoded)
    for cut in (b"?", b"#"):
        if cut in decoded:
            yield _lenient(decoded.partition(cut)[0])


def _lenient(decoded: bytes) -> bytes:
    merged = _SLASHES.sub(b"/", _PARAMETER.sub(b"", decoded).replace(b"\\", b"/"))
    # As in the strict reading, so that one route path is found in both.
    return merged.replace(b"%", b"%25").replace(b"?", b"%3F").replace(b"#", b"%23")


def _decode(path: bytes) -> bytes:
    """`path` with up to `_LAYERS` layers of escapes taken off; encoded slashes come out as backslashes."""
    for _ in range(_LAYERS):
        path = _unescape(path, _ALL)
    return path


def _unescape(path: bytes, table: dict[bytes, bytes]) -> bytes:
    """`path` with each escape replaced from `table`; a lone `%` stays. Split and join: 8 KiB of escapes in 0.3 ms."""
    first, *pieces = path.split(b"%")
    if not pieces:
        return path
    return first + b"".join([table.get(piece[:2], b"%" + piece[:2]) + piece[2:] for piece in pieces])


def _has_dot_segment(path: bytes) -> bool:
    return not {b".", b".."}.isdisjoint(path.split(b"/"))


def _remove_dot_segments(path: bytes) -> bytes:
    """RFC 3986 5.2.4, for an absolute path: `..` takes one segment away, be it an empty one, and stops at the root."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
