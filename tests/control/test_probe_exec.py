"""The exec probe: programs that pass, fail, hang, fork and shout; none outlives its probe."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tcpgate.config.schema import Health
from tcpgate.control.probe import probe_once
from tcpgate.control.probe_exec import OUTPUT_KEPT
from tcpgate.kinds import PROBES
from tcpgate.policy.health import ProbeResult


async def ask(*command: str, timeout: float = 30.0, address: str = "10.0.0.1:8080") -> ProbeResult:  # noqa: ASYNC109
    return await probe_once(Health(exec=command), address, trio.current_time() + timeout, kinds=PROBES)


async def run(script: str, timeout: float = 30.0, address: str = "10.0.0.1:8080") -> ProbeResult:  # noqa: ASYNC109
    return await ask("/bin/sh", "-c", script, timeout=timeout, address=address)


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead but not yet collected by its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def numbers_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.fixture
def gone(eventually: Callable[..., Awaitable[object]]) -> Callable[[Path], Awaitable[list[int]]]:
    """Waits until every process whose number stands in the file has ended; returns the numbers."""

    async def wait(pids: Path) -> list[int]:
        numbers = numbers_in(pids)
        await eventually(lambda: not any(map(alive, numbers)), within=30, what=f"the end of {numbers}")
        return numbers

    return wait


async def test_exit_0_is_healthy_and_the_last_line_is_told() -> None:
    result = await run("echo starting; echo 'lag 3 ms'; exit 0")
    assert (result.ok, result.cause, result.size) == (True, "exit 0: lag 3 ms", 18)
    assert (await ask("true")).cause == "exit 0"


async def test_a_program_that_a_signal_ended_has_failed_even_if_the_signal_has_no_name() -> None:
    assert (await run("kill -KILL $$")).cause == "killed by SIGKILL"
    result = await run("kill -40 $$")  # a real-time signal
    assert (result.ok, result.cause) == (False, "killed by signal 40")


async def test_another_exit_fails_and_the_last_line_says_why() -> None:
    result = await run("echo fine so far; echo 'replication broken' >&2; echo; exit 3")
    assert (result.ok, result.cause) == (False, "exit 3: replication broken")
    assert (await run("kill -SEGV $$")).cause == "killed by SIGSEGV"


async def test_there_is_no_shell_between() -> None:
    result = await ask("echo", "$HOME; `id` && *")
    assert result.cause == "exit 0: $HOME; `id` && *"


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("db.internal:5432", "db.internal", "5432"), ("[::1]:80", "::1", "80"), ("unix:/run/app.sock", "", "")],
)
async def test_the_environment_is_the_address_and_nothing_of_the_gateways(
    address: str, host: str, port: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    await run(f"env > {tmp_path}/env", address=address)
    lines = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    for shells_own in ("PWD", "SHLVL", "_", "OLDPWD"):
        lines.pop(shells_own, None)
    assert lines == {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "TCPGATE_ADDRESS": address,
        "TCPGATE_HOST": host,
        "TCPGATE_PORT": port,
    }


async def test_a_program_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    missing, forbidden = await ask("/no/such/check"), await ask(str(plain))
    assert (missing.ok, missing.cause) == (False, "cannot start /no/such/check: No such file or directory")
    assert (forbidden.ok, forbidden.cause) == (False, f"cannot start {plain}: Permission denied")
    plain.chmod(0o755)
    assert (await ask(str(plain))).cause == "Exec format error in exec"


async def test_a_program_that_forks_and_hangs_is_killed_with_all_it_started(
    tmp_path: Path, gone: Callable[[Path], Awaitable[list[int]]]
) -> None:
    pids = tmp_path / "pids"
    result = await run(f"trap '' TERM; sleep 999 & echo $! >> {pids}; echo $$ >> {pids}; sleep 999", timeout=1.5)
    assert (result.ok, result.cause) == (False, "timed out in exec")
    assert result.latency < 20
    assert len(await gone(pids)) == 2


async def test_what_a_program_leaves_behind_is_killed_when_it_exits(
    tmp_path: Path, gone: Callable[[Path], Awaitable[list[int]]]
) -> None:
    pids = tmp_path / "pids"
    result = await run(f"sleep 999 & echo $! >> {pids}; echo good")
    assert (result.ok, result.cause) == (True, "exit 0: good")
    assert result.latency < 20
    await gone(pids)


async def test_a_daemon_that_left_the_group_with_the_pipe_does_not_hold_the_probe(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    result = await run(f"setsid sleep 999 & echo $! >> {pids}; sleep 0.1; echo good")
    try:
        assert (result.ok, result.cause) == (True, "exit 0: good")
        assert result.latency < 20
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


async def test_a_cancelled_probe_leaves_no_process_and_no_pipe(
    tmp_path: Path, eventually: Callable[..., Awaitable[object]], gone: Callable[[Path], Awaitable[list[int]]]
) -> None:
    pids = tmp_path / "pids"
    before = len(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, f"sleep 999 & echo $! $$ >> {pids}; sleep 999")
        await eventually(lambda: len(numbers_in(pids)) == 2)
        nursery.cancel_scope.cancel()
    assert len(await gone(pids)) == 2
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_flood_of_output_is_read_and_forgotten() -> None:
    result = await run("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo enough")
    assert (result.ok, result.cause) == (True, "exit 0: enough")
    assert result.size == 3_000_008 > OUTPUT_KEPT
    assert (await run("yes", timeout=0.2)).cause == "timed out in exec"


async def test_the_program_has_no_input() -> None:
    assert (await run("cat; echo done")).cause == "exit 0: done"
