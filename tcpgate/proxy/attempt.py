"""One attempt: one try of an exchange at one endpoint, from the connection to the last byte of the response.

Two halves run side by side, because an endpoint may answer before the body is over:

    send half      request head, then the body as the client sends it; after that it watches for the client to leave
    receive half   takes what the endpoint says and passes it on as it comes: 1xx heads, one final head, its body

Neither raises: each leaves its failure here and ends the other, so no ExceptionGroup leaves this file. Backpressure
is by construction: each half reads its next piece only after the last one was taken by the other side.

A request that is all here, with a whole answer that comes soon and in one piece, needs no second task: `_quickly`
sends, waits, passes on. Most exchanges are like that, and the halves would cost them a third more. What turns out
otherwise goes on with both halves.

Owner: `exchange.py`. Cancelled: the endpoint's connection is closed, its gauges are right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tcpgate.codec.events import Data, EndOfBody, Kind, NeedData, ResponseHead
from tcpgate.errors import Bug, GateError, Reason, Retry, UpstreamError
from tcpgate.net.stream import Buffer
from tcpgate.policy.pace import Pace
from tcpgate.proxy import tunnel, upstream
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.greet import header_for
from tcpgate.proxy.upstream import Upstream
from tcpgate.state.runtime import EndpointRuntime

if TYPE_CHECKING:
    from tcpgate.config import schema
    from tcpgate.proxy.exchange import Exchange

QUICK = 0.02
"""Seconds for which an answer is awaited without an eye on the client; so much later is one noticed that leaves."""
CONTINUE_AFTER = 1.0
"""Seconds without a word from the endpoint after which we say 100 Continue ourselves; curl waits as long before it
sends the body unasked. Many origins ignore Expect (RFC 9110 10.1.1 lets a proxy say it then)."""


class Attempt:
    """One try at `endpoint`."""

    def __init__(
        self, exchange: Exchange, endpoint: EndpointRuntime, spec: schema.Upstream, begun: Begun | None = None
    ) -> None:
        self.exchange = exchange
        self.down = exchange.connection
        self.head = exchange.head
        self.body = exchange.body
        self.endpoint = endpoint
        self.timeouts = spec.timeouts
        self.up: Upstream | None = None
        self.response: ResponseHead | None = None
        """The final head."""
        self.passed_on = False
        """Whether the client has got any of the endpoint's words, be it a 1xx: no other attempt may follow."""
        self.answered = False
        """Whether the client has got the final head: what fails now can only cut the answer short."""
        self._begun = begun if begun is not None and begun.endpoint is endpoint else None
        """What the lane has done of this attempt."""
        self.started = trio.current_time() if self._begun is None else self._begun.started
        self.connected_at = math.nan
        self.sent_at = math.nan
        self.first_byte_at = math.nan
        self._pace: Pace | None = None
        """The least speed at which the client has to read."""
        self._seen_before = 0
        """What the connection had received before this exchange."""
        self._request_whole = False
        """All of the request is with the kernel: else the connection is of no more use, whatever the codec thinks."""
        self._over = False
        """The client has got everything: what it does now is no abort."""
        self._left: int | None = None
        """Bytes of the answer's content that are still to come; None: nobody knows. After the last of them HTTP/2 has a
        frame that says so, which the client need not wait for."""
        self._rest_is_wanted = False
        """The body still goes up once the answer is over: the origin, which has said yes, may well be reading on. After
        a redirect or an error the client ought to cease (RFC 9112 9.5), and so do we."""
        self._sending_over = trio.Event()
        self._failure: GateError | None = None
        self._continue_due = math.inf
        """When we say 100 ourselves."""
        self._said_continue = False
        """We have: the endpoint's 100 to the same expectation would be a second one."""
        self._head_due = math.inf
        """By when the final head must be here; known once the request is sent."""
        self._waiting: trio.CancelScope | None = None
        """Around the wait for a head."""

    async def run(self) -> None:
        """Serve the exchange at this endpoint; UpstreamError, ClientError or Refused if that fails."""
        if self._begun is None:
            self.endpoint.begin()
        try:
            up = await self._connect()
            await self._exchange(up)
            self._judge_answer()
            if self.response is not None and self.response.status == 101:
                self.exchange.tunnel = await tunnel.run(self.exchange, up)
        except UpstreamError as exc:
            self._judge_failure(exc)
            raise
        finally:
            self.endpoint.end()
            if self.up is not None:
                self.up.give_back(trio.current_time(), usable=self._request_whole)

    async def _connect(self) -> Upstream:
        if self._begun is not None and (self._begun.up or self._begun.failure):
            return self._take_over(self._begun)
        self.up = upstream.take(self.endpoint)
        if self.up is None:
            await self.down.while_client_waits(self._dial)
        up = self.up
        assert up is not None
        self._seen_before = up.stream.bytes_in
        self.connected_at = trio.current_time()
        return up

    def _take_over(self, begun: Begun) -> Upstream:
        """Go on where the lane was: with its connection, or with its failure to make one."""
        up = begun.up
        self.up = up
        if up is None or begun.failure is not None:
            raise begun.failure or Bug("nothing to go on with")
        self._seen_before = up.stream.bytes_in
        self.connected_at = begun.connected_at
        up.stream.give_back(begun.received, begun.broken)
        return up

    async def _dial(self) -> None:
        # Kept here at once: a cancellation between the connect and its caller must not lose the connection.
        header = header_for(self.down, self.endpoint.reach)
        self.up = await upstream.connect(self.endpoint, self.down.plane, self.timeouts, header)

    # -- the health machine and the balancer hear how it went -------------------------------------------------------

    @property
    def is_unanswered(self) -> bool:
        """The request is with the endpoint, and it has not said a word."""
        return self._request_whole and math.isnan(self.first_byte_at)

    @property
    def answered_after(self) -> float:
        """Seconds from the end of the request to the final head; from the connect, if the head came before that end."""
        asked_at = self.sent_at if self.sent_at <= self.first_byte_at else self.connected_at
        return self.first_byte_at - asked_at

    def _judge_answer(self) -> None:
        response, now = self.response, trio.current_time()
        if response is not None and response.status >= 500:
            self.endpoint.answered_badly(f"status {response.status}", now)
        else:
            self.endpoint.answered_well(self.answered_after, now)

    def _judge_failure(self, exc: UpstreamError) -> None:
        """A failed connect has been told by the pool; a close that raced our request is nobody's fault."""
        if not math.isnan(self.connected_at) and exc.retry not in (Retry.IF_REUSED, Retry.ANEW):
            self.endpoint.answered_badly(exc.detail or str(exc.reason), trio.current_time())

    # -- the exchange -----------------------------------------------------------------------------------------------

    async def _exchange(self, up: Upstream) -> None:
        """Until the response is over, or one of the halves has failed."""
        head = self.head
        first = up.codec.send_request(
            *(head.method, head.upstream_target, self.exchange.outgoing_fields, head.framing), upgrade=head.upgrade
        )
        if self.body.is_here and await self._quickly(up, first):
            return
        if head.expect_continue:
            self._continue_due = trio.current_time() + CONTINUE_AFTER
        async with trio.open_nursery() as halves:
            halves.start_soon(self._send_half, up, first, halves.cancel_scope)
            try:
                await self._receive_half(up)
                if self._rest_is_wanted:
                    await self._sending_over.wait()
            except GateError as exc:
                self._failure = self._failure or exc
            halves.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _quickly(self, up: Upstream, first: bytes) -> bool:
        """Send the request, and pass the answer on if it comes soon; whether that was all of it."""
        await self._send_request(up, first)
        return await self._receive_head(up, until=self.sent_at + QUICK) and await self._pass_on(up)

    # -- send half --------------------------------------------------------------------------------------------------

    async def _send_half(self, up: Upstream, first: bytes, halves: trio.CancelScope) -> None:
        try:
            if math.isnan(self.sent_at):
                await self._send_request(up, first)
            await self.down.watch()
        except GateError as exc:
            if not self._over:
                self._failure = self._failure or exc
                halves.cancel()

    async def _send_request(self, up: Upstream, first: bytes) -> None:
        """Until the endpoint has all of it, or reads no more. Raises ClientError, or UPSTREAM_WRITE_TIMEOUT."""
        try:
            await self._send_pieces(up, first)
            self._request_whole = True
        except UpstreamError as exc:
            if exc.reason is Reason.UPSTREAM_WRITE_TIMEOUT:
                raise
            # The endpoint stopped reading: it may have answered first (413, 401), and if it has not, the receive half
            # sees the same loss and says so.
        finally:
            self._sending_over.set()
        lane_sent_it = self._begun is not None and not math.isnan(self._begun.sent_at)
        self.sent_at = self._begun.sent_at if self._begun is not None and lane_sent_it else trio.current_time()
        self._head_due = self.sent_at + self.timeouts.first_byte
        if self._waiting is not None:
            self._waiting.deadline = self._head_due

    async def _send_pieces(self, up: Upstream, first: bytes) -> None:
        """Head, body, end. What is here goes out in one write, so a small request is one packet."""
        codec, out, is_here = up.codec, [first], self.body.is_here
        index = 0
        if not is_here:
            await self._write(up, out)
            out = []
        while (data := await self.body.read(index)) is not None:
            index += 1
            out += codec.send_data(data)
            if not is_here:
                await self._write(up, out)
                out = []
        if end := codec.end(self.body.trailers):
            out.append(end)
        if out and self._begun is not None and self._begun.sent:
            out = [b"".join(out)[self._begun.sent :]]  # the body is here, so this is all of the request
        if any(out):
            await self._write(up, out)

    async def _write(self, up: Upstream, buffers: list[bytes]) -> None:
        deadline = trio.current_time() + self.timeouts.write
        await up.stream.send_all(buffers, deadline=deadline, late=Reason.UPSTREAM_WRITE_TIMEOUT)

    # -- receive half -----------------------------------------------------------------------------------------------

    async def _receive_half(self, up: Upstream) -> None:
        while not await self._pass_on(up):
            if self.response is not None:
                deadline = trio.current_time() + self.timeouts.read
                up.codec.receive(await up.stream.receive_some(deadline=deadline, late=Reason.UPSTREAM_IDLE))
            elif not self.down.codec.waiting_for_continue:
                await self._receive_head(up)
            elif not await self._receive_head(up, until=self._continue_due):
                await self._say_continue()

    async def _receive_head(self, up: Upstream, until: float = math.inf) -> bool:
        """Some of what the endpoint says before or with its final head; False: it has said nothing `until` then."""
        with trio.CancelScope(deadline=min(until, self._head_due)) as waiting:
            self._waiting = waiting
            try:
                up.codec.receive(await up.stream.receive_some())
            except UpstreamError as exc:
                if exc.retry is Retry.SAFE and up.reused and up.stream.bytes_in == self._seen_before:
                    # A reset instead of an answer on a reused connection: it was closed before our request came.
                    raise UpstreamError(exc.reason, exc.detail, retry=Retry.IF_REUSED) from exc
                raise
        if waiting.cancelled_caught and trio.current_time() >= self._head_due:
            raise UpstreamError(
                Reason.FIRST_BYTE_TIMEOUT, f"no answer within {self.timeouts.first_byte:g}s", retry=Retry.SAFE
            )
        return not waiting.cancelled_caught

    async def _say_continue(self) -> None:
        """The endpoint has had its time to say 100. If the client still waits for it, we say it."""
        if self.down.codec.waiting_for_continue:
            self._said_continue = True
            await self._send([self.down.codec.send_informational(100)])
            self.body.go_on()

    async def _pass_on(self, up: Upstream) -> bool:
        """Give the client what has arrived of the answer, in one write; whether the answer is over."""
        buffers: list[Buffer] = []
        fault: GateError | None = None
        try:
            over = self._take_events(up, buffers)
        except GateError as exc:
            # What came before the fault is the client's, however the bytes were cut into reads.
            over, fault = False, exc
        if buffers:
            self.passed_on = True
            if self.response is not None and not self.answered:
                self.answered, self.exchange.record.status = True, self.response.status
            await self._send(buffers)
        if fault is not None:
            raise fault
        self._over = over or self._left == 0
        return over

    async def _send(self, buffers: list[Buffer]) -> None:
        if self._pace is None:
            timeouts = self.down.plan.spec.timeouts
            self._pace = Pace(min_rate=timeouts.min_rate, grace=timeouts.stall)
        await self.down.stream.send_all(buffers, pace=self._pace)

    def _take_events(self, up: Upstream, buffers: list[Buffer]) -> bool:
        """Turn what has arrived into what goes out; whether the response is over. Synchronous."""
        codec = self.down.codec
        while True:
            event = up.codec.next_event()
            if isinstance(event, Data):
                buffers += codec.send_data(event.data)
                if self._left is not None:
                    self._left -= len(event.data)
            elif isinstance(event, EndOfBody):
                if self.exchange.call is not None:
                    self.exchange.call.heard(event.trailers)
                buffers.append(codec.end(event.trailers))
                return True
            elif isinstance(event, NeedData):
                return False
            elif not isinstance(event, ResponseHead):
                raise Bug(f"the codec gave {event!r} instead of a response")
            elif event.informational:
                self._take_informational(event, buffers)
            else:
                buffers.append(self._take_final(event))
                if event.status == 101:
                    return True

    def _take_informational(self, event: ResponseHead, buffers: list[Buffer]) -> None:
        """Passed on as it comes, asked for or not (RFC 9110 15.2), but for a 1.0 client, or a 100 that we have said."""
        if self.head.version == b"1.0" or (event.status == 100 and self._said_continue):
            return
        buffers.append(self.down.codec.send_informational(event.status, self.exchange.incoming_fields(event)))
        if event.status == 100:
            self.body.go_on()

    def _take_final(self, response: ResponseHead) -> bytes:
        self.first_byte_at = trio.current_time()
        if self.exchange.call is not None:
            self.exchange.call.heard(response.fields)
        fields = self.exchange.incoming_fields(response)
        codec = self.down.codec
        if response.status == 101:
            head = codec.send_informational(101, fields)
        else:
            self._rest_is_wanted = response.status < 300 and not codec.waiting_for_continue
            # A rest that nobody will read: nothing can follow it on that connection.
            close = self.down.is_leaving or not (self.body.complete or self._rest_is_wanted)
            head = codec.send_response(response.status, fields, response.framing, reason=response.reason, close=close)
        self.response = response
        self._left = 0 if response.framing.kind is Kind.NONE else response.framing.length
        return head
