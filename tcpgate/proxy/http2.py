"""A downstream HTTP/2 connection: many requests at a time, each the exchange of a task of its own.

    run
    +-- write_forever     sends what the machine has to say (net/http2_link.py)
    +-- read              events to streams; the connection's time limits; returns when nothing more is to come
    +-- one task a stream http2_exchange.py; a plain exchange has none (http2_plain.py)

How it ends. *Idle*: no stream for the listener's idle time; GOAWAY. *Leaving* (a drain): a GOAWAY that takes what is on
its way, a PING, and when that is answered, so that the client must have heard the first, a GOAWAY that names the last
stream; then the streams finish (RFC 9113 6.8). *Cut*: the end of the drain cancels the streams, each tells its client
what it can. *A broken rule*: GOAWAY with the machine's verdict. *Lost*: every exchange is told that its client is gone.
In each case what the client still sends is read for a moment, so that its kernel does not throw our last words away.

Owner: the listener's nursery (serve.py); the streams' tasks live in a nursery of the connection's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from functools import partial

import trio

from tcpgate.codec import forwarded, http2_request
from tcpgate.codec.events import Limits
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadersReceived,
    PingAcked,
    SettingsReceived,
    StreamReset,
    WindowOpened,
)
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2_stream import ServerStream
from tcpgate.errors import Bug, ClientError, GateError, Reason, Refused, Side
from tcpgate.net.address import describe, number_of
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.stream import Stream
from tcpgate.policy.pace import Pace
from tcpgate.proxy import account, heads
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.downstream import client_gone
from tcpgate.proxy.http2_exchange import StreamConnection, settings_of
from tcpgate.proxy.http2_plain import PlainStream
from tcpgate.proxy.prepared import HttpListener, Prepared
from tcpgate.proxy.rider import Host

FINAL_AFTER = 1.0
"""Seconds after which a drain's second GOAWAY goes, whether the PING was answered or not."""
LAST_WORDS = 1.0
"""Seconds that the client has to take the last that we say."""
LINGER_PAUSE, LINGER = 1.0, 5.0
"""Seconds that it may pause, and may take in all, to end its side then."""
DRAIN_PING = b"draining"

log = logging.getLogger("tcpgate.proxy.http2")


class Http2Connection:
    """One client's connection; satisfies `rider.Connection`."""

    def __init__(self, host: Host, shared: HttpListener, sock: socket.SocketType, arrived: Arrived) -> None:
        address = number_of(arrived.sockaddr)
        self.shared = shared
        self.plane, self.plan, self.snapshot = host.plane, host.plan, host.snapshot
        self.arrived = arrived
        self.tls_seconds = arrived.seconds
        self.address = None if address is None else forwarded.plain(address)
        self.port = arrived.port
        self.is_trusted = forwarded.is_trusted(self.address, self.plan.spec.trusted_proxies)
        self.client, self.peer = str(self.address or "unix"), describe(arrived.sockaddr)
        self.tls, self.identity = arrived.text, arrived.identity
        self.line = b""
        """The part of access lines that is the same for the connection, once there was one; b"" before."""
        # Who speaks for others, or is told of by a certificate, has requests that take more looking at.
        self._has_plain = (
            self.snapshot.config.gateway.lane and not self.is_trusted and not heads.tells_client(self.plan)
        )
        limits, self._timeouts = self.plan.spec.limits, self.plan.spec.timeouts
        self._limits = Limits(head=limits.head, headers=limits.headers, target=limits.target, body=limits.body)
        machine = Http2("server", settings_of(limits), self.plane.lines)
        stream = Stream(sock, Side.CLIENT, self.peer)
        pace = partial(Pace, min_rate=self._timeouts.min_rate, grace=self._timeouts.stall)
        self.link = Http2Link(stream, machine, pace, self._on_lost)
        self.is_leaving = False
        self.cut_at = math.inf
        """When it has to be over, but for what a stream needs for a farewell."""
        self._host = host
        self._streams: dict[int, StreamConnection | PlainStream] = {}
        self._tasks: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._waiting = trio.CancelScope()
        """Around the wait for what comes next."""
        self._is_greeted = False
        """The client's SETTINGS have come."""
        self._began = self._quiet_since = trio.current_time()
        """When the last stream ended."""
        self._head_since = math.nan
        """When a header block began whose end has not come."""
        self._final_at = math.nan
        """When the second GOAWAY is to go."""
        self._is_final = False
        """It has gone: no stream is taken any more."""

    # -- asked by the listener --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Serve it, as a task."""
        try:
            self._host.start(self.run)
        except RuntimeError:  # the listener has just been cancelled: its nursery takes no task any more
            self.link.stream.close()
            self._host.ended(self)

    def leave(self) -> None:
        """Take what is on its way, and nothing after it."""
        if not self.is_leaving:
            self.is_leaving = True
            for stream in self._streams.values():
                if isinstance(stream, StreamConnection):
                    stream.is_leaving = True
            if self._tasks is not None:
                self._say_leaving()

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`; infinity takes it back."""
        self._scope.deadline = self.cut_at = deadline
        for stream in self._streams.values():
            stream.cut_by(deadline)

    def stop(self) -> None:
        """Its task is cancelled with the listener's others."""

    @property
    def is_long(self) -> bool:
        """Whether one of its streams is a tunnel."""
        return any(stream.is_long for stream in self._streams.values())

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection to its end."""
        link = self.link
        try:
            with self._scope:
                async with trio.open_nursery() as writing:
                    link.wake()
                    writing.start_soon(link.write_forever)
                    async with trio.open_nursery() as self._tasks:
                        if self.is_leaving:
                            self._say_leaving()
                        await self._read()
                    await self._say_goodbye()
                    writing.cancel_scope.cancel()
        except Exception:  # a bug must cost one connection, not the worker
            log.exception("connection failed: listener=%s peer=%s", self.plan.name, link.stream.peer)
        finally:
            self._tasks = None
            link.write_last()
            link.stream.close()
            self._host.ended(self)

    async def _read(self) -> None:
        try:
            while not self._is_done():
                events: list[Event] | None = []
                with trio.CancelScope(deadline=self._due()) as self._waiting:
                    events = await self.link.receive()
                if events is None:
                    self.link.fail(client_gone())
                elif not self._waiting.cancelled_caught:
                    for event in events:
                        self._on_event(event)
                    self._note_head()
                elif not self._is_done():
                    self._on_time(trio.current_time())
        except GateError as exc:
            self.link.fail(exc)
        finally:  # cancelled: what has no task gets one while there may still be tasks
            for stream in list(self._streams.values()):
                if isinstance(stream, PlainStream):
                    stream.give_up()

    async def _say_goodbye(self) -> None:
        """Our last words are with the client before the socket is closed, if it reads them."""
        link = self.link
        if isinstance(link.lost, ClientError) and not link.machine.is_failed:
            return
        await link.wait_flushed(trio.current_time() + LAST_WORDS)
        with contextlib.suppress(GateError), trio.move_on_after(LINGER):
            link.stream.shut_write()
            while await link.stream.receive_some(deadline=trio.current_time() + LINGER_PAUSE, late=Reason.IDLE_TIMEOUT):
                pass

    def _on_lost(self, exc: GateError) -> None:
        """The connection is lost, and all its streams."""
        for stream in list(self._streams.values()):
            stream.reset(exc)
        self._waiting.cancel()

    # -- time -------------------------------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        """Nothing more is to come that matters."""
        return self.link.lost is not None or (self._is_final and not self._streams)

    def _due(self) -> float:
        """When something has to be done that is not an answer to an event."""
        due = math.inf
        if self._is_done():
            return -math.inf
        if not self._streams:
            due = self._quiet_since + (self._timeouts.idle if self._is_greeted else self._timeouts.head)
        if not self._is_final and self.is_leaving:
            due = min(due, self._final_at)
        if not math.isnan(self._head_since):
            due = min(due, self._head_since + self._timeouts.head)
        return min(due, self._settled_by())

    def _settled_by(self) -> float:
        """When the client must have acknowledged our SETTINGS (RFC 9113 6.5.3)."""
        if not self._is_greeted or self.link.machine.is_acknowledged:
            return math.inf
        return self._began + self._timeouts.handshake

    def _on_time(self, now: float) -> None:
        """Whatever was due."""
        if now >= self._head_since + self._timeouts.head:
            self._give_up(frames.ENHANCE_YOUR_CALM, "a header block whose end did not come")
        elif now >= self._settled_by():
            self._give_up(frames.SETTINGS_TIMEOUT, "SETTINGS that were not acknowledged")
        else:  # idle for too long, or a PING that nobody answers
            self._say_final()
        self.link.wake()

    def _give_up(self, code: int, what: str) -> None:
        """End a connection whose client did not do in time what it has to."""
        self.link.machine.go_away(code, what)
        self._note(ClientError(Reason.HEAD_TIMEOUT, what))
        self.link.fail(Refused(Reason.HEAD_TIMEOUT, f"the connection ended for {what}"))

    def _note_head(self) -> None:
        if not self.link.machine.is_within_head:
            self._head_since = math.nan
        elif math.isnan(self._head_since):
            self._head_since = trio.current_time()

    def _say_leaving(self) -> None:
        machine = self.link.machine
        self._final_at = trio.current_time() + FINAL_AFTER
        machine.go_away(last=frames.LARGEST)
        machine.ping(DRAIN_PING)
        self.link.wake()
        self._waiting.deadline = self._due()

    def _say_final(self) -> None:
        """GOAWAY: no stream after those that have begun."""
        if not self._is_final:
            self._is_final = True
            self.link.machine.go_away()
            self.link.wake()

    # -- events -----------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case DataReceived():
                self._on_data(event)
            case HeadersReceived():
                self._on_headers(event)
            case StreamReset():
                self._on_reset(event)
            case WindowOpened():
                self.link.window_opened(event.stream)
            case SettingsReceived():
                self._is_greeted = True
            case PingAcked() if event.payload == DRAIN_PING and self.is_leaving:
                self._say_final()
            case ConnectionFailed():
                self._note(ClientError(Reason.BAD_REQUEST, event.text))
                self.link.fail(self.link.reset_error(event))

    def _on_data(self, event: DataReceived) -> None:
        stream, machine = self._streams.get(event.stream), self.link.machine
        if not isinstance(stream, StreamConnection):
            machine.release(event.stream)
            return
        machine.acknowledge(event.stream, event.flow - len(event.data))  # padding
        stream.codec.hear_data(event.data, end=event.end)
        stream.stream.heard()

    def _on_headers(self, event: HeadersReceived) -> None:
        if event.trailers:
            if isinstance(stream := self._streams.get(event.stream), StreamConnection):
                stream.codec.hear_trailers(event.fields)
                stream.stream.heard()
        elif not (event.end and self._has_plain and self._ask_plainly(event)):
            self._start(event)

    def _ask_plainly(self, event: HeadersReceived) -> bool:
        """Serve it without a task; whether that can be done."""
        request = None
        if not self.tls_seconds:  # the first exchange of a connection tells what its handshake took
            request = self.shared.read_http2(event.fields, self.arrived.secure)
        if request is None or not self.arrived.covers(request.host, self.plane.tls.get(self.plan.name)):
            return False
        self.snapshot = snapshot = self._host.snapshot
        prepared: Prepared | None = request.note
        if prepared is None or prepared.snapshot() is not snapshot:
            prepared = self.shared.prepare(request, snapshot, b"h2")
        if prepared is None or prepared.plan.filters:
            return False
        stream = self._streams[event.stream] = PlainStream(self, event, request, prepared)
        if stream.ask():
            return True
        del self._streams[event.stream]
        return False

    def _start(self, event: HeadersReceived, begun: Begun | None = None) -> StreamConnection:
        """Serve it in a task."""
        assert self._tasks is not None
        judged, fault = None, None
        try:
            judged = http2_request.judge(
                event.fields,
                end=event.end,
                limits=self._limits,
                secure=self.arrived.secure or self.is_trusted,
                rng=self.plane.rng,
            )
        except ClientError as exc:
            fault = exc
        codec = ServerStream(judged, self.plane.lines, end=event.end, limit=self._limits.body)
        stream = self._streams[event.stream] = StreamConnection(self, event.stream, codec)
        self.link.streams[event.stream] = stream.stream
        stream.cut_by(self.cut_at)
        if fault is None:
            self._tasks.start_soon(stream.run, begun)
        else:
            if begun is not None:
                begun.abandon()
            self._tasks.start_soon(stream.refuse, event, fault)
        return stream

    def _on_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream)
        if stream is not None:
            stream.reset(self.link.reset_error(event))
        elif event.by_us and event.code != frames.REFUSED_STREAM:
            # The machine has answered 431 itself where it says that nothing is wrong with the stream.
            reason = Reason.HEAD_TOO_LARGE if event.code == frames.NO_ERROR else Reason.BAD_REQUEST
            self._note(ClientError(reason, event.text), event.stream)

    def _note(self, exc: ClientError, number: int = 0) -> None:
        """Write down what came and was no request."""
        nobody = StreamConnection(self, number, ServerStream(None, self.plane.lines, end=True))
        record = nobody.bad_request({})
        account.blame(record, exc)
        account.write(nobody, record)

    # -- asked by its streams ---------------------------------------------------------------------------------------

    def outlast(self, deadline: float) -> None:
        """One of its streams may take until then to be over."""
        self._scope.deadline = max(self._scope.deadline, deadline)

    def forwarding(self, authority: bytes) -> bytes:
        """The forwarding fields of plain requests, with the beginning of X-Request-Id's."""
        return self.shared.forwarding(self.address, self.port, authority, self.arrived.secure, b"2.0")

    def carry_on(self, plain: PlainStream, begun: Begun, lost: GateError | None = None) -> None:
        """A task goes on with an exchange that is not plain after all."""
        try:
            stream = self._start(plain.event, begun)
        except RuntimeError:  # this connection's tasks have just ended
            begun.abandon()
            self.stream_over(plain)
            return
        if lost := self.link.lost or lost:
            stream.reset(lost)

    def on_fault(self, exc: Exception) -> None:
        """A bug in the books of its plain exchanges: whoever caught it has logged it."""
        self.link.fail(Bug(repr(exc)))

    def stream_over(self, stream: StreamConnection | PlainStream) -> None:
        """A stream's task is done with it, or the lane is."""
        self._streams.pop(stream.number, None)
        self.link.streams.pop(stream.number, None)
        if not self._streams:
            self._quiet_since = trio.current_time()
            self._waiting.deadline = self._due()
