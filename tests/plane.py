"""A worker's data plane inside the test: real listeners, exchanges, runtime and sockets, without the processes around.

    async with serving(nursery, '''
        [listeners.web]
        bind = ["127.0.0.1:0"]
        ...''') as plane:
        said = await talk(plane.port("web"), b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        assert plane.records[-1].reason == "ok"

There is no supervisor, so nothing probes: endpoints with a `health` table start unproved unless `statuses` says more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.config.load import load
from tcpgate.errors import Reason, Side
from tcpgate.filters.base import Filter
from tcpgate.net import listen
from tcpgate.net.lane import Lane
from tcpgate.net.pipes import PipePool
from tcpgate.net.resolve import Resolver
from tcpgate.net.tickets import TicketKeys
from tcpgate.policy.health import EndpointState
from tcpgate.policy.spread import Spread
from tcpgate.proxy import certificates
from tcpgate.proxy.plane import Plane
from tcpgate.proxy.serve import ListenerServer
from tcpgate.state import messages
from tcpgate.state.build import build
from tcpgate.state.runtime import EndpointRuntime, Meter, Runtime
from tcpgate.stats.page import Layout, SharedPage, size_of
from tcpgate.stats.record import AccessRecord, Attempt, Phases
from tcpgate.stats.totals import totals

PAGES = 3
"""The supervisor's, this worker's, and one more that a test may write as if it were another worker's."""


@attrs.define(eq=False)
class TestPlane:
    """The plane, and what came out of it."""

    __test__ = False

    folder: Path
    layout: Layout
    shared: SharedPage
    config: schema.Config
    sockets: dict[str, socket.socket]
    plane: Plane
    servers: dict[str, ListenerServer]
    nursery: trio.Nursery
    records: list[AccessRecord]
    observed: list[messages.Observed]
    told: list[tuple[str, str, str]]

    def port(self, listener: str = "web") -> int:
        """The port that the listener's first address was bound to."""
        port: int = self.sockets[self.config.listeners[listener].bind[0]].getsockname()[1]
        return port

    def endpoint(self, upstream: str, address: str) -> EndpointRuntime:
        """One endpoint's runtime."""
        return self.plane.runtime.upstreams[upstream].endpoints[address]

    def counts(self, kind: str, name: str) -> dict[str, int]:
        """A series' counters."""
        return totals(self.shared, self.layout.blocks, kind, name, PAGES - 1)

    def apply(self, text: str) -> list[EndpointRuntime]:
        """Reload, as a worker's commit does it; returns the endpoints that it retired."""
        config = _load(self.folder, text)
        self.config = config
        reserve(self.layout, config)
        for listener in config.listeners.values():
            for bind in listener.bind:
                if bind not in self.sockets:
                    self.sockets[bind] = listen.bind(bind)
        number = self.plane.snapshot.generation + 1
        self.plane.tls = certificates.build(config, TicketKeys(), self.plane)
        self.plane.snapshot = build(config, number, self.layout.blocks, kinds.make_filter, self.plane.snapshot)
        retired = self.plane.runtime.apply(config.upstreams, self.layout.blocks, ())
        for endpoint in retired:
            for flow in list(endpoint.flows):
                flow.cut_by(trio.current_time() + config.gateway.drain)
        for name in self.servers.keys() - config.listeners.keys():
            self.servers.pop(name).retire(config.gateway.drain)
        for name, plan in self.plane.snapshot.listeners.items():
            if name not in self.servers:
                self.servers[name] = ListenerServer(self.plane, plan)
                self.nursery.start_soon(self.servers[name].run)
            self.servers[name].renew(plan, {bind: self.sockets[bind] for bind in plan.spec.bind})
        return retired

    def set_status(self, upstream: str, address: str, state: str, *, weight: float = 1.0, cause: str = "test") -> None:
        """What the supervisor would send of an endpoint."""
        status = messages.EndpointStatus(
            upstream=upstream, endpoint=address, state=EndpointState(state), weight=weight, cause=cause
        )
        self.plane.runtime.set_statuses([status])

    def use_filter(self, route: str, filter_: Filter) -> None:
        """Put a filter of the test's own into a route, for connections that come from now on."""
        snapshot = self.plane.snapshot
        plan = attrs.evolve(snapshot.routes[route], filters=(("test", filter_),))
        self.plane.snapshot = attrs.evolve(snapshot, routes={**snapshot.routes, route: plan})
        for server in self.servers.values():
            server.snapshot = self.plane.snapshot

    async def record(self, count: int = 1, within: float = 30.0) -> AccessRecord:
        """The newest record, once there are `count` of them."""
        with trio.fail_after(within):
            while len(self.records) < count:
                await trio.sleep(0.002)
        return self.records[-1]


def record_of(line: bytes) -> AccessRecord:
    """The record that a line tells of."""
    facts = json.loads(line)
    facts["attempts"] = [Attempt(**attempt) for attempt in facts["attempts"]]
    facts["t"] = Phases(**facts["t"])
    facts["reason"], facts["answered_by"] = Reason(facts["reason"]), Side(facts["answered_by"])
    del facts["v"]
    return AccessRecord(**facts)


def reserve(layout: Layout, config: schema.Config) -> None:
    """Blocks for everything that a config names, as the supervisor's publisher reserves them."""
    for kind, names in (("listener", config.listeners), ("route", config.routes)):
        for name in names:
            layout.reserve(kind, name)
    for name, upstream in config.upstreams.items():
        for endpoint in upstream.endpoints:
            layout.reserve("endpoint", f"{name}/{endpoint.address}")


def _load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> schema.Config:
    path = folder / "plane.toml"
    path.write_text(text)
    return load(path, environ=environ or {}, credentials=None).config


@contextlib.asynccontextmanager
async def serving(
    folder: Path, text: str, *, statuses: Sequence[messages.EndpointStatus] = ()
) -> AsyncIterator[TestPlane]:
    """The data plane of `text`, listening; everything it had open is cut at the end."""
    config = _load(folder, text)
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(PAGES))
    shared, layout = SharedPage(fd, PAGES), Layout()
    reserve(layout, config)
    records: list[AccessRecord] = []
    observed: list[messages.Observed] = []
    told: list[tuple[str, str, str]] = []
    rng = random.Random(7)
    runtime = Runtime(
        meter=Meter(shared=shared, page=shared.pages[1], processes=PAGES - 1),
        report=observed.append,
        make_balancer=lambda spec: kinds.BALANCERS[spec.balance](spec, rng),
        make_spread=lambda spec, make: Spread(spec, make, rng),
    )
    lane = Lane(trio.current_time)
    tasks: list[trio.Nursery] = []
    plane = Plane(
        lane=lane,
        start=lambda work: tasks[0].start_soon(work),
        snapshot=build(config, 1, layout.blocks, kinds.make_filter, None),
        runtime=runtime,
        page=shared.pages[1],
        write=records.append,
        write_lines=lambda lines: records.extend(map(record_of, lines)),
        tell=lambda kind, level, text, facts: told.append((kind, level, text)),
        resolver=Resolver(),
        pipes=PipePool(),
        rng=rng,
        wall=time.time,
        name=b"tcpgate-test",
        tls=certificates.build(config, TicketKeys(), None),
    )
    runtime.apply(config.upstreams, layout.blocks, statuses)
    sockets = {bind: listen.bind(bind) for one in config.listeners.values() for bind in one.bind}
    servers: dict[str, ListenerServer] = {}
    try:
        async with trio.open_nursery() as nursery:
            tasks.append(nursery)
            nursery.start_soon(lane.run_forever)
            nursery.start_soon(lane.sweep_forever)
            for name, plan in plane.snapshot.listeners.items():
                servers[name] = ListenerServer(plane, plan)
                nursery.start_soon(servers[name].run)
                servers[name].renew(plan, {bind: sockets[bind] for bind in plan.spec.bind})
            yield TestPlane(folder, layout, shared, config, sockets, plane, servers, nursery, records, observed, told)
            nursery.cancel_scope.cancel()
    finally:
        for endpoint in runtime.endpoints():
            endpoint.close_idle()
        plane.pipes.close()
        lane.close()
        for sock in sockets.values():
            sock.close()
        os.close(fd)
