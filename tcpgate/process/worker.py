"""A worker: one process, one `trio.run`, everything that touches a user's byte.

Started by `process/fleet.py` with its index, one end of the link and the shared page. It serves nothing until its first generation is
committed. When the supervisor is gone it goes on with its last generation until a signal ends it.

Tasks (owner: this file's root nursery): the link's reader, the beat, the sweep, the log writers, one `ListenerServer` per listener.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping

import attrs
import trio

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.net.pipes import PipePool
from tcpgate.net.resolve import Resolver
from tcpgate.policy.spread import Spread
from tcpgate.process.link import LinkClosed, WorkerLink, worker_link
from tcpgate.process.logs import LineSink
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


@attrs.define(eq=False)
class Held:
    """A prepared generation, waiting for its commit."""

    prepare: messages.Prepare
    snapshot: Snapshot
    sockets: dict[str, socket.socket]
    statuses: dict[tuple[str, str], messages.EndpointStatus]


class Worker:
    """One worker's life, from its first generation to its drain."""

    def __init__(self, index: int, link: WorkerLink, shared: SharedPage) -> None:
        self.index = index
        self.link = link
        self.shared = shared
        self.page = shared.pages[index]
        self.rng = random.Random()  # noqa: S311
        self.sink = LineSink(on_drop=self._dropped)
        self.plane: Plane | None = None
        self.listeners: dict[str, ListenerServer] = {}
        self.sockets: dict[str, socket.socket] = {}
        self.held: Held | None = None
        self.leaving = False

    async def run(self) -> None:
        """Serve until told to leave."""
        async with trio.open_nursery() as root:
            self.root = root
            root.start_soon(self._beat_forever)
            root.start_soon(self._sweep_forever)
            root.start_soon(self.sink.write_forever)
            root.start_soon(self._signals_forever)
            root.start_soon(self.link.send_forever)
            try:
                while True:
                    message, fds = await self.link.receive()
                    await self._obey(message, fds)
            except LinkClosed:
                if self.plane is None:
                    root.cancel_scope.cancel()  # never served: nothing to go on with
                await trio.sleep_forever()

    async def _obey(self, message: object, fds: list[int]) -> None:
        match message:
            case messages.Prepare():
                await self._prepare(message, fds)
            case messages.Commit(generation=number):
                if self.held is not None and self.held.prepare.generation == number:
                    self._commit(self.held)
                    self.held = None
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
                self.sink.reopen()

    # -- generations ------------------------------------------------------------------------------------------------

    async def _prepare(self, message: messages.Prepare, fds: list[int]) -> None:
        """Build what the message says, in a thread, and hold it. Says so either way."""
        self._abandon()
        sockets = dict(zip(message.sockets, (socket.socket(fileno=fd) for fd in fds), strict=True))
        for sock in sockets.values():
            sock.setblocking(False)
        make = functools.partial(
            build,
            *(message.config, message.generation, message.slots, kinds.make_filter),
            self.plane.snapshot if self.plane else None,
        )
        try:
            snapshot = await trio.to_thread.run_sync(make)
        except Exception as exc:  # noqa: BLE001  a control loop: whatever is wrong goes back as the reload's truth
            for sock in sockets.values():
                sock.close()
            self.link.send_nowait(
                messages.Prepared(generation=message.generation, problem=f"{type(exc).__name__}: {exc}")
            )
            return
        statuses = {(status.upstream, status.endpoint): status for status in message.statuses}
        self.held = Held(message, snapshot, sockets, statuses)
        self.link.send_nowait(messages.Prepared(generation=message.generation))

    def _abandon(self) -> None:
        if self.held is not None:
            for sock in self.held.sockets.values():
                sock.close()
            self.held = None

    def _commit(self, held: Held) -> None:
        """Swap to what is held. Synchronous, so that no exchange sees half of it."""
        first = self.plane is None
        plane = self.plane or self._make_plane(held)
        plane.snapshot = held.snapshot
        plane.runtime.meter.processes = held.prepare.workers
        upstreams = held.snapshot.config.upstreams
        retired = plane.runtime.apply(upstreams, held.prepare.slots, held.statuses.values())
        cut_by = trio.current_time() + held.snapshot.config.gateway.drain
        for endpoint in retired:
            for flow in list(endpoint.flows):
                flow.cut_by(cut_by)
        self.sink.configure(held.snapshot.config.log)
        self.sockets.update(held.sockets)
        self._reconcile(plane, held.snapshot)
        self.page[GENERATION] = held.snapshot.generation
        if first:
            self.plane = plane
            # What has been imported and built lives as long as the process: keep the collector from walking it.
            gc.collect()
            gc.freeze()

    def _make_plane(self, held: Held) -> Plane:
        runtime = Runtime(
            meter=Meter(shared=self.shared, page=self.page, processes=held.prepare.workers),
            report=self._report,
            make_balancer=lambda spec: kinds.BALANCERS[spec.balance](spec, self.rng),
            make_spread=lambda spec, make: Spread(spec, make, self.rng),
        )
        return Plane(
            snapshot=held.snapshot,
            runtime=runtime,
            page=self.page,
            write=self.sink.append_record,
            tell=self._tell,
            resolver=Resolver(),
            pipes=PipePool(),
            rng=self.rng,
            wall=time.time,
            name=held.prepare.name.encode("ascii"),
        )

    def _reconcile(self, plane: Plane, snapshot: Snapshot) -> None:
        """Start, change and retire listeners until they are what the snapshot says."""
        wanted = snapshot.listeners
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
            sock = self.sockets.pop(bind)
            trio.lowlevel.notify_closing(sock)
            sock.close()

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _drain(self, seconds: float) -> None:
        """Stop accepting, let what is open end within `seconds`, then leave."""
        if self.leaving:
            return
        self.leaving = True
        servers = list(self.listeners.values())
        for server in servers:
            server.retire(seconds)
        for sock in self.sockets.values():
            sock.close()
        for server in servers:
            await server.wait_ended()
        self.root.cancel_scope.cancel()

    async def _signals_forever(self) -> None:
        """The supervisor speaks over the link; a signal is for a worker that has lost it. A terminal's Ctrl-C reaches
        the whole process group, so with a supervisor alive SIGINT and SIGTERM are its business, not ours."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as received:
            async for number in received:
                if number in (signal.SIGTERM, signal.SIGINT) and self.link.closed:
                    drain = self.plane.snapshot.config.gateway.drain if self.plane else 0.0
                    self.root.start_soon(self._drain, drain)

    # -- the loop's own watch ---------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        while True:
            due = trio.current_time() + BEAT_EVERY
            await trio.sleep_until(due)
            self.page[LAG] = int((trio.current_time() - due) * 1e6)
            self.page[BEAT] = time.monotonic_ns() // 1_000_000

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_EVERY)
            if self.plane is not None:
                self.plane.sweep(trio.current_time())

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
        await worker.run()
    finally:
        with trio.move_on_after(1, shield=True):
            await worker.sink.drain()


def main(argv: list[str]) -> None:
    """`python -m tcpgate.process.worker INDEX LINK_FD PAGE_FD`, as the fleet starts it."""
    faulthandler.enable()  # SIGABRT from the fleet's watch writes every thread's stack
    os.set_blocking(0, True)
    index, link_fd, page_fd = map(int, argv)
    trio.run(serve, index, link_fd, page_fd)


if __name__ == "__main__":
    main(sys.argv[1:])
