"""One worker process as its supervisor sees it: what it was asked, what it has, what it still has to hear.

Questions about generations are asked by one task at a time (`fleet.py` says which) and answered through `hear`; a
worker that ends answers all of them. Endpoint states are kept here until the worker's socket takes them, the last
word on an endpoint replacing the one before, so that neither a slow worker nor a thousand changes at once can fill a
queue.

Owner: the fleet's task of that worker.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import trio

from tcpgate.process.link import LinkClosed, SupervisorLink, supervisor_link
from tcpgate.state import messages

ANSWER_WITHIN = 30.0
"""Seconds that a worker has to build a generation, or to start; 10,000 routes take about one."""

Lives = Mapping[str, socket.socket]


class Process(Protocol):
    """What the fleet needs of a `trio.Process`."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives."""
        ...

    async def wait(self) -> int:
        """Returns when it has ended."""
        ...

    def kill(self) -> None:
        """End it now; nothing if it has ended."""
        ...

    def send_signal(self, sig: signal.Signals) -> None:
        """Nothing if it has ended."""
        ...


@attrs.frozen(kw_only=True)
class Generation:
    """What a worker needs to serve: the message without the parts that differ from worker to worker."""

    number: int
    """Never used twice, not even after a failure: an answer that comes late must not be taken for a newer one's."""
    prepare: messages.Prepare
    sockets: Lives
    """Bind text -> listening socket."""


@attrs.define(eq=False)
class _Question:
    """Something that the worker has to answer."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    problem: str | None = None


@attrs.define(eq=False)
class RemoteWorker:
    """One worker process."""

    index: int
    process: Process
    link: SupervisorLink
    started: float
    generation: int = 0
    """The one that it serves; 0: none yet."""
    prepared: int = 0
    """The one that it holds ready."""
    leaving: bool = False
    """It was told to drain, or is gone: it takes part in nothing any more."""
    has_sockets: frozenset[str] = frozenset()
    _questions: dict[tuple[type, int], _Question] = attrs.field(factory=dict)
    _unsaid: dict[tuple[str, str], messages.EndpointStatus] = attrs.field(factory=dict)
    _some: trio.Event = attrs.field(factory=trio.Event)

    # -- generations ------------------------------------------------------------------------------------------------

    async def prepare(self, generation: Generation, statuses: tuple[messages.EndpointStatus, ...]) -> str | None:
        """Let it build `generation` and hold it: None, or what is wrong."""
        missing = tuple(bind for bind in generation.sockets if bind not in self.has_sockets)
        message = attrs.evolve(generation.prepare, sockets=missing, statuses=statuses)
        fds = tuple(generation.sockets[bind].fileno() for bind in missing)
        problem = await self._ask(message, messages.Prepared, generation.number, fds)
        self.prepared = 0 if problem else generation.number
        return problem

    async def commit(self, generation: Generation) -> str | None:
        """Let it swap to what it holds: None, or what is wrong."""
        message = messages.Commit(generation=generation.number)
        problem = await self._ask(message, messages.Committed, generation.number)
        if problem is None:
            self.generation, self.has_sockets = generation.number, frozenset(generation.sockets)
        return problem

    async def _ask(self, message: messages.Down, answer: type, number: int, fds: tuple[int, ...] = ()) -> str | None:
        question = self._questions[answer, number] = _Question()
        try:
            with trio.fail_after(ANSWER_WITHIN):
                await self.link.send(message, fds)
                await question.answered.wait()
        except trio.TooSlowError:
            return f"worker {self.index} did not answer within {ANSWER_WITHIN:g} s"
        except LinkClosed:
            self.leaving = True  # the end of its process is noticed a little later
            return f"worker {self.index} died"
        except (OSError, ValueError) as exc:  # no descriptor for a duplicate; more than a message may hold
            return f"worker {self.index} cannot be told: {exc}"
        finally:
            del self._questions[answer, number]
        return question.problem

    def hear(self, message: messages.Prepared | messages.Committed) -> None:
        """An answer came; one that nobody waits for any more is dropped."""
        question = self._questions.get((type(message), message.generation))
        if question is not None:
            if isinstance(message, messages.Prepared) and message.problem is not None:
                question.problem = f"worker {self.index}: {message.problem}"
            question.answered.set()

    def ended(self) -> None:
        """The process is gone, and so is whatever it might have answered."""
        self.leaving = True
        self._give_up(f"worker {self.index} died")
        self.link.close()

    def _give_up(self, why: str) -> None:
        for question in self._questions.values():
            question.problem = why
            question.answered.set()

    # -- what it has to hear ----------------------------------------------------------------------------------------

    def publish(self, changed: Iterable[messages.EndpointStatus]) -> None:
        """Let it know, soon, and in one message with what else it has not heard yet."""
        self._unsaid.update({(status.upstream, status.endpoint): status for status in changed})
        self._some.set()

    async def send_statuses_forever(self) -> None:
        """Send on what `publish` was given; returns when the worker is gone."""
        with contextlib.suppress(LinkClosed):
            while True:
                await self._some.wait()
                self._some = trio.Event()
                unsaid, self._unsaid = self._unsaid, {}
                # From here to the link's own queue there is no await: a Prepare that is asked later is sent later.
                await self.link.send(messages.Statuses(changed=tuple(unsaid.values())))

    def see_off(self, seconds: float) -> None:
        """Tell it to stop accepting, to let open work end within `seconds`, and to leave."""
        if not self.leaving:
            self.leaving = True
            self._give_up(f"worker {self.index} is leaving")
            self.link.send_nowait(messages.Drain(seconds=seconds))

    # -- its end ----------------------------------------------------------------------------------------------------

    @property
    def how_it_ended(self) -> str:
        """For an event: "by signal SIGKILL", "with exit code 1"."""
        code = self.process.returncode
        if code is None:
            return "in a way that nobody knows"
        if code >= 0:
            return f"with exit code {code}"
        try:
            return f"by signal {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"by signal {-code}"


async def start_worker(index: int, page_fd: int) -> RemoteWorker:
    """Start the process of worker `index`. Raises OSError; cancelled, it leaves no socket behind."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tcpgate.process.worker", str(index), str(theirs.fileno()), str(page_fd)],
            pass_fds=(theirs.fileno(), page_fd),
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C goes to the whole foreground group. It is meant for the supervisor, which then drains
            # its workers; in a group of their own they do not hear of it, not even while they start.
            process_group=0,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return RemoteWorker(index, process, supervisor_link(ours), started=trio.current_time())
