"""The workers: started, told of generations, watched, replaced. Owner: the supervisor's root nursery.

A worker is a process of its own (`python -m tcpgate.process.worker`), started afresh rather than forked, because a
fork inside a running Trio is not to be had. One task per worker index keeps it alive: start, bring to the current
generation, listen to it until it ends, then start again, at once at first and with a growing pause if it keeps dying.
Nothing of a worker's death touches the listening sockets: they are the supervisor's, and new connections wait in the
backlog meanwhile.

Theory of operation. `current` is the generation that serves. Each worker has one task, `_follow_forever`, that brings
it to `current` whenever it serves another one; nobody else commits. A reload first lets every worker that is at
`current` hold the next generation (`prepare`), then makes that one `current` (`commit`) and waits for those workers
to follow. So a worker that starts, or dies and starts, in the middle of a reload is never asked two things at once,
and ends at `current` whichever way the reload goes. A worker that cannot follow is killed; its successor starts from
nothing.

An index has one keeper and so one process at a time: its page on the shared memory has one writer. A fleet that
shrinks and grows again waits for the draining worker's end before it starts that index anew.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from tcpgate.net import tickets
from tcpgate.net.openssl import LIBSSL
from tcpgate.process.link import LinkClosed
from tcpgate.process.remote import ANSWER_WITHIN, Generation, RemoteWorker, start_worker
from tcpgate.state import messages
from tcpgate.stats.page import WORKER_FIELDS, SharedPage

__all__ = ["BEAT", "Fleet", "Generation"]

BEAT = WORKER_FIELDS.index("beat_ms")
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between a worker's deaths and its restart: doubles while it dies young."""
YOUNG = 10.0
"""A worker that lived this long (seconds) starts again with the first pause."""
TICKETS_EVERY = 12 * 3600.0
"""Seconds between new keys for session tickets (`net/tickets.py` says why)."""
HOPELESS = 3
"""So many workers that ended before any of them ever served: the gateway cannot start here."""

Tell = Callable[[str, str, str, Mapping[str, str | int | float]], None]
"""(kind, level, text, facts) for the event journal."""
Start = Callable[[int, int], Awaitable[RemoteWorker]]
"""(index, fd of the shared page) to a worker that runs. Raises OSError."""

log = logging.getLogger("tcpgate.process.fleet")


@attrs.define(eq=False, kw_only=True)
class Fleet:
    """All workers. `current` is the committed generation; every worker is brought to it, whenever it starts."""

    shared: SharedPage
    tell: Tell
    observe: Callable[[messages.Observed], None]
    statuses: Callable[[], tuple[messages.EndpointStatus, ...]]
    """What every endpoint is now."""
    blocks: Callable[[], Mapping[str, int]]
    """The shared page's layout as it is now."""
    rest: Callable[[], float]
    """Seconds without a beat after which a worker counts as hung."""
    start: Start = start_worker
    current: Generation | None = None
    tickets: messages.Tickets = attrs.field(factory=lambda: messages.Tickets(keys=tickets.draw()))
    """What every worker seals session tickets with: the same in all of them, those that start later too."""
    workers: dict[int, RemoteWorker] = attrs.field(factory=dict)
    wanted: int = 0
    most: int = 0
    """How many there were at most: so many pages hold counters, which must not go back when the fleet shrinks."""
    deaths: int = 0
    stopping: bool = False
    failure: str = ""
    """Why the start is hopeless."""
    _keepers: set[int] = attrs.field(factory=set)
    _served: bool = False
    """Whether any worker ever served."""
    _unborn: int = 0
    _changed: trio.Event = attrs.field(factory=trio.Event)

    # -- how many ---------------------------------------------------------------------------------------------------

    def resize(self, wanted: int, drain: float, nursery: trio.Nursery) -> None:
        """Be `wanted` workers. New ones start in `nursery`; those above get `drain` seconds and are not started
        again."""
        self.wanted, self.most = wanted, max(wanted, self.most)
        for index in range(1, wanted + 1):
            if index not in self._keepers:
                self._keepers.add(index)
                nursery.start_soon(self.keep_forever, index)
        for index, worker in self.workers.items():
            if index > wanted:
                worker.see_off(drain)

    def see_off(self, drain: float) -> None:
        """Let every worker drain and leave, and start none any more."""
        self.stopping = True
        for worker in self.workers.values():
            worker.see_off(drain)

    async def wait_gone(self) -> None:
        """Returns once no worker lives; for the end of a drain."""
        while self.workers:
            await self._changed.wait()

    async def wait_serving(self) -> str:
        """Returns "" once every wanted worker serves the current generation, or why that is not to be hoped for."""
        while not self.failure and not self.serving():
            await self._changed.wait()
        return self.failure

    def serving(self) -> bool:
        """Whether every wanted worker serves the current generation."""
        number = self.current.number if self.current else 0
        return all(
            index in self.workers and self.workers[index].generation == number for index in range(1, self.wanted + 1)
        )

    def _wants(self, index: int) -> bool:
        return index <= self.wanted and not self.stopping

    def _change(self) -> None:
        """Wake whoever waits for something here."""
        self._changed.set()
        self._changed = trio.Event()

    # -- generations ------------------------------------------------------------------------------------------------

    async def prepare(self, generation: Generation) -> tuple[list[str], int]:
        """Let every worker that serves build it: what is wrong, a line per worker that cannot, and how many hold it."""
        problems: list[str] = []
        holding = 0

        async def one(worker: RemoteWorker) -> None:
            nonlocal holding
            problem = await worker.prepare(generation, self.statuses())
            if problem is None:
                holding += 1
            elif not worker.leaving:  # the dead and the leaving no longer count
                problems.append(problem)

        async with trio.open_nursery() as nursery:
            for worker in self._followers():
                nursery.start_soon(one, worker)
        return problems, holding

    async def commit(self, generation: Generation) -> None:
        """Make it the current one, and return when every worker that holds it serves it, or is gone."""
        waited_for = [worker for worker in self._followers() if worker.prepared == generation.number]
        self.current = generation
        self._change()
        while any(not worker.leaving and worker.generation != generation.number for worker in waited_for):
            await self._changed.wait()

    def abandon(self, generation: Generation) -> None:
        """Let every worker forget it."""
        self.broadcast(messages.Abandon(generation=generation.number))
        for worker in self.workers.values():
            worker.prepared = 0

    def broadcast(self, message: messages.Down) -> None:
        """Tell every worker, without waiting for any."""
        for worker in self.workers.values():
            worker.link.send_nowait(message)

    async def renew_tickets_forever(self) -> None:
        """New keys for session tickets, for every worker, now and then."""
        if LIBSSL is None:
            text = "this Python's OpenSSL takes no keys for session tickets: TLS clients resume in one worker only"
            self.tell("tickets_unshared", "warning", text, {})
        while True:
            await trio.sleep(TICKETS_EVERY)
            self.tickets = messages.Tickets(keys=tickets.draw())
            self.broadcast(self.tickets)

    def publish(self, changed: tuple[messages.EndpointStatus, ...]) -> None:
        """Tell every worker how endpoints are."""
        for worker in self.workers.values():
            worker.publish(changed)

    def _followers(self) -> list[RemoteWorker]:
        """Those that serve the current generation and will serve the next; the others are on their way by
        themselves."""
        number = self.current.number if self.current else 0
        return [worker for worker in self.workers.values() if not worker.leaving and worker.generation == number]

    async def _follow_forever(self, worker: RemoteWorker) -> None:
        """Bring a worker to the current generation, however often that changes."""
        while not worker.leaving:
            generation = self.current
            if generation is None or worker.generation == generation.number:
                await self._changed.wait()
                continue
            problem = await self._bring(worker, generation)
            if problem is None:
                self._served = True
                self._change()
            elif not worker.leaving:
                self._cannot_serve(worker, problem)
                return

    async def _bring(self, worker: RemoteWorker, generation: Generation) -> str | None:
        if worker.prepared != generation.number:
            problem = await worker.prepare(generation, self.statuses())
            if problem is not None:
                return problem
        return await worker.commit(generation)

    def _cannot_serve(self, worker: RemoteWorker, problem: str) -> None:
        """It does not come to the current generation: end it, its successor will. None ever did: there is no hope."""
        if not self._served:
            self.failure = self.failure or problem
        facts = {"worker": worker.index, "pid": worker.process.pid}
        self.tell("worker_hung", "error", f"worker {worker.index} cannot serve and is replaced: {problem}", facts)
        worker.process.kill()
        self._change()

    # -- lives ------------------------------------------------------------------------------------------------------

    async def keep_forever(self, index: int) -> None:
        """Keep worker `index` alive until the fleet stops or shrinks below it."""
        pause = FIRST_PAUSE
        try:
            while self._wants(index):
                began = trio.current_time()
                await self._live_guarded(index)
                if not self._wants(index):
                    continue  # asked to leave, or not wanted any more; but perhaps wanted again
                lived = trio.current_time() - began
                pause = FIRST_PAUSE if lived > YOUNG else min(pause * 2, LONGEST_PAUSE)
                if pause >= 1:
                    text = f"worker {index} keeps dying; the next start waits {pause:g} s"
                    self.tell("worker_backoff", "error", text, {"worker": index, "pause": pause})
                await trio.sleep(pause)
        finally:
            self._keepers.discard(index)

    async def _live_guarded(self, index: int) -> None:
        """One life; a start that fails, or a bug of ours, ends the life and not the fleet."""
        try:
            await self._live(index)
        except OSError as exc:
            self._unborn += 1
            self.tell("worker_died", "error", f"worker {index} cannot be started: {exc}", {"worker": index})
        except Exception as exc:
            log.exception("the task of a worker failed: worker=%d", index)
            self.tell("bug", "error", f"the task of worker {index} failed: {exc!r}", {"worker": index})
        if not self._served and self._unborn >= HOPELESS:
            self.failure = self.failure or f"{self._unborn} workers ended before one of them served; stderr says why"
            self._change()

    async def _live(self, index: int) -> None:
        """One worker's life, from start to its end."""
        worker = await self.start(index, self.shared.fd)
        self.workers[index] = worker
        worker.link.send_nowait(self.tickets)  # before its first generation, whose contexts use them
        facts = {"worker": index, "pid": worker.process.pid}
        self.tell("worker_started", "info", f"worker {index} started", facts)
        if not self._wants(index):
            worker.see_off(0)  # it was on its way when the others were told
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_forever, worker)
                nursery.start_soon(self._watch_beat, worker)
                nursery.start_soon(self._listen, worker)
                nursery.start_soon(worker.send_statuses_forever)
                nursery.start_soon(worker.link.send_forever)
                await worker.process.wait()
                nursery.cancel_scope.cancel()
        finally:
            asked = worker.leaving
            # Whatever ends this task, no process is left behind and no gauge counts what is gone.
            worker.process.kill()
            with trio.move_on_after(2, shield=True):
                await worker.process.wait()
            worker.ended()
            if self.workers.get(index) is worker:
                del self.workers[index]
            self.shared.zero_gauges(index, self.blocks())
            self._change()
        self._tell_end(worker, asked=asked)

    async def _listen(self, worker: RemoteWorker) -> None:
        try:
            while True:
                message, _ = await worker.link.receive()
                self._hear(worker, message)
        except LinkClosed as exc:
            log.debug("link closed: worker=%d %s", worker.index, exc)
        # A link is closed by the worker's end, which the life's own task sees, or by words that no honest worker says.
        await trio.sleep(1)
        worker.process.kill()

    def _hear(self, worker: RemoteWorker, message: object) -> None:
        match message:
            case messages.Prepared() | messages.Committed():
                worker.hear(message)
            case messages.Observed():
                self.observe(message)
            case messages.Told(kind=kind, level=level, text=text, facts=facts):
                self.tell(kind, level, text, {**facts, "worker": worker.index})

    async def _watch_beat(self, worker: RemoteWorker) -> None:
        """End a worker whose loop has stopped turning; SIGABRT first, so that it writes where it hangs."""
        page = self.shared.pages[worker.index]
        page[BEAT] = time.monotonic_ns() // 1_000_000
        while True:
            await trio.sleep(min(1.0, self.rest() / 4))
            silent = time.monotonic_ns() / 1e9 - page[BEAT] / 1e3
            # A start on a busy host may take longer than a turn of the loop ever should.
            if silent > (self.rest() if worker.generation else max(self.rest(), ANSWER_WITHIN)):
                text = f"worker {worker.index} has not turned for {silent:.1f} s; replacing it"
                self.tell("worker_hung", "error", text, {"worker": worker.index, "pid": worker.process.pid})
                worker.process.send_signal(signal.SIGABRT)
                await trio.sleep(1)
                worker.process.kill()
                await trio.sleep_forever()

    def _tell_end(self, worker: RemoteWorker, *, asked: bool) -> None:
        facts = {"worker": worker.index, "pid": worker.process.pid}
        if asked and worker.process.returncode == 0:
            self.tell("worker_left", "info", f"worker {worker.index} has drained and left", facts)
            return
        if not worker.generation:
            self._unborn += 1
        self.deaths += 1
        more = "; starting another" if self._wants(worker.index) else ""
        text = f"worker {worker.index} ended {worker.how_it_ended}{more}"
        self.tell("worker_died", "error", text, facts)
