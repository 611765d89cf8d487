"""The lane: one epoll set whose readiness runs plain callbacks, without a task switch.

Theory of operation. Waking a Trio task for each read costs more than a plain proxied request does. So a worker has one
lane: an epoll set of its own, driven by one task. That task waits for the set's descriptor in Trio's own loop and then
runs the callbacks of what is ready, batch after batch, until there is nothing left or its slice of time is over; then
it passes a checkpoint, and the rest of the worker lives. Tasks that await something (a dial, a queue, a slow client)
stay tasks; what runs here never waits.

- A callback belongs to a `Rider`, which owns the descriptor that it is registered for. It must not block. If it raises
  all the same, the rider's `on_fault` gets the exception, the others notice nothing.
- Descriptors in `first` are called first of a batch. What a callback may make use of (an idle connection) is in there,
  so it has heard by then what the kernel knew of it when the batch began.
- Registration is level-triggered: what a callback leaves unread is offered again.
- A descriptor may be closed, and its number be given to a new connection, while events of it are still in the batch
  at hand. The new rider is then called for nothing; every callback takes "not now" from the kernel for an answer.
- Time limits are looked at by one sweep every 250 ms instead of by a timer each: riders that have one are in `timed`.
  The sweep lets others run between slices, so a hundred thousand idle connections do not stop the worker.

Source: epoll(7); nginx's event loop and timer resolution for the idea of coarse time. Owner: the worker's root nursery
runs `run_forever` and `sweep_forever`.
"""

from __future__ import annotations

import logging
import operator
import select
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio
from trio.lowlevel import checkpoint, wait_readable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ENDS = select.EPOLLRDHUP
"""The other end will send no more. It need not be asked for by itself: READ tells it as well, but not apart."""
NOTHING = 0
"""Registered, but only hang-ups and errors are told."""
BATCH = 256
"""Events that one epoll_wait gives at most."""
SLICE = 0.002
"""Seconds of callbacks after which other tasks get their turn."""
SWEEP_EVERY = 0.25
"""Seconds between two looks at time limits: how late one may be found out."""
SWEEP_SLICE = 1000
"""Riders looked at before other tasks get their turn: about 200 us."""

log = logging.getLogger("tcpgate.net.lane")


class Rider(Protocol):
    """What rides in the lane: owns descriptors, and is told what becomes of them."""

    def on_fault(self, exc: Exception) -> None:
        """One of its callbacks raised `exc`, which is a bug. It must leave the lane; whatever it does, not raise."""
        ...


class Timed(Rider, Protocol):
    """A rider with a time limit."""

    def sweep(self, now: float) -> None:
        """Look whether a limit has passed. Called about every `SWEEP_EVERY` seconds; must not block."""
        ...


_fd_of = operator.itemgetter(0)
Callback = Callable[[int], None]
"""A method of a `Rider`, told the epoll events that are ready."""


class Lane:
    """One worker's epoll set of plain callbacks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        """Trio's time, cheaply."""
        self.timed: set[Timed] = set()
        self.first: set[int] = set()
        """Descriptors whose callbacks go before all others of a batch."""
        self.in_turn = False
        """A batch is under way."""
        self.faults = 0
        """Callbacks that raised."""
        self.turns = 0
        """Batches so far."""
        self.at_end_of_turn: Callable[[], None] | None = None
        """Called behind each batch: what its callbacks have left to do together. Must not raise."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}

    def __len__(self) -> int:
        """Descriptors in the lane."""
        return len(self._callbacks)

    # -- registration -----------------------------------------------------------------------------------------------

    def add(self, fd: int, callback: Callback, events: int = READ) -> None:
        """Call `callback` whenever one of `events` is ready on `fd`, or it has hung up. OSError: no room (ENOSPC)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Be told of other events from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, before it is closed. Idempotent."""
        self.first.discard(fd)
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """As `remove`, for one that is closed at once after this: the kernel then takes it out by itself.

        Only for a descriptor of which there is no duplicate.
        """
        self.first.discard(fd)
        self._callbacks.pop(fd, None)

    def close(self) -> None:
        """Give the epoll set back; nothing rides any more."""
        self._callbacks.clear()
        self._epoll.close()

    # -- running ----------------------------------------------------------------------------------------------------

    async def run_forever(self) -> NoReturn:
        """Run callbacks as their descriptors get ready. Cancelled: everything stays registered."""
        clock = self.clock
        while True:
            await wait_readable(self._epoll.fileno())
            until = clock() + SLICE
            while self.turn():
                if clock() >= until:
                    await checkpoint()
                    until = clock() + SLICE

    def turn(self) -> bool:
        """One batch of what is ready now; whether there was any."""
        self.turns += 1
        events = self._epoll.poll(0, BATCH)
        if not events:
            return False
        self.in_turn = True
        callbacks, first = self._callbacks, self.first
        if not first.isdisjoint(map(_fd_of, events)):
            events.sort(key=lambda event: event[0] not in first)
        for fd, ready in events:
            callback = callbacks.get(fd)
            if callback is not None:
                try:
                    callback(ready)
                except Exception as exc:  # a bug must cost one rider, not the lane
                    rider = callback.__self__  # type: ignore[attr-defined]  # a bound method of a rider
                    if not self.fault(rider, exc) and callbacks.get(fd) is callback:
                        self.remove(fd)  # or it would be called again, and again
        if self.at_end_of_turn is not None:
            self.at_end_of_turn()
        self.in_turn = False
        return True

    def fault(self, rider: Rider, exc: Exception) -> bool:
        """Tell the rider of a bug in what was done for it; whether it could take the news. Never raises."""
        self.faults += 1
        log.error("a callback failed: rider=%r", rider, exc_info=exc)
        try:
            rider.on_fault(exc)
        except Exception:  # it may not, and all the others ride on all the same
            log.exception("a rider could not leave for its bug: rider=%r", rider)
            return False
        return True

    async def sweep_forever(self) -> NoReturn:
        """Look at every time limit now and then."""
        while True:
            await trio.sleep(SWEEP_EVERY)
            await self.sweep()

    async def sweep(self) -> None:
        """Look at every time limit once."""
        riders = list(self.timed)
        for start in range(0, len(riders), SWEEP_SLICE):
            now = self.clock()
            for rider in riders[start : start + SWEEP_SLICE]:
                if rider in self.timed:  # one that was looked at before may have ended this one
                    try:
                        rider.sweep(now)
                    except Exception as exc:  # as in `turn`
                        if not self.fault(rider, exc):
                            self.timed.discard(rider)
            await checkpoint()
