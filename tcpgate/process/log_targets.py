"""Where log lines end: a stream that others share, a file that is rotated, systemd's journal.

A target writes from a worker thread and may wait there, but never for long: it takes what it can within `PATIENCE`
and says how far it came. What cannot be written now is tried again (`Written.error` is None), what cannot be written at
all is lost (`Written.error` says why); the sink (`process/logs.py`) keeps the account.

Theory of operation. Stdout is one pipe, or one stream socket of journald's, for all workers. POSIX promises that a
write of at most PIPE_BUF bytes is never mixed with another's, so a batch is cut, at line ends, into such pieces.
O_NONBLOCK would belong to the pipe and so to every process that has it, the shell too; so the fd stays as it came,
and is polled before each piece: a pipe that polls writable has room for PIPE_BUF (if another worker takes it first,
only this thread waits). A file is opened with O_APPEND, so a batch is one write that lands whole, after whatever
others wrote.

Owner: none; the sink's thread calls, one call at a time. Source: pipe(7), write(2), systemd's "Native Journal
Protocol".
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import stat
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import attrs

from tcpgate.errors import ConfigError, Problem
from tcpgate.stats.line import LINE_LIMIT

PATIENCE = 0.25
"""How long one call may wait for a slow reader (seconds); a drain is answered this late at most."""
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_RETRY = 0.01  # seconds between two tries where poll(2) cannot tell when to try
_FILE_PIECE = 1 << 20


@attrs.frozen
class Written:
    """How far a batch came."""

    done: int
    """So many of the lines, from the first, are written whole."""
    error: OSError | None = None
    """None: the rest may be tried again. Else the rest cannot be written, and why."""


class Target(Protocol):
    """Takes whole lines, each with its line end."""

    def write(self, lines: Sequence[bytes]) -> Written:
        """Write them in order, as far as goes within `PATIENCE`. Never raises OSError."""
        ...

    def close(self) -> None:
        """Give back what this target opened itself."""
        ...


class StreamTarget:
    """An fd that is this target's own from now on: one of a file, or a duplicate of stdout."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._torn = False

    def write(self, lines: Sequence[bytes]) -> Written:
        """Pieces of whole lines, as large as go in one unmixed write."""
        deadline = time.monotonic() + PATIENCE
        limit = _FILE_PIECE if self._is_file else LINE_LIMIT
        ends = list(accumulate(map(len, lines)))
        done = written = 0
        while done < len(lines):
            # As many as fit; a line longer than the limit goes alone.
            next_ = max(done + 1, bisect_right(ends, written + limit, done))
            piece = b"".join(lines[done:next_])
            whole, error = self._push(piece, next_ - done, deadline)
            done += whole
            if error is not None or done < next_:
                return Written(done, error)
            written = ends[done - 1]
        return Written(done)

    def _push(self, piece: bytes, count: int, deadline: float) -> tuple[int, OSError | None]:
        """How many lines of `piece`, of `count`, were written whole, and what stopped it if it cannot go on."""
        # Whoever reads on after a torn line finds the next one whole, on a line of its own.
        data = b"\n" + piece if self._torn else piece
        sent, error = self._send(data, deadline)
        if sent == len(data):
            self._torn = False
            return count, error
        whole = data[:sent].count(b"\n") - (self._torn and sent > 0)
        if sent:
            self._torn = not data[:sent].endswith(b"\n")
        if error is None and sent > 0:
            error = OSError(errno.EIO, "it stopped in the middle of a line")
        return whole, error

    def _send(self, data: bytes, deadline: float) -> tuple[int, OSError | None]:
        """How many bytes went before the deadline or an error."""
        sent = 0
        # A file is always ready, and each call to ask gives the interpreter away, which the loop's thread pays for.
        while sent < len(data) and (self._is_file or self._writable(deadline)):
            try:
                sent += os.write(self._fd, memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                # Somebody made the pipe non-blocking, and another writer was quicker than this one.
                time.sleep(_RETRY)
            except OSError as exc:
                return sent, exc
        return sent, None

    def _writable(self, deadline: float) -> bool:
        """Whether there is room before the deadline. A reader that is gone counts: the write says so, poll does not."""
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return left > 0 and bool(poll.poll(left * 1000))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


class FileTarget(StreamTarget):
    """A file, appended to, that rotation may move away at any time."""

    def __init__(self, path: Path) -> None:
        super().__init__(_open_log(path))
        self.path = path

    def reopen(self) -> None:
        """Go on in a new file at the same path; OSError leaves the old one in use."""
        old, self._fd = self._fd, _open_log(self.path)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._torn = False
        with contextlib.suppress(OSError):  # a late error of the old file's; the kernel closes it all the same
            os.close(old)


def _open_log(path: Path) -> int:
    """An fd that appends to `path`, made 0640 if it was not there. O_NONBLOCK: a FIFO without a reader is an error."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, 0o640)
    os.fchmod(fd, 0o640)  # the unit's umask would leave no reader in the group
    return fd


class JournalTarget:
    """systemd's journal, a datagram a line: MESSAGE is the line itself, and what people search by is a field."""

    def __init__(self, path: Path = JOURNAL_SOCKET, identifier: str = "tcpgate") -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "systemd's journal does not listen there", str(path))
        self._path = str(path)
        self._identifier = identifier
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def write(self, lines: Sequence[bytes]) -> Written:
        """A datagram a line. Addressed each time, so a journald that was restarted is found again."""
        deadline = time.monotonic() + PATIENCE
        for done, line in enumerate(lines):
            datagram = journal_datagram(line, self._identifier)
            while True:
                try:
                    self._sock.sendto(datagram, self._path)
                    break
                except BlockingIOError:  # its queue is full; poll(2) does not look at the queue of an address
                    if time.monotonic() > deadline:
                        return Written(done)
                    time.sleep(_RETRY)
                except OSError as exc:
                    return Written(done, exc)
        return Written(len(lines))

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_JOURNAL_FIELDS = {
    "id": "REQUEST_ID",
    "trace": "TRACE_ID",
    "reason": "REASON",
    "status": "STATUS",
    "listener": "LISTENER",
    "route": "ROUTE",
    "upstream": "UPSTREAM",
    "endpoint": "ENDPOINT",
    "client": "CLIENT",
    "event": "EVENT",
    "logger": "LOGGER",
}
"""Key of a line -> field of the journal: what one greps for in `journalctl REASON=connect_refused`."""


def journal_datagram(line: bytes, identifier: str) -> bytes:
    """`line` in journald's native protocol: KEY=VALUE by line, a value with a line end by its length."""
    facts: dict[str, Any] = json.loads(line)
    fields = {
        "MESSAGE": line.rstrip(b"\n").decode(),
        "PRIORITY": str(_PRIORITIES.get(facts.get("level", "info"), 6)),
        "SYSLOG_IDENTIFIER": identifier,
    }
    fields |= {field: str(facts[key]) for key, field in _JOURNAL_FIELDS.items() if facts.get(key)}
    return b"".join(_journal_field(key, value.encode("utf-8", "replace")) for key, value in fields.items())


def _journal_field(key: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (key.encode(), len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (key.encode(), value)


def open_target(access: str, *, stdout: int = 1, journal: Path = JOURNAL_SOCKET) -> Target | None:
    """The target that `[log] access` names; None for "off". Raises ConfigError if it cannot be opened."""
    if access == "off":
        return None
    try:
        if access == "stdout":
            return StreamTarget(os.dup(stdout))
        return JournalTarget(journal) if access == "journal" else FileTarget(Path(access))
    except OSError as exc:
        raise ConfigError([Problem(str(exc.filename or access), 0, "log.access", _why(access, exc))]) from exc


def _why(access: str, exc: OSError) -> str:
    """What is wrong, and what would be right."""
    if isinstance(exc, FileNotFoundError) and access not in ("stdout", "journal"):
        return f'there is no directory {Path(access).parent}; make it, or write "stdout", "journal" or "off"'
    return f"cannot be opened: {exc.strerror}"
