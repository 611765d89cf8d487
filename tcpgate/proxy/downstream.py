"""What an exchange knows of the side that its request came from, whatever protocol brought it.

`HttpConnection` (http.py) is one HTTP/1.1 connection, which has one exchange after the other; `StreamConnection`
(http2.py) is one stream of an HTTP/2 connection, which has one exchange. The exchange, its attempts and its answers
hold a `Downstream` and know no more.

Owner: the task that runs the exchange.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Awaitable, Callable, Sequence

import trio

from tcpgate.codec.events import Fields, RequestHead
from tcpgate.codec.sides import ServerSide
from tcpgate.errors import ClientError, GateError, Reason
from tcpgate.net.carrier import Carrier
from tcpgate.net.unsent import Buffer
from tcpgate.proxy import heads
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.plane import Plane
from tcpgate.state.snapshot import ListenerPlan, Snapshot
from tcpgate.stats.record import AccessRecord
from tcpgate.units import Address


class Downstream(abc.ABC):
    """One client, as an exchange sees it. Satisfies `heads.Peer`."""

    def __init__(
        self,
        plane: Plane,
        plan: ListenerPlan,
        stream: Carrier,
        codec: ServerSide,
        snapshot: Snapshot,
        *,
        address: Address | None,
        port: int | None,
        is_trusted: bool,
        arrived: Arrived | None = None,
    ) -> None:
        self.address = address
        """The peer's, IPv4 as IPv4 whatever the socket; None for a unix socket."""
        self.plane = plane
        self.plan = plan
        """The listener as it was when the connection came; a reload changes it for later ones."""
        self.stream = stream
        self.codec = codec
        self.snapshot = snapshot
        """The newest generation that has this listener: what its requests are looked up in."""
        self.port = port
        """That the client connected to."""
        self.arrived = arrived
        """How the connection came, where that was not plainly."""
        self.tls_seconds = 0.0
        """What its TLS handshake took, for the record of the first exchange that tells."""
        self.is_trusted = is_trusted
        """The peer may speak for others."""
        self.forwarding: tuple[tuple[bytes, bytes], Fields] | None = None
        """What the last request's forwarding fields were, and for which host and version (heads.py)."""
        self.is_long = False
        self.is_leaving = False
        """No other exchange is to follow on the connection."""
        self.is_spoilt = False
        """What was sent to the client is not whole, so nothing may follow it."""
        self.exchange_began = trio.current_time()
        self.head_seconds = 0.0
        self.counted_in = self.counted_out = 0
        """How much of the stream's bytes earlier records have."""
        self._left: GateError | None = None
        """How the client left while it waited for work."""
        self._cut_at = math.inf
        """When it has to be over."""
        self._farewell: Callable[[float], float] | None = None

    # -- what the protocol decides ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`, whatever is under way; infinity takes it back."""

    @abc.abstractmethod
    def proto(self, head: RequestHead | None) -> str:
        """The protocol's name, for the record."""

    @abc.abstractmethod
    def send_last_nowait(self, wire: Sequence[Buffer]) -> bool:
        """Send what goes at once of a last answer; whether that was all of it. GateError: the client is gone."""

    @abc.abstractmethod
    async def watch(self) -> None:
        """Raises ClientError once the client has left, since nobody would read the answer. Cancelled: nothing is lost.

        Returns where the protocol cannot tell any more whether it has.
        """

    # -- farewells --------------------------------------------------------------------------------------------------

    def set_farewell(self, farewell: Callable[[float], float] | None) -> None:
        """Have `farewell` told by when the exchange has to be over: it says when to cancel it, having come to its end
        by itself before. None: there is nothing to say any more."""
        self._farewell = farewell
        if farewell is not None and self._cut_at < math.inf:
            self.cut_by(self._cut_at)

    def cancel_at(self, deadline: float) -> float:
        """When to cancel what has to be over by `deadline`; for `cut_by`."""
        self._cut_at = deadline
        return deadline if self._farewell is None else self._farewell(deadline)

    # -- what they share --------------------------------------------------------------------------------------------

    def renew_snapshot(self) -> None:
        """Follow a reload, but for one that has taken this listener away: its last requests still find their routes."""
        newest = self.plane.snapshot
        if newest is not self.snapshot:
            plan = newest.listeners.get(self.plan.name)
            if plan is not None and plan.spec.protocol == "http":
                self.snapshot = newest

    def record(self, head: RequestHead | None, begun: Begun | None = None) -> AccessRecord:
        """A new record of the request whose head is `head`; None: of what was no request."""
        record = AccessRecord(
            ts=self.plane.wall(),
            listener=self.plan.name,
            peer=self.stream.peer,
            proto=self.proto(head),
            generation=self.snapshot.generation,
        )
        if self.arrived is not None:
            record.tls = self.arrived.text
            record.t.tls, self.tls_seconds = self.tls_seconds, 0.0
        if head is None:
            record.id, record.client = self.plane.new_id(), str(self.address or "unix")
            return record
        record.id = heads.id_of(self, head) if begun is None else begun.id
        record.method, record.host, record.path = (
            part.decode("latin-1") for part in (head.method, head.host, head.path)
        )
        return record

    async def while_client_waits(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`; if the client leaves before it is done, cancel it and raise the ClientError.

        Raises what of GateErrors `work` raises. What it makes must be kept by whoever wrote it: it may be done, and
        this call be cancelled all the same.
        """
        failure: GateError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_for, nursery.cancel_scope)
            try:
                await work()
            except GateError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        failure = self._left or failure
        if failure is not None:
            raise failure

    async def _watch_for(self, work: trio.CancelScope) -> None:
        try:
            await self.watch()
        except GateError as exc:
            self._left = exc
            work.cancel()


def client_gone() -> ClientError:
    """The client ended what an exchange needs of it."""
    return ClientError(Reason.CLIENT_ABORT, "closed before the response was over")
