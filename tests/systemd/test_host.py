"""`make install` and `make uninstall`, into another root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.systemd.world import ROOT, host_command

pytestmark = pytest.mark.drill


@pytest.fixture
def host(installed: Path, tmp_path: Path) -> Path:
    """A copy of the installed root, to change."""
    return Path(shutil.copytree(installed, tmp_path / "host", symlinks=True))


def releases(host: Path) -> list[Path]:
    """The releases there, oldest first."""
    return sorted((host / "opt/tcpgate/releases").iterdir())


def release(host: Path) -> Path:
    """The release that the units start, seen from here."""
    return host / (host / "opt/tcpgate/venv").readlink().relative_to("/")


def test_everything_is_where_the_unit_looks_for_it(installed: Path) -> None:
    assert release(installed) == releases(installed)[-1]
    program = release(installed) / "bin" / "tcpgate"
    python = program.read_text().splitlines()[0].removeprefix("#!")
    assert Path(python).is_relative_to("/opt/tcpgate/releases"), "the script must run where it will be"
    assert (installed / python.removeprefix("/")).exists()
    assert (installed / "usr/local/bin/tcpgate").readlink() == Path("/opt/tcpgate/venv/bin/tcpgate")
    for name in ("tcpgate.service", "tcpgate.socket"):
        assert (installed / "etc/systemd/system" / name).read_text() == (ROOT / "systemd" / name).read_text()
    assert (installed / "etc/tcpgate/tcpgate.toml").read_text() == (ROOT / "etc/tcpgate.toml").read_text()


def test_no_installed_file_names_the_place_where_it_was_made(installed: Path) -> None:
    found = subprocess.run(
        ["grep", "-rlIF", str(installed), str(installed)], capture_output=True, text=True, check=False
    ).stdout
    assert found == ""


def test_the_service_user_can_read_all_of_it(installed: Path) -> None:
    for path in [*(installed / "opt").rglob("*"), *(installed / "etc").rglob("*")]:
        if not path.is_symlink():
            needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
            assert path.stat().st_mode & needed == needed, path


def test_the_modules_are_compiled_as_the_service_may_not_write_there(installed: Path) -> None:
    sources = list(release(installed).glob("lib/python*/site-packages/tcpgate/**/*.py"))
    assert sources
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


def test_a_second_install_keeps_the_config_and_the_releases_in_use(host: Path) -> None:
    config = host / "etc/tcpgate/tcpgate.toml"
    config.write_text("# mine\n")
    stale = host / "opt/tcpgate/releases/0.0.1-20200101T000000Z"
    stale.mkdir()
    running = host / "opt/tcpgate/releases/0.0.2-20200102T000000Z"
    program = running / "bin" / "sleep"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", program)
    before = release(host)
    with subprocess.Popen([program, "300"]) as gateway:
        said = host_command("install", host)
        gateway.kill()
    assert config.read_text() == "# mine\n"
    assert f"kept {config}" in said
    assert release(host) != before
    # The one before stays, for a way back, and the one that a gateway still starts its workers from.
    assert set(releases(host)) == {running, before, release(host)}


def test_a_failed_install_leaves_what_was_there(host: Path) -> None:
    before = release(host)
    environ = {**os.environ, "DESTDIR": str(host), "PYTHON": "/usr/bin/python3", "PIP_NO_INDEX": "1"}
    environ |= {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [ROOT / "systemd" / "host", "install"], env=environ, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode != 0
    assert "pip failed" in done.stderr
    assert release(host) == before
    assert releases(host) == [before]


def test_uninstall_takes_the_program_and_leaves_what_is_the_operators(host: Path) -> None:
    state = host / "var/lib/tcpgate"
    state.mkdir(parents=True)
    said = host_command("uninstall", host)
    assert (host / "etc/tcpgate/tcpgate.toml").exists()
    assert state.exists()
    assert str(host / "etc/tcpgate") in said
    for gone in ("opt/tcpgate", "usr/local/bin/tcpgate", "etc/systemd/system/tcpgate.service"):
        assert not os.path.lexists(host / gone), gone
    host_command("uninstall", host)  # again: nothing to do, and no error


def test_uninstall_leaves_another_ones_program_of_that_name(host: Path) -> None:
    link = host / "usr/local/bin/tcpgate"
    link.unlink()
    link.symlink_to("/home/me/bin/tcpgate")
    host_command("uninstall", host)
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [({"PYTHON": ""}, "needs Python 3.11"), ({"PYTHON": "{home}"}, "cannot read a Python under")],
)
def test_a_python_that_the_service_could_not_use_is_refused(
    tmp_path: Path, environ: dict[str, str], complaint: str
) -> None:
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho /root/.pyenv/versions/3.11.7\n")
    fake.chmod(0o755)
    chosen = {name: value.replace("{home}", str(fake)) for name, value in environ.items()}
    done = subprocess.run(
        [ROOT / "systemd" / "host", "install"],
        env={**os.environ, "DESTDIR": str(tmp_path / "host"), **chosen},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not (tmp_path / "host").exists()
