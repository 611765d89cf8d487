"""Accepting in the lane: a listening socket whose connections are taken by a callback, in batches.

Several processes accept from the same socket. All of them are woken for a connection, so being woken for one that
somebody else has taken is normal. (EPOLLEXCLUSIVE would change nothing: nobody sleeps in the lane's own epoll set, it
is watched by Trio's, and then the kernel wakes everyone.) A process that has more than its share leaves the lane for a
moment when somebody waits; then it takes one all the same, so that nobody waits longer because the others are busy.

What is accepted is a `socket.SocketType`, the C socket: the class on top of it costs more than accept(2) does.

Source: accept(2), epoll(7); `listen.py` for what an error of accept(2) means. Owner: whoever made it (`Owner`), who
calls `stop` before the socket is closed.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from socket import SocketType
from typing import NoReturn, Protocol

import trio

from tcpgate.net.address import SocketAddress, port_of
from tcpgate.net.lane import Lane
from tcpgate.net.listen import NEVER_MIND, PAUSE, SHORT_OF

BATCH = 16
"""Connections taken in one go at most, before others in the lane have their turn: well below a millisecond's work."""
COURTESY = 0.001
"""Seconds that a process with more than its share leaves a connection to the others. nginx's accept_disabled, but by
time and not by turns: if the others are busy too, nobody waits longer than this."""


class Owner(Protocol):
    """Who takes the connections. Nothing of it may block."""

    def accepted(self, sock: SocketType, sockaddr: SocketAddress, port: int | None) -> None:
        """A new connection, non-blocking, its owner's from now on, to the listening socket's `port`."""
        ...

    def cannot_accept(self, exc: OSError) -> None:
        """Accepting pauses for want of a resource. Told each time, ten times a second while it lasts."""
        ...

    def room(self) -> int:
        """How many connections to take before this process has more than its share; below 1, others come first."""
        ...

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task."""
        ...


class Acceptor:
    """One listening socket in the lane."""

    def __init__(self, lane: Lane, listener: socket.socket, owner: Owner) -> None:
        self._lane = lane
        self._owner = owner
        self._fd = listener.fileno()
        # What socket.accept is made of: the bare descriptor.
        self._accept: Callable[[], tuple[int, SocketAddress]] = listener._accept  # type: ignore[attr-defined]
        self._shape = int(listener.family), int(listener.type), listener.proto
        self._port = port_of(listener.getsockname())
        self._has_waited = False
        """It has left the connection that waits to others, for long enough."""
        self._scope: trio.CancelScope | None = None
        """Of the task that brings it into the lane, now or after a pause."""
        self._stopped = False

    def begin(self) -> None:
        """Accept from now on, or from the owner's next task step: another one may have to leave this socket first."""
        self._return_after(0)

    def stop(self) -> None:
        """Accept no more. Idempotent. The socket may be closed after this, and has lost no connection."""
        if not self._stopped:  # later the number may be another socket's
            self._stopped = True
            if self._scope is not None:
                self._scope.cancel()
            self._lane.remove(self._fd)

    # -- what the lane calls ----------------------------------------------------------------------------------------

    def on_ready(self, _ready: int) -> None:
        """Somebody waits, or somebody else has taken him."""
        owner, room = self._owner, self._owner.room()
        if room < 1 and not self._has_waited:
            self._has_waited = True
            self._rest(COURTESY)
            return
        self._has_waited = False
        for _ in range(min(max(room, 1), BATCH)):
            try:
                fd, sockaddr = self._accept()
            except OSError as exc:
                self._failed(exc)
                return
            sock = SocketType(*self._shape, fd)
            sock.setblocking(False)
            owner.accepted(sock, sockaddr, self._port)

    def on_fault(self, exc: Exception) -> None:
        """The listening socket is unusable, or there is a bug in what takes connections: the owner's tasks fail."""
        self.stop()
        self._owner.start(partial(_fail, exc))

    # -- pauses -----------------------------------------------------------------------------------------------------

    def _failed(self, exc: OSError) -> None:
        """What accept(2) said instead of a connection."""
        if exc.errno in SHORT_OF:
            self._owner.cannot_accept(exc)
            self._rest(PAUSE)
        elif exc.errno != errno.EAGAIN and exc.errno not in NEVER_MIND:
            raise exc

    def _rest(self, seconds: float) -> None:
        """Leave the lane, and come back."""
        self._lane.remove(self._fd)
        self._return_after(seconds)

    def _return_after(self, seconds: float) -> None:
        self._scope = trio.CancelScope()
        self._owner.start(partial(self._return, seconds, self._scope))

    async def _return(self, seconds: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(seconds)
        if self._stopped:
            return
        try:
            self._lane.add(self._fd, self.on_ready)
        except OSError as exc:  # the user's allowance of epoll watches
            self._owner.cannot_accept(exc)
            self._return_after(PAUSE)


async def _fail(exc: Exception) -> NoReturn:
    await trio.lowlevel.checkpoint()
    raise exc
