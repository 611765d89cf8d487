"""The access record: the one account of how an exchange (or a tcp flow) went, written as one JSON line.

It is filled while the exchange lives and rendered once, where the exchange ends. It answers "why
this status" by itself, so it holds what that takes: every attempt, where the time went, who answered, the reason, and
the rule that decided.

Theory of operation. `render` runs once per exchange, in the lane too, so it is one f-string over C-speed quoting with
no test per field. Only a line that came out too long, or that holds a surrogate, is rendered a second time with every
text cut to its room in `ROOMS`. The rooms add up to less than a line, so the second time always fits; the attempts
share what is left of it.

Source: HAProxy's log (timers, who ended it, why) and Envoy's (attempts, phases), in one line; RFC 8259. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tcpgate.errors import Reason, Side
from tcpgate.stats.line import LINE_LIMIT, SCHEMA, cut, quote


@attrs.define
class Attempt:
    """One try at an endpoint. Not frozen, because one is made per try and a frozen one costs three times as much."""

    endpoint: str
    reason: str
    """A word of `errors.Reason`: "ok", or why it failed."""
    ms: float
    """From the pick to its end (milliseconds)."""


@attrs.define
class Phases:
    """Where the time went (seconds). 0.0: the phase did not happen, and the line leaves it out."""

    tls: float = 0.0
    """The downstream handshake; only on a connection's first exchange."""
    head: float = 0.0
    """From the first byte of the request head to its last."""
    filters: float = 0.0
    """Routing and filters."""
    queue: float = 0.0
    """Waiting for an endpoint with room."""
    connect: float = 0.0
    """Dialling (and upstream TLS); 0.0 on a reused connection."""
    first_byte: float = 0.0
    """From the request's end to the response head."""
    body: float = 0.0
    """From the response head to the last byte sent to the client."""
    total: float = 0.0
    """The exchange from its first byte to its last. Always in the line."""


@attrs.define(kw_only=True)
class AccessRecord:
    """How one exchange went. What a field means stands in `ACCESS_FIELDS`; every number is finite."""

    ts: float
    id: str = ""
    trace: str = ""
    listener: str = ""
    route: str = ""
    upstream: str = ""
    endpoint: str = ""
    attempts: list[Attempt] = attrs.field(factory=list)
    client: str = ""
    peer: str = ""
    tls: str = ""
    method: str = ""
    host: str = ""
    path: str = ""
    proto: str = ""
    status: int = 0
    answered_by: Side = Side.GATEWAY
    reason: Reason = Reason.OK
    rule: str = ""
    detail: str = ""
    t: Phases = attrs.field(factory=Phases)
    bytes_in: int = 0
    bytes_out: int = 0
    auth: str = ""
    limit: str = ""
    generation: int = 0


ACCESS_FIELDS: Mapping[str, str] = {
    "v": "version of this schema",
    "ts": "when the exchange ended: seconds since 1970 UTC",
    "id": "request id, the one in the response and in problem documents",
    "trace": "trace id of the W3C traceparent",
    "listener": "listener by name",
    "route": "route by name; empty if none matched",
    "upstream": "upstream by name",
    "endpoint": "endpoint that gave the answer, or was tried last",
    "attempts": "every try in order: endpoint, reason, ms",
    "client": "client address, as trusted proxies tell it",
    "peer": "address at the other end of the connection",
    "tls": "version and cipher of the downstream connection; empty if plain",
    "method": "request method",
    "host": "host asked for, without the port",
    "path": "path asked for, without the query: secrets hide there",
    "proto": '"http/1.1", "http/1.0", "tcp"',
    "status": "status sent to the client, 499 if it left before one was; 0 for tcp",
    "answered_by": "who answered or ended it: client, gateway, upstream",
    "reason": "one word of the closed list in errors.py",
    "rule": 'dotted name of the config rule that decided, such as "routes.api" or "listeners.web.limits.head"',
    "detail": "what the system said, such as an errno's text; no secrets",
    "t": "seconds by phase: tls, head, filters, queue, connect, first_byte, body, total; left out if it did not happen",
    "bytes_in": "bytes from the client, heads included",
    "bytes_out": "bytes to the client, heads included",
    "auth": "who the client is: the subject of its certificate, or as a filter proved it",
    "limit": "rate limit that applied, by filter name",
    "generation": "config generation that served it",
    "attempts_cut": "how many of the last attempts a full line left out; only there if any",
}
"""Field -> meaning, in the order of the line."""

ROOMS: Mapping[str, int] = {
    "id": 128,
    "trace": 64,
    "listener": 64,
    "route": 128,
    "upstream": 128,
    "endpoint": 128,
    "client": 64,
    "peer": 64,
    "tls": 64,
    "method": 32,
    "host": 255,  # RFC 1035 2.3.4: no name is longer
    "path": 1024,
    "proto": 16,
    "rule": 160,
    "detail": 300,
    "auth": 128,
    "limit": 64,
}
"""Bytes that each text is sure to get, escapes included; more only while the whole line has room."""
_ENDPOINT_ROOM = 128


def render(record: AccessRecord) -> bytes:
    """`record` as one JSON line with its line end: ASCII, at most `LINE_LIMIT` bytes whatever the client sent."""
    line = _line(record, ",".join([_attempt(attempt) for attempt in record.attempts]))
    if is_too_much(line):
        line = _cut_line(record)
    return line.encode("ascii")


def is_too_much(line: str) -> bool:
    """Whether a line has to be rendered again, with its texts cut: it is too long, or holds a surrogate.

    A surrogate is rare, and a client's own backslash is doubled, so this finds few lines that did not need it. To look
    for one character first is a tenth of the work, and most lines do not even have that.
    """
    return len(line) > LINE_LIMIT or ("\\" in line and "\\ud" in line)


def _line(r: AccessRecord, attempts: str, tail: str = "") -> str:
    """The line around `attempts`. A reason and a side are StrEnums: `quote` reads them as the text that they are."""
    return (
        f'{{"v":{SCHEMA},"ts":{r.ts:.6f},"id":{quote(r.id)},"trace":{quote(r.trace)},"listener":{quote(r.listener)},'
        f'"route":{quote(r.route)},"upstream":{quote(r.upstream)},"endpoint":{quote(r.endpoint)},"attempts":[{attempts}],'
        f'"client":{quote(r.client)},"peer":{quote(r.peer)},"tls":{quote(r.tls)},"method":{quote(r.method)},'
        f'"host":{quote(r.host)},"path":{quote(r.path)},"proto":{quote(r.proto)},"status":{r.status},'
        f'"answered_by":{quote(r.answered_by)},"reason":{quote(r.reason)},"rule":{quote(r.rule)},'
        f'"detail":{quote(r.detail)},"t":{{{_phases(r.t)}}},"bytes_in":{r.bytes_in},"bytes_out":{r.bytes_out},'
        f'"auth":{quote(r.auth)},"limit":{quote(r.limit)},"generation":{r.generation}{tail}}}\n'
    )


def _phases(t: Phases) -> str:
    times = (
        ('"tls":', t.tls),
        ('"head":', t.head),
        ('"filters":', t.filters),
        ('"queue":', t.queue),
        ('"connect":', t.connect),
        ('"first_byte":', t.first_byte),
        ('"body":', t.body),
    )
    happened = [f"{name}{seconds:.6f}," for name, seconds in times if seconds]
    return f'{"".join(happened)}"total":{t.total:.6f}'


def _attempt(attempt: Attempt) -> str:
    return f'{{"endpoint":{quote(attempt.endpoint)},"reason":{quote(attempt.reason)},"ms":{attempt.ms:.3f}}}'


def _cut_line(record: AccessRecord) -> str:
    """The line with each text in its room, and as many attempts, the first ones, as then still fit."""
    short = attrs.evolve(record)
    for name, room in ROOMS.items():
        setattr(short, name, cut(getattr(record, name), room))
    count = len(record.attempts)
    texts = [_attempt(attrs.evolve(a, endpoint=cut(a.endpoint, _ENDPOINT_ROOM))) for a in record.attempts]
    line = _line(short, ",".join(texts))
    while len(line) > LINE_LIMIT:
        texts.pop()
        line = _line(short, ",".join(texts), tail=f',"attempts_cut":{count - len(texts)}')
    return line
