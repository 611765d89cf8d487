"""What every connection of a worker works with: the generation, the runtime, the record's way out, time and chance.

One object per worker, passed down as an argument. Everything on it is synchronous.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs

from tcpgate.codec.express import ResponseHeads
from tcpgate.codec.hop import http_date
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.errors import Reason
from tcpgate.net.lane import Lane
from tcpgate.net.pipes import PipePool
from tcpgate.net.resolve import Resolver
from tcpgate.net.tls_client import Contexts
from tcpgate.net.tls_server import TlsServer
from tcpgate.proxy.ledger import Ledger
from tcpgate.proxy.pool import UpstreamConnection
from tcpgate.state.runtime import ACTIVE, CONNECTIONS, EndpointRuntime, Runtime
from tcpgate.state.snapshot import LISTENER_BYTES_IN, LISTENER_BYTES_OUT, LISTENER_EXCHANGES, Snapshot
from tcpgate.stats import plain
from tcpgate.stats.page import WORKER_FIELDS
from tcpgate.stats.record import AccessRecord

WORKER_CONNECTIONS = WORKER_FIELDS.index("connections")
WORKER_ACCEPTED = WORKER_FIELDS.index("accepted")
WORKER_EXCHANGES = WORKER_FIELDS.index("exchanges")
WORKER_CUT = WORKER_FIELDS.index("cut")
WORKER_LANE_EXCHANGES = WORKER_FIELDS.index("lane_exchanges")
WORKER_LANE_HANDED = WORKER_FIELDS.index("lane_handed")
WORKER_LANE_FAULTS = WORKER_FIELDS.index("lane_faults")
WORKER_BYTES_IN = WORKER_FIELDS.index("bytes_in")
WORKER_BYTES_OUT = WORKER_FIELDS.index("bytes_out")

SHAKES = 4
"""Steps of TLS handshakes in one turn of the lane: each may cost a millisecond, and the others wait."""

Tell = Callable[[str, str, str, Mapping[str, str | int | float]], None]
"""(kind, level, text, facts), for the event journal."""
Start = Callable[[Callable[[], Awaitable[None]]], None]
"""Begins a task."""


@attrs.define(eq=False, kw_only=True)
class Plane:
    """One worker's data plane."""

    snapshot: Snapshot
    """The generation that serves; a commit swaps it. Read it once per exchange."""
    runtime: Runtime
    page: memoryview
    """This worker's page: the only one that it writes."""
    write: Callable[[AccessRecord], None]
    """The access log; never blocks."""
    tell: Tell
    resolver: Resolver
    pipes: PipePool
    rng: random.Random
    wall: Callable[[], float]
    """Seconds since the epoch, for records."""
    name: bytes
    """The gateway's pseudonym in Via, by which it knows a request that comes round in a circle."""
    lane: Lane
    """What moves plain exchanges, and watches idle upstream connections."""
    start: Start
    """Begins a task of the worker's own: for connections to endpoints that outlive the exchanges which share them."""
    workers: int = 1
    """How many workers share the listeners now."""
    write_lines: Callable[[Sequence[bytes]], None] = attrs.field(kw_only=True)
    """The same for access lines that are rendered already."""
    contexts: Contexts = attrs.field(factory=Contexts)
    """For TLS with endpoints."""
    answers: ResponseHeads = attrs.field(factory=ResponseHeads)
    """What the lane has learnt of endpoints' answers."""
    lines: HpackOut = attrs.field(factory=HpackOut)
    """Header lines of HTTP/2 that were written before."""
    via: bytes = attrs.field(init=False)
    """The field lines that end every answer's head but for its framing, up to the request id."""
    ledgers: list[Ledger] = attrs.field(factory=list)
    """Those in which this turn of the lane has entered something."""
    tls: Mapping[str, TlsServer] = attrs.field(factory=dict)
    """What the newest generation's listeners show those who speak TLS, by listener."""
    _date: tuple[int, bytes] = (0, b"")
    _stamp: tuple[int, bytes] = (-1, b"")
    _shakes: tuple[int, int] = (-1, 0)
    """Turn of the lane, and the steps of handshakes in it."""

    def __attrs_post_init__(self) -> None:
        self.lane.at_end_of_turn = self.close_ledgers
        self.via = b"Via: 1.1 %b\r\nX-Request-Id: " % self.name

    def new_id(self) -> str:
        """A request id: 32 hexadecimal digits, as W3C trace ids have."""
        return f"{self.rng.getrandbits(128):032x}"

    def close_ledgers(self) -> None:
        """The books of what has ended in this turn of the lane."""
        for ledger in self.ledgers:
            ledger.close()
        self.ledgers.clear()

    def close_books(self, block: int, record: AccessRecord) -> None:
        """What all records have in common, of exchanges and of flows: the worker's and the listener's counters, the
        line. `block`: the listener's."""
        self.count(block, record.bytes_in, record.bytes_out)
        if record.reason is Reason.DRAINED:
            self.page[WORKER_CUT] += 1
        self.write(record)

    def count(self, block: int, bytes_in: int, bytes_out: int, n: int = 1) -> None:
        """So many exchanges or flows more, of the worker and of the listener whose `block` it is."""
        page = self.page
        page[WORKER_EXCHANGES] += n
        page[WORKER_BYTES_IN] += bytes_in
        page[WORKER_BYTES_OUT] += bytes_out
        page[block + LISTENER_EXCHANGES] += n
        page[block + LISTENER_BYTES_IN] += bytes_in
        page[block + LISTENER_BYTES_OUT] += bytes_out

    def stamp(self) -> bytes:
        """The beginning of an access line that is written now; the same for all of one turn of the lane."""
        if self._stamp[0] != self.lane.turns:
            self._stamp = (self.lane.turns, plain.stamp_of(self.wall()))
        return self._stamp[1]

    def may_shake(self) -> bool:
        """Whether there is time for a step of a TLS handshake in this turn of the lane; if not, the next one tells its
        socket's readiness again."""
        turn, steps = self._shakes
        if turn != self.lane.turns:
            turn, steps = self.lane.turns, 0
        self._shakes = turn, steps + 1
        return steps < SHAKES

    def date(self) -> bytes:
        """The time for a Date field, made once a second."""
        now = int(self.wall())
        if self._date[0] != now:
            self._date = (now, http_date(now))
        return self._date[1]

    def sweep(self, now: float) -> None:
        """Close idle upstream connections that are dead or too old; forget retired endpoints that are done."""
        for endpoint in list(self.runtime.endpoints()):
            self._sweep_idle(endpoint, now)
            page, block = self.page, endpoint.block
            if endpoint.retired and not page[block + ACTIVE] and not page[block + CONNECTIONS]:
                self.runtime.forget(endpoint)

    def _sweep_idle(self, endpoint: EndpointRuntime, now: float) -> None:
        for _ in range(len(endpoint.idle)):
            connection = endpoint.idle.popleft()
            assert isinstance(connection, UpstreamConnection)
            if now - connection.idle_since > endpoint.limits.idle_timeout or not connection.alive():
                connection.close()
            else:
                endpoint.idle.append(connection)
