"""Log lines out of the loop: gathered without waiting, written in batches by a thread, never at the cost of traffic.

`append` takes a line and returns at once, whatever the disk, the pipe or journald do: lines wait in a bounded buffer,
and what does not fit is dropped and counted. One task writes: 100 ms after the first line or when 256 KiB have
gathered, and one batch at a time, so lines keep their order. A loss is told once when it begins and once when it is
over, not per line.

`Diagnostics` gives Python's `logging` the same shape and the same way out, for the `tcpgate.*` loggers.

Owner of `write_forever`: the root nursery of the supervisor and of each worker. Source: nginx's `access_log buffer=
flush=`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import attrs
import outcome
import trio

from tcpgate.config import schema
from tcpgate.process.log_targets import FileTarget, Target, Written, open_target
from tcpgate.stats import journal, record
from tcpgate.stats.journal import LEVELS, EventKind
from tcpgate.stats.line import SCHEMA, cut, quote

BATCH_SECONDS = 0.1
"""How long a line may wait for company."""
BATCH_BYTES = 256 << 10
"""Or a quarter of the buffer, if that is less. A batch costs a thread's waking and a fight for the interpreter, about
200 us: at 40,000 lines a second batches of 64 KiB came to 2.3 us a line, these to 1.1."""
CALM = 10.0
"""Seconds without a loss after which it counts as over: overload comes in bursts, and each burst is not an event."""
GOODBYE = 1.0
"""Seconds that a drain lasts unless its caller has a deadline."""

Facts = Mapping[str, str | int | float]
Tell = Callable[[str, str, str, Facts], None]
"""(kind, level, text, facts) for the event journal."""


@attrs.define(eq=False)
class _Job:
    """What one call of the writing thread is to do."""

    target: Target
    lines: list[bytes]
    reopen: bool = False
    last: bool = False
    """The target was replaced: these are the lines that waited for it then."""

    def run(self) -> tuple[Written, OSError | None]:
        """Reopen, write, close: how that went, and why it goes on in the old file if it does. In the thread."""
        error = None
        if self.reopen and isinstance(self.target, FileTarget):
            try:
                self.target.reopen()
            except OSError as exc:
                error = exc
        written = self.target.write(self.lines)
        if self.last:
            with contextlib.suppress(OSError):  # the kernel closes it all the same
                self.target.close()
        return written, error


_Result = outcome.Outcome[tuple[Written, OSError | None]]


class LineSink:
    """Where this process's lines go. All of it runs in the loop's own thread, but for `_Job.run`."""

    def __init__(
        self,
        on_drop: Callable[[int], None],
        tell: Tell | None = None,
        opener: Callable[[str], Target | None] = open_target,
    ) -> None:
        self.dropped = 0
        """Lines lost since the start, for whatever cause."""
        self._on_drop = on_drop
        self._tell = tell
        self._open = opener
        self._spec: schema.Log | None = None
        self._target: Target | None = None
        self._last_jobs: deque[_Job] = deque()
        self._lines: list[bytes] = []
        self._size = 0  # bytes that wait or are being written
        self._limit: int = schema.Log().buffer
        self._batch = min(BATCH_BYTES, self._limit // 4)
        self._taken = 0  # of `_size`: what is being written
        self._quiet = 0  # while `_size` stays below, a line changes nothing but itself; 0: look
        self._level = 0
        self._reopen = False
        self._job: _Job | None = None  # what the thread is at
        self._idle = trio.Event()  # the thread is through
        self._some = trio.Event()  # there is work
        self._full = trio.Event()  # there is a batch of it
        self._episode: set[EventKind] = set()  # losses told and not yet over
        self._episode_lost = 0
        self._sound = True  # the last write took all that it was given
        self._calm_at = math.inf

    # -- the fast side ----------------------------------------------------------------------------------------------

    def append(self, line: bytes) -> None:
        """Take `line` (whole, with its line end), or drop and count it if the buffer is full. Never waits or raises."""
        size = self._size + len(line)
        if size < self._quiet:
            self._size = size
            self._lines.append(line)
        else:
            self._append(line, size)

    def extend(self, lines: Sequence[bytes]) -> None:
        """Take several lines, each as `append` does."""
        size = self._size + sum(map(len, lines))
        if size < self._quiet:
            self._size = size
            self._lines += lines
        else:
            for line in lines:
                self.append(line)

    def _append(self, line: bytes, size: int) -> None:
        """The long way: there may be no room, or somebody to wake."""
        if self._target is None:
            return
        if size > self._limit:
            self._lose(
                1, EventKind.LOG_DROPPED, f"log lines come faster than they are written; {self._size} bytes wait"
            )
            return
        self._size = size
        self._lines.append(line)
        self._some.set()
        self._quiet = self._limit + 1
        # What is being written is no part of the next batch: else there would be a small one after each.
        if size >= self._taken + self._batch:
            self._full.set()
        else:
            self._quiet = min(self._quiet, self._taken + self._batch)

    def append_record(self, access: record.AccessRecord) -> None:
        """Take an access line; with `access = "off"` it is not even rendered."""
        if self._target is not None:
            self.append(record.render(access))

    def append_event(self, event: journal.Event) -> None:
        """Take an event if it is severe enough. For `Journal.subscribe`."""
        if LEVELS.index(event.level) >= self._level:
            self.append(journal.render(event))

    # -- what it is told --------------------------------------------------------------------------------------------

    def configure(self, spec: schema.Log, *, events: bool = False) -> None:
        """Do as `[log]` says from now on; ConfigError if its target cannot be opened, and then all stays as it was.

        `events`: this process also writes events, which "off" does not mean: they go to stdout then.
        """
        if self._spec is None or spec.access != self._spec.access:
            target = self._open("stdout" if events and spec.access == "off" else spec.access)
            if self._target is not None:
                self._last_jobs.append(_Job(self._target, self._lines, last=True))
                self._lines = []
                self._some.set()
            self._target = target
        self._spec = spec
        self._limit, self._batch, self._quiet = spec.buffer, min(BATCH_BYTES, spec.buffer // 4), 0
        self._level = LEVELS.index(spec.level)

    def reopen(self) -> None:
        """The file was rotated: go on in a new one, at once. If that fails the old one goes on, and it is told."""
        self._reopen = True
        self._some.set()
        self._full.set()

    # -- the slow side ----------------------------------------------------------------------------------------------

    async def write_forever(self) -> None:
        """Write what is appended. Cancelled in the middle of a write, the thread ends it alone; then call `drain`."""
        while True:
            with trio.move_on_at(self._calm_at if self._sound else math.inf):
                await self._some.wait()
                with trio.move_on_after(BATCH_SECONDS):
                    await self._full.wait()
            self._end_episode()
            self._start_job()
            while self._job is not None:
                await self._idle.wait()

    async def drain(self, deadline: float | None = None) -> int:
        """Write what waits, by `deadline` (None: a second from now); returns how many lines were not written by then.

        Shielded, because it is the last thing that a cancelled process does.
        """
        by = trio.current_time() + GOODBYE if deadline is None else deadline
        with trio.CancelScope(deadline=by, shield=True):
            while self._lines or self._last_jobs or self._job is not None:
                self._start_job()
                while self._job is not None:
                    await self._idle.wait()
        jobs = [*self._last_jobs, *([self._job] if self._job is not None else [])]
        left = len(self._lines) + sum(len(job.lines) for job in jobs)
        if left:
            self._lose(left, EventKind.LOG_DROPPED, "the log's reader was too slow for the last lines")
        return left

    def _start_job(self) -> None:
        """Give the thread what waits, unless it is still at the last job. `_idle` is set when it is through."""
        if self._job is not None:
            return
        self._some, self._full, self._quiet = trio.Event(), trio.Event(), 0
        if self._last_jobs:
            self._job = self._last_jobs.popleft()
        elif self._target is not None and (self._lines or self._reopen):
            self._job = _Job(self._target, self._lines, self._reopen)
            self._lines, self._reopen = [], False
        else:
            return
        self._idle = trio.Event()
        self._taken = self._size - sum(map(len, self._lines))
        token = trio.lowlevel.current_trio_token()

        def deliver(result: _Result) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # the process gave up on a stuck write
                token.run_sync_soon(self._end_job, result)

        # Not to_thread.run_sync: cancelled, that would no longer know what became of the lines.
        trio.lowlevel.start_thread_soon(self._job.run, deliver, "log writer")

    def _end_job(self, result: _Result) -> None:
        """Take account of what the thread did: in the loop again."""
        job, self._job = self._job, None
        assert job is not None
        if isinstance(result, outcome.Error):
            end, reopen_error = Written(0, OSError(repr(result.error))), None
        else:
            end, reopen_error = result.unwrap()
        written, rest = job.lines[: end.done], job.lines[end.done :]
        self._size -= sum(map(len, written))
        self._taken = self._quiet = 0
        self._sound = not rest and (self._sound or bool(written))
        if end.error is not None:
            self._lose_taken(rest, EventKind.LOG_FAILED, f"log lines cannot be written: {_text(end.error)}")
        else:
            self._put_back(rest)
        if reopen_error is not None:
            self._say(EventKind.LOG_FAILED, f"the log file cannot be reopened, the old one goes on: {reopen_error}", {})
        if self._lines or self._last_jobs or self._reopen:
            self._some.set()
        self._idle.set()

    def _put_back(self, rest: list[bytes]) -> None:
        """Lines that could not be written for now come first the next time, even if that is in another target."""
        if self._last_jobs:
            self._last_jobs[0].lines[:0] = rest
        elif self._target is not None:
            self._lines[:0] = rest
        else:
            self._lose_taken(
                rest, EventKind.LOG_DROPPED, "log lines waited for a slow reader as the log was switched off"
            )

    # -- the account of losses --------------------------------------------------------------------------------------

    def _lose(self, lines: int, kind: EventKind, text: str) -> None:
        self.dropped += lines
        self._on_drop(lines)
        self._episode_lost += lines
        self._calm_at = trio.current_time() + CALM
        if kind not in self._episode:
            self._episode.add(kind)  # before telling, because the event becomes a line here too
            self._say(kind, text, {})

    def _lose_taken(self, lines: list[bytes], kind: EventKind, text: str) -> None:
        self._size -= sum(map(len, lines))
        if lines:
            self._lose(len(lines), kind, text)

    def _end_episode(self) -> None:
        if self._sound and trio.current_time() >= self._calm_at:
            lost, self._episode_lost = self._episode_lost, 0
            self._episode.clear()
            self._calm_at = math.inf
            self._say(EventKind.LOG_RESTORED, f"log lines are written again; {lost} were lost", {"lost": lost})

    def _say(self, kind: EventKind, text: str, facts: Facts) -> None:
        if self._tell is not None:
            self._tell(kind, journal.KINDS[kind].level, text, facts)


def _text(error: OSError) -> str:
    return error.strerror or str(error)


# -- diagnostics ----------------------------------------------------------------------------------------------------

_TEXT_ROOM, _TRACEBACK_ROOM = 1200, 2400
_STDERR = 2


class Diagnostics(logging.Handler):
    """`logging` records as JSON lines: ts, level, logger, pid, text, and the traceback's end if there is one."""

    def __init__(self, write: Callable[[bytes], None] | None = None) -> None:
        super().__init__()
        self._write = write

    def emit(self, entry: logging.LogRecord) -> None:
        """Hand the line to the sink; from another thread, or before there is a sink, to stderr."""
        try:
            line = render_diagnostic(entry)
            if self._write is not None and trio.lowlevel.in_trio_run():
                self._write(line)
            else:
                os.write(_STDERR, line)
        except Exception:  # a log call must never hurt its caller: logging's own contract
            self.handleError(entry)


def render_diagnostic(entry: logging.LogRecord) -> bytes:
    """`entry` as one JSON line with its line end, short enough for a shared pipe."""
    level = "error" if entry.levelno >= logging.ERROR else entry.levelname.lower()
    tail = ""
    if entry.exc_info and entry.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*entry.exc_info))
        tail = f',"traceback":{quote(_last(trace, _TRACEBACK_ROOM))}'
    return (
        f'{{"v":{SCHEMA},"ts":{entry.created:.6f},"level":{quote(level)},"logger":{quote(cut(entry.name, 100))},'
        f'"pid":{entry.process or 0},"text":{quote(cut(entry.getMessage(), _TEXT_ROOM))}{tail}}}\n'
    ).encode("ascii")


def _last(text: str, room: int) -> str:
    """The end of `text`, where a traceback says what happened."""
    return cut(text[::-1], room)[::-1]


def configure_diagnostics(level: str, write: Callable[[bytes], None] | None = None) -> Diagnostics:
    """Send what the `tcpgate.*` loggers say, from `level` on, to `write`; takes the place of an earlier one."""
    logger = logging.getLogger("tcpgate")
    for handler in _ours(logger.handlers):
        logger.removeHandler(handler)
    handler = Diagnostics(write)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return handler


def _ours(handlers: Sequence[logging.Handler]) -> list[Diagnostics]:
    return [handler for handler in handlers if isinstance(handler, Diagnostics)]
