"""Configs and runtimes for the tests of this room: a shared page in memory, endpoints that nothing connects to."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.policy.spread import Spread
from tcpgate.state.messages import Observed
from tcpgate.state.runtime import EndpointRuntime, Meter, Runtime
from tcpgate.stats.page import Layout, SharedPage, size_of

PAGES = 3


@attrs.define(eq=False)
class World:
    """A runtime, and what it has reported."""

    layout: Layout
    shared: SharedPage
    runtime: Runtime
    reported: list[Observed]

    def apply(self, config: schema.Config) -> list[EndpointRuntime]:
        """As a commit does it; the endpoints that are retired by it."""
        reserve(self.layout, config)
        return self.runtime.apply(config.upstreams, self.layout.blocks, ())


def reserve(layout: Layout, config: schema.Config) -> None:
    """Blocks for everything that `config` names."""
    for kind, names in (("listener", config.listeners), ("route", config.routes)):
        for name in names:
            layout.reserve(kind, name)
    for name, spec in config.upstreams.items():
        for endpoint in spec.endpoints:
            layout.reserve("endpoint", f"{name}/{endpoint.address}")


@contextmanager
def world() -> Iterator[World]:
    """A runtime without any upstream yet."""
    fd = os.memfd_create("state")
    os.ftruncate(fd, size_of(PAGES))
    shared, reported, rng = SharedPage(fd, PAGES), list[Observed](), random.Random(1)
    runtime = Runtime(
        meter=Meter(shared=shared, page=shared.pages[1], processes=PAGES - 1),
        report=reported.append,
        make_balancer=lambda spec: kinds.BALANCERS[spec.balance](spec, rng),
        make_spread=lambda spec, make: Spread(spec, make, rng),
    )
    try:
        yield World(Layout(), shared, runtime, reported)
    finally:
        os.close(fd)


def upstream(
    *addresses: str, weight: int = 1, health: bool = False, balance: schema.Balance = "first"
) -> schema.Upstream:
    """An upstream of endpoints that all weigh the same."""
    return schema.Upstream(
        balance=balance,
        endpoints=tuple(schema.Endpoint(address=address, weight=weight) for address in addresses),
        health=schema.Health(http="/") if health else None,
    )


def config(**upstreams: schema.Upstream) -> schema.Config:
    """A config of upstreams alone."""
    return schema.Config(upstreams=upstreams)
