"""A downstream HTTP/1 connection: head after head, exchange after exchange, until one side has had enough.

    run
      next_head         idle until the first byte, then the head within its deadline
      exchange          exchange.py, one at a time; what the client pipelines waits in the codec
      linger            where the client may still send: read it, so that its kernel does not throw our answer away

Owner: the listener's nursery (serve.py), one task each. Ends by itself; `leave` asks it to, `cut_by` makes it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence

import trio

from tcpgate.codec import forwarded
from tcpgate.codec.events import Closed, Limits, RequestHead
from tcpgate.codec.http1 import ServerCodec
from tcpgate.errors import Bug, ClientError, GateError, Reason
from tcpgate.net.address import port_of
from tcpgate.net.stream import Buffer, Stream
from tcpgate.proxy import account, answer
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.downstream import Downstream, client_gone
from tcpgate.proxy.exchange import Exchange
from tcpgate.proxy.plane import Plane
from tcpgate.state.snapshot import LISTENER_BAD_REQUESTS, ListenerPlan, Snapshot
from tcpgate.units import Address

LINGER_PAUSE, LINGER = 2.0, 30.0
"""Seconds that a client may pause, and may take in all, to finish what it sends; nginx: 5 and 30."""
FRESH_GRACE = 1.0
"""Seconds that a client which has just connected has for its first request when we leave. One that was served before
knows that an idle connection may close under it, and tries again on another; on a first connection few clients do."""

log = logging.getLogger("tcpgate.proxy.http")


class HttpConnection(Downstream):
    """One client's connection."""

    stream: Stream
    codec: ServerCodec

    def __init__(
        self,
        plane: Plane,
        plan: ListenerPlan,
        stream: Stream,
        address: Address | None,
        snapshot: Snapshot,
        *,
        lane: bool = False,
        arrived: Arrived | None = None,
    ) -> None:
        peer = None if address is None else forwarded.plain(address)
        limits = plan.spec.limits
        super().__init__(
            plane,
            plan,
            stream,
            ServerCodec(
                Limits(head=limits.head, headers=limits.headers, target=limits.target, body=limits.body),
                secure=arrived is not None and arrived.secure,
            ),
            snapshot,
            address=peer,
            port=port_of(stream.sock.getsockname()) if arrived is None else arrived.port,
            is_trusted=forwarded.is_trusted(peer, plan.spec.trusted_proxies),
            arrived=arrived,
        )
        self.is_fresh = True
        """No request has come yet."""
        self._lane = lane
        """One exchange at a time: between them the connection rides in the lane."""
        self._began: float | None = None
        self._begun: Begun | None = None
        self._scope = trio.CancelScope()
        self._idle: trio.CancelScope | None = None

    # -- asked from outside -----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """End as soon as no exchange is under way; the answer to the current one says Connection: close."""
        self.is_leaving = True
        if self._idle is not None:
            grace = trio.current_time() + FRESH_GRACE if self.is_fresh else -math.inf
            self._idle.deadline = min(self._idle.deadline, grace)

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`, whatever is under way; infinity takes it back."""
        self._scope.deadline = self.cancel_at(deadline)

    def take_over(self, data: bytes, count: int, began: float | None, begun: Begun | None) -> None:
        """Before `run`: what the lane has received of the next exchange, when that began, and how far it came.

        `count`: as many bytes have been received that no record has counted.
        """
        self.stream.bytes_in = count
        self.codec.receive(data)
        self._began, self._begun = began, begun

    # -- the life ---------------------------------------------------------------------------------------------------

    async def run(self) -> bytes | None:
        """Serve the connection to its end: None. Or, for the lane, one exchange: what came behind it."""
        leftover: bytes | None = None
        try:
            with self._scope:
                leftover = await self._serve()
        except Bug:
            log.exception("connection failed: listener=%s peer=%s", self.plan.name, self.stream.peer)
        except GateError as exc:
            log.debug("connection ended: peer=%s reason=%s", self.stream.peer, exc)
        except Exception:  # a bug must cost one connection, not the worker
            log.exception("connection failed: listener=%s peer=%s", self.plan.name, self.stream.peer)
        finally:
            if leftover is not None:
                pass  # the lane goes on with the socket
            elif self.is_spoilt or self.stream.poisoned:
                self.stream.abort()
            else:
                self.stream.close()
        return leftover

    async def _serve(self) -> bytes | None:
        while (head := await self._next_head()) is not None:
            self.is_fresh = False
            begun, self._begun = self._begun, None
            if begun is None:
                self.renew_snapshot()
            exchange = Exchange(self, head, self.record(head, begun), begun)
            await exchange.run()
            if self.is_spoilt or self.stream.closed:  # closed: it was a tunnel
                return None
            if not self.codec.can_reuse:
                # One that asked for the close sends no more; others may be in the middle of a body or a next request.
                if head.keep_alive or not exchange.body.complete:
                    await self._linger()
                return None
            self.codec.next_exchange()
            if self._lane and (leftover := self.codec.hand_back()) is not None:
                return leftover
        return None

    async def _next_head(self) -> RequestHead | None:
        """The next request, or None: the client closed, was idle too long, or sent no request (and was told)."""
        timeouts = self.plan.spec.timeouts
        if not self.codec.buffered and not await self._wait_first_byte(
            trio.current_time() + (timeouts.head if self.is_fresh else timeouts.idle)
        ):
            return None
        began, self._began = self._began, None
        self.exchange_began = began = trio.current_time() if began is None else began
        deadline = began + timeouts.head
        try:
            while True:
                event = self.codec.next_event()
                if isinstance(event, RequestHead):
                    self.head_seconds = trio.current_time() - began if self._begun is None else 0.0
                    return event
                if isinstance(event, Closed):
                    return None
                self.codec.receive(await self.stream.receive_some(deadline=deadline, late=Reason.HEAD_TIMEOUT))
        except ClientError as exc:
            if exc.reason is Reason.CLIENT_ABORT or (exc.reason is Reason.HEAD_TIMEOUT and not self.codec.buffered):
                return None  # it never began a request, so there is nothing to answer
            await self._refuse(exc)
            return None

    async def _wait_first_byte(self, deadline: float) -> bool:
        """Whether the client began a request before it closed, or had been idle for too long, or we leave."""
        if not self.is_leaving or self.is_fresh:
            with trio.CancelScope(deadline=deadline) as self._idle:
                if self.is_leaving:
                    self.leave()  # accepted in the same instant
                await self.stream.wait_readable()
            self._idle = None
        # A request that arrived together with the end of our patience is served: closing would lose it.
        data = self.stream.receive_nowait()
        if data:
            self.codec.receive(data)
        return bool(data)

    async def _refuse(self, exc: ClientError) -> None:
        """What came is no request: say so, and write it down."""
        self.plane.page[self.plan.block + LISTENER_BAD_REQUESTS] += 1
        record = self.record(None)
        await answer.send_unread(self, record.id, exc)
        account.blame(record, exc)
        account.write(self, record)
        if not self.is_spoilt:
            await self._linger()

    def proto(self, head: RequestHead | None) -> str:
        return "http/1.0" if head is not None and head.version == b"1.0" else "http/1.1"

    def send_last_nowait(self, wire: Sequence[Buffer]) -> bool:
        whole = b"".join(wire)
        return self.stream.send_nowait(whole) == len(whole)

    async def _linger(self) -> None:
        """Send our end of stream, then read and drop what still comes, for a while (RFC 9112 9.6)."""
        with contextlib.suppress(GateError), trio.move_on_after(LINGER):
            self.stream.shut_write()
            while await self.stream.receive_some(deadline=trio.current_time() + LINGER_PAUSE, late=Reason.IDLE_TIMEOUT):
                pass

    # -- while an exchange waits for others -------------------------------------------------------------------------

    async def watch(self) -> None:
        """Read ahead; raises ClientError once the client has left, since nobody would read the answer.

        As nginx, Envoy and Go do, a half-close counts as leaving. What the client pipelines meanwhile is kept; where
        that passes a bound this returns, and nobody watches any more. Cancelled: nothing is lost.
        """
        while self.codec.wants_data:
            data = await self.stream.receive_some()
            if not data:
                raise client_gone()
            self.codec.receive(data)
