"""The admin API without its HTTP: which call does what, and what it answers.

One table (`CALLS`) maps method and path to a function; `handle` does the rest: 404, 405 with Allow, bad JSON, errors
as RFC 9457 problem documents. The command line, the dashboard and people with curl all use these same calls.

Source: `interface`, the public contract (README, "Admin API"); RFC 9110 15.5.6 (405), RFC 9457. Owner: `admin.py`
calls it, a task per connection.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, unquote

import attrs
import trio

from tcpgate.config import schema
from tcpgate.config.export import dump
from tcpgate.config.report import nearest, quoted
from tcpgate.control.certificates import documents
from tcpgate.control.health import EndpointReport, HealthBoard
from tcpgate.control.reload import Reloader, ReloadResult
from tcpgate.policy.health import Word
from tcpgate.policy.route import RouteTable
from tcpgate.policy.route_order import order
from tcpgate.stats.journal import Event, Journal
from tcpgate.stats.page import OFFSETS, Layout, SharedPage
from tcpgate.stats.totals import share, totals, worker_figures

Json = Any
JSON, PROBLEM, TEXT = "application/json", "application/problem+json", "text/plain; charset=utf-8"
MOST_EVENTS = 1000
MOST_OUT = 100
"""Endpoints that the status names because they take no traffic; `upstreams` has all."""
SUMMED = (
    *("connections", "accepted", "exchanges", "log_dropped", "bytes_in", "bytes_out"),
    *("lane_exchanges", "lane_handed", "lane_faults", "gc_pauses_us"),
)
"""Of the workers' fields, those of which a sum means something."""
MOST_KNOWN = 10
"""Names that an error lists for whoever mistyped one."""


@attrs.frozen(kw_only=True)
class Request:
    """One call, as the server read it."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    parts: Mapping[str, str] = attrs.field(factory=dict)
    """What the path's placeholders stand for."""

    @classmethod
    def parse(cls, method: str, target: str, body: bytes) -> Request:
        """From a request line's method and target."""
        path, _, query = target.partition("?")
        return cls(method=method, path=path, query={k: v[-1] for k, v in parse_qs(query).items()}, body=body)


@attrs.frozen(kw_only=True)
class Answer:
    """What the server sends."""

    status: int
    body: bytes
    content_type: str = JSON
    fields: tuple[tuple[str, str], ...] = ()


class Problem(Exception):
    """A call that cannot be done; becomes a problem document."""

    def __init__(self, status: int, detail: str, **more: Json) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.more = more


def answer_json(document: Json, status: int = 200, fields: tuple[tuple[str, str], ...] = ()) -> Answer:
    """`document` as JSON."""
    return Answer(status=status, body=json.dumps(document, indent=2).encode() + b"\n", fields=fields)


def answer_problem(status: int, detail: str, fields: tuple[tuple[str, str], ...] = (), **more: Json) -> Answer:
    """An RFC 9457 problem document."""
    document = {"type": "about:blank", "status": status, "detail": detail, **more}
    body = json.dumps(document, indent=2).encode() + b"\n"
    return Answer(status=status, body=body, content_type=PROBLEM, fields=fields)


@attrs.frozen(kw_only=True)
class Api:
    """What the calls work with."""

    reload: Callable[[], Awaitable[ReloadResult]]
    reload_soon: Callable[[], None]
    reloader: Reloader
    board: HealthBoard
    journal: Journal
    tell: Callable[[str, str, str, Mapping[str, str | int | float]], None]
    shared: SharedPage
    layout: Layout
    workers: Callable[[], Mapping[int, int]]
    """Worker index -> pid, of those that live."""
    wanted: Callable[[], int]
    """How many workers there should be."""
    processes: Callable[[], int]
    """How many there were at most: so many pages hold counters."""
    deaths: Callable[[], int]
    """Workers that ended unasked."""
    bugs: Callable[[], int]
    """Tasks of the supervisor that failed, and were begun again."""
    is_ready: Callable[[], bool]
    is_stopping: Callable[[], bool]
    uptime: Callable[[], float]
    """Seconds, of a clock that nobody sets."""

    async def handle(self, request: Request) -> Answer:
        """Answer one call."""
        allowed: list[str] = []
        for method, pattern, call in CALLS:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if method != request.method and not (method == "GET" and request.method == "HEAD"):
                allowed.append(method)
                continue
            parts = {name: unquote(value) for name, value in match.groupdict().items()}
            try:
                answer = call(self, attrs.evolve(request, parts=parts))
                return answer if isinstance(answer, Answer) else await answer
            except Problem as exc:
                return answer_problem(exc.status, exc.detail, **exc.more)
        if allowed:
            return answer_problem(405, f"allowed here: {', '.join(allowed)}", (("Allow", ", ".join(allowed)),))
        return answer_problem(404, f"no such call: {request.method} {request.path}; GET /api/v1/ lists them")

    @property
    def config(self) -> schema.Config:
        """The one that serves."""
        return self.reloader.config or schema.Config()

    def counts(self, kind: str, name: str) -> dict[str, int]:
        """A series' counters, summed over all processes."""
        return totals(self.shared, self.layout.blocks, kind, name, self.processes())


# -- the calls ------------------------------------------------------------------------------------------------------


def list_calls(api: Api, request: Request) -> Answer:
    """Every call, with its one line."""
    return answer_json(
        [{"method": m, "path": _readable(p), "does": (c.__doc__ or "").split("\n")[0]} for m, p, c in CALLS]
    )


def healthz(api: Api, request: Request) -> Answer:
    """200 while the process lives and its loop turns."""
    return Answer(status=200, body=b"ok\n", content_type=TEXT)


def readyz(api: Api, request: Request) -> Answer:
    """200 if the gateway would take traffic, else 503 with why."""
    if api.is_ready():
        return Answer(status=200, body=b"ready\n", content_type=TEXT)
    why = b"stopping\n" if api.is_stopping() else b"starting\n"
    return Answer(status=503, body=why, content_type=TEXT)


def status(api: Api, request: Request) -> Answer:
    """The gateway as a whole: generation, last reload, workers, endpoints up."""
    endpoints = api.board.statuses()
    out = [one for one in endpoints if not one.state.takes_traffic]
    last = api.reloader.last
    pids = api.workers()
    sums = _worker_totals(api)
    return answer_json(
        {
            "version": version("tcpgate"),
            "pid": os.getpid(),
            "uptime_seconds": round(api.uptime(), 3),
            "ready": api.is_ready(),
            "stopping": api.is_stopping(),
            "generation": api.reloader.generation,
            "reloads": api.reloader.counts,
            "last_reload": reload_document(last) if last else None,
            "restart_needed_for": list(api.reloader.restart),
            "warnings": [*api.reloader.warnings, *(one.told for one in api.reloader.kept)],
            "endpoints": {
                "total": len(endpoints),
                "up": len(endpoints) - len(out),
                "out": [{"endpoint": f"{one.upstream}/{one.endpoint}", "state": one.state} for one in out[:MOST_OUT]],
            },
            "listeners": [_listener(api, name, one) for name, one in api.config.listeners.items()],
            "workers_wanted": api.wanted(),
            "workers_died": api.deaths(),
            "bugs": api.bugs(),
            "workers": [{"index": i, "pid": pid, **worker_figures(api.shared, i)} for i, pid in sorted(pids.items())],
            "totals": sums,
            "lane_share": share(sums["lane_exchanges"], sums["exchanges"] - sums["lane_exchanges"]),
            "reuse_ratio": _reuse_ratio(api, [(one.upstream, one.endpoint) for one in endpoints]),
        }
    )


def listeners(api: Api, request: Request) -> Answer:
    """Every listener with its addresses and counters."""
    return answer_json([_listener(api, name, one) for name, one in api.config.listeners.items()])


def routes(api: Api, request: Request) -> Answer:
    """Every route in the order in which it is tried, with its counters."""
    rows = [attrs.asdict(row) for row in order(table_of(api.config))]
    return answer_json([{**row, **api.counts("route", row["route"])} for row in rows])


def upstreams(api: Api, request: Request) -> Answer:
    """Every upstream with its endpoints: state, cause, weight, history, counters."""
    wanted = request.parts.get("name")
    if wanted is not None and wanted not in api.config.upstreams:
        raise Problem(404, f"there is no upstream {_choice(wanted, sorted(api.config.upstreams))}")
    reports = api.board.describe()
    rows = [
        {
            "name": name,
            "balance": spec.balance,
            "reuse_ratio": _reuse_ratio(api, [(name, one.address) for one in spec.endpoints]),
            "endpoints": [_endpoint(api, report) for report in reports if report.upstream == name],
        }
        for name, spec in api.config.upstreams.items()
        if wanted in (None, name)
    ]
    return answer_json(rows if wanted is None else rows[0])


def put_endpoint(api: Api, request: Request) -> Answer:
    """Set an endpoint's state (ready, drain, maint) or weight: {"state": "drain"} or {"weight": 3}."""
    upstream, address = request.parts["name"], request.parts["address"]
    group = api.config.upstreams.get(upstream)
    if group is None or all(one.address != address for one in group.endpoints):
        known = [f"{u}/{e.address}" for u, spec in api.config.upstreams.items() for e in spec.endpoints]
        raise Problem(404, f"there is no endpoint {_choice(f'{upstream}/{address}', known)}")
    wish = _object(request.body)
    unknown = wish.keys() - {"state", "weight"}
    if unknown or not wish:
        raise Problem(
            400, 'send {"state": "ready" | "drain" | "maint"} or {"weight": 0 to 256, or null for the config\'s}'
        )
    if "state" in wish and wish["state"] not in ("ready", "drain", "maint"):
        raise Problem(400, f'state must be "ready", "drain" or "maint", not {json.dumps(wish["state"])}')
    weight = wish.get("weight")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= schema.MAX_WEIGHT
    ):
        raise Problem(400, f"weight must be a whole number from 0 to {schema.MAX_WEIGHT}, or null for the config's")
    if "state" in wish:
        api.board.command(upstream, address, Word(wish["state"]))
    if "weight" in wish:
        api.board.set_weight(upstream, address, weight)
    facts = {"upstream": upstream, "endpoint": address}
    api.tell("admin_command", "info", f"operator: {upstream}/{address}: {json.dumps(wish)}", facts)
    report = next(one for one in api.board.describe() if (one.upstream, one.endpoint) == (upstream, address))
    return answer_json(_endpoint(api, report))


def config(api: Api, request: Request) -> Answer:
    """The config that serves, defaults filled in, secrets hidden."""
    document = dump(api.config)
    etag = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
    return answer_json(document, fields=(("ETag", f'"{etag}"'),))


async def post_reload(api: Api, request: Request) -> Answer:
    """Read the config again and make it serve; the answer comes when that is done, ?wait=false: at once (202)."""
    wait = request.query.get("wait", "true")
    if wait not in ("true", "false"):
        raise Problem(400, f"wait is true or false, not {json.dumps(wait)}")
    if wait == "false":
        api.reload_soon()
        return answer_json({"accepted": True, "generation": api.reloader.generation}, 202)
    result = await api.reload()
    return answer_json(reload_document(result), 200 if result.ok else 422)


def events(api: Api, request: Request) -> Answer:
    """What happened, oldest first; ?since=SEQ gives only later ones, ?limit=N the last N."""
    try:
        since, limit = int(request.query.get("since", "0")), int(request.query.get("limit", "100"))
    except ValueError:
        raise Problem(400, "since and limit are whole numbers") from None
    found = api.journal.since(since)[-max(1, min(limit, MOST_EVENTS)) :]
    return answer_json([_event(event) for event in found])


def table_of(config: schema.Config) -> RouteTable:
    """The match table of a config, for people to look at."""
    return RouteTable.build(config.routes, [name for name, one in config.listeners.items() if one.protocol == "http"])


def _listener(api: Api, name: str, spec: schema.Listener) -> Json:
    tls = {} if spec.tls is None else {"certificates": documents(spec.tls, time.time())}
    return {"name": name, "bind": list(spec.bind), "protocol": spec.protocol, **tls, **api.counts("listener", name)}


def _endpoint(api: Api, report: EndpointReport) -> Json:
    ratio = _reuse_ratio(api, [(report.upstream, report.endpoint)])
    counts = api.counts("endpoint", f"{report.upstream}/{report.endpoint}")
    return {**attrs.asdict(report), "reuse_ratio": ratio, **counts}


def _reuse_ratio(api: Api, endpoints: Iterable[tuple[str, str]]) -> float | None:
    """How many of the attempts at these endpoints went over a connection that was there; None before any had one.

    A flow's connection is always a new one.
    """
    blocks = [block for one in endpoints if (block := api.layout.blocks.get(f"endpoint/{one[0]}/{one[1]}"))]
    reused, connects = (
        sum(api.shared.total(block + OFFSETS["endpoint"][field], api.processes()) for block in blocks)
        for field in ("reused", "connects")
    )
    return share(reused, connects)


def _choice(wrong: str, known: Sequence[str]) -> str:
    """`wrong`, and what it may have been meant to be."""
    near = nearest(wrong, known)
    if near or not known:
        return f"{quoted(wrong)}{near}" if known else f"{quoted(wrong)}; there is none at all"
    more = f" and {len(known) - MOST_KNOWN} more" if len(known) > MOST_KNOWN else ""
    return f"{quoted(wrong)}; there are {', '.join(known[:MOST_KNOWN])}{more}"


def _event(event: Event) -> Json:
    at = datetime.datetime.fromtimestamp(event.ts, datetime.UTC).isoformat(timespec="milliseconds")
    return {**attrs.asdict(event), "time": at}


def reload_document(result: ReloadResult) -> Json:
    """A reload's result for the API and the command line."""
    ago = round(max(0.0, trio.current_time() - result.at), 3)
    return {**attrs.asdict(result, filter=lambda field, _: field.name != "at"), "ago": ago, "summary": result.summary}


def _worker_totals(api: Api) -> dict[str, int]:
    figures = [worker_figures(api.shared, index) for index in range(1, api.processes() + 1)]
    return {field: sum(one[field] for one in figures) for field in SUMMED}


def _object(body: bytes) -> dict[str, Json]:
    try:
        document = json.loads(body)
    except ValueError as exc:
        raise Problem(400, f"the body is not JSON: {exc}") from None
    if not isinstance(document, dict):
        raise Problem(400, "the body must be a JSON object")
    return document


def _path(template: str) -> re.Pattern[str]:
    """ "/a/{name}" as a pattern; a placeholder is one segment, percent-encoded where it needs to be."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)))


def _readable(pattern: re.Pattern[str]) -> str:
    return re.sub(r"\(\?P<(\w+)>\[\^/\]\+\)", r"{\1}", pattern.pattern).replace("\\", "")


Call = Callable[[Api, Request], Answer | Awaitable[Answer]]
CALLS: tuple[tuple[str, re.Pattern[str], Call], ...] = (
    ("GET", _path("/healthz"), healthz),
    ("GET", _path("/readyz"), readyz),
    ("GET", _path("/api/v1/"), list_calls),
    ("GET", _path("/api/v1/status"), status),
    ("GET", _path("/api/v1/listeners"), listeners),
    ("GET", _path("/api/v1/routes"), routes),
    ("GET", _path("/api/v1/upstreams"), upstreams),
    ("GET", _path("/api/v1/upstreams/{name}"), upstreams),
    ("PUT", _path("/api/v1/upstreams/{name}/endpoints/{address}"), put_endpoint),
    ("GET", _path("/api/v1/config"), config),
    ("POST", _path("/api/v1/reload"), post_reload),
    ("GET", _path("/api/v1/events"), events),
)
