"""The first half of an exchange in the lane: a request's head has come; it goes to an endpoint, or to a task.

    take            the head is read (codec/express) and prepared (prepared.py): what cannot be is a task's, untouched
    ask             an endpoint is picked, and one of its idle connections taken, or a new one made
    give up         not plain after all: the readable path goes on with it from exactly where it is (begun.py)

Owner: the listener, as ride.py has it.
"""

from __future__ import annotations

import math
import socket
from abc import abstractmethod

from tcpgate.codec import forwarded
from tcpgate.errors import GateError, UpstreamError
from tcpgate.net.address import SocketAddress, Target
from tcpgate.net.connect import Connecting
from tcpgate.net.lane import SWEEP_EVERY
from tcpgate.proxy import heads, pool
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.careful import Careful, Peer
from tcpgate.proxy.greet import greeting_of
from tcpgate.proxy.pool import UpstreamConnection
from tcpgate.proxy.prepared import HttpListener, Prepared
from tcpgate.proxy.ride import ASKED, CONNECTING, Ride
from tcpgate.proxy.rider import Host
from tcpgate.state.runtime import BYTES_OUT, CONNECTS, EndpointRuntime, UpstreamRuntime

SMALL_BODY = 64 << 10
"""A request's body up to this long is waited for in the lane, for a sweep or two."""


class Asking(Ride):
    """A client's connection, up to the request's last byte."""

    __slots__ = (
        "_authority", "_connecting", "_forwarding", "_peer", "_reach", "by_form", "careful", "closes",
        "connect_seconds", "connected_at", "endpoint", "id", "prepared", "request", "sent", "sent_at", "started", "up",
        "upstream", "used", "wire",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        shared: HttpListener,
        sock: socket.SocketType,
        sockaddr: SocketAddress,
        port: int | None,
        arrived: Arrived | None = None,
    ) -> None:
        super().__init__(host, shared, sock, sockaddr, port, arrived)
        self.careful: Careful | None = None
        """Of an exchange that takes the longer way: what it needs there."""
        self.up: UpstreamConnection | None = None
        self.by_form = False
        """The last head was read by its form: its client gives each request an id."""
        self._peer: Peer | None = None
        self._connecting: Connecting | None = None
        self._authority = b""
        """What host `_forwarding` is for."""
        self._forwarding = b""

    def take(self, data: bytes) -> None:
        """A next request begins with `data`."""
        self.data = data
        self.snapshot = snapshot = self.host.snapshot
        end = data.find(b"\r\n\r\n") + 4
        shared = self.shared
        head = data if end == len(data) else data[:end]
        request = None if self.by_form else shared.known(head)
        if request is None:
            request = shared.heads.read(head, by_form=self.by_form) if end > 3 else None
            if request is None:
                self.hand_over(data)
                return
            self.by_form = request.by_form
        if self.arrived is not None and not self.arrived.covers(request.host, self.plane.tls.get(self.plan.name)):
            self.hand_over(data)
            return
        prepared: Prepared | None = request.note
        if prepared is None or prepared.snapshot() is not snapshot:
            prepared = shared.prepare(request, snapshot)
            if prepared is None:
                self.hand_over(data)
                return
        whole, body = end, b""
        if prepared.length:
            whole += prepared.length
            if whole > len(data):
                self._await_rest(data, prepared)
                return
            body = data[end:whole]
        self.used, self.request, self.prepared = whole, request, prepared
        self.closes = self.is_leaving or not request.keep_alive
        self.began = self.started = self.lane.clock()
        if self.waits_since is not None:  # it began with its head
            self.began, self.waits_since = self.waits_since, None
        if prepared.plan.filters or (request.vouched and self._peer_facts().is_trusted):
            self._ask_carefully(prepared, body)
        else:
            self.careful = None
            self._ask(prepared, body, self.client)

    def _await_rest(self, data: bytes, prepared: Prepared) -> None:
        """A small body may be one read behind its head. A longer one, or one that is slow, is a task's."""
        now = self.lane.clock()
        if self.waits_since is None:
            self.waits_since = now
            self.deadline = min(self.deadline, now + SWEEP_EVERY)
        if prepared.length > SMALL_BODY:
            self.hand_over(data)

    # -- the request goes out ---------------------------------------------------------------------------------------

    def _peer_facts(self) -> Peer:
        """This connection as the longer way needs it."""
        if self._peer is None:
            trusted = forwarded.is_trusted(self.address, self.plan.spec.trusted_proxies)
            self._peer = Peer(self.plane, self.plan, self.address, self.port, is_trusted=trusted, arrived=self.arrived)
        return self._peer

    def _ask_carefully(self, prepared: Prepared, body: bytes) -> None:
        """As `_ask`, by the longer way."""
        careful = self.careful = Careful(self._peer_facts(), prepared.plan, self.request)
        if careful.ask_filters():
            self.started = self.lane.clock()
            self._ask(prepared, body, careful.view.client_text)
        else:
            self.is_fresh = False
            self.id = careful.id.encode()
            self.hand_over(self.data, self._begun())

    def _ask(self, prepared: Prepared, body: bytes, client: str) -> None:
        """Pick an endpoint and send it the request."""
        self.is_fresh = False
        careful, request, shared = self.careful, self.request, self.shared
        upstream = shared.upstreams.get(prepared.upstream or shared.split(prepared.plan, request, client))
        endpoint = None
        if upstream is not None:
            key = shared.key(upstream.spec.hash_key, request, client) if upstream.spread.keyed else 0
            endpoint = upstream.pick(key, (), self.started)
        if upstream is None or endpoint is None:
            if careful is not None:
                self.id = careful.id.encode()
            self.hand_over(self.data, None if careful is None else self._begun())
            return
        self.upstream = upstream
        self.endpoint = endpoint
        if careful is not None:
            self.id = careful.id.encode()
            self.wire = careful.request(upstream.name) + body
        else:
            self.id = id_ = next(shared.ids)
            if request.authority != self._authority:
                self._authority = request.authority
                secure = self.arrived is not None and self.arrived.secure
                self._forwarding = shared.forwarding(self.address, self.port, request.authority, secure)
                if secure and heads.tells_client(self.plan):
                    certificate = heads.certificate_fields(self.plan, self.arrived)
                    self._forwarding = b"".join([b"%b: %b\r\n" % pair for pair in certificate]) + self._forwarding
            self.wire = b"".join((prepared.start, self._forwarding, id_, prepared.end, body))
        endpoint.begin()
        self.sent = 0
        self.connect_seconds = 0.0
        again = prepared.repeatable and self.lane.in_turn and upstream.spec.retry.attempts > 1
        up = pool.take_idle(endpoint, look=not again)
        if up is not None:
            self._send_request(up)
        else:
            self._connect(endpoint, upstream)

    def _send_request(self, up: UpstreamConnection) -> None:
        self.up = up
        up.serving = self
        self.state = ASKED
        wire = self.wire
        try:
            if not up.in_lane:
                up.enter()
            self.sent = sent = up.sock.send(wire)
        except OSError:  # no room, here or there, or gone: the readable path finds out which
            sent = 0
        self.connected_at = self.sent_at = now = self.lane.clock()
        if sent != len(wire):
            self.sent_at = math.nan
            self.give_up()
            return
        due, over = now + self.upstream.spec.timeouts.first_byte, self.began + self.prepared.timeout
        self.deadline = due if due < over else over

    # -- a new connection -------------------------------------------------------------------------------------------

    def _connect(self, endpoint: EndpointRuntime, upstream: UpstreamRuntime) -> None:
        """There is no idle connection: make one."""
        self.state = CONNECTING
        self.connected_at = self.sent_at = math.nan
        targets = self.plane.resolver.known(endpoint.address)
        if targets is None or not endpoint.reach.in_lane:
            self.give_up()  # a task dials
            return
        self.deadline = self.began + self.prepared.timeout
        endpoint.opening()
        self._reach = endpoint.reach
        by, greeting = self.started + upstream.spec.timeouts.connect, greeting_of(endpoint, self.plane.contexts)
        self._connecting = Connecting(self.lane, targets, by, self, greeting)
        self._connecting.start()

    def connected(self, sock: socket.SocketType, target: Target) -> None:
        """`Connecting` has made it."""
        self._connecting = None
        self.connect_seconds = self.lane.clock() - self.started
        self.endpoint.count(CONNECTS)
        self._send_request(UpstreamConnection(self.endpoint, sock, str(target), self.lane, self._reach, exchanges=1))

    def connect_failed(self, error: GateError) -> None:
        """`Connecting` could not: the readable path decides whether another endpoint may be tried."""
        self._connecting = None
        self.endpoint.closed()
        if isinstance(error, UpstreamError):
            self.endpoint.connect_failed(error.detail or str(error.reason), self.lane.clock())
        self.give_up(failure=error)

    def cancel_connect(self) -> None:
        """No new connection is wanted any more."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            self.endpoint.closed()

    # -- the exchange turns out not to be plain ---------------------------------------------------------------------

    def give_up(
        self,
        received: bytes = b"",
        broken: OSError | None = None,
        failure: GateError | None = None,
        client_broke: OSError | None = None,
    ) -> None:
        """Let the readable path go on with it, from exactly where it is."""
        self.cancel_connect()
        up, endpoint = self.up, self.endpoint
        if up is not None:
            up.leave()
            endpoint.count(BYTES_OUT, self.sent)
        begun = self._begun()
        begun.upstream, begun.endpoint, begun.up = self.upstream, endpoint, up
        begun.started, begun.connected_at, begun.sent_at = self.started, self.connected_at, self.sent_at
        begun.sent, begun.failure, begun.received, begun.broken = self.sent, failure, received, broken
        self.up, self.wire = None, b""
        self.hand_over(self.data, begun, client_broke)

    def _begun(self) -> Begun:
        """What was done before an endpoint was picked."""
        begun = Begun(id=self.id.decode("ascii"), snapshot=self.snapshot, routed_at=self.began)
        if self.careful is not None:
            begun.view, begun.filters_done = self.careful.view, self.careful.done
            begun.verdict = self.careful.verdict
        return begun

    @abstractmethod
    def on_upstream(self, ready: int) -> None:
        """The endpoint's connection is readable, or has hung up."""
