"""The relay: bytes both ways between a client and an endpoint until both have ended, or one of them is gone.

Theory of operation. Two halves, one per direction, are sibling tasks; the task that called `relay` keeps the time. A
half never raises: it reports to `_Relay.end`, whose first report wins, and that cancels its sibling. So no
ExceptionGroup leaves.

- *End of stream* on one side is passed on as a half-close (shutdown) and ends that half alone; the other direction
goes on until it ends too. TCP allows that for as long as it likes; what bounds it here is the idle time. - *Reset*,
or a failed write, on one side is passed on as a reset of the other, after what had already been read from the broken
side has been delivered (at most `GOODBYE` seconds): without that, an answer that came just before the reset would be
lost in our send buffer, where a direct connection would have kept it. - *Idle* and *total* time end both sides: idle
in good order, since nothing was on its way; total, a drain's cut and cancellation with a reset, so that nobody takes
a torn stream for a whole one.

A half reads and writes at most `READ_SIZE` bytes at once and does not read on before they are written: a slow reader
holds its sender back through TCP's own windows, and memory stays flat. A direction that proves bulky moves its bytes
by splice(2) (`pipes.py`) until it slows down again. Idle time costs one timer per flow, not one per read.

Source: RFC 9293 3.6 (half-close) and 3.5.2 (reset); splice(2). Owner: the flow's or exchange's task; the halves live
in its nursery.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import trio

from tcpgate.errors import GateError, Reason, Side
from tcpgate.net.carrier import Carrier
from tcpgate.net.pipes import NOT_SUPPORTED, Pipe, PipePool
from tcpgate.net.stream import READ_SIZE, Stream
from tcpgate.net.tls_socket import says_goodbye

BULKY_READ = 16 << 10
"""A read of at least this many bytes counts towards bulk: a flow on a busy gigabit link reads 20 to 60 KB at a
wake-up."""
BULKY_AFTER = 256 << 10
"""Bytes in such reads, without a smaller one between, that make a direction bulky."""
MEAGRE = 4 << 10
"""A move by splice of fewer bytes ends the bulk: copying costs less."""
GOODBYE = 1.0
"""Seconds that the other side has to take what was read before a reset: a round trip or two."""

Moved = Callable[[int, int], object]
"""Told of bytes as they move: (from the client to the endpoint, from the endpoint to the client)."""


@attrs.define(eq=False)
class Flow:
    """What can be seen of a relay while it runs, and the handle to cut it."""

    moved: Moved | None = None
    bytes_in: int = 0
    """From the client, handed on to the endpoint."""
    bytes_out: int = 0
    """From the endpoint, handed on to the client."""
    last_activity: float = -math.inf
    """When bytes last moved, Trio time."""
    cut_for: Reason | None = None
    scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    """The relay runs in it. To end the relay use `cut`, which leaves the reason."""

    def cut(self, reason: Reason) -> None:
        """End the relay with a reset of both sides, now or as soon as it starts. `reason` is what its outcome
        says."""
        if self.cut_for is None:
            self.cut_for = reason
            self.scope.cancel(reason=str(reason))

    def count(self, source: Side, moved: int) -> None:
        """`moved` bytes that came from `source` were handed on."""
        if source is Side.CLIENT:
            self.bytes_in += moved
        else:
            self.bytes_out += moved
        if self.moved is not None:
            self.moved(*((moved, 0) if source is Side.CLIENT else (0, moved)))


@attrs.frozen(kw_only=True)
class RelayOutcome:
    """How a relay ended. Byte counts are the flow's."""

    reason: Reason
    """OK or TUNNEL_CLOSED (as the caller calls a good end), CLIENT_ABORT, UPSTREAM_CLOSED, IDLE_TIMEOUT,
    EXCHANGE_TIMEOUT, or what the flow was cut for."""
    ended_by: Side
    """Who ended first: the side whose end of stream came first, or that broke; GATEWAY for times and cuts."""
    bytes_in: int
    bytes_out: int
    detail: str = ""


async def relay(
    downstream: Carrier,
    upstream: Carrier,
    *,
    idle: float,
    deadline: float = math.inf,
    pipes: PipePool,
    flow: Flow | None = None,
    closed: Reason = Reason.TUNNEL_CLOSED,
    to_upstream: bytes = b"",
    to_downstream: bytes = b"",
) -> RelayOutcome:
    """Move bytes both ways until it is over, and say how it ended. Both streams are closed or aborted by then.

    `idle` is in seconds. `to_upstream` and `to_downstream` are bytes already read from the other side; they go first.
    `closed` is the reason for a good end. Raises nothing but Cancelled, which aborts both streams; the flow still has
    the counts.
    """
    flow = flow or Flow()
    work = _Relay(downstream, upstream, flow, pipes, closed)
    flow.last_activity = trio.current_time()
    try:
        with flow.scope:
            async with trio.open_nursery() as halves:
                halves.start_soon(work.run_half, downstream, upstream, to_upstream, halves)
                halves.start_soon(work.run_half, upstream, downstream, to_downstream, halves)
                await work.keep_time(idle, deadline)
                halves.cancel_scope.cancel()
        await work.say_goodbye()
    except BaseExceptionGroup as group:
        raise _single(group) from None
    finally:
        # Cancelled, or cut: a torn stream must not look like a whole one. After a good end both are closed already.
        downstream.abort()
        upstream.abort()
    return work.outcome()


@attrs.define(eq=False)
class _Relay:
    """What the halves and the timekeeper share."""

    downstream: Carrier
    upstream: Carrier
    flow: Flow
    pipes: PipePool
    closed: Reason
    first_eof: Side | None = None
    both_ended: bool = False
    reason: Reason | None = None
    """Why it was over before both sides had ended."""
    ended_by: Side = Side.GATEWAY
    detail: str = ""

    # -- how it ends ------------------------------------------------------------------------------------------------

    async def run_half(self, source: Carrier, sink: Carrier, first: bytes, halves: trio.Nursery) -> None:
        """One direction, from its first byte to its end."""
        try:
            can_splice = source.plain and sink.plain
            await _Half(self.flow, self.pipes, source, sink, can_splice).pump(first)
            while isinstance(sink, Stream) and not says_goodbye(sink.sock):
                await sink.wait_writable()
            sink.shut_write()
        except GateError as exc:
            self.end(exc.reason, exc.side, exc.detail)
        else:
            self.both_ended = self.first_eof is not None
            self.first_eof = self.first_eof or source.side
        if self.both_ended or self.reason:
            halves.cancel_scope.cancel()

    async def keep_time(self, idle: float, deadline: float) -> None:
        """Return when nothing has moved for `idle` seconds, or at `deadline`; cancelled when the halves are done."""
        while True:
            now = trio.current_time()
            until = min(self.flow.last_activity + idle, deadline)
            if now >= until:
                break
            await trio.sleep_until(until)  # meanwhile the halves may have moved `until` on
        reason, detail = which_time(now, idle, deadline)
        self.end(reason, Side.GATEWAY, detail)

    def end(self, reason: Reason, side: Side, detail: str) -> None:
        """It is over. The first to say so is right: what follows is only the echo of it."""
        if self.reason is None:
            self.reason, self.ended_by, self.detail = reason, side, detail

    async def say_goodbye(self) -> None:
        """Close what may be closed in good order; what is left open is for the caller to abort."""
        if self.flow.cut_for is not None and not self.both_ended:
            return
        if self.reason is None or self.reason is Reason.IDLE_TIMEOUT:
            self.downstream.close()
            self.upstream.close()
        elif self.ended_by is not Side.GATEWAY:
            whole = self.upstream if self.ended_by is Side.CLIENT else self.downstream
            await whole.wait_flushed(trio.current_time() + GOODBYE)

    def outcome(self) -> RelayOutcome:
        """How it ended, once it has."""
        reason, side = self.reason or self.closed, self.ended_by
        if self.reason is None and self.both_ended and self.first_eof is not None:
            side = self.first_eof
        elif self.reason is None and self.flow.cut_for is not None:
            reason = self.flow.cut_for
        return RelayOutcome(
            reason=reason,
            ended_by=side,
            bytes_in=self.flow.bytes_in,
            bytes_out=self.flow.bytes_out,
            detail=self.detail,
        )


def which_time(now: float, idle: float, deadline: float) -> tuple[Reason, str]:
    """Which of the two times is over, now that one is: the reason, and its detail."""
    if now >= deadline:
        return Reason.EXCHANGE_TIMEOUT, "the flow's whole time is over"
    return Reason.IDLE_TIMEOUT, f"nothing moved for {idle:g}s"


@attrs.define(eq=False)
class _Half:
    """One direction."""

    flow: Flow
    pipes: PipePool
    source: Carrier
    sink: Carrier
    can_splice: bool
    """Both are `Stream`s whose sockets' bytes are theirs."""
    streak: int = 0
    """Bytes in bulky reads since the last smaller one."""

    async def pump(self, first: bytes) -> None:
        """Move everything up to the source's end of stream. Raises GateError when either side breaks."""
        await self.hand_on(first)
        while True:
            if self.can_splice and self.streak >= BULKY_AFTER:
                ended = await self.move_by_splice()
            else:
                ended = await self.move_by_copy()
            if ended:
                return

    async def move_by_copy(self) -> bool:
        """Move what is here by reading and writing until there is a pause or a bulk. Whether the source has ended."""
        data = self.source.receive_nowait(READ_SIZE)
        if data is None:
            await self.source.wait_readable()
            return False
        await self.hand_on(data)
        self.streak = self.streak + len(data) if len(data) >= BULKY_READ else 0
        if len(data) < READ_SIZE and data:
            await (
                self.source.wait_readable()
            )  # a short read has emptied the socket: asking again would be a wasted call
        return not data

    async def hand_on(self, data: bytes) -> None:
        """Write all of `data`, however long the sink takes; other tasks get their turn."""
        view = memoryview(data)
        while view:
            sent = self.sink.send_nowait(view)
            self.account(sent)
            view = view[sent:]
            if view:
                await self.sink.wait_writable()
        await self.sink.breathe()

    def account(self, moved: int) -> None:
        """`moved` bytes are with the sink now."""
        if moved:
            self.flow.last_activity = trio.current_time()
            self.flow.count(self.source.side, moved)
            self.sink.charge(moved)

    # -- in bulk ----------------------------------------------------------------------------------------------------

    async def move_by_splice(self) -> bool:
        """Move what is here by splice until there is a pause. Whether the source has ended."""
        pipe = self.pipes.borrow()
        if pipe is None:  # every pipe is in use: copy, and ask again after as many bytes
            self.streak = 0
            return False
        try:
            count = self.fill(pipe)
            while pipe.held and self.can_splice:
                if not self.drain(pipe):
                    await self.sink.wait_writable()
            while pipe.held:  # the sink cannot splice
                await self.hand_on(pipe.take_back())
        finally:
            self.pipes.give_back(pipe)
        if count is None and self.can_splice:
            await self.source.wait_readable()
        elif count is not None and count < MEAGRE:
            self.streak = 0
        await self.sink.breathe()
        return count == 0

    def fill(self, pipe: Pipe) -> int | None:
        """As `Pipe.fill`; also None, and no more splicing, if the source cannot splice."""
        assert isinstance(self.source, Stream)
        try:
            count = pipe.fill(self.source.sock.fileno())
        except OSError as exc:
            if exc.errno not in NOT_SUPPORTED:
                raise self.source.failed(exc, "receiving") from exc
            self.can_splice = False
            return None
        self.source.bytes_in += count or 0
        return count

    def drain(self, pipe: Pipe) -> int:
        """As `Pipe.drain`; also 0, and no more splicing, if the sink cannot splice."""
        assert isinstance(self.sink, Stream)
        try:
            moved = pipe.drain(self.sink.sock.fileno())
        except OSError as exc:
            if exc.errno not in NOT_SUPPORTED:
                raise self.sink.failed(exc, "sending") from exc
            self.can_splice = False
            return 0
        self.sink.bytes_out += moved
        self.account(moved)
        return moved


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception that matters of a nursery's group: a bug rather than the cancellation it caused."""
    cancelled, others = group.split(trio.Cancelled)
    found: BaseException = others or cancelled or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
