"""A client's HTTP connection in the lane: plain exchanges move by callbacks, everything else becomes a task's.

    on_client       a head has come: read (codec/express), prepared (prepared.py), sent to the endpoint that was picked
    on_upstream     the answer's head has come: rewritten, sent; what does not go at once is `Outflow`'s (outflow.py)
    finish          the books of an exchange that went well; then the next one, or the end

While it rides, a connection has no task: it is this object, in its listener's set and in the lane's. What the lane
cannot do it *hands over*: a task starts, with the bytes as they came and with what was done already (`Begun`), serves
that one exchange on the readable path (http.py) and hands the connection back. That is possible until the first byte
of an answer has gone to the client. So whatever can go wrong before (a stale connection, an endpoint that says
something unusual, a deadline) is judged, retried and told in one place only, and the lane decides nothing that the
readable path would decide otherwise. After it, an exchange can only end well or be cut short, and both are told here.

States: IDLE (waits for a head, or for the rest of a small body), CONNECTING, ASKED (the request is with the
endpoint), FLOWING (the answer has begun to go out), LINGERING (answered and ended; what still comes is dropped), AWAY
(a task has it), GONE.

Owner: the listener (serve.py). Nothing here awaits, and no time limit has a timer: `sweep` looks at `deadline`.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from functools import partial

from tcpgate.codec import forwarded
from tcpgate.codec.blame import UPSTREAM_BODY
from tcpgate.codec.chunked import ChunkScanner
from tcpgate.codec.events import RESPONSE_LIMITS
from tcpgate.codec.express import ExpressResponse
from tcpgate.errors import Bug, ClientError, GateError, Reason, Refused, Side, UpstreamError
from tcpgate.net.address import SocketAddress, Target, describe, number_of, port_of
from tcpgate.net.connect import Connecting
from tcpgate.net.lane import READ, SWEEP_EVERY, WRITE
from tcpgate.net.stream import READ_SIZE, Stream, lost
from tcpgate.proxy import account, pool
from tcpgate.proxy.begun import Begun
from tcpgate.proxy.careful import Careful, Peer
from tcpgate.proxy.http import FRESH_GRACE, LINGER, LINGER_PAUSE, HttpConnection
from tcpgate.proxy.outflow import Outflow, _Broken, frame
from tcpgate.proxy.plane import WORKER_LANE_EXCHANGES, WORKER_LANE_FAULTS, WORKER_LANE_HANDED
from tcpgate.proxy.pool import UpstreamConnection
from tcpgate.proxy.prepared import HttpListener, Prepared
from tcpgate.proxy.rider import Host
from tcpgate.state.runtime import BYTES_IN, BYTES_OUT, CONNECTS, EndpointRuntime, UpstreamRuntime
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats import plain
from tcpgate.stats.record import AccessRecord, Attempt, Phases

IDLE, CONNECTING, ASKED, FLOWING, LINGERING, AWAY, GONE = range(7)
SMALL_BODY = 64 << 10
"""A request's body up to this long is waited for in the lane, for a sweep or two."""
READ_AHEAD = 64 << 10
"""Bytes of next requests that are read before the exchange at hand is over."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class HttpRider:
    """One client's connection. Not an attrs class: thousands idle, and each exchange walks through these fields."""

    __slots__ = (
        "_authority", "_bytes_in", "_connecting", "_forwarding", "_line", "_task", "address", "answer", "began",
        "bytes_out", "careful", "client", "closes", "connect_seconds", "connected_at", "cut_at", "data", "deadline",
        "endpoint", "fd", "first_byte_at", "flow", "host", "id", "is_fresh", "is_leaving", "lane", "more", "peer",
        "peer_facts", "plan", "plane", "prepared", "rides", "sent", "sent_at", "shared", "snapshot", "sock",
        "started", "state", "status", "up", "upstream", "upstream_in", "used", "wire",
    )  # fmt: skip

    def __init__(self, host: Host, shared: HttpListener, sock: socket.socket, sockaddr: SocketAddress) -> None:
        self.host = host
        self.plane = host.plane
        self.plan = shared.plan
        """The listener as it was when the connection came."""
        self.shared = shared
        self.snapshot: Snapshot = host.plane.snapshot
        self.lane = self.plane.lane
        self.rides = self.snapshot.config.gateway.lane
        """The config has not switched the lane off."""
        self.sock = sock
        self.fd = sock.fileno()
        address = number_of(sockaddr)
        self.address = None if address is None else forwarded.plain(address)
        self.peer = describe(sockaddr)
        self.client = str(self.address or "unix")
        self.state = IDLE
        self.is_fresh = True
        """No request has come yet."""
        self.is_leaving = False
        self.cut_at = math.inf
        self.deadline = math.inf
        """When the sweep has to do something."""
        self.careful: Careful | None = None
        """Of an exchange that takes the longer way: what it needs there."""
        self.peer_facts: Peer | None = None
        self.data = b""
        """What the client has sent and has not got an answer to, from the head at hand on."""
        self.more: list[bytes] = []
        """What came after `data`, while the exchange at hand was under way."""
        self._bytes_in = 0
        self.flow: Outflow | None = None
        self.up: UpstreamConnection | None = None
        self._task: HttpConnection | None = None
        self._connecting: Connecting | None = None
        self._authority = b""
        self._forwarding = b""
        self._line: str | None = None

    # -- asked from outside -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to serve; the listener has it in its set by now."""
        if not self.rides:
            self._hand_over(b"")
            return
        self._ride()
        self.deadline = self.lane.clock() + self.plan.spec.timeouts.head
        if self.is_leaving:
            self.leave()

    @property
    def is_long(self) -> bool:
        """A tunnel."""
        return self._task is not None and self._task.is_long

    @property
    def buffered(self) -> int:
        """Bytes of the client's that are held for later."""
        if self._task is not None:
            return self._task.codec.buffered
        return len(self.data) + sum(map(len, self.more))

    def leave(self) -> None:
        """End as soon as no exchange is under way; the answer to the current one says Connection: close."""
        self.is_leaving = True
        if self._task is not None:
            self._task.leave()
        elif self.state == IDLE and not self.data:
            if self.is_fresh:
                self.deadline = min(self.deadline, self.lane.clock() + FRESH_GRACE)
            else:
                self._end_idle()

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`, whatever is under way; infinity takes it back."""
        self.cut_at = deadline
        if self._task is not None:
            self._task.cut_by(deadline)

    def stop(self) -> None:
        """The worker is being cancelled."""
        if self.state in (AWAY, GONE):
            return  # a task ends by its own cancellation
        if self.state in (CONNECTING, ASKED):
            self._drop_exchange(Refused(Reason.DRAINED, "cut at the end of the drain"))
        elif self.state == FLOWING:
            self.cut(Refused(Reason.DRAINED, "cut at the end of the drain"))
            return
        self._gone()

    # -- in the lane and out of it ----------------------------------------------------------------------------------

    def _ride(self) -> None:
        self.lane.add(self.fd, self.on_client)
        self.lane.timed.add(self)

    def watch(self, events: int) -> None:
        """Be told these events of the client's socket."""
        self.lane.change(self.fd, events)

    def _leave_lane(self) -> None:
        self.lane.remove(self.fd)
        self.lane.timed.discard(self)

    def _hand_over(self, data: bytes, begun: Begun | None = None, client_broke: OSError | None = None) -> None:
        """Give the exchange at hand to a task, with everything that the client has sent of it and after it."""
        if self.rides:
            self._leave_lane()
            self.plane.page[WORKER_LANE_HANDED] += 1
        if self.more:
            data += b"".join(self.more)
            self.more = []
        self.state, self.data, self.deadline = AWAY, b"", math.inf
        stream = Stream(self.sock, Side.CLIENT, self.peer)
        stream.give_back(b"", client_broke)
        task = self._task = HttpConnection(self.plane, self.plan, stream, self.address, self.snapshot, lane=self.rides)
        if data:
            task.take_over(data, self._bytes_in, None if begun is None else self.began, begun)
        task.is_fresh = self.is_fresh
        task.is_leaving = self.is_leaving
        task.cut_by(self.cut_at)
        self._bytes_in = 0
        self.host.start(partial(self._run, task))

    async def _run(self, task: HttpConnection) -> None:
        """The task: serve on the readable path, then come back, or be gone."""
        leftover = None
        try:
            leftover = await task.run()
        finally:
            self._task = None
            if leftover is None:
                self._gone()
            else:
                self._come_back(leftover, task)

    def _come_back(self, leftover: bytes, task: HttpConnection) -> None:
        self.state, self.is_fresh = IDLE, False
        self.is_leaving, self.snapshot = task.is_leaving, task.snapshot
        self._ride()
        self.deadline = self.lane.clock() + self.plan.spec.timeouts.idle
        self._bytes_in = task.stream.bytes_in - task.counted_in
        if leftover:
            self._take(leftover)
        elif self.is_leaving:
            self._end_idle()

    def _gone(self) -> None:
        """The connection is over."""
        if self.state == GONE:
            return
        if self.state != AWAY:
            self.lane.forget(self.fd)
            self.lane.timed.discard(self)
            self.sock.close()
        self.state, self.data, self.more = GONE, b"", []
        self.host.ended(self)

    def _end_idle(self) -> None:
        """Nothing is under way: close. But a request may have come in this very moment, and closing would lose it."""
        with contextlib.suppress(OSError):
            data = self.sock.recv(READ_SIZE)
            if data:
                self._bytes_in += len(data)
                self._take(self.data + data)
                return
        self._gone()

    def on_fault(self, exc: Exception) -> None:
        """A bug in what the lane called. Before the answer has begun the readable path may do better, or says 500."""
        self.plane.page[WORKER_LANE_FAULTS] += 1
        if self.state == FLOWING:
            self.cut(Bug(repr(exc)))
        elif self.state in (CONNECTING, ASKED):
            self._give_up(failure=Bug(repr(exc)))
        elif self.state == IDLE and self.data:
            self._hand_over(self.data)
        elif self.state != AWAY:
            self._gone()

    # -- the client speaks ------------------------------------------------------------------------------------------

    def on_client(self, ready: int) -> None:
        """The client's socket is readable, or has room again, or has hung up."""
        if ready & WRITE and self.flow is not None:
            self.flow.on_writable()
            if not ready & ~WRITE or self.state in (GONE, AWAY):
                return
        try:
            data = self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._client_broke(exc)
            return
        self._bytes_in += len(data)
        if self.state != IDLE:
            self._client_spoke(data)
        elif data:
            self._take(self.data + data if self.data else data)
        elif self.data:
            self._hand_over(self.data)
        else:
            self._gone()

    def _client_broke(self, exc: OSError) -> None:
        """The client's connection was reset."""
        if self.state == FLOWING:
            self.cut(lost(Side.CLIENT, exc, "receiving"))
        elif self.state in (CONNECTING, ASKED):
            self._give_up(client_broke=exc)
        elif self.state == IDLE and self.data:
            self._hand_over(self.data, client_broke=exc)
        else:
            self._gone()

    def _client_spoke(self, data: bytes) -> None:
        """While an exchange is under way: the next requests come, or it leaves."""
        if self.state == LINGERING:
            if data:
                self.deadline = min(self.deadline, self.lane.clock() + LINGER_PAUSE)
            else:
                self._gone()
        elif data:
            self.more.append(data)
            if sum(map(len, self.more)) > READ_AHEAD:
                self.watch(0 if self.flow is None else WRITE)
        elif self.state == FLOWING:
            self.cut(ClientError(Reason.CLIENT_ABORT, "closed before the response was over"))
        else:
            self._give_up()

    def _take(self, data: bytes) -> None:
        """A next request begins with `data`."""
        self.data = data
        end = data.find(b"\r\n\r\n") + 4
        request = None
        if end > 3:
            request = self.shared.heads.read(data if end == len(data) else data[:end])
        if request is None:
            self._hand_over(data)
            return
        snapshot = self._follow()
        prepared = request.note
        if prepared is None or prepared.snapshot() is not snapshot:
            prepared = self.shared.prepare(request, snapshot)
            if prepared is None:
                self._hand_over(data)
                return
        whole = end + prepared.length
        if whole > len(data):
            self._await_rest(data, prepared)
            return
        self.used, self.prepared = whole, prepared
        self.closes = not request.keep_alive
        body = data[end:whole] if prepared.length else b""
        self.careful = None
        if prepared.plan.filters or (request.vouched and self._peer().is_trusted):
            self._ask_carefully(prepared, body)
        else:
            self._ask(prepared, body, self.client)

    def _await_rest(self, data: bytes, prepared: Prepared) -> None:
        """A small body may be one read behind its head. A longer one, or one that is slow, is a task's."""
        if prepared.length > SMALL_BODY:
            self._hand_over(data)
        else:
            self.deadline = min(self.deadline, self.lane.clock() + SWEEP_EVERY)

    def _follow(self) -> Snapshot:
        """The generation to go by: the newest that has this listener."""
        newest = self.plane.snapshot
        if newest is not self.snapshot:
            plan = newest.listeners.get(self.plan.name)
            if plan is not None and plan.spec.protocol == "http":
                self.snapshot = newest
        return self.snapshot

    # -- the request goes out ---------------------------------------------------------------------------------------

    def _peer(self) -> Peer:
        """This connection as the longer way needs it."""
        if self.peer_facts is None:
            self.peer_facts = Peer(
                self.plane,
                self.plan,
                self.address,
                port_of(self.sock.getsockname()),
                is_trusted=forwarded.is_trusted(self.address, self.plan.spec.trusted_proxies),
            )
        return self.peer_facts

    def _ask_carefully(self, prepared: Prepared, body: bytes) -> None:
        """As `_ask`, by the longer way."""
        careful = self.careful = Careful(self._peer(), prepared)
        self.began = self.lane.clock()
        if careful.ask_filters():
            self._ask(prepared, body, careful.view.client_text)
        else:
            self.is_fresh = False
            self.id = careful.id
            self._hand_over(self.data, self._begun())

    def _ask(self, prepared: Prepared, body: bytes, client: str) -> None:
        """Pick an endpoint and send it the request."""
        now = self.lane.clock()
        shared, careful = self.shared, self.careful
        upstream = shared.upstream(prepared, client)
        endpoint = None
        if upstream is not None:
            key = shared.key(upstream.spec.hash_key, prepared, client) if upstream.keyed else 0
            endpoint = upstream.pick(key, (), now)
        self.began = self.started = now
        self.is_fresh = False
        self.upstream_in = self.bytes_out = self.sent = 0
        self.sent_at = self.connected_at = self.first_byte_at = math.nan
        self.connect_seconds = 0.0
        self.id = self.plane.new_id() if careful is None else careful.id
        if upstream is None or endpoint is None:
            self._hand_over(self.data, None if careful is None else self._begun())
            return
        self.upstream = upstream
        self.endpoint = endpoint
        if careful is None:
            authority = prepared.request.authority
            if authority != self._authority or not self._forwarding:
                self._authority = authority
                self._forwarding = shared.forwarding(self.address, port_of(self.sock.getsockname()), authority)
            self.wire = b"%b%b%b%b%b" % (prepared.start, self._forwarding, self.id.encode(), prepared.end, body)
        else:
            self.wire = careful.request(upstream.name) + body
        endpoint.begin()
        up = pool.take_idle(endpoint)
        if up is not None:
            self._send_request(up)
        else:
            self._connect(endpoint, upstream)

    def _send_request(self, up: UpstreamConnection) -> None:
        self.up = up
        up.serving = self
        up.enter()
        self.state = ASKED
        wire = self.wire
        try:
            self.sent = sent = up.sock.send(wire)
        except OSError:  # no room, or gone: the readable path finds out which
            sent = 0
        self.connected_at = now = self.lane.clock()
        if sent != len(wire):
            self._give_up()
            return
        self.sent_at = now
        upstream = self.upstream
        self.deadline = min(now + upstream.spec.timeouts.first_byte, self.began + self.prepared.plan.spec.timeout)

    # -- a new connection -------------------------------------------------------------------------------------------

    def _connect(self, endpoint: EndpointRuntime, upstream: UpstreamRuntime) -> None:
        """There is no idle connection: make one."""
        self.state = CONNECTING
        targets = self.plane.resolver.known(endpoint.address)
        if targets is None:
            self._give_up()  # a task dials
            return
        self.deadline = self.began + self.prepared.plan.spec.timeout
        endpoint.opening()
        self._connecting = Connecting(self.lane, targets, self.started + upstream.spec.timeouts.connect, self)
        self._connecting.start()

    def connected(self, sock: socket.SocketType, target: Target) -> None:
        """`Connecting` has made it."""
        self._connecting = None
        self.connect_seconds = self.lane.clock() - self.started
        self.endpoint.count(CONNECTS)
        real = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._send_request(UpstreamConnection(self.endpoint, real, str(target), self.lane, exchanges=1))

    def connect_failed(self, error: GateError) -> None:
        """`Connecting` could not: the readable path decides whether another endpoint may be tried."""
        self._connecting = None
        self.endpoint.closed()
        if isinstance(error, UpstreamError):
            self.endpoint.connect_failed(error.detail or str(error.reason), self.lane.clock())
        self._give_up(failure=error)

    def _cancel_connect(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            self.endpoint.closed()

    # -- the exchange turns out not to be plain ---------------------------------------------------------------------

    def _give_up(
        self,
        received: bytes = b"",
        broken: OSError | None = None,
        failure: GateError | None = None,
        client_broke: OSError | None = None,
    ) -> None:
        """Let the readable path go on with it, from exactly where it is."""
        self._cancel_connect()
        up, endpoint = self.up, self.endpoint
        if up is not None:
            up.leave()
            endpoint.count(BYTES_OUT, self.sent)
        begun = self._begun()
        begun.upstream, begun.endpoint, begun.up = self.upstream, endpoint, up
        begun.started, begun.connected_at, begun.sent_at = self.started, self.connected_at, self.sent_at
        begun.sent, begun.failure, begun.received, begun.broken = self.sent, failure, received, broken
        self.up, self.wire = None, b""
        self._hand_over(self.data, begun, client_broke)

    def _begun(self) -> Begun:
        """What was done before an endpoint was picked."""
        begun = Begun(id=self.id, snapshot=self.snapshot, routed_at=self.began)
        if self.careful is not None:
            begun.view, begun.filters_done = self.careful.view, self.careful.done
            begun.verdict = self.careful.verdict
        return begun

    # -- the answer comes -------------------------------------------------------------------------------------------

    def on_upstream(self, _ready: int) -> None:
        """The endpoint's connection is readable, or has hung up."""
        if self.state == FLOWING:
            assert self.flow is not None
            self.flow.on_upstream()
            return
        assert self.up is not None
        try:
            data = self.up.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._give_up(broken=exc)
            return
        end = data.find(b"\r\n\r\n") + 4
        response = None
        if end > 3:
            response = self.plane.answers.read(data if end == len(data) else data[:end])
        if response is None:
            self._give_up(data)
            return
        self._answer(response, data, end)

    def _answer(self, response: ExpressResponse, data: bytes, end: int) -> None:
        """Pass the head on, with as much of the body as has come."""
        status, left, rest = response.status, response.length, data[end:]
        scanner: ChunkScanner | None = None
        buffer = bytearray()
        if self.prepared.is_head or status == 304:
            left = 0
            if (self.prepared.is_head and response.length is None) or response.chunked:
                self._give_up(data)
                return
        elif status == 204:
            left = 0
        elif response.chunked:
            left = 0
            scanner = ChunkScanner(RESPONSE_LIMITS, UPSTREAM_BODY)
            buffer += rest
            try:
                rest = frame(scanner, buffer)
            except _Broken:
                self._give_up(data)
                return
            if scanner.done and buffer:
                self._give_up(data)
                return
        if left is None or (scanner is None and len(rest) > left):
            self._give_up(data)
            return
        assert self.up is not None
        self.upstream_in = len(data)
        now = self.first_byte_at = self.lane.clock()
        self.status, self.answer = status, response
        if self.is_leaving:
            self.closes = True
        if self.careful is None:
            wire = b"%b%b%b%b" % (self._head_before_id(response), self.id.encode(), self._head_after_id(response), rest)
        else:
            wire = self.careful.response(response, close=self.closes) + rest
        try:
            sent = self.sock.send(wire)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self.state = FLOWING
            self.cut(lost(Side.CLIENT, exc, "sending"))
            return
        self.bytes_out = sent
        if sent == len(wire) and (scanner.done if scanner is not None else len(rest) == left):
            self._finish(now)
            return
        self.state = FLOWING
        self.deadline = self.began + self.prepared.plan.spec.timeout
        self.flow = Outflow(
            self, self.up, left - len(rest) if scanner is None else 0, scanner,
            buffer, self.plan.spec.timeouts, self.upstream.spec.timeouts, self.plane.pipes,
        )  # fmt: skip
        self.flow.begin(memoryview(wire)[sent:])

    def _head_before_id(self, response: ExpressResponse) -> bytes:
        start: bytes | None = response.note
        if start is None:
            start = response.note = b"HTTP/1.1 %d %b\r\n%b" % (response.status, response.reason, response.lines)
        if not response.has_date:
            start = b"%bDate: %b\r\n" % (start, self.plane.date())
        return start + self.plane.via

    def _head_after_id(self, response: ExpressResponse) -> bytes:
        if response.length is not None:
            framing = b"\r\nContent-Length: %d" % response.length
        else:
            framing = b"\r\nTransfer-Encoding: chunked" if response.chunked else b""
        return framing + (b"\r\nConnection: close\r\n\r\n" if self.closes else b"\r\n\r\n")

    # -- the end ----------------------------------------------------------------------------------------------------

    def done(self) -> None:
        """`Outflow` has moved the rest."""
        assert self.flow is not None
        self.flow.close()
        self.flow = None
        self._finish(self.lane.clock())

    def _finish(self, now: float) -> None:
        """The exchange went well: its books, then the next one."""
        endpoint, up, status = self.endpoint, self.up, self.status
        assert up is not None
        self.up = None
        answered_after = self.first_byte_at - self.sent_at
        if status >= 500:
            endpoint.answered_badly(f"status {status}", now)
        else:
            endpoint.answered_well(answered_after, now)
        endpoint.end()
        endpoint.count(BYTES_IN, self.upstream_in)
        endpoint.count(BYTES_OUT, self.sent)
        if self.answer.keep_alive:
            pool.keep(up, now)
        else:
            up.close()
        self._tell(now)
        if self.more:
            self.watch(READ)
        self._next(now)

    def _tell(self, now: float) -> None:
        """The counters and the line."""
        prepared, plane = self.prepared, self.plane
        total = now - self.began
        bytes_in, self._bytes_in = self._bytes_in, 0
        plane.page[WORKER_LANE_EXCHANGES] += 1
        account.count_route(plane.page, prepared.block, self.status, total, by_gateway=False)
        plane.count(self.plan.block, bytes_in, self.bytes_out)
        connection, view = self._line, None if self.careful is None else self.careful.view
        if view is not None:
            connection = plain.connection_of(view.client_text, self.peer, "")
        elif connection is None:
            connection = self._line = plain.connection_of(self.client, self.peer, "")
        if view is not None and (view.auth or view.limit):
            plane.write(self._record(now, None, bytes_in))
            return
        line = plain.render(
            plain.stamp_of(plane.wall()),
            self.id,
            self.shared.target(prepared.plan, self.endpoint),
            connection,
            prepared.method,
            prepared.host,
            prepared.path,
            self.status,
            0.0,
            self.connect_seconds,
            self.first_byte_at - self.sent_at,
            now - self.first_byte_at,
            total,
            (now - self.started) * 1000,
            bytes_in,
            self.bytes_out,
            self.snapshot.generation,
        )
        if line is not None:
            plane.write_line(line)
        else:
            plane.write(self._record(now, None, bytes_in))

    def cut(self, exc: GateError) -> None:
        """The answer has begun and cannot be finished: tear the connection down, and tell why."""
        if self.state != FLOWING:
            return
        flow, self.flow = self.flow, None
        if flow is not None:
            flow.close()
        self._drop_exchange(exc)
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._gone()

    def _drop_exchange(self, exc: GateError) -> None:
        """End the exchange at hand as failed: its connection, its books."""
        self._cancel_connect()
        now = self.lane.clock()
        endpoint, up, plane = self.endpoint, self.up, self.plane
        self.up = None
        if up is not None:
            up.close()
            endpoint.count(BYTES_IN, self.upstream_in)
            endpoint.count(BYTES_OUT, self.sent)
        if isinstance(exc, UpstreamError):
            endpoint.answered_badly(exc.detail or str(exc.reason), now)
        endpoint.end()
        bytes_in, self._bytes_in = self._bytes_in, 0
        answered = self.state == FLOWING
        record = self._record(now, exc, bytes_in)
        account.count_route(plane.page, self.prepared.block, record.status, record.t.total, by_gateway=not answered)
        plane.close_books(self.plan.block, record)

    def _record(self, now: float, failure: GateError | None, bytes_in: int) -> AccessRecord:
        """The access record of the exchange at hand."""
        prepared, answered = self.prepared, self.state == FLOWING or failure is None
        reason = Reason.OK if failure is None else failure.reason
        plan = prepared.plan
        t = Phases(connect=self.connect_seconds, total=now - self.began)
        if answered:
            t.first_byte, t.body = self.first_byte_at - self.sent_at, now - self.first_byte_at
        record = AccessRecord(
            ts=self.plane.wall(),
            id=self.id,
            listener=self.plan.name,
            route=plan.name,
            upstream=self.upstream.name,
            endpoint=self.endpoint.name,
            attempts=[Attempt(self.endpoint.name, reason, (now - self.started) * 1000)],
            client=self.client,
            peer=self.peer,
            method=prepared.method,
            host=prepared.host,
            path=prepared.path,
            proto="http/1.1",
            status=self.status if answered else 0,
            rule=f"routes.{plan.name}",
            t=t,
            bytes_in=bytes_in,
            bytes_out=self.bytes_out,
            generation=self.snapshot.generation,
        )
        if self.careful is not None:
            view = self.careful.view
            record.client, record.auth, record.limit = view.client_text, view.auth, view.limit
        if failure is not None:
            account.blame(record, failure)
        if answered:
            record.answered_by = Side.UPSTREAM
        return record

    def _next(self, now: float) -> None:
        """Behind an exchange: the next request, or the end."""
        rest = self.data[self.used :] if self.used < len(self.data) else b""
        if self.more:
            rest += b"".join(self.more)
            self.more = []
        self.wire = self.data = b""
        if self.closes:
            if self.prepared.request.keep_alive:
                self._linger(now)
            else:
                self._gone()
            return
        self.state = IDLE
        self.deadline = now + self.plan.spec.timeouts.idle
        if rest:
            self._take(rest)
        elif self.is_leaving:
            self._end_idle()

    def _linger(self, now: float) -> None:
        """Our end of stream, then read and drop what still comes, for a while (RFC 9112 9.6)."""
        self.state = LINGERING
        self.deadline = now + LINGER_PAUSE
        self.cut_at = min(self.cut_at, now + LINGER)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._gone()

    # -- time -------------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """A time limit may have passed."""
        if self.flow is not None:
            self.flow.sweep(now)
        if now < self.deadline and now < self.cut_at:
            return
        if self.state == IDLE:
            if self.data:
                self._hand_over(self.data)
            else:
                self._gone()
        elif self.state == LINGERING:
            self._gone()
        elif self.state in (CONNECTING, ASKED):
            self._give_up()  # what passed is judged there, by the same clock
        elif self.state == FLOWING:
            route = self.prepared.plan.spec
            drained = now >= self.cut_at
            self.cut(
                Refused(Reason.DRAINED, "cut at the end of the drain")
                if drained
                else Refused(Reason.EXCHANGE_TIMEOUT, f"the route allows {route.timeout:g}s")
            )
