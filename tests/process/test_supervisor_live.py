"""The gateway as real processes: signals, deaths, reloads and ends, as an operator and systemd see them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from tests.conftest import Eventually
from tests.gateway import Gateway, Recorder, head_of, plain_answer, running, session, talk

FreePort = Callable[[], int]


def config(
    folder: Path, port: int, *, workers: int = 1, gateway: str = 'drain = "20s"', listener: str = "", more: str = ""
) -> str:
    """A gateway that answers by itself."""
    return (
        head_of(folder, workers=workers, more=gateway)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
max_connections = 1000
{listener}
[routes.all]
respond = {{ body = "hello" }}
{more}
"""
    )


def with_origin(folder: Path, port: int, origin: int, *, gateway: str = 'drain = "20s"', workers: int = 1) -> str:
    """One that asks an origin."""
    upstream = f'[upstreams.api]\nendpoints = ["127.0.0.1:{origin}"]\n'
    text = config(folder, port, gateway=gateway, workers=workers, more=upstream)
    return text.replace('respond = { body = "hello" }', 'upstream = "api"')


async def get(port: int, path: str = "/") -> bytes:
    """One request on a connection of its own."""
    return await talk(port, f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())


@contextlib.asynccontextmanager
async def slow_origin(seconds: float) -> AsyncIterator[Recorder]:
    """An origin that thinks for a while."""

    class Slow(Recorder):
        async def _exchange(self, stream: trio.SocketStream, connection: object) -> bool:
            await stream.receive_some(65536)
            self.connections += 100  # a request is here
            await trio.sleep(seconds)
            await stream.send_all(plain_answer(b"late"))
            return False

    async with trio.open_nursery() as nursery:
        origin = Slow(lambda head, body: b"")
        await nursery.start(origin.serve)
        yield origin
        nursery.cancel_scope.cancel()


def output(gateway: Gateway) -> str:
    return (gateway.folder / "output.log").read_text()


# -- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_worker_that_is_killed_or_stuck_is_replaced_and_counters_go_on(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    port = free_port()
    async with running(tmp_path, config(tmp_path, port, gateway='worker_silence = "3s"')) as gateway:
        for turn, number in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
            for _ in range(5):
                assert (await get(port)).endswith(b"hello")
            before = await gateway.workers()
            os.kill(before[1], number)

            async def replaced(old: int = before[1]) -> bool:
                return (await gateway.workers()).get(1, old) != old

            await eventually(replaced, within=30, what="another worker")
            assert (await get(port)).endswith(b"hello")  # it waited in the backlog

            async def in_the_books(wanted: int = 5 * turn) -> bool:
                totals = (await gateway.api("GET", "/api/v1/status"))["totals"]
                return bool(totals["exchanges"] >= wanted and totals["connections"] == 0)

            await eventually(in_the_books, what="every exchange and no connection in the totals")
        died = [event["text"] for event in await gateway.events("worker_died")]
        assert len(died) == 2
        assert "by signal SIGKILL" in died[0]
        assert "has not turned for" in (await gateway.events("worker_hung"))[0]["text"]
        assert await gateway.stop() == 0


@pytest.mark.slow
async def test_workers_are_added_and_drained_by_a_reload_and_totals_never_go_back(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    port = free_port()
    seen: list[int] = []
    async with running(tmp_path, config(tmp_path, port, workers=1)) as gateway:
        for workers in (3, 1, 2):
            await gateway.reload(config(tmp_path, port, workers=workers))

            async def as_many(wanted: int = workers) -> bool:
                status = await gateway.api("GET", "/api/v1/status")
                return [one["generation"] for one in status["workers"]] == [status["generation"]] * wanted

            await eventually(as_many, within=30, what=f"{workers} workers")
            for _ in range(10):
                assert (await get(port)).endswith(b"hello")
            seen.append((await gateway.api("GET", "/api/v1/status"))["totals"]["exchanges"])

        async def left() -> bool:
            return len(await gateway.events("worker_left")) == 2

        await eventually(left, what="the end of the two that were too many")
        assert await gateway.events("worker_died") == []
    assert seen == sorted(seen)
    assert seen[-1] >= 29  # the last one's books may not be closed yet


@pytest.mark.slow
async def test_a_worker_that_lost_its_supervisor_serves_on_and_sigterm_drains_it(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    port = free_port()
    async with running(tmp_path, config(tmp_path, port)) as gateway:
        (worker,) = (await gateway.workers()).values()
        gateway.process.kill()
        await gateway.process.wait()
        for _ in range(3):
            assert (await get(port)).endswith(b"hello")
        await eventually(lambda: "lost its supervisor" in output(gateway), within=30, what="a word in the log")
        os.kill(worker, signal.SIGHUP)  # nobody could reload it; it must not die of it
        assert (await get(port)).endswith(b"hello")
        os.kill(worker, signal.SIGTERM)
        await eventually(lambda: worker not in session(gateway.process.pid), within=30, what="its end")
        with pytest.raises(OSError, match=r"refused|connect"):
            await trio.open_tcp_stream("127.0.0.1", port)


# -- reloads --------------------------------------------------------------------------------------------------------


async def test_a_storm_of_sighup_is_a_few_reloads_and_the_last_text_serves(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    port = free_port()
    async with running(tmp_path, config(tmp_path, port)) as gateway:
        for turn in range(40):
            (tmp_path / "new").write_text(config(tmp_path, port).replace("hello", f"hello {turn}"))
            (tmp_path / "new").rename(gateway.config)
            gateway.signal(signal.SIGHUP)
            await trio.sleep(0.02)

        async def newest() -> bool:
            return (await get(port)).endswith(b"hello 39")

        await eventually(newest, within=30, what="the last config")
        reloads = (await gateway.api("GET", "/api/v1/status"))["reloads"]
        assert reloads["failed"] == 0
        assert 1 <= reloads["ok"] <= 40
        for _ in range(10):
            gateway.signal(signal.SIGHUP)
        gateway.signal(signal.SIGTERM)  # in the middle of them
        with trio.fail_after(15):
            assert await gateway.process.wait() == 0


async def test_addresses_come_and_go_and_their_files_with_them(tmp_path: Path, free_port: FreePort) -> None:
    port, other = free_port(), free_port()
    one, two = tmp_path / "one.sock", tmp_path / "two.sock"

    def listening(*binds: str) -> str:
        quoted = ", ".join(f'"{bind}"' for bind in binds)
        return config(tmp_path, port).replace(f'"127.0.0.1:{port}"', quoted)

    async with running(tmp_path, listening(f"127.0.0.1:{port}", f"unix:{one}")) as gateway:
        assert one.is_socket()
        status, result = await gateway.reload(listening(f"127.0.0.1:{other}", f"unix:{two}"))
        assert status == 200, result
        assert not one.exists()
        assert two.is_socket()
        assert (await get(other)).endswith(b"hello")
        with pytest.raises(OSError, match=r"refused|connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        # A failed reload leaves no file of what it had bound before it failed.
        with socket.create_server(("127.0.0.1", 0)) as taken:
            busy = f"127.0.0.1:{taken.getsockname()[1]}"
            status, result = await gateway.reload(listening(f"127.0.0.1:{other}", f"unix:{one}", busy))
        assert status == 422
        assert f"listeners.web.bind[2]: cannot listen on {busy}" in result["problems"][0]
        assert not one.exists()
        assert (tmp_path / "admin.sock").is_socket()
        assert await gateway.stop() == 0
    assert not two.exists()
    assert not (tmp_path / "admin.sock").exists()


async def test_a_listener_moves_from_every_address_to_one_and_back_under_requests(
    tmp_path: Path, free_port: FreePort
) -> None:
    port = free_port()
    text = config(tmp_path, port, workers=2)
    everywhere = text.replace(f"127.0.0.1:{port}", f"0.0.0.0:{port}")
    said: list[bytes] = []
    async with running(tmp_path, text) as gateway, trio.open_nursery() as nursery:

        async def ask_forever() -> None:
            while True:
                said.append(await get(port))

        nursery.start_soon(ask_forever)
        for turn in range(6):
            status, result = await gateway.reload(text if turn % 2 else everywhere)
            assert (status, result["generation"]) == (200, turn + 2), result
        nursery.cancel_scope.cancel()
    assert len(said) > 6
    assert {answer.rpartition(b"\r\n")[2] for answer in said} == {b"hello"}


async def test_a_listener_is_renamed_and_changes_its_protocol_on_the_same_address(
    tmp_path: Path, free_port: FreePort
) -> None:
    port = free_port()
    async with trio.open_nursery() as nursery:
        echo = await nursery.start(trio.serve_tcp, _greet, 0)
        address = f"127.0.0.1:{echo[0].socket.getsockname()[1]}"
        upstream = f'[upstreams.echo]\nendpoints = ["{address}"]\n'
        text = config(tmp_path, port, more=upstream)
        async with running(tmp_path, text) as gateway:
            assert (await get(port)).endswith(b"hello")
            assert (await gateway.reload(text.replace("listeners.web", "listeners.other")))[0] == 200
            assert (await get(port)).endswith(b"hello")
            tcp = text.replace("max_connections = 1000", 'protocol = "tcp"\nupstream = "echo"')
            assert (await gateway.reload(tcp))[0] == 200
            assert await talk(port, b"") == b"I speak first"
            assert (await gateway.reload(text))[0] == 200
            assert (await get(port)).endswith(b"hello")
        nursery.cancel_scope.cancel()


async def _greet(stream: trio.SocketStream) -> None:
    await stream.send_all(b"I speak first")


async def test_a_log_that_cannot_be_opened_fails_the_reload_and_events_have_a_place_of_their_own(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    port, events = free_port(), tmp_path / "events.log"
    text = config(tmp_path, port).replace("[log]", f'[log]\nevents = "{events}"')
    quiet = text.replace(f'access = "{tmp_path}/access.log"', 'access = "off"')
    async with running(tmp_path, quiet) as gateway:
        for key, bad in (("events", f'events = "{tmp_path}"'), ("access", f'access = "{tmp_path}"')):
            wrong = quiet.replace(f'events = "{events}"' if key == "events" else 'access = "off"', bad)
            status, result = await gateway.reload(wrong)
            assert status == 422
            assert f"log.{key}" in result["problems"][0]
            assert (await get(port)).endswith(b"hello")
        events.rename(tmp_path / "rotated.log")
        gateway.signal(signal.SIGUSR1)
        await eventually(events.exists, within=30, what="the new file")
        assert await gateway.stop() == 0
    both = (tmp_path / "rotated.log").read_text() + events.read_text()
    assert both.count('"event":"reload_failed"') == 2
    assert '"event":"stopped"' in events.read_text()
    assert output(gateway) == ""
    assert not (tmp_path / "access.log").exists()


async def test_what_needs_a_restart_is_told_as_such(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    text = config(tmp_path, port)
    async with running(tmp_path, text) as gateway:
        moved = text.replace("admin.sock", "other.sock")
        status, result = await gateway.reload(moved)
        assert (status, result["restart"]) == (200, ["admin.bind"])
        assert "only a restart brings into effect: admin.bind" in result["summary"]
        now = await gateway.api("GET", "/api/v1/status")  # still where it was
        assert now["restart_needed_for"] == ["admin.bind"]
        assert not (tmp_path / "other.sock").exists()


# -- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_drain_closes_the_idle_lets_the_busy_finish_and_serves_what_waits_in_the_backlog(
    tmp_path: Path, free_port: FreePort
) -> None:
    port = free_port()
    async with slow_origin(1.0) as origin:
        text = with_origin(tmp_path, port, origin.port)
        async with running(tmp_path, text) as gateway:
            idle = await trio.open_tcp_stream("127.0.0.1", port)
            await idle.send_all(b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n")
            await idle.receive_some(65536)
            said: list[bytes] = []

            async def ask() -> None:
                said.append(await talk(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                with trio.fail_after(15):
                    while origin.connections < 100:
                        await trio.sleep(0.01)
                (worker,) = (await gateway.workers()).values()
                os.kill(worker, signal.SIGSTOP)  # so that the next ones wait in the kernel's queue
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.sleep(0.2)
                gateway.signal(signal.SIGTERM)
                await trio.sleep(0.2)
                os.kill(worker, signal.SIGCONT)
                with trio.fail_after(15):
                    assert await idle.receive_some(1) == b""
                    assert await gateway.process.wait() == 0
            await idle.aclose()
    assert len(said) == 3
    for answer in said:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"late")
        assert b"\r\nconnection: close\r\n" in answer.lower()


async def test_a_drain_ends_what_does_not_finish_and_the_exit_code_is_zero(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    async with (
        slow_origin(60.0) as origin,
        running(tmp_path, with_origin(tmp_path, port, origin.port, gateway='drain = "1s"')) as gateway,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, port)
            with trio.fail_after(15):
                while origin.connections < 100:
                    await trio.sleep(0.01)
            began = trio.current_time()
            gateway.signal(signal.SIGTERM)
            with trio.fail_after(30):
                assert await gateway.process.wait() == 0
            took = trio.current_time() - began
        line = gateway.access_lines()[-1]
    assert 0.9 < took < 20
    assert line["reason"] == "drained"


async def test_the_second_sigterm_means_now(tmp_path: Path, free_port: FreePort, eventually: Eventually) -> None:
    port = free_port()
    async with (
        slow_origin(60.0) as origin,
        running(tmp_path, with_origin(tmp_path, port, origin.port, gateway='drain = "60s"')) as gateway,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, port)
            with trio.fail_after(15):
                while origin.connections < 100:
                    await trio.sleep(0.01)
            gateway.signal(signal.SIGTERM)
            await eventually(lambda: '"event":"draining"' in output(gateway), what="the drain")
            await trio.sleep(0.2)
            assert gateway.process.poll() is None
            gateway.signal(signal.SIGTERM)
            with trio.fail_after(15):
                assert await gateway.process.wait() == 0
        await eventually(lambda: not session(gateway.process.pid), what="the end of the workers")


@pytest.mark.slow
async def test_the_lame_duck_goes_on_accepting_while_readiness_is_off(tmp_path: Path, free_port: FreePort) -> None:
    port, admin = free_port(), free_port()
    text = config(tmp_path, port, gateway='lame_duck = "5s"')
    text = text.replace(f'bind = "unix:{tmp_path}/admin.sock"', f'bind = "127.0.0.1:{admin}"')
    async with started(tmp_path, text) as process:
        with trio.fail_after(40):
            while not (await _readyz(admin)).startswith(b"HTTP/1.1 200"):
                await trio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        while (said := await _readyz(admin)).startswith(b"HTTP/1.1 200"):
            await trio.sleep(0.05)
        assert said.endswith(b"stopping\n")
        assert (await get(port)).endswith(b"hello")
        with trio.fail_after(15):
            assert await process.wait() == 0


async def test_ctrl_c_in_a_terminal_drains_and_does_not_kill_the_workers(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    async with (
        slow_origin(0.7) as origin,
        running(tmp_path, with_origin(tmp_path, port, origin.port, workers=2)) as gateway,
    ):
        said: list[bytes] = []

        async def ask() -> None:
            said.append(await get(port))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.fail_after(15):
                while origin.connections < 100:
                    await trio.sleep(0.01)
            os.killpg(gateway.process.pid, signal.SIGINT)  # as a terminal does it: the whole group
            with trio.fail_after(15):
                assert await gateway.process.wait() == 0
    assert said[0].endswith(b"late")
    assert "Traceback" not in output(gateway)


# -- the start ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def started(folder: Path, text: str, environ: dict[str, str] | None = None) -> AsyncIterator[trio.Process]:
    """`tcpgate run`, not waited for; nothing of its session is left at the end."""
    (folder / "gateway.toml").write_text(text)
    with (folder / "stderr").open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tcpgate", "run", str(folder / "gateway.toml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


async def _readyz(port: int) -> bytes:
    try:
        return await talk(port, b"GET /readyz HTTP/1.0\r\n\r\n", within=10)
    except OSError:
        return b""


async def test_what_is_in_the_way_of_a_start_stands_on_stderr_line_by_line(tmp_path: Path, free_port: FreePort) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [sock.getsockname()[1] for sock in (one, two)]
        binds = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        text = config(tmp_path, 1).replace('"127.0.0.1:1"', binds)
        async with started(tmp_path, text) as process:
            with trio.fail_after(30):
                assert await process.wait() == 1
            said = (tmp_path / "stderr").read_text().splitlines()
    line = text.splitlines().index(f"bind = [{binds}]") + 1
    assert len(said) == 2, said
    for index, port in enumerate(ports):
        place = f"{tmp_path}/gateway.toml:{line}: listeners.web.bind[{index}]: "
        assert said[index].startswith(f"{place}cannot listen on 127.0.0.1:{port}: ")


async def test_a_bad_config_and_a_bad_admin_address_have_their_exit_codes(tmp_path: Path, free_port: FreePort) -> None:
    async with started(tmp_path, config(tmp_path, free_port()).replace("workers", "worker")) as process:
        with trio.fail_after(30):
            assert await process.wait() == 78
    assert "gateway.worker" in (tmp_path / "stderr").read_text()
    nowhere = config(tmp_path, free_port()).replace(f"unix:{tmp_path}/admin.sock", "unix:/nowhere/at/all.sock")
    async with started(tmp_path, nowhere) as process:
        with trio.fail_after(30):
            assert await process.wait() == 1
    said = (tmp_path / "stderr").read_text()
    assert "admin.bind: cannot listen on unix:/nowhere/at/all.sock: the directory does not exist" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
async def test_sigterm_in_the_middle_of_the_start_ends_it_in_order(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    for after in (0.45, 0.7, 0.9):
        async with started(tmp_path, config(tmp_path, free_port(), workers=2)) as process:
            await trio.sleep(after)
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(15):
                # Before the supervisor's loop runs there is nothing to end in order.
                assert await process.wait() in (0, -signal.SIGTERM)
            await eventually(lambda: not session(process.pid), what="the end of all that it started")


async def test_the_state_directory_is_made_for_its_user_alone(tmp_path: Path, free_port: FreePort) -> None:
    state = tmp_path / "deep" / "state"
    text = config(tmp_path, free_port()).replace(f"{tmp_path}/state", str(state))
    async with running(tmp_path, text):
        assert state.stat().st_mode & 0o777 == 0o700
