"""The rows: what is asked of every proxy, how it is measured, and which figure is held against which limit.

Every measurement gives a mapping of figures. `cpu_us` is the CPU time of all processes of the proxy, by the kernel's
accounting, over the requests that the load generator saw answered; so a slow load generator or origin does not change
it, and neither does a proxy that shares its core.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.bench.job import Job
from tests.bench.origin import HUNDRED, LONG, RAW, SMALL
from tests.bench.peers import Peer
from tests.bench.processes import Service, core_busy_s, spent_ns
from tests.bench.report import Line, wrk_figures

HERE = Path(__file__).parent
CONNECTIONS = 64
PROBES = 3000.0
"""Requests per second of the paced rows that are measured one by one; the rest of the rate is made by wrk, which costs
its core a fifth as much."""
PACED_CONNECTIONS = 128
PACED_LIMIT = 30_000.0
"""Requests per second that load and origin bear on one core with time to spare."""
RELOADS_PER_SECOND = 10
FIXED = ["-H", "User-Agent: bench/1.0", "-H", "Accept: */*", "-H", "Accept-Encoding: gzip"]


@attrs.frozen
class Settings:
    """How long, how much."""

    seconds: float
    idle_connections: int
    rate: float | None = None
    """Of the paced rows, requests per second; None: half of what the subject was seen to carry."""


@attrs.define
class Running:
    """A proxy under way."""

    peer: Peer
    job: Job
    service: Service
    fresh_kb: int | None = None
    """What it held before its first idle connections: what it keeps of them is still their cost in the next round."""


Measure = Callable[[Running, Settings], dict[str, float]]


@attrs.frozen
class Row:
    """One kind of load."""

    name: str
    lines: tuple[Line, ...]
    measure: Measure
    l4: bool = False
    workers: int = 1
    paced: bool = False
    reloads: bool = False


# -- measuring ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accounted(service: Service) -> Iterator[dict[str, float]]:
    """A mapping that gets `cpu_ns` and `peak_mb` of what happens inside, and `foreign`: the share of the time in which
    somebody else had the proxy's core, from the machine's other work. Ticks are coarse; short runs make it rough."""
    figures: dict[str, float] = {}
    service.forget_peak()
    began, busy, before = time.monotonic(), core_busy_s(service.cores[0]), service.cpu_ns()
    yield figures
    figures["cpu_ns"] = spent_ns(before, service.cpu_ns())
    busy, wall = core_busy_s(service.cores[0]) - busy, time.monotonic() - began
    if len(service.cores) == 1:
        figures["foreign"] = max(0.0, busy - figures["cpu_ns"] / 1e9) / wall
    figures["peak_mb"] = service.peak_kb() / 1024


@contextlib.contextmanager
def wrk_running(port: int, path: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """wrk, until it is told to end; gone at the end. `more` begins with options and ends with `--` and the mode."""
    command = ["wrk", "-t1", "-d600", "--timeout", "10s", "-s", str(HERE / "wrk.lua"), f"http://127.0.0.1:{port}{path}"]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> dict[str, float]:
    """What it has to say once it is told to end: its own clock knows whole seconds only, and SIGINT ends it as well."""
    process.send_signal(signal.SIGINT)
    return wrk_figures(process.communicate(timeout=30)[0])


def wrk(port: int, path: str, seconds: float, mode: str, *more: str) -> dict[str, float]:
    """One run of wrk over keep-alive connections, as fast as it goes."""
    with wrk_running(port, path, f"-c{CONNECTIONS}", *more, "--", mode) as process:
        time.sleep(seconds)
        return ended(process)


def client(kind: str, port: int, path: str, *more: str) -> subprocess.Popen[str]:
    """One of client.py's kinds, started."""
    command = [sys.executable, str(HERE / "client.py"), kind, str(port), path, *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """Its next line; what it had to say instead is the error."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the client ended with exit code {process.wait(10)}")
    said: dict[str, float] = json.loads(line)
    return said


@contextlib.contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A client that is gone at the end."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def requests(path: str, mode: str = "fixed", *more: str, l4: bool = False) -> Measure:
    """CPU per request under as much load as the other core can make."""

    def measure(running: Running, settings: Settings) -> dict[str, float]:
        ports = running.job.ports
        with accounted(running.service) as figures:
            said = wrk(ports.l4 if l4 else ports.http, path, settings.seconds, mode, *more)
        cpu_us = figures["cpu_ns"] / 1e3 / max(1.0, said["requests"])
        return {**said, **figures, "cpu_us": cpu_us}

    return measure


def bulk(*, l4: bool = False) -> Measure:
    """CPU per GB (10^9 bytes) of one long response after the other, one connection at a time."""

    def measure(running: Running, settings: Settings) -> dict[str, float]:
        port = running.job.ports.l4 if l4 else running.job.ports.http
        with accounted(running.service) as figures:
            reader = client("bulk", port, LONG, "--seconds", str(settings.seconds))
            with ending(reader):
                said = answer(reader)
        gigabytes = said["bytes"] / 1e9
        return {
            **said,
            **figures,
            "cpu_ms_gb": figures["cpu_ns"] / 1e6 / gigabytes,
            "gb_s": gigabytes / said["seconds"],
            "rps": said["requests"] / said["seconds"],
            "failed": 0,
        }

    return measure


def idle(running: Running, settings: Settings) -> dict[str, float]:
    """Memory per idle keep-alive connection that served one request: what the proxy's processes hold more than before,
    over their number. What the kernel holds for the sockets is not in it."""
    service = running.service
    if running.fresh_kb is None:
        running.fresh_kb = service.resident_kb()
    with accounted(service) as figures:
        holder = client("idle", running.job.ports.http, SMALL, "--count", str(settings.idle_connections))
        with ending(holder):
            said = answer(holder)
            time.sleep(0.3)  # what was freed after the last answer
            after = service.resident_kb()
            assert holder.stdin is not None
            holder.stdin.close()
            closed = answer(holder)["closed_early"]
    return {**said, **figures, "kb": (after - running.fresh_kb) / said["requests"], "failed": closed}


def paced(running: Running, settings: Settings) -> dict[str, float]:
    """Latencies and the longest stall at a fixed rate, as client.py defines them.

    A rate above PROBES is made up by wrk, whose connections rest between requests; its latencies do not count.
    """
    assert settings.rate is not None
    port = running.job.ports.http
    probes = min(PROBES, settings.rate)
    pace = ["--rate", f"{probes:.1f}", "--seconds", str(settings.seconds)]
    with contextlib.ExitStack() as stack, accounted(running.service) as figures:
        others: dict[str, float] = {"requests": 0, "failed": 0, "rps": 0}
        wrk_process = None
        if settings.rate > probes:
            rest_ms = 1e3 * PACED_CONNECTIONS / (settings.rate - probes)
            paced_wrk = wrk_running(port, SMALL, f"-c{PACED_CONNECTIONS}", *FIXED, "--", "paced", f"{rest_ms:.3f}")
            wrk_process = stack.enter_context(paced_wrk)
            time.sleep(0.1)  # until all of it is connected
        said = answer(stack.enter_context(ending(client("paced", port, SMALL, *pace))))
        if wrk_process is not None:
            others = ended(wrk_process)
    return {
        **said,
        **figures,
        "rps": probes + others["rps"],
        "failed": said["failed"] + others["failed"],
        "filler_failed": others["failed"],
        "stall_ms": said["stall_us"] / 1e3,
        "cpu_us": figures["cpu_ns"] / 1e3 / max(1.0, said["requests"] + others["requests"]),
    }


def reloaded(running: Running, settings: Settings) -> dict[str, float]:
    """`paced`, while a config with another weight is taken up ten times a second, or as fast as it can be."""
    over = threading.Event()
    done = [0]
    broken: list[BaseException] = []

    def reload() -> None:
        began = time.monotonic()
        while not over.wait(max(0.0, began + done[0] / RELOADS_PER_SECOND - time.monotonic())):
            try:
                job = attrs.evolve(running.job, weight=2 + done[0] % 5)
                running.peer.write(job)
                assert running.peer.reload is not None
                running.peer.reload(job, running.service)
            except Exception as exc:
                broken.append(exc)
                return
            done[0] += 1

    thread = threading.Thread(target=reload)
    began = time.monotonic()
    thread.start()
    try:
        figures = paced(running, settings)
    finally:
        over.set()
        thread.join()
    if broken:
        raise RuntimeError(f"a reload failed: {broken[0]}")
    # wrk takes an idle connection that a reload closes for an error; the probes know better.
    figures["failed"] -= figures["filler_failed"]
    del figures["cpu_us"]  # what a worker spent that a reload ended is not in it
    return {**figures, "reloads_s": done[0] / (time.monotonic() - began)}


def share_of_busiest(running: Running, settings: Settings) -> dict[str, float]:
    """CPU that the busiest thread of the proxy spent per request of all: what one core had to give.

    Its inverse is the capacity over cores that have nothing else to do, with what the workers cost each other and how
    evenly they share the connections in it. On two cores load and origin need their part too, so the requests per
    second that are seen cannot double; both are in the table, and the capacity is held against the limit.
    """
    service = running.service
    before = service.busy_ns()
    figures = requests(SMALL, "fixed", *FIXED)(running, settings)
    after = service.busy_ns()
    busiest = max(after[task] - before.get(task, 0) for task in after)
    return {**figures, "busiest_us": busiest / 1e3 / max(1.0, figures["requests"])}


# -- the table ------------------------------------------------------------------------------------------------------


def line(row: str, title: str, figure: str, unit: str, **limits: float) -> Line:
    """A line whose keyword limits are peers, or `at_most` and `at_least`."""
    at_most, at_least = limits.pop("at_most", None), limits.pop("at_least", None)
    return Line(row, title, figure, unit, limits, at_most, at_least)


def cpu(name: str, title: str, measure: Measure, *, l4: bool = False, **limits: float) -> Row:
    """A row whose figure is CPU per request."""
    return Row(name, (line(name, title, "cpu_us", "us CPU", **limits),), measure, l4=l4)


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
