"""One route compiled: what a request must be for it, and how specific that is. Pure.

`route.py` indexes rules so that it need not try each; `route_order.py` tries each, to tell why one did not match. Both
have the meaning of a route from here.

Source: `[routes.NAME]` in `config/schema.py`; RFC 9110 5.3 (several lines of one field are one list), 9.1 (methods).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from tcpgate.config import forms, schema
from tcpgate.policy.host import ANY_HOST, HostPattern, compile_host
from tcpgate.policy.path import decode_escapes, match_path, readings

PATH_EXACT, PATH_PREFIX, PATH_REGEX = range(3)
"""Kinds of a route's path, the most specific first."""

MAX_REGEX_VALUE = 4096
"""A longer header or query value (bytes) matches no regular expression: the time of stdlib `re` has no bound of its
own."""


class Fields(Protocol):
    """A request's header fields, as far as routes look at them; `codec.events.Fields` is one."""

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field by its lower-case name."""
        ...


@attrs.frozen
class PathPattern:
    """A route's path, compiled."""

    kind: int
    text: str
    """As the config has it."""
    key: bytes
    """What an exact path equals; what a prefixed one begins with, without the final slash ("/" is b""); for a regular
    expression the whole segments that every match begins with."""
    regex: re.Pattern[bytes] | None = None

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Sorts patterns, the most specific first: exact, longest prefix, then longest regular expression."""
        if self.regex is not None:
            return (self.kind, -len(self.regex.pattern), self.regex.pattern)
        return (self.kind, -self.key.count(b"/") if self.kind == PATH_PREFIX else 0, self.key)

    @property
    def reason(self) -> str:
        """How specific it is, in words."""
        if self.kind == PATH_PREFIX:
            return f"prefix of {_count(self.key.count(b'/'), 'segment')}" if self.key else "any path"
        return "exact path" if self.kind == PATH_EXACT else "regular expression"

    def holds(self, reading: bytes) -> bool:
        """True if it covers one reading of a path (`path.readings`)."""
        if self.regex is not None:
            return self.regex.fullmatch(reading) is not None
        if self.kind == PATH_EXACT:
            return reading == self.key
        return not self.key or reading == self.key or reading.startswith(self.key + b"/")


@attrs.frozen
class Condition:
    """What a header field or a query parameter must be."""

    name: bytes
    text: str
    exact: bytes | None = None
    regex: re.Pattern[bytes] | None = None
    """With neither, being present is enough."""

    def holds(self, value: bytes | None) -> bool:
        """True if `value` is as wanted; None stands for absent."""
        if value is None:
            return False
        if self.regex is not None:
            return len(value) <= MAX_REGEX_VALUE and self.regex.fullmatch(value) is not None
        return self.exact is None or value == self.exact


@attrs.frozen(kw_only=True, eq=False)
class Rule:
    """One route, compiled."""

    name: str
    spec: schema.Route
    hosts: tuple[HostPattern, ...]
    path: PathPattern
    methods: frozenset[bytes]
    headers: tuple[Condition, ...]
    query: tuple[Condition, ...]

    @property
    def rank(self) -> tuple[bool, int, int, int, int]:
        """Sorts the rules of one host and path, the most specific first; the name decides between equals."""
        conditions = self.headers + self.query
        exact = sum(condition.exact is not None for condition in conditions)
        regex = sum(condition.regex is not None for condition in conditions)
        return (not self.methods, -len(self.headers), -len(self.query), -exact, -regex)

    @property
    def reason(self) -> str:
        """Its rank in words; "" if it takes every request of its host and path."""
        parts = ["methods"] if self.methods else []
        parts += [_count(len(self.headers), "header")] if self.headers else []
        parts += [_count(len(self.query), "query parameter")] if self.query else []
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def compile_rule(name: str, spec: schema.Route) -> Rule:
    """The rule of a route; ValueError if `config.check` would not have let it through."""
    try:
        return Rule(
            name=name,
            spec=spec,
            hosts=tuple(dict.fromkeys(map(compile_host, spec.hosts))) or (ANY_HOST,),
            path=compile_path(spec.path),
            methods=frozenset(_formed(forms.method, text).encode() for text in spec.methods),
            headers=_conditions({_formed(forms.token, key).lower(): text for key, text in spec.headers.items()}),
            query=_conditions(spec.query),
        )
    except ValueError as exc:
        raise ValueError(f"routes.{name}: {exc}") from None


def _formed(judge: Callable[[str], str], text: str) -> str:
    """`text`, if `judge` has nothing to say against it."""
    wrong = judge(text)
    if wrong:
        raise ValueError(wrong)
    return text


def compile_path(text: str) -> PathPattern:
    """The pattern of a route's `path`; ValueError says what is right."""
    if text.startswith("~"):
        return PathPattern(PATH_REGEX, text, _literal_prefix(text[1:]), _regex(text[1:]))
    if text.startswith("="):
        return PathPattern(PATH_EXACT, text, _only_reading(text[1:]))
    return PathPattern(PATH_PREFIX, text, _only_reading(text).removesuffix(b"/"))


def _only_reading(text: str) -> bytes:
    """The one way to read a route's own path. If it had two, every request for it would be ambiguous."""
    raw = b"".join([b"%%%02X" % code if code <= 0x20 or code >= 0x7F else b"%c" % code for code in text.encode()])
    normal = match_path(raw) if text.startswith("/") else None
    if normal is None:
        raise ValueError(f'{text!r} is not a path; write it as "/v1", "=/exact" or "~/regex/.*"')
    found = readings(normal)
    if len(found) > 1:
        raise ValueError(f'{text!r} is read in different ways (";", "//", %2F, %5C, %25, %3F, %23): use a prefix of it')
    return found[0]


_LITERAL = re.compile(r"([A-Za-z0-9_/~-]*).*", re.DOTALL)


def _literal_prefix(pattern: str) -> bytes:
    """The whole segments that every match of a regular expression begins with; b"" where that is not plain to see."""
    if "|" in pattern or "(?" in pattern or not pattern.startswith("/"):
        return b""
    literal = _LITERAL.sub(r"\1", pattern, count=1)
    # The last character may be one that is repeated, or left out.
    if pattern[len(literal) : len(literal) + 1] in ("*", "+", "?", "{"):
        literal = literal[:-1]
    return literal[: literal.rfind("/")].encode()


def _regex(text: str) -> re.Pattern[bytes]:
    # DOTALL: an encoded newline does not get past ".*".
    return re.compile(_formed(forms.regex, text).encode(), re.DOTALL)


def _conditions(wanted: Mapping[str, str]) -> tuple[Condition, ...]:
    return tuple(_condition(name.encode(), text) for name, text in sorted(wanted.items()))


def _condition(name: bytes, text: str) -> Condition:
    if text == "*":
        return Condition(name, text)
    if text.startswith("~"):
        return Condition(name, text, regex=_regex(text[1:]))
    return Condition(name, text, exact=text.encode())


def field_value(fields: Fields, name: bytes) -> bytes | None:
    """What the lines of a field say together (RFC 9110 5.3); None if there are none."""
    values = fields.all(name)
    return b", ".join(values) if values else None


def parse_query(query: bytes | None) -> dict[bytes, bytes]:
    """Parameters by name, both decoded ("+" is a space); of several with one name the first, as Envoy does.

    Source: the application/x-www-form-urlencoded parser of the WHATWG URL standard.
    """
    found: dict[bytes, bytes] = {}
    for pair in (query or b"").replace(b"+", b" ").split(b"&"):
        name, _, value = pair.partition(b"=")
        if pair:
            found.setdefault(decode_escapes(name), decode_escapes(value))
    return found
