"""Whether each route leads somewhere, and the listeners it names can use it. Pure.

How routes stand to one another (equal, shadowed, in a circle) is `overlap.py` and `redirects.py`.
"""

from __future__ import annotations

import re

from tcpgate.config import schema
from tcpgate.config.report import KeyPath, Names, Report, listed, quoted

_TARGETS = ("upstream", "split", "respond", "redirect")
NO_BODY = (204, 205, 304)
"""Statuses whose response has no content (RFC 9110 15.3.5, 15.3.6, 15.4.5)."""


def check_routes(config: schema.Config, names: Names, report: Report) -> None:
    """Each route by itself."""
    for name, route in config.routes.items():
        path: KeyPath = ("routes", name)
        _check_target(path, route, report)
        check_names(path, route, config, names, report)
        if re.search(r"/\*+$", route.path) and not route.path.startswith("~"):
            right = route.path.rstrip("*").rstrip("/") or "/"
            text = f'"*" stands for itself here; a prefix takes all below it anyway, so write {quoted(right)}'
            report.warn((*path, "path"), text)
        for field in route.headers:
            if field.lower() == "host":
                report.warn((*path, "headers", field), "hosts says this better: it ignores case and port")


def _check_target(path: KeyPath, route: schema.Route, report: Report) -> None:
    chosen = [key for key in _TARGETS if getattr(route, key) not in (None, {})]
    if len(chosen) != 1:
        has = f"it has {listed(chosen, 'and')}" if chosen else "it has none"
        report.error(path, f"needs exactly one of upstream, split, respond, redirect; {has}")
    if route.split_key != "source" and not route.split:
        report.warn((*path, "split_key"), "has no effect without split")
    if route.respond is not None and route.respond.body and route.respond.status in NO_BODY:
        text = f"a response with status {route.respond.status} cannot have a body"
        report.error((*path, "respond", "body"), text)


def check_names(path: KeyPath, route: schema.Route, config: schema.Config, names: Names, report: Report) -> None:
    """Whether all that a route names is there, and fits."""
    if route.upstream is not None:
        report.judge_name((*path, "upstream"), "upstreams", route.upstream, names)
    for name in route.split:
        report.judge_name((*path, "split", name), "upstreams", name, names)
    for index, name in enumerate(route.filters):
        report.judge_name((*path, "filters", index), "filters", name, names)
    for index, name in enumerate(route.listeners):
        at = (*path, "listeners", index)
        report.judge_name(at, "listeners", name, names)
        listener = config.listeners.get(name)
        if listener is not None and listener.protocol == "tcp":
            place = report.place(("listeners", name))
            report.error(at, f"{quoted(name)} is a tcp listener ({place}): it has no routes")
