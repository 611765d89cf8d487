"""A WebSocket whose frames are read: message sizes, pings for the client, and a Close where it has to end.

    open      each side's frames go to the other one as they are (codec/websocket.py). A client that was silent for
              `ping` seconds gets a Ping, one that stays silent for as long again is gone.
    parting   it ends for a reason: a side breaks the rules, is lost, or ends without a Close; nothing moves any more;
              the gateway drains, or the endpoint is removed. Who has not had a Close gets one of ours, and what comes
              from it still goes on, up to and with its answer, which is the other side's Close.
    over      both have had a Close and said one, or have ended, or their time is over. A side that has had its Close
              whole is closed in good order, any other one is reset.

A frame of ours goes out where one of the sender's ends; a Close on a drain where a message ends, if that comes soon.

Owner: the exchange's task, by `tunnel.py`. It keeps the time; a *pump* for each side, in a nursery of its own, reads
what that side says and hands it on before it reads on, so a slow reader holds its sender back, and what is held here
is one read and one frame's header for each direction. Source: RFC 6455 5.5, 7.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tcpgate.codec import websocket as codec
from tcpgate.codec.events import NO_FIELDS
from tcpgate.codec.websocket import FrameReader, Passage
from tcpgate.errors import GateError, Reason, Side
from tcpgate.net.relay import RelayOutcome
from tcpgate.net.stream import READ_SIZE, Stream

if TYPE_CHECKING:
    from tcpgate.config import schema
    from tcpgate.net.carrier import Carrier
    from tcpgate.proxy.exchange import Exchange
    from tcpgate.proxy.upstream import Upstream

TOKEN = b"websocket"
"""What an upgrade to it asks for."""
FAREWELL = 2.0
"""Seconds that both sides have for their answers to a Close of ours: round trips, and what is on its way."""
DRAIN_FAREWELL = 5.0
"""The same on a drain, where nobody is at fault and all of them may come at once. A client that has not read our Close
when we close may lose it: what it still sends is answered with a reset."""


async def run(
    exchange: Exchange, up: Upstream, spec: schema.WebSocket, to_upstream: bytes, to_downstream: bytes
) -> RelayOutcome:
    """Relay until it is over; both streams are closed then. Cancelled: both are aborted."""
    session = _Session(exchange, up, spec)
    exchange.connection.set_farewell(session.leave_by)
    try:
        return await session.run(to_upstream, to_downstream)
    finally:
        exchange.connection.set_farewell(None)


class _Peer:
    """One of the two sides: what is sent to it, and how far its end has come."""

    __slots__ = (
        "_closes", "_lock", "_mail", "broken", "ended", "failed", "other", "patient", "reader", "said", "stream",
        "told",
    )  # fmt: skip

    def __init__(self, stream: Carrier, reader: FrameReader) -> None:
        self.stream = stream
        self.reader = reader
        """Of what it says."""
        self.other: _Peer
        self.told = False
        """It has had a Close."""
        self.said = False
        """It has sent a Close."""
        self.ended = False
        """Nothing comes from it any more."""
        self.broken = False
        """The connection to it is lost."""
        self.failed = False
        """What it sends is no WebSocket any more: it gets our end of stream behind the Close (RFC 6455 7.1.7)."""
        self.patient = False
        """Our Close waits for the end of a message, not only of a frame."""
        self._mail = b""
        """Frames of ours that wait for a place between those of the other side."""
        self._closes = False
        """The last of them is a Close."""
        self._lock = trio.Lock()

    @property
    def is_done(self) -> bool:
        """Nothing has to be awaited of it: the closing handshake is over, or cannot be had."""
        torn = not self.told and self.other.ended and self.other.reader.mid_frame
        return self.ended or torn or (self.told and self.said)

    @property
    def is_whole(self) -> bool:
        """What it has got is whole, so that it may be closed in good order."""
        return not self.broken and (self.told or (self.ended and not self.other.reader.mid_frame))

    def post(self, frame: bytes, *, closes: bool = False) -> None:
        """Have `frame` sent as soon as there is a place for it; `flush` looks whether that is now."""
        if not (self.told or self._closes or self.broken):
            self._mail += frame
            self._closes = closes

    async def flush(self) -> None:
        """Send what waits, if that can be now. Raises as `Stream.send_all`."""
        await self._take_turn()
        try:
            reader = self.other.reader
            if self._mail and not self.told and not reader.mid_frame and not (self.patient and reader.in_message):
                await self._send_mail()
        finally:
            self._lock.release()

    async def take(self, passage: Passage) -> None:
        """Hand on what the other side has said, with what waits. Raises as `Stream.send_all`."""
        await self._take_turn()
        try:
            if not self.told:
                await self._take(passage)
        finally:
            self._lock.release()

    async def _take(self, passage: Passage) -> None:
        data = passage.data
        at = passage.message_end if self.patient else passage.frame_end
        if self._mail and at >= 0 and passage.close is None:
            if at:
                await self.stream.send_all(data[:at])
            data = data[at:]
            if await self._send_mail():
                return
        if data:
            await self.stream.send_all(data)
        self.told = passage.close is not None

    async def _send_mail(self) -> bool:
        """Whether that was a Close."""
        mail, self._mail = self._mail, b""
        await self.stream.send_all(mail)
        self.told = self._closes
        if self.told and self.failed:
            self.stream.shut_write()
        return self.told

    async def _take_turn(self) -> None:
        """Nobody else sends to it from now on until the lock is released."""
        if self._lock.locked():
            await self._lock.acquire()
        else:  # no checkpoint: it would cost more than the message
            self._lock.acquire_nowait()


class _Session:
    """One WebSocket, from the 101 to its end."""

    def __init__(self, exchange: Exchange, up: Upstream, spec: schema.WebSocket) -> None:
        connection, attempt = exchange.connection, exchange.attempt
        self._connection = connection
        self._plane = exchange.plane
        self._ping = spec.ping
        self._idle = connection.plan.spec.timeouts.tunnel
        agreed = attempt.response.fields if attempt is not None and attempt.response is not None else NO_FIELDS
        names = codec.extensions_of(agreed.all(b"sec-websocket-extensions"))
        size = spec.max_message
        self.client = _Peer(connection.stream, FrameReader(from_client=True, max_message=size, extensions=names))
        self.upstream = _Peer(up.stream, FrameReader(from_client=False, max_message=size, extensions=names))
        self.client.other, self.upstream.other = self.upstream, self.client
        self._ping_payload = exchange.record.id[:8].encode()
        self.client.reader.answer = self._ping_payload
        self._moved = self._heard = trio.current_time()
        """When anything was handed on, and when the client said anything."""
        self._pinged = math.nan
        """When the client was last pinged, since it was heard."""
        self._taken = 0
        """How much the client's kernel had taken by then."""
        self._leave_at = math.inf
        self._patience = DRAIN_FAREWELL
        self._verdict: tuple[Reason, Side, str] | None = None
        """Why we part."""
        self._over_by = math.inf
        self._first: _Peer | None = None
        """Who said Close first."""
        self._code = codec.NO_STATUS
        self._pause = trio.CancelScope()
        self._nursery: trio.Nursery

    def leave_by(self, deadline: float) -> float:
        """Be over by `deadline`, or as soon after now as a farewell takes; when it may be cancelled."""
        now = trio.current_time()
        self._patience = min(DRAIN_FAREWELL, self._plane.snapshot.config.gateway.drain)
        end = max(deadline, now + self._patience)
        self._leave_at = end - self._patience
        self._pause.cancel()
        return end

    async def run(self, to_upstream: bytes, to_downstream: bytes) -> RelayOutcome:
        """See the module's `run`."""
        client, upstream = self.client, self.upstream
        counts = client.stream.bytes_out, upstream.stream.bytes_out
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._pump, client, to_upstream)
                self._nursery.start_soon(self._pump, upstream, to_downstream)
                await self._keep_time()
                self._nursery.cancel_scope.cancel()
            for peer in (client, upstream):
                if peer.is_whole:
                    peer.stream.close()
        finally:
            client.stream.abort()
            upstream.stream.abort()
            del client.other, upstream.other, self._nursery  # circles that only the garbage collector would undo
        side = upstream.stream.side if self._first is upstream else client.stream.side
        reason, ended_by, detail = self._verdict or (Reason.TUNNEL_CLOSED, side, f"closed with {self._code}")
        return RelayOutcome(
            reason=reason,
            ended_by=ended_by,
            bytes_in=upstream.stream.bytes_out - counts[1],
            bytes_out=client.stream.bytes_out - counts[0],
            detail=detail,
        )

    # -- what the two sides say -------------------------------------------------------------------------------------

    async def _pump(self, peer: _Peer, first: bytes) -> None:
        """Hand on what `peer` says, to its end."""
        try:
            if first:
                await self._hear(peer, first)
            while data := await peer.stream.receive_some():
                await self._hear(peer, data)
                if len(data) < READ_SIZE:  # that has emptied the socket: asking again would be a wasted call
                    await peer.stream.wait_readable()
        except GateError as exc:
            self._lost(peer, exc)
        else:
            peer.ended = True
            if not (peer.said or peer.failed):
                self._part(Reason.TUNNEL_CLOSED, peer.stream.side, "ended without a Close", peer)
        self._pause.cancel()

    async def _hear(self, peer: _Peer, data: bytes) -> None:
        if peer is self.client:
            self._heard, self._pinged = trio.current_time(), math.nan
        passage = peer.reader.receive(data)
        if passage.data:
            try:
                await peer.other.take(passage)
            except GateError as exc:
                self._lost(peer.other, exc)
            self._moved = trio.current_time()
        if passage.close is not None:
            peer.said = True
            if self._first is None:
                self._first, self._code = peer, passage.close
            self._pause.cancel()
        if passage.fault is not None:
            self._refuse(peer, passage.fault)

    def _refuse(self, peer: _Peer, fault: codec.Fault) -> None:
        """What `peer` sends breaks the rules."""
        peer.failed = True
        side = peer.stream.side
        if fault.code == codec.TOO_BIG:
            reason = Reason.MESSAGE_TOO_LARGE
        else:
            reason = Reason.BAD_FRAME if side is Side.CLIENT else Reason.UPSTREAM_PROTOCOL
        self._part(reason, side, f"{side}: {fault.text}", peer, code=fault.code)

    def _lost(self, peer: _Peer, exc: GateError) -> None:
        """The connection to `peer` is lost."""
        peer.broken = peer.ended = peer.told = True
        self._part(exc.reason, exc.side, exc.detail, peer)

    # -- parting ----------------------------------------------------------------------------------------------------

    def _part(self, reason: Reason, ended_by: Side, detail: str, peer: _Peer, *, code: int | None = None) -> None:
        """It ends because of `peer`, which gets a Close with `code`, if any; the other one learns that it is gone."""
        other = self.upstream if peer is self.client else self.client
        if self._verdict is None:
            self._verdict = reason, ended_by, detail
            self._over_by = trio.current_time() + FAREWELL
        if code is not None:
            self._say_close(peer, code)
        self._say_close(other, codec.FAILED if other is self.client and code is not None else codec.GOING_AWAY)
        self._pause.cancel()

    def _say_close(self, peer: _Peer, code: int) -> None:
        peer.post(codec.close_frame(code, masked=peer is self.upstream), closes=True)
        self._nursery.start_soon(self._flush, peer)

    async def _flush(self, peer: _Peer) -> None:
        try:
            await peer.flush()
        except GateError as exc:
            self._lost(peer, exc)
        self._pause.cancel()

    # -- time -------------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Until it is over."""
        while not (self.client.is_done and self.upstream.is_done):
            now = trio.current_time()
            due = self._look(now) if self._verdict is None else self._look_parting(now)
            if due <= now:
                return
            with trio.CancelScope(deadline=due) as self._pause:
                await trio.sleep_forever()

    def _look(self, now: float) -> float:
        """Do what is due while it is open; when to look again."""
        if now >= self._leave_at:
            self._leave(now)
            return self._look_parting(now)
        if now >= self._moved + self._idle:
            self._verdict = Reason.IDLE_TIMEOUT, Side.GATEWAY, f"nothing moved for {self._idle:g}s"
        elif now >= self._quiet_until():
            self._mind_silence(now)
        if self._verdict is not None:
            self._over_by = now + FAREWELL
            self._say_close(self.client, codec.GOING_AWAY)
            self._say_close(self.upstream, codec.GOING_AWAY)
            return self._over_by
        return min(self._leave_at, self._moved + self._idle, self._quiet_until())

    def _look_parting(self, now: float) -> float:
        """As `_look`, once we part: half the time is for an end without a broken message."""
        half = self._over_by - self._patience / 2
        if self.client.patient and now >= half:
            self.client.patient = False
            self._nursery.start_soon(self._flush, self.client)
            self._say_close(self.upstream, codec.GOING_AWAY)
        return half if self.client.patient else self._over_by

    def _leave(self, now: float) -> None:
        """A drain. The client's answer to its Close is the endpoint's Close, so that nothing it says is lost."""
        code = codec.RESTART if self._connection.is_leaving else codec.GOING_AWAY
        self._verdict = Reason.DRAINED, Side.GATEWAY, f"closed with {code}"
        # A little before we are cancelled, which would look like a cut.
        self._over_by = now + 0.9 * self._patience
        self.client.patient = True
        self._say_close(self.client, code)

    def _quiet_until(self) -> float:
        """When the client's silence has to be minded."""
        return (self._heard if math.isnan(self._pinged) else self._pinged) + self._ping

    def _mind_silence(self, now: float) -> None:
        """The client has been silent for a ping's time."""
        taken = _taken(self.client.stream)
        if math.isnan(self._pinged):
            self.client.post(codec.ping_frame(self._ping_payload))
            self._nursery.start_soon(self._flush, self.client)
        elif taken == self._taken:
            self._verdict = Reason.IDLE_TIMEOUT, Side.GATEWAY, f"the client was silent for {2 * self._ping:g}s"
            return
        self._pinged, self._taken = now, taken  # a client that takes what it gets is not gone, be it ever so slow


def _taken(stream: Carrier) -> int:
    """How much the peer's kernel has taken of what we sent, as far as that can be known."""
    try:
        return stream.bytes_out - (stream.unsent() if isinstance(stream, Stream) else 0)
    except GateError:  # lost: its pump will tell
        return stream.bytes_out
