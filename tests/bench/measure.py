"""How a row is measured: what is asked of one proxy, and what that gives.

Every measurement gives a mapping of figures. `cpu_us` is the CPU time of all processes of the proxy, by the kernel's
accounting, over the requests that the load generator saw answered; so a slow load generator or origin does not change
it, and neither does a proxy that shares its core.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.bench.job import Job
from tests.bench.origin import ECHO, LONG, SMALL
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
    logged: bool = True
    """Whether there is an access line for each request; a flow and a tunnel have theirs at their end."""


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
def wrk_running(port: int, path: str, *more: str, secure: bool = False) -> Iterator[subprocess.Popen[str]]:
    """wrk, until it is told to end; gone at the end. `more` begins with options and ends with `--` and the mode."""
    url = f"http{'s' if secure else ''}://127.0.0.1:{port}{path}"
    command = ["wrk", "-t1", "-d600", "--timeout", "10s", "-s", str(HERE / "wrk.lua"), url]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> dict[str, float]:
    """What it has to say once it is told to end: its own clock knows whole seconds only, and SIGINT ends it as well."""
    process.send_signal(signal.SIGINT)
    return wrk_figures(process.communicate(timeout=30)[0])


def wrk(port: int, path: str, seconds: float, mode: str, *more: str, secure: bool = False) -> dict[str, float]:
    """One run of wrk over keep-alive connections, as fast as it goes."""
    with wrk_running(port, path, f"-c{CONNECTIONS}", *more, "--", mode, secure=secure) as process:
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


def requests(path: str, mode: str = "fixed", *more: str, l4: bool = False, secure: bool = False) -> Measure:
    """CPU per request under as much load as the other core can make."""

    def measure(running: Running, settings: Settings) -> dict[str, float]:
        ports = running.job.ports
        port = ports.l4 if l4 else ports.https if secure else ports.http
        with accounted(running.service) as figures:
            said = wrk(port, path, settings.seconds, mode, *more, secure=secure)
        cpu_us = figures["cpu_ns"] / 1e3 / max(1.0, said["requests"])
        return {**said, **figures, "cpu_us": cpu_us}

    return measure


def bulk(*, l4: bool = False, secure: bool = False) -> Measure:
    """CPU per GB (10^9 bytes) of one long response after the other, one connection at a time."""

    def measure(running: Running, settings: Settings) -> dict[str, float]:
        ports = running.job.ports
        port = ports.l4 if l4 else ports.https if secure else ports.http
        with accounted(running.service) as figures:
            more = ["--tls"] if secure else []
            reader = client("bulk", port, LONG, "--seconds", str(settings.seconds), *more)
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


def handshakes(*more: str) -> Measure:
    """CPU per connection with a TLS handshake and one small request."""

    def measure(running: Running, settings: Settings) -> dict[str, float]:
        with accounted(running.service) as figures:
            caller = client("handshakes", running.job.ports.https, SMALL, "--seconds", str(settings.seconds), *more)
            with ending(caller):
                said = answer(caller)
        return {**said, **figures, "cpu_us": figures["cpu_ns"] / 1e3 / max(1.0, said["requests"])}

    return measure


H2LOAD_SAID = re.compile(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")
H2_CONNECTIONS, H2_STREAMS = 10, 10


def streams(running: Running, settings: Settings) -> dict[str, float]:
    """CPU per request over HTTP/2 (TLS), ten streams at a time on each of ten connections, by h2load."""
    url = f"https://127.0.0.1:{running.job.ports.https}{SMALL}"
    seconds = max(1, round(settings.seconds))  # h2load knows whole ones only
    many = [f"-c{H2_CONNECTIONS}", f"-m{H2_STREAMS}", "-t1", f"--duration={seconds}"]
    with accounted(running.service) as figures:
        command = ["h2load", *many, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    match = H2LOAD_SAID.search(done.stdout)
    if match is None or "protocol: h2" not in done.stdout:
        raise RuntimeError(f"h2load said: {(done.stdout + done.stderr)[-300:]}")
    finished, well, failed, errored = map(int, match.groups())
    failed = max(failed + errored, finished - well)
    return {
        **figures,
        "requests": well,
        "failed": failed,
        "rps": well / seconds,
        "cpu_us": figures["cpu_ns"] / 1e3 / max(1, well),
    }


def messages(running: Running, settings: Settings) -> dict[str, float]:
    """CPU per WebSocket message of 100 bytes that went to the endpoint and came back."""
    with accounted(running.service) as figures:
        more = ["--seconds", str(settings.seconds), "--count", str(CONNECTIONS)]
        caller = client("messages", running.job.ports.http, ECHO, *more)
        with ending(caller):
            said = answer(caller)
    return {**said, **figures, "cpu_us": figures["cpu_ns"] / 1e3 / max(1.0, said["requests"])}
