"""The whole gateway, and real origins behind it, for tests and drills: processes, sockets and signals, nothing faked.

    async with running(tmp_path, config_text) as gateway:
        ...
        await gateway.reload(other_text)

Every process is started by the test, told to stop by pid, and killed if it does not; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import h11
import pytest
import trio

from tcpgate.client import AdminClient, AdminError

START_WITHIN = 40.0
STOP_WITHIN = 40.0

Json = Any


@attrs.define(eq=False)
class Gateway:
    """A running `tcpgate run`."""

    folder: Path
    process: trio.Process
    admin: AdminClient

    @property
    def config(self) -> Path:
        """Its config file."""
        return self.folder / "gateway.toml"

    async def api(self, method: str, path: str, document: Json = None) -> Json:
        """One call of the admin API."""
        return await trio.to_thread.run_sync(lambda: self.admin.call(method, path, document, timeout=30))

    async def workers(self) -> dict[int, int]:
        """Worker index -> pid."""
        return {one["index"]: one["pid"] for one in (await self.api("GET", "/api/v1/status"))["workers"]}

    async def endpoints(self, upstream: str) -> dict[str, Json]:
        """Address -> what the API says of it."""
        return {one["endpoint"]: one for one in (await self.api("GET", f"/api/v1/upstreams/{upstream}"))["endpoints"]}

    async def reload(self, text: str | None = None) -> tuple[int, Json]:
        """Reload (with `text` as the new config) by the API: (status, result)."""
        if text is not None:
            write(self.config, text)
        return await trio.to_thread.run_sync(lambda: self.admin.ask("POST", "/api/v1/reload", timeout=60))

    def access_lines(self) -> list[Json]:
        """Every line of access.log so far that is a whole one."""
        path = self.folder / "access.log"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [line for line in map(json.loads, lines) if "event" not in line]

    async def access_line(self, holds: Callable[[Json], bool], within: float = 30.0) -> Json:
        """The first access line that `holds`, once it is written."""
        with trio.move_on_after(within):
            while True:
                for line in self.access_lines():
                    if holds(line):
                        return line
                await trio.sleep(0.02)
        pytest.fail(f"no such access line; there are: {self.access_lines()[-5:]}")

    async def events(self, kind: str = "") -> list[Json]:
        """What the journal holds, of one kind."""
        found: list[Json] = await self.api("GET", "/api/v1/events?limit=1000")
        return [event for event in found if not kind or event["kind"] == kind]

    def signal(self, number: signal.Signals) -> None:
        """Signal the supervisor."""
        self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            return await self.process.wait()


def write(path: Path, text: str) -> None:
    """Replace a file in one step, as an editor or a config manager does."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def head_of(folder: Path, *, workers: int = 1, more: str = "") -> str:
    """The tables that every test's config has: where this gateway's files and admin socket are."""
    return f"""
[gateway]
workers = {workers}
state_dir = "{folder}/state"
{more}
[admin]
bind = "unix:{folder}/admin.sock"
[log]
access = "{folder}/access.log"
"""


@contextlib.asynccontextmanager
async def running(folder: Path, text: str) -> AsyncIterator[Gateway]:
    """A gateway that serves `text` (which begins with `head_of(folder)`), ready; stopped and gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "gateway.toml", text)
    output = (folder / "output.log").open("wb")
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tcpgate", "run", str(folder / "gateway.toml")],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    output.close()
    gateway = Gateway(folder, process, AdminClient(f"unix:{folder}/admin.sock"))
    try:
        await _wait_ready(gateway)
        yield gateway
    finally:
        with trio.CancelScope(shield=True):
            await _end(gateway)


async def _wait_ready(gateway: Gateway) -> None:
    with trio.move_on_after(START_WITHIN):
        while gateway.process.poll() is None:
            with contextlib.suppress(AdminError, OSError):
                if await trio.to_thread.run_sync(_is_ready, gateway.admin):
                    return
            await trio.sleep(0.02)
    said = (gateway.folder / "output.log").read_text()[-4000:]
    pytest.fail(f"the gateway did not become ready (exit code {gateway.process.poll()}); it said:\n{said}")


def _is_ready(admin: AdminClient) -> bool:
    status: Json = admin.call("GET", "/api/v1/status", timeout=10)
    return bool(status["ready"])


async def _end(gateway: Gateway) -> None:
    if gateway.process.poll() is None:
        gateway.signal(signal.SIGTERM)
        with trio.move_on_after(3):
            await gateway.process.wait()
        if gateway.process.poll() is None:
            gateway.signal(signal.SIGTERM)  # the second one means now
            with trio.move_on_after(3):
                await gateway.process.wait()
    for pid in session(gateway.process.pid):  # workers of a supervisor that a test killed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await gateway.process.wait()


def session(leader: int) -> list[int]:
    """The processes of a session that a test began: its leader and all that it started, in whatever group they are."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ProcessLookupError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


# -- origins --------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Nginx:
    """One nginx of our own, in the foreground."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it accepts."""
        self.process = subprocess.Popen(
            [
                "nginx",
                "-p",
                str(self.folder),
                "-c",
                str(self.folder / "nginx.conf"),
                "-e",
                str(self.folder / "error.log"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(500):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            subprocess.run(["sleep", "0.01"], check=True)
        pytest.fail(f"nginx did not start: {(self.folder / 'error.log').read_text()}")

    def kill(self) -> None:
        """SIGKILL, master and worker: what a crash of the host looks like from here."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def make_nginx(folder: Path, port: int, locations: str = "") -> Nginx:
    """An nginx on `port` that answers "origin PORT" and 200 on /healthz; `locations` come before these."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""user root; worker_processes 1; daemon off; pid {folder}/pid; worker_rlimit_nofile 65536;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 100000000; client_max_body_size 0; {temporary}
server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}; {locations}
location = /healthz {{ return 200 "ok\\n"; }}
location / {{ return 200 "origin {port}\\n"; }} }} }}
"""
    )
    return Nginx(folder, port)


Answer = Callable[[h11.Request, bytes], bytes]
"""Makes the raw bytes of a response from the request head and its whole body."""


@attrs.define(eq=False)
class Recorder:
    """A raw origin: reads requests with h11, keeps them, answers with bytes that the test chose."""

    answer: Answer
    requests: list[tuple[h11.Request, bytes]] = attrs.field(factory=list)
    connections: int = 0
    port: int = 0

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        """Listen on a free port until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started(self.port)

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            while await self._exchange(stream, connection):
                connection = h11.Connection(h11.SERVER)
        await stream.aclose()

    async def _exchange(self, stream: trio.SocketStream, connection: h11.Connection) -> bool:
        """One request and its answer; False at the end of the connection, or when the answer was empty (a close)."""
        head: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                self.requests.append((head, body))
                answer = self.answer(head, body)
                if not answer:
                    return False
                await stream.send_all(answer)
                return b"connection: close" not in answer.lower() and b"content-length" in answer.lower()
            else:
                return False


def plain_answer(body: bytes = b"hello", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response with a Content-Length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields, b"", body]
    return b"\r\n".join(lines)


async def talk(port: int, raw: bytes, *, within: float = 30.0, until: Callable[[bytes], bool] | None = None) -> bytes:
    """Send raw bytes to the gateway, and return what comes back until it closes, `until` holds, or time is up."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    said = b""
    async with stream:
        with trio.move_on_after(within), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(raw)
            while chunk := await stream.receive_some(65536):
                said += chunk
                if until is not None and until(said):
                    break
    return said
