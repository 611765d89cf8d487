"""One HTTP/2 connection to an endpoint: many exchanges at a time, each over a stream of its own.

    run
    +-- write_forever     sends what the machine has to say (net/http2_link.py)
    +-- read              events to streams; the connection's time limits; returns when nothing more is to come

The connection outlives its exchanges, so it has a task of its own: the worker's. What an exchange has is a
`StreamToEndpoint`; it gives it back whatever happens to it, and that ends the stream (RST_STREAM, if it is not over),
no other one.

It is *greeted* once the endpoint's SETTINGS have come. Only then streams begin: what the endpoint allows is known, and
that it speaks HTTP/2 at all; it costs one round trip for a connection.

How it ends. *Idle*: no stream for `pool.idle_timeout`. *Leaving*: it was of use for `pool.max_exchanges` streams, the
endpoint has sent GOAWAY, or is reached in another way now; what runs may finish. *Lost*: every stream is told, and each
exchange decides whether another attempt is safe. *Silent*: a PING that nobody answers.

Source: RFC 9113. Owner: the pool's dial (http2_pool.py), a task of the worker's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tcpgate.codec.events import RESPONSE_LIMITS
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    SettingsReceived,
    StreamReset,
    WindowOpened,
)
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2.settings import Settings
from tcpgate.codec.http2_client_stream import ClientStream
from tcpgate.errors import GateError, Reason, Retry, UpstreamError
from tcpgate.net.http2_endpoint import EndpointCarrier
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.stream import Stream
from tcpgate.net.tls_client import EndpointSocket
from tcpgate.state.reach import Reach
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.proxy.http2_pool import Http2Pool

STREAMS = 100
"""At a time on one connection, if the endpoint allows as many; what servers commonly do (nginx 128, Envoy 100)."""
WINDOW = 256 << 10
"""Bytes of one stream that its client has not taken yet: 25 MB/s at a round trip of 10 ms."""
SETTINGS = Settings(
    window=WINDOW,
    connection_window=STREAMS * WINDOW,  # so that clients that do not read hold up nobody else's stream
    header_list=RESPONSE_LIMITS.head,
    headers=RESPONSE_LIMITS.headers,
)
PING_AFTER = 330.0
"""Seconds of silence, with streams open, after which the endpoint is asked whether it is there. gRPC's servers take
more than one PING in 300 seconds for abuse."""
PING_WAIT = 10.0
"""Seconds that it has to say anything then."""
SUSPICIOUS = 1.0
"""Seconds of silence after which it is asked at once, and not again for `PING_AFTER`, if an exchange gave up a stream
on which nothing came: else all that follow would be sent to a host that is gone."""
LAST_WORDS = 1.0
"""Seconds that it has to take our GOAWAY."""
PING = b"there?\0\0"

log = logging.getLogger("tcpgate.proxy.http2_upstream")


class Http2Upstream:
    """One connection."""

    def __init__(
        self, pool: Http2Pool, stream: Stream, reach: Reach, most: int, greeted: Callable[[Http2Upstream], None]
    ) -> None:
        """`most`: streams at a time, whatever the endpoint allows. `greeted`: told once streams may begin."""
        self.endpoint = pool.endpoint
        self.reach = reach
        self.lines = pool.plane.lines
        self.link = Http2Link(stream, Http2("client", SETTINGS, self.lines), on_lost=self._on_lost)
        self.exchanges = 0
        """Begun on it so far."""
        self.is_greeted = False
        self.is_leaving = False
        self._pool = pool
        self._most = most
        self._greeted = greeted
        self._held = 0
        """Exchanges that have a stream of it, begun or not."""
        self._streams: dict[int, StreamToEndpoint] = {}
        self._waiting = trio.CancelScope()
        """Around the wait for what comes next."""
        now = trio.current_time()
        self._quiet_since = self._busy_since = self._heard_at = now
        self._pinged_at = math.nan
        """When a PING went that nobody has answered."""
        self._last_ping = -math.inf

    # -- asked by the pool ------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more exchanges it takes now."""
        machine = self.link.machine
        if not self.is_greeted or self.is_leaving or self.link.lost is not None or machine.is_closing:
            return 0
        most = min(self._most, machine.peer.streams) - self._held
        return max(0, min(most, self.endpoint.limits.max_exchanges - self.exchanges))

    @property
    def is_quiet(self) -> bool:
        """Nobody has a stream of it."""
        return not self._held

    def begin(self) -> StreamToEndpoint:
        """A stream for one exchange; there must be `room`."""
        reused = self.exchanges > 0 and self.is_quiet
        self._held += 1
        self.exchanges += 1
        return StreamToEndpoint(self, reused)

    def leave(self) -> None:
        """Take no more exchanges; end with the last that there is."""
        self.is_leaving = True
        self._look_up()

    # -- asked by its streams ---------------------------------------------------------------------------------------

    def opened(self, stream: StreamToEndpoint, number: int) -> None:
        """A stream has begun."""
        self._streams[number] = stream
        self.link.streams[number] = stream.stream
        if len(self._streams) == 1:
            self._busy_since = trio.current_time()
            self._look_up()

    def closed(self, stream: StreamToEndpoint, *, silent: bool) -> None:
        """An exchange is done with its stream. `silent`: not a word came on it."""
        self._held -= 1
        self._streams.pop(stream.stream.number, None)
        self.link.streams.pop(stream.stream.number, None)
        now = trio.current_time()
        if silent and now - self._heard_at >= SUSPICIOUS and now - self._last_ping >= PING_AFTER:
            self._ping(now)
        if self.is_quiet:
            self._quiet_since = now
            if self.exchanges >= self.endpoint.limits.max_exchanges or not self._pool.may_idle(self):
                self.is_leaving = True
        sock = self.link.stream.sock
        if isinstance(sock, EndpointSocket):
            sock.keep_session()
        self._look_up()
        self._pool.made_room()

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self, greeted_by: float) -> None:
        """Serve streams to the end of the connection. Raises GateError if it was not greeted `greeted_by` then; nothing
        else but Cancelled."""
        link = self.link
        try:
            async with trio.open_nursery() as writing:
                link.wake()
                writing.start_soon(link.write_forever)
                await self._read(greeted_by)
                if link.lost is None:
                    link.machine.go_away()
                    link.wake()
                if link.lost is None or link.machine.is_failed:
                    await link.wait_flushed(trio.current_time() + LAST_WORDS)
                writing.cancel_scope.cancel()
        except Exception as exc:  # a bug must cost one connection, not the worker
            log.exception("connection failed: upstream=%s endpoint=%s", self.endpoint.upstream, link.stream.peer)
            link.fail(UpstreamError(Reason.UPSTREAM_CLOSED, f"failed: {exc!r}", retry=Retry.SAFE))
        finally:
            if link.lost is None and not link.machine.is_closing:  # the worker ends
                link.machine.go_away()
            link.fail(UpstreamError(Reason.UPSTREAM_CLOSED, "the gateway ends it", retry=Retry.SAFE))
            link.write_last()
            link.stream.close()
            self.endpoint.closed()
        if not self.is_greeted and link.lost is not None:
            raise link.lost

    async def _read(self, greeted_by: float) -> None:
        link = self.link
        try:
            while not self._is_done():
                events: list[Event] | None = []
                due = self._due() if self.is_greeted else greeted_by
                with trio.CancelScope(deadline=due) as self._waiting:
                    data = await link.stream.receive_some()
                    events = self._take(data) if data else None
                if events is None:
                    raise UpstreamError(Reason.UPSTREAM_CLOSED, "the endpoint closed the connection", retry=Retry.SAFE)
                if not self._waiting.cancelled_caught:
                    for event in events:
                        self._on_event(event)
                elif not self._is_done():
                    self._on_time(trio.current_time())
        except GateError as exc:
            link.fail(exc)

    def _take(self, data: bytes) -> list[Event]:
        if not self.is_greeted and data[:5] == b"HTTP/":
            said = data.partition(b"\r\n")[0][:60].decode("latin-1")
            raise UpstreamError(
                Reason.UPSTREAM_PROTOCOL, f"it speaks HTTP/1.1 instead of h2: {said!r}", retry=Retry.IF_UNSENT
            )
        self._heard_at, self._pinged_at = trio.current_time(), math.nan
        return self.link.take(data)

    def _on_lost(self, exc: GateError) -> None:
        """The connection is lost, and all its streams. What had come before is still theirs: an endpoint may have
        answered and gone while we were sending."""
        link = self.link
        with suppress(GateError):
            while not link.machine.is_failed and (data := link.stream.receive_nowait()):
                for event in link.take(data):
                    self._on_event(event)
        self._look_up()

    # -- time -------------------------------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        """Nothing more is to come that matters."""
        return self.link.lost is not None or (self.is_quiet and (self.is_leaving or self.link.machine.is_closing))

    def _due(self) -> float:
        """When something has to be done that is not an answer to an event."""
        if self._is_done():
            return -math.inf
        if not math.isnan(self._pinged_at):
            return self._pinged_at + PING_WAIT
        if self.is_quiet:
            return self._quiet_since + self.endpoint.limits.idle_timeout
        return self._silent_since + PING_AFTER if self._streams else math.inf

    @property
    def _silent_since(self) -> float:
        """Since when the endpoint owes a word."""
        return max(self._heard_at, self._busy_since)

    def _look_up(self) -> None:
        """What is waited for may be another thing now."""
        if self.is_greeted or self._is_done():
            self._waiting.deadline = self._due()

    def _on_time(self, now: float) -> None:
        """Whatever was due."""
        if not self.is_greeted:
            detail = f"{self.link.stream.peer}: it does not say its SETTINGS, as h2 begins"
            raise UpstreamError(Reason.CONNECT_TIMEOUT, detail, retry=Retry.IF_UNSENT)
        if now >= self._pinged_at + PING_WAIT:
            raise UpstreamError(Reason.UPSTREAM_CLOSED, "it does not answer a PING", retry=Retry.SAFE)
        if self.is_quiet and now >= self._quiet_since + self.endpoint.limits.idle_timeout:
            self.is_leaving = True
        elif self._streams and now >= self._silent_since + PING_AFTER:
            self._ping(now)

    def _ping(self, now: float) -> None:
        self._pinged_at = self._last_ping = now
        self.link.machine.ping(PING)
        self.link.wake()

    # -- events -----------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case DataReceived():
                self._on_data(event)
            case HeadersReceived():
                stream = self._streams.get(event.stream)
                if stream is not None:
                    stream.hear(event)
            case StreamReset():
                self._on_reset(event)
            case WindowOpened():
                self._on_window(event.stream)
            case SettingsReceived():
                was_greeted, self.is_greeted = self.is_greeted, True
                if was_greeted:
                    self._pool.made_room()
                else:
                    self._greeted(self)
            case GoAwayReceived():
                log.debug("goaway: endpoint=%s code=%s", self.link.stream.peer, frames.error_name(event.code))
            case ConnectionFailed():
                retry = Retry.SAFE if self.is_greeted else Retry.IF_UNSENT
                raise UpstreamError(Reason.UPSTREAM_PROTOCOL, f"not well-formed HTTP/2: {event.text}", retry=retry)

    def _on_data(self, event: DataReceived) -> None:
        stream, machine = self._streams.get(event.stream), self.link.machine
        if stream is None:
            machine.release(event.stream)
            return
        machine.acknowledge(event.stream, event.flow - len(event.data))  # padding
        stream.codec.hear_data(event.data, end=event.end)
        stream.stream.heard()

    def _on_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if event.by_us:
            stream.stream.fail_by_reset(UpstreamError(_reason(event.text), event.text, retry=Retry.SAFE))
            return
        retry, detail = Retry.SAFE, f"RST_STREAM: {frames.error_name(event.code)}"
        if event.code == frames.REFUSED_STREAM:
            # By a GOAWAY, the endpoint ends a connection in good order; by a RST_STREAM, it has too much to do.
            retry, detail = (Retry.ANEW, event.text) if event.text else (Retry.IF_UNSENT, detail)
        stream.stream.fail_by_reset(UpstreamError(Reason.UPSTREAM_CLOSED, detail, retry=retry))

    def _on_window(self, number: int) -> None:
        carriers = self.link.streams
        for carrier in list(carriers.values()) if number == 0 else [carriers[number]] if number in carriers else []:
            carrier.room_made()


def _reason(text: str) -> Reason:
    """What a rule that the endpoint broke on a stream is called."""
    too_large = text.startswith("head: larger")
    return Reason.UPSTREAM_HEAD_TOO_LARGE if too_large else Reason.UPSTREAM_PROTOCOL


class StreamToEndpoint:
    """One exchange's way to an endpoint; satisfies `upstream.Upstream`."""

    def __init__(self, connection: Http2Upstream, reused: bool) -> None:
        link = connection.link
        self.endpoint: EndpointRuntime = connection.endpoint
        self.codec = ClientStream(
            connection.lines,
            secure=connection.reach.http is not None,
            tunnels=link.machine.peer.connect_protocol,
        )
        self.stream = EndpointCarrier(link, self.codec, self._opened)
        self.reused = reused
        """The connection has served before and was idle then, so that it may have gone stale."""
        self._connection: Http2Upstream | None = connection

    def _opened(self, number: int) -> None:
        if self._connection is not None:
            self._connection.opened(self, number)

    def hear(self, event: HeadersReceived) -> None:
        """A head, or trailers."""
        if event.trailers:
            self.codec.hear_trailers(event.fields)
            self.stream.heard()
        else:
            self.stream.heard_answer(self.codec.hear_head(event.fields, end=event.end))

    def give_back(self, now: float, *, usable: bool) -> None:
        """The exchange is over: count its bytes, and end the stream if it has not ended. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        stream, endpoint = self.stream, self.endpoint
        endpoint.count(BYTES_IN, stream.bytes_in)
        endpoint.count(BYTES_OUT, stream.bytes_out)
        stream.reset(frames.CANCEL)
        connection.closed(self, silent=bool(stream.number) and not stream.bytes_in)
