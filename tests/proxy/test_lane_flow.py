"""A tcp listener's flows, in the lane and in tasks: every reason, every end, every counter the same."""

from __future__ import annotations

import gc
import hashlib
import random
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcpgate.errors import Reason, Side
from tcpgate.net.address import Target
from tcpgate.net.relay import BULKY_AFTER
from tcpgate.net.resolve import Resolver
from tcpgate.proxy.lane_flow import LaneFlow
from tcpgate.stats.record import AccessRecord
from tcpgate.stats.totals import worker_figures
from tests.net.loopback import HELD, Loopback
from tests.net.rig import End
from tests.plane import TestPlane, serving

MIB = 1 << 20

TEXT = """
[listeners.db]
protocol = "tcp"
bind = ["127.0.0.1:0"]
upstream = "pg"
timeouts = {{ idle = "{idle}", total = "{total}" }}
[upstreams.pg]
balance = "first"
timeouts.connect = "{connect}"
retry.attempts = {attempts}
endpoints = [{endpoints}]
[gateway]
drain = "200ms"
lane = {lane}
"""


@attrs.define(eq=False)
class Stage:
    """A plane with one tcp listener, and the hands around it."""

    loopback: Loopback
    plane: TestPlane
    text: str

    async def client(self) -> End:
        """A new client, connected."""
        sock = self.loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        sock.connect_ex(("127.0.0.1", self.plane.port("db")))
        await trio.lowlevel.wait_writable(sock)  # it may have been reset already: the first use tells
        return End(trio.socket.from_stdlib_socket(sock))

    async def server(self, listener: socket.socket) -> End:
        """The next connection of an endpoint, from its side."""
        await trio.lowlevel.wait_readable(listener)
        sock = self.loopback.own(listener.accept()[0])
        sock.setblocking(False)
        return End(trio.socket.from_stdlib_socket(sock))

    async def pair(self, listener: socket.socket) -> tuple[End, End]:
        """The two ends of a flow through which a byte has gone."""
        client = await self.client()
        await client.send(b"!")
        server = await self.server(listener)
        assert await server.exactly(1) == b"!"
        return client, server

    async def over(self, count: int = 1) -> AccessRecord:
        """The newest of so many records, once nothing is left of any flow."""
        record = await self.plane.record(count)
        with trio.fail_after(30):
            while self.plane.servers["db"].connections:
                await trio.sleep(0.002)
        assert len(self.plane.records) == count
        assert self.plane.counts("listener", "db")["connections"] == 0
        for endpoint in self.plane.plane.runtime.endpoints():
            counts = self.plane.counts("endpoint", f"pg/{endpoint.name}")
            assert (counts["active"], counts["connections"]) == (0, 0), endpoint.name
            assert not endpoint.flows
        lane, listening = self.plane.plane.lane, len(self.plane.servers["db"]._accepting)
        assert (len(lane), len(lane.timed)) == (listening, 0)
        return record


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """A maker of sockets."""
    with ExitStack() as stack:
        yield Loopback(stack)


@pytest.fixture(params=["lane", "task"])
def way(request: pytest.FixtureRequest) -> str:
    """Where the flows live."""
    return str(request.param)


def named(endpoint: object) -> str:
    """An endpoint as the config writes it: a listener, a port or an address."""
    if isinstance(endpoint, socket.socket):
        endpoint = endpoint.getsockname()[1]
    return f'"{endpoint}"' if ":" in str(endpoint) else f'"127.0.0.1:{endpoint}"'


@asynccontextmanager
async def stage(
    folder: Path,
    loopback: Loopback,
    way: str,
    *endpoints: object,
    idle: str = "30s",
    total: str = "60s",
    connect: str = "300ms",
    attempts: int = 3,
) -> AsyncIterator[Stage]:
    """A tcp listener before these endpoints, its flows in the lane or in tasks."""
    text = TEXT.format(
        endpoints=", ".join(map(named, endpoints)),
        idle=idle,
        total=total,
        connect=connect,
        attempts=attempts,
        lane=str(way == "lane").lower(),
    )
    async with serving(folder, text) as plane:
        yield Stage(loopback, plane, text)


def refusing(loopback: Loopback) -> int:
    """A port that refuses."""
    return loopback.refusing_port()


def deaf(loopback: Loopback) -> int:
    """The port of a listener that answers no SYN: its backlog is full."""
    listener = loopback.listener(backlog=0)
    for _ in range(3):
        client = loopback.own(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        client.connect_ex(listener.getsockname())
    port: int = listener.getsockname()[1]
    return port


# -- good ends ------------------------------------------------------------------------------------------------------


async def test_a_flow_is_relayed_and_told_once(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client = await at.client()
        peer = "{}:{}".format(*client.sock.getsockname())
        await client.send(b"question")
        client.finish()
        server = await at.server(listener)
        assert await server.rest() == b"question"
        name = named(listener).strip('"')
        assert at.plane.counts("endpoint", f"pg/{name}")["active"] == 1
        await server.send(b"answer")
        server.sock.close()
        assert await client.rest() == b"answer"
        record = await at.over()
        counts = at.plane.counts("endpoint", f"pg/{name}")
        flows, worker = at.plane.counts("listener", "db"), worker_figures(at.plane.shared, 1)
    assert (worker["exchanges"], worker["lane_exchanges"]) == (1, int(way == "lane"))
    assert (record.listener, record.upstream, record.endpoint, record.proto) == ("db", "pg", name, "tcp")
    assert (record.answered_by, record.reason, record.detail) == (Side.CLIENT, Reason.OK, "")
    assert (record.bytes_in, record.bytes_out) == (8, 6)
    assert (record.client, record.peer, record.rule, record.generation) == ("127.0.0.1", peer, "listeners.db", 1)
    assert [(one.endpoint, one.reason) for one in record.attempts] == [(name, Reason.OK)]
    assert record.t.total >= record.t.connect == pytest.approx(record.attempts[0].ms / 1000)
    assert len(record.id) == 32
    assert (counts["attempts"], counts["connects"], counts["answers_good"]) == (1, 1, 1)
    assert (counts["bytes_out"], counts["bytes_in"]) == (8, 6)
    assert (flows["exchanges"], flows["bytes_in"], flows["bytes_out"]) == (1, 8, 6)


async def test_a_server_that_ends_first_still_hears_its_client(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client, server = await at.pair(listener)
        await server.send(b"greeting")
        server.finish()
        assert await client.rest() == b"greeting"
        await client.send(b"last words")
        client.finish()
        assert await server.rest() == b"last words"
        record = await at.over()
    assert (record.answered_by, record.reason) == (Side.UPSTREAM, Reason.OK)
    assert (record.bytes_in, record.bytes_out) == (11, 8)


async def test_a_flow_without_a_byte_ends_well(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client = await at.client()
        client.finish()
        server = await at.server(listener)
        assert await server.rest() == b""
        server.finish()
        assert await client.rest() == b""
        assert (await at.over()).reason is Reason.OK


async def test_a_byte_counter_is_up_to_date_while_the_flow_is_open(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        _, server = await at.pair(listener)
        await server.send(b"12345")
        series = f"pg/{named(listener)}".replace('"', "")
        with trio.fail_after(30):
            while at.plane.counts("endpoint", series)["bytes_in"] < 5:
                await trio.sleep(0.005)
        assert at.plane.counts("endpoint", series)["bytes_out"] == 1


async def test_a_flow_that_is_over_leaves_nothing_for_the_collector(tmp_path: Path, loopback: Loopback) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, "lane", listener) as at:
        gc.collect()
        gc.disable()
        try:
            client, server = await at.pair(listener)
            client.finish()
            server.sock.close()
            await at.over()
            left = [one for one in gc.get_objects() if str(type(one).__module__).startswith("tcpgate.net.lane_relay")]
            left += [one for one in gc.get_objects() if isinstance(one, LaneFlow)]
        finally:
            gc.enable()
    assert not left


# -- connecting -----------------------------------------------------------------------------------------------------


async def test_failed_connects_go_to_other_endpoints_before_a_byte_is_lost(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    closed, silent, listener = refusing(loopback), deaf(loopback), loopback.listener()
    async with stage(tmp_path, loopback, way, closed, silent, listener) as at:
        client = await at.client()
        await client.send(b"question that nobody has asked for yet")
        server = await at.server(listener)
        assert await server.exactly(38) == b"question that nobody has asked for yet"
        server.sock.close()
        client.finish()
        assert await client.rest() == b""
        record = await at.over()
        failures = [
            at.plane.counts("endpoint", f"pg/127.0.0.1:{port}")["connect_failures"] for port in (closed, silent)
        ]
    assert [(one.endpoint, one.reason) for one in record.attempts] == [
        (f"127.0.0.1:{closed}", Reason.CONNECT_REFUSED),
        (f"127.0.0.1:{silent}", Reason.CONNECT_TIMEOUT),
        (named(listener).strip('"'), Reason.OK),
    ]
    assert record.attempts[1].ms >= 300
    assert failures == [1, 1]
    assert record.reason is Reason.OK


async def test_when_every_endpoint_refuses_the_client_is_reset_and_the_last_refusal_is_the_reason(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    ports = [refusing(loopback) for _ in range(2)]
    async with stage(tmp_path, loopback, way, *ports) as at:
        assert await (await at.client()).is_reset()
        record = await at.over()
    assert (record.reason, record.answered_by, record.endpoint) == (Reason.CONNECT_REFUSED, Side.UPSTREAM, "")
    assert [one.endpoint for one in record.attempts] == [f"127.0.0.1:{port}" for port in ports]
    assert record.detail == f"127.0.0.1:{ports[1]}: ECONNREFUSED"


async def test_no_more_attempts_are_made_than_the_policy_allows(tmp_path: Path, loopback: Loopback, way: str) -> None:
    ports = [refusing(loopback) for _ in range(3)]
    async with stage(tmp_path, loopback, way, *ports, attempts=2) as at:
        assert await (await at.client()).is_reset()
        assert len((await at.over()).attempts) == 2


async def test_without_an_endpoint_the_client_is_reset_at_once(tmp_path: Path, loopback: Loopback, way: str) -> None:
    port = refusing(loopback)
    async with stage(tmp_path, loopback, way, port) as at:
        at.plane.set_status("pg", f"127.0.0.1:{port}", "maint")
        assert await (await at.client()).is_reset()
        record = await at.over()
    assert (record.reason, record.answered_by, record.attempts) == (Reason.NO_ENDPOINT, Side.GATEWAY, [])
    assert f"127.0.0.1:{port}" in record.detail


async def test_a_gateway_without_descriptors_says_that_it_is_its_own_fault(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client = await at.client()
        theirs, _ = loopback.pair()
        sock = loopback.own(socket.socket(fileno=theirs.detach()))
        sock.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        server = at.plane.servers["db"]
        await at.server(listener)  # the first client's flow is open
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            server.accepted(sock, ("127.0.0.1", 1), 1)
            record = await at.plane.record()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (record.reason, record.answered_by, record.attempts) == (Reason.FILE_LIMIT, Side.GATEWAY, [])
        client.reset()
        await at.over(2)


async def test_an_endpoint_by_name_is_looked_up_and_then_known(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    asked: list[str] = []

    def look_up(host: str) -> list[Target]:
        asked.append(host)
        return [Target(socket.AF_INET, ("127.0.0.2", 0)), Target(socket.AF_INET, ("127.0.0.1", 0))]

    async with stage(tmp_path, loopback, way, f"db.test:{listener.getsockname()[1]}") as at:
        at.plane.plane.resolver = Resolver(look_up)
        for count in (1, 2):
            client, server = await at.pair(listener)
            server.sock.close()
            client.finish()
            assert (await at.over(count)).reason is Reason.OK
    assert asked == ["db.test"]


async def test_a_name_that_nobody_knows_is_a_failed_attempt(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()

    def look_up(host: str) -> list[Target]:
        raise socket.gaierror(-2, f"nobody knows {host}")

    async with stage(tmp_path, loopback, way, "db.test:80", listener) as at:
        at.plane.plane.resolver = Resolver(look_up)
        client, server = await at.pair(listener)
        server.sock.close()
        client.finish()
        record = await at.over()
    assert [one.reason for one in record.attempts] == [Reason.DNS_FAILED, Reason.OK]


# -- broken ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaker", ["client", "server"])
async def test_a_reset_reaches_the_other_side(tmp_path: Path, loopback: Loopback, way: str, breaker: str) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client, server = await at.pair(listener)
        broken, whole = (client, server) if breaker == "client" else (server, client)
        await broken.send(b"last words")
        assert await whole.exactly(10) == b"last words"
        broken.reset()
        assert await whole.is_reset()
        record = await at.over()
    reason, side = (
        (Reason.CLIENT_ABORT, Side.CLIENT) if breaker == "client" else (Reason.UPSTREAM_CLOSED, Side.UPSTREAM)
    )
    assert (record.reason, record.answered_by, record.detail) == (reason, side, "ECONNRESET while receiving")


async def test_what_a_server_had_said_before_it_broke_reaches_a_client_that_was_still_sending(
    tmp_path: Path, loopback: Loopback
) -> None:
    """In the lane only: a task may find the broken write first, and then never reads on."""
    listener = loopback.listener()
    async with stage(tmp_path, loopback, "lane", listener) as at:
        client, server = await at.pair(listener)
        await client.send(b"x" * 500_000)
        await server.send(b"413 ")
        assert await client.exactly(4) == b"413 "
        await server.send(b"too large")
        server.sock.close()  # with unread bytes: its kernel resets
        with suppress(OSError):  # the reset
            while True:
                await client.send(b"x" * 500_000)
        assert await client.exactly(9) == b"too large"
        assert (await at.over()).reason is Reason.UPSTREAM_CLOSED


# -- slow readers and bulk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["client", "server"])
async def test_a_slow_reader_holds_its_sender_back_and_then_gets_all_of_it(
    tmp_path: Path, loopback: Loopback, way: str, reader: str
) -> None:
    listener = loopback.listener()
    data = random.Random(1).randbytes(HELD + 8 * MIB + 5)
    async with stage(tmp_path, loopback, way, listener) as at:
        client, server = await at.pair(listener)
        slow, fast = (client, server) if reader == "client" else (server, client)
        sent = trio.Event()

        async def send() -> None:
            await fast.send(data)
            fast.finish()
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            head = await slow.exactly(BULKY_AFTER * 2)  # by now it is spliced, and its pipe will fill
            await trio.sleep(0.3)
            assert not sent.is_set(), "more than every buffer on the way can hold"
            assert hashlib.sha256(head + await slow.rest()).digest() == hashlib.sha256(data).digest()
        slow.finish()
        record = await at.over()
        assert at.plane.plane.pipes.made == at.plane.plane.pipes.free > 0
    assert max(record.bytes_in, record.bytes_out) >= len(data)
    assert record.reason is Reason.OK


async def test_bulk_both_ways_at_once_arrives_unchanged(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    data = random.Random(2).randbytes(24 * MIB + 77)
    async with stage(tmp_path, loopback, way, listener) as at:
        client, server = await at.pair(listener)
        digests: list[bytes] = []

        async def send(end: End) -> None:
            await end.send(data)
            end.finish()

        async def receive(end: End) -> None:
            digests.append(await end.digest())

        async with trio.open_nursery() as nursery:
            for end in (client, server):
                nursery.start_soon(send, end)
                nursery.start_soon(receive, end)
        record = await at.over()
    assert digests == [hashlib.sha256(data).digest()] * 2
    assert (record.bytes_in, record.bytes_out) == (len(data) + 1, len(data))


Chunks = st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=12)


@given(chunks=Chunks)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_interleaving_of_chunks_arrives_whole(tmp_path: Path, chunks: list[tuple[bool, int]]) -> None:
    chance = random.Random(len(chunks))
    up = [chance.randbytes(size) for from_client, size in chunks if from_client]
    down = [chance.randbytes(size) for from_client, size in chunks if not from_client]
    got: dict[str, bytes] = {}
    with ExitStack() as stack:
        loopback = Loopback(stack)
        listener = loopback.listener()
        async with stage(tmp_path, loopback, "lane", listener) as at:
            client, server = await at.pair(listener)

            async def speak() -> None:
                for from_client, _ in chunks:
                    await (client.send(next(ups)) if from_client else server.send(next(downs)))
                client.finish()
                server.finish()

            async def hear(name: str, end: End) -> None:
                got[name] = await end.rest()

            ups, downs = iter(up), iter(down)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak)
                nursery.start_soon(hear, "up", server)
                nursery.start_soon(hear, "down", client)
            assert (await at.over()).reason is Reason.OK
    assert got == {"up": b"".join(up), "down": b"".join(down)}


# -- time and cuts --------------------------------------------------------------------------------------------------


async def test_an_idle_flow_ends_in_good_order(tmp_path: Path, loopback: Loopback, way: str) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener, idle="200ms") as at:
        client, server = await at.pair(listener)
        began = trio.current_time()
        assert await client.rest() == b""
        assert await server.rest() == b""
        assert 0.19 <= trio.current_time() - began < 20
        record = await at.over()
    assert (record.reason, record.answered_by, record.detail) == (
        Reason.IDLE_TIMEOUT,
        Side.GATEWAY,
        "nothing moved for 0.2s",
    )


async def test_the_whole_time_of_a_flow_is_bounded_however_busy_it_is(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener, total="200ms") as at:
        client, server = await at.pair(listener)
        with suppress(OSError):
            while True:
                await client.send(b".")
                await server.exactly(1)
        record = await at.over()
    assert (record.reason, record.answered_by) == (Reason.EXCHANGE_TIMEOUT, Side.GATEWAY)


async def test_the_removal_of_its_endpoint_cuts_a_flow_and_can_be_taken_back(
    tmp_path: Path, loopback: Loopback, way: str
) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, way, listener) as at:
        client, server = await at.pair(listener)
        without = at.text.replace(named(listener), f'"127.0.0.1:{refusing(loopback)}"')
        at.plane.apply(without)
        at.plane.apply(at.text)
        await trio.sleep(0.7)
        await client.send(b"still here")
        assert await server.exactly(10) == b"still here"
        at.plane.apply(without)
        assert await client.is_reset()
        assert await server.is_reset()
        record = await at.over()
    assert (record.reason, record.answered_by, record.detail) == (
        Reason.DRAINED,
        Side.GATEWAY,
        "cut while it was open",
    )
    assert record.bytes_in == 11


@pytest.mark.parametrize("phase", ["connecting", "looking up", "relaying"])
async def test_a_worker_that_stops_tells_of_every_flow(
    tmp_path: Path, loopback: Loopback, way: str, phase: str
) -> None:
    listener = loopback.listener()
    endpoint = {"connecting": deaf(loopback), "looking up": "db.test:80", "relaying": listener}[phase]
    gate = trio.Event()
    resolver = Resolver(start_thread=lambda *_: gate.set())  # a look-up that never ends
    async with stage(tmp_path, loopback, way, endpoint, connect="20s") as at:
        at.plane.plane.resolver = resolver
        client = await at.client()
        if phase == "relaying":
            await at.server(listener)
        elif phase == "looking up":
            await gate.wait()
        else:
            with trio.fail_after(30):
                while not at.plane.servers["db"].connections:
                    await trio.sleep(0.002)
        at.plane.servers["db"].retire(0.0)
        assert await client.is_reset()
        record = await at.over()
    assert (record.reason, record.answered_by, record.detail) == (
        Reason.DRAINED,
        Side.GATEWAY,
        "cut while it was open",
    )


async def test_flows_that_are_stopped_twice_or_told_late_do_nothing(tmp_path: Path, loopback: Loopback) -> None:
    listener = loopback.listener()
    async with stage(tmp_path, loopback, "lane", listener) as at:
        await at.pair(listener)
        (flow,) = at.plane.servers["db"].connections
        flow.leave()
        assert len(at.plane.records) == 0
        for _ in range(2):
            flow.stop()
            flow.cut_by(0.0)
            flow.leave()
        await at.over()


# -- bugs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["picking", "connected", "moving", "counting"])
async def test_a_bug_costs_one_flow_and_is_told(
    tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def planted(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    places = {
        "picking": "tcpgate.proxy.lane_flow.next_endpoint",
        "connected": "tcpgate.proxy.flow.FlowTarget.connected",
        "moving": "tcpgate.net.lane_relay._End._copy",
        "counting": "tcpgate.proxy.flow.FlowTarget.moved",
    }
    listener = loopback.listener()
    async with stage(tmp_path, loopback, "lane", listener) as at:
        healthy, server = await at.pair(listener)
        with monkeypatch.context() as patch:
            patch.setattr(places[where], planted)
            client, told = await at.client(), False
            try:
                await client.send(b"x")
            except OSError:  # the reset was here already, and is told once
                told = True
            assert (await at.plane.record()).reason is Reason.BUG
        assert told or await client.is_reset()
        if where != "counting":  # it was planted for all flows that move
            await healthy.send(b"unharmed")
            assert await server.exactly(8) == b"unharmed"
        healthy.reset()
        await at.over(2)


@pytest.mark.parametrize("where", ["FlowTarget.end", "plain.render_flow", "close_books"])
async def test_a_bug_in_the_books_leaves_no_flow_behind(
    tmp_path: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def planted(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    listener = loopback.listener()
    async with stage(tmp_path, loopback, "lane", listener) as at:
        lane = at.plane.plane.lane
        client, server = await at.pair(listener)
        with monkeypatch.context() as patch:
            patch.setattr(f"tcpgate.proxy.lane_flow.{where}", planted)
            if where == "close_books":
                client.reset()
                assert await server.is_reset()
            else:
                client.finish()
                server.finish()
                assert (await client.rest(), await server.rest()) == (b"", b"")
            with trio.fail_after(30):
                while at.plane.servers["db"].connections:
                    await trio.sleep(0.002)
        assert lane.faults == 1
        assert (len(lane), len(lane.timed)) == (1, 0)  # the listening socket
