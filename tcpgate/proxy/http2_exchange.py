"""One stream of an HTTP/2 connection, as the exchange that it carries sees it: one request, one answer, the end.

    run       the exchange (exchange.py), or the answer to what was no request
    finish    RST_STREAM where the answer is not whole (INTERNAL_ERROR), or where the client still sends what nobody
              reads (NO_ERROR, RFC 9113 8.1); nothing where both sides have ended it

A client that resets its stream cancels the exchange at once, whatever it waits for; a tunnel hears it from its carrier,
as it hears of a reset connection.

Owner: a task of the connection (http2.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import trio

from tcpgate.codec.events import RequestHead
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import HeadersReceived
from tcpgate.codec.http2.settings import Settings
from tcpgate.codec.http2_stream import ServerStream
from tcpgate.config import schema
from tcpgate.errors import ClientError, GateError
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.http2_stream import StreamCarrier
from tcpgate.net.unsent import Buffer
from tcpgate.proxy import account, answer
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.downstream import Downstream
from tcpgate.proxy.exchange import Exchange
from tcpgate.proxy.plane import Plane
from tcpgate.state.snapshot import LISTENER_BAD_REQUESTS, ListenerPlan, Snapshot
from tcpgate.stats.record import AccessRecord
from tcpgate.units import Address

log = logging.getLogger("tcpgate.proxy.http2")

WINDOW, CONNECTION_WINDOW = 256 << 10, 2 << 20
"""Bytes of a body that may wait for its exchange, and of all bodies of one connection. At 64 KiB (nginx's, Envoy's) an
upload of curl's took twice the CPU, and a round trip of 50 ms let 1.3 MB/s through."""


class Owner(Protocol):
    """What a stream asks of its connection."""

    plane: Plane
    plan: ListenerPlan
    link: Http2Link
    snapshot: Snapshot
    address: Address | None
    port: int | None
    is_trusted: bool
    arrived: Arrived
    tls_seconds: float
    is_leaving: bool
    cut_at: float

    def outlast(self, deadline: float) -> None:
        """The stream may take until then to be over."""
        ...

    def stream_over(self, stream: StreamConnection) -> None:
        """The stream is gone, and its task has nothing more to do."""
        ...


def settings_of(limits: schema.HttpLimits) -> Settings:
    """What we let clients of a listener do."""
    return Settings(
        streams=limits.streams,
        window=WINDOW,
        connection_window=CONNECTION_WINDOW,
        header_list=limits.head,
        headers=limits.headers,
        resets=limits.resets,
    )


class StreamConnection(Downstream):
    """One stream."""

    stream: StreamCarrier
    codec: ServerStream

    def __init__(self, owner: Owner, number: int, codec: ServerStream) -> None:
        super().__init__(
            owner.plane,
            owner.plan,
            StreamCarrier(owner.link, number, codec.inflow),
            codec,
            owner.snapshot,
            address=owner.address,
            port=owner.port,
            is_trusted=owner.is_trusted,
            arrived=owner.arrived,
        )
        self.tls_seconds, owner.tls_seconds = owner.tls_seconds, 0.0
        self.number = number
        self.is_leaving = owner.is_leaving
        self._owner = owner
        self._exchange: Exchange | None = None
        self._scope = trio.CancelScope()

    # -- asked by the exchange --------------------------------------------------------------------------------------

    def cut_by(self, deadline: float) -> None:
        self._scope.deadline = end = self.cancel_at(min(deadline, self._owner.cut_at))
        self._owner.outlast(end)

    def proto(self, head: RequestHead | None) -> str:
        return "h2"

    def send_last_nowait(self, wire: Sequence[Buffer]) -> bool:
        left = list(wire)
        self.stream.send_ready(left)
        return not left

    async def watch(self) -> None:
        """The end of the client's half says nothing: most requests end theirs at once."""
        await self.stream.wait_lost()

    # -- told by the connection -------------------------------------------------------------------------------------

    def reset(self, exc: GateError) -> None:
        """The stream is over: the client, or a rule that it broke, has ended it."""
        self.stream.fail(exc)
        exchange = self._exchange
        # Once our half has ended, the client has got everything: what it does now is no abort.
        if exchange is not None and not self.is_long and not self.stream.write_ended:
            exchange.failure = exchange.failure or self.stream.lost  # the first reason, if this is another
            self._scope.cancel()

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self, begun: Begun | None = None) -> None:
        """Serve the request to its end. Raises nothing but Cancelled. `begun`: what the lane has done of it."""
        head = self.codec.request
        assert head is not None
        if begun is None:
            self.renew_snapshot()
            self._owner.snapshot = self.snapshot
        else:
            self.snapshot, self.exchange_began = begun.snapshot, begun.routed_at
        self.stream.bytes_in = head.size
        try:
            with self._scope:
                self._exchange = Exchange(self, head, self.record(head, begun), begun)
                if self.stream.lost is not None:  # before this task came to run
                    self.reset(self.stream.lost)
                await self._exchange.run()
        except Exception:  # a bug must cost one stream, not the connection
            log.exception("stream failed: listener=%s peer=%s", self.plan.name, self.stream.peer)
        finally:
            self._exchange = None  # it knows us: no circle may be left for the collector
            self._finish()

    async def refuse(self, event: HeadersReceived, exc: ClientError) -> None:
        """What came is no request of one meaning: say so, and write it down."""
        record = self.bad_request(dict(event.fields[:4]))
        try:
            with self._scope:
                await answer.send_unread(self, record.id, exc)
        finally:
            account.blame(record, exc)
            account.write(self, record)
            self._finish()

    def bad_request(self, pseudo: dict[bytes, bytes]) -> AccessRecord:
        """Count what was no request; its record, with what can be told of it."""
        self.plane.page[self.plan.block + LISTENER_BAD_REQUESTS] += 1
        record = self.record(None)
        record.method, record.host, record.path = (
            pseudo.get(name, b"").decode("latin-1") for name in (b":method", b":authority", b":path")
        )
        return record

    def _finish(self) -> None:
        machine = self._owner.link.machine
        torn = self.is_spoilt or machine.may_send(self.number)
        self.stream.reset(frames.INTERNAL_ERROR if torn else frames.NO_ERROR)
        self._owner.stream_over(self)
