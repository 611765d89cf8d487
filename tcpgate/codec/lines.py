"""What one line of a plain head comes to on the other side, by itself: the express codec's knowledge of fields.

A line (CRLF included) is proved once, by the strict grammar's and the hop's own rules, and the finding is remembered.
It depends on that line alone, so no order of heads can change it.
- Most fields go on. A line that is already as the codec would write it comes to itself: nothing is made or copied.
- Some are dropped: hop-by-hop fields, and what an untrusted client may not say.
- A few have a bearing on the whole head (Host, Content-Length, ...). They come to a `Mark`: bytes too, so that it is
  joined like all others, but of a class of its own, by which it is found.
- What is rare, of several lines, doubtful or wrong raises `Declined`.

Source: RFC 9110, RFC 9112 through `codec/grammar.py`, `codec/hop.py`, `codec/forwarded.py`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from tcpgate.codec.blame import CLIENT
from tcpgate.codec.forwarded import believes_proxy
from tcpgate.codec.grammar import FRAMING_NAMES, MAX_LENGTH, is_disguised, parse_field
from tcpgate.codec.hop import NOT_DOWNSTREAM, NOT_UPSTREAM
from tcpgate.codec.memo import NEVER, Memo
from tcpgate.codec.syntax import OWS, VALUE_CHAR, split_list
from tcpgate.codec.target import parse_authority
from tcpgate.errors import ClientError

MAX_LINES_WEIGHT = 1 << 20
"""What lines of one generation may weigh (bytes, see `_weight_of_line`): two generations are 2 MiB at most."""
MAX_LINE = 1 << 10
"""Longer lines are proved each time (bytes): cookies and tokens that few connections share."""
MAX_NAMES = 512
"""Names of fields kept in one generation. All that are registered are fewer than 300."""
MAX_NAME = 64
"""Longer names are judged each time (bytes)."""

_name = re.compile(rb"[0-9A-Za-z_-]++").fullmatch
"""Of a token, what names are made of. The rest is legal and unheard of."""
_TIDY = re.compile(rb": [\x21-\x7e\x80-\xff][" + VALUE_CHAR + rb"]*+\r\n")
"""From the colon on: what a field line looks like that goes on as it came, if no white space ends its value."""
_DIGITS = re.compile(rb"[0-9]{1,19}")


class Declined(Exception):
    """Not a plain head. An exception, so that it leaves the look-up of a line, which runs in C."""


# -- findings -------------------------------------------------------------------------------------------------------


class Mark(bytes):
    """What a line with a bearing on the whole head comes to: bytes to send on, and what it says."""

    sign: int
    number: int = 0
    """Of LENGTH."""
    host: bytes = b""
    authority: bytes = b""
    """Of HOST."""


# Signs, which add up to what a head says. Those up to ONCE may not come twice.
HOST, LENGTH, CHUNKED, AUTHORIZATION, CONTENT_TYPE = 1, 2, 4, 8, 16
ONCE = CONTENT_TYPE
CLOSE, VOUCHED, DATE = 32, 64, 128


def _mark(sign: int, text: bytes = b"", *, number: int = 0, host: bytes = b"", authority: bytes = b"") -> Mark:
    mark = Mark(text)
    mark.sign, mark.number, mark.host, mark.authority = sign, number, host, authority
    return mark


# -- rules ----------------------------------------------------------------------------------------------------------

Rule = Callable[[bytes, bytes], bytes]
"""What a field of some name comes to, given the name as sent and the trimmed value. Raises `Declined`."""


def _written(name: bytes, value: bytes) -> bytes:
    return b"%b: %b\r\n" % (name, value)


def _dropped(_name: bytes, _value: bytes) -> bytes:
    return b""


def _declined(_name: bytes, _value: bytes) -> NoReturn:
    raise Declined


def _marked(sign: int) -> Rule:
    """Goes on, with a sign."""
    return lambda name, value: _mark(sign, _written(name, value))


def _host(_name: bytes, value: bytes) -> bytes:
    try:
        authority = parse_authority(value)
    except ClientError:
        raise Declined from None
    return _mark(HOST, host=authority.host, authority=authority.text)


def _content_length(_name: bytes, value: bytes) -> bytes:
    if not _DIGITS.fullmatch(value) or (number := int(value)) > MAX_LENGTH:
        raise Declined
    return _mark(LENGTH, number=number)


def _transfer_encoding(_name: bytes, value: bytes) -> bytes:
    if value.lower() != b"chunked":
        raise Declined
    return _mark(CHUNKED)


def _connection(_name: bytes, value: bytes) -> bytes:
    options = {option.lower() for option in split_list(value)}
    if not options <= {b"close", b"keep-alive"}:
        raise Declined  # names fields to be removed, or a protocol
    return _mark(CLOSE) if b"close" in options else b""


def _vouched(_name: bytes, _value: bytes) -> bytes:
    return _VOUCHED


_VOUCHED = _mark(VOUCHED)
_WHATEVER: dict[Rule, bytes] = {_dropped: b"", _vouched: _VOUCHED}
"""What lines come to whose value does not matter."""


_EITHER: dict[bytes, Rule] = {
    b"content-length": _content_length,
    b"connection": _connection,
    # `Connection: close` would name this one away.
    b"close": _declined,
    b"te": _declined,
    b"trailer": _declined,
    b"upgrade": _declined,
    b"http2-settings": _declined,
    b"proxy-authenticate": _declined,
}
_OF_REQUESTS: dict[bytes, Rule] = (
    dict.fromkeys(NOT_UPSTREAM, _dropped)
    | dict.fromkeys((b"transfer-encoding", b"expect", b"max-forwards", b"via"), _declined)
    | {b"host": _host, b"authorization": _marked(AUTHORIZATION), b"content-type": _marked(CONTENT_TYPE)}
    | _EITHER
)
_OF_RESPONSES: dict[bytes, Rule] = (
    dict.fromkeys(NOT_DOWNSTREAM, _dropped)
    | {b"transfer-encoding": _transfer_encoding, b"date": _marked(DATE), b"x-request-id": _dropped}
    # No response has one; the codec would move it.
    | {b"host": _declined}
    | _EITHER
)


def rule_of_request(name: bytes) -> Rule:
    """What becomes of fields of that name. Raises `Declined`."""
    if not _name(name) or is_disguised(name, FRAMING_NAMES):
        raise Declined
    rule = _OF_REQUESTS.get(name.lower())
    if rule is not None:
        return rule
    return _vouched if believes_proxy(name, trusted=False) else _written


def rule_of_response(name: bytes) -> Rule:
    """As `rule_of_request`."""
    if not _name(name):
        raise Declined
    return _OF_RESPONSES.get(name.lower(), _written)


# -- lines ----------------------------------------------------------------------------------------------------------


class Lines:
    """What the field lines of one kind of head come to."""

    __slots__ = ("_rules", "fresh", "memo")

    def __init__(self, rule_of: Callable[[bytes], Rule], kept: int) -> None:
        """`rule_of`: what becomes of fields by their name. `kept`: lines in one generation."""
        self._rules = Memo(rule_of, _weight_of_name, entries=MAX_NAMES, weight=MAX_NAMES * MAX_NAME)
        self.fresh: list[bytes] = []
        """The lines that were not known, for the caller to clear; b"" for one that means another thing with another
        value, be it clean."""
        self.memo = Memo(self._prove, _weight_of_line, entries=kept, weight=MAX_LINES_WEIGHT)
        """By the line, CRLF included."""

    def _prove(self, line: bytes) -> bytes:
        colon = line.find(b":")
        rule = self._rules[line[:colon]]
        if _TIDY.fullmatch(line, colon) and line[-3] not in OWS:
            found = line if rule is _written else _WHATEVER.get(rule)
            if found is not None:
                self.fresh.append(line)
                return found
        self.fresh.append(b"")
        if not line.endswith(b"\r\n"):
            raise Declined
        try:
            name, value = parse_field(line[:-2], CLIENT)
        except ClientError:
            raise Declined from None
        return rule(name, value)


def _weight_of_name(name: bytes, _rule: Rule) -> int:
    return len(name) if len(name) <= MAX_NAME else NEVER


def _weight_of_line(line: bytes, found: bytes) -> int:
    if len(line) > MAX_LINE:
        return NEVER
    weight = 40 + len(line) if found is line else 80 + len(line) + len(found)
    return weight + 400 if type(found) is Mark else weight
