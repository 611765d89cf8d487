"""A reload: read, check, diff, bind, build everywhere, swap everywhere; or nothing at all. And the truth about it.

Theory of operation. Each step can fail, and until the last one nothing that serves has been touched: the new file is
read and checked in a thread, new addresses are bound beside the old ones, log files are opened, every worker builds
the new generation beside the old. Only when each has said that it holds it does `commit` swap the pointers. A failure
closes what was opened for it and is told in the result, the event, systemd's status and the exit code of `tcpgate
reload --wait`. Equal configs are a no-op, whatever the text.

A generation's number is used once: after a failed attempt the next one takes another, so that a worker's late answer
to the first is never taken for one to the second.

Owner: called from the supervisor's root nursery and from the admin API; one at a time, and those that wait meanwhile
share one further run, because it reads the file after all of them asked.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import attrs
import trio

from tcpgate.config import schema
from tcpgate.config.diff import diff
from tcpgate.config.load import Loaded
from tcpgate.config.pem import Kept
from tcpgate.errors import ConfigError, Problem

COMMIT_WITHIN = 60.0
"""Seconds for which the swap goes on whatever is cancelled; a worker that cannot follow is killed well before."""
STOPPING = "the gateway is stopping"

log = logging.getLogger("tcpgate.control.reload")


@attrs.frozen(kw_only=True)
class ReloadResult:
    """What a reload did; the same everywhere it is told."""

    ok: bool
    changed: bool
    generation: int
    """The generation that serves now: the new one, or the old one after a failure."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    """Settings that the config has, but that only a restart brings into effect."""
    seconds: float = 0.0
    at: float = 0.0
    """When it was done, on Trio's clock."""

    @property
    def summary(self) -> str:
        """One line for a log, systemd's status or a terminal."""
        late = f"; only a restart brings into effect: {', '.join(self.restart)}" if self.restart else ""
        if not self.ok:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"reload failed, generation {self.generation} goes on: {self.problems[0]}{more}"
        if not self.changed:
            return f"reload: nothing changed, generation {self.generation} goes on{late}"
        count = f"{len(self.changes)} change{'s' if len(self.changes) != 1 else ''}"
        return f"reload: generation {self.generation} serves, {count} in {self.seconds:.2f} s{late}"


class Publisher(Protocol):
    """Where a generation goes: every worker."""

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        """Let every worker build it; what is wrong, or nothing."""
        ...

    async def commit(self) -> None:
        """Swap to it everywhere."""
        ...

    def abandon(self) -> None:
        """Forget it everywhere."""
        ...


class Beside(Protocol):
    """What lives in the supervisor itself, beside the workers: probes, its own log."""

    async def prepare(self, config: schema.Config) -> None:
        """Open what the config needs here. Raises ConfigError."""
        ...

    def apply(self, config: schema.Config, old: schema.Config | None) -> None:
        """The generation serves: follow it."""
        ...

    def abandon(self) -> None:
        """Close what was opened."""
        ...


class Sockets(Protocol):
    """Opens and releases listening sockets; `net/bound.py`."""

    def bind(self, text: str, backlog: int, mode: int) -> socket.socket:
        """`mode`: of a unix socket's file. Raises OSError."""
        ...

    def permit(self, text: str, mode: int) -> None:
        """Change that, as far as the host allows. Never raises."""
        ...

    def start(self, text: str) -> None:
        """Listen, if `bind` has left that for later. Raises OSError."""
        ...

    def release(self, text: str, sock: socket.socket) -> None:
        """Never raises."""
        ...


class Reloader:
    """Owns the config that serves, its generation and the listening sockets."""

    def __init__(
        self,
        *,
        load: Callable[[], Loaded],
        binder: Sockets,
        publisher: Publisher,
        beside: Beside,
        tell: Callable[[str, str, str, Mapping[str, str | int | float]], None],
    ) -> None:
        self._load = load
        self._binder = binder
        self._publisher = publisher
        self._beside = beside
        self._tell = tell
        self._lock = trio.Lock()
        self._next: _Run | None = None
        self._scope = trio.CancelScope()
        """The attempt under way."""
        self._stopping = False
        self._number = 0
        self._first: schema.Config | None = None
        """What the process was started with."""
        self.loaded: Loaded | None = None
        """Where the config that serves came from."""
        self.config: schema.Config | None = None
        self.warnings: tuple[str, ...] = ()
        self.kept: tuple[Kept, ...] = ()
        """Files that could not be used when they changed: what they held before serves."""
        self.generation = 0
        self.sockets: dict[str, socket.socket] = {}
        self.last: ReloadResult | None = None
        self.counts = {"ok": 0, "failed": 0, "noop": 0}

    # -- what it is asked -------------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """Read the file and make it serve. Never raises for what the file says, nor for a bug; cancellation abandons
        the new generation, unless every worker holds it already."""
        run = self._next
        if run is None:
            run = self._next = _Run()
        # Whoever comes while this run waits for the lock joins it; whoever comes after it has begun gets the next.
        async with self._lock:
            if run.result is None:
                if self._next is run:
                    self._next = None
                run.result = self._told(await self._guarded(self._load_and_attempt))
                if run.result.ok:
                    self.kept = ()
        return run.result

    async def renew(self, now: float) -> tuple[ReloadResult | None, tuple[Kept, ...]]:
        """Read the certificates of the config that serves once more, and nothing else of it, and make them serve.

        The result, None if there was nothing to do; and the files that cannot be used. `now` is Unix time. Raises and
        is cancelled as `reload` is.
        """
        async with self._lock:
            loaded, old = self.loaded, self.config
            if loaded is None or loaded.files is None or old is None:
                return None, ()
            files, kept = loaded.files, list[Kept]()

            async def attempt() -> ReloadResult:
                again = await trio.to_thread.run_sync(files.read_again, old, now, abandon_on_cancel=True)
                kept.extend(again.kept)
                warnings = [*files.without(loaded.warnings), *again.warnings]
                return await self._attempt(attrs.evolve(loaded, config=again.config, warnings=warnings))

            result = await self._guarded(attempt)
            self.kept = tuple(kept)
            if not result.ok:
                self._told(result)
            elif result.changed:
                self._noted(result)
        return result, tuple(kept)

    async def start(self, loaded: Loaded) -> ReloadResult:
        """The first generation, from a config that is already loaded."""
        self._first = loaded.config

        async def attempt() -> ReloadResult:
            return await self._attempt(loaded)

        async with self._lock:
            return await self._guarded(attempt)

    async def stop(self) -> None:
        """Reload no more: an attempt under way fails, unless it is past its last step; returns when it has ended."""
        self._stopping = True
        self._scope.cancel()
        async with self._lock:
            return

    def close(self) -> None:
        """Close every listening socket."""
        while self.sockets:
            self._binder.release(*self.sockets.popitem())

    @property
    def restart(self) -> tuple[str, ...]:
        """Settings that differ from those that the process was started with, and that it reads but once."""
        if self._first is None or self.config is None:
            return ()
        return diff(self._first, self.config).restart

    # -- one attempt ------------------------------------------------------------------------------------------------

    async def _guarded(self, attempt: Callable[[], Awaitable[ReloadResult]]) -> ReloadResult:
        """`attempt`, which `stop` may end, and in which a bug of ours is a failure like any other."""
        with trio.CancelScope() as self._scope:
            if self._stopping:
                self._scope.cancel()
            try:
                return await attempt()
            except Exception as exc:
                log.exception("reload failed by a bug")
                self._tell("bug", "error", f"reload: {exc!r}", {})
                return self._failed([f"a bug in the gateway: {exc!r}; the log has its trace"])
        return self._failed([STOPPING])

    async def _load_and_attempt(self) -> ReloadResult:
        try:
            loaded = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)
        except ConfigError as exc:
            return self._failed([str(problem) for problem in exc.problems])
        return await self._attempt(loaded)

    async def _attempt(self, loaded: Loaded) -> ReloadResult:
        began = trio.current_time()
        warnings = tuple(str(warning) for warning in loaded.warnings)
        changes = diff(self.config, loaded.config) if self.config is not None else None
        if changes is not None and changes.empty:
            self.loaded, self.warnings = loaded, warnings
            return self._done(ReloadResult(ok=True, changed=False, generation=self.generation, warnings=warnings))
        fresh: dict[str, socket.socket] = {}
        settled = False
        try:
            problems = self._bind_new(loaded, fresh) or await self._publish(loaded.config, fresh)
            if problems:
                return self._failed(problems)
            settled = True
        finally:
            if not settled:
                for text, sock in fresh.items():
                    self._binder.release(text, sock)
        self._settle(loaded.config, fresh)
        self.loaded, self.warnings = loaded, warnings
        return self._done(
            ReloadResult(
                ok=True,
                changed=True,
                generation=self.generation,
                warnings=warnings,
                changes=tuple(changes.describe()) if changes is not None else (),
                seconds=trio.current_time() - began,
            )
        )

    def _bind_new(self, loaded: Loaded, fresh: dict[str, socket.socket]) -> list[str]:
        """Bind every address that is not bound yet, into `fresh`; all the problems at once."""
        problems: list[str] = []
        for name, listener in loaded.config.listeners.items():
            for index, text in enumerate(listener.bind):
                if text in self.sockets or text in fresh:
                    continue
                try:
                    fresh[text] = self._binder.bind(text, listener.backlog, int(listener.mode, 8))
                except OSError as exc:
                    file, line = loaded.sources.where(("listeners", name, "bind", index))
                    path = f"listeners.{name}.bind[{index}]"
                    problems.append(str(Problem(file=file, line=line, path=path, text=bind_problem(text, exc))))
        return problems

    async def _publish(self, config: schema.Config, fresh: Mapping[str, socket.socket]) -> list[str]:
        """Both steps, here and over every worker."""
        wanted = {text: fresh.get(text) or self.sockets[text] for one in config.listeners.values() for text in one.bind}
        self._number += 1
        committed = False
        try:
            await self._beside.prepare(config)
            problems = await self._publisher.prepare(self._number, config, wanted)
            problems = problems or self._start_listening(fresh)
            if problems:
                return problems
            # From here on there is no way back, and no cancellation may leave half of the workers behind.
            committed = True
            # Ours first: a worker accepts what still waits in a backlog before it closes its own, so that the last
            # close of all finds nothing there to reset.
            self._release_unused(config)
            with trio.move_on_after(COMMIT_WITHIN, shield=True):
                await self._publisher.commit()
        except ConfigError as exc:
            return [str(problem) for problem in exc.problems]
        finally:
            if not committed:
                self._publisher.abandon()
                self._beside.abandon()
        return []

    def _start_listening(self, fresh: Mapping[str, socket.socket]) -> list[str]:
        """The last thing that can fail."""
        problems = []
        for text in fresh:
            try:
                self._binder.start(text)
            except OSError as exc:
                problems.append(f"{text}: {bind_problem(text, exc)}")
        return problems

    def _release_unused(self, config: schema.Config) -> None:
        """Close what the new config no longer listens on."""
        in_use = {text for listener in config.listeners.values() for text in listener.bind}
        for text in self.sockets.keys() - in_use:
            self._binder.release(text, self.sockets.pop(text))

    def _settle(self, config: schema.Config, fresh: Mapping[str, socket.socket]) -> None:
        """The new generation serves: take it over."""
        old, self.config = self.config, config
        self.generation = self._number
        self.sockets.update(fresh)
        backlogs = _backlogs(old) if old is not None else {}
        for text, backlog in _backlogs(config).items():
            if backlogs.get(text, backlog) != backlog:
                self.sockets[text].listen(backlog)
        for listener in config.listeners.values():
            for text in listener.bind:
                self._binder.permit(text, int(listener.mode, 8))
        self._beside.apply(config, old)

    # -- the truth about it -----------------------------------------------------------------------------------------

    def _failed(self, problems: list[str]) -> ReloadResult:
        result = ReloadResult(ok=False, changed=False, generation=self.generation, problems=tuple(problems))
        return self._done(result)

    def _done(self, result: ReloadResult) -> ReloadResult:
        return attrs.evolve(result, at=trio.current_time(), restart=self.restart if result.ok else ())

    def _told(self, result: ReloadResult) -> ReloadResult:
        """Remember it, and tell it as an event."""
        word = self._noted(result)
        facts: dict[str, str | int | float] = {"generation": result.generation, "seconds": round(result.seconds, 3)}
        facts |= {"problems": "\n".join(result.problems)} if result.problems else {}
        facts |= {"changes": "\n".join(result.changes)} if result.changes else {}
        self._tell(f"reload_{word}", "info" if result.ok else "error", result.summary, facts)
        return result

    def _noted(self, result: ReloadResult) -> str:
        """Remember it; what came of it, in a word."""
        self.last = result
        word = "failed" if not result.ok else "ok" if result.changed else "noop"
        self.counts[word] += 1
        return word


@attrs.define
class _Run:
    """One run of a reload, shared by everybody who asked before it began."""

    result: ReloadResult | None = None


def _backlogs(config: schema.Config) -> dict[str, int]:
    """Bind text -> backlog, of the sockets that are ours; that of an inherited one is systemd's to say."""
    binds = ((text, one.backlog) for one in config.listeners.values() for text in one.bind)
    return {text: backlog for text, backlog in binds if not text.startswith("fd:")}


def bind_problem(text: str, exc: OSError) -> str:
    """Why an address cannot be bound (`net/listen.py` says it in words), and the cure."""
    cure = "; `ss -ltnp` names who has it" if exc.errno == errno.EADDRINUSE and not text.startswith("unix:") else ""
    return f"{exc.strerror or f'cannot listen on {text}: {exc}'}{cure}"
