"""A reload: read, check, diff, bind, build everywhere, swap everywhere; or nothing at all. And the truth about it.

Theory of operation. Each step can fail, and until the last one nothing that serves has been touched: the new file is read and checked in
a thread, new addresses are bound beside the old ones, every worker builds the new generation beside the old. Only when each
has said that it holds it does `commit` swap the pointers. A failure closes what was opened for it and is told in the result,
the event, systemd's status and the exit code of `tcpgate reload --wait`. Equal configs are a no-op, whatever the text.

Owner: called from the supervisor's root nursery and from the admin API; one at a time, and those that wait meanwhile share
one further run, because it reads the file after all of them asked.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
import trio

from tcpgate.config import schema
from tcpgate.config.diff import diff
from tcpgate.config.load import Loaded
from tcpgate.errors import ConfigError


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
    seconds: float = 0.0

    @property
    def summary(self) -> str:
        """One line for a log, systemd's status or a terminal."""
        if not self.ok:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"reload failed, generation {self.generation} goes on: {self.problems[0]}{more}"
        if not self.changed:
            return f"reload: nothing changed, generation {self.generation} goes on"
        return f"reload: generation {self.generation} serves, {len(self.changes)} changes in {self.seconds:.2f} s"


class Publisher(Protocol):
    """Where a generation goes; `process/supervisor.py` fits the fleet of workers to it."""

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        """Let every worker build it; what is wrong, or nothing."""
        ...

    async def commit(self) -> None:
        """Swap to it everywhere."""
        ...

    async def abandon(self) -> None:
        """Forget it everywhere."""
        ...


class Reloader:
    """Owns the config that serves, its generation and the listening sockets."""

    def __init__(
        self,
        *,
        load: Callable[[], Loaded],
        bind: Callable[[str, int], socket.socket],
        publisher: Publisher,
        applied: Callable[[schema.Config, schema.Config | None], None],
        tell: Callable[[str, str, str, Mapping[str, str | int | float]], None],
    ) -> None:
        self._load = load
        self._bind = bind
        self._publisher = publisher
        self._applied = applied
        """Told (new, old) once a generation serves: probes, logs and whatever else lives beside the workers."""
        self._tell = tell
        self._lock = trio.Lock()
        self._next: _Run | None = None
        self.config: schema.Config | None = None
        self.warnings: tuple[str, ...] = ()
        self.generation = 0
        self.sockets: dict[str, socket.socket] = {}
        self.last: ReloadResult | None = None
        self.counts = {"ok": 0, "failed": 0, "noop": 0}

    async def reload(self) -> ReloadResult:
        """Read the file and make it serve. Never raises for what the file says; cancellation abandons the new generation."""
        run = self._next
        if run is None:
            run = self._next = _Run()
        # Whoever comes while this run waits for the lock joins it; whoever comes after it has begun gets the next.
        async with self._lock:
            if run.result is None:
                self._next = None
                run.result = await self._reload()
        return run.result

    async def start(self, loaded: Loaded) -> ReloadResult:
        """The first generation, from a config that is already loaded."""
        async with self._lock:
            return await self._attempt(loaded)

    async def _reload(self) -> ReloadResult:
        try:
            loaded = await trio.to_thread.run_sync(self._load)
        except ConfigError as exc:
            return self._told(self._failed([str(problem) for problem in exc.problems]))
        return self._told(await self._attempt(loaded))

    async def _attempt(self, loaded: Loaded) -> ReloadResult:
        began = trio.current_time()
        warnings = tuple(str(warning) for warning in loaded.warnings)
        changes = diff(self.config, loaded.config) if self.config is not None else None
        if changes is not None and changes.empty:
            return ReloadResult(ok=True, changed=False, generation=self.generation, warnings=warnings)
        fresh, problems = self._bind_new(loaded.config)
        if not problems:
            problems = await self._publish(loaded.config, fresh)
        if problems:
            for sock in fresh.values():
                sock.close()
            return self._failed(problems)
        self._settle(loaded.config, fresh)
        self.warnings = warnings
        return ReloadResult(
            ok=True,
            changed=True,
            generation=self.generation,
            warnings=warnings,
            changes=tuple(changes.describe()) if changes is not None else (),
            seconds=trio.current_time() - began,
        )

    def _bind_new(self, config: schema.Config) -> tuple[dict[str, socket.socket], list[str]]:
        """Bind every address that is not bound yet; all the problems at once."""
        fresh: dict[str, socket.socket] = {}
        problems: list[str] = []
        for name, listener in config.listeners.items():
            for index, text in enumerate(listener.bind):
                if text in self.sockets or text in fresh:
                    continue
                try:
                    fresh[text] = self._bind(text, listener.backlog)
                except OSError as exc:
                    problems.append(f"listeners.{name}.bind[{index}]: {_bind_problem(text, exc)}")
        return fresh, problems

    async def _publish(self, config: schema.Config, fresh: Mapping[str, socket.socket]) -> list[str]:
        """Both steps, over every worker."""
        wanted = {text: fresh.get(text) or self.sockets[text] for one in config.listeners.values() for text in one.bind}
        try:
            problems = await self._publisher.prepare(self.generation + 1, config, wanted)
        except BaseException:
            with trio.move_on_after(1, shield=True):
                await self._publisher.abandon()
            for sock in fresh.values():
                sock.close()
            raise
        if problems:
            await self._publisher.abandon()
            return problems
        # From here on there is no way back, and no cancellation may leave half of the workers behind.
        with trio.move_on_after(60, shield=True):
            await self._publisher.commit()
        return []

    def _settle(self, config: schema.Config, fresh: Mapping[str, socket.socket]) -> None:
        """The new generation serves: take it over, close what it no longer listens on."""
        old, self.config = self.config, config
        self.generation += 1
        self.sockets.update(fresh)
        in_use = {text for listener in config.listeners.values() for text in listener.bind}
        for text in self.sockets.keys() - in_use:
            self.sockets.pop(text).close()
        for listener in config.listeners.values():
            before = next((one for one in old.listeners.values() if one.bind == listener.bind), None) if old else None
            if before is not None and before.backlog != listener.backlog:
                for text in listener.bind:
                    self.sockets[text].listen(listener.backlog)
        self._applied(config, old)

    def _failed(self, problems: list[str]) -> ReloadResult:
        return ReloadResult(ok=False, changed=False, generation=self.generation, problems=tuple(problems))

    def _told(self, result: ReloadResult) -> ReloadResult:
        """Remember it, and tell it as an event."""
        self.last = result
        word = "failed" if not result.ok else "ok" if result.changed else "noop"
        self.counts[word] += 1
        self._tell(
            *(f"reload_{word}", "info" if result.ok else "error", result.summary),
            {"generation": result.generation, "problems": "\n".join(result.problems), "changes": "\n".join(result.changes)},
        )
        return result


@attrs.define
class _Run:
    """One run of a reload, shared by everybody who asked before it began."""

    result: ReloadResult | None = None


def _bind_problem(text: str, exc: OSError) -> str:
    """Why an address cannot be bound (`net/listen.py` says it in words), and the cure."""
    cure = "; `ss -ltnp` names who has it" if exc.errno == errno.EADDRINUSE else ""
    return f"{exc.strerror or f'cannot listen on {text}: {exc}'}{cure}"


