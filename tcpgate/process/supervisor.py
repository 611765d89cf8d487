"""The supervisor: one process that owns sockets, config, workers, probes and the admin API, and never touches a
user's byte.

It is ready only when it would serve: addresses bound, every worker on the first generation, and the first round of
health checks done or its deadline passed. `process/boot.py` starts it.

Tasks (owner: the root nursery here): one keeper per worker (`fleet`), the probes' nursery, the admin server, signals,
systemd's watchdog, the event log's writer, a task per reload asked for. None of them may end the gateway by a bug: a
loop that fails is told, counted and begun again. A second signal to stop cancels the root.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
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
from tcpgate.control.certificates import CertificateKeeper
from tcpgate.control.health import HealthBoard
from tcpgate.control.probe import probe_once
from tcpgate.control.reload import Reloader, ReloadResult, bind_problem
from tcpgate.errors import Problem
from tcpgate.net.bound import Binder
from tcpgate.net.tls_client import Contexts
from tcpgate.policy.standing import Standings
from tcpgate.process import limits, systemd
from tcpgate.process.fleet import BEAT, Fleet
from tcpgate.process.log_ahead import LogAhead
from tcpgate.process.logs import LineSink, configure_diagnostics
from tcpgate.process.publish import Publisher
from tcpgate.process.signals import signals_forever
from tcpgate.state import messages
from tcpgate.stats.journal import Journal
from tcpgate.stats.page import WORKER_FIELDS, Layout, SharedPage

EXIT_OK, EXIT_FAILED = 0, 1
LOG_DROPPED = WORKER_FIELDS.index("log_dropped")
CONNECTIONS = WORKER_FIELDS.index("connections")
CUT = WORKER_FIELDS.index("cut")
AFTER_BUG = 1.0
"""Pause (seconds) before a loop that ran into a bug of ours begins again."""
WORKERS_GOODBYE = 3.0
"""Seconds beyond the drain for workers to write their last lines and leave."""

Facts = Mapping[str, str | int | float]
log = logging.getLogger("tcpgate.process.supervisor")


class Supervisor:
    """The gateway's one parent process. Raises ConfigError if the event log that the config names cannot be opened."""

    def __init__(
        self,
        path: Path,
        environ: MutableMapping[str, str],
        loaded: load.Loaded,
        *,
        shared: SharedPage,
        binder: Binder,
        reread: Callable[[], load.Loaded],
    ) -> None:
        self.path = path
        self.loaded = loaded
        self.shared = shared
        self.binder = binder
        self.watchdog_interval = systemd.watchdog_interval(environ, os.getpid())
        self.notifier = systemd.Notifier.from_environ(environ)
        self.layout = Layout()
        self.journal = Journal()
        self.target = LogAhead("log.events")
        self.sink = LineSink(on_drop=self._dropped, tell=self.tell, opener=self.target.take)
        self.fleet = Fleet(
            shared=shared,
            tell=self.tell,
            observe=self._observe,
            statuses=lambda: tuple(self.board.statuses()),
            blocks=lambda: self.layout.blocks,
            rest=lambda: self.config.gateway.worker_silence,
        )
        self.board = HealthBoard(
            publish=self._publish,
            tell=self.tell,
            ask=functools.partial(probe_once, kinds=kinds.PROBES, contexts=Contexts()),
            rng=random.Random(),
        )
        self.standings = Standings()
        publisher = Publisher(self.fleet, self.layout)
        self.reloader = Reloader(load=reread, binder=binder, publisher=publisher, beside=self, tell=self.tell)
        self.certificates = CertificateKeeper(reloader=self.reloader, tell=self.tell, clock=time.time)
        self.ready = False
        self.stopping = False
        self.over = trio.Event()
        """Set: leave now, with `exit_code`."""
        self.exit_code = EXIT_OK
        self.problems: list[str] = []
        """Why it could not start, a line each."""
        self.bugs = 0
        """Tasks that failed by a bug, and went on."""
        self._reloads = 0
        self._configure_logs(loaded.config.log)
        self.journal.subscribe(self.sink.append_event)

    @property
    def config(self) -> schema.Config:
        """The one that serves; before the first generation, the one that is about to."""
        return self.reloader.config or self.loaded.config

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        async with trio.open_nursery() as root, trio.open_nursery() as probes:
            self.root, self.probes = root, probes
            self.began = trio.current_time()
            root.start_soon(self._keep, "event log", self.sink.write_forever)
            # Before anything is started: a signal that comes now must end this process in order, or wait its turn.
            await root.start(signals_forever, self._signals())
            root.start_soon(self._serve)
            await self.over.wait()
            self.reloader.close()
            # Workers that still live are told to stop rather than killed: what they cut goes into the access log.
            self.fleet.broadcast(messages.Stop())
            with trio.move_on_after(WORKERS_GOODBYE):
                await self.fleet.wait_gone()
            await self.sink.drain()
            root.cancel_scope.cancel()
        return self.exit_code

    async def _serve(self) -> None:
        """Start, and become ready; or leave, having said why not."""
        facts: Facts = {"pid": os.getpid(), "open_files": limits.FileLimits.now().soft}
        self.tell("started", "info", f"tcpgate {version('tcpgate')} starts with {self.path}", facts)
        try:
            self.problems = await self._start() or await self._become_ready()
        except Exception as exc:
            self._bug("start", exc)
            self.problems = [f"a bug in the gateway: {exc!r}"]
        if self.problems and not self.stopping:
            for problem in self.problems:
                self.tell("start_failed", "error", problem, {})
            self.exit_code = EXIT_FAILED
            self.fleet.stopping = True
            self.over.set()

    async def _start(self) -> list[str]:
        """Bind everything and publish the first generation; what is in the way."""
        self._make_state_dir()
        admin = AdminServer(self.config.admin, self._api(), self.binder)
        try:
            await self.root.start(admin.serve)
        except OSError as exc:
            return [self._problem(("admin", "bind"), "admin.bind", bind_problem(self.config.admin.bind, exc))]
        return list((await self.reloader.start(self.loaded)).problems)

    def _make_state_dir(self) -> None:
        """Make it if it is missing, for this user alone. Without it the gateway serves, and remembers less."""
        folder = Path(self.config.gateway.state_dir)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            text = f"{folder} cannot be made: {exc.strerror}; what is to outlive a restart will have no place"
            path = ("gateway", "state_dir")
            self.tell("config_warning", "warning", self._problem(path, "gateway.state_dir", text), {})

    async def _become_ready(self) -> list[str]:
        """Wait until the gateway would serve, then say so; or what makes that hopeless."""
        self.notifier.status("starting workers")
        failure = await self.fleet.wait_serving()
        if failure:
            return [failure]
        self.root.start_soon(self._keep, "watchdog", self._watchdog_forever)
        self.root.start_soon(self._keep, "session tickets", self.fleet.renew_tickets_forever)
        self.root.start_soon(self._keep, "certificates", self.certificates.watch_forever)
        self.root.start_soon(self._keep, "certificates' ends", self.certificates.remind_forever)
        self.notifier.status("waiting for the first health checks")
        with trio.move_on_after(self.config.gateway.health_deadline):
            await self.board.wait_first_round()
        if self.stopping:
            return []
        self.ready = True
        for warning in self.reloader.warnings:
            self.tell("config_warning", "warning", warning, {})
        self.tell("ready", "info", f"ready: {self.summary()}", {"generation": self.reloader.generation})
        self.notifier.ready(self.summary())
        return []

    def summary(self) -> str:
        """One line for systemd and for people."""
        states = [status.state for status in self.board.statuses()]
        up = sum(state.takes_traffic for state in states)
        count, workers = len(self.config.listeners), self.fleet.wanted
        return (
            f"generation {self.reloader.generation}, {count} listener{'s' if count != 1 else ''}, "
            f"{workers} worker{'s' if workers != 1 else ''}, {up} of {len(states)} endpoints up"
        )

    def _signals(self) -> Mapping[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGHUP: self.reload_soon,
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
            signal.SIGUSR1: self._reopen_logs,
        }

    # -- reload -----------------------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """SIGHUP and the API: systemd hears that it began, and how the last of those under way ended."""
        self._reloads += 1
        try:
            # Before the first READY, or after STOPPING, systemd waits for something else.
            if self.ready:
                self.notifier.reloading()
            result = await self.reloader.reload()
        finally:
            self._reloads -= 1
        if self.ready and not self._reloads:
            self.notifier.ready(self.summary() if result.ok and not result.restart else result.summary)
        return result

    def reload_soon(self) -> None:
        """The same, without waiting for it."""
        self.root.start_soon(self.reload)

    async def prepare(self, config: schema.Config) -> None:
        """A reload asks whether this process could follow. Raises ConfigError."""
        await trio.to_thread.run_sync(self.target.open, config.log.events)

    def abandon(self) -> None:
        """It was for nothing."""
        self.target.drop()

    def apply(self, config: schema.Config, old: schema.Config | None) -> None:
        """A generation serves: bring what lives in this process to it."""
        self.board.apply(config.upstreams, self.probes)
        self._judge(self.board.statuses())
        self._configure_logs(config.log)
        self.fleet.resize(limits.workers(config.gateway.workers), config.gateway.drain, self.root)

    def _configure_logs(self, spec: schema.Log) -> None:
        self.sink.configure(attrs.evolve(spec, access=spec.events))
        configure_diagnostics(spec.level, self.sink.append)

    def _reopen_logs(self) -> None:
        self.sink.reopen()
        self.fleet.broadcast(messages.ReopenLogs())
        self.tell("log_reopened", "info", "log files are opened anew", {})

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
        was_ready, self.ready = self.ready, False
        cut_before = self.shared.total(CUT, self.fleet.most)
        self.notifier.stopping()
        try:
            self.tell("draining", "info", f"stopping: open work has {gateway.drain:g} s", {"drain": gateway.drain})
            with trio.move_on_after(gateway.lame_duck if was_ready else 0):
                await trio.sleep_forever()
            # A generation that is half way through would make workers listen again.
            with trio.move_on_after(WORKERS_GOODBYE):
                await self.reloader.stop()
            self.reloader.close()
            self.fleet.see_off(gateway.drain)
            await self._wait_drained(trio.current_time() + gateway.drain + WORKERS_GOODBYE)
            cut = self.shared.total(CUT, self.fleet.most) - cut_before
            text = f"stopped; the end of the drain cut {cut} exchanges and flows" if cut else "stopped"
            self.tell("stopped", "warning" if cut else "info", text, {"cut": cut})
        except Exception as exc:
            self._bug("stop", exc)
        finally:
            self.over.set()

    async def _wait_drained(self, deadline: float) -> None:
        """Until no worker is left, or it is too late; meanwhile systemd hears how it goes."""
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_drain_forever, deadline)
                await self.fleet.wait_gone()
                nursery.cancel_scope.cancel()

    async def _tell_drain_forever(self, deadline: float) -> None:
        while True:
            open_now = self.shared.total(CONNECTIONS, self.fleet.most)
            left = max(0.0, deadline - WORKERS_GOODBYE - trio.current_time())
            self.notifier.status(f"draining: {open_now} connections open, {left:.0f} s left for them")
            await trio.sleep(1)

    # -- what systemd and people see --------------------------------------------------------------------------------

    async def _watchdog_forever(self) -> None:
        """Ping systemd while a worker really turns; a gateway that no longer serves lets itself be restarted."""
        while self.watchdog_interval is not None:
            now = time.monotonic_ns() // 1_000_000
            beats = [now - self.shared.pages[index][BEAT] for index in self.fleet.workers]
            # In a drain the last worker's end is the gateway's own, a moment later.
            if self.stopping or any(silent < self.config.gateway.worker_silence * 1000 for silent in beats):
                self.notifier.watchdog()
            await trio.sleep(self.watchdog_interval)

    def tell(self, kind: str, level: str, text: str, facts: Facts) -> None:
        """Into the journal: the event log, the API, and whoever else listens."""
        reloader: Reloader | None = getattr(self, "reloader", None)  # a sink may speak before there is one
        generation = reloader.generation if reloader is not None else 0
        self.journal.tell(kind, level, text, facts, ts=time.time(), generation=generation)

    def _publish(self, changed: Sequence[messages.EndpointStatus]) -> None:
        self.fleet.publish(tuple(changed))
        self._judge(changed)

    def _judge(self, changed: Sequence[messages.EndpointStatus]) -> None:
        """Workers hear of endpoints; people hear of upstreams that have nobody left."""
        for change in self.standings.judge(self.config.upstreams, changed):
            down = change.kind in ("upstream_down", "panic_on")
            self.tell(change.kind, "error" if down else "info", change.text, {"upstream": change.upstream})

    def _observe(self, seen: messages.Observed) -> None:
        self.board.observe(seen)

    def _dropped(self, lines: int) -> None:
        self.shared.pages[0][LOG_DROPPED] += lines

    def _problem(self, at: tuple[str, ...], path: str, text: str) -> str:
        file, line = self.loaded.sources.where(at)
        return str(Problem(file=file, line=line, path=path, text=text))

    async def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop`, and begin it again after a bug in it."""
        while True:
            try:
                return await loop()
            except Exception as exc:
                self._bug(name, exc)
                await trio.sleep(AFTER_BUG)

    def _bug(self, name: str, exc: Exception) -> None:
        self.bugs += 1
        log.error("task failed: name=%s", name, exc_info=exc)
        self.tell("bug", "error", f"{name}: {exc!r}", {"task": name})

    def _api(self) -> Api:
        return Api(
            reload=self.reload,
            reload_soon=self.reload_soon,
            reloader=self.reloader,
            board=self.board,
            journal=self.journal,
            tell=self.tell,
            shared=self.shared,
            layout=self.layout,
            workers=lambda: {index: worker.process.pid for index, worker in self.fleet.workers.items()},
            wanted=lambda: self.fleet.wanted,
            processes=lambda: self.fleet.most,
            deaths=lambda: self.fleet.deaths,
            bugs=lambda: self.bugs,
            is_ready=lambda: self.ready,
            is_stopping=lambda: self.stopping,
            uptime=lambda: trio.current_time() - self.began,
        )
