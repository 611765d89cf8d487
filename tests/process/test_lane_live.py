"""The lane's bounds where a real process is needed: memory, bursts of connections, and probes under full load.

Each test runs with the lane on and off, as those of tests/proxy/test_lane_bounds.py do: the promises are the gateway's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.gateway import Gateway, Nginx, Recorder, head_of, make_nginx, plain_answer, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
MIB = 1 << 20
FreePort = Callable[[], int]


@pytest.fixture(params=[True, False], ids=["lane", "readable"])
def lane(request: pytest.FixtureRequest) -> str:
    """The line of `[gateway]` that turns the lane on, or off."""
    return f"lane = {str(request.param).lower()}"


@pytest.fixture
def origin(tmp_path: Path, free_port: FreePort) -> Iterator[Nginx]:
    """nginx, with a file of 64 MiB at /big."""
    nginx = make_nginx(tmp_path / "nginx", free_port(), "location = /big { }")
    with (tmp_path / "nginx" / "big").open("wb") as big:
        big.truncate(64 * MIB)
    nginx.start()
    yield nginx
    nginx.kill()


def config(folder: Path, lane: str, port: int, origin: int, more: str = "") -> str:
    """One worker, one listener, one route."""
    return (
        head_of(folder, more=lane)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
max_connections = 20000
timeouts = {{ head = "60s" }}
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{origin}"]
pool = {{ max_connections = 4096 }}
{more}
"""
    )


async def memory(gateway: Gateway) -> int:
    """Resident bytes of the one worker."""
    (pid,) = (await gateway.workers()).values()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answers(sock: socket.socket, count: int) -> bytes:
    """Read so many answers of nginx's front page, which ends in a line feed; what came last."""
    said, seen = b"", 0
    while seen < count:
        said = sock.recv(1 << 16)
        if not said:
            raise AssertionError(f"closed after {seen} answers of {count}")
        seen += said.count(b"\norigin ")
    return said


# -- memory ---------------------------------------------------------------------------------------------------------


def unique_heads(port: int, first: int, count: int) -> None:
    """So many requests, every line of which is new, 50 at a time."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        for batch in range(first, first + count, 50):
            heads = []
            for number in range(batch, batch + 50):
                lines = "".join(f"X-{number}-{line}: {number:0320}{line}\r\n" for line in range(10))
                heads.append(f"GET /{number}?{number:0200} HTTP/1.1\r\nHost: h{number}.example\r\n{lines}\r\n")
            sock.sendall("".join(heads).encode())
            answers(sock, 50)


async def test_endless_unique_heads_and_lines_evict_and_do_not_grow(
    tmp_path: Path, free_port: FreePort, origin: Nginx, lane: str
) -> None:
    """40 MB of heads that never come again; what is remembered of them has been full long before their end."""
    port = free_port()
    async with running(tmp_path, config(tmp_path, lane, port, origin.port)) as gateway:
        at: list[int] = []
        for step in range(4):
            await trio.to_thread.run_sync(unique_heads, port, step * 3000, 3000)
            at.append(await memory(gateway))
        last = await gateway.access_line(lambda line: line["path"] == "/11999")
        assert (last["status"], last["reason"]) == (200, "ok")
    assert at[3] < at[1] + 6 * MIB, [size // MIB for size in at]


async def test_readers_that_stop_cost_the_worker_no_memory_and_the_others_nothing(
    tmp_path: Path, free_port: FreePort, origin: Nginx, lane: str
) -> None:
    port = free_port()
    async with running(tmp_path, config(tmp_path, lane, port, origin.port)) as gateway:
        await trio.to_thread.run_sync(unique_heads, port, 0, 50)
        before = await memory(gateway)
        with contextlib.ExitStack() as deaf:
            for _ in range(60):
                sock = deaf.enter_context(socket.create_connection(("127.0.0.1", port)))
                sock.sendall(b"GET /big HTTP/1.1\r\nHost: t\r\n\r\n" + GET)
            await trio.sleep(1)
            await trio.to_thread.run_sync(unique_heads, port, 50, 500)
            after = await memory(gateway)
    # 60 x 64 MiB were asked for; a read's worth of each may be on its way through the worker.
    assert after < before + 60 * MIB // 2, (before // MIB, after // MIB)


# -- bursts ---------------------------------------------------------------------------------------------------------


def burst(port: int, count: int) -> list[bytes]:
    """Connect so many clients before any of them says a word; then each asks, 500 at a time. What they got."""
    said = []
    with contextlib.ExitStack() as clients:
        sockets = [clients.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(count)]
        for at in range(0, count, 500):
            wave = sockets[at : at + 500]
            for sock in wave:
                sock.sendall(GET)
            said += [answers(sock, 1) for sock in wave]
    return said


async def test_a_burst_of_ten_thousand_accepts_is_served_to_the_last(
    tmp_path: Path, free_port: FreePort, origin: Nginx, lane: str
) -> None:
    """As many as this machine's file limit leaves room for on both sides, and ten thousand at most."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, limit - 2000)
    assert count > 500, f"a limit of {limit} open files is too low for a burst"
    port = free_port()
    async with running(tmp_path, config(tmp_path, lane, port, origin.port)) as gateway:
        said = await trio.to_thread.run_sync(burst, port, count)
        totals = (await gateway.api("GET", "/api/v1/status"))["totals"]
        assert totals["exchanges"] == totals["accepted"] == count
    assert len(said) == count
    assert all(one.startswith(b"HTTP/1.1 200 OK\r\n") for one in said)


# -- full load ------------------------------------------------------------------------------------------------------

PROBED = """
[routes.probed]
path = "/probed"
upstream = "probed"
[upstreams.probed]
endpoints = ["127.0.0.1:{port}"]
health = {{ http = "/healthz", interval = "100ms", timeout = "1s" }}
"""


def load(port: int, seconds: int) -> str:
    """What wrk says of so many seconds with 100 connections."""
    command = ["wrk", "-t1", "-c100", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


async def test_probes_run_on_time_and_others_are_served_while_the_worker_has_all_it_can_do(
    tmp_path: Path, free_port: FreePort, nursery: trio.Nursery, origin: Nginx, lane: str
) -> None:
    at: list[float] = []

    def answer(head: object, body: bytes) -> bytes:
        if b"/healthz" in getattr(head, "target", b""):
            at.append(trio.current_time())
        return plain_answer()

    recorder = Recorder(answer)
    probed = await nursery.start(recorder.serve)
    port = free_port()
    text = config(tmp_path, lane, port, origin.port, PROBED.format(port=probed))
    async with running(tmp_path, text) as gateway:
        done, said = trio.Event(), list[str]()

        async def loading() -> None:
            said.append(await trio.to_thread.run_sync(partial(load, port, 4)))
            done.set()

        async with trio.open_nursery() as under_load:
            under_load.start_soon(loading)
            await trio.sleep(0.5)
            began, served = trio.current_time(), 0
            while not done.is_set():
                served += await trio.to_thread.run_sync(one_exchange, port)
            ended = trio.current_time()
        state = (await gateway.endpoints("probed"))[f"127.0.0.1:{probed}"]["state"]
        events = await gateway.events("worker_hung")
    probes = [moment for moment in at if began <= moment <= ended]
    gaps = [after - before for before, after in itertools.pairwise(probes)]
    assert "Non-2xx" not in said[0], said[0]
    assert "Socket errors" not in said[0], said[0]
    assert served >= 3  # one after the other, each on a connection of its own
    # 100 ms apart on a quiet machine. This one has three processes on two cores: a third of the probes, none of them
    # lost for as long as it would take to eject the endpoint.
    assert len(probes) > (ended - began) / 0.3
    assert max(gaps) < 1.5
    assert (state, events) == ("healthy", [])
    nursery.cancel_scope.cancel()


def one_exchange(port: int) -> int:
    """A client that comes while others have the worker: connects, asks, is answered. 1."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(GET)
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
    return 1
