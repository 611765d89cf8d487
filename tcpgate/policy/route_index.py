"""Rules by what can be looked up: host, path, exact values. Pure; used by `route.py` alone, which says in what order.

Three layers, each an iterator over the next, the most specific first: `HostIndex` gives the `PathIndex`es of a host,
that gives the `Bucket`s of a path, and a bucket gives the rule. A request that a bucket does not take goes on to the
next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import attrs

from tcpgate.policy.host import EXACT, WILDCARD
from tcpgate.policy.rule import (
    PATH_EXACT,
    PATH_PREFIX,
    Condition,
    Fields,
    PathPattern,
    Rule,
    field_value,
    parse_query,
)

MAX_REGEX_PATH = 8 << 10
"""A longer path (bytes) is not given to a regular expression. As long as the default limit of a whole target."""


class PathTooLong(Exception):
    """A regular expression would have to look at a path longer than `MAX_REGEX_PATH`.

    It must not count as a mismatch: the request would fall through to a route that was never meant for it.
    """


class Asked:
    """A request, as buckets look at it. The query is parsed for the first condition on it, once."""

    __slots__ = ("_parameters", "fields", "method", "query")

    def __init__(self, method: bytes, fields: Fields, query: bytes | None) -> None:
        self.method = method
        self.fields = fields
        self.query = query
        self._parameters: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of a field, by its lower-case name."""
        return field_value(self.fields, name)

    def parameter(self, name: bytes) -> bytes | None:
        """The value of a query parameter."""
        if self._parameters is None:
            self._parameters = parse_query(self.query)
        return self._parameters.get(name)


def holds(rule: Rule, asked: Asked) -> bool:
    """True if all conditions of `rule` hold, whatever the method."""
    return all(condition.holds(asked.header(condition.name)) for condition in rule.headers) and all(
        condition.holds(asked.parameter(condition.name)) for condition in rule.query
    )


class Bucket:
    """The rules of one host and one path.

    Rules of one rank that compare the same fields and parameters with exact values form a group: a dict from these
    values to the few rules that want them. So ten thousand tenants told apart by a header cost one lookup.
    """

    __slots__ = ("_ranks", "_unconditional")

    def __init__(self, rules: Iterable[Rule]) -> None:
        ordered = sorted(rules, key=lambda rule: (rule.rank, rule.name))
        self._unconditional: Sequence[Rule] | None = None
        if not any(rule.headers or rule.query for rule in ordered):
            self._unconditional = _reachable(ordered)
        self._ranks = [_groups(same) for _, same in groupby(ordered, key=lambda rule: rule.rank)]

    def first(self, asked: Asked) -> Rule | None:
        """The most specific rule that takes the request."""
        if self._unconditional is not None:
            for rule in self._unconditional:
                if not rule.methods or asked.method in rule.methods:
                    return rule
            return None
        for groups in self._ranks:
            found = [taker for group in groups if (taker := group.first(asked)) is not None]
            if found:
                return found[0] if len(found) == 1 else min(found, key=_by_name)
        return None

    def allow(self, asked: Asked) -> set[bytes]:
        """Methods with which a rule of this bucket would take the request."""
        return {
            method
            for groups in self._ranks
            for group in groups
            for rule in group.candidates(asked)
            if holds(rule, asked)
            for method in rule.methods
        }


class _Group:
    """Rules of one rank that want exact values of the same fields and parameters."""

    __slots__ = ("_headers", "_query", "_rules")

    def __init__(self, headers: Sequence[bytes], query: Sequence[bytes], rules: Iterable[Rule]) -> None:
        self._headers = headers
        self._query = query
        found: dict[tuple[bytes | None, ...], list[Rule]] = defaultdict(list)
        for rule in rules:
            found[(*_exact_values(rule.headers), *_exact_values(rule.query))].append(rule)
        self._rules = {values: _reachable(same) for values, same in found.items()}

    def candidates(self, asked: Asked) -> Sequence[Rule]:
        """Rules that want the values that the request has, by name; what else they want is not yet looked at."""
        values = [asked.header(name) for name in self._headers] + [asked.parameter(name) for name in self._query]
        return self._rules.get(tuple(values), ())

    def first(self, asked: Asked) -> Rule | None:
        for rule in self.candidates(asked):
            if (not rule.methods or asked.method in rule.methods) and holds(rule, asked):
                return rule
        return None


def _by_name(rule: Rule) -> str:
    return rule.name


def _groups(rules: Iterable[Rule]) -> list[_Group]:
    shapes: dict[tuple[tuple[bytes, ...], tuple[bytes, ...]], list[Rule]] = defaultdict(list)
    for rule in rules:
        shapes[_exact_names(rule.headers), _exact_names(rule.query)].append(rule)
    return [_Group(headers, query, same) for (headers, query), same in shapes.items()]


def _exact_names(conditions: Iterable[Condition]) -> tuple[bytes, ...]:
    return tuple(condition.name for condition in conditions if condition.exact is not None)


def _exact_values(conditions: Iterable[Condition]) -> tuple[bytes, ...]:
    return tuple(condition.exact for condition in conditions if condition.exact is not None)


def _reachable(rules: Iterable[Rule]) -> Sequence[Rule]:
    """`rules`, which want the same exact values, without those that an earlier one hides, so that a scan stays
    short."""
    kept: list[Rule] = []
    taken: set[bytes] = set()
    for rule in rules:
        free = all(condition.exact is not None for condition in rule.headers + rule.query)
        if rule.methods and rule.methods <= taken:
            continue
        kept.append(rule)
        if free:
            if not rule.methods:
                break
            taken |= rule.methods
    return tuple(kept)


@attrs.define(eq=False)
class PathIndex:
    """The paths of one host."""

    _exact: dict[bytes, Bucket] = attrs.field(factory=dict)
    _prefixes: dict[bytes, Bucket] = attrs.field(factory=dict)
    _regexes: dict[bytes, list[tuple[PathPattern, Bucket]]] = attrs.field(factory=lambda: defaultdict(list))
    """By the literal segments that they begin with."""
    _prefix_depth: int = 0
    _regex_depth: int = 0

    @classmethod
    def build(cls, rules: Iterable[Rule]) -> PathIndex:
        """The index of rules of one host."""
        index = cls()
        for _, same in groupby(sorted(rules, key=lambda rule: rule.path.order), key=lambda rule: rule.path.order):
            index._add(list(same))
        return index

    def _add(self, rules: Sequence[Rule]) -> None:
        """Add the rules of one path."""
        path, bucket = rules[0].path, Bucket(rules)
        if path.kind == PATH_EXACT:
            self._exact[path.key] = bucket
        elif path.kind == PATH_PREFIX:
            self._prefixes[path.key] = bucket
            self._prefix_depth = max(self._prefix_depth, path.key.count(b"/"))
        else:
            self._regexes[path.key].append((path, bucket))
            self._regex_depth = max(self._regex_depth, path.key.count(b"/"))

    def buckets(self, path: bytes) -> Iterator[Bucket]:
        """Those whose path covers this reading of one, the most specific first. Raises PathTooLong."""
        bucket = self._exact.get(path)
        if bucket is not None:
            yield bucket
        key = first_segments(path, self._prefix_depth)
        while True:
            bucket = self._prefixes.get(key)
            if bucket is not None:
                yield bucket
            if not key:
                break
            key = key[: key.rfind(b"/")]
        if self._regexes:
            yield from self._regex_buckets(path)

    def _regex_buckets(self, path: bytes) -> Iterator[Bucket]:
        key = first_segments(path, self._regex_depth)
        below = list(self._regexes.get(key, ()))
        while key:
            key = key[: key.rfind(b"/")]
            below += self._regexes.get(key, ())
        if below and len(path) > MAX_REGEX_PATH:
            raise PathTooLong
        for pattern, bucket in sorted(below, key=lambda entry: entry[0].order):
            if pattern.holds(path):
                yield bucket


def first_segments(path: bytes, depth: int) -> bytes:
    """The first `depth` segments of `path`, or all it has. Cut at its last slash again and again, it ends as b""."""
    end = 0
    for _ in range(depth):
        end = path.find(b"/", end + 1)
        if end < 0:
            return path
    return path[:end]


@attrs.define(eq=False)
class HostIndex:
    """The hosts of one listener."""

    _exact: dict[bytes, PathIndex] = attrs.field(factory=dict)
    _wildcards: dict[bytes, PathIndex] = attrs.field(factory=dict)
    _labels: int = 0
    """Of the longest wildcard."""
    _any: PathIndex | None = None
    simple_depth: int | None = None
    """How many first segments of a path can matter, if only host, method and these decide; None: more decides."""
    exact_paths: frozenset[bytes] = frozenset()
    """Paths that are told from others by more than these segments."""

    @classmethod
    def build(cls, rules: Iterable[Rule]) -> HostIndex:
        """The index of all rules of one listener."""
        rules = list(rules)
        by_host = defaultdict(list)
        for rule in rules:
            for host in rule.hosts:
                by_host[host].append(rule)
        index = cls()
        for host, same in by_host.items():
            paths = PathIndex.build(same)
            if host.kind == EXACT:
                index._exact[host.name] = paths
            elif host.kind == WILDCARD:
                index._wildcards[host.name] = paths
                index._labels = max(index._labels, host.name.count(b".") + 1)
            else:
                index._any = paths
        if not any(rule.headers or rule.query or rule.path.kind not in (PATH_EXACT, PATH_PREFIX) for rule in rules):
            prefixes = [rule.path.key for rule in rules if rule.path.kind == PATH_PREFIX]
            index.simple_depth = max((key.count(b"/") for key in prefixes), default=0)
            index.exact_paths = frozenset(rule.path.key for rule in rules if rule.path.kind == PATH_EXACT)
        return index

    def first(self, host: bytes, path: bytes, asked: Asked) -> Rule | None:
        """The most specific rule that takes the request, by one reading of its path. Raises PathTooLong."""
        for paths in self._paths(host):
            for bucket in paths.buckets(path):
                rule = bucket.first(asked)
                if rule is not None:
                    return rule
        return None

    def allow(self, host: bytes, path: bytes, asked: Asked) -> set[bytes]:
        """The methods with which some rule would take it. Raises PathTooLong."""
        buckets = (bucket for paths in self._paths(host) for bucket in paths.buckets(path))
        return set().union(*(bucket.allow(asked) for bucket in buckets))

    def _paths(self, host: bytes) -> Iterator[PathIndex]:
        paths = self._exact.get(host)
        if paths is not None:
            yield paths
        if self._wildcards:
            yield from self._wildcard_paths(host)
        if self._any is not None:
            yield self._any

    def _wildcard_paths(self, host: bytes) -> Iterator[PathIndex]:
        """Those of the wildcards above `host`, the longest first; never of the whole host: that is the apex."""
        starts: list[int] = []
        dot = len(host)
        while len(starts) < self._labels and (dot := host.rfind(b".", 0, dot)) >= 0:
            starts.append(dot + 1)
        for start in reversed(starts):
            paths = self._wildcards.get(host[start:])
            if paths is not None:
                yield paths
