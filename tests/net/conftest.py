"""Real sockets over loopback, closed when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tcpgate.net.pipes import PipePool
from tests.net.loopback import Loopback


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """A maker of connected sockets."""
    with ExitStack() as stack:
        yield Loopback(stack)


@pytest.fixture
def pipes() -> Iterator[PipePool]:
    """A pool that must have all its pipes back in the end."""
    pool = PipePool()
    yield pool
    pool.close()
    assert pool.made == 0
