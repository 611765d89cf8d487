"""Redirects that lead back to themselves. Pure.

Only what is certain is told: a redirect to a path, or to `http://{host}`, stays on the gateway, and a route without
conditions surely takes the request that comes back. For each such route one request is followed as a browser would,
until it leaves, meets a condition, or has been there before.

Source: RFC 9110 15.4 (a client should intervene in cyclical redirections); Chromium and Firefox give up after 20.
"""

from __future__ import annotations

import re

from tcpgate.config import schema
from tcpgate.config.matching import ANY_HOST, PREFIX, REGEX, Index, Rule
from tcpgate.config.report import Report

MAX_REDIRECTS = 20
SOME_HOST = "any.example"
"""Stands for a host that no route names."""
_PLAIN_PATH = re.compile(r"(?:/(?!\.)[\w!$&'()*+,=:@~.-]*)+", re.ASCII)


def check_redirects(every: list[Rule], index: Index, report: Report) -> None:
    """Every route whose own requests it sends in a circle."""
    for rule in every:
        if rule.redirect is not None and (problem := _problem(rule, index)):
            report.error(("routes", rule.name, "redirect", "to"), problem)


def _problem(rule: Rule, index: Index) -> str:
    """What becomes of a request that `rule` takes and that never arrives; "" if none is found."""
    for listener in rule.listeners:
        for host in rule.hosts:
            for path in _samples(rule):
                name = SOME_HOST if host == ANY_HOST else host.replace("*.", "any.")
                if _taker(index, listener, name, path) is rule and (problem := _follow(index, listener, name, path)):
                    return problem
    return ""


def _samples(rule: Rule) -> list[str]:
    """Paths that the rule takes, unless another one is more specific."""
    if rule.path.kind == REGEX:
        return []
    return [rule.path.text or "/", f"{rule.path.text}/x"] if rule.path.kind == PREFIX else [rule.path.text]


def _follow(index: Index, listener: str, host: str, path: str) -> str:
    way = [path]
    while len(way) <= MAX_REDIRECTS + 1:
        rule = _taker(index, listener, host, way[-1])
        target = _target(rule.redirect, host, way[-1]) if rule is not None and rule.redirect is not None else None
        if target is None:
            return ""
        way.append(target)
        if target in way[:-1]:
            return f"leads in a circle: http://{host}{' -> '.join(way)}"
    start = " -> ".join(way[:4])
    return f"leads through more than {MAX_REDIRECTS} redirects, and clients give up: http://{host}{start} and so on"


def _taker(index: Index, listener: str, host: str, path: str) -> Rule | None:
    """The rule that surely takes a GET of `path`; None if there is none, or if it depends on the request."""
    for rule in index.candidates(listener, host, path):
        if rule.methods and "GET" not in rule.methods:
            continue
        return None if rule.conditions else rule
    return None


def _target(redirect: schema.Redirect, host: str, path: str) -> str | None:
    """The path at which a redirected request comes back; None if it goes elsewhere, or who knows where."""
    text = redirect.to.removeprefix("http://{host}").replace("{host}", host).replace("{path}", path)
    target = text.replace("{query}", "").partition("#")[0].partition("?")[0]
    return target if _PLAIN_PATH.fullmatch(target) else None
