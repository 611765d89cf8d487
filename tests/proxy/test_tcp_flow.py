"""The life of a TCP flow: which endpoint, how often, what is fed back, and the one record at its end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Container, Iterator
from contextlib import ExitStack

import attrs
import pytest
import trio

from tcpgate.config.schema import ClientTimeouts, RetryPolicy, UpstreamTimeouts
from tcpgate.errors import Reason, Side, UpstreamError
from tcpgate.net.pipes import PipePool
from tcpgate.net.relay import Flow, RelayOutcome
from tcpgate.net.resolve import Resolver
from tcpgate.net.stream import Stream
from tcpgate.proxy.tcp import FlowRecord, FlowService, serve_flow
from tcpgate.units import EndpointAddress, Seconds, parse_endpoint
from tests.net.loopback import Loopback
from tests.net.rig import End


@attrs.define(eq=False)
class FakeEndpoint:
    """An address that keeps a diary."""

    name: str
    diary: list[str] = attrs.field(factory=list)
    active: int = 0
    moved: list[int] = attrs.field(factory=lambda: [0, 0])
    outcome: RelayOutcome | None = None

    @property
    def address(self) -> EndpointAddress:
        """Its name, meant."""
        return parse_endpoint(self.name)


@attrs.define(eq=False)
class FakeUpstream:
    """Picks the first endpoint that is not in the skip set."""

    endpoints: list[FakeEndpoint]
    retry: RetryPolicy = attrs.field(factory=RetryPolicy)
    timeouts: UpstreamTimeouts = attrs.field(factory=lambda: UpstreamTimeouts(connect=Seconds(0.1)))
    keys: list[int] = attrs.field(factory=list)
    name: str = "pg"

    def why_none(self) -> str:
        return "a is down"

    def pick(self, key: int, skip: Container[str], now: float) -> FakeEndpoint | None:
        """The first that may be had."""
        assert 0 <= trio.current_time() - now < 20
        self.keys.append(key)
        return next((endpoint for endpoint in self.endpoints if endpoint.name not in skip), None)

    def begin(self, endpoint: FakeEndpoint) -> None:
        """One more in flight."""
        endpoint.active += 1

    def end(self, endpoint: FakeEndpoint) -> None:
        """One less."""
        endpoint.active -= 1

    def connected(self, endpoint: FakeEndpoint, seconds: float, now: float) -> None:
        """Noted."""
        assert 0 <= seconds <= now
        endpoint.diary.append("connected")

    def connect_failed(self, endpoint: FakeEndpoint, cause: UpstreamError, now: float) -> None:
        """Noted."""
        assert 0 <= trio.current_time() - now < 20
        endpoint.diary.append(str(cause.reason))

    def moved(self, endpoint: FakeEndpoint, to_endpoint: int, from_endpoint: int) -> None:
        """Added up."""
        endpoint.moved[0] += to_endpoint
        endpoint.moved[1] += from_endpoint

    def flow_ended(self, endpoint: FakeEndpoint, outcome: RelayOutcome, now: float) -> None:
        """Kept."""
        assert 0 <= trio.current_time() - now < 20
        endpoint.outcome = outcome


@attrs.define(eq=False)
class Gate:
    """A tcp listener's flows over real sockets, with its endpoints."""

    loopback: Loopback
    pipes: PipePool
    records: list[FlowRecord] = attrs.field(factory=list)
    flows: set[Flow] = attrs.field(factory=set)

    def healthy(self) -> tuple[FakeEndpoint, socket.socket]:
        """An endpoint that accepts, and its listener."""
        listener = self.loopback.listener()
        return FakeEndpoint("{}:{}".format(*listener.getsockname())), listener

    def closed(self) -> FakeEndpoint:
        """An endpoint that refuses."""
        return FakeEndpoint(f"127.0.0.1:{self.loopback.refusing_port()}")

    def deaf(self) -> FakeEndpoint:
        """An endpoint that never answers a SYN: its backlog is full."""
        listener = self.loopback.listener(backlog=0)
        for _ in range(3):
            client = self.loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            assert client.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
        return FakeEndpoint("{}:{}".format(*listener.getsockname()))

    def client(self) -> tuple[Stream, End]:
        """A downstream connection, and the client at its other end."""
        downstream, client = self.loopback.stream(Side.CLIENT)
        return downstream, End(client)

    def service(self, upstream: FakeUpstream, timeouts: ClientTimeouts | None = None) -> FlowService[FakeEndpoint]:
        """What the flows of the listener share."""
        return FlowService(
            listener="db",
            upstream=upstream,
            timeouts=timeouts or ClientTimeouts(),
            resolver=Resolver(),
            pipes=self.pipes,
            record=self.records.append,
            flows=self.flows,
        )

    def record(self) -> FlowRecord:
        """The one record that there is."""
        (record,) = self.records
        assert not self.flows
        return record


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A listener of its own."""
    with ExitStack() as stack:
        pipes = PipePool()
        yield Gate(Loopback(stack), pipes)
        pipes.close()
        assert pipes.made == 0


async def accepted(gate: Gate, listener: socket.socket) -> End:
    """The next connection, from the endpoint's side."""
    await trio.lowlevel.wait_readable(listener)
    sock = gate.loopback.own(listener.accept()[0])
    sock.setblocking(False)
    return End(trio.socket.from_stdlib_socket(sock))


async def test_a_flow_is_relayed_and_told_once(gate: Gate) -> None:
    endpoint, listener = gate.healthy()
    upstream = FakeUpstream([endpoint])
    downstream, client = gate.client()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_flow(downstream, gate.service(upstream), key=42, first=b"peeked ")

        nursery.start_soon(serve)
        await client.send(b"question")
        client.finish()
        server = await accepted(gate, listener)
        assert await server.rest() == b"peeked question"
        assert endpoint.active == 1
        assert len(gate.flows) == 1
        await server.send(b"answer")
        server.sock.close()
        assert await client.rest() == b"answer"
    record = gate.record()
    assert (record.listener, record.upstream, record.endpoint) == ("db", "pg", endpoint.name)
    assert (record.ended_by, record.reason) == (Side.CLIENT, Reason.OK)
    assert (record.bytes_in, record.bytes_out) == (15, 6)
    assert endpoint.moved == [15, 6]
    assert [(one.endpoint, one.reason) for one in record.attempts] == [(endpoint.name, Reason.OK)]
    assert record.client == downstream.peer
    assert record.seconds >= record.attempts[0].seconds >= 0
    assert endpoint.diary == ["connected"]
    assert endpoint.active == 0
    assert endpoint.outcome is not None
    assert endpoint.outcome.reason is Reason.OK
    assert upstream.keys == [42]


async def test_failed_connects_go_to_other_endpoints_before_a_byte_is_lost(gate: Gate) -> None:
    refusing, silent = gate.closed(), gate.deaf()
    endpoint, listener = gate.healthy()
    downstream, client = gate.client()
    await client.send(b"question")
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_flow(downstream, gate.service(FakeUpstream([refusing, silent, endpoint])), key=1)

        nursery.start_soon(serve)
        server = await accepted(gate, listener)
        assert await server.exactly(8) == b"question"
        assert (refusing.active, silent.active, endpoint.active) == (0, 0, 1)
        server.sock.close()
        assert await client.rest() == b""
        client.finish()
    record = gate.record()
    assert [(one.endpoint, one.reason) for one in record.attempts] == [
        (refusing.name, Reason.CONNECT_REFUSED),
        (silent.name, Reason.CONNECT_TIMEOUT),
        (endpoint.name, Reason.OK),
    ]
    assert record.attempts[1].seconds >= 0.1
    assert record.attempts[0].detail == f"{refusing.name}: ECONNREFUSED"
    assert (refusing.diary, silent.diary) == (["connect_refused"], ["connect_timeout"])
    assert (record.reason, record.ended_by) == (Reason.OK, Side.UPSTREAM)


async def test_without_an_endpoint_the_client_is_reset_at_once(gate: Gate) -> None:
    downstream, client = gate.client()
    await serve_flow(downstream, gate.service(FakeUpstream([])), key=1)
    assert await client.is_reset()
    record = gate.record()
    assert (record.reason, record.ended_by, record.attempts) == (Reason.NO_ENDPOINT, Side.GATEWAY, ())
    assert record.endpoint == ""


async def test_when_every_endpoint_refuses_the_last_refusal_is_the_reason(gate: Gate) -> None:
    endpoints = [gate.closed(), gate.closed()]
    downstream, client = gate.client()
    await serve_flow(downstream, gate.service(FakeUpstream(endpoints)), key=1)
    assert await client.is_reset()
    record = gate.record()
    assert (record.reason, record.ended_by) == (Reason.CONNECT_REFUSED, Side.UPSTREAM)
    assert [one.endpoint for one in record.attempts] == [one.name for one in endpoints]
    assert [one.active for one in endpoints] == [0, 0]


async def test_no_more_attempts_are_made_than_the_policy_allows(gate: Gate) -> None:
    endpoints = [gate.closed() for _ in range(3)]
    downstream, _ = gate.client()
    await serve_flow(downstream, gate.service(FakeUpstream(endpoints, RetryPolicy(attempts=2))), key=1)
    assert len(gate.record().attempts) == 2
    assert endpoints[2].diary == []


async def test_a_flow_that_has_begun_is_not_tried_again(gate: Gate) -> None:
    endpoint, listener = gate.healthy()
    other, _ = gate.healthy()
    downstream, client = gate.client()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_flow(downstream, gate.service(FakeUpstream([endpoint, other])), key=1)

        nursery.start_soon(serve)
        server = await accepted(gate, listener)
        await server.send(b"x")
        await client.exactly(1)
        server.reset()
        assert await client.is_reset()
    record = gate.record()
    assert (record.reason, record.ended_by) == (Reason.UPSTREAM_CLOSED, Side.UPSTREAM)
    assert other.diary == []


async def test_an_idle_flow_and_a_long_one_end_by_the_listeners_times(gate: Gate) -> None:
    endpoint, listener = gate.healthy()
    idle = ClientTimeouts(idle=Seconds(0.05))
    total = ClientTimeouts(total=Seconds(0.05))
    for timeouts in (idle, total):
        downstream, _ = gate.client()
        await serve_flow(downstream, gate.service(FakeUpstream([endpoint]), timeouts), key=1)
        await accepted(gate, listener)
    assert [record.reason for record in gate.records] == [Reason.IDLE_TIMEOUT, Reason.EXCHANGE_TIMEOUT]


async def test_a_drain_can_cut_a_flow_through_the_set_of_open_ones(gate: Gate) -> None:
    endpoint, listener = gate.healthy()
    downstream, client = gate.client()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_flow(downstream, gate.service(FakeUpstream([endpoint])), key=1)

        nursery.start_soon(serve)
        await client.send(b"x")
        server = await accepted(gate, listener)
        await server.exactly(1)
        for flow in gate.flows:
            flow.cut(Reason.DRAINED)
        assert await client.is_reset()
        assert await server.is_reset()
    record = gate.record()
    assert (record.reason, record.ended_by, record.bytes_in) == (Reason.DRAINED, Side.GATEWAY, 1)


@pytest.mark.parametrize("phase", ["dialling", "relaying"])
async def test_a_cancelled_flow_is_told_too_and_counts_nothing_in_flight(gate: Gate, phase: str) -> None:
    endpoint = gate.deaf() if phase == "dialling" else gate.healthy()[0]
    upstream = FakeUpstream([endpoint], timeouts=UpstreamTimeouts(connect=Seconds(9)))
    downstream, client = gate.client()
    with trio.move_on_after(0.05) as scope:
        await serve_flow(downstream, gate.service(upstream), key=1)
    assert scope.cancelled_caught
    record = gate.record()
    assert (record.reason, record.ended_by) == (Reason.DRAINED, Side.GATEWAY)
    assert record.endpoint == ("" if phase == "dialling" else endpoint.name)
    assert endpoint.active == 0
    assert await client.is_reset()


async def test_a_bug_is_told_as_one_and_leaves(gate: Gate) -> None:
    @attrs.define(eq=False)
    class Broken(FakeUpstream):
        def pick(self, key: int, skip: Container[str], now: float) -> FakeEndpoint | None:
            raise ZeroDivisionError(f"{key} {skip} {now}")

    downstream, client = gate.client()
    with pytest.raises(ZeroDivisionError):
        await serve_flow(downstream, gate.service(Broken([])), key=1)
    assert gate.record().reason is Reason.BUG
    assert await client.is_reset()
