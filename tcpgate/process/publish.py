"""Fits the fleet to what a reload needs: makes the message of a generation, and reserves the counters that it names.

Owner: none; `control/reload.py` calls, one reload at a time.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Mapping

import attrs
import trio

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.process import limits
from tcpgate.process.fleet import Fleet, Generation
from tcpgate.state import messages
from tcpgate.state.build import build
from tcpgate.stats.page import Layout

log = logging.getLogger("tcpgate.process.publish")


@attrs.define(eq=False)
class Publisher:
    """Satisfies `control.reload.Publisher`."""

    fleet: Fleet
    layout: Layout
    name: str = attrs.field(factory=lambda: f"tcpgate-{secrets.token_hex(4)}")
    """In Via: the same for every worker, another for each gateway."""
    _held: Generation | None = None

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        """Let every worker build it; what is wrong, or nothing."""
        try:
            self._reserve(config)
        except MemoryError as exc:
            return [str(exc)]
        held = self._held = Generation(number=number, prepare=self._message(number, config), sockets=dict(sockets))
        problems, holding = await self.fleet.prepare(held)
        if not problems and not holding:
            # At the start, or while every worker is being replaced, nobody has tried yet. A generation that cannot be
            # built must not become the current one all the same, so it is built here once, and dropped.
            problems = await trio.to_thread.run_sync(_try, held.prepare, abandon_on_cancel=True)
        return problems

    async def commit(self) -> None:
        """Swap to it everywhere."""
        held, self._held = self._held, None
        if held is not None:
            await self.fleet.commit(held)

    def abandon(self) -> None:
        """Forget it everywhere."""
        held, self._held = self._held, None
        if held is not None:
            self.fleet.abandon(held)

    def _message(self, number: int, config: schema.Config) -> messages.Prepare:
        # A worker touches users' bytes, so it is not told the secrets of the admin API.
        public = attrs.evolve(config, admin=attrs.evolve(config.admin, token=None))
        return messages.Prepare(
            generation=number,
            config=public,
            sockets=(),
            slots=dict(self.layout.blocks),
            statuses=(),
            name=self.name,
            workers=max(limits.workers(config.gateway.workers), self.fleet.most),
        )

    def _reserve(self, config: schema.Config) -> None:
        for name in config.listeners:
            self.layout.reserve("listener", name)
        for name in config.routes:
            self.layout.reserve("route", name)
        for name, upstream in config.upstreams.items():
            for endpoint in upstream.endpoints:
                self.layout.reserve("endpoint", f"{name}/{endpoint.address}")


def _try(message: messages.Prepare) -> list[str]:
    """What a worker would say, building this."""
    try:
        build(message.config, message.generation, message.slots, kinds.make_filter, None)
    except Exception as exc:
        log.exception("a config that was checked cannot be built: generation=%d", message.generation)
        return [f"{type(exc).__name__}: {exc}"]
    return []
