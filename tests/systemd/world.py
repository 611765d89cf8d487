"""Another root with tcpgate installed in it, and a machine of its own that boots it under systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent.parent
OWN_NAMESPACES = ("unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net")


def host_command(command: str, destdir: Path) -> str:
    """What `make install` or `make uninstall` runs, for another root; what it says."""
    environ = {**os.environ, "DESTDIR": str(destdir), "PREFIX": "/opt/tcpgate", "PYTHON": "/usr/bin/python3"}
    done = subprocess.run(
        [ROOT / "systemd" / "host", command],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@attrs.define
class World:
    """A machine inside this one: see boot.sh."""

    folder: Path
    process: subprocess.Popen[bytes]
    init: int
    """The pid, out here, of its PID 1."""

    def run(self, *command: str, given: str = "", check: bool = True) -> str:
        """Output of `command` in there."""
        with self.start(*command, given=given) as done:
            try:
                said, _ = done.communicate(given, timeout=30)
            except subprocess.TimeoutExpired:
                done.kill()
                pytest.fail(f"{command} is not done after 30 s\n{self.journal()[-4000:]}")
        if check and done.returncode:
            pytest.fail(f"{command} exited {done.returncode}: {said}\n{self.journal()[-4000:]}")
        return said

    def code(self, *command: str) -> int:
        """Exit code of `command` in there."""
        return int(self.run("sh", "-c", '"$@" >/dev/null 2>&1; echo $?', "sh", *command))

    def start(self, *command: str, given: str = "") -> subprocess.Popen[str]:
        """`command`, running in there."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self.init), "--all", "--root", "--wd", *command],
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """A file in there."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, given=text)

    def fact(self, name: str, unit: str = "tcpgate.service") -> str:
        """What systemd knows of a unit, as `ActiveState`, `MainPID`, `StatusText`."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self) -> str:
        """All that the gateway has logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=tcpgate.service", check=False)

    def wait(self, probe: Callable[[], object], what: str, within: float = 60.0) -> None:
        """Until `probe()` is true; fails the test, with the gateway's log, if it never is."""
        deadline = time.monotonic() + within
        while not probe():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come about within {within:g} s\n{self.journal()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Power off, and leave nothing."""
        os.kill(self.init, signal.SIGKILL)
        self.process.wait(10)
        for group in Path("/sys/fs/cgroup").glob(f"**/{self.folder.name}"):
            for below in sorted(group.glob("**/"), reverse=True):
                below.rmdir()


def boot(folder: Path) -> World:
    """Power on: `folder/files` over this machine's root, `folder/shared` as /shared. Fails the test if it does not."""
    shared = folder / "shared"
    shared.mkdir()
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*OWN_NAMESPACES, Path(__file__).with_name("boot.sh"), folder], stdout=out, stderr=out
        )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := children.read_text().split():
            world = World(folder, process, int(found[0]))
            if world.run("systemctl", "is-system-running", check=False).strip() == "running":
                return world
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"systemd did not boot: {log.read_text()}")
