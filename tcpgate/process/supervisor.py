"""The supervisor: one process that owns sockets, config, workers, probes and the admin API, and never touches a user's byte.

`run_gateway` is what `tcpgate run` calls. It is ready only when it would serve: addresses bound, every worker on the first
generation, and the first round of health checks done or its deadline passed.

Tasks (owner: the root nursery here): one keeper per worker (`fleet`), the probes' nursery, the admin server, signals, systemd's watchdog,
the event log's writer. A second signal to stop cancels the root.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from importlib.metadata import version
from pathlib import Path

import attrs
import trio

from tcpgate import kinds
from tcpgate.config import load, schema
from tcpgate.control.admin import AdminServer
from tcpgate.control.api import Api
from tcpgate.control.health import HealthBoard
from tcpgate.control.probe import probe_once
from tcpgate.control.reload import Reloader, ReloadResult
from tcpgate.net import listen
from tcpgate.process import limits, systemd
from tcpgate.process.fleet import BEAT, Fleet, Generation
from tcpgate.process.logs import LineSink
from tcpgate.process.signals import signals_forever
from tcpgate.state import messages
from tcpgate.stats.journal import Journal
from tcpgate.stats.page import Layout, SharedPage, size_of

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 78
"""78 is EX_CONFIG of sysexits.h; the shipped unit does not restart on it."""

Facts = Mapping[str, str | int | float]


class Supervisor:
    """The gateway's one parent process."""

    def __init__(self, path: Path, environ: MutableMapping[str, str], loaded: load.Loaded) -> None:
        self.path = path
        self.environ = environ
        self.loaded = loaded
        self.watchdog_interval = systemd.watchdog_interval(environ, os.getpid())
        self.notifier = systemd.Notifier.from_environ(environ)
        self.inherited = _inherited_sockets(environ)
        self.layout = Layout()
        self.shared = _make_page()
        self.sink = LineSink(on_drop=lambda lines: None, tell=self.tell)
        self.sink.configure(loaded.config.log, events=True)
        self.journal = Journal()
        self.journal.subscribe(self.sink.append_event)
        self.fleet = Fleet(
            shared=self.shared,
            tell=self.tell,
            observe=self.observe,
            statuses=lambda: tuple(self.board.statuses()),
            blocks=lambda: self.layout.blocks,
            rest=lambda: self.config.gateway.worker_silence,
        )
        self.board = HealthBoard(
            publish=self._publish_statuses, tell=self.tell, ask=functools.partial(probe_once, kinds=kinds.PROBES), rng=random.Random()
        )
        self.reloader = Reloader(
            load=self._load,
            bind=lambda text, backlog: listen.bind(text, backlog=backlog, inherited=self.inherited),
            publisher=Publisher(self.fleet, self.layout),
            applied=self._applied,
            tell=self.tell,
        )
        self.changes, self._changes = trio.open_memory_channel[tuple[messages.EndpointStatus, ...]](1000)
        self.ready = False
        self.stopping = False
        self.over = trio.Event()
        """Set: leave now, with `exit_code`."""
        self.exit_code = EXIT_OK
        self.started = time.time()

    @property
    def generation(self) -> int:
        """The one that serves; 0 before the first."""
        return self.reloader.generation if hasattr(self, "reloader") else 0

    @property
    def config(self) -> schema.Config:
        """The one that serves; before the first generation, the one that is about to."""
        return self.reloader.config or self.loaded.config

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        async with trio.open_nursery() as root, trio.open_nursery() as probes:
            self.root, self.probes = root, probes
            root.start_soon(self.sink.write_forever)
            root.start_soon(self._send_statuses_forever)
            self.tell("started", "info", f"tcpgate {version('tcpgate')} starts with {self.path}", {"pid": os.getpid()})
            if await self._start():
                root.start_soon(signals_forever, self._signals())
                root.start_soon(self._watchdog_forever)
                await self._become_ready()
                await self.over.wait()
            await self.sink.drain()
            root.cancel_scope.cancel()
        return self.exit_code

    async def _start(self) -> bool:
        """Bind everything and publish the first generation; False, told and with an exit code, if that cannot be."""
        problems: Sequence[str] = ()
        try:
            await self.root.start(AdminServer(self.config.admin, self._api()).serve)
        except OSError as exc:
            problems = [f"admin.bind: {exc.strerror or exc}"]
        if not problems:
            result = await self.reloader.start(self.loaded)
            problems = result.problems
        for problem in problems:
            self.tell("start_failed", "error", problem, {})
        self.exit_code = EXIT_FAILED if problems else EXIT_OK
        return not problems

    def _signals(self) -> Mapping[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGHUP: lambda: self.root.start_soon(self.reload),
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
            signal.SIGUSR1: lambda: self.root.start_soon(self._reopen_logs),
        }

    async def _become_ready(self) -> None:
        """Wait until the gateway would serve, then say so."""
        self.notifier.status("starting workers")
        await self.fleet.wait_serving()
        self.notifier.status("waiting for the first health checks")
        with trio.move_on_after(self.config.gateway.health_deadline):
            await self.board.wait_first_round()
        self.ready = True
        for warning in self.reloader.warnings:
            self.tell("config_warning", "warning", warning, {})
        self.tell("ready", "info", f"ready: {self.summary()}", {"generation": self.reloader.generation})
        self.notifier.ready(self.summary())

    def summary(self) -> str:
        """One line for systemd and for people."""
        states = [status.state for status in self.board.statuses()]
        up = sum(state in ("healthy", "degraded") for state in states)
        return (
            f"generation {self.reloader.generation}, {len(self.config.listeners)} listeners, {self.fleet.wanted} workers, "
            f"{up} of {len(states)} endpoints up"
        )

    # -- reload -----------------------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """SIGHUP and the API: systemd hears that it began, and how it ended."""
        self.notifier.reloading()
        result = await self.reloader.reload()
        self.notifier.ready(self.summary() if result.ok else result.summary)
        return result

    def _load(self) -> load.Loaded:
        return load_config(self.path, self.environ)

    def _applied(self, config: schema.Config, old: schema.Config | None) -> None:
        """A generation serves: bring what lives in this process to it."""
        self.board.apply(config.upstreams, self.probes)
        self.sink.configure(config.log, events=True)
        wanted = limits.workers(config.gateway.workers)
        for index in range(wanted + 1, self.fleet.wanted + 1):
            self.root.start_soon(self.fleet.send, index, messages.Drain(seconds=config.gateway.drain))
        self.fleet.grow(wanted, self.root)

    # -- health -----------------------------------------------------------------------------------------------------

    def observe(self, seen: messages.Observed) -> None:
        """A worker's word on live traffic."""
        self.board.observe(seen)

    def _publish_statuses(self, changed: Sequence[messages.EndpointStatus]) -> None:
        if changed:
            self.changes.send_nowait(tuple(changed))

    async def _send_statuses_forever(self) -> None:
        async for changed in self._changes:
            await self.fleet.broadcast(messages.Statuses(changed=changed))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> None:
        if self.stopping:
            self.tell("stopped", "warning", "asked twice to stop: stopping now, open work is cut", {})
            self.fleet.stopping = True
            self.over.set()
        else:
            self.stopping = True
            self.root.start_soon(self._stop)

    async def _stop(self) -> None:
        """Readiness off, lame-duck wait, drain, leave."""
        gateway = self.config.gateway
        self.ready = False
        self.notifier.stopping()
        self.tell("draining", "info", f"stopping: open work has {gateway.drain:g} s", {"drain": gateway.drain})
        await trio.sleep(gateway.lame_duck)
        self.fleet.stopping = True
        await self.fleet.broadcast(messages.Drain(seconds=gateway.drain))
        for sock in self.reloader.sockets.values():
            sock.close()
        with trio.move_on_after(gateway.drain + 2):
            await self.fleet.wait_gone()
        left = len(self.fleet.workers)
        self.tell("stopped", "info" if not left else "warning", f"stopped; {left} workers had to be cut", {"cut": left})
        self.over.set()

    async def _reopen_logs(self) -> None:
        self.sink.reopen()
        await self.fleet.broadcast(messages.ReopenLogs())

    # -- what systemd and people see --------------------------------------------------------------------------------

    async def _watchdog_forever(self) -> None:
        """Ping systemd while a worker really turns; a gateway that no longer serves lets itself be restarted."""
        if self.watchdog_interval is None:
            return
        while True:
            now = time.monotonic_ns() // 1_000_000
            beats = [now - self.shared.pages[index][BEAT] for index in self.fleet.workers]
            if any(silent < self.config.gateway.worker_silence * 1000 for silent in beats):
                self.notifier.watchdog()
            await trio.sleep(self.watchdog_interval)

    def tell(self, kind: str, level: str, text: str, facts: Facts) -> None:
        """Into the journal: the event log, the API, and whoever else listens."""
        self.journal.tell(kind, level, text, facts, ts=time.time(), generation=self.generation)

    def _api(self) -> Api:
        return Api(
            reload=self.reload,
            reloader=self.reloader,
            board=self.board,
            journal=self.journal,
            tell=self.tell,
            shared=self.shared,
            layout=self.layout,
            workers=lambda: {index: worker.process.pid for index, worker in self.fleet.workers.items()},
            processes=lambda: self.fleet.wanted,
            is_ready=lambda: self.ready,
            is_stopping=lambda: self.stopping,
            started=self.started,
        )


@attrs.define(eq=False)
class Publisher:
    """Fits the fleet to what a reload needs: makes the message, and reserves the counters that it names."""

    fleet: Fleet
    layout: Layout
    name: str = attrs.field(factory=lambda: f"tcpgate-{secrets.token_hex(4)}")
    held: Generation | None = None

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        """Let every worker build it; what is wrong, or nothing."""
        try:
            self._reserve(config)
        except MemoryError as exc:
            return [str(exc)]
        prepare = messages.Prepare(
            generation=number,
            config=config,
            sockets=(),
            slots=dict(self.layout.blocks),
            statuses=(),
            name=self.name,
            workers=limits.workers(config.gateway.workers),
        )
        self.held = Generation(number=number, prepare=prepare, sockets=dict(sockets))
        return await self.fleet.prepare(self.held)

    async def commit(self) -> None:
        """Swap to it everywhere."""
        held, self.held = self.held, None
        if held is not None:
            await self.fleet.commit(held)

    async def abandon(self) -> None:
        """Forget it everywhere."""
        held, self.held = self.held, None
        if held is not None:
            await self.fleet.abandon(held)

    def _reserve(self, config: schema.Config) -> None:
        for name in config.listeners:
            self.layout.reserve("listener", name)
        for name in config.routes:
            self.layout.reserve("route", name)
        for name, upstream in config.upstreams.items():
            for endpoint in upstream.endpoints:
                self.layout.reserve("endpoint", f"{name}/{endpoint.address}")


def _inherited_sockets(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Listening sockets that systemd passed, by name. Of several with one name the first: `bind = "fd:NAME"` means one."""
    passed = systemd.listen_fds(environ, os.getpid())
    return {name: socket.socket(fileno=fds[0]) for name, fds in passed.items()}


def _make_page() -> SharedPage:
    fd = os.memfd_create("tcpgate", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_of())
    return SharedPage(fd)


def load_config(path: Path, environ: Mapping[str, str]) -> load.Loaded:
    """The file, its includes, its secrets, checked; ConfigError with every problem."""
    return load.load(path, environ=environ, credentials=systemd.credentials_directory(environ))


def run_gateway(
    path: Path, environ: MutableMapping[str, str], beside: Callable[[trio.Nursery], Awaitable[None]] | None = None
) -> int:
    """Load, serve, and return the exit code; ConfigError if the config cannot serve.

    `beside` starts what lives and ends with the gateway (the demo's origins); it returns when that is ready.
    """
    loaded = load_config(path, environ)
    limits.raise_open_files()

    async def serve() -> int:
        code, problem = EXIT_FAILED, None
        async with trio.open_nursery() as nursery:
            try:
                if beside is not None:
                    await beside(nursery)
            except OSError as exc:
                problem = exc  # raised outside of the nursery, which would wrap it in a group
            else:
                code = await Supervisor(path, environ, loaded).run()
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem
        return code

    return trio.run(serve)
