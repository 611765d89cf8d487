"""A listener in a worker: its acceptors, its open connections, its end. Owner: the worker's root nursery.

    run
    +-- one acceptor per bound address    in the lane; stopped by `retire`, or when a reload unbinds the address
    +-- open connections                  in the lane, or a task each: end by themselves, are asked to (`leave`), or are
                                          cut when the drain is over

A reload calls `renew` with a new plan: connections that are open keep the plan they began with, the next ones get the
new one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import attrs
import trio

from tcpgate.codec.client_hello import ClientHello
from tcpgate.errors import REASONS, Reason, Side
from tcpgate.net.accept import BATCH, Acceptor
from tcpgate.net.address import SocketAddress, describe, number_of, port_of
from tcpgate.net.stream import Stream
from tcpgate.net.tls_server import TlsServer
from tcpgate.proxy import answer
from tcpgate.proxy.arrival import Arrival, needs_arrival
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.express import HttpRider
from tcpgate.proxy.flow import TcpConnection
from tcpgate.proxy.http2 import Http2Connection
from tcpgate.proxy.lane_flow import LaneFlow
from tcpgate.proxy.plane import WORKER_ACCEPTED, WORKER_CONNECTIONS, Plane
from tcpgate.proxy.prepared import HttpListener
from tcpgate.proxy.rider import Connection, Leaving
from tcpgate.state.runtime import UpstreamRuntime
from tcpgate.state.snapshot import (
    LISTENER_ACCEPTED,
    LISTENER_CONNECTIONS,
    LISTENER_REFUSED,
    ListenerPlan,
    Snapshot,
)
from tcpgate.stats.record import AccessRecord

ACCEPT_TOLD_EVERY = 30.0
"""Seconds between two events of a listener that cannot accept."""


log = logging.getLogger("tcpgate.proxy.serve")


@attrs.define(eq=False)
class ListenerServer:
    """One listener's tasks in this worker."""

    plane: Plane
    plan: ListenerPlan
    connections: set[Connection] = attrs.field(factory=set)
    snapshot: Snapshot = attrs.field(init=False)
    """The newest generation that has this listener. A retired one still takes who waits, and serves them by it."""
    upstreams: dict[str, UpstreamRuntime] = attrs.field(init=False)
    """Of a tcp listener: those that take its flows, by name, kept for the same reason."""
    tls: TlsServer | None = attrs.field(init=False)
    """What it shows those who speak TLS to it; likewise."""
    _accepting: dict[str, Acceptor] = attrs.field(factory=dict)
    _pending: dict[str, socket.socket] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None
    _retire: trio.Event = attrs.field(factory=trio.Event)
    _ended: trio.Event = attrs.field(factory=trio.Event)
    _empty: trio.Event = attrs.field(factory=trio.Event)
    """Set when a connection ends, for whoever waits for the last one."""
    _drain: float = 0.0
    _quiet_until: float = -math.inf
    _http: HttpListener | None = None
    _arrives: bool = False
    """Its connections have to arrive before they are served (arrival.py)."""

    def __attrs_post_init__(self) -> None:
        self._follow()

    def _follow(self) -> None:
        self.snapshot = self.plane.snapshot
        self.tls = self.plane.tls.get(self.plan.name)
        spec, known = self.plan.spec, self.plane.runtime.upstreams
        self._arrives = needs_arrival(self.plan)
        names = (spec.upstream or "", *spec.sni.values(), *spec.alpn.values()) if spec.protocol == "tcp" else ()
        self.upstreams = {name: known[name] for name in names if name in known}
        if spec.protocol == "http":
            self._http = HttpListener(self.plane, self.plan) if self._http is None else self._http.renew(self.plan)

    async def run(self) -> None:
        """Accept until retired, then wait for the open connections or the end of their drain."""
        try:
            async with trio.open_nursery() as open_connections:
                self._nursery = open_connections
                try:
                    self._start_accepting()
                    await self._retire.wait()
                    self._ask_to_leave(trio.current_time())
                    # Connections have their own deadlines; this is the wall behind them.
                    open_connections.cancel_scope.deadline = trio.current_time() + self._drain + 1
                    while self.connections:
                        self._empty = trio.Event()
                        await self._empty.wait()
                finally:  # cancelled: those in the lane hear of it here, while there may still be tasks
                    self._stop()
        finally:
            self._stop()  # those that were with a task until now
            self._ended.set()

    def _stop(self) -> None:
        self._stop_accepting()
        for connection in list(self.connections):
            connection.stop()

    def renew(self, plan: ListenerPlan, sockets: Mapping[str, socket.socket]) -> None:
        """Take a generation's plan: new connections follow it, addresses are added and removed."""
        self.plan = plan
        self._follow()
        for bind in self._accepting.keys() - sockets.keys():
            self._accepting.pop(bind).stop()
        for bind, sock in sockets.items():
            if bind not in self._accepting:
                self._pending[bind] = sock
        if self._nursery is not None:
            self._start_accepting()

    def retire(self, drain: float) -> None:
        """Stop accepting now; what is open may end within `drain` seconds."""
        self._drain = drain
        self._stop_accepting()
        self._pending.clear()
        self._retire.set()

    def accept_rest(self, sockets: Iterable[socket.socket]) -> None:
        """Take what waits in the backlogs of addresses that are about to be closed: the close would reset it."""
        if self._nursery is None or self._ended.is_set():
            return  # never began to accept, or is gone: some other listener, or process, has these addresses
        for sock in sockets:
            # accept(2) hands on network errors of single connections too, so one more try is never wrong; the bound is
            # for a flood.
            with contextlib.suppress(OSError):
                port = port_of(sock.getsockname())
                for _ in range(self.plan.spec.backlog):
                    accepted, sockaddr = sock.accept()
                    accepted.setblocking(False)
                    self.accepted(accepted, sockaddr, port)

    async def wait_ended(self) -> None:
        """Returns once every connection is gone."""
        await self._ended.wait()

    def _start_accepting(self) -> None:
        for bind, sock in self._pending.items():
            acceptor = self._accepting[bind] = Acceptor(self.plane.lane, sock, self)
            acceptor.begin()
        self._pending.clear()

    def _stop_accepting(self) -> None:
        for acceptor in self._accepting.values():
            acceptor.stop()
        self._accepting.clear()

    # -- what its acceptors ask of it -------------------------------------------------------------------------------

    def room(self) -> int:
        """How many connections until this worker has more than its share of all workers' connections."""
        workers = self.plane.workers
        if workers == 1:
            return BATCH
        meter = self.plane.runtime.meter
        share = meter.shared.total(WORKER_CONNECTIONS, meter.processes) / workers
        return math.floor(share + max(1.0, share / 16) - self.plane.page[WORKER_CONNECTIONS]) + 1

    def cannot_accept(self, exc: OSError) -> None:
        """Told every 100 ms while it lasts; people hear of it now and then, or the journal would hold nothing else."""
        now = trio.current_time()
        if now < self._quiet_until:
            return
        self._quiet_until = now + ACCEPT_TOLD_EVERY
        self.plane.tell(
            "accept_backoff",
            "warning",
            f"listener {self.plan.name} cannot accept: {exc.strerror}; trying again every 100 ms. Raise LimitNOFILE, "
            "or lower max_connections",
            {"listener": self.plan.name},
        )

    def accepted(self, sock: socket.SocketType, sockaddr: SocketAddress, port: int | None) -> None:
        """A connection came in, to our `port`: serve it, unless there is no room."""
        plan, page = self.plan, self.plane.page
        page[plan.block + LISTENER_ACCEPTED] += 1
        page[WORKER_ACCEPTED] += 1
        if self._open_everywhere() >= plan.spec.max_connections:
            self._refuse(sock, sockaddr)
            return
        page[plan.block + LISTENER_CONNECTIONS] += 1
        page[WORKER_CONNECTIONS] += 1
        connection: Connection | None = None
        try:
            connection = self._connection(sock, sockaddr, port)
            self.connections.add(connection)
            if self._retire.is_set():
                connection.leave()
                connection.cut_by(trio.current_time() + self._drain)
            connection.begin()
        except Exception as exc:  # a bug, or the user's allowance of epoll watches, must cost one connection
            if isinstance(exc, OSError):
                self.cannot_accept(exc)
            else:
                log.exception("a connection could not begin: listener=%s", plan.name)
            self._drop(connection, sock)

    # -- connections ------------------------------------------------------------------------------------------------

    def _connection(self, sock: socket.SocketType, sockaddr: SocketAddress, port: int | None) -> Connection:
        if self._arrives:
            return Arrival(self, sock, sockaddr, port)
        if self._http is not None:
            return HttpRider(self, self._http, sock, sockaddr, port)
        return self._flow(sock, sockaddr, self.upstreams[self.plan.spec.upstream or ""], None)

    def _flow(
        self, sock: socket.SocketType, sockaddr: SocketAddress, upstream: UpstreamRuntime, arrived: Arrived | None
    ) -> Connection:
        if self.snapshot.config.gateway.lane:
            return LaneFlow(self, self.plane.lane, sock, sockaddr, upstream, arrived)
        stream = Stream(sock=sock, side=Side.CLIENT, peer=describe(sockaddr))
        return TcpConnection(self, stream, number_of(sockaddr), upstream, arrived)

    def _settled(self, sock: socket.SocketType, arrived: Arrived, http2: bool) -> Connection:
        """What a connection becomes that has arrived."""
        if http2:
            assert self._http is not None
            return Http2Connection(self, self._http, sock, arrived)
        if self._http is not None:
            return HttpRider(self, self._http, sock, arrived.sockaddr, arrived.port, arrived)
        return self._flow(sock, arrived.sockaddr, self._upstream_of(arrived), arrived)

    def _upstream_of(self, arrived: Arrived) -> UpstreamRuntime:
        """Of a tcp listener: where this client goes. What was agreed on with it counts before what it offered."""
        hello = arrived.hello or ClientHello()
        agreed = [arrived.tls.alpn] if arrived.tls is not None and arrived.tls.alpn else hello.alpn
        found = self.upstream_for(hello.server_name, agreed) or self.upstream_for(hello.server_name, hello.alpn)
        if found is None:
            raise LookupError("a reload has just taken its upstream away")
        return found

    def _drop(self, connection: Connection | None, sock: socket.SocketType) -> None:
        """A connection that did not come to begin, or not wholly."""
        if connection is not None:
            connection.stop()
        if connection is None or connection in self.connections:
            self.connections.discard(connection)
            page = self.plane.page
            page[self.plan.block + LISTENER_CONNECTIONS] -= 1
            page[WORKER_CONNECTIONS] -= 1
            self._empty.set()
        sock.close()

    # -- what its connections ask of it -----------------------------------------------------------------------------

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task in the nursery of open connections."""
        assert self._nursery is not None
        self._nursery.start_soon(work)

    def upstream_for(self, name: str, alpn: Sequence[str]) -> UpstreamRuntime | None:
        """Of a tcp listener: where a client goes that asks for the server `name` and offers these protocols."""
        spec, known = self.plan.spec, self.upstreams
        for protocol in alpn:
            if (upstream := known.get(spec.alpn.get(protocol, ""))) is not None:
                return upstream
        while name:
            if (upstream := known.get(spec.sni.get(name, ""))) is not None:
                return upstream
            _, _, name = name.removeprefix("*.").partition(".")
            name = name and f"*.{name}"  # a wildcard is for any depth, as a route's is
        return known.get(spec.upstream or "")

    def settle(self, arrival: Leaving, sock: socket.SocketType, arrived: Arrived, http2: bool) -> None:
        """`arrival` is over and gone from the lane: another connection begins in its place, over `sock`."""
        if arrived.peer is not None:
            log.debug("arrived: client=%s by=%s", describe(arrived.sockaddr), describe(arrived.peer))
        connection: Connection | None = None
        try:
            connection = self._settled(sock, arrived, http2)
            self.connections.add(connection)
            self.connections.discard(arrival)
            if arrival.is_leaving or self._retire.is_set():
                connection.leave()
            connection.cut_by(arrival.cut_at)
            connection.begin()
        except Exception as exc:  # as in `accepted`
            if isinstance(exc, OSError):
                self.cannot_accept(exc)
            else:
                log.exception("a connection could not begin: listener=%s", self.plan.name)
            self.connections.discard(arrival)
            if connection is None:  # it still counts for the one that arrived
                self.ended(arrival)
                sock.close()
            else:
                self._drop(connection, sock)

    def ended(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        page = self.plane.page
        page[self.plan.block + LISTENER_CONNECTIONS] -= 1
        page[WORKER_CONNECTIONS] -= 1
        self._empty.set()

    def _open_everywhere(self) -> int:
        meter = self.plane.runtime.meter
        return meter.shared.total(self.plan.block + LISTENER_CONNECTIONS, meter.processes)

    def _refuse(self, sock: socket.SocketType, sockaddr: SocketAddress) -> None:
        """No room: say so in one send that cannot block, close, and write it down. Over TLS there is no saying so
        without a handshake, which is what there may be no room for."""
        plan, plane = self.plan, self.plane
        plane.page[plan.block + LISTENER_REFUSED] += 1
        record = AccessRecord(
            ts=plane.wall(),
            id=plane.new_id(),
            listener=plan.name,
            client=str(number_of(sockaddr) or "unix"),
            peer=describe(sockaddr),
            proto=plan.spec.protocol,
            reason=Reason.CONNECTION_LIMIT,
            rule=f"listeners.{plan.name}.max_connections",
            detail=f"{plan.spec.max_connections} connections are open",
            generation=plane.snapshot.generation,
        )
        if plan.spec.protocol == "http" and plan.spec.tls is None:
            record.status = REASONS[Reason.CONNECTION_LIMIT].status
            with contextlib.suppress(OSError):  # it left already; there is nobody to tell
                sock.send(answer.refusal(record.id))
        sock.close()
        plane.write(record)

    def _ask_to_leave(self, now: float) -> None:
        """Idle ones go now, busy ones when they are done, long-lived ones spread over the drain so that their clients
        do not all come back in the same instant."""
        connections = list(self.connections)
        long = [connection for connection in connections if connection.is_long]
        for connection in connections:
            connection.leave()
            connection.cut_by(now + self._drain)
        for index, connection in enumerate(long, 1):
            connection.cut_by(now + self._drain * index / len(long))
