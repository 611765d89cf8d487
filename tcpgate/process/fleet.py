"""The workers: started, told of generations, watched, replaced. Owner: the supervisor's root nursery.

A worker is a process of its own (`python -m tcpgate.process.worker`), started afresh rather than forked, because a fork inside a
running Trio is not to be had. One task per worker index keeps it alive: start, greet with the current generation, listen to it
until it ends, then start again, at once at first and with a growing pause if it keeps dying. Nothing of a worker's death
touches the listening sockets: they are the supervisor's, and new connections wait in the backlog meanwhile.

A generation goes to every worker in two steps (`prepare`, then `commit` or `abandon`); a worker that dies in between no
longer counts, because its successor starts with whatever generation is then current.
"""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import attrs
import trio

from tcpgate.process.link import LinkClosed, SupervisorLink, supervisor_link
from tcpgate.state import messages
from tcpgate.stats.page import WORKER_FIELDS, SharedPage

BEAT = WORKER_FIELDS.index("beat_ms")
ANSWER_WITHIN = 30.0
"""Seconds that a worker has to build a generation; 10,000 routes take about one."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between a worker's deaths and its restart: doubles while it dies young."""
YOUNG = 10.0
"""A worker that lived this long (seconds) starts again with the first pause."""

Tell = Callable[[str, str, str, Mapping[str, str | int | float]], None]
"""(kind, level, text, facts) for the event journal."""


@attrs.frozen(kw_only=True)
class Generation:
    """What a worker needs to serve: the message without the parts that differ from worker to worker."""

    number: int
    prepare: messages.Prepare
    sockets: Mapping[str, socket.socket]
    """Bind text -> listening socket."""


@attrs.define(eq=False)
class Worker:
    """One worker process as its supervisor sees it."""

    index: int
    process: trio.Process
    link: SupervisorLink
    has_sockets: frozenset[str] = frozenset()
    generation: int = 0
    started: float = 0.0
    answers: dict[tuple[type, int], trio.Event] = attrs.field(factory=dict)
    problem: str | None = None
    hung: bool = False

    async def ask(self, message: messages.Down, answer: type, number: int, fds: tuple[int, ...] = ()) -> str | None:
        """Send, and wait for the `answer` to generation `number`: None, or what is wrong."""
        event = self.answers[answer, number] = trio.Event()
        self.problem = None
        try:
            with trio.fail_after(ANSWER_WITHIN):
                await self.link.send(message, fds)
                await event.wait()
        except trio.TooSlowError:
            return f"worker {self.index} did not answer within {ANSWER_WITHIN:g} s"
        except LinkClosed:
            return f"worker {self.index} died"
        finally:
            del self.answers[answer, number]
        return self.problem


@attrs.define(eq=False, kw_only=True)
class Fleet:
    """All workers. `current` is the committed generation; every worker is brought to it, whenever it starts."""

    shared: SharedPage
    tell: Tell
    observe: Callable[[messages.Observed], None]
    statuses: Callable[[], tuple[messages.EndpointStatus, ...]]
    blocks: Callable[[], Mapping[str, int]]
    """The shared page's layout as it is now."""
    rest: Callable[[], float]
    """Seconds without a beat after which a worker counts as hung."""
    current: Generation | None = None
    workers: dict[int, Worker] = attrs.field(factory=dict)
    wanted: int = 0
    deaths: int = 0
    stopping: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def grow(self, wanted: int, nursery: trio.Nursery) -> None:
        """Be `wanted` workers. New ones start in `nursery`; those above drain and are not started again."""
        for index in range(self.wanted + 1, wanted + 1):
            nursery.start_soon(self.keep_forever, index)
        self.wanted = wanted

    # -- generations ------------------------------------------------------------------------------------------------

    async def prepare(self, generation: Generation) -> list[str]:
        """Let every living worker build it; returns what is wrong, one line per worker that cannot."""
        problems: list[str] = []

        async def one(worker: Worker) -> None:
            problem = await self._prepare(worker, generation)
            if problem is not None and self.workers.get(worker.index) is worker:
                problems.append(problem)

        async with trio.open_nursery() as nursery:
            for worker in list(self.workers.values()):
                nursery.start_soon(one, worker)
        return problems

    async def commit(self, generation: Generation) -> None:
        """Make it the current one, everywhere. A worker that does not follow is ended: its successor will."""
        self.current = generation

        async def one(worker: Worker) -> None:
            problem = await self._commit(worker, generation)
            if problem is not None and self.workers.get(worker.index) is worker:
                self.tell("worker_hung", "error", f"worker {worker.index} did not take the generation: {problem}", {})
                worker.process.kill()

        async with trio.open_nursery() as nursery:
            for worker in list(self.workers.values()):
                nursery.start_soon(one, worker)

    async def abandon(self, generation: Generation) -> None:
        """Let every worker forget it."""
        await self.broadcast(messages.Abandon(generation=generation.number))

    async def _prepare(self, worker: Worker, generation: Generation) -> str | None:
        missing = tuple(bind for bind in generation.sockets if bind not in worker.has_sockets)
        message = attrs.evolve(generation.prepare, sockets=missing, statuses=self.statuses())
        fds = tuple(generation.sockets[bind].fileno() for bind in missing)
        return await worker.ask(message, messages.Prepared, generation.number, fds)

    async def _commit(self, worker: Worker, generation: Generation) -> str | None:
        problem = await worker.ask(
            messages.Commit(generation=generation.number), messages.Committed, generation.number
        )
        if problem is None:
            worker.generation, worker.has_sockets = generation.number, frozenset(generation.sockets)
            self._changed.set()
            self._changed = trio.Event()
        return problem

    async def broadcast(self, message: messages.Down) -> None:
        """Tell every worker; one that is gone does not matter."""
        for index in list(self.workers):
            await self.send(index, message)

    async def send(self, index: int, message: messages.Down) -> None:
        """Tell one worker, if it lives."""
        worker = self.workers.get(index)
        try:
            with trio.move_on_after(1):
                if worker is not None:
                    await worker.link.send(message)
        except LinkClosed:
            return

    async def wait_serving(self) -> None:
        """Returns once every wanted worker serves the current generation."""
        while not self.serving():
            await self._changed.wait()

    def serving(self) -> bool:
        """Whether every wanted worker serves the current generation."""
        number = self.current.number if self.current else 0
        return all(
            index in self.workers and self.workers[index].generation == number for index in range(1, self.wanted + 1)
        )

    # -- lives ------------------------------------------------------------------------------------------------------

    async def keep_forever(self, index: int) -> None:
        """Keep worker `index` alive until the fleet stops or shrinks below it."""
        pause = FIRST_PAUSE
        while index <= self.wanted and not self.stopping:
            began = trio.current_time()
            try:
                await self._live(index)
            except OSError as exc:
                self.tell("worker_died", "error", f"worker {index} cannot be started: {exc}", {"worker": index})
            if self.stopping or index > self.wanted:
                return
            pause = FIRST_PAUSE if trio.current_time() - began > YOUNG else min(pause * 2, LONGEST_PAUSE)
            await trio.sleep(pause)

    async def _live(self, index: int) -> None:
        """One worker's life, from start to its end."""
        worker = await self._start(index)
        self.workers[index] = worker
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._greet, worker)
                nursery.start_soon(self._watch_beat, worker)
                nursery.start_soon(self._listen, worker)
                nursery.start_soon(worker.link.send_forever)
                await worker.process.wait()
                nursery.cancel_scope.cancel()
        finally:
            # Whatever ends this task, no process is left behind and no gauge counts what is gone.
            worker.process.kill()
            with trio.move_on_after(2, shield=True):
                await worker.process.wait()
            worker.link.close()
            if self.workers.get(index) is worker:
                del self.workers[index]
            self.shared.zero_gauges(index, self.blocks())
        self._tell_end(worker)

    async def _start(self, index: int) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await trio.lowlevel.open_process(
                [
                    *(sys.executable, "-m", "tcpgate.process.worker"),
                    *(str(index), str(theirs.fileno()), str(self.shared.fd)),
                ],
                pass_fds=(theirs.fileno(), self.shared.fd),
                stdin=subprocess.DEVNULL,
            )
        self.tell("worker_started", "info", f"worker {index} started", {"worker": index, "pid": process.pid})
        return Worker(index, process, supervisor_link(ours), started=trio.current_time())

    async def _greet(self, worker: Worker) -> None:
        """Bring a new worker to the current generation, however often that changes meanwhile."""
        while self.current is not None and worker.generation != self.current.number:
            generation = self.current
            problem = await self._bring(worker, generation)
            if problem is not None:
                self.tell("worker_hung", "error", f"worker {worker.index} cannot serve: {problem}", {})
                worker.process.kill()
                return

    async def _bring(self, worker: Worker, generation: Generation) -> str | None:
        problem = await self._prepare(worker, generation)
        return problem if problem is not None else await self._commit(worker, generation)

    async def _listen(self, worker: Worker) -> None:
        try:
            while True:
                message, _ = await worker.link.receive()
                self._hear(worker, message)
        except LinkClosed:
            return

    def _hear(self, worker: Worker, message: object) -> None:
        match message:
            case messages.Prepared(generation=number, problem=problem):
                self._answered(worker, messages.Prepared, number, problem)
            case messages.Committed(generation=number):
                self._answered(worker, messages.Committed, number, None)
            case messages.Observed():
                self.observe(message)
            case messages.Told(kind=kind, level=level, text=text, facts=facts):
                self.tell(kind, level, text, {**facts, "worker": worker.index})

    def _answered(self, worker: Worker, answer: type, number: int, problem: str | None) -> None:
        event = worker.answers.get((answer, number))
        if event is not None:
            worker.problem = f"worker {worker.index}: {problem}" if problem else None
            event.set()

    async def _watch_beat(self, worker: Worker) -> None:
        """End a worker whose loop has stopped turning; SIGABRT first, so that it writes where it hangs."""
        page = self.shared.pages[worker.index]
        page[BEAT] = time.monotonic_ns() // 1_000_000
        while True:
            await trio.sleep(min(1.0, self.rest() / 4))
            silent = time.monotonic_ns() / 1e9 - page[BEAT] / 1e3
            if silent > self.rest():
                worker.hung = True
                self.tell(
                    *("worker_hung", "error", f"worker {worker.index} has not turned for {silent:.1f} s; replacing it"),
                    {"worker": worker.index, "pid": worker.process.pid},
                )
                worker.process.send_signal(signal.SIGABRT)
                await trio.sleep(1)
                worker.process.kill()
                await trio.sleep(math.inf)

    def _tell_end(self, worker: Worker) -> None:
        code = worker.process.returncode
        if self.stopping or (code == 0 and worker.index > self.wanted):
            return
        self.deaths += 1
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        self.tell(
            *("worker_died", "error", f"worker {worker.index} ended {how}; starting another"),
            {"worker": worker.index, "pid": worker.process.pid},
        )

    async def wait_gone(self) -> None:
        """Returns once no worker lives; for the end of a drain."""
        while self.workers:
            await trio.sleep(0.02)
