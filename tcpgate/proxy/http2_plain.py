"""A plain exchange on a stream of HTTP/2: moved by callbacks of the lane, without a task of its own.

    ask          a request without a body goes to an endpoint over an idle connection
    on_upstream  the whole answer has come, and fits the stream's windows: it is what the machine says next
    give up      anything else: a task goes on with it from exactly where it is (begun.py, http2_exchange.py)

Plain here is less than on a connection of HTTP/1.1 (asking.py, express.py): no body, no filters, no trusted peer, an
endpoint of HTTP/1.1 that is connected, an answer of known length that is here. Such an exchange is read by the same
express codec, from the HTTP/1.1 head that says the same; looked up in the same `HttpListener`, and booked in the same
ledger. Its answer's header block is made once for each head that an endpoint repeats.

Source: RFC 9113 8; the architecture's "a lane that moves". Owner: the connection (http2.py), whose tasks take over what
is given up.
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

from tcpgate.codec.events import Pair
from tcpgate.codec.express import ExpressRequest, ExpressResponse
from tcpgate.codec.http2.events import HeadersReceived
from tcpgate.codec.http2.headers import HpackOut, encode_line
from tcpgate.errors import Bug, GateError
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.http2_stream import HEAD_SIZE
from tcpgate.net.stream import READ_SIZE
from tcpgate.proxy import pool
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.ledger import Client
from tcpgate.proxy.plane import WORKER_LANE_FAULTS, WORKER_LANE_HANDED, Plane
from tcpgate.proxy.pool import UpstreamConnection
from tcpgate.proxy.prepared import HttpListener, Prepared
from tcpgate.state.runtime import BYTES_OUT, EndpointRuntime, UpstreamRuntime
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats import plain

ALL_OF_IT = 1 << 62
"""Bytes sent of a request, however a task would write it."""

log = logging.getLogger("tcpgate.proxy.http2")


class Owner(Client, Protocol):
    """What a plain stream asks of its connection."""

    plane: Plane
    link: Http2Link
    shared: HttpListener
    snapshot: Snapshot
    cut_at: float

    def forwarding(self, authority: bytes) -> bytes:
        """The forwarding fields of its requests, with the beginning of X-Request-Id's."""
        ...

    def carry_on(self, plain: PlainStream, begun: Begun, lost: GateError | None = None) -> None:
        """A task goes on with it; `lost`: only to tell that its client has ended it."""
        ...

    def stream_over(self, stream: PlainStream) -> None:
        """The stream is gone."""
        ...


class PlainStream:
    """One stream and its exchange. Not an attrs class: one is made for each request."""

    __slots__ = (
        "_began", "_endpoint", "_id", "_owner", "_prepared", "_request", "_sent", "_sent_at", "_snapshot", "_up",
        "_upstream", "deadline", "event", "number",
    )  # fmt: skip

    is_long = False

    def __init__(self, owner: Owner, event: HeadersReceived, request: ExpressRequest, prepared: Prepared) -> None:
        self.number = event.stream
        self.event = event
        """Its request, as a task would read it."""
        self.deadline = math.inf
        self._owner = owner
        self._request = request
        self._prepared = prepared
        self._snapshot = owner.snapshot
        self._upstream: UpstreamRuntime | None = None
        self._endpoint: EndpointRuntime | None = None
        self._up: UpstreamConnection | None = None
        self._id = b""
        self._began = self._sent_at = 0.0
        self._sent = 0

    # -- the request goes out ---------------------------------------------------------------------------------------

    def ask(self) -> bool:
        """Send it to an endpoint; whether that went. If not, nothing was done that counts, or it is a task's by now."""
        owner, prepared, request = self._owner, self._prepared, self._request
        shared, lane = owner.shared, owner.plane.lane
        self._began = now = lane.clock()
        upstream = shared.upstreams.get(prepared.upstream or shared.split(prepared.plan, request, owner.client))
        if upstream is None or upstream.spec.http != "http/1.1":
            return False
        spread = upstream.spread
        key = shared.key(upstream.spec.hash_key, request, owner.client) if spread.keyed else 0
        endpoint: EndpointRuntime | None = spread.pick(key, (), now)  # type: ignore[assignment]  # as asking.py
        if endpoint is None:
            return False
        self._upstream, self._endpoint = upstream, endpoint
        endpoint.begin()
        self._id = next(shared.ids)
        up = pool.take_idle(endpoint)
        if up is None:
            self._carry_on(self._begun())  # a task connects
            return True
        wire = b"".join((prepared.start, owner.forwarding(request.authority), self._id, prepared.end))
        self._sent = len(wire)
        up.serving = self
        try:
            if not up.in_lane:
                up.enter()
            sent = up.sock.send(wire)
        except OSError:
            sent = -1
        if sent != self._sent:  # it has a part of it, or nothing, and no request was ever whole: begin again elsewhere
            up.close()
            self._carry_on(self._begun())
            return True
        self._up = up
        self._sent_at = now = lane.clock()
        self.deadline = min(now + upstream.spec.timeouts.first_byte, self._began + prepared.timeout, owner.cut_at)
        lane.timed.add(self)
        return True

    # -- the answer comes -------------------------------------------------------------------------------------------

    def on_upstream(self, _ready: int) -> None:
        """The endpoint's connection is readable, or has hung up."""
        up, owner = self._up, self._owner
        assert up is not None
        try:
            data = up.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.give_up(broken=exc)
            return
        response = owner.plane.answers.begin(data)
        if (
            response is None
            or response.measured != (size := len(data) - response.size)
            or self._prepared.is_head
            or size > min(owner.link.room, owner.link.machine.window(self.number))
        ):
            self.give_up(data)
        else:
            self._answer(up, response, data)

    def _answer(self, up: UpstreamConnection, response: ExpressResponse, data: bytes) -> None:
        """All of it is here, and goes out with what else the connection says in this turn."""
        owner, endpoint, prepared = self._owner, self._endpoint, self._prepared
        assert endpoint is not None
        lane, machine = owner.plane.lane, owner.link.machine
        answered_at = lane.clock()
        lines, name = owner.plane.lines, owner.plane.name
        before, via, after = response.block or learn(response, lines, name)
        date = b"" if response.has_date else lines[b"Date", owner.plane.date()]
        block = b"%b%b%b%b%b%b" % (before, date, via, _ID, self._id, after)
        body = data[response.size :]
        machine.send_block(self.number, block, not body)
        if body:
            machine.send_data(self.number, body, True)
        owner.link.wake()
        self._over()
        now = lane.clock()
        endpoint.end()
        ledger = owner.shared.ledger(prepared.plan, endpoint)
        owner.line = owner.line or plain.connection_of(owner.client, owner.peer, owner.tls)
        ledger.enter((
            owner, prepared, None, self._id, response.status, 0.0, self._began, self._began, self._sent_at, answered_at,
            now, self._request.size, HEAD_SIZE + len(block) + len(body), len(data), self._sent,
        ))  # fmt: skip
        self._up = None
        if response.keep_alive:
            pool.keep(up, now)
        else:
            up.close()
        owner.stream_over(self)

    # -- not plain after all ----------------------------------------------------------------------------------------

    def give_up(
        self,
        received: bytes = b"",
        broken: OSError | None = None,
        failure: GateError | None = None,
        lost: GateError | None = None,
    ) -> None:
        """Let a task go on with it, from exactly where it is. `lost`: its client has ended it."""
        up, endpoint = self._up, self._endpoint
        if up is None or endpoint is None:
            return  # it was given up, or answered
        self._up = None
        self._over()
        up.leave()
        endpoint.count(BYTES_OUT, self._sent)
        begun = self._begun()
        begun.up, begun.connected_at, begun.sent_at = up, self._sent_at, self._sent_at
        begun.sent, begun.received, begun.broken, begun.failure = ALL_OF_IT, received, broken, failure
        self._carry_on(begun, lost)

    def _begun(self) -> Begun:
        begun = Begun(id=self._id.decode("ascii"), snapshot=self._snapshot, routed_at=self._began)
        begun.upstream, begun.endpoint, begun.started = self._upstream, self._endpoint, self._began
        return begun

    def _carry_on(self, begun: Begun, lost: GateError | None = None) -> None:
        self._owner.plane.page[WORKER_LANE_HANDED] += 1
        self._owner.carry_on(self, begun, lost)

    def _over(self) -> None:
        self._owner.plane.lane.timed.discard(self)

    # -- asked by its connection, and by the lane -------------------------------------------------------------------

    def reset(self, exc: GateError) -> None:
        """The client has ended it, or is gone: a task tells that in the way of all others."""
        self.give_up(lost=exc)

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`: the sweep sees to it."""
        self.deadline = min(self.deadline, deadline)

    def sweep(self, now: float) -> None:
        """What has passed is judged by the task, by the same clock."""
        if now >= self.deadline:
            self.give_up()

    def on_fault(self, exc: Exception) -> None:
        """A bug in what the lane called."""
        self._owner.plane.page[WORKER_LANE_FAULTS] += 1
        self.give_up(failure=Bug(repr(exc)))


# -- header blocks of answers ---------------------------------------------------------------------------------------

_ID = encode_line(b"x-request-id", b"0" * 32, False)[:-32]
"""The field's line up to an id, which has 32 bytes."""


def learn(response: ExpressResponse, lines: HpackOut, name: bytes) -> tuple[bytes, bytes, bytes]:
    """The header block of every answer with this head: what goes before Date, if we add that; Via; what goes behind
    the request id. The same fields in the same order as the readable path's (heads.py)."""
    pairs: list[Pair] = [(b":status", b"%d" % response.status)]
    for line in response.lines.split(b"\r\n")[:-1]:
        field, _, value = line.partition(b":")
        pairs.append((field, value.strip(b" \t")))
    length = [] if response.length is None else [(b"content-length", b"%d" % response.length)]
    block = lines.block(pairs), lines[b"Via", b"1.1 " + name], lines.block(length)
    response.block = block
    return block
