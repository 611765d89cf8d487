"""A request on the gateway's own account, for a filter that has to ask somebody (an authorisation service).

It goes through the upstream's balancer, pool, health and retries as a client's would. What is asked for is the head
of the answer; a short body is read so that the connection can serve again, a long one costs the connection.

Owner: the exchange that waits for the answer. Cancelled: the connection is closed, its gauges are right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tcpgate.codec.events import NO_BODY, Closed, Data, EndOfBody, Fields, ResponseHead
from tcpgate.errors import Bug, GateError, Reason, Refused, Retry, UpstreamError
from tcpgate.filters.base import Subrequest
from tcpgate.policy.hashing import hash64
from tcpgate.policy.retry import may_retry
from tcpgate.proxy.upstream import Upstream, connect, take
from tcpgate.state.runtime import EndpointRuntime, UpstreamRuntime

if TYPE_CHECKING:
    from tcpgate.proxy.downstream import Downstream
    from tcpgate.proxy.plane import Plane

BODY = 64 << 10
"""Bytes of a body that are read and dropped to keep the connection."""


async def ask(connection: Downstream, request: Subrequest) -> ResponseHead | GateError:
    """What came of `request`. Raises only the ClientError of a client that leaves meanwhile."""
    question = _Question(connection.plane, request)
    with trio.move_on_after(request.timeout) as scope:
        await connection.while_client_waits(question.run)
    if scope.cancelled_caught and question.answer is None:
        return UpstreamError(Reason.FIRST_BYTE_TIMEOUT, f"{request.upstream}: no answer within {request.timeout:g}s")
    return question.answer or Bug("a question without an answer")


class _Question:
    """One subrequest, and what came of it."""

    def __init__(self, plane: Plane, request: Subrequest) -> None:
        self.plane = plane
        self.request = request
        self.answer: ResponseHead | GateError | None = None
        self.reused = False

    async def run(self) -> None:
        """Leave the answer in `answer`."""
        upstream = self.plane.runtime.upstreams.get(self.request.upstream)
        if upstream is None:
            self.answer = Refused(Reason.NO_ENDPOINT, f"there is no upstream {self.request.upstream}")
            return
        try:
            await self._forward(upstream)
        except GateError as exc:
            self.answer = exc

    async def _forward(self, upstream: UpstreamRuntime) -> None:
        key = hash64(self.request.target)
        tried: set[str] = set()
        failed = 0
        last: GateError | None = None
        again: EndpointRuntime | None = None
        while True:
            endpoint = again or upstream.pick(key, tried, trio.current_time())
            if endpoint is None:
                raise last or Refused(Reason.NO_ENDPOINT, upstream.why_none())
            try:
                await self._attempt(endpoint, upstream)
            except UpstreamError as exc:
                raced = exc.retry is Retry.IF_REUSED
                failed += not raced
                again = endpoint if raced or exc.retry is Retry.ANEW else None
                if not self._may_retry(exc, upstream, failed):
                    raise
                last = exc
                if raced:
                    endpoint.close_idle()
                elif again is None:
                    tried.add(endpoint.name)
            else:
                return

    def _may_retry(self, exc: UpstreamError, upstream: UpstreamRuntime, failed: int) -> bool:
        return may_retry(
            exc,
            method=self.request.method,
            body_replayable=True,
            reused=self.reused,
            response_started=False,
            attempts_made=failed,
            policy=upstream.spec.retry,
        )

    async def _attempt(self, endpoint: EndpointRuntime, upstream: UpstreamRuntime) -> None:
        endpoint.begin()
        up: Upstream | None = None
        try:
            up = take(endpoint) or await connect(endpoint, self.plane, upstream.spec.timeouts)
            self.reused = up.reused
            head = await self._talk(up, upstream)
            now = trio.current_time()
            if head.status >= 500:
                endpoint.answered_badly(f"status {head.status}", now)
            else:
                endpoint.answered_well(None, now)
            self.answer = head
            await self._drop_body(up, upstream)
        except UpstreamError as exc:
            if up is not None and exc.retry not in (Retry.IF_REUSED, Retry.ANEW):
                endpoint.answered_badly(exc.detail or str(exc.reason), trio.current_time())
            if self.answer is None:
                raise  # else the head is here, and its body does not matter
        finally:
            endpoint.end()
            if up is not None:
                up.give_back(trio.current_time(), usable=True)

    async def _talk(self, up: Upstream, upstream: UpstreamRuntime) -> ResponseHead:
        """Send the request, and wait for the final head."""
        request, codec, before = self.request, up.codec, up.stream.bytes_in
        fields = request.fields
        if b"host" not in fields:
            fields = Fields([(b"Host", upstream.name.encode()), *fields])
        wire = [codec.send_request(request.method, request.target, fields, NO_BODY), codec.end()]
        try:
            await up.stream.send_all([part for part in wire if part])
            while True:
                event = codec.next_event()
                if isinstance(event, ResponseHead) and not event.informational:
                    return event
                if not isinstance(event, ResponseHead):
                    codec.receive(await up.stream.receive_some())
        except UpstreamError as exc:
            if exc.retry is Retry.SAFE and up.reused and up.stream.bytes_in == before:
                raise UpstreamError(exc.reason, exc.detail, retry=Retry.IF_REUSED) from exc
            raise

    async def _drop_body(self, up: Upstream, upstream: UpstreamRuntime) -> None:
        left = BODY
        while left > 0:
            event = up.codec.next_event()
            if isinstance(event, EndOfBody | Closed):
                return
            if isinstance(event, Data):
                left -= len(event.data)
            else:
                deadline = trio.current_time() + upstream.spec.timeouts.read
                up.codec.receive(await up.stream.receive_some(deadline=deadline, late=Reason.UPSTREAM_IDLE))
