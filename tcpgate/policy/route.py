"""Which route takes a request. Pure.

Theory of operation. A route is a conjunction: listener, host, path, method, header fields, query. The one that takes
a request is the first, in order of specificity, that holds in full:

1. host: exact, then the longest wildcard, then any;
2. path: exact, then the longest prefix by whole segments, then regular expressions, the longest first;
3. methods given before none; more header fields before fewer; more query parameters before fewer; among as many, exact
   values before regular expressions before mere presence;
4. the name, so that the order is total and the same on every host.

So what a more specific route does not take falls through to less specific ones, also to those of a less specific
host. Envoy's route lists, Traefik's rules and the Kubernetes Gateway API read like that (nginx picks its server first
and stays in it). If none holds, but some would with another method, the answer is 405 with their methods.

A match costs the same with ten routes and with ten thousand (`route_index.py`): what it walks is bounded by the
config and not by the client, as many labels of the host as the longest wildcard has and as many segments of the path
as the longest prefix has. Only regular expressions are tried one by one; those that begin with literal segments, only
below these.

A path that can be read in several ways must lead to one route in all of them (`path.py` says why), else it is a
BadPath.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from tcpgate.codec.events import NO_FIELDS
from tcpgate.config import schema
from tcpgate.errors import Reason
from tcpgate.policy.path import NormalPath, is_single, readings
from tcpgate.policy.route_index import MAX_REGEX_PATH, Asked, HostIndex, PathTooLong, first_segments
from tcpgate.policy.rule import Fields, Rule, compile_rule

MAX_SIMPLE = 4096
"""What `RouteTable.simply` remembers before it forgets all of it."""


@attrs.frozen
class Found:
    """This route takes the request."""

    name: str
    spec: schema.Route


@attrs.frozen
class NoRoute:
    """No route takes it, whatever its method: 404."""


@attrs.frozen
class MethodNotAllowed:
    """No route takes it with this method: 405."""

    allow: tuple[bytes, ...]
    """The methods with which one would, for the Allow field; sorted."""


@attrs.frozen
class BadPath:
    """The path does not lead to one route: answer with the status of the reason."""

    reason: Reason
    detail: str


Match = Found | NoRoute | MethodNotAllowed | BadPath
NO_ROUTE = NoRoute()


@attrs.frozen(eq=False)
class RouteTable:
    """All routes of a generation, compiled."""

    rules: Mapping[str, tuple[Rule, ...]]
    """By listener: the rules of its routes, in no order."""
    _indexes: Mapping[str, HostIndex]
    _found: Mapping[str, Found]
    _simple: dict[tuple[str, bytes, bytes, bytes], str] = attrs.field(factory=dict)
    """What `simply` has found: by listener, method, host and as much of the path as can matter."""

    @classmethod
    def build(cls, routes: Mapping[str, schema.Route], listeners: Iterable[str]) -> RouteTable:
        """The table of `routes` for the http listeners named; ValueError if `config.check` did not let them through."""
        compiled = {name: compile_rule(name, spec) for name, spec in routes.items()}
        rules = {
            listener: tuple(
                rule for rule in compiled.values() if not rule.spec.listeners or listener in rule.spec.listeners
            )
            for listener in listeners
        }
        # Most routes are on every listener, so most listeners share one index.
        built = {same: HostIndex.build(same) for same in set(rules.values())}
        return cls(
            rules=rules,
            indexes={listener: built[same] for listener, same in rules.items()},
            found={name: Found(name, spec) for name, spec in routes.items()},
        )

    def simply(self, listener: str, method: bytes, host: bytes, path: NormalPath) -> str | None:
        """The route's name, if host, method and the path's first segments decide it, as in most tables; None: `match`.

        Only for a path that `is_plain`, which has one reading. As cheap as one look-up for what comes again.
        """
        index = self._indexes[listener]
        depth = index.simple_depth
        if depth is None or path in index.exact_paths:
            return None
        key = (listener, method, host, first_segments(path, depth))
        name = self._simple.get(key)
        if name is None:
            rule = index.first(host, path, Asked(method, NO_FIELDS, None))
            if rule is None:
                return None
            if len(self._simple) >= MAX_SIMPLE:  # hosts and paths are the client's to invent
                self._simple.clear()
            name = self._simple[key] = rule.name
        return name

    def match(
        self, listener: str, method: bytes, host: bytes, path: NormalPath, fields: Fields, query: bytes | None = None
    ) -> Match:
        """Which route takes the request. `host` is as in `codec.target`, `path` comes from `match_path`."""
        index = self._indexes[listener]
        asked = Asked(method, fields, query)
        try:
            if is_single(path):
                rule = index.first(host, path, asked)
                return self._found[rule.name] if rule is not None else _refusal(index, host, path, asked)
            return self._match_readings(index, host, readings(path), asked)
        except PathTooLong:
            return BadPath(Reason.TARGET_TOO_LONG, f"no regular expression looks at more than {MAX_REGEX_PATH} bytes")

    def _match_readings(self, index: HostIndex, host: bytes, paths: list[bytes], asked: Asked) -> Match:
        rule = index.first(host, paths[0], asked)
        if rule is None:
            # Nothing is forwarded, so it does not matter how others would read the path.
            return _refusal(index, host, paths[0], asked)
        for path in paths[1:]:
            other = index.first(host, path, asked)
            if other is not rule:
                return _ambiguous(rule, other)
        return self._found[rule.name]


def _refusal(index: HostIndex, host: bytes, path: bytes, asked: Asked) -> Match:
    allow = index.allow(host, path, asked)
    return MethodNotAllowed(tuple(sorted(allow))) if allow else NO_ROUTE


def _ambiguous(rule: Rule, other: Rule | None) -> BadPath:
    elsewhere = f"to route {other.name}" if other else "to none"
    return BadPath(
        Reason.BAD_REQUEST, f"the path leads to route {rule.name}, but read as some upstreams do, {elsewhere}"
    )
