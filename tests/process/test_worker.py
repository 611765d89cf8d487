"""A worker's whole life in the test's own loop: its link through memory, its sockets and its data plane real."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.config.load import load
from tcpgate.net import listen
from tcpgate.policy.health import EndpointState
from tcpgate.process import collector as collector_module
from tcpgate.process import worker as worker_module
from tcpgate.process.link import SupervisorLink, memory_link_pair
from tcpgate.process.logs import configure_diagnostics
from tcpgate.process.worker import Compile, Worker
from tcpgate.state import messages
from tcpgate.state.build import MakeFilter, build
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats.page import Layout, SharedPage, size_of
from tests.gateway import talk
from tests.plane import reserve

PAGES = 3


@attrs.define(eq=False)
class Seat:
    """The supervisor's seat at one worker."""

    folder: Path
    link: SupervisorLink
    worker: Worker
    layout: Layout = attrs.field(factory=Layout)
    sockets: dict[str, socket.socket] = attrs.field(factory=dict)
    known: frozenset[str] = frozenset()
    heard: list[messages.Up] = attrs.field(factory=list)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def listen_forever(self) -> None:
        while True:
            message, _ = await self.link.receive()
            self.heard.append(message)

    def config(self, text: str) -> schema.Config:
        path = self.folder / "worker.toml"
        path.write_text(f'[log]\naccess = "{self.folder}/access.log"\nevents = "{self.folder}/events.log"\n{text}')
        return load(path, environ={}, credentials=None).config

    async def prepare(self, number: int, config: schema.Config, *statuses: messages.EndpointStatus) -> None:
        """Send a generation; the answer is for `heard`."""
        reserve(self.layout, config)
        binds = [bind for one in config.listeners.values() for bind in one.bind]
        for bind in binds:
            if bind not in self.sockets:
                self.sockets[bind] = listen.bind(bind)
        missing = tuple(bind for bind in binds if bind not in self.known)
        message = messages.Prepare(
            generation=number,
            config=config,
            sockets=missing,
            slots=dict(self.layout.blocks),
            statuses=statuses,
            name="tcpgate-test",
            workers=PAGES - 1,
        )
        await self.link.send(message, [self.sockets[bind].fileno() for bind in missing])

    async def commit(self, number: int) -> None:
        await self.link.send(messages.Commit(generation=number))

    async def answer(self, kind: type, number: int, within: float = 30.0) -> str | None:
        """The problem of the answer of that kind to that generation, once it has come."""
        with trio.fail_after(within):
            while True:
                for message in self.heard:
                    if type(message) is kind and getattr(message, "generation", 0) == number:
                        return getattr(message, "problem", None)
                await trio.sleep(0.002)

    async def serve(self, number: int, text: str, *statuses: messages.EndpointStatus) -> schema.Config:
        """Bring it to a generation."""
        config = self.config(text)
        await self.prepare(number, config, *statuses)
        assert await self.answer(messages.Prepared, number) is None
        await self.commit(number)
        await self.answer(messages.Committed, number)
        self.known = frozenset(bind for one in config.listeners.values() for bind in one.bind)
        for bind in self.sockets.keys() - self.known:
            self.sockets.pop(bind).close()
        return config

    async def wait_ended(self, within: float = 20.0) -> None:
        with trio.fail_after(within):
            await self.ended.wait()


@pytest.fixture
def page() -> Iterator[SharedPage]:
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(PAGES))
    shared = SharedPage(fd, PAGES)
    yield shared
    shared.close()
    os.close(fd)


@contextlib.asynccontextmanager
async def seated(folder: Path, page: SharedPage, compile_: Compile = build) -> AsyncIterator[Seat]:
    """A worker that has been started and told nothing yet."""
    ours, theirs = memory_link_pair()
    seat = Seat(folder, ours, Worker(1, theirs, page, compile_))

    async def live() -> None:
        await seat.worker.run()
        await seat.worker.sink.drain()
        await seat.worker.diagnostics.drain()
        seat.ended.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            nursery.start_soon(ours.send_forever)
            nursery.start_soon(_quietly, seat.listen_forever)
            yield seat
            nursery.cancel_scope.cancel()
    finally:
        gc.unfreeze()  # the test's objects are to be found by the next test's collections
        configure_diagnostics("info")
        ours.close()
        theirs.close()
        for sock in [*seat.sockets.values(), *seat.worker.sockets.values()]:
            sock.close()
        if seat.worker.plane is not None:
            for endpoint in seat.worker.plane.runtime.endpoints():
                endpoint.close_idle()
            seat.worker.plane.pipes.close()
        for sink in (seat.worker.sink, seat.worker.diagnostics):
            if sink._target is not None:
                sink._target.close()


async def _quietly(forever: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        await forever()  # type: ignore[misc]


def slow_from(first: int, go_on: threading.Event, last: int = 1_000_000) -> Compile:
    """Builds generations, but those from `first` to `last` not before it may go on."""

    def slow(
        config: schema.Config, number: int, slots: Mapping[str, int], make: MakeFilter, previous: Snapshot | None
    ) -> Snapshot:
        if first <= number <= last:
            go_on.wait(40)
        return build(config, number, slots, make, previous)

    return slow


def answers(port: int, body: str, name: str = "web") -> str:
    return f'[listeners.{name}]\nbind = ["127.0.0.1:{port}"]\n[routes.all]\nrespond = {{ body = "{body}" }}\n'


async def get(port: int) -> bytes:
    return await talk(port, b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")


async def test_it_serves_nothing_before_the_first_commit(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with seated(tmp_path, page) as seat:
        config = seat.config(answers(port, "one"))
        await seat.prepare(1, config)
        assert await seat.answer(messages.Prepared, 1) is None
        assert await talk(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", within=0.1) == b""
        assert seat.worker.listeners == {}
        await seat.commit(1)
        assert (await get(port)).endswith(b"one")


async def test_generations_follow_one_another_and_an_abandoned_one_leaves_no_trace(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port, other = free_port(), free_port()
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, answers(port, "one"))
        fds = len(os.listdir("/proc/self/fd"))
        await seat.prepare(2, seat.config(answers(other, "two")))
        assert await seat.answer(messages.Prepared, 2) is None
        await seat.link.send(messages.Abandon(generation=2))
        assert (await get(port)).endswith(b"one")
        seat.sockets.pop(f"127.0.0.1:{other}").close()
        assert len(os.listdir("/proc/self/fd")) == fds
        await seat.commit(2)  # it holds nothing: no answer, no change
        assert (await get(port)).endswith(b"one")
        await seat.serve(3, answers(port, "three"))
        assert (await get(port)).endswith(b"three")
        assert seat.worker.page[worker_module.GENERATION] == 3


async def test_what_cannot_be_built_is_said_and_the_old_one_goes_on(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with seated(tmp_path, page) as seat:
        config = await seat.serve(1, answers(port, "one"))
        dangling = attrs.evolve(config, routes={"all": schema.Route(filters=("nowhere",), respond=schema.Respond())})
        await seat.prepare(2, dangling)
        assert await seat.answer(messages.Prepared, 2) == "KeyError: 'nowhere'"
        nowhere = attrs.evolve(config, log=attrs.evolve(config.log, access="/nowhere/access.log"))
        await seat.prepare(3, nowhere)
        problem = await seat.answer(messages.Prepared, 3)
        assert problem is not None
        assert problem.startswith("log.access: there is no directory /nowhere")
        assert (await get(port)).endswith(b"one")


async def test_a_drain_is_heard_while_a_build_is_stuck(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port, go_on = free_port(), threading.Event()
    async with seated(tmp_path, page, slow_from(2, go_on)) as seat:
        await seat.serve(1, answers(port, "one"))
        await seat.prepare(2, seat.config(answers(port, "two")))
        await trio.sleep(0.1)
        assert (await get(port)).endswith(b"one")
        await seat.link.send(messages.Drain(seconds=1.0))
        await seat.wait_ended()
        go_on.set()
    assert not any(isinstance(message, messages.Prepared) and message.generation == 2 for message in seat.heard)


async def test_a_newer_prepare_takes_the_place_of_one_that_is_still_building(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port, go_on = free_port(), threading.Event()
    async with seated(tmp_path, page, slow_from(2, go_on, 2)) as seat:
        await seat.serve(1, answers(port, "one"))
        await seat.prepare(2, seat.config(answers(port, "two")))
        await trio.sleep(0.05)
        await seat.serve(3, answers(port, "three"))
        go_on.set()
        await trio.sleep(0.05)
        await seat.commit(2)
        assert (await get(port)).endswith(b"three")


UPSTREAM = """
[upstreams.u]
endpoints = ["127.0.0.1:1", "127.0.0.1:2"]
[upstreams.u.health]
tcp = true
"""


def status(address: str, state: EndpointState) -> messages.EndpointStatus:
    return messages.EndpointStatus(upstream="u", endpoint=address, state=state, weight=1.0, cause="said")


async def test_a_state_that_comes_between_prepare_and_commit_is_known_after_it(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port, go_on = free_port(), threading.Event()
    one, two = "127.0.0.1:1", "127.0.0.1:2"
    async with seated(tmp_path, page, slow_from(1, go_on)) as seat:
        config = seat.config(answers(port, "one") + UPSTREAM)
        await seat.prepare(1, config, status(one, EndpointState.HEALTHY), status(two, EndpointState.HEALTHY))
        await trio.sleep(0.05)
        await seat.link.send(messages.Statuses(changed=(status(one, EndpointState.DOWN),)))  # while it builds
        await trio.sleep(0.05)
        go_on.set()
        await seat.answer(messages.Prepared, 1)
        await seat.link.send(messages.Statuses(changed=(status(two, EndpointState.MAINT),)))  # while it holds
        await seat.commit(1)
        await seat.answer(messages.Committed, 1)
        assert seat.worker.plane is not None
        endpoints = seat.worker.plane.runtime.upstreams["u"].endpoints
        assert endpoints[one].state is EndpointState.DOWN
        assert endpoints[two].state is EndpointState.MAINT
        await seat.link.send(messages.Statuses(changed=(status(two, EndpointState.HEALTHY),)))
        with trio.fail_after(20):
            while endpoints[two].state is not EndpointState.HEALTHY:
                await trio.sleep(0.005)


async def test_a_drain_before_the_first_generation_is_the_end(tmp_path: Path, page: SharedPage) -> None:
    async with seated(tmp_path, page) as seat:
        await seat.link.send(messages.Drain(seconds=30.0))
        await seat.wait_ended()


async def test_one_that_is_leaving_takes_no_generation_any_more(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port, other = free_port(), free_port()
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, answers(port, "one"))
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        await trio.sleep(0.05)
        await seat.link.send(messages.Drain(seconds=30.0))
        await seat.prepare(2, seat.config(answers(other, "two")))
        await seat.commit(2)
        await trio.sleep(0.1)
        await stream.send_all(b"Host: t\r\n\r\n")
        with trio.fail_after(20):
            assert b"one" in await stream.receive_some(65536)
        await stream.aclose()
        await seat.wait_ended()
    assert not any(isinstance(message, messages.Prepared) and message.generation == 2 for message in seat.heard)


async def test_without_a_supervisor_it_goes_on_if_it_ever_served_and_else_it_ends(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with seated(tmp_path, page) as seat:
        seat.link.close()
        await seat.wait_ended()
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, answers(port, "one"))
        seat.link.close()
        await trio.sleep(0.2)
        assert (await get(port)).endswith(b"one")
        assert not seat.ended.is_set()
        with trio.fail_after(20):
            while "lost its supervisor" not in (tmp_path / "events.log").read_text():
                await trio.sleep(0.02)


async def test_its_own_troubles_go_to_the_events_and_its_records_to_the_access_log(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, answers(port, "one"))
        assert (await get(port)).endswith(b"one")
        worker_module.log.warning("something is odd")
        with trio.fail_after(20):
            while "something is odd" not in (tmp_path / "events.log").read_text():
                await trio.sleep(0.02)
            while '"status":200' not in (tmp_path / "access.log").read_text():
                await trio.sleep(0.02)
        assert "something is odd" not in (tmp_path / "access.log").read_text()


async def test_a_bug_in_the_sweep_is_told_and_costs_no_connection(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr(worker_module, "SWEEP_EVERY", 0.02)
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, answers(port, "one"))
        assert seat.worker.plane is not None
        monkeypatch.setattr(type(seat.worker.plane), "sweep", lambda self, now: 1 / 0)
        with trio.fail_after(20):
            while not any(isinstance(message, messages.Told) and message.kind == "bug" for message in seat.heard):
                await trio.sleep(0.01)
        assert (await get(port)).endswith(b"one")


async def test_what_is_long_lived_is_kept_from_the_collector_and_looked_at_again_after_reloads(
    tmp_path: Path, page: SharedPage, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr(worker_module, "SWEEP_EVERY", 0.02)
    monkeypatch.setattr(worker_module, "TIDY_AFTER", 0.1)
    monkeypatch.setattr(collector_module, "CALM", float("inf"))
    async with seated(tmp_path, page) as seat:
        gc.unfreeze()
        await seat.serve(1, answers(port, "one"))
        frozen = gc.get_freeze_count()
        assert frozen > 10_000
        circle: list[object] = []
        circle.append(circle)
        await seat.serve(2, answers(port, "two"))
        assert seat.worker.collector.tidy_at < float("inf")
        with trio.fail_after(20):
            while seat.worker.collector.tidy_at < float("inf"):
                await trio.sleep(0.02)
        assert gc.get_freeze_count() != frozen


def test_only_kinds_of_the_page_are_made_here() -> None:
    """A worker makes what a config names from these tables alone, so they must have every word of the schema."""
    assert kinds.FILTERS.keys() == schema.FILTER_SPECS.keys()
    assert set(kinds.BALANCERS) == set(schema.Balance.__args__)  # type: ignore[attr-defined]
