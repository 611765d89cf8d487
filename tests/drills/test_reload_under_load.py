"""Reload: 100 of them under load lose nothing, and tunnels and flows that they do not concern stay open."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.gateway import Gateway, head_of, make_nginx, running, write

TUNNELS = FLOWS = 200


def config(folder: Path, port: int, tcp_port: int, echo: int, origins: list[int], number: int) -> str:
    """Config number `number`: endpoints come and go, weights and routes change each time."""
    kept = [origin for index, origin in enumerate(origins) if (index + number) % 3]
    endpoints = ", ".join(f'{{ address = "127.0.0.1:{one}", weight = {1 + number % 5} }}' for one in kept)
    return (
        head_of(folder, workers=2)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
[listeners.db]
bind = ["127.0.0.1:{tcp_port}"]
protocol = "tcp"
upstream = "echo"
[routes.all]
upstream = "api"
[routes.tunnel]
path = "/tunnel"
upstream = "echo"
[routes.extra{number}]
path = "/extra/{number}"
upstream = "api"
[upstreams.api]
balance = "weighted_round_robin"
endpoints = [{endpoints}]
health = {{ http = "/healthz", interval = "500ms", timeout = "2s" }}
[upstreams.echo]
endpoints = ["127.0.0.1:{echo}"]
"""
    )


async def serve_echo(task_status: trio.TaskStatus[int]) -> None:
    """An origin that takes any upgrade, and echoes: over tunnels after the 101, over flows from the first byte."""

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            first = await stream.receive_some(65536)
            if first.startswith(b"GET /tunnel"):
                while b"\r\n\r\n" not in first:
                    first += await stream.receive_some(65536)
                await stream.send_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
                )
            else:
                await stream.send_all(first)
            while data := await stream.receive_some(65536):
                await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


async def keep_talking(port: int, first: bytes, over: trio.Event, opened: list[int], lost: list[str]) -> None:
    """One long connection: it must answer again and again until the drill is over."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        if first:
            await stream.send_all(first)
            said = b""
            while b"\r\n\r\n" not in said:
                chunk = await stream.receive_some(4096)
                if not chunk:
                    lost.append("refused the upgrade")
                    return
                said += chunk
            assert said.startswith(b"HTTP/1.1 101"), said
        opened.append(1)
        while not over.is_set():
            try:
                await stream.send_all(b"ping")
                said = b""
                while len(said) < 4:
                    chunk = await stream.receive_some(4)
                    if not chunk:
                        lost.append("closed")
                        return
                    said += chunk
            except trio.BrokenResourceError as exc:
                lost.append(repr(exc))
                return
            with trio.move_on_after(1):
                await over.wait()


@pytest.mark.drill
async def test_a_hundred_reloads_under_load_fail_nothing_and_close_nothing(
    tmp_path: Path, free_port: Callable[[], int], nursery: trio.Nursery, drill_scale: float
) -> None:
    requests, reloads = int(100_000 * drill_scale), max(10, int(100 * drill_scale))
    ports = [free_port() for _ in range(3)]
    origins = [make_nginx(tmp_path / f"nginx{port}", port) for port in ports]
    port, tcp_port = free_port(), free_port()
    echo = await nursery.start(serve_echo)
    try:
        for origin in origins:
            origin.start()
        async with running(tmp_path / "gate", config(tmp_path / "gate", port, tcp_port, echo, ports, 0)) as gateway:
            await _drill(gateway, tmp_path / "gate", port, tcp_port, echo, ports, requests, reloads)
    finally:
        for origin in origins:
            origin.kill()
    nursery.cancel_scope.cancel()


async def _generation(gateway: Gateway) -> int:
    return int((await gateway.api("GET", "/api/v1/status"))["generation"])


async def _drill(
    gateway: Gateway, folder: Path, port: int, tcp_port: int, echo: int, ports: list[int], requests: int, reloads: int
) -> None:
    over, opened, lost = trio.Event(), list[int](), list[str]()
    upgrade = b"GET /tunnel HTTP/1.1\r\nHost: t\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
    served = failed = 0
    async with trio.open_nursery() as nursery:
        for _ in range(TUNNELS):
            nursery.start_soon(keep_talking, port, upgrade, over, opened, lost)
        for _ in range(FLOWS):
            nursery.start_soon(keep_talking, tcp_port, b"", over, opened, lost)
        with trio.fail_after(60):
            while len(opened) < TUNNELS + FLOWS:
                await trio.sleep(0.05)
        number = 0
        # Signals that come during a reload share the next one, so a slow machine needs more of them.
        while served < requests or number < reloads or await _generation(gateway) < reloads / 2:
            load = await trio.lowlevel.open_process(
                ["wrk", "-t1", "-c16", "-d5", "--timeout", "10s", f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE
            )
            while load.poll() is None:
                number += 1
                write(gateway.config, config(folder, port, tcp_port, echo, ports, number))
                gateway.signal(signal.SIGHUP)
                await trio.sleep(5 / max(10, reloads * 5 / 60))
            assert load.stdout is not None
            said = b""
            async with load.stdout:
                async for chunk in load.stdout:
                    said += chunk
            found = re.search(rb"(\d+) requests in", said)
            assert found, said
            served += int(found[1])
            failed += sum(int(n) for n in re.findall(rb"(?:connect|read|write|timeout|responses:) (\d+)", said))
        over.set()
    status = await gateway.api("GET", "/api/v1/status")
    print(f"{served} requests, {number} reloads, {failed} failed, {len(lost)} connections lost; {status['reloads']}")
    assert failed == 0
    assert lost == []
    assert status["reloads"]["failed"] == 0
    assert status["generation"] >= reloads / 2
    statuses = [line["status"] for line in gateway.access_lines() if line["route"] == "all"]
    # wrk leaves its last requests behind when its time is up: those are its own doing.
    assert set(statuses) <= {200, 499}
    assert statuses.count(499) <= 16 * (1 + len(statuses) // 1000)
