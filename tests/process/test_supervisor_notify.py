"""What systemd hears, on a real NOTIFY_SOCKET: ready, reloads and how they ended, the watchdog, the drain."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.client import AdminClient
from tests.conftest import Eventually
from tests.gateway import session, talk, write
from tests.process.test_supervisor_live import config, started


@attrs.define
class Systemd:
    """The service manager's end."""

    sock: trio.socket.SocketType
    heard: list[dict[str, str]] = attrs.field(factory=list)

    async def hear_forever(self) -> None:
        with self.sock:
            while True:
                data = await self.sock.recv(65536)
                self.heard.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    async def wait(self, key: str, value: str = "", within: float = 30.0) -> dict[str, str]:
        """The next message with that assignment; earlier ones are dropped."""
        with trio.fail_after(within):
            while True:
                while self.heard:
                    message = self.heard.pop(0)
                    if key in message and message[key].startswith(value):
                        return message
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_systemd_hears_the_truth_from_the_start_to_the_end(
    tmp_path: Path, free_port: Callable[[], int], nursery: trio.Nursery, eventually: Eventually
) -> None:
    port = free_port()
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await sock.bind(str(tmp_path / "notify"))
    systemd = Systemd(sock)
    nursery.start_soon(systemd.hear_forever)
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    text = config(tmp_path, port, gateway='drain = "2s"')
    async with started(tmp_path, text, environ) as process:
        ready = await systemd.wait("READY", "1", within=40)
        assert ready["STATUS"].startswith("generation 1, 1 listener, 1 worker, ")
        assert (await talk(port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"hello")  # and it is true
        await systemd.wait("WATCHDOG", "1")

        # A reload that works.
        write(tmp_path / "gateway.toml", text.replace("hello", "good day"))
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        process.send_signal(signal.SIGHUP)
        reloading = await systemd.wait("RELOADING", "1")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert (await systemd.wait("READY", "1"))["STATUS"].startswith("generation 2, ")

        # One that does not.
        write(tmp_path / "gateway.toml", "[nonsense")
        process.send_signal(signal.SIGHUP)
        await systemd.wait("RELOADING", "1")
        status = (await systemd.wait("READY", "1"))["STATUS"]
        assert status.startswith("reload failed, generation 2 goes on: ")
        assert "gateway.toml:1" in status

        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\n")  # a head that never ends keeps the drain busy
        await eventually(lambda: _open_connections(tmp_path) == 1, what="the connection")
        process.send_signal(signal.SIGTERM)
        assert await systemd.wait("STOPPING", "1")
        assert "1 connections open" in (await systemd.wait("STATUS", "draining: "))["STATUS"]
        with trio.fail_after(30):
            assert await process.wait() == 0
        await stream.aclose()
    nursery.cancel_scope.cancel()


def _open_connections(folder: Path) -> int:
    status = AdminClient(f"unix:{folder}/admin.sock").call("GET", "/api/v1/status", timeout=30)
    return int(status["totals"]["connections"])


def _worker_of(supervisor: int) -> int:
    return next(pid for pid in session(supervisor) if pid != supervisor)


@pytest.mark.slow
async def test_the_watchdog_is_silent_while_no_worker_turns(
    tmp_path: Path, free_port: Callable[[], int], nursery: trio.Nursery
) -> None:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    await sock.bind(str(tmp_path / "notify"))
    systemd = Systemd(sock)
    nursery.start_soon(systemd.hear_forever)
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    text = config(tmp_path, free_port(), gateway='worker_silence = "1s"')
    async with started(tmp_path, text, environ) as process:
        await systemd.wait("READY", "1", within=40)
        os.kill(_worker_of(process.pid), signal.SIGSTOP)
        await trio.sleep(1.05)
        systemd.heard.clear()
        await trio.sleep(0.35)
        assert not any("WATCHDOG" in message for message in systemd.heard)
        await systemd.wait("WATCHDOG", "1")  # another worker has taken its place
    nursery.cancel_scope.cancel()
