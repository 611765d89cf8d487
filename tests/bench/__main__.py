"""`python -m tests.bench`: tcpgate beside nginx, HAProxy, Envoy and Caddy, on this machine, row by row.

Every proxy has one worker, pinned with all its processes to the last core; load generator and origin have the other
cores. A row starts every proxy anew, warms it up, and then measures one after the other, round by round, each round
beginning with another one, so that a drift of the machine hits all alike. Medians over the rounds are the figures.

    python -m tests.bench                                     all of it
    python -m tests.bench --rows small,post --peers tcpgate,nginx --rounds 3 --seconds 1
    python -m tests.bench --rows small --peers tcpgate,other --tree other=/path/to/another/checkout
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.bench.host import Cores, Ports20k, allow_files, say, split_cores, wait_for_turn
from tests.bench.install import install
from tests.bench.job import Job, Keys, Ports
from tests.bench.measure import PACED_LIMIT, Row, Running, Settings, wrk
from tests.bench.origin import LONG_BYTES, SMALL, echo_start, make_keys, write_origin
from tests.bench.peers import ROOT, Peer, rivals, tcpgate
from tests.bench.processes import Service, start, stopping
from tests.bench.report import SUBJECT, Judged, aligned, as_json, details, judge, markdown, medians, short, table
from tests.bench.rows import ROWS

READY_WITHIN = 20.0
QUICK_WITHIN = 110.0
"""Seconds after which the quick form begins no further row: CI waits for it."""
FOREIGN = 0.1
"""Share of other work on the proxy's core from which on the report tells of it."""


@attrs.define(eq=False)
class Bench:
    """One run of the benchmark."""

    options: argparse.Namespace
    peers: list[Peer]
    cores: Cores
    folder: Path
    free_port: Ports20k
    origins: tuple[int, int]
    echo: int
    keys: Keys
    problems: list[str]
    rounds: dict[str, dict[str, list[dict[str, float]]]] = attrs.field(factory=dict)
    rate: float | None = None

    def measure_all(self, rows: Sequence[Row]) -> None:
        """Every row, one after the other; what the quick form has no time for is told."""
        began = time.monotonic()
        for number, row in enumerate(rows, 1):
            if self.options.quick and time.monotonic() - began > QUICK_WITHIN:
                self.problem(
                    "this machine is too busy or slow; no time for: " + ", ".join(r.name for r in rows[number - 1 :])
                )
                return
            say(f"row {number} of {len(rows)}: {row.name}")
            self.measure_row(row)

    def measure_row(self, row: Row) -> None:
        """All rounds of one row, over proxies that start now and end with it."""
        peers = [peer for peer in self.peers if self.takes_part(peer, row)]
        with stopping() as services:
            running = [
                one for count in range(1, row.workers + 1) for one in self.start_all(peers, row, count, services)
            ]
            running = [one for one in running if self.is_ready(one, row)]
            if row.paced and self.rate is None:
                self.rate = self.options.rate or self.half_of_capacity(running)
            for one in running:
                self.measure_once(one, row, warm_up=True)
            for number in range(self.options.rounds):
                turn = number % max(1, len(running))
                for one in running[turn:] + running[:turn]:
                    self.measure_once(one, row)

    def takes_part(self, peer: Peer, row: Row) -> bool:
        """Whether this row can be asked of this proxy."""
        return (
            (peer.l4 or not row.l4)
            and (peer.reload is not None or not row.reloads)
            and (peer.one_process_per_worker or row.workers == 1)
        )

    def start_all(self, peers: Sequence[Peer], row: Row, workers: int, services: list[Service]) -> list[Running]:
        """All of them, without waiting."""
        found = []
        cores = (self.cores.proxy,) if row.workers == 1 else (self.cores.proxy, *self.cores.load)
        for peer in peers:
            folder = self.folder / f"{row.name}-{peer.name}-{workers}"
            ports = Ports(self.free_port(), self.free_port(), self.free_port(), self.origins, self.echo)
            job = Job(folder, ports, self.keys, workers)
            service = start(peer.name, peer.write(job), folder, cores=cores, env=peer.env, cwd=peer.cwd)
            services.append(service)
            found.append(Running(peer, job, service))
        return found

    def is_ready(self, one: Running, row: Row) -> bool:
        """Whether it came to answer, by HTTP and by TCP, with the origin's own words."""
        ports = [one.job.ports.http, *([one.job.ports.l4] if row.l4 else [])]
        said = ""
        for port in ports:
            deadline = time.monotonic() + READY_WITHIN
            while (said := status_of(port)) != "200":
                if time.monotonic() > deadline or one.service.process.poll() is not None:
                    say(f"{one.peer.name} said: {one.service.said()}")
                    last = (one.service.said().strip().splitlines() or ["nothing"])[-1][-200:]
                    self.problem(f"{row.name}: {one.peer.name} did not come up ({said}); its last line: {last}")
                    return False
                time.sleep(0.02)
        return True

    def half_of_capacity(self, running: Sequence[Running]) -> float:
        """The paced rows' rate, the same for all: half of what the subject carries, or of what the load can be."""
        one = next((one for one in running if one.peer.name == SUBJECT), running[0])
        wrk(one.job.ports.http, SMALL, 0.5, "fixed")
        rate = wrk(one.job.ports.http, SMALL, 1.0, "fixed")["rps"] / 2
        say(f"half of what {one.peer.name} carries: {rate:.0f} requests per second")
        return min(rate, PACED_LIMIT)

    def measure_once(self, one: Running, row: Row, *, warm_up: bool = False) -> None:
        """One round of one proxy; what breaks it is a problem that is told, and no figure."""
        seconds = min(0.3, self.options.seconds) if warm_up else self.options.seconds
        idle = self.options.idle_connections
        settings = Settings(seconds, min(10, idle) if warm_up else idle, self.rate)
        name = one.peer.name if row.workers == one.job.workers else f"{one.peer.name}/{one.job.workers}"
        try:
            figures = row.measure(one, settings)
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as exc:
            self.problem(f"{row.name}: {name}: {exc}")
            return
        finally:
            logged = self.empty_logs(one)
        if row.logged and not logged and figures.get("requests", 0) > 5000:
            self.problem(f"{row.name}: {name} wrote no access log: its figure is not comparable")
        if not warm_up:
            self.rounds.setdefault(row.name, {}).setdefault(name, []).append(figures)
            main = row.lines[0]
            shown = (
                f"{short(figures[main.figure])} {main.unit}"
                if main.figure in figures
                else f"{short(figures['busiest_us'])} us CPU of the busiest worker"
            )
            failed = f", {figures['failed']:.0f} FAILED" if figures.get("failed") else ""
            say(f"  {name:<12} {shown}{failed}")

    def empty_logs(self, one: Running) -> int:
        """Make room on the disk; how many bytes its logs had."""
        logged = 0
        for log in (*one.job.folder.glob("*.log"), one.job.folder / f"{one.service.name}.out"):
            logged += log.stat().st_size
            os.truncate(log, 0)
        return logged

    def busy_elsewhere(self) -> str:
        """A sentence on other work on the proxy's core, if it was more than the figures can bear."""
        shares = [
            one["foreign"] for row in self.rounds.values() for peer in row.values() for one in peer if "foreign" in one
        ]
        rough = [share for share in shares if share > FOREIGN]
        if not rough:
            return ""
        return (
            f"in {len(rough)} of {len(shares)} measurements other work had the proxy's core for more than "
            f"{FOREIGN:.0%} of the time (at most {max(rough):.0%}): caches were shared, figures are rough"
        )

    def problem(self, text: str) -> None:
        """Something that the report must tell."""
        self.problems.append(text)
        say(text)

    # -- results ----------------------------------------------------------------------------------------------------

    def found(self) -> dict[str, dict[str, dict[str, float]]]:
        """Row -> proxy -> medians."""
        result = {row: {peer: medians(one) for peer, one in peers.items()} for row, peers in self.rounds.items()}
        for peers in result.values():
            for name, figures in peers.items():
                if (single := peers.get(f"{name}/1")) is not None:
                    figures["scale"] = single["busiest_us"] / figures["busiest_us"]
                    figures["raw_scale"] = figures["rps"] / single["rps"]
        return result

    def judged(self) -> list[Judged]:
        """Every line of every row that was measured."""
        found = self.found()
        return [judge(line, found[row.name]) for row in ROWS if row.name in found for line in row.lines]


def status_of(port: int) -> str:
    """What a GET through the proxy is answered: the status, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", SMALL, headers={"X-Forwarded-For": "192.0.2.1"})
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as exc:
        return repr(exc)
    finally:
        connection.close()


# -- the command ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = ", ".join(row.name for row in ROWS)
    result = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--rows", metavar="A,B", help=f"only these: {names}")
    result.add_argument(
        "--peers", metavar="A,B", help="only these: tcpgate, nginx, haproxy, envoy, caddy, --tree's names"
    )
    result.add_argument("--rounds", type=int, default=5, help="measurements of each proxy in each row (5)")
    result.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (3)")
    result.add_argument("--rate", type=float, help="requests per second of the paced rows (half of tcpgate's capacity)")
    result.add_argument("--idle-connections", type=int, default=5000, metavar="N", help="of the row idle (5000)")
    result.add_argument("--tcpgate-tree", type=Path, default=ROOT, metavar="DIR", help="the checkout that tcpgate is")
    result.add_argument(
        "--tree", action="append", default=[], metavar="NAME=DIR", help="one more tcpgate, from another checkout"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    result.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    result.add_argument("--quick", action="store_true", help="every row once and short, for CI; figures are rough")
    result.add_argument("--no-install", action="store_true", help="use what is here, install nothing")
    return result


def chosen(names: str | None, every: dict[str, Any], what: str) -> list[Any]:
    """The named ones, in their own order."""
    if names is None:
        return list(every.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in every]:
        raise SystemExit(f"bench: no such {what}: {', '.join(unknown)}; there are {', '.join(every)}")
    return [value for name, value in every.items() if name in wanted]


def main() -> None:
    """Measure what the options ask for, and print it."""
    options = parser().parse_args()
    if options.quick:
        options.rounds, options.seconds, options.idle_connections = 1, 0.5, 500
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps nginx and HAProxy, and a user's PATH does not look
    problems = [] if options.no_install else install(45.0 if options.quick else 300.0)
    trees = [tcpgate(options.tcpgate_tree.resolve())]
    for name, _, folder in (tree.partition("=") for tree in options.tree):
        trees.append(tcpgate(Path(folder).resolve(), name))
    rows = chosen(options.rows, {row.name: row for row in ROWS}, "row")
    peers = chosen(options.peers, {peer.name: peer for peer in (*trees, *rivals())}, "peer")
    for peer in peers:
        if why := peer.missing():
            problems.append(f"left out: {peer.name}: {why}")
    peers = [peer for peer in peers if not peer.missing()]
    if shutil.which("wrk") is None or shutil.which("nginx") is None:
        print("bench: without wrk and nginx there is no load and no origin:", *problems, sep="\n  ")
        sys.exit(0 if options.quick else 1)
    allow_files(65536)
    stopped = False
    turn = wait_for_turn(problems, 10.0 if options.quick else 120.0)
    began = time.monotonic()
    cores = split_cores()
    with (
        tempfile.TemporaryDirectory(prefix="tcpgate-bench-", ignore_cleanup_errors=True) as name,
        stopping() as services,
    ):
        folder, free_port = Path(name), Ports20k()
        origins = (free_port(), free_port())
        long_bytes = LONG_BYTES if not options.quick else LONG_BYTES // 8
        command = write_origin(folder / "origin", origins, long_bytes)
        services.append(start("origin", command, folder / "origin", cores=cores.load))
        services.append(start("echo", echo_start(echo := free_port()), folder / "echo", cores=cores.load))
        keys = make_keys(folder / "keys")
        bench = Bench(options, peers, cores, folder, free_port, origins, echo, keys, problems)
        try:
            bench.measure_all(rows)
        except KeyboardInterrupt:
            bench.problem("stopped by hand: what follows is what there was")
            stopped = True
    turn.close()
    report(bench, time.monotonic() - began)
    if stopped:
        sys.exit(130)


def report(bench: Bench, seconds: float) -> None:
    """Print the tables; write the file."""
    judged, found, options = bench.judged(), bench.found(), bench.options
    names = [peer.name for peer in bench.peers]
    if judged:
        cells = table(judged, names)
        print(markdown(cells) if options.markdown else aligned(cells))
        if not options.markdown:
            print("\n" + aligned(details(found)))
    for text in (*bench.problems, *filter(None, [bench.busy_elsewhere()])):
        print(f"note: {text}")
    host = host_facts(bench)
    print(
        f"{host['cpu']}, {host['cores']} cores, Linux {host['kernel']}; "
        + "; ".join(f"{name} {version}" for name, version in host["versions"].items())
        + f"; {options.rounds} rounds of {options.seconds:g} s, {seconds:.0f} s in all"
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        document = {
            **host,
            "problems": bench.problems,
            "table": as_json(judged),
            "medians": found,
            "rounds": bench.rounds,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
        say(f"everything is in {options.json}")


def host_facts(bench: Bench) -> dict[str, Any]:
    """Where and with what it was measured."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "rounds_each": bench.options.rounds,
        "seconds_each": bench.options.seconds,
        "paced_rate": bench.rate,
        "versions": {peer.name: peer.version() for peer in bench.peers},
    }


if __name__ == "__main__":
    main()
