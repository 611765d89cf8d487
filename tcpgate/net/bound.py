"""Listening sockets by their bind text: opened here, closed here, and a unix one's file taken away here.

A unix socket's file outlives the socket, so whoever opened it must unlink it. By then the path may belong to somebody
else (a second gateway that took it over), so each file is known by device and inode and only our own is removed. A
socket that systemd passed is its, and so is its file.

A listener that moves from 0.0.0.0:80 to 127.0.0.1:80, or back, needs the new address while the old one still serves,
and for the kernel these two clash. If it is one of our own sockets that stands in the way, both get SO_REUSEPORT for
that moment. The new one does not listen before `start`, so until a reload is sure of itself no connection goes there.

Source: unix(7), socket(7). Owner: the supervisor; no task.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

import attrs

from tcpgate.net import listen
from tcpgate.units import HostPort, UnixPath, parse_bind

_ANY = ("0.0.0.0", "::")


@attrs.define(eq=False)
class Binder:
    """Opens and releases listening sockets by their bind text."""

    inherited: listen.Inherited = attrs.field(factory=dict)
    _open: dict[str, socket.socket] = attrs.field(factory=dict)
    _files: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    """Bind text -> (device, inode) of the file that we made."""
    _waiting: dict[str, tuple[int, list[socket.socket]]] = attrs.field(factory=dict)
    """Bind text of a socket that has its address, but does not listen yet -> its backlog, and what is in its way."""

    def bind(self, text: str, backlog: int, mode: int = 0o660) -> socket.socket:
        """A socket for `text`, which listens after `start` at the latest. Raises OSError with a text for people.

        `mode`: who may connect to a unix socket, as chmod(1) has it.
        """
        address = parse_bind(text)
        try:
            sock = listen.bind(text, backlog=backlog, inherited=self.inherited, mode=mode)
        except OSError as exc:
            ours = self._in_the_way(address) if isinstance(address, HostPort) and exc.errno == errno.EADDRINUSE else []
            if not ours:
                raise
            with _sharing(ours):
                sock = listen.bind(text, beside=True)
            self._waiting[text] = backlog, ours
        if isinstance(address, UnixPath):
            found = os.stat(address.path)
            self._files[text] = (found.st_dev, found.st_ino)
        self._open[text] = sock
        return sock

    def permit(self, text: str, mode: int) -> None:
        """Give a unix socket's file another mode, if it is there and still ours. Never raises."""
        made, address = self._files.get(text), parse_bind(text)
        if made is None or not isinstance(address, UnixPath):
            return
        with contextlib.suppress(OSError):  # somebody has taken it away
            found = os.stat(address.path)
            if (found.st_dev, found.st_ino) == made and stat.S_IMODE(found.st_mode) != mode:
                os.chmod(address.path, mode)

    def start(self, text: str) -> None:
        """Listen, if it does not yet. Raises OSError."""
        backlog, ours = self._waiting.pop(text, (0, []))
        if ours:
            with _sharing([sock for sock in ours if sock.fileno() >= 0]):  # listen(2) looks at the address once more
                self._open[text].listen(backlog)
            self._open[text].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)

    def release(self, text: str, sock: socket.socket) -> None:
        """Close the socket; take its file away if it is still ours. Never raises."""
        sock.close()
        self._open.pop(text, None)
        self._waiting.pop(text, None)
        made, address = self._files.pop(text, None), parse_bind(text)
        if made is None or not isinstance(address, UnixPath):
            return
        with contextlib.suppress(OSError):  # gone already, or its folder is not ours any more
            found = os.stat(address.path)
            if (found.st_dev, found.st_ino) == made:
                os.unlink(address.path)

    def _in_the_way(self, wanted: HostPort) -> list[socket.socket]:
        """Our own sockets on the same port, of which one address holds the other."""
        found = []
        for text, sock in self._open.items():
            other = parse_bind(text)
            if not isinstance(other, HostPort) or other.port != wanted.port:
                continue
            if (":" in other.host) == (":" in wanted.host) and (other.host in _ANY) != (wanted.host in _ANY):
                found.append(sock)
        return found


@contextlib.contextmanager
def _sharing(socks: list[socket.socket]) -> Iterator[None]:
    """Let them share their port for a moment; with the option off again no third socket gets in as easily."""
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
