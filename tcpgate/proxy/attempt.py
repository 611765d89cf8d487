"""One attempt: one try of an exchange at one endpoint, from the connection to the last byte of the response.

Two halves run side by side, because an endpoint may answer before the body is over:

    send half      request head, then the body as the client sends it; after that it watches for the client to leave
    receive half   response heads (1xx passed on, one final), then the response body, passed on as it comes

Neither raises: each leaves its failure here and ends the other, so no ExceptionGroup leaves this file. Backpressure is by
construction: each half reads its next piece only after the last one was taken by the other side.

Owner: `exchange.py`. Cancelled: the endpoint's connection is closed, its gauges are right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tcpgate.codec.events import Data, EndOfBody, Kind, NeedData, ResponseHead
from tcpgate.errors import Bug, ClientError, GateError, Reason, Retry, UpstreamError
from tcpgate.net.relay import Flow
from tcpgate.policy.pace import Pace
from tcpgate.proxy import pool, tunnel
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.config import schema
    from tcpgate.proxy.exchange import Exchange

CONTINUE_AFTER = 1.0
"""Seconds without a word from the endpoint after which we say 100 Continue ourselves; curl waits as long before it
sends the body unasked. Many origins ignore Expect (RFC 9110 10.1.1 lets a proxy say it then)."""


class Attempt:
    """One try at `endpoint`."""

    def __init__(self, exchange: Exchange, endpoint: EndpointRuntime, spec: schema.Upstream) -> None:
        self.exchange = exchange
        self.down = exchange.connection
        self.head = exchange.head
        self.body = exchange.body
        self.endpoint = endpoint
        self.spec = spec
        self.response: ResponseHead | None = None
        """The final head."""
        self.passed_on = False
        """Whether the client has got any of the endpoint's words, be it a 1xx."""
        self.reused = False
        self.started = trio.current_time()
        self.connected_at = math.nan
        self.sent_at = math.nan
        self.first_byte_at = math.nan
        self.bytes_in = 0
        """Response content passed on."""
        self.flow = Flow()
        """The tunnel's, if it becomes one."""
        self._seen_before = 0
        """What the connection had received before this exchange."""
        self._failure: GateError | None = None
        self._waiting = trio.CancelScope()
        """Around the wait for the final head; its deadline starts once the request is sent."""

    async def run(self) -> None:
        """Serve the exchange at this endpoint; UpstreamError, ClientError or Refused if that fails."""
        self.endpoint.begin()
        up: pool.UpstreamConnection | None = None
        try:
            up = await self._connect()
            await self._exchange(up)
            self._judge_answer()
        except UpstreamError as exc:
            if not math.isnan(self.connected_at) and not (exc.retry is Retry.IF_REUSED and self.reused):
                self.endpoint.answered_badly(exc.detail or str(exc.reason), trio.current_time())
            raise
        finally:
            self.endpoint.end()
            if up is not None:
                self._count(up)
                pool.give_back(up, trio.current_time())

    async def _connect(self) -> pool.UpstreamConnection:
        up = pool.take_idle(self.endpoint)
        if up is None:
            up = await pool.connect(self.endpoint, self.down.plane.resolver, self.spec.timeouts)
        self.reused = up.reused
        self._seen_before = up.stream.bytes_in
        self.connected_at = trio.current_time()
        return up

    async def _exchange(self, up: pool.UpstreamConnection) -> None:
        """Both halves, until the response is over or one of them has failed."""
        head = self.head
        first = up.codec.send_request(
            *(head.method, head.upstream_target, self.exchange.outgoing_fields, head.framing), upgrade=head.upgrade
        )
        async with trio.open_nursery() as halves:
            halves.start_soon(self._send_half, up, first, halves.cancel_scope)
            try:
                await self._receive_half(up)
            except GateError as exc:
                self._failure = self._failure or exc
            halves.cancel_scope.cancel()
        if self._failure is not None:
            up.close()
            raise self._failure
        if self.response is not None and self.response.status == 101:
            self.exchange.tunnel = await tunnel.run(self.exchange, up, self.flow)

    def _judge_answer(self) -> None:
        """The balancer and the health machine hear how it went."""
        response, now = self.response, trio.current_time()
        if response is not None and response.status >= 500:
            self.endpoint.answered_badly(f"status {response.status}", now)
        else:
            self.endpoint.answered_well(self.first_byte_at - self.connected_at, now)

    def _count(self, up: pool.UpstreamConnection) -> None:
        self.endpoint.count(BYTES_IN, up.stream.bytes_in - up.counted_in)
        self.endpoint.count(BYTES_OUT, up.stream.bytes_out - up.counted_out)
        up.counted_in, up.counted_out = up.stream.bytes_in, up.stream.bytes_out

    # -- send half --------------------------------------------------------------------------------------------------

    async def _send_half(self, up: pool.UpstreamConnection, first: bytes, halves: trio.CancelScope) -> None:
        try:
            await self._send_request(up, first)
            self._request_is_sent()
            await self._watch_client()
        except ClientError as exc:
            self._fail(exc, halves)
        except UpstreamError as exc:
            if exc.reason is Reason.UPSTREAM_WRITE_TIMEOUT:
                self._fail(exc, halves)
            # Otherwise the endpoint stopped reading: it may have answered first (413, 401), and if it has not, the
            # receive half sees the same loss and says so.
            self._request_is_sent()

    def _fail(self, exc: GateError, halves: trio.CancelScope) -> None:
        self._failure = self._failure or exc
        halves.cancel()

    async def _send_request(self, up: pool.UpstreamConnection, first: bytes) -> None:
        """Head, body, end. What is at hand goes out in one write, so a request without a body is one packet."""
        codec, head, out = up.codec, self.head, [first]
        if head.framing.kind is not Kind.NONE:
            await self._write(up, out)
            out = []
        if head.expect_continue:
            self._waiting.deadline = trio.current_time() + self.spec.timeouts.first_byte
        index = 0
        while (data := await self.body.read(index)) is not None:
            await self._write(up, codec.send_data(data))
            index += 1
        await self._write(up, [*out, codec.end(self.body.trailers)])

    async def _write(self, up: pool.UpstreamConnection, buffers: list[bytes]) -> None:
        deadline = trio.current_time() + self.spec.timeouts.write
        await up.stream.send_all(buffers, deadline=deadline, late=Reason.UPSTREAM_WRITE_TIMEOUT)

    def _request_is_sent(self) -> None:
        self.sent_at = trio.current_time()
        self._waiting.deadline = self.sent_at + self.spec.timeouts.first_byte

    async def _watch_client(self) -> None:
        """Returns never, or raises CLIENT_ABORT once the client closes its side: nobody would read the answer.

        As nginx, Envoy and Go do, a half-close counts as leaving. What the client pipelines meanwhile is kept, up to a bound.
        """
        down = self.down
        while down.codec.wants_data:
            data = await down.stream.receive_some()
            if not data:
                raise ClientError(Reason.CLIENT_ABORT, "closed before the response was over")
            down.codec.receive(data)

    # -- receive half -----------------------------------------------------------------------------------------------

    async def _receive_half(self, up: pool.UpstreamConnection) -> None:
        with self._waiting:
            response = await self._final_head(up)
        if self._waiting.cancelled_caught:
            raise UpstreamError(
                Reason.FIRST_BYTE_TIMEOUT, f"no answer within {self.spec.timeouts.first_byte:g}s", retry=Retry.SAFE
            )
        self.first_byte_at = trio.current_time()
        self.response = response
        if response.status == 101:
            await self._switch(up, response)
        else:
            await self._pass_on(up, response)

    async def _final_head(self, up: pool.UpstreamConnection) -> ResponseHead:
        """The final response head; informational ones are passed on as they come (RFC 9110 15.2)."""
        while True:
            event = up.codec.next_event()
            if isinstance(event, ResponseHead):
                if event.status >= 200 or event.status == 101:
                    return event
                await self._pass_informational(event)
            elif isinstance(event, NeedData):
                await self._receive_head_bytes(up)
            else:
                raise Bug(f"the codec gave {event!r} before a response head")

    async def _receive_head_bytes(self, up: pool.UpstreamConnection) -> None:
        if self.head.expect_continue and self.down.codec.waiting_for_continue:
            with trio.move_on_after(CONTINUE_AFTER):
                up.codec.receive(await up.stream.receive_some())
                return
            await self.down.stream.send_all(self.down.codec.send_informational(100))
        seen = up.stream.bytes_in
        try:
            up.codec.receive(await up.stream.receive_some())
        except UpstreamError as exc:
            if self.reused and up.stream.bytes_in == seen == self._seen_before:
                # A reset instead of an answer on a reused connection: it was closed before our request came.
                raise UpstreamError(exc.reason, exc.detail, retry=Retry.IF_REUSED) from exc
            raise

    async def _pass_informational(self, event: ResponseHead) -> None:
        down = self.down
        if self.head.version == b"1.0":
            return  # RFC 9110 15.2: a 1.0 client must not get one
        self.passed_on = True
        if event.status == 100 and not down.codec.waiting_for_continue:
            return  # we have said it ourselves, or nobody asked
        await down.stream.send_all(down.codec.send_informational(event.status, self.exchange.incoming_fields(event)))

    async def _switch(self, up: pool.UpstreamConnection, response: ResponseHead) -> None:
        fields = self.exchange.incoming_fields(response)
        self.passed_on = True
        await self.down.stream.send_all(self.down.codec.send_informational(101, fields))

    async def _pass_on(self, up: pool.UpstreamConnection, response: ResponseHead) -> None:
        """The final head and the body, as they come: what one read brought goes out in one write."""
        down, timeouts = self.down, self.down.plan.spec.timeouts
        pace = Pace(min_rate=timeouts.min_rate, grace=timeouts.stall)
        fields = self.exchange.incoming_fields(response)
        head = down.codec.send_response(
            *(response.status, fields, response.framing), reason=response.reason, close=down.is_leaving
        )
        buffers: list[bytes] = [head]
        self.passed_on = True
        while True:
            over = self._take_events(up, buffers)
            if buffers:
                await down.stream.send_all(buffers, pace=pace)
                buffers = []
            if over:
                return
            deadline = trio.current_time() + self.spec.timeouts.read
            up.codec.receive(await up.stream.receive_some(deadline=deadline, late=Reason.UPSTREAM_IDLE))

    def _take_events(self, up: pool.UpstreamConnection, buffers: list[bytes]) -> bool:
        """Turn what has arrived into what goes out; whether the response is over. Synchronous."""
        down = self.down
        while True:
            event = up.codec.next_event()
            if isinstance(event, Data):
                self.bytes_in += len(event.data)
                buffers += down.codec.send_data(event.data)
            elif isinstance(event, EndOfBody):
                buffers.append(down.codec.end(event.trailers))
                return True
            elif isinstance(event, NeedData):
                return False
            else:
                raise Bug(f"the codec gave {event!r} inside a response body")
