"""What the host lets this process have: file descriptors, and cores.

Source: getrlimit(2), proc(5), sched_getaffinity(2), the kernel's cgroup-v2 document (cpu.max).
"""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path, PurePosixPath
from typing import Literal

import attrs

MOST_WORKERS = 64
"""As many as the shared page has pages for (`stats/page.py`)."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
OPEN_FILES = Path("/proc/self/fd")


@attrs.frozen
class FileLimits:
    """How many file descriptors this process may have."""

    before: int
    """The soft limit as it was; for programs that we start and that may still use select(2)."""
    soft: int
    """The soft limit now."""
    hard: int
    """What only root may raise."""

    @classmethod
    def now(cls) -> FileLimits:
        """As they are, unchanged."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(soft, soft, hard)

    def __str__(self) -> str:
        raised = f", raised from {self.before}" if self.soft != self.before else ""
        return f"{self.soft} file descriptors{raised}"


def raise_open_files() -> FileLimits:
    """Raise the soft limit to the hard one, as a server should that knows no select(2)."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return FileLimits(before, hard, hard)


def open_files() -> int:
    """File descriptors open now."""
    with os.scandir(OPEN_FILES) as entries:
        return sum(1 for _ in entries) - 1  # the scan has one itself


def workers(wanted: int | Literal["auto"]) -> int:
    """How many workers `[gateway] workers` means here."""
    return min(usable_cores(), MOST_WORKERS) if wanted == "auto" else wanted


def usable_cores(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Cores that this process may use: those of its affinity, but no more than its cgroups' CPU time is worth.

    A quota of one and a half cores counts as two, so that none of it lies idle.
    """
    quota = min((_quota(cgroups, group) for group in _groups(own_cgroup)), default=math.inf)
    cores = len(os.sched_getaffinity(0))
    return cores if quota >= cores else max(1, math.ceil(quota))


def _groups(own_cgroup: Path) -> list[PurePosixPath]:
    """This process's cgroup (v2) and those above it: each may have a limit. None on a host without v2."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::/"):
            group = PurePosixPath(line.removeprefix("0::/"))
            return [group, *group.parents]
    return []


def _quota(cgroups: Path, group: PurePosixPath) -> float:
    """CPU time of one cgroup, in cores; inf if it has no limit."""
    try:
        quota, period = (cgroups / group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
