"""Connecting without a task: the lane drives one non-blocking connect after the other until an address answers.

What `dial.py` does by awaiting is done here by callbacks, with the same results: addresses in turn, each with its share
of the time that is left, the same reasons. The caller is told by `connected` or `connect_failed`, once, either before
`start` returns or later. Over loopback a connect is as a rule complete when connect(2) returns EINPROGRESS, so it is
asked about once before the lane is: most connections to a local endpoint need no event.

connect(2) on a socket that is connecting tells how it went, and unlike SO_ERROR it tells "not yet" from "done" (Linux,
inet_stream_connect: EALREADY, 0 the first time after success, the error after a failure). So an event that was meant
for an earlier owner of the descriptor does no harm.

A connection that has to begin with more than its payload (`greeting.py`: a PROXY header, a TLS handshake) is connected
once that is over; an address where it fails has failed.

A deadline is found out by the lane's sweep, so up to 250 ms late; so is room in the backlog of a unix socket, for which
connect(2) has no queue to wait in.

Source: connect(2), unix(7). Owner: the rider that connects (`Caller`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Protocol

from tcpgate.errors import GateError, Reason, Refused, Retry, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.dial import all_failed, connect_failed, is_itself
from tcpgate.net.greeting import Greeter, Greeting
from tcpgate.net.lane import WRITE, Lane, Rider

CONNECTED = frozenset({0, errno.EISCONN})
NOT_YET = frozenset({errno.EINPROGRESS, errno.EALREADY})


class Caller(Rider, Protocol):
    """A rider that wants a connection. `on_fault` of what happens in between comes to it, too."""

    def connected(self, sock: socket.SocketType, target: Target) -> None:
        """Here it is: non-blocking, TCP_NODELAY set, not registered with the lane, the caller's from now on."""
        ...

    def connect_failed(self, error: GateError) -> None:
        """There is none: UpstreamError(CONNECT_REFUSED, CONNECT_TIMEOUT, UNREACHABLE, TLS_HANDSHAKE, TLS_CERTIFICATE)
        or Refused(FILE_LIMIT)."""
        ...


class Connecting:
    """One try to connect to one of several addresses."""

    # fmt: off
    __slots__ = (
        "_at", "_caller", "_deadline", "_failures", "_fd", "_greeter", "_greeting", "_lane", "_sock", "_targets",
        "_until", "_watched",
    )
    # fmt: on

    def __init__(
        self,
        lane: Lane,
        targets: Sequence[Target],
        deadline: float,
        caller: Caller,
        greeting: Greeting | None = None,
    ) -> None:
        self._lane = lane
        self._targets = targets
        self._deadline = deadline
        self._caller = caller
        self._at = 0
        self._until = deadline
        """When the address at hand has had its share of the time."""
        self._sock: socket.SocketType | None = None
        self._fd = -1
        self._watched = 0
        """Events of it that the lane tells."""
        self._greeting = greeting
        self._greeter: Greeter | None = None
        """Once the address at hand has accepted."""
        self._failures: list[UpstreamError] | None = None

    def start(self) -> None:
        """Begin. The caller may be told before this returns."""
        left = len(self._targets) - self._at
        if left > 1:
            now = self._lane.clock()
            self._until = now + (self._deadline - now) / left
        else:
            self._until = self._deadline
        target = self._targets[self._at]
        try:
            self._sock = sock = socket.SocketType(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._fd = sock.fileno()
            if target.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            state = sock.connect_ex(target.sockaddr)
        except OSError as exc:  # no descriptor left, a path that is too long
            self.cancel()
            self._failed(connect_failed(exc, target))
            return
        if state == errno.EINPROGRESS:
            state = sock.connect_ex(target.sockaddr)
        if state in NOT_YET:
            self._wait(WRITE, target)
        elif state == errno.EAGAIN:  # a unix socket with a full backlog
            self._lane.timed.add(self)
        else:
            self._settle(sock, target, state)

    def cancel(self) -> None:
        """No connection is wanted any more; the caller is told nothing. Idempotent."""
        sock, self._sock = self._sock, None
        greeter, self._greeter = self._greeter, None
        if sock is not None:
            self._lane.timed.discard(self)
            self._lane.forget(self._fd)
            self._watched = 0
            sock.close()
        if greeter is not None:
            greeter.sock.close()

    # -- what the lane calls ----------------------------------------------------------------------------------------

    def on_ready(self, _ready: int) -> None:
        """The connect has come to something."""
        sock, target = self._sock, self._targets[self._at]
        if self._greeter is not None:
            self._greet(self._greeter, target)
        elif sock is not None:
            state = sock.connect_ex(target.sockaddr)
            if state not in NOT_YET:
                self._settle(sock, target, state)

    def sweep(self, now: float) -> None:
        """Give an address up that has had its time; knock again at a unix socket."""
        sock, target = self._sock, self._targets[self._at]
        if sock is None:
            return
        greeter = self._greeter
        if now >= self._until:
            self.cancel()
            late = UpstreamError(Reason.CONNECT_TIMEOUT, f"{target}: no answer", retry=Retry.IF_UNSENT)
            self._failed(late if greeter is None else greeter.late())
        elif greeter is None and target.family == socket.AF_UNIX:
            state = sock.connect_ex(target.sockaddr)
            if state != errno.EAGAIN:
                self._settle(sock, target, state)

    def on_fault(self, exc: Exception) -> None:
        """A bug, here or in what the caller did when it was told."""
        self.cancel()
        self._caller.on_fault(exc)

    # -- how it goes ------------------------------------------------------------------------------------------------

    def _watch(self, events: int) -> None:
        """Be told these events. OSError: no room."""
        if not self._watched:
            self._lane.add(self._fd, self.on_ready, events)
        elif events != self._watched:
            self._lane.change(self._fd, events)
        self._watched = events

    def _wait(self, events: int, target: Target) -> None:
        try:
            self._watch(events)
        except OSError as exc:  # the user's allowance of epoll watches
            self.cancel()
            self._failed(Refused(Reason.FILE_LIMIT, f"{target}: {errno.errorcode.get(exc.errno or 0, str(exc))}"))
        else:
            self._lane.timed.add(self)

    def _settle(self, sock: socket.SocketType, target: Target, state: int) -> None:
        """`state` is what connect(2) came to."""
        if state not in CONNECTED:
            failure = OSError(state, errno.errorcode.get(state, "error"))
        elif is_itself(sock, target):
            failure = OSError(errno.ECONNREFUSED, "connected to itself")
        elif self._greeting is not None:
            self._greeter = Greeter(self._greeting, sock, target)
            self._greet(self._greeter, target)
            return
        else:
            self._connected(sock, target)
            return
        self.cancel()
        self._failed(connect_failed(failure, target))

    def _greet(self, greeter: Greeter, target: Target) -> None:
        """Go on with what the connection begins with."""
        try:
            events = greeter.step()
        except UpstreamError as error:
            self.cancel()
            self._failed(error)
            return
        if events:
            self._wait(events, target)
        else:
            self._connected(greeter.sock, target)

    def _connected(self, sock: socket.SocketType, target: Target) -> None:
        self._sock = self._greeter = None
        if self in self._lane.timed:  # it had to wait
            self._lane.timed.discard(self)
        if self._watched:
            self._watched = 0
            self._lane.remove(self._fd)
        self._caller.connected(sock, target)

    def _failed(self, error: GateError) -> None:
        """The address at hand will not do: on to the next one, if there is one and it may do better."""
        if not isinstance(error, UpstreamError):
            self._caller.connect_failed(error)
            return
        self._failures = [*(self._failures or ()), error]
        self._at += 1
        if self._at < len(self._targets):
            self.start()
        else:
            self._at -= 1
            self._caller.connect_failed(all_failed(self._failures))
