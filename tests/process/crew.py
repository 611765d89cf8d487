"""A fleet whose workers are tasks of the test: real links through memory, no process, no clock but Trio's.

Each worker does what its script says: builds or refuses, commits or does not, dies, hangs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping

import attrs
import trio

from tcpgate.config import schema
from tcpgate.process.fleet import Fleet, Generation
from tcpgate.process.link import LinkClosed, WorkerLink, memory_link_pair
from tcpgate.process.remote import RemoteWorker
from tcpgate.state import messages
from tcpgate.stats.page import Layout, SharedPage, size_of

PAGES = 9


@attrs.define(eq=False)
class TaskProcess:
    """A worker that is a task, as the fleet sees a process."""

    pid: int
    returncode: int | None = None
    signals: list[signal.Signals] = attrs.field(factory=list)
    _ended: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def wait(self) -> int:
        """Returns when it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, code: int) -> None:
        """It ends."""
        if self.returncode is None:
            self.returncode = code
            self.scope.cancel()
            self._ended.set()

    def kill(self) -> None:
        """SIGKILL."""
        self.end(-signal.SIGKILL)

    def send_signal(self, sig: signal.Signals) -> None:
        """It takes no notice."""
        self.signals.append(sig)


@attrs.define(eq=False)
class Script:
    """How workers behave; a test changes it as it goes."""

    refuses: dict[int, str] = attrs.field(factory=dict)
    """Worker index -> what it says to every Prepare."""
    dies_in_prepare: set[int] = attrs.field(factory=set)
    dies_in_commit: set[int] = attrs.field(factory=set)
    hangs_in_prepare: set[int] = attrs.field(factory=set)
    hangs_in_commit: set[int] = attrs.field(factory=set)
    cannot_start: int = 0
    """So many starts fail."""
    builds_for: float = 0.0
    """Seconds."""
    drains_for: float = 0.0


@attrs.define(eq=False)
class TaskWorker:
    """One worker's side of the link, and what it has been told."""

    index: int
    link: WorkerLink
    process: TaskProcess
    script: Script
    serves: int = 0
    holds: int = 0
    heard: list[messages.Down] = attrs.field(factory=list)

    async def run(self) -> None:
        """Answer until killed."""
        with self.process.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.link.send_forever)
                try:
                    while True:
                        message, fds = await self.link.receive()
                        for fd in fds:
                            os.close(fd)
                        self.heard.append(message)
                        await self._obey(message)
                except LinkClosed:
                    await trio.sleep_forever()
        self.link.close()

    async def _obey(self, message: messages.Down) -> None:
        index, script = self.index, self.script
        match message:
            case messages.Prepare(generation=number):
                if index in script.dies_in_prepare:
                    self.process.end(-signal.SIGSEGV)
                elif index not in script.hangs_in_prepare:
                    await trio.sleep(script.builds_for)
                    problem = script.refuses.get(index)
                    self.holds = 0 if problem else number
                    self.link.send_nowait(messages.Prepared(generation=number, problem=problem))
            case messages.Commit(generation=number):
                if index in script.dies_in_commit:
                    self.process.end(1)
                elif index not in script.hangs_in_commit and self.holds == number:
                    self.serves, self.holds = number, 0
                    self.link.send_nowait(messages.Committed(generation=number))
            case messages.Abandon():
                self.holds = 0
            case messages.Drain():
                await trio.sleep(script.drains_for)
                self.process.end(0)

    def statuses(self) -> Iterator[messages.EndpointStatus]:
        """What it was told of endpoints, in order."""
        for message in self.heard:
            if isinstance(message, messages.Statuses):
                yield from message.changed


@attrs.define(eq=False)
class Crew:
    """The fleet, its workers in the order of their start, and what was told."""

    nursery: trio.Nursery
    shared: SharedPage
    layout: Layout = attrs.field(factory=Layout)
    script: Script = attrs.field(factory=Script)
    started: list[TaskWorker] = attrs.field(factory=list)
    events: list[tuple[str, str]] = attrs.field(factory=list)
    observed: list[messages.Observed] = attrs.field(factory=list)
    statuses: list[messages.EndpointStatus] = attrs.field(factory=list)
    """What every endpoint is, for workers that start."""
    rest: float = 1e9
    fleet: Fleet = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.fleet = Fleet(
            shared=self.shared,
            tell=self._tell,
            observe=self.observed.append,
            statuses=lambda: tuple(self.statuses),
            blocks=lambda: self.layout.blocks,
            rest=lambda: self.rest,
            start=self._start,
        )

    def _tell(self, kind: str, level: str, text: str, facts: Mapping[str, str | int | float]) -> None:
        self.events.append((kind, text))

    async def _start(self, index: int, page_fd: int) -> RemoteWorker:
        await trio.lowlevel.checkpoint()
        if self.script.cannot_start:
            self.script.cannot_start -= 1
            raise OSError(11, "no more processes")
        ours, theirs = memory_link_pair()
        process = TaskProcess(pid=1000 + len(self.started))
        worker = TaskWorker(index, theirs, process, self.script)
        self.started.append(worker)
        self.nursery.start_soon(worker.run)
        return RemoteWorker(index, process, ours, started=trio.current_time())

    def living(self) -> dict[int, TaskWorker]:
        """Index -> the worker that lives."""
        return {worker.index: worker for worker in self.started if worker.process.returncode is None}

    def serving(self) -> dict[int, int]:
        """Index -> the generation that its worker serves."""
        return {index: worker.serves for index, worker in sorted(self.living().items())}

    def told(self, kind: str) -> list[str]:
        """The texts of every event of a kind."""
        return [text for found, text in self.events if found == kind]

    async def begin(self, workers: int = 2, number: int = 1) -> None:
        """Serve a first generation with so many workers."""
        await self.fleet.commit(generation(number))
        self.fleet.resize(workers, 1.0, self.nursery)
        with trio.fail_after(60):
            assert await self.fleet.wait_serving() == ""


def generation(number: int, config: schema.Config | None = None) -> Generation:
    """One that a fleet can be brought to."""
    prepare = messages.Prepare(
        generation=number,
        config=config or schema.Config(),
        sockets=(),
        slots={},
        statuses=(),
        name="tcpgate-test",
        workers=2,
    )
    return Generation(number=number, prepare=prepare, sockets={})


def make_page() -> SharedPage:
    """A page for a few workers."""
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(PAGES))
    return SharedPage(fd, PAGES)


async def until(holds: Callable[[], bool], within: float = 60.0) -> None:
    """Returns once it `holds`; by the clock of the test, which may jump."""
    with trio.fail_after(within):
        while not holds():
            await trio.sleep(0.01)
