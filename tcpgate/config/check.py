"""Whether a config makes sense as a whole: every name leads somewhere, nothing clashes, nothing lies idle. Pure.

`structure.py` has judged each value by itself. Here tables are held against each other, and, through the functions of a
`World`, against the host. Errors are what cannot serve; warnings what can hardly be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import attrs

from tcpgate.config import schema
from tcpgate.config.check_listeners import check_listeners
from tcpgate.config.check_routes import check_names, check_routes
from tcpgate.config.check_tls import check_ends, check_tls
from tcpgate.config.check_upstreams import check_filters, check_upstreams
from tcpgate.config.matching import Index, rules
from tcpgate.config.overlap import check_overlaps
from tcpgate.config.redirects import check_redirects
from tcpgate.config.report import AnyName, KeyPath, Report, Where
from tcpgate.errors import Problem

SPARE_FILES = 256
"""Descriptors for everything but connections: listeners, probes, logs, pipes, the link to the supervisor."""


@attrs.frozen(kw_only=True)
class World:
    """What only the host can tell. Each function gives "" if all is well, else what is wrong."""

    runnable: Callable[[str], str]
    """Whether this program can be run."""
    writable: Callable[[str], str]
    """Whether files can be made in this folder."""
    makeable: Callable[[str], str]
    """The same, or the folder can be made first."""
    speakable: Callable[[str], str]
    """Whether OpenSSL knows any cipher of this list."""
    open_files: int = 0
    """RLIMIT_NOFILE of a worker; 0: unknown."""
    longest_backlog: int = 0
    """What the kernel makes of a longer one (net.core.somaxconn); 0: unknown."""
    now: float = 0.0
    """Unix time, for certificates; 0: unknown."""
    user: str = ""
    """Who reads the files; "" if unknown."""


def _nowhere(path: KeyPath) -> tuple[str, int]:
    return "config", 0


def check(
    config: schema.Config,
    *,
    world: World | None = None,
    where: Where = _nowhere,
    broken: Mapping[str, Collection[str]] | None = None,
    salvaged: Mapping[str, schema.Route] | None = None,
) -> list[Problem]:
    """Every problem of the config as a whole, errors and warnings. Its values must be well-formed, as `load` leaves
    them.

    `broken` names what the TOML has but `config` does not, being wrong in itself: to refer to it is no second problem.
    `salvaged` has the broken routes as far as they could be read: only what they name is looked up.
    """
    report = Report(where)
    tables = ("listeners", "routes", "filters", "upstreams")
    names: dict[str, Collection[str]] = {}
    for table in tables:
        others = (broken or {}).get(table, frozenset())
        names[table] = others if isinstance(others, AnyName) else {*getattr(config, table), *others}
    check_listeners(config, names, report)
    check_routes(config, names, report)
    for name, route in (salvaged or {}).items():
        check_names(("routes", name), route, config, names, report)
    check_filters(config, report)
    check_upstreams(config, report)
    check_tls(config, names, report)
    comparable = rules(config)
    index = Index(comparable)
    check_overlaps(comparable, index, report)
    check_redirects(comparable, index, report)
    _check_unused(config, report)
    if world is not None:
        _check_host(config, world, report)
    return report.problems


def _check_unused(config: schema.Config, report: Report) -> None:
    """What nothing leads to."""
    wanted = set(_upstreams_in_use(config))
    for name in config.upstreams.keys() - wanted:
        report.warn(("upstreams", name), "is not used by any route or listener")
    chained = {name for route in config.routes.values() for name in route.filters}
    for name in config.filters.keys() - chained:
        report.warn(("filters", name), "is not used by any route")
    if config.routes and not any(listener.protocol == "http" for listener in config.listeners.values()):
        report.warn(("routes",), "there is no http listener, so no route is ever tried")
    routed = {name for route in config.routes.values() for name in route.listeners}
    everywhere = any(not route.listeners for route in config.routes.values())
    for name, listener in config.listeners.items():
        if listener.protocol == "http" and not everywhere and name not in routed:
            report.warn(("listeners", name), "has no route, so every request gets 404")


def _upstreams_in_use(config: schema.Config) -> Iterator[str]:
    for listener in config.listeners.values():
        yield listener.upstream or ""
        yield from (*listener.sni.values(), *listener.alpn.values())
    for route in config.routes.values():
        yield route.upstream or ""
        yield from route.split


# -- against the host -----------------------------------------------------------------------------------------------


def _check_host(config: schema.Config, world: World, report: Report) -> None:
    for name, upstream in config.upstreams.items():
        if upstream.health is not None and upstream.health.exec:
            report.judge(("upstreams", name, "health", "exec", 0), world.runnable(upstream.health.exec[0]))
    for name, listener in config.listeners.items():
        if listener.tls is not None and listener.tls.ciphers is not None:
            report.judge(("listeners", name, "tls", "ciphers"), world.speakable(listener.tls.ciphers))
    for key, target in (("access", config.log.access), ("events", config.log.events)):
        if target.startswith("/"):
            report.judge(("log", key), world.writable(target.rpartition("/")[0] or "/"))
    if problem := world.makeable(config.gateway.state_dir):
        report.warn(("gateway", "state_dir"), f"{problem}; what is to outlive a restart will have no place")
    if world.now:
        check_ends(config, world.now, report)
    _check_open_files(config, world.open_files, report)
    _check_backlogs(config, world.longest_backlog, report)


def _check_open_files(config: schema.Config, limit: int, report: Report) -> None:
    """Each connection may need one more to an upstream, and all of them may meet in one worker."""
    connections = sum(listener.max_connections for listener in config.listeners.values())
    needed = 2 * connections + SPARE_FILES
    if 0 < limit < needed:
        text = f"{connections} max_connections need up to {needed} open files, but a worker may have {limit}"
        report.warn(("listeners",), f"{text}; raise LimitNOFILE= (ulimit -n) or lower max_connections")


def _check_backlogs(config: schema.Config, longest: int, report: Report) -> None:
    """The kernel cuts a backlog that is too long without a word, and a burst of connections waits a second for it."""
    for name, listener in config.listeners.items():
        ours = any(not bind.startswith("fd:") for bind in listener.bind)
        if ours and 0 < longest < listener.backlog:
            text = f"the kernel makes {longest} of {listener.backlog}"
            report.warn(("listeners", name, "backlog"), f"{text}; raise net.core.somaxconn (sysctl), or lower it here")
