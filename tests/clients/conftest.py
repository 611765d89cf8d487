"""What real clients meet: certificates of our own, an origin that can be checked, the whole gateway in front of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import trio
import trustme

HERE = Path(__file__).parent


@attrs.frozen
class Pki:
    """One authority, and what it has signed, as files."""

    folder: Path
    authority: trustme.CA

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    def issue(self, *names: str, client: str = "") -> tuple[Path, Path]:
        """A certificate and its key; `client`: for a person of that name, instead of for servers."""
        name = (client or names[0]).replace("*", "any").replace("@", "-")
        leaf = self.authority.issue_cert(*(names or (client,)), common_name=client or None)
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        return cert, key


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """A new authority."""
    folder = tmp_path / "pki"
    folder.mkdir()
    made = Pki(folder, trustme.CA())
    made.authority.cert_pem.write_to_path(str(made.ca))
    return made


def next_port() -> int:
    """A port of loopback's that nobody has now, outside the range from which the kernel takes clients' own."""
    for _ in range(1000):
        port = 12000 + int.from_bytes(os.urandom(2)) % 8000
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def wait_open(port: int, process: subprocess.Popen[bytes], within: float = 30.0) -> None:
    """Until somebody accepts at `port`."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"{process.args!r} does not accept at {port}; exit code {process.poll()}")


@contextlib.contextmanager
def running_process(command: list[str], port: int, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A server program that accepts at `port`; gone at the end."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **options) as process:  # type: ignore[call-overload]
        try:
            wait_open(port, process)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[int]:
    """The port of an origin (origin.py); its git repositories are those of tmp_path/git."""
    port = next_port()
    env = {**os.environ, "GIT_PROJECT_ROOT": str(tmp_path / "git")}
    with running_process([sys.executable, str(HERE / "origin.py"), str(port)], port, env=env):
        yield port


def need(*programs: str) -> None:
    """Skip the test where a program is missing; CI installs all of them, and there it is an error."""
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


async def run(
    *command: str | Path,
    within: float = 60.0,
    code: int | None = 0,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> str:
    """What a program prints, both streams together; it must end by itself, with this exit code."""
    words = [str(part) for part in command]
    with trio.fail_after(within):
        done = await trio.run_process(
            words, check=False, capture_stdout=True, stderr=subprocess.STDOUT, stdin=stdin, env=env
        )
    said: str = done.stdout.decode(errors="replace")
    assert code is None or done.returncode == code, said
    return said
