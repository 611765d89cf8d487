"""What the host lets us have: descriptors and cores."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpgate.process.limits import MOST_WORKERS, FileLimits, open_files, raise_open_files, usable_cores, workers


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit; both are put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_becomes_the_hard_one(hard: int) -> None:
    soft = hard - 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = raise_open_files()
    assert limits == FileLimits(before=soft, soft=hard, hard=hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert str(limits) == f"{hard} file descriptors, raised from {soft}"


def test_raised_twice_is_raised_once(hard: int) -> None:
    raise_open_files()
    assert raise_open_files() == FileLimits(before=hard, soft=hard, hard=hard)
    assert str(raise_open_files()) == f"{hard} file descriptors"


def test_open_files_are_counted() -> None:
    before = open_files()
    fds = [os.dup(0) for _ in range(10)]
    assert open_files() == before + 10
    for fd in fds:
        os.close(fd)
    assert open_files() == before


CORES = len(os.sched_getaffinity(0))


class Host:
    """Files as the kernel shows them."""

    def __init__(self, folder: Path) -> None:
        self.cgroups = folder / "cgroup"
        self.own = folder / "own"

    def cores(self, own: str | None, quotas: dict[str, str]) -> int:
        """What is usable in cgroup `own`, with these cpu.max files."""
        if own is not None:
            self.own.write_text(own)
        for group, quota in quotas.items():
            (self.cgroups / group).mkdir(parents=True, exist_ok=True)
            (self.cgroups / group / "cpu.max").write_text(quota)
        return usable_cores(self.cgroups, self.own)


@pytest.mark.parametrize(
    ("own", "quotas", "expected"),
    [
        ("0::/\n", {}, CORES),
        ("0::/\n", {".": "max 100000\n"}, CORES),
        ("0::/\n", {".": "50000 100000\n"}, 1),
        ("0::/\n", {".": "100 100000\n"}, 1),
        ("0::/\n", {".": "6400000 100000\n"}, CORES),
        ("0::/system.slice/tcpgate.service\n", {"system.slice/tcpgate.service": "100000 100000\n"}, 1),
        (
            "0::/system.slice/tcpgate.service\n",
            {"system.slice": "20000 100000\n", "system.slice/tcpgate.service": "max 100000\n"},
            1,
        ),
        ("0::/a\n", {"b": "20000 100000\n"}, CORES),
        ("4:cpu:/a\n1:name=systemd:/\n", {"a": "20000 100000\n"}, CORES),
        ("4:memory:/x\n0::/a\n", {"a": "20000 100000\n"}, 1),
        ("0::/a\n", {"a": "garbage\n"}, CORES),
        ("0::/a\n", {"a": "10 0\n"}, CORES),
        (None, {".": "50000 100000\n"}, CORES),
    ],
)
def test_cores_are_those_that_the_cgroups_pay_for(
    tmp_path: Path, own: str | None, quotas: dict[str, str], expected: int
) -> None:
    assert Host(tmp_path).cores(own, quotas) == expected


def test_a_part_of_a_core_is_not_left_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert Host(tmp_path).cores("0::/\n", {".": "250000 100000\n"}) == 3


def test_a_process_tied_to_one_core_has_one() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_auto_is_a_worker_per_core_and_a_number_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers("auto") == usable_cores()
    assert workers(7) == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(256)))
    assert workers("auto") <= MOST_WORKERS
