"""The shipped units, judged by systemd itself: no word that it does not know, and a sandbox that scores at most 2.0."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tcpgate.config.schema import Gateway

UNITS = Path(__file__).parent.parent.parent / "systemd"
HOST_UNITS = Path("/usr/lib/systemd/system")
MAX_EXPOSURE = 2.0
"""systemd's own measure, 0 (nothing) to 10 (everything). nginx's and HAProxy's units as Debian ships them have 9.6."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and all output of systemd-analyze."""
    done = subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The root of a host with our units installed: the real system units beside them, an executable where they say."""
    shutil.copytree(HOST_UNITS, tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in ("tcpgate.service", "tcpgate.socket"):
        shutil.copy(UNITS / name, units)
    program = tmp_path / "opt/tcpgate/venv/bin/tcpgate"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def verify(host: Path) -> str:
    """What `systemd-analyze verify` has against our units; it exits 0 on unknown keys, so its words count."""
    code, said = analyze("verify", "--man=no", f"--root={host}", "tcpgate.service", "tcpgate.socket")
    return said or (f"exit {code}" if code else "")


def test_systemd_understands_every_line(host: Path) -> None:
    assert verify(host) == ""


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("WatchdogSec=10s", "WatchDogSec=10s", "Unknown key 'WatchDogSec'"),
        ("KillMode=mixed", "KillMode=gentle", "Failed to parse kill mode"),
        ("/opt/tcpgate/venv/bin/tcpgate run", "/opt/tcpgate/venv/bin/tcpgated run", "is not executable"),
    ],
)
def test_that_judge_finds_a_mistake(host: Path, before: str, after: str, complaint: str) -> None:
    unit = host / "etc/systemd/system/tcpgate.service"
    text = unit.read_text()
    assert before in text
    unit.write_text(text.replace(before, after))
    assert complaint in verify(host)


def exposure(unit: Path) -> float:
    """The score that systemd gives to a unit file, without a running systemd."""
    _, said = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def test_the_sandbox_leaves_little_exposed() -> None:
    assert exposure(UNITS / "tcpgate.service") <= MAX_EXPOSURE


def test_a_service_without_the_sandbox_would_score_far_worse(tmp_path: Path) -> None:
    text = (UNITS / "tcpgate.service").read_text()
    bare = tmp_path / "tcpgate.service"
    bare.write_text(text.partition("# -- who it is")[0])
    assert exposure(bare) > 9


def lines(name: str) -> list[str]:
    """The unit's settings, comments left out."""
    return [line for line in (UNITS / name).read_text().splitlines() if line and line[0] not in "#;["]


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "ExecReload=/opt/tcpgate/venv/bin/tcpgate reload --wait",
        "RestartPreventExitStatus=78",
        "KillMode=mixed",
        "OOMPolicy=continue",
        "LogRateLimitIntervalSec=0",
    ],
)
def test_the_service_makes_the_promises_that_the_gateway_relies_on(line: str) -> None:
    assert line in lines("tcpgate.service")


def test_systemd_waits_longer_than_the_longest_drain_that_the_config_has_by_default() -> None:
    stop = next(line for line in lines("tcpgate.service") if line.startswith("TimeoutStopSec="))
    assert int(stop.removeprefix("TimeoutStopSec=").removesuffix("s")) > Gateway().drain + Gateway().lame_duck + 10
