"""What tests of more than one room need: free ports, waiting with a deadline, certificates, the drills' length."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import attrs
import hypothesis
import pytest
import trio
import trustme

# No deadline: a machine that is busy with something else is no bug. The blob makes a failure repeatable by hand.
hypothesis.settings.register_profile("tcpgate", deadline=None, print_blob=True, max_examples=50)
# Branches are reached by a few examples; each costs three times as much while they are counted.
hypothesis.settings.register_profile("cover", hypothesis.settings.get_profile("tcpgate"), max_examples=10)
hypothesis.settings.load_profile("tcpgate")

T = TypeVar("T")


class Eventually(Protocol):
    """`await eventually(probe)`: the first true value of `probe()`, which may be async."""

    @overload
    async def __call__(self, probe: Callable[[], Awaitable[T]], *, within: float = 30.0, what: str = "") -> T:
        """Fails the test after `within` seconds, saying `what` never came and what the probe said last."""
        ...

    @overload
    async def __call__(self, probe: Callable[[], T], *, within: float = 30.0, what: str = "") -> T:
        """The same for a probe that does not wait."""
        ...


@attrs.frozen
class Certificates:
    """An authority of the tests' own, and certificates that it signed, as PEM files."""

    directory: Path
    authority: trustme.CA

    @property
    def ca(self) -> Path:
        """The authority's certificate: what a client must trust."""
        path = self.directory / "ca.pem"
        if not path.exists():
            self.authority.cert_pem.write_to_path(str(path))
        return path

    def issue(self, *names: str) -> tuple[Path, Path]:
        """Certificate chain and key for `names` (host names or addresses), the same files for the same names."""
        stem = "-".join(names).replace("*", "any").replace(":", ".")
        chain, key = self.directory / f"{stem}.crt", self.directory / f"{stem}.key"
        if not chain.exists():
            leaf = self.authority.issue_cert(*names)
            leaf.private_key_pem.write_to_path(str(key))
            for blob in leaf.cert_chain_pems:
                blob.write_to_path(str(chain), append=True)
        return chain, key


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """A supervisor or worker inside a test configures the `tcpgate` loggers; the next test finds them untouched."""
    logger = logging.getLogger("tcpgate")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture(scope="session")
def _own_ports() -> Iterator[int]:
    """Ports below the range that Linux gives out by itself (32768 and up), round and round; each process has its own.

    So no connection and no server of another test takes one before it is listened on.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    share = range(16_000 + process * 1000, 17_000 + process * 1000)
    return itertools.chain(share[os.getpid() % 1000 :], itertools.cycle(share))


@pytest.fixture
def free_port(_own_ports: Iterator[int]) -> Callable[[], int]:
    """Call it for a TCP port that nobody listens on now, on any address; a different one each time."""

    def find() -> int:
        while True:
            port = next(_own_ports)
            with socket.socket() as sock, contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("0.0.0.0", port))
                return port

    return find


@pytest.fixture
def eventually() -> Eventually:
    """Waits, by asking again and again, for what another process or thread does. Real time: no autojump clock."""

    async def wait(probe: Callable[[], Any], *, within: float = 30.0, what: str = "") -> Any:  # noqa: ANN401
        deadline = time.monotonic() + within
        pause = 0.005
        while True:
            value = probe()
            found = await value if inspect.isawaitable(value) else value
            if found:
                return found
            if time.monotonic() > deadline:
                pytest.fail(f"{what or probe} did not come about within {within:g} s; last: {found!r}")
            await trio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    return wait


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates from an authority that lives as long as the test run."""
    return Certificates(tmp_path_factory.mktemp("certificates"), trustme.CA())


@pytest.fixture(scope="session")
def drill_scale() -> float:
    """What a drill multiplies its counts and spans by: 1 at full length, 0.1 under `make drills-quick`."""
    return float(os.environ.get("TCPGATE_DRILL_SCALE", "1"))
