"""A host with tcpgate installed, and one that boots the machine's own systemd with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.world import World, boot, host_command


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another root, with tcpgate installed in it as `make install` does."""
    destdir = tmp_path_factory.mktemp("host")
    host_command("install", destdir)
    return destdir


@pytest.fixture(scope="module")
def world(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A machine under its own systemd, with tcpgate installed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or not Path("/lib/systemd/systemd").exists():
        pytest.skip("booting systemd needs root, unshare and systemd")
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(installed, folder / "files", symlinks=True)
    world = boot(folder)
    yield world
    world.stop()
