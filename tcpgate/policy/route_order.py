"""The routes in the order in which they are tried, and why a request gets the one it gets. Pure.

For people: `tcpgate routes` prints `order`; `explain` says why a request gets the route it gets, and why not the
others. A route with two hosts has two places in the order, so it has two rows. What is said here is found by trying
rule after rule, `route.py` says the same by looking up; a property test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from tcpgate.config import schema
from tcpgate.errors import Reason
from tcpgate.policy.host import HostPattern
from tcpgate.policy.path import match_path, readings
from tcpgate.policy.route import BadPath, Match, RouteTable
from tcpgate.policy.route_index import MAX_REGEX_PATH, Asked
from tcpgate.policy.rule import PATH_PREFIX, PATH_REGEX, Condition, Fields, Rule


@attrs.frozen(kw_only=True)
class Row:
    """One place in the order."""

    route: str
    listener: str
    host: str
    """"*" is any."""
    path: str
    methods: tuple[str, ...]
    """None: any."""
    conditions: tuple[str, ...]
    """As "header x-env = beta", "query debug present"."""
    target: str
    filters: tuple[str, ...]
    reason: str
    """Why it stands here."""


@attrs.frozen(kw_only=True)
class Question:
    """A request to explain. `host` is as in `codec.target`; `path` as it would be sent."""

    listener: str
    method: bytes
    host: bytes
    path: bytes
    fields: Fields
    query: bytes | None = None


@attrs.frozen(kw_only=True)
class Finding:
    """What one route has to do with a request."""

    row: Row
    verdict: Literal["takes", "hidden", "no"]
    why: str


@attrs.frozen(kw_only=True)
class Explanation:
    """What becomes of a request, and what every route of its listener says to it, in the order of the routes."""

    match: Match
    findings: tuple[Finding, ...]


def order(table: RouteTable) -> list[Row]:
    """Every route's places, by listener, the most specific first."""
    return [_row(listener, host, rule) for listener in table.rules for host, rule in _places(table.rules[listener])]


def explain(table: RouteTable, question: Question) -> Explanation:
    """The match of `question`, and for each route of its listener why it takes the request or does not."""
    path = match_path(question.path)
    if path is None:
        refused = BadPath(Reason.BAD_REQUEST, "no path, or one in which some upstreams would climb out of their root")
        return Explanation(match=refused, findings=())
    asked = Asked(question.method, question.fields, question.query)
    reading = readings(path)[0]
    findings: list[Finding] = []
    taker = ""
    for host, rule in _places(table.rules[question.listener]):
        row = _row(question.listener, host, rule)
        why = _mismatch(host, rule, question.host, reading, asked)
        if why:
            findings.append(Finding(row=row, verdict="no", why=why))
        elif taker:
            findings.append(Finding(row=row, verdict="hidden", why=f"it would match, but {taker} comes first"))
        else:
            taker = rule.name
            findings.append(Finding(row=row, verdict="takes", why=f"the first that matches: {row.reason}"))
    match = table.match(question.listener, question.method, question.host, path, question.fields, question.query)
    return Explanation(match=match, findings=tuple(findings))


def _places(rules: Iterable[Rule]) -> list[tuple[HostPattern, Rule]]:
    places = [(host, rule) for rule in rules for host in rule.hosts]
    return sorted(places, key=lambda place: (place[0].order, place[1].path.order, place[1].rank, place[1].name))


def _row(listener: str, host: HostPattern, rule: Rule) -> Row:
    return Row(
        route=rule.name,
        listener=listener,
        host=str(host),
        path=rule.path.text,
        methods=rule.spec.methods,
        conditions=(
            *(f"header {_wanted(condition)}" for condition in rule.headers),
            *(f"query {_wanted(condition)}" for condition in rule.query),
        ),
        target=_target(rule.spec),
        filters=rule.spec.filters,
        reason=", ".join(part for part in (host.reason, rule.path.reason, rule.reason) if part),
    )


def _wanted(condition: Condition) -> str:
    name = condition.name.decode()
    return f"{name} present" if condition.text == "*" else f"{name} = {condition.text}"


def _target(spec: schema.Route) -> str:
    if spec.upstream is not None:
        return f"upstream {spec.upstream}"
    if spec.split:
        return "split " + " ".join(f"{name}={weight}" for name, weight in spec.split.items())
    if spec.redirect is not None:
        return f"redirect {spec.redirect.status} {spec.redirect.to}"
    return f"respond {spec.respond.status}" if spec.respond else "nothing"


def _mismatch(pattern: HostPattern, rule: Rule, host: bytes, path: bytes, asked: Asked) -> str:
    """The first thing that keeps a rule from taking the request; "" if nothing does."""
    if not pattern.holds(host):
        return f"the host is not {pattern}"
    if not rule.path.holds(path):
        return _path_mismatch(rule)
    if rule.path.kind == PATH_REGEX and len(path) > MAX_REGEX_PATH:
        return f"the path is longer than the {MAX_REGEX_PATH} bytes that a regular expression looks at"
    for condition in rule.headers:
        if not condition.holds(asked.header(condition.name)):
            return _condition_mismatch("header", condition, asked.header(condition.name))
    for condition in rule.query:
        if not condition.holds(asked.parameter(condition.name)):
            return _condition_mismatch("query", condition, asked.parameter(condition.name))
    if rule.methods and asked.method not in rule.methods:
        return f"the method is not {' or '.join(rule.spec.methods)}"
    return ""


def _path_mismatch(rule: Rule) -> str:
    if rule.path.kind == PATH_REGEX:
        return f"the path does not match {rule.path.text}"
    return f"the path is not {'under ' if rule.path.kind == PATH_PREFIX else ''}{rule.path.text.removeprefix('=')}"


def _condition_mismatch(what: str, condition: Condition, value: bytes | None) -> str:
    """Without the value itself, which may be a credential."""
    name = condition.name.decode()
    return f"{what} {name} is absent" if value is None else f"{what} {name} is not {condition.text}"
