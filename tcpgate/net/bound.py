"""Listening sockets with the file that a unix one leaves behind: opened here, closed here, the file taken away here.

A unix socket's file outlives the socket, so whoever opened it must unlink it. By then the path may belong to somebody
else (a second gateway that took it over), so each file is known by device and inode and only our own is removed. A
socket that systemd passed is its, and so is its file.

Source: unix(7). Owner: the supervisor; no task.
"""

from __future__ import annotations

import contextlib
import os
import socket

import attrs

from tcpgate.net import listen
from tcpgate.units import UnixPath, parse_bind


@attrs.define(eq=False)
class Binder:
    """Opens and releases listening sockets by their bind text."""

    inherited: listen.Inherited = attrs.field(factory=dict)
    _files: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    """Bind text -> (device, inode) of the file that we made."""

    def bind(self, text: str, backlog: int) -> socket.socket:
        """A socket that listens on `text`. Raises OSError with a text for people."""
        sock = listen.bind(text, backlog=backlog, inherited=self.inherited)
        address = parse_bind(text)
        if isinstance(address, UnixPath):
            found = os.stat(address.path)
            self._files[text] = (found.st_dev, found.st_ino)
        return sock

    def release(self, text: str, sock: socket.socket) -> None:
        """Close the socket; take its file away if it is still ours. Never raises."""
        sock.close()
        made, address = self._files.pop(text, None), parse_bind(text)
        if made is None or not isinstance(address, UnixPath):
            return
        with contextlib.suppress(OSError):  # gone already, or its folder is not ours any more
            found = os.stat(address.path)
            if (found.st_dev, found.st_ino) == made:
                os.unlink(address.path)
