"""The rows: what is asked of every proxy, and which figure is held against which limit. How: measure.py."""

from __future__ import annotations

from tests.bench.measure import (
    FIXED,
    Measure,
    Row,
    bulk,
    handshakes,
    idle,
    messages,
    paced,
    reloaded,
    requests,
    share_of_busiest,
    streams,
)
from tests.bench.origin import HUNDRED, RAW, SMALL
from tests.bench.report import Line


def line(row: str, title: str, figure: str, unit: str, **limits: float) -> Line:
    """A line whose keyword limits are peers, or `at_most` and `at_least`."""
    at_most, at_least = limits.pop("at_most", None), limits.pop("at_least", None)
    return Line(row, title, figure, unit, limits, at_most, at_least)


def cpu(name: str, title: str, measure: Measure, *, l4: bool = False, **limits: float) -> Row:
    """A row whose figure is CPU per request."""
    return Row(name, (line(name, title, "cpu_us", "us CPU", **limits),), measure, l4=l4, logged=not l4)


CLOSE = [*FIXED, "-H", "Connection: close"]
# Exactly 100 bytes with the request line and Host that wrk writes (a port has five digits).
PADDED = ["-H", "X: " + "x" * 52]

ROWS = (
    cpu("small", "small GET, one head", requests(SMALL, "fixed", *FIXED), nginx=1.2, envoy=0.45, caddy=0.25),
    cpu("headers", "GET, 11 unique headers", requests(SMALL, "headers"), nginx=1.4, envoy=0.55, caddy=0.3),
    cpu("post", "POST 1 KiB", requests(SMALL, "post", *FIXED), nginx=1.4, envoy=0.6),
    cpu("100k", "100 KiB response", requests(HUNDRED, "fixed", *FIXED), nginx=0.9, envoy=1.0),
    Row("1g", (line("1g", "1 GiB response", "cpu_ms_gb", "ms CPU/GB", nginx=0.4, envoy=0.9),), bulk()),
    cpu("new", "new connection each", requests(SMALL, "fixed", *CLOSE), nginx=2.0, envoy=1.0),
    Row(
        "l4-bulk",
        (line("l4-bulk", "L4 bulk", "cpu_ms_gb", "ms CPU/GB", nginx=0.4, haproxy=0.4, envoy=0.7),),
        bulk(l4=True),
        l4=True,
        logged=False,
    ),
    cpu(
        "l4-new",
        "L4 new connection",
        requests(RAW, "fixed", *PADDED, "-H", "Connection: close", l4=True),
        l4=True,
        haproxy=1.5,
        envoy=1.0,
    ),
    cpu("l4-small", "L4 100-byte exchange", requests(RAW, "fixed", *PADDED, l4=True), l4=True, nginx=1.3, envoy=1.0),
    cpu(
        "tls",
        "TLS: small GET, kept alive",
        requests(SMALL, "fixed", *FIXED, secure=True),
        nginx=1.6,
        envoy=0.7,
    ),
    cpu("tls-new", "TLS: full handshake and a GET", handshakes(), nginx=1.5),
    cpu("tls-resumed", "TLS: resumed handshake and a GET", handshakes("--resume"), nginx=1.5),
    Row("tls-1g", (line("tls-1g", "TLS: 1 GiB response", "cpu_ms_gb", "ms CPU/GB", nginx=0.9),), bulk(secure=True)),
    cpu("h2", "HTTP/2 over TLS, 10 streams", streams, envoy=2.5),
    Row(
        "websocket",
        (
            line("websocket", "WebSocket message and its echo", "cpu_us", "us CPU"),
            line("websocket", "WebSocket messages seen", "rps", "1/s"),
        ),
        messages,
        logged=False,
    ),
    Row("idle", (line("idle", "idle connection", "kb", "KB", at_most=6.0),), idle),
    Row(
        "paced",
        (
            line("paced", "half load: p99", "p99_us", "us", nginx=2.0),
            line("paced", "half load: p99.9", "p999_us", "us"),
            line("paced", "half load: longest stall", "stall_ms", "ms", at_most=20.0),
        ),
        paced,
        paced=True,
    ),
    Row(
        "reloads",
        (
            line("reloads", "10 reloads/s: p99", "p99_us", "us", nginx=2.0),
            line("reloads", "10 reloads/s: longest stall", "stall_ms", "ms", at_most=20.0),
        ),
        reloaded,
        paced=True,
        reloads=True,
    ),
    Row(
        "workers",
        (
            line("workers", "two workers / one: capacity", "scale", "x", at_least=1.8),
            line("workers", "two workers / one: req/s seen", "raw_scale", "x"),
        ),
        share_of_busiest,
        workers=2,
    ),
)
