"""`tcpgate status`: how a gateway is, for a person who has a second.

Source: `GET /api/v1/status`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tcpgate import table

FEW = 5
"""Endpoints that are named; `tcpgate upstreams` has all."""

_TLS = ("handshakes", "resumed", "failed", "cert_left")

Row = dict[str, Any]


def glance(now: Row, width: int | None) -> Iterator[str]:
    """Lines that say how the gateway is. `now`: what the admin API says of it; `width`: as of `table.render`."""
    state = "stopping" if now["stopping"] else "ready" if now["ready"] else "starting"
    up, living, wanted = now["endpoints"], len(now["workers"]), now["workers_wanted"]
    since = table.span(now["uptime_seconds"])
    yield f"tcpgate {now['version']} is {state}: generation {now['generation']}, up {since}, pid {now['pid']}"
    last = now["last_reload"]
    yield (
        f"reload     {table.span(last['ago'])} ago: {last['summary'].removeprefix('reload: ')}"
        if last
        else "reload     none yet"
    )
    names = ", ".join(f"{one['endpoint']} {one['state']}" for one in up["out"][:FEW])
    more = f" and {up['total'] - up['up'] - FEW} more" if up["total"] - up["up"] > FEW else ""
    out = f"endpoints  {up['up']} of {up['total']} up" + (f"; out: {names}{more}" if names else "")
    yield table.cut(out, width or len(out))
    died = f"; {now['workers_died']} died and were replaced" if now["workers_died"] else ""
    yield f"workers    {living} of {wanted}{died}"
    if now["lane_share"] is not None:
        reused = f"; {table.percent(now['reuse_ratio'])} of attempts reused a connection" if now["reuse_ratio"] else ""
        yield f"lane       {table.percent(now['lane_share'])} of exchanges{reused}"
    yield from (f"restart    needed for {key}" for key in now["restart_needed_for"])
    yield from ([f"bugs       {now['bugs']} tasks failed and went on; the events say which"] if now["bugs"] else [])
    yield from (f"warning    {warning}" for warning in now["warnings"])
    yield "\n" + _listeners(now["listeners"], width)
    figures = ("worker", "pid", "generation", "connections", "exchanges", "lag", "longest_gc", "log_dropped")
    rows = [
        {**one, "worker": one["index"], "lag": table.ms(one["lag_us"]), "longest_gc": table.ms(one["gc_longest_us"])}
        for one in now["workers"]
    ]
    yield "\n" + table.render(rows, figures)


def _listeners(listeners: Iterable[Row], width: int | None) -> str:
    """The listeners; TLS has its columns where there is any."""
    columns = ("listener", "protocol", "connections", "accepted", "exchanges", "refused", *_TLS, "bind")
    return table.render([_listener_row(one) for one in listeners], columns, width=width, may_hide=_TLS)


def _listener_row(one: Row) -> Row:
    row = {**one, "listener": one["name"]}
    if "certificates" not in one:
        return {**row, "handshakes": None}  # it has none to make
    done, resumed = one["handshakes"], one["handshakes_resumed"]
    ends = min((certificate["days_left"] for certificate in one["certificates"]), default=None)
    left = None if ends is None else "ended" if ends < 0 else table.span(ends * 86400)
    more = {"resumed": table.percent(resumed / done if done else None), "failed": one["handshakes_failed"]}
    return {**row, "protocol": f"{one['protocol']}+tls", "cert_left": left, **more}
