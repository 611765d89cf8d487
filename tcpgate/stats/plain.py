"""The access line of an exchange or a flow that went well, at the cost of one format.

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

_LINE = b'%b"%b",%b%.3f}],%b%b%d,%b%b"total":%.6f},"bytes_in":%d,"bytes_out":%d,"auth":"","limit":"","generation":%d}\n'
"""With %, which for bytes takes half the time of an f-string that is encoded then."""
_USUAL_LINE = _LINE.replace(b'%b"total"', b'"first_byte":%.6f,"body":%.6f,"total"')


@attrs.frozen
class Target:
    """Where the exchanges of a route and an endpoint go, as it stands in their lines."""

    attempt: bytes
    """From the trace to the one attempt's time."""
    answer: bytes
    """From who answered to the first of the phases."""


def target_of(listener: str, route: str, upstream: str, endpoint: str, rule: str) -> Target:
    """The parts of a line that are the same for a route's endpoint."""
    return Target(
        f'"trace":"","listener":{quote(listener)},"route":{quote(route)},"upstream":{quote(upstream)},'
        f'"endpoint":{quote(endpoint)},"attempts":[{{"endpoint":{quote(endpoint)},"reason":{quote(Reason.OK)},"ms":'.encode(
            "ascii"
        ),
        f'"answered_by":{quote(Side.UPSTREAM)},"reason":{quote(Reason.OK)},"rule":{quote(rule)},"detail":"","t":{{'.encode(
            "ascii"
        ),
    )


def connection_of(client: str, peer: str, tls: str) -> bytes:
    """The part of a line that is the same for a connection."""
    return f'"client":{quote(client)},"peer":{quote(peer)},"tls":{quote(tls)},'.encode("ascii")


def request_of(method: bytes, host: bytes, path: bytes, proto: bytes = b"http/1.1") -> bytes:
    """The part of a line that is the same for requests with the same head, up to the status. Texts without escapes."""
    return b'"method":"%b","host":"%b","path":"%b","proto":"%b","status":' % (method, host, path, proto)


def stamp_of(ts: float) -> bytes:
    """The line's beginning. Exchanges that end in the same turn of a loop may share it: it costs a fifth of a line."""
    return b'{"v":%d,"ts":%.6f,"id":' % (SCHEMA, ts)


def render(
    stamp: bytes,
    id_: bytes,
    target: Target,
    connection: bytes,
    request: bytes,
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
    tls: float = 0.0,
) -> bytes | None:
    """The line of an HTTP/1.1 exchange that went well; None: it has to be cut, so make the record and render that.

    `id_` needs no escapes. `head` to `total` and `tls` are the phases in seconds (0.0: did not happen), `ms` is the
    attempt's time in milliseconds.
    """
    if head or connect or tls or not first_byte or not body:  # seldom, once a connection is kept and heads are whole
        line = _LINE % (
            stamp, id_, target.attempt, ms, connection, request, status, target.answer,
            _times(tls, head, connect, first_byte, body), total, bytes_in, bytes_out, generation,
        )  # fmt: skip
    else:
        line = _USUAL_LINE % (
            stamp, id_, target.attempt, ms, connection, request, status, target.answer,
            first_byte, body, total, bytes_in, bytes_out, generation,
        )  # fmt: skip
    if len(line) > LINE_LIMIT or (b"\\" in line and is_too_much(line.decode("ascii"))):  # mostly without the call
        return None
    return line


def render_flow(
    stamp: bytes,
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
        f'{quote(id_)},{attempt}{connect * 1000:.3f}}}],"client":{quote(client)},"peer":{quote(peer)},{answer}'
        f'{took}"total":{total:.6f}}},'
        f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},"auth":"","limit":"","generation":{generation}}}\n'
    )
    if is_too_much(line) or len(stamp) + len(line) > LINE_LIMIT:
        return None
    return stamp + line.encode("ascii")


@lru_cache(4096)
def _flow_parts(listener: str, upstream: str, endpoint: str, answered_by: Side) -> tuple[str, str]:
    """What is the same for all flows to an endpoint: up to the attempt's time, and from the peer to the phases."""
    return (
        f'"trace":"","listener":{quote(listener)},"route":"","upstream":{quote(upstream)},"endpoint":{quote(endpoint)},'
        f'"attempts":[{{"endpoint":{quote(endpoint)},"reason":"ok","ms":',
        f'"tls":"","method":"","host":"","path":"","proto":"tcp","status":0,"answered_by":{quote(answered_by)},'
        f'"reason":"ok","rule":{quote("listeners." + listener)},"detail":"","t":{{',
    )


def _times(tls: float, head: float, connect: float, first_byte: float, body: float) -> bytes:
    return (
        (b'"tls":%.6f,' % tls if tls else b"")
        + (b'"head":%.6f,' % head if head else b"")
        + (b'"connect":%.6f,' % connect if connect else b"")
        + (b'"first_byte":%.6f,' % first_byte if first_byte else b"")
        + (b'"body":%.6f,' % body if body else b"")
    )
