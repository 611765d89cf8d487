"""What the benchmark takes of the machine: cores, ports, file descriptors, and its turn among other benchmarks."""

from __future__ import annotations

import itertools
import os
import random
import resource
import socket
import sys
import time

import attrs


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout is the table."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@attrs.frozen
class Cores:
    """Who runs where."""

    proxy: int
    load: tuple[int, ...]


def split_cores() -> Cores:
    """The last core for the proxies, the others for load and origin; needs two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench: two cores are needed, one for the proxy and one for its load")
    os.sched_setaffinity(0, cores[:-1])
    return Cores(cores[-1], tuple(cores[:-1]))


class Ports20k:
    """Free ports below the range from which the kernel takes clients' own."""

    def __init__(self) -> None:
        self._next = itertools.cycle(range(20000, 32000))
        for _ in range(random.randrange(12000)):
            next(self._next)

    def __call__(self) -> int:
        for port in itertools.islice(self._next, 12000):
            with socket.socket() as sock:
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise SystemExit("bench: no free port")


def wait_for_turn(problems: list[str], patience: float) -> socket.socket:
    """What tells others that a benchmark runs on this machine: two at once would measure each other."""
    turn = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + patience
    while True:
        try:
            turn.bind("\0tcpgate-bench")
        except OSError:
            if time.monotonic() > deadline:
                problems.append("another benchmark ran at the same time: figures are rough")
                return turn
            if int(deadline - time.monotonic()) % 10 == 0:
                say("another benchmark runs on this machine: waiting for its end")
            time.sleep(1)
        else:
            return turn


def allow_files(count: int) -> None:
    """Let this process and its children open so many files, or as many as the host allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
