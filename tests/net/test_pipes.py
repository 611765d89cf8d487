"""Pipes between sockets, and the pool that lends them."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from tcpgate.net.pipes import LEAST_SIZE, Pipe, PipePool
from tests.net.loopback import Loopback


@pytest.fixture
def pipe(pipes: PipePool) -> Iterator[Pipe]:
    """A borrowed pipe."""
    found = pipes.borrow()
    assert found is not None
    yield found
    pipes.give_back(found)


@pytest.fixture
def near(loopback: Loopback) -> tuple[socket.socket, socket.socket]:
    """A non-blocking connection."""
    ours, theirs = loopback.pair()
    ours.setblocking(False)
    return ours, theirs


def test_bytes_pass_from_socket_to_socket(loopback: Loopback, pipe: Pipe, near: tuple[socket.socket, ...]) -> None:
    source, sender = near
    sink, reader = loopback.pair()
    assert pipe.fill(source.fileno()) is None
    sender.sendall(b"hello")
    assert pipe.fill(source.fileno()) == 5
    assert pipe.held == 5
    assert pipe.drain(sink.fileno()) == 5
    assert pipe.held == 0
    assert reader.recv(9) == b"hello"
    sender.close()
    assert pipe.fill(source.fileno()) == 0


def test_a_full_sink_takes_nothing_and_the_pipe_keeps_it(pipe: Pipe, near: tuple[socket.socket, ...]) -> None:
    ours, theirs = near
    theirs.sendall(b"x" * 1000)
    assert pipe.fill(ours.fileno()) == 1000
    while True:
        try:
            ours.send(b"y" * 65536)
        except BlockingIOError:
            break
    while moved := pipe.drain(ours.fileno()):
        assert moved < 1000
    assert pipe.held > 0
    held = pipe.held
    assert pipe.take_back() == b"x" * held
    assert pipe.held == 0


def test_a_pipe_that_comes_back_empty_is_lent_again() -> None:
    pool = PipePool()
    first = pool.borrow()
    assert first is not None
    pool.give_back(first)
    assert pool.borrow() is first
    pool.give_back(first)
    assert (pool.made, pool.free) == (1, 1)
    pool.close()
    assert (pool.made, pool.free) == (0, 0)


def test_a_pipe_that_comes_back_with_bytes_is_closed(pipes: PipePool, near: tuple[socket.socket, ...]) -> None:
    ours, theirs = near
    pipe = pipes.borrow()
    assert pipe is not None
    theirs.sendall(b"secret of another")
    pipe.fill(ours.fileno())
    pipes.give_back(pipe)
    assert (pipes.made, pipes.free) == (0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_fd)


def test_there_are_never_more_pipes_than_allowed() -> None:
    pool = PipePool(most=2)
    one, two = pool.borrow(), pool.borrow()
    assert one is not None
    assert two is not None
    assert pool.borrow() is None
    pool.give_back(one)
    assert pool.borrow() is one
    pool.close()
    pool.give_back(one)
    pool.give_back(two)
    assert pool.made == 0
    assert pool.borrow() is None, "a closed pool lends nothing"


def test_without_descriptors_there_is_no_pipe(pipes: PipePool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert pipes.borrow() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pipes.made == 0


def test_a_pipe_that_the_kernel_keeps_too_small_is_not_used(pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("tcpgate.net.pipes.LEAST_SIZE", 1 << 30)
    assert pipes.borrow() is None
    assert pipes.made == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_is_large_enough_to_be_worth_it(pipe: Pipe) -> None:
    assert pipe.size >= LEAST_SIZE
