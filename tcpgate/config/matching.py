"""Which requests a route takes and which of two goes first, as far as the config alone tells. Pure.

The order is that of `policy/route.py`, which serves by it (policy may import config, never the other way round; a test
holds the two together): host exact, then the longest wildcard, then any; path exact, then the longest prefix by whole
segments, then regular expressions, the longest first; then methods given before none, more header fields, more query
parameters, more exact values, more regular expressions; then the name. A request that one route does not take falls
through to the next.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

import attrs

from tcpgate.config import schema

EXACT, PREFIX, REGEX = "exact", "prefix", "regex"
ANY_HOST = ""
_LITERAL = re.compile(r"[A-Za-z0-9_/~-]*")

Rank = tuple[bool, int, int, int, int]
Field = tuple[str, str]
"""("headers" or "query", name)."""


@attrs.frozen
class PathKey:
    """A route's path; equal if and only if two routes' paths mean the same."""

    kind: str
    text: str
    """Unescaped; a prefix without its final slash ("/" is ""); a regular expression as it is."""

    @property
    def head(self) -> str:
        """The whole segments that every path taken begins with; "" where that is not plain to see."""
        if self.kind != REGEX:
            return self.text
        if "|" in self.text or "(?" in self.text:
            return ""
        match = _LITERAL.match(self.text)
        literal = match[0] if match else ""
        if self.text[len(literal) : len(literal) + 1] in ("*", "+", "?", "{"):
            literal = literal[:-1]
        return literal[: max(0, literal.rfind("/"))]


@attrs.frozen(kw_only=True, eq=False)
class Rule:
    """One well-formed route, in comparable parts."""

    name: str
    listeners: tuple[str, ...]
    hosts: tuple[str, ...]
    """"api.example.com", "*.example.com", or `ANY_HOST`."""
    path: PathKey
    methods: frozenset[str]
    conditions: Mapping[Field, str]
    rank: Rank
    redirect: schema.Redirect | None

    def covers(self, other: Rule) -> bool:
        """Whether each request of `other` meets the methods and conditions of this one."""
        if self.methods and not (other.methods and other.methods <= self.methods):
            return False
        return all(other.conditions.get(field) == text or (text == "*" and field in other.conditions)
                   for field, text in self.conditions.items())  # fmt: skip

    def meets(self, other: Rule) -> bool:
        """Whether some request may meet the methods and conditions of both."""
        if self.methods and other.methods and not self.methods & other.methods:
            return False
        return not any(is_exact(text) and is_exact(other.conditions.get(field, "*")) and text != other.conditions[field]
                       for field, text in self.conditions.items())  # fmt: skip


def is_exact(text: str) -> bool:
    """Whether a condition names one value."""
    return text != "*" and not text.startswith("~")


def rules(config: schema.Config) -> list[Rule]:
    """A rule for each route, in the config's order."""
    http = tuple(name for name, listener in config.listeners.items() if listener.protocol == "http")
    return [_rule(name, route, http) for name, route in config.routes.items()]


def _rule(name: str, route: schema.Route, http: tuple[str, ...]) -> Rule:
    conditions = {("headers", key.lower()): text for key, text in route.headers.items()}
    conditions |= {("query", key): text for key, text in route.query.items()}
    exact = sum(is_exact(text) for text in conditions.values())
    patterns = sum(text.startswith("~") for text in conditions.values())
    return Rule(
        name=name,
        listeners=route.listeners or http,
        hosts=tuple(dict.fromkeys(map(host_key, route.hosts))) or (ANY_HOST,),
        path=path_key(route.path),
        methods=frozenset(route.methods),
        conditions=conditions,
        rank=(not route.methods, -len(route.headers), -len(route.query), -exact, -patterns),
        redirect=route.redirect,
    )


def host_key(text: str) -> str:
    """A host in the form in which equal ones are equal."""
    if text.startswith("["):
        return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
    return text.lower()


def path_key(text: str) -> PathKey:
    """What a route's `path` means."""
    if text.startswith("~"):
        return PathKey(REGEX, text[1:])
    if text.startswith("="):
        return PathKey(EXACT, unquote(text[1:]))
    return PathKey(PREFIX, unquote(text).removesuffix("/"))


Place = tuple[str, str]
"""(listener, host)."""


class Index:
    """The rules by listener, host and path, so that ten thousand of them need not be tried each."""

    def __init__(self, all_rules: list[Rule]) -> None:
        self._buckets: dict[tuple[Place, PathKey], list[Rule]] = {}
        self._patterns: dict[tuple[Place, str], dict[PathKey, re.Pattern[bytes]]] = {}
        """By place and the segments that they begin with."""
        for rule in sorted(all_rules, key=lambda rule: (rule.rank, rule.name)):
            for place in places(rule):
                self._buckets.setdefault((place, rule.path), []).append(rule)
                if rule.path.kind == REGEX:
                    compiled = re.compile(rule.path.text.encode(), re.DOTALL)
                    self._patterns.setdefault((place, rule.path.head), {})[rule.path] = compiled

    def buckets(self) -> Iterator[tuple[Place, list[Rule]]]:
        """The rules that share listener, host and path, the most specific first."""
        for (place, _), bucket in self._buckets.items():
            yield place, bucket

    def at_prefixes(self, place: Place, head: str) -> Iterator[Rule]:
        """The rules whose path is a prefix of `head` by whole segments, the longest first."""
        for prefix in _heads(head):
            yield from self._buckets.get((place, PathKey(PREFIX, prefix)), ())

    def candidates(self, listener: str, host: str, path: str) -> Iterator[Rule]:
        """The rules whose host and path take the request, in the order in which they are tried."""
        parents = host.split(".")[1:] if not host.startswith("[") else []
        wildcards = ["*." + ".".join(parents[index:]) for index in range(len(parents))]
        for pattern in (host, *wildcards, ANY_HOST):
            place = (listener, pattern)
            yield from self._buckets.get((place, PathKey(EXACT, path)), ())
            yield from self.at_prefixes(place, path.removesuffix("/"))
            for key in self._matching(place, path):
                yield from self._buckets[place, key]

    def _matching(self, place: Place, path: str) -> list[PathKey]:
        """The regular expressions that match the path, the longest first."""
        raw = path.encode()
        below = (self._patterns.get((place, head), {}) for head in _heads(path))
        found = [key for patterns in below for key, pattern in patterns.items() if pattern.fullmatch(raw)]
        return sorted(found, key=lambda key: (-len(key.text.encode()), key.text.encode()))


def _heads(path: str) -> Iterator[str]:
    """`path` and all that it is below, down to "" (which is "/")."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def places(rule: Rule) -> list[Place]:
    """Every listener and host at which the rule is tried."""
    return [(listener, host) for listener in rule.listeners for host in rule.hosts]
