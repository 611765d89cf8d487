"""How the link's frames move: over a stream socketpair between processes, or through memory within one.

Theory of operation. A frame on the socket is its head (length of the body and number of fds, `!IH`), one marker byte
for each 253 fds with those fds attached to it, then the body. One sendmsg carries at most 253 (SCM_MAX_FD, unix(7)),
and the kernel hands attached fds over together with the byte that they stand on. So when a body has been read its fds
have come as well, in order, and are taken from the front of a queue. A reader that has no fd left gets some of them
only (MSG_CTRUNC); that ends the link, because nobody could say any more which fd is which.

A frame knows how much of it has left, so whoever pushes next goes on in the middle of it. Owner: none;
`process/link.py` calls.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

FDS_AT_ONCE = 253
_HEAD = struct.Struct("!IH")
_INT = array.array("i").itemsize
_FDS_SPACE = socket.CMSG_SPACE(FDS_AT_ONCE * _INT)
_READ = 256 << 10
_MEMORY_FRAMES = 8
"""Frames that a way through memory holds; then it is full, as a socket's buffer is."""


class LinkClosed(Exception):
    """The other side is gone, or what it sends cannot be believed; says which."""


@attrs.define(eq=False)
class Frame:
    """A message on its way out."""

    body: bytes
    fds: list[int]
    """Duplicates, and the frame's own: the sender may close what it gave."""
    left: int = 0
    """Bytes that have left, head and markers included."""
    gone: bool = False
    """All of it has left, or it was given up."""
    patient: bool = True
    """Somebody waits for it; else it counts towards what may wait unattended."""

    def close(self) -> None:
        """Give back the fds that were not handed over."""
        _close_all(self.fds)


def duplicates(fds: Sequence[int]) -> list[int]:
    """A duplicate of each; OSError if there are not enough descriptors, and then there is none."""
    own: list[int] = []
    try:
        own.extend(os.dup(fd) for fd in fds)
    except OSError:
        _close_all(own)
        raise
    return own


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


class Pipe(Protocol):
    """Takes frames on one side, gives bodies and fds on the other."""

    def push_nowait(self, frame: Frame) -> bool:
        """Whether all of `frame` has left now. Raises LinkClosed."""
        ...

    async def wait_pushable(self) -> None:
        """Until a push may come further. Raises LinkClosed."""
        ...

    async def pull(self) -> tuple[bytes, list[int]]:
        """The next body and its fds. Cancelled, it loses nothing. Raises LinkClosed."""
        ...

    def close(self) -> None:
        """End both ways; whoever waits gets LinkClosed."""
        ...


class SocketPipe:
    """Frames over one end of a SOCK_STREAM socketpair."""

    def __init__(self, sock: socket.socket, *, limit: int, takes_fds: bool) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._takes_fds = takes_fds
        self._bytes = bytearray()
        self._fds: list[int] = []

    # -- out --------------------------------------------------------------------------------------------------------

    def push_nowait(self, frame: Frame) -> bool:
        """Whether all of `frame` has left now. Raises LinkClosed."""
        markers = -(-len(frame.fds) // FDS_AT_ONCE)
        head = _HEAD.pack(len(frame.body), len(frame.fds)) + bytes(markers)
        size = len(head) + len(frame.body)
        try:
            while frame.left < size:
                frame.left += self._push_some(frame, head)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise LinkClosed(f"the other side is gone: {exc.strerror}") from exc
        return True

    def _push_some(self, frame: Frame, head: bytes) -> int:
        """Bytes that left: of the plain part of the head, one marker with its fds, or of the body."""
        left = frame.left
        if not frame.fds and left < len(head):
            return self._sock.sendmsg([head[left:], frame.body])
        if left < _HEAD.size:
            return self._sock.send(head[left : _HEAD.size])
        if left < len(head):
            first = (left - _HEAD.size) * FDS_AT_ONCE
            fds = array.array("i", frame.fds[first : first + FDS_AT_ONCE])
            return self._sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return self._sock.send(memoryview(frame.body)[left - len(head) :])

    async def wait_pushable(self) -> None:
        """Until the socket takes more."""
        await _wait(trio.lowlevel.wait_writable, self._sock)

    # -- in ---------------------------------------------------------------------------------------------------------

    async def pull(self) -> tuple[bytes, list[int]]:
        """The next body and its fds."""
        await trio.lowlevel.checkpoint()
        while (found := self._take()) is None:
            if not self._read_nowait():
                await _wait(trio.lowlevel.wait_readable, self._sock)
        return found

    def _take(self) -> tuple[bytes, list[int]] | None:
        """The first whole frame of what was read."""
        if len(self._bytes) < _HEAD.size:
            return None
        length, count = _HEAD.unpack_from(self._bytes)
        if length > self._limit or (count and not self._takes_fds):
            raise LinkClosed(f"the other side announces {length} bytes and {count} fds, which it may not")
        start = _HEAD.size - (-count // FDS_AT_ONCE)
        if len(self._bytes) < start + length:
            return None
        if len(self._fds) < count:
            raise LinkClosed(f"{count} fds were announced and {len(self._fds)} came")
        body, fds = bytes(self._bytes[start : start + length]), self._fds[:count]
        del self._bytes[: start + length], self._fds[:count]
        return body, fds

    def _read_nowait(self) -> bool:
        """Whether there was something to read."""
        try:
            data = self._receive()
        except BlockingIOError:
            return False
        except OSError as exc:
            raise LinkClosed(f"the other side is gone: {exc.strerror}") from exc
        if not data:
            raise LinkClosed("the other side is gone" + (", in the middle of a message" if self._bytes else ""))
        self._bytes += data
        return True

    def _receive(self) -> bytes:
        if not self._takes_fds:
            # No room for control data: the kernel closes fds that come all the same.
            return self._sock.recv(_READ)
        data, control, flags, _ = self._sock.recvmsg(_READ, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % _INT])
                self._fds += fds
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "fds were lost, this process has too many open")
        return data

    def close(self) -> None:
        """Close the socket; what was read and nobody took is lost."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        self._bytes.clear()
        _close_all(self._fds)


async def _wait(ready: Callable[[socket.socket], Awaitable[None]], sock: socket.socket) -> None:
    """`ready(sock)`, where a socket that is closed meanwhile, or was before, is the link's end."""
    try:
        await ready(sock)
    except (trio.ClosedResourceError, ValueError, OSError) as exc:
        raise LinkClosed("this end was closed") from exc


@attrs.define(eq=False)
class _Way:
    """One direction through memory."""

    frames: deque[tuple[bytes, list[int]]] = attrs.field(factory=deque)
    ended: bool = False
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


class MemoryPipe:
    """Frames through memory, for both halves in one `trio.run`; fds are duplicated as a socket would."""

    def __init__(self, out: _Way, into: _Way) -> None:
        self._out = out
        self._in = into

    def push_nowait(self, frame: Frame) -> bool:
        """Whether `frame` has left now. Raises LinkClosed."""
        if self._out.ended:
            raise LinkClosed("the other side is gone")
        if len(self._out.frames) >= _MEMORY_FRAMES:
            return False
        self._out.frames.append((frame.body, frame.fds))
        frame.fds = []
        self._out.changed.unpark_all()
        return True

    async def wait_pushable(self) -> None:
        """Until the other side has taken a frame, or is gone."""
        await self._out.changed.park()

    async def pull(self) -> tuple[bytes, list[int]]:
        """The next body and its fds."""
        await trio.lowlevel.checkpoint()
        while not self._in.frames:
            if self._in.ended:
                raise LinkClosed("the other side is gone")
            await self._in.changed.park()
        self._in.changed.unpark_all()
        return self._in.frames.popleft()

    def close(self) -> None:
        """End both ways. What was sent can still be read, what was not read here is lost."""
        for _, fds in self._in.frames:
            _close_all(fds)
        self._in.frames.clear()
        for way in (self._in, self._out):
            way.ended = True
            way.changed.unpark_all()


def memory_pipes() -> tuple[MemoryPipe, MemoryPipe]:
    """Two ends of one."""
    there, back = _Way(), _Way()
    return MemoryPipe(there, back), MemoryPipe(back, there)
