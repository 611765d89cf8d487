"""The lane's longer way: requests that filters look at, or in which a trusted proxy speaks for others.

Here the lane takes the readable path's own steps (`heads.py`, the filters, the codec's writer) on a `RequestHead`, one
after the other and synchronously. That costs a few times what `prepared.py` does, and far less than a task.
"""

from __future__ import annotations

from tcpgate.codec import grammar
from tcpgate.codec.events import NO_BODY, Fields
from tcpgate.codec.express import ExpressRequest, ExpressResponse
from tcpgate.codec.machine import framed, request_bytes, response_bytes
from tcpgate.filters.base import Continue, RequestView, Verdict
from tcpgate.proxy import heads
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.plane import Plane
from tcpgate.state.snapshot import ListenerPlan, RoutePlan
from tcpgate.units import Address


class Peer:
    """A connection's part in the heads of its requests; satisfies `heads.Peer`."""

    __slots__ = ("address", "arrived", "forwarding", "is_trusted", "plan", "plane", "port")

    def __init__(
        self,
        plane: Plane,
        plan: ListenerPlan,
        address: Address | None,
        port: int | None,
        *,
        is_trusted: bool,
        arrived: Arrived | None = None,
    ) -> None:
        self.plane = plane
        self.plan = plan
        self.address = address
        self.port = port
        self.is_trusted = is_trusted
        self.arrived = arrived
        self.forwarding: tuple[tuple[bytes, bytes], Fields] | None = None


class Careful:
    """One exchange that takes the longer way."""

    __slots__ = ("_peer", "_plan", "done", "id", "verdict", "view")

    def __init__(self, peer: Peer, plan: RoutePlan, request: ExpressRequest) -> None:
        head = request.head()
        self._peer = peer
        self._plan = plan
        self.id = heads.id_of(peer, head)
        tls = None if peer.arrived is None else peer.arrived.tls
        self.view = RequestView(head=head, client=heads.client_of(peer, head), tls=tls)
        self.view.auth = "" if peer.arrived is None else peer.arrived.identity
        self.done = 0
        """How many filters were asked."""
        self.verdict: Verdict | None = None
        """What the last of them said, if it was not to continue."""

    def ask_filters(self) -> bool:
        """Ask the route's filters; whether all of them let it pass."""
        for _, filter_ in self._plan.filters:
            verdict = filter_.on_request(self.view)
            self.done += 1
            if not isinstance(verdict, Continue):
                self.verdict = verdict
                return False
        return True

    def request(self, upstream: str) -> bytes:
        """The head that goes to an endpoint of `upstream`."""
        head = self.view.head
        fields = heads.outgoing(self._peer, head, self.view.request, self.id, upstream)
        return request_bytes(head.method, head.upstream_target, framed(fields, head.framing))

    def response(self, answer: ExpressResponse, *, close: bool) -> bytes:
        """The head that goes to the client."""
        response = grammar.parse_response(answer.raw, self.view.head.method)
        for _, filter_ in reversed(self._plan.filters):
            filter_.on_response(self.view, response)
        fields = heads.incoming(self._peer.plane, response, self.view.response, self.id)
        framing = NO_BODY if answer.status == 204 else response.framing
        pairs = framed(fields, framing)
        if close:
            pairs.append((b"Connection", b"close"))
        return response_bytes(response.status, response.reason, pairs)
