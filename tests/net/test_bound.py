"""A unix listener's file goes with the socket, unless it is somebody else's by now."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tcpgate.net.bound import Binder


def test_a_released_unix_socket_takes_its_file_along(tmp_path: Path) -> None:
    binder, path = Binder(), tmp_path / "a.sock"
    sock = binder.bind(f"unix:{path}", 5)
    assert path.is_socket()
    binder.release(f"unix:{path}", sock)
    assert not path.exists()
    assert sock.fileno() == -1


def test_a_file_that_somebody_else_has_put_there_stays(tmp_path: Path) -> None:
    binder, path = Binder(), tmp_path / "a.sock"
    sock = binder.bind(f"unix:{path}", 5)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        binder.release(f"unix:{path}", sock)
        assert path.is_socket()


def test_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    binder, path = Binder(), tmp_path / "a.sock"
    sock = binder.bind(f"unix:{path}", 5)
    path.unlink()
    binder.release(f"unix:{path}", sock)
    assert sock.fileno() == -1


def test_the_same_path_can_be_bound_again_after_its_release(tmp_path: Path) -> None:
    binder, text = Binder(), f"unix:{tmp_path}/a.sock"
    for _ in range(3):
        binder.release(text, binder.bind(text, 5))
    assert os.listdir(tmp_path) == []


def test_a_unix_socket_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    binder, path = Binder(), tmp_path / "a.sock"
    sock = binder.bind(f"unix:{path}", 5, 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    binder.permit(f"unix:{path}", 0o666)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    path.unlink()
    path.touch(0o600)
    binder.permit(f"unix:{path}", 0o644)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it is somebody else's"
    path.unlink()
    binder.permit(f"unix:{path}", 0o644)
    binder.permit("127.0.0.1:1", 0o644)
    binder.release(f"unix:{path}", sock)


def test_an_inherited_socket_and_its_file_are_systemds(tmp_path: Path) -> None:
    path = tmp_path / "given.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen(5)
        binder = Binder({"web": given})
        binder.release("fd:web", binder.bind("fd:web", 5))
        assert path.is_socket()
        assert given.fileno() >= 0


def test_a_port_is_free_again_after_its_release() -> None:
    binder = Binder()
    first = binder.bind("127.0.0.1:0", 5)
    text = f"127.0.0.1:{first.getsockname()[1]}"
    binder.release("127.0.0.1:0", first)
    binder.release(text, binder.bind(text, 5))


def test_what_cannot_be_bound_leaves_nothing_to_release(tmp_path: Path) -> None:
    binder = Binder()
    with pytest.raises(OSError, match="the directory does not exist"):
        binder.bind(f"unix:{tmp_path}/no/such/a.sock", 5)
    assert list(binder._files) == []


# -- an address that holds another one, or is held by it ------------------------------------------------------------


def greeted(port: int, *listening: socket.socket) -> socket.socket:
    """Which of the sockets gets a connection to 127.0.0.1."""
    with socket.create_connection(("127.0.0.1", port), timeout=20):
        for sock in listening:
            try:
                sock.accept()[0].close()
            except OSError:  # nothing there, or not listening yet
                continue
            return sock
    raise AssertionError("nobody was asked")


@pytest.mark.parametrize(("old", "new"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
def test_a_listener_moves_between_every_address_and_one_without_a_gap(
    old: str, new: str, free_port: Callable[[], int]
) -> None:
    binder, port = Binder(), free_port()
    first = binder.bind(f"{old}:{port}", 5)
    second = binder.bind(f"{new}:{port}", 5)
    assert greeted(port, second, first) is first  # the new one has the address, and no connection goes there yet
    binder.start(f"{new}:{port}")
    assert greeted(port, second, first) in (first, second)
    binder.release(f"{old}:{port}", first)
    assert greeted(port, second) is second
    binder.release(f"{new}:{port}", second)


def test_a_move_that_is_called_off_leaves_the_old_one_as_it_was(free_port: Callable[[], int]) -> None:
    binder, port = Binder(), free_port()
    first = binder.bind(f"0.0.0.0:{port}", 5)
    binder.release(f"127.0.0.1:{port}", binder.bind(f"127.0.0.1:{port}", 5))
    assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert greeted(port, first) is first
    binder.release(f"0.0.0.0:{port}", first)


def test_somebody_elses_socket_still_stands_in_the_way(free_port: Callable[[], int]) -> None:
    binder, other, port = Binder(), Binder(), free_port()
    first = other.bind(f"0.0.0.0:{port}", 5)
    with pytest.raises(OSError, match="already in use"):
        binder.bind(f"127.0.0.1:{port}", 5)
    other.release(f"0.0.0.0:{port}", first)
