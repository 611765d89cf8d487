"""Names to addresses: the system's resolver in threads, behind a small cache that keeps the last good answer.

An endpoint that is written as an address costs a function call here. A name is looked up once for all who ask at the
same time, and not again for `KEEP` seconds (the system's resolver does not tell the record's TTL). A look-up that
fails, or that takes longer than `PATIENCE` while there is an old answer, leaves the old answer in force: a name
server that is down must not take down endpoints that are up. A name that never had an answer is DNS_FAILED.

Whoever asks may give up at a deadline; the look-up goes on, and its answer serves the next one. So a host whose first
name server is dead (5 s in glibc) does resolve, however short the connect timeouts are.

Source: getaddrinfo(3), RFC 6724 (the order of the answers), RFC 8305 4 (families take turns), RFC 8767 (serving stale
answers). Owner: no task; at most `THREADS` of Trio's cached threads, each until its own answer.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import attrs
import outcome
import trio
from trio.lowlevel import current_trio_token, start_thread_soon

from tcpgate.errors import Reason, Retry, UpstreamError
from tcpgate.net.address import Target, alternating, target_of, with_port
from tcpgate.units import EndpointAddress, HostPort

KEEP = 10.0
"""Seconds that an answer holds: HAProxy's `hold valid`."""
KEEP_FAILURE = 1.0
"""Seconds before a name that failed is asked again: long enough to spare the name server, short enough to recover."""
PATIENCE = 0.25
"""Seconds to wait for a fresh answer while there is an old one."""
SIZE = 1024
"""Names remembered."""
THREADS = 8
"""Look-ups at once. Not Trio's own limit of 40: a dead name server must not use up the threads that do other work."""

Lookup = Callable[[str], list[Target]]
"""The addresses of a name, best first, with any port; runs in a thread and raises OSError (socket.gaierror is
one)."""

StartThread = Callable[[Callable[[], list[Target]], Callable[[outcome.Outcome[list[Target]]], object], str], object]
"""What to run in a thread, who takes its outcome there, and the thread's name; RuntimeError if there is none to be
had."""


def system_lookup(host: str) -> list[Target]:
    """What the host's own resolver says: /etc/hosts, DNS, whatever nsswitch.conf names. Blocks."""
    records = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return [with_port(family, sockaddr, 0) for family, _, _, _, sockaddr in records]


@attrs.define(eq=False)
class _Name:
    """What is known of one name."""

    host: str
    good: tuple[Target, ...] = ()
    failure: str = "not looked up yet"
    fresh_until: float = -math.inf
    answered: trio.Event | None = None
    """Set with the answer to the look-up that is under way, if one is."""


@attrs.define(eq=False)
class Resolver:
    """One per worker."""

    lookup: Lookup = system_lookup
    start_thread: StartThread = attrs.field(default=start_thread_soon, kw_only=True)
    _names: dict[str, _Name] = attrs.field(init=False, factory=dict)
    _waiting: deque[_Name] = attrs.field(init=False, factory=deque)
    _running: int = attrs.field(init=False, default=0)

    async def resolve(self, address: EndpointAddress, *, deadline: float = math.inf) -> tuple[Target, ...]:
        """Where to connect, best first, at least one. Not a checkpoint if the answer is known.

        Raises UpstreamError(DNS_FAILED). Cancelled: the look-up goes on for the next one who asks.
        """
        if not isinstance(address, HostPort) or address.numeric:
            return (numeric_target(address),)
        name = self._entry(address.host)
        if trio.current_time() >= name.fresh_until:
            await self._refresh(name, deadline)
        if not name.good:
            raise UpstreamError(Reason.DNS_FAILED, f"{address.host}: {name.failure}", retry=Retry.IF_UNSENT)
        return tuple(with_port(target.family, target.sockaddr, address.port) for target in name.good)

    def known(self, address: EndpointAddress) -> tuple[Target, ...] | None:
        """As `resolve`, if that takes no waiting; None if it does, or fails. Never raises."""
        if not isinstance(address, HostPort) or address.numeric:
            try:
                return (target_of(address),)
            except ValueError:  # a zone that this host does not have (now)
                return None
        name = self._names.get(address.host)
        if name is None or not name.good or trio.current_time() >= name.fresh_until:
            return None
        self._entry(address.host)
        return tuple(with_port(target.family, target.sockaddr, address.port) for target in name.good)

    def _entry(self, host: str) -> _Name:
        """What is known of `host`, the least recently used name making room for a new one."""
        name = self._names.pop(host, None) or _Name(host)
        self._names[host] = name
        if len(self._names) > SIZE:
            del self._names[next(iter(self._names))]
        return name

    async def _refresh(self, name: _Name, deadline: float) -> None:
        """Wait for a look-up, started by us or by another one, no longer than there is need to."""
        answered = name.answered
        if answered is None:
            answered = name.answered = trio.Event()
            self._waiting.append(name)
            self._start_threads()
        patience = trio.current_time() + PATIENCE if name.good else math.inf
        with trio.CancelScope(deadline=min(deadline, patience)) as scope:
            await answered.wait()
        if scope.cancelled_caught and not name.good:
            name.failure = "the resolver gave no answer in time"
        elif scope.cancelled_caught:
            name.fresh_until = trio.current_time() + KEEP_FAILURE

    def _start_threads(self) -> None:
        while self._waiting and self._running < THREADS:
            name = self._waiting.popleft()
            self._running += 1
            hand_over = partial(self._hand_over, current_trio_token(), name)
            try:
                self.start_thread(partial(self.lookup, name.host), hand_over, f"resolve {name.host}")
            except RuntimeError as exc:  # the host's or the service's limit of threads (systemd's TasksMax=)
                self._settle(name, outcome.Error(OSError(errno.EAGAIN, str(exc))))

    def _hand_over(self, token: trio.lowlevel.TrioToken, name: _Name, result: outcome.Outcome[list[Target]]) -> None:
        """In the thread: give the answer to the run, if it still is one."""
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(self._answer, name, result)

    def _answer(self, name: _Name, result: outcome.Outcome[list[Target]]) -> None:
        self._settle(name, result)
        self._start_threads()

    def _settle(self, name: _Name, result: outcome.Outcome[list[Target]]) -> None:
        """A look-up is over: keep what it found, and wake who waits."""
        self._running -= 1
        keep = KEEP_FAILURE
        try:
            found = result.unwrap()
        except (OSError, UnicodeError) as exc:  # UnicodeError: a name that IDNA cannot write
            name.failure = getattr(exc, "strerror", None) or str(exc)
        else:
            name.good, name.failure = alternating(found), "the name has no address"
            keep = KEEP if found else KEEP_FAILURE
        name.fresh_until = trio.current_time() + keep
        if name.answered is not None:
            name.answered.set()
            name.answered = None


def numeric_target(address: EndpointAddress) -> Target:
    """The target of an address that needs no look-up; UpstreamError(DNS_FAILED) for a name or an unknown zone."""
    try:
        return target_of(address)
    except ValueError as exc:
        raise UpstreamError(Reason.DNS_FAILED, str(exc), retry=Retry.IF_UNSENT) from exc
