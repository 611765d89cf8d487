"""Bytes from socket to socket inside the kernel: splice(2) through a pipe, and the pool of such pipes.

Theory of operation. splice(2) moves pages from a socket into a pipe and from the pipe into another socket without
copying them through this process. A pipe is empty except in the middle of a move, so a direction borrows one only
while it has bytes on their way and gives it back before it waits for more. What is out of the pool is therefore
bounded by the number of directions whose reader is slow. A pipe that is not empty when its user is done (cancelled,
reset) is thrown away: the bytes in it belong to nobody else. When there is no pipe to be had, the caller copies
instead.

Source: splice(2), pipe(7), fcntl(2) F_SETPIPE_SZ. Owner: one pool per worker, used by its relays, closed by the
worker.
"""

from __future__ import annotations

import errno
import fcntl
import os

import attrs

PIPE_SIZE = 1 << 20
"""Bytes that a pipe may hold: fs.pipe-max-size, the most an unprivileged user gets. CPU per GB over loopback,
measured: 64 KiB 400 ms, 256 KiB 360 ms, 1 MiB 240 ms; copying 330 to 470 ms. No memory is set aside: a pipe refers to
pages."""
LEAST_SIZE = 1 << 16
"""A smaller pipe is no better than copying. It is what a user gets beyond fs.pipe-user-pages-soft (64 MiB of
pipes)."""
MOST_PIPES = 64
"""Pipes at once, per worker: two descriptors each."""
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""This pair of descriptors, or this kernel or sandbox, cannot splice."""


@attrs.define(eq=False)
class Pipe:
    """A kernel buffer that bytes pass through."""

    read_fd: int
    write_fd: int
    size: int
    held: int = 0
    """Bytes in it now."""

    def fill(self, source: int, most: int = PIPE_SIZE) -> int | None:
        """Bytes that came from the socket `source`, 0 at its end of stream, None if it has nothing now. OSError.

        `most`: no more than so many, because what follows them is not to be moved.
        """
        try:
            count = os.splice(source, self.write_fd, min(self.size - self.held, most), flags=FLAGS)
        except BlockingIOError:
            return None
        self.held += count
        return count

    def drain(self, sink: int) -> int:
        """Bytes that went to the socket `sink`; 0 if it has no room now. OSError."""
        try:
            count = os.splice(self.read_fd, sink, self.held, flags=FLAGS)
        except BlockingIOError:
            return 0
        self.held -= count
        return count

    def take_back(self) -> bytes:
        """What is in the pipe, copied out: for a sink that cannot splice."""
        data = os.read(self.read_fd, self.held) if self.held else b""
        self.held -= len(data)
        return data

    def close(self) -> None:
        """Close both ends; what was held is dropped."""
        os.close(self.read_fd)
        os.close(self.write_fd)


@attrs.define(eq=False)
class PipePool:
    """Pipes to borrow. Sync, so no cancellation can lose one."""

    most: int = MOST_PIPES
    """Pipes that may exist at once."""
    made: int = 0
    """Pipes that exist now, borrowed ones too."""
    _free: list[Pipe] = attrs.field(init=False, factory=list)
    _closed: bool = attrs.field(init=False, default=False)

    @property
    def free(self) -> int:
        """Pipes that nobody has borrowed."""
        return len(self._free)

    def borrow(self) -> Pipe | None:
        """An empty pipe, or None if there are enough, or no descriptors left. Give it back with `give_back`."""
        if self._free:
            return self._free.pop()
        if self.made >= self.most or self._closed:
            return None
        try:
            read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        pipe = Pipe(read_fd, write_fd, _enlarge(write_fd))
        if pipe.size < LEAST_SIZE:
            pipe.close()
            return None
        self.made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """The borrower is done. A pipe with bytes in it is closed."""
        if pipe.held or self._closed:
            pipe.close()
            self.made -= 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the free pipes; a borrowed one is closed when it comes back."""
        self._closed = True
        while self._free:
            self.give_back(self._free.pop())


def _enlarge(fd: int) -> int:
    """The pipe's size: PIPE_SIZE if the user's allowance has room for it, else what the kernel gave it."""
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
