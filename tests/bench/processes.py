"""Processes of the benchmark: started in a session of their own, pinned, accounted by the kernel, stopped by pid.

What a proxy costs is what the kernel says of every process in its session: supervisor, master, workers, helpers.

Source: clock_getres(2) on the CPU clock of a process (nanoseconds over all its threads, ended ones too); proc(5) on
status, smaps_rollup, clear_refs.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

STOP_WITHIN = 2.0
"""Seconds that a process has after SIGTERM: its state is thrown away, so nothing is worth waiting for."""


@attrs.define(eq=False)
class Service:
    """One program under way, and all that it started."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    cores: tuple[int, ...]
    """Where it may run."""

    def pids(self) -> list[int]:
        """Every process of its session that lives."""
        return session(self.process.pid)

    def cpu_ns(self) -> dict[int, int]:
        """Pid -> nanoseconds of CPU so far."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found[pid] = time.clock_gettime_ns(cpu_clock(pid))
        return found

    def busy_ns(self) -> dict[str, int]:
        """Thread -> nanoseconds of CPU so far."""
        found = {}
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    found[task.name] = int((task / "schedstat").read_text().split()[0])
        return found

    def resident_kb(self) -> int:
        """What its processes hold now (KB): pages that some of them share are split between them (PSS)."""
        return sum(_kb(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in self.pids())

    def peak_kb(self) -> int:
        """Sum of its processes' largest resident sets since `forget_peak` (KB); shared pages count in each."""
        return sum(_kb(Path(f"/proc/{pid}/status"), "VmHWM") for pid in self.pids())

    def forget_peak(self) -> None:
        """Begin the peak anew."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def said(self) -> str:
        """The end of what it printed."""
        return (self.folder / f"{self.name}.out").read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """End all of it; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_WITHIN)
        for _ in range(100):  # what a killed master leaves may itself be starting something
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            if not pids:
                break
            time.sleep(0.01)
        self.process.wait()


def cpu_clock(pid: int) -> int:
    """The clock that counts a process's CPU time: the C library's clock_getcpuclockid(3), which Python lacks."""
    return (~pid << 3) | 2


def spent_ns(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """CPU time between two readings; a process that began meanwhile counts whole, one that ended is lost."""
    return sum(max(0, value - before.get(key, 0)) for key, value in after.items())


def session(leader: int) -> list[int]:
    """The processes of the session that `leader` began, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == leader:
                    state = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2][:1]
                    if state not in "ZX":
                        found.append(int(entry))
    return found


def core_busy_s(core: int) -> float:
    """Seconds that a core was not idle, whoever it was: in hundredths, the kernel's ticks."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    ticks = [int(word) for word in line.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _kb(path: Path, field: str) -> int:
    with contextlib.suppress(OSError):
        match = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
        if match:
            return int(match[1])
    return 0


def start(
    name: str,
    command: Sequence[str],
    folder: Path,
    *,
    cores: Sequence[int],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Service:
    """Start `command` on `cores`; what it prints goes to NAME.out in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            cwd=cwd or folder,
            start_new_session=True,
        )
    return Service(name, folder, process, tuple(cores))


@contextlib.contextmanager
def stopping() -> Iterator[list[Service]]:
    """A list whose services are stopped at the end, all at once, whatever happened."""
    services: list[Service] = []
    try:
        yield services
    finally:
        # A second Ctrl-C must not leave half of them behind.
        was = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        for service in services:
            with contextlib.suppress(ProcessLookupError):
                service.process.terminate()
        for service in services:
            service.stop()
        for number, handler in was.items():
            signal.signal(number, handler)
