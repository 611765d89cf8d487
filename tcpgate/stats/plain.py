"""The access line of an exchange or a flow that went well, at the cost of one f-string.

Most exchanges are alike: one attempt, which worked, the endpoint's own answer, nothing that a filter has to tell.
What is the same for all of them stands in the code below, what is the same for a route's endpoint or for a connection
is rendered once by `target_of` and `connection_of` and kept by the caller. The bytes are those that `record.render`
makes of the equal `AccessRecord`, always: a test holds the two together. Pure.
"""

from __future__ import annotations

from functools import lru_cache

import attrs

from tcpgate.errors import Reason, Side
from tcpgate.stats.line import LINE_LIMIT, SCHEMA, quote
from tcpgate.stats.record import is_too_much


@attrs.frozen
class Target:
    """Where the exchanges of a route and an endpoint go, as it stands in their lines."""

    attempt: str
    """From the trace to the one attempt's time."""
    answer: str
    """From who answered to the first of the phases."""


def target_of(listener: str, route: str, upstream: str, endpoint: str, rule: str) -> Target:
    """The parts of a line that are the same for a route's endpoint."""
    return Target(
        f'"trace":"","listener":{quote(listener)},"route":{quote(route)},"upstream":{quote(upstream)},'
        f'"endpoint":{quote(endpoint)},"attempts":[{{"endpoint":{quote(endpoint)},"reason":{quote(Reason.OK)},"ms":',
        f'"answered_by":{quote(Side.UPSTREAM)},"reason":{quote(Reason.OK)},"rule":{quote(rule)},"detail":"","t":{{',
    )


def connection_of(client: str, peer: str, tls: str) -> str:
    """The part of a line that is the same for a connection."""
    return f'"client":{quote(client)},"peer":{quote(peer)},"tls":{quote(tls)},'


def request_of(method: str, host: str, path: str) -> str:
    """The part of a line that is the same for requests with the same head, up to the status."""
    return f'"method":{quote(method)},"host":{quote(host)},"path":{quote(path)},"proto":"http/1.1","status":'


def stamp_of(ts: float) -> str:
    """The line's beginning. Exchanges that end in the same turn of a loop may share it: it costs a fifth of a line."""
    return f'{{"v":{SCHEMA},"ts":{ts:.6f},"id":'


def render(
    stamp: str,
    id_: str,
    target: Target,
    connection: str,
    request: str,
    status: int,
    head: float,
    connect: float,
    first_byte: float,
    body: float,
    total: float,
    ms: float,
    bytes_in: int,
    bytes_out: int,
    generation: int,
) -> bytes | None:
    """The line of an HTTP/1.1 exchange that went well; None: it has to be cut, so make the record and render that.

    `head` to `total` are the phases in seconds (0.0: did not happen), `ms` is the attempt's time in milliseconds.
    """
    if head or connect or not first_byte or not body:  # seldom, where connections are kept and heads come in one piece
        times = _times(head, connect, first_byte, body)
    else:
        times = f'"first_byte":{first_byte:.6f},"body":{body:.6f},'
    line = (
        f"{stamp}{quote(id_)},{target.attempt}{ms:.3f}}}],{connection}{request}{status},{target.answer}{times}"
        f'"total":{total:.6f}}},'
        f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"auth":"","limit":"","generation":{generation}}}\n'
    )
    if len(line) > LINE_LIMIT or ("\\" in line and is_too_much(line)):  # the same test, mostly without the call
        return None
    return line.encode("ascii")


def render_flow(
    stamp: str,
    id_: str,
    listener: str,
    upstream: str,
    endpoint: str,
    client: str,
    peer: str,
    answered_by: Side,
    connect: float,
    total: float,
    bytes_in: int,
    bytes_out: int,
    generation: int,
) -> bytes | None:
    """The line of a tcp flow that went well at the first attempt; None as in `render`. Times in seconds."""
    attempt, answer = _flow_parts(listener, upstream, endpoint, answered_by)
    took = f'"connect":{connect:.6f},' if connect else ""
    line = (
        f'{stamp}{quote(id_)},{attempt}{connect * 1000:.3f}}}],"client":{quote(client)},"peer":{quote(peer)},{answer}'
        f'{took}"total":{total:.6f}}},'
        f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"auth":"","limit":"","generation":{generation}}}\n'
    )
    if is_too_much(line):
        return None
    return line.encode("ascii")


@lru_cache(4096)
def _flow_parts(listener: str, upstream: str, endpoint: str, answered_by: Side) -> tuple[str, str]:
    """What is the same for all flows to an endpoint: up to the attempt's time, and from the peer to the phases."""
    return (
        f'"trace":"","listener":{quote(listener)},"route":"","upstream":{quote(upstream)},"endpoint":{quote(endpoint)},'
        f'"attempts":[{{"endpoint":{quote(endpoint)},"reason":"ok","ms":',
        f'"tls":"","method":"","host":"","path":"","proto":"tcp","status":0,"answered_by":{quote(answered_by)},'
        f'"reason":"ok","rule":{quote("listeners." + listener)},"detail":"","t":{{',
    )


def _times(head: float, connect: float, first_byte: float, body: float) -> str:
    return (
        (f'"head":{head:.6f},' if head else "")
        + (f'"connect":{connect:.6f},' if connect else "")
        + (f'"first_byte":{first_byte:.6f},' if first_byte else "")
        + (f'"body":{body:.6f},' if body else "")
    )
