"""A worker: one process, one `trio.run`, everything that touches a user's byte.

Started by `process/fleet.py` with its index, one end of the link and the shared page. It serves nothing until its
first generation is committed. When the supervisor is gone it goes on with its last generation until a signal ends it.

Tasks (owner: this file's root nursery): the link's reader, the beat, the sweep, the log writers, at most one build,
one `ListenerServer` per listener. A generation is built in a thread, so that a drain is heard while a build is slow
or stuck.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping

import attrs
import trio

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.errors import ConfigError
from tcpgate.filters.base import Filter
from tcpgate.net.lane import Lane
from tcpgate.net.pipes import PipePool
from tcpgate.net.resolve import Resolver
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_client import Contexts
from tcpgate.net.tls_server import TlsServer
from tcpgate.policy.spread import Spread
from tcpgate.process import limits
from tcpgate.process.clock import PlainClock, cheap_clock
from tcpgate.process.collector import Collector
from tcpgate.process.link import LinkClosed, WorkerLink, worker_link
from tcpgate.process.log_ahead import LogAhead
from tcpgate.process.logs import LineSink, configure_diagnostics
from tcpgate.proxy import certificates
from tcpgate.proxy.plane import Plane
from tcpgate.proxy.serve import ListenerServer
from tcpgate.state import messages
from tcpgate.state.build import build
from tcpgate.state.runtime import Meter, Runtime
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats.page import WORKER_FIELDS, SharedPage

BEAT, LAG, GENERATION, LOG_DROPPED = (
    WORKER_FIELDS.index(name) for name in ("beat_ms", "lag_us", "generation", "log_dropped")
)
BEAT_EVERY = 0.25
"""Seconds between beats; also the resolution in which a hung loop is seen."""
SWEEP_EVERY = 1.0
"""Seconds between looks at idle upstream connections and retired endpoints."""
TIDY_AFTER = 30.0
"""Seconds without a reload after which the collector looks at what reloads have left."""

Compile = Callable[
    [schema.Config, int, Mapping[str, int], Callable[[schema.Filter], Filter], Snapshot | None], Snapshot
]
"""`state.build.build`."""

log = logging.getLogger("tcpgate.process.worker")


@attrs.define(eq=False)
class Held:
    """A generation that is being built, or is built and waits for its commit."""

    prepare: messages.Prepare
    sockets: dict[str, socket.socket]
    statuses: dict[tuple[str, str], messages.EndpointStatus]
    """As the message had them, and what has been heard since."""
    build: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    snapshot: Snapshot | None = None
    """None: not built yet."""
    tls: Mapping[str, TlsServer] = attrs.field(factory=dict)
    """Built with it: what listeners show those who speak TLS."""

    def drop(self) -> None:
        """It is not wanted any more."""
        self.build.cancel()
        for sock in self.sockets.values():
            sock.close()


class Worker:
    """One worker's life, from its first generation to its drain."""

    def __init__(self, index: int, link: WorkerLink, shared: SharedPage, compile_: Compile = build) -> None:
        self.index = index
        self.compile = compile_
        self.contexts = Contexts()
        self.link = link
        self.shared = shared
        self.page = shared.pages[index]
        self.lane = Lane(cheap_clock())
        self.rng = random.Random()
        self.tickets = TicketKeys()
        """Of TLS sessions; its own until it is told those of all workers."""
        self.targets = LogAhead("log.access"), LogAhead("log.events")
        self.sink = LineSink(on_drop=self._dropped, tell=self._tell, opener=self.targets[0].take)
        self.diagnostics = LineSink(on_drop=self._dropped, opener=self.targets[1].take)
        """Where this process's own troubles go: with the events, not among the access lines."""
        self.plane: Plane | None = None
        self.listeners: dict[str, ListenerServer] = {}
        self.sockets: dict[str, socket.socket] = {}
        self.held: Held | None = None
        self.leaving = False
        self.collector = Collector(self.page)

    async def run(self) -> None:
        """Serve until told to leave."""
        async with trio.open_nursery() as root:
            self.root = root
            for loop in (self._beat_forever, self._sweep_forever, self._signals_forever, self.link.send_forever):
                root.start_soon(loop)
            root.start_soon(self.lane.run_forever)
            root.start_soon(self.lane.sweep_forever)
            root.start_soon(self.sink.write_forever)
            root.start_soon(self.diagnostics.write_forever)
            try:
                while True:
                    message, fds = await self.link.receive()
                    self._obey(message, fds)
            except LinkClosed as exc:
                self._alone(exc)
                await trio.sleep_forever()

    def _alone(self, why: LinkClosed) -> None:
        """The supervisor is gone: go on with what there is, or leave if there is nothing yet."""
        self._abandon()
        if self.plane is None:
            self.root.cancel_scope.cancel()
        elif not self.leaving:
            log.error(
                "worker %d lost its supervisor (%s) and goes on with generation %d; SIGTERM drains it",
                self.index,
                why,
                self.plane.snapshot.generation,
            )

    def _obey(self, message: object, fds: list[int]) -> None:
        match message:
            case messages.Prepare():
                self._prepare(message, fds)
            case messages.Commit(generation=number):
                held = self.held
                if held is not None and held.snapshot is not None and held.prepare.generation == number:
                    self.held = None
                    self._commit(held, held.snapshot)
                    self.link.send_nowait(messages.Committed(generation=number))
            case messages.Abandon():
                self._abandon()
            case messages.Statuses(changed=changed):
                if self.held is not None:
                    self.held.statuses.update({(s.upstream, s.endpoint): s for s in changed})
                if self.plane is not None:
                    self.plane.runtime.set_statuses(changed)
            case messages.Drain(seconds=seconds):
                self.root.start_soon(self._drain, seconds)
            case messages.Stop():
                self.root.cancel_scope.cancel()
            case messages.ReopenLogs():
                self._reopen_logs()
            case messages.Tickets(keys=keys):
                self.tickets.renew(keys)

    # -- generations ------------------------------------------------------------------------------------------------

    def _prepare(self, message: messages.Prepare, fds: list[int]) -> None:
        """Take the sockets, and begin to build."""
        self._abandon()
        sockets = {bind: socket.socket(fileno=fd) for bind, fd in zip(message.sockets, fds, strict=True)}
        for sock in sockets.values():
            sock.setblocking(False)
        held = Held(message, sockets, {(status.upstream, status.endpoint): status for status in message.statuses})
        if self.leaving:
            held.drop()
            return
        self.held = held
        self.root.start_soon(self._build, held)

    async def _build(self, held: Held) -> None:
        """Build what the message says, in a thread, and hold it. Says so either way, unless it was dropped since."""
        message = held.prepare
        before = self.plane.snapshot if self.plane else None
        parts = message.config, message.generation, message.slots, kinds.make_filter, before
        make = functools.partial(self.compile, *parts)
        problem: str | None = None
        with held.build:
            try:
                names = message.config.log.access, message.config.log.events
                for target, name in zip(self.targets, names, strict=True):
                    await trio.to_thread.run_sync(target.open, name)
                shown = functools.partial(certificates.build, message.config, self.tickets, self.plane, self.contexts)
                held.tls = await trio.to_thread.run_sync(shown, abandon_on_cancel=True)
                snapshot = await trio.to_thread.run_sync(make, abandon_on_cancel=True)
            except ConfigError as exc:
                problem = "; ".join(f"{one.path}: {one.text}" for one in exc.problems)
            except Exception as exc:  # whatever is wrong goes back as the reload's truth
                log.exception("cannot build: generation=%d", message.generation)
                problem = f"{type(exc).__name__}: {exc}"
            else:
                held.snapshot = snapshot
        if self.held is held:
            if held.snapshot is None:
                self._abandon()
            self.link.send_nowait(messages.Prepared(generation=message.generation, problem=problem))

    def _abandon(self) -> None:
        held, self.held = self.held, None
        if held is not None:
            held.drop()
            for target in self.targets:
                target.drop()

    def _commit(self, held: Held, snapshot: Snapshot) -> None:
        """Swap to what is held. Synchronous, so that no exchange sees half of it."""
        first = self.plane is None
        plane = self.plane = self.plane or self._make_plane(held.prepare.name, snapshot, held.prepare.workers)
        plane.snapshot = snapshot
        plane.tls = held.tls
        plane.runtime.meter.processes = held.prepare.workers
        plane.workers = limits.workers(snapshot.config.gateway.workers)
        config = snapshot.config
        retired = plane.runtime.apply(config.upstreams, held.prepare.slots, held.statuses.values())
        cut_by = trio.current_time() + config.gateway.drain
        for endpoint in retired:
            for flow in list(endpoint.flows):
                flow.cut_by(cut_by)
        self._configure_logs(config.log)
        self.sockets.update(held.sockets)
        self._reconcile(plane, snapshot)
        self.page[GENERATION] = snapshot.generation
        if first:
            self.collector.tidy()
        else:
            self.collector.tidy_at = trio.current_time() + TIDY_AFTER

    def _configure_logs(self, spec: schema.Log) -> None:
        self.sink.configure(spec)
        self.diagnostics.configure(attrs.evolve(spec, access=spec.events))
        configure_diagnostics(spec.level, self.diagnostics.append)

    def _make_plane(self, name: str, snapshot: Snapshot, workers: int) -> Plane:
        runtime = Runtime(
            meter=Meter(shared=self.shared, page=self.page, processes=workers),
            report=self._report,
            make_balancer=lambda spec: kinds.BALANCERS[spec.balance](spec, self.rng),
            make_spread=lambda spec, make: Spread(spec, make, self.rng),
        )
        return Plane(
            snapshot=snapshot,
            runtime=runtime,
            page=self.page,
            write=self.sink.append_record,
            write_lines=self.sink.extend,
            lane=self.lane,
            tell=self._tell,
            resolver=Resolver(),
            pipes=PipePool(),
            contexts=self.contexts,
            rng=self.rng,
            wall=time.time,
            name=name.encode("ascii"),
            start=self.root.start_soon,
        )

    def _reconcile(self, plane: Plane, snapshot: Snapshot) -> None:
        """Start, change and retire listeners until they are what the snapshot says."""
        wanted = snapshot.listeners
        before = {bind: server for server in self.listeners.values() for bind in server.plan.spec.bind}
        for name, server in list(self.listeners.items()):
            plan = wanted.get(name)
            if plan is None or plan.spec.protocol != server.plan.spec.protocol:
                server.retire(snapshot.config.gateway.drain)
                del self.listeners[name]
        for name, plan in wanted.items():
            if name not in self.listeners:
                self.listeners[name] = ListenerServer(plane, plan)
                self.root.start_soon(self.listeners[name].run)
            self.listeners[name].renew(plan, {bind: self.sockets[bind] for bind in plan.spec.bind})
        in_use = {bind for plan in wanted.values() for bind in plan.spec.bind}
        for bind in self.sockets.keys() - in_use:
            self._close(bind, before.get(bind))

    def _close(self, bind: str, server: ListenerServer | None) -> None:
        """Close our copy of a listening socket from which nobody accepts any more; `server` did so far.

        The kernel has shaken hands with those that wait in the backlog, and the last close of all resets them. So they
        are taken first, and nothing is done in between.
        """
        sock = self.sockets.pop(bind)
        trio.lowlevel.notify_closing(sock)
        if server is not None:
            server.accept_rest([sock])
        sock.close()

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _drain(self, seconds: float) -> None:
        """Stop accepting, let what is open end within `seconds`, then leave."""
        if self.leaving:
            return
        self.leaving = True
        self._abandon()
        servers = list(self.listeners.values())
        for server in servers:
            server.retire(seconds)
            for bind in server.plan.spec.bind:
                self._close(bind, server)
        for server in servers:
            await server.wait_ended()
        self.root.cancel_scope.cancel()

    def _reopen_logs(self) -> None:
        self.sink.reopen()
        self.diagnostics.reopen()

    async def _signals_forever(self) -> None:
        """The supervisor speaks over the link; a signal is for a worker that has lost it. With a supervisor alive,
        SIGINT and SIGTERM are its business, not ours."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*numbers) as received:
            async for number in received:
                if not self.link.closed:
                    continue
                if number in (signal.SIGTERM, signal.SIGINT):
                    drain = self.plane.snapshot.config.gateway.drain if self.plane else 0.0
                    self.root.start_soon(self._drain, drain)
                elif number == signal.SIGUSR1:
                    self._reopen_logs()

    # -- the loop's own watch ---------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        # The first beat at once: until then the page has that of the start of the process, which may be long ago.
        self.page[BEAT] = time.monotonic_ns() // 1_000_000
        while True:
            due = trio.current_time() + BEAT_EVERY
            await trio.sleep_until(due)
            self.page[LAG] = int((trio.current_time() - due) * 1e6)
            self.page[BEAT] = time.monotonic_ns() // 1_000_000

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_EVERY)
            now = trio.current_time()
            try:
                if self.plane is not None:
                    self.plane.sweep(now)
            except Exception as exc:  # a bug in housekeeping must not cost the connections
                log.exception("sweep failed")
                self._tell("bug", "error", f"sweep: {exc!r}", {})
            self.collector.sweep(now)

    def _dropped(self, lines: int) -> None:
        self.page[LOG_DROPPED] += lines

    def _report(self, seen: messages.Observed) -> None:
        self.link.send_nowait(seen)

    def _tell(self, kind: str, level: str, text: str, facts: Mapping[str, str | int | float]) -> None:
        self.link.send_nowait(messages.Told(kind=kind, level=level, text=text, facts=facts))


async def serve(index: int, link_fd: int, page_fd: int) -> None:
    """The worker's `trio.run`."""
    link = worker_link(socket.socket(fileno=link_fd))
    worker = Worker(index, link, SharedPage(page_fd))
    try:
        with worker.collector:
            await worker.run()
    finally:
        with trio.move_on_after(1, shield=True):
            await worker.sink.drain()
            await worker.diagnostics.drain()
        configure_diagnostics("info")


def main(argv: list[str]) -> int:
    """`python -m tcpgate.process.worker INDEX LINK_FD PAGE_FD`, as the fleet starts it; the exit code."""
    faulthandler.enable()  # SIGABRT from the fleet's watch writes every thread's stack
    configure_diagnostics("info")
    index, link_fd, page_fd = map(int, argv)
    try:
        trio.run(serve, index, link_fd, page_fd, clock=PlainClock())
    except Exception:
        log.exception("worker %d failed and ends; the supervisor starts another", index)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
