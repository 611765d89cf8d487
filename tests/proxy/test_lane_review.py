"""What goes wrong in the lane between one state and the next: each test is a fault that a review looked for."""

from __future__ import annotations

import errno
import gc
import socket
import struct
import time
import types
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from tcpgate.errors import Reason
from tcpgate.filters.base import Continue, RequestView, Verdict
from tcpgate.proxy import express, ride
from tcpgate.proxy.express import HttpRider
from tests.plane import TestPlane, serving
from tests.proxy.scripted import (
    GET,
    OK,
    always_ok,
    busy,
    client,
    config,
    head,
    origin,
    post,
    rest,
    settled,
    silent,
    until,
)

MIB = 1 << 20
LONG = 8 * MIB
RESET = struct.pack("ii", 1, 0)


def riders(plane: TestPlane, listener: str = "web") -> list[HttpRider]:
    """The connections of a listener, as they ride."""
    found = list(plane.servers[listener].connections)
    assert all(isinstance(one, HttpRider) for one in found)
    return found  # type: ignore[return-value]  # as was just looked


def no_room(*_: object) -> NoReturn:
    """What epoll_ctl(2) says once the user has fs.epoll.max_user_watches of them."""
    raise OSError(errno.ENOSPC, "No space left on device")


# -- leaving --------------------------------------------------------------------------------------------------------


async def test_a_connection_asked_to_leave_in_the_middle_of_an_answer_goes_when_that_is_over(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    go_on = trio.Event()

    async def halting(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            await go_on.wait()
            await stream.send_all(b"cd")

    async with serving(tmp_path, config(await origin(nursery, halting))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"ab")
        plane.servers["web"].retire(60)
        await trio.sleep(0.05)
        go_on.set()
        assert await rest(stream, within=10) == b"cd"
        with trio.fail_after(10):
            await plane.servers["web"].wait_ended()
        await settled(plane)
    assert plane.records[-1].reason is Reason.OK


async def test_a_client_that_goes_on_sending_is_lingered_for_as_on_the_readable_path(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece that still comes buys another pause: a reset in the middle would take the answer with it."""
    monkeypatch.setattr(ride, "LINGER_PAUSE", 0.6)
    monkeypatch.setattr(express, "LINGER_PAUSE", 0.6)
    hold = trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        await head(stream)
        await hold.wait()
        await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, late))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await busy(plane)
        plane.servers["web"].retire(60)
        await trio.sleep(0.05)
        hold.set()
        said = await rest(stream)
        for _ in range(12):
            await stream.send_all(b"x")
            await trio.sleep(0.15)
            assert len(riders(plane)) == 1
    assert b"Connection: close" in said


@pytest.mark.parametrize("is_whole", [True, False])
async def test_what_is_in_flight_as_the_worker_is_cancelled_gets_the_answer_that_its_record_tells(
    is_whole: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, config(await origin(nursery, silent))) as plane, client(plane) as stream:
        await settled(plane, connections=1)
        await stream.send_all(GET if is_whole else post(2) + b"h")
        (rider,) = riders(plane)
        with trio.fail_after(10):
            while not rider.data:
                await trio.lowlevel.checkpoint()
        plane.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            said = await rest(stream)
    (record,) = plane.records
    assert (record.reason, record.status, record.bytes_out) == (Reason.DRAINED, 503, len(said))
    assert said.startswith(b"HTTP/1.1 503 ")


async def test_one_that_is_handed_over_as_its_listener_ends_leaves_nothing_behind(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The nursery of the listener is closed, but the lane still calls."""
    async with serving(tmp_path, config(await origin(nursery, silent))) as plane, client(plane) as stream:
        await settled(plane, connections=1)
        (rider,) = riders(plane)
        server = plane.servers["web"]
        async with trio.open_nursery() as closed:
            pass
        server._nursery = closed
        await stream.send_all(b"GET / HTTP/1.1\r\nHost")
        assert await rest(stream) == b""
        await settled(plane)
        assert not server.connections
        assert rider.state == ride.GONE


# -- bugs that a callback meets ---------------------------------------------------------------------------------------


async def test_a_bug_in_the_books_costs_the_connection_and_gives_no_second_answer(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The answer has gone out: nothing may follow it, and the request must not be sent again."""
    heard = 0

    async def counting(stream: trio.SocketStream) -> None:
        nonlocal heard
        while await head(stream):
            heard += 1
            await stream.send_all(OK)

    text = config(await origin(nursery, counting), upstream='timeouts.first_byte = "300ms"')
    async with serving(tmp_path, text) as plane, client(plane) as stream:

        def broken(_lines: Sequence[bytes]) -> None:
            raise ValueError("a disk that is full")

        plane.plane.write_lines = broken
        await stream.send_all(post(2) + b"hi")
        said = await rest(stream, within=5)
        await settled(plane)
        assert not riders(plane)
    assert said.count(b"HTTP/1.1 ") == 1
    assert heard == 1


class Fussy:
    """A filter with a bug in it, for some requests."""

    asked = 0

    def on_request(self, view: RequestView) -> Verdict:
        """Raises for /bug."""
        self.asked += 1
        if view.head.path == b"/bug":
            raise ValueError("a bug")
        return Continue()

    def on_response(self, view: RequestView, response: object) -> None:
        """Nothing."""


async def test_a_bug_in_a_request_behind_another_is_told_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok))
    async with serving(tmp_path, text) as plane:
        plane.use_filter("all", Fussy())
        async with client(plane) as stream:
            await stream.send_all(GET + GET.replace(b"/ ", b"/bug ", 1))
            said = await rest(stream, within=10)
        await settled(plane)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.partition(b"\r\n\r\nok")[2].startswith(b"HTTP/1.1 500 ")
    assert [record.reason for record in plane.records] == [Reason.OK, Reason.BUG]


async def test_a_bug_in_what_came_as_we_left_costs_no_more_than_its_connection(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane:
        plane.use_filter("all", Fussy())
        async with client(plane) as stream, client(plane) as other:
            for one in (stream, other):
                await one.send_all(GET)
                await until(one, b"\r\n\r\nok")
            stream.socket._sock.send(GET.replace(b"/ ", b"/bug ", 1))  # type: ignore[attr-defined]  # without a checkpoint
            for rider in riders(plane):
                rider.leave()
            assert (await rest(stream)).startswith(b"HTTP/1.1 500 ")
            assert await rest(other) == b""
        await settled(plane)


# -- a full epoll set -----------------------------------------------------------------------------------------------


async def test_a_connection_that_the_lane_has_no_room_for_is_closed_and_others_are_served_later(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane:
        async with client(plane):
            await settled(plane, connections=1)
        await settled(plane)
        with monkeypatch.context() as full:
            full.setattr(plane.plane.lane, "add", no_room)
            async with client(plane) as stream:
                assert await rest(stream) == b""
            await settled(plane)
        async with client(plane) as stream:
            await stream.send_all(GET)
            assert (await head(stream)).startswith(b"HTTP/1.1 200 ")
        await settled(plane)
    assert [kind for kind, _, _ in plane.told] == ["accept_backoff"]


async def test_a_connection_that_comes_back_to_a_full_lane_is_closed(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        await head(stream)
        await hold.wait()
        await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, late))) as plane:
        async with client(plane) as stream:
            await stream.send_all(GET[:10])
            await trio.sleep(0.05)
            await stream.send_all(GET[10:])
            await busy(plane)
            with monkeypatch.context() as full:
                full.setattr(plane.plane.lane, "add", no_room)
                hold.set()
                assert (await rest(stream)).startswith(b"HTTP/1.1 200 ")
        await settled(plane)
    assert [record.reason for record in plane.records] == [Reason.OK]


async def test_an_endpoint_that_the_lane_has_no_room_for_is_asked_by_a_task(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await settled(plane, connections=1)
        with monkeypatch.context() as full:
            full.setattr(plane.plane.lane, "add", no_room)
            await stream.send_all(GET)
            assert (await rest(stream)).startswith(b"HTTP/1.1 200 ")
        await settled(plane)
        assert not plane.plane.runtime.upstreams["api"].endpoints.popitem()[1].idle
    assert [record.reason for record in plane.records] == [Reason.OK]


# -- what an attacker sends -----------------------------------------------------------------------------------------


async def test_many_small_pieces_sent_ahead_cost_in_proportion(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, silent))) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await busy(plane)
        (rider,) = riders(plane)
        began = time.process_time()
        for _ in range(30_000):
            rider._client_spoke(b"G")
        assert time.process_time() - began < 1.0
        assert rider.buffered == len(GET) + 30_000


async def test_an_idle_connection_holds_nothing_of_its_last_exchange(tmp_path: Path, nursery: trio.Nursery) -> None:
    mark = b"m" * 5000
    answer = b"HTTP/1.1 200 OK\r\nX-Mark: %b\r\nContent-Length: 2\r\n\r\nok" % mark

    async def marking(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(answer)

    async with serving(tmp_path, config(await origin(nursery, marking))) as plane, client(plane) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: t\r\nCookie: %b\r\n\r\n" % mark)
        await until(stream, b"\r\n\r\nok")
        (rider,) = riders(plane)
        assert rider.state == ride.IDLE
        shared = (
            rider.host,
            rider.plane,
            rider.plan,
            rider.shared,
            rider.lane,
            rider.upstream,
            rider.endpoint,
        )
        known = set(map(id, shared))
        held: list[tuple[object, str]] = [(rider, "rider")]
        found: list[str] = []
        while held:
            one, path = held.pop()
            if isinstance(one, bytes) and mark in one:
                found.append(path)
            if id(one) not in known and not isinstance(one, type | types.ModuleType):
                known.add(id(one))
                held += [(part, f"{path} > {type(one).__name__}") for part in gc.get_referents(one)]
    assert found == []


async def test_idle_connections_keep_no_generation_that_a_reload_has_replaced(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    text = config(await origin(nursery, always_ok))
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"ok")
        await settled(plane, connections=1)
        old = weakref.ref(plane.plane.snapshot)
        plane.apply(text.replace('path = "/"', 'path = "/"\ntimeout = "7s"'))
        gc.collect()
        assert old() is None
        await stream.send_all(GET)
        await until(stream, b"ok")


async def test_a_bug_where_a_connection_begins_costs_that_connection(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane:
        with monkeypatch.context() as planted:
            planted.setattr(HttpRider, "begin", no_room)
            async with client(plane) as stream:
                assert await rest(stream) == b""
            planted.setattr("tcpgate.proxy.serve.HttpRider", lambda *_: 1 / 0)
            async with client(plane) as stream:
                assert await rest(stream) == b""
        await settled(plane)
        async with client(plane) as stream:
            await stream.send_all(GET)
            await until(stream, b"ok")
        await settled(plane)
        assert plane.counts("listener", "web")["accepted"] == 3


# -- truth ----------------------------------------------------------------------------------------------------------


async def test_an_answer_of_which_nothing_went_out_is_told_with_no_bytes(tmp_path: Path) -> None:
    """The client resets behind the answer's coming, in the same turn."""
    listening = socket.create_server(("127.0.0.1", 0))
    async with serving(tmp_path, config(listening.getsockname()[1])) as plane:
        with listening, socket.create_connection(("127.0.0.1", plane.port())) as asker:
            asker.sendall(GET)
            await trio.lowlevel.wait_readable(listening)
            asked, _ = listening.accept()
            with asked:
                await trio.lowlevel.wait_readable(asked)
                asked.recv(65536)
                asked.sendall(OK)
                await trio.lowlevel.wait_readable(asker)
                asker.recv(65536)
                asker.sendall(GET)
                await trio.lowlevel.wait_readable(asked)
                asked.recv(65536)
                # From here on without a checkpoint: both are in one batch, the endpoint's first.
                asked.sendall(OK)
                asker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                asker.close()
                await settled(plane)
    assert [record.reason for record in plane.records] == [Reason.OK, Reason.CLIENT_ABORT]
    assert plane.records[1].bytes_out == 0


# -- generations ----------------------------------------------------------------------------------------------------


async def test_an_old_generation_dies_under_traffic(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream, client(plane) as other:
        snapshots = []
        for number in range(5):
            snapshots.append(weakref.ref(plane.plane.snapshot))
            for _ in range(4):  # so often that the head is known, and its note is in use
                await stream.send_all(GET + b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % number)
                await until(stream, b"ok", within=5)
                await other.send_all(GET)
                await until(other, b"ok", within=5)
            await plane.record(12 * (number + 1))
            plane.apply(config(port, route=f'timeout = "{number + 5}s"'))
        for one in (stream, other):
            await one.send_all(GET)
        await plane.record(62)
        gc.collect()
        assert [snapshot() for snapshot in snapshots] == [None] * 5


async def test_an_endpoint_and_a_route_that_reloads_remove_under_traffic_leave_nothing_open(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    hold = trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        while await head(stream):
            await hold.wait()
            await stream.send_all(OK)

    old, new = await origin(nursery, late), await origin(nursery, always_ok)
    async with serving(tmp_path, config(old)) as plane, client(plane) as stream, client(plane) as other:
        await other.send_all(GET)
        await busy(plane)
        plane.apply(config(new))
        await stream.send_all(GET)
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
        assert [one.name for one in plane.plane.runtime.retired.values()] == [f"127.0.0.1:{old}"]
        hold.set()
        assert (await until(other, b"ok")).startswith(b"HTTP/1.1 200 ")
        await settled(plane, connections=2)
        plane.plane.sweep(trio.current_time())
        assert not plane.plane.runtime.retired
        plane.apply(config(new, gateway="lane = false"))  # for those that come from now on
        for one in (stream, other):
            await one.send_all(GET)
            assert (await until(one, b"ok")).startswith(b"HTTP/1.1 200 ")
        async with client(plane) as third:
            await third.send_all(GET)
            assert (await until(third, b"ok")).startswith(b"HTTP/1.1 200 ")
            assert sum(rider.rides for rider in riders(plane)) == 2
            plane.apply('[listeners.other]\nbind = ["127.0.0.2:0"]\n[routes.x]\nrespond = { status = 204 }\n')
            for one in (stream, other, third):
                assert await rest(one) == b""
        await trio.lowlevel.checkpoint()
        assert not plane.plane.runtime.upstreams
        plane.plane.sweep(trio.current_time())
        assert not plane.plane.runtime.retired


# -- one client's words told of another -----------------------------------------------------------------------------


async def test_the_same_head_from_several_peers_is_told_of_each(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Heads, forms and forwarding fields are kept for all connections of a listener."""
    said: list[bytes] = []

    async def listening(stream: trio.SocketStream) -> None:
        while asked := await head(stream):
            said.append(asked)
            await stream.send_all(OK)

    text = config(await origin(nursery, listening), listener='trusted_proxies = ["127.0.0.3/32"]')
    lie = b"GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 198.51.100.9\r\nX-Request-Id: given\r\n\r\n"
    async with serving(tmp_path, text) as plane:
        streams = []
        for peer in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            sock = trio.socket.socket()
            await sock.bind((peer, 0))
            await sock.connect(("127.0.0.1", plane.port()))
            streams.append((peer, trio.SocketStream(sock)))
        for number in range(12):
            for peer, stream in streams:
                asked = lie if number % 2 else GET.replace(b": t", b": h%d" % (number % 3))
                await stream.send_all(asked)
                await until(stream, b"ok")
                is_trusted = number % 2 and peer == "127.0.0.3"
                chain = b"198.51.100.9, 127.0.0.3" if is_trusted else peer.encode()
                assert b"\r\nX-Forwarded-For: %b\r\n" % chain in said[-1]
                assert said[-1].count(b"X-Forwarded-For") == said[-1].count(b"X-Request-Id") == 1
                assert (b"X-Request-Id: given" in said[-1]) is bool(is_trusted)
                assert plane.records[-1].client == ("198.51.100.9" if is_trusted else peer)
        for _, stream in streams:
            await stream.aclose()
        await settled(plane)


# -- every event in every state -------------------------------------------------------------------------------------


async def deaf() -> tuple[list[socket.socket], int]:
    """A port whose backlog is full, so that nobody can connect to it any more."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    port: int = listening.getsockname()[1]
    sockets = [listening]
    for _ in range(3):
        sockets.append(socket.socket())
        sockets[-1].setblocking(False)
        sockets[-1].connect_ex(("127.0.0.1", port))
        await trio.sleep(0.02)
    return sockets, port


def cut(rider: HttpRider) -> None:
    """The end of a drain."""
    rider.cut_by(0.0)
    rider.sweep(trio.current_time())


ACTS: dict[str, Callable[[HttpRider], object]] = {
    "fault": lambda rider: rider.on_fault(ValueError("planted")),
    "stop": lambda rider: rider.stop(),
    "leave": lambda rider: rider.leave(),
    "cut": cut,
    "readable": lambda rider: rider.on_client(1),
    "sweep": lambda rider: rider.sweep(trio.current_time() + 1e6),
}
STATES = {"fresh": ride.IDLE, "idle": ride.IDLE, "partial": ride.IDLE, "connecting": ride.CONNECTING}
STATES |= {"asked": ride.ASKED, "flowing": ride.FLOWING, "lingering": ride.LINGERING, "away": ride.AWAY}


@pytest.mark.parametrize("second", ACTS)
@pytest.mark.parametrize("first", ACTS)
@pytest.mark.parametrize("state", STATES)
async def test_whatever_happens_in_whatever_state_happens_once(
    state: str, first: str, second: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """And then comes another thing, at once: the gauges come back to nothing, never below."""

    async def halting(stream: trio.SocketStream) -> None:
        while asked := await head(stream):
            if b"/ok" in asked:
                await stream.send_all(OK)
            elif b"/half" in asked:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\nab")

    sockets, port = await deaf() if state == "connecting" else ([], await origin(nursery, halting))
    asks = {
        "idle": b"GET /ok HTTP/1.1\r\nHost: t\r\n\r\n",
        "partial": post(2) + b"h",
        "connecting": GET,
        "asked": GET,
        "flowing": GET.replace(b"/ ", b"/half ", 1) + b"GET /next",
        "lingering": b"GET /ok HTTP/1.1\r\nHost: t\r\n\r\n",
        "away": GET[:9],
    }
    async with serving(tmp_path, config(port, upstream='timeouts.connect = "5s"')) as plane:
        async with client(plane) as stream:
            await settled(plane, connections=1)
            (rider,) = riders(plane)
            if state == "lingering":
                rider.is_leaving = True
            if state in asks:
                await stream.send_all(asks[state])
            with trio.fail_after(20):
                while (
                    rider.state != STATES[state]
                    or (state == "partial") > bool(rider.data)
                    or (state == "idle" and rider.is_fresh)
                ):
                    await trio.sleep(0.002)
            if rider.state != ride.AWAY or first not in ("sweep", "cut", "readable"):  # the lane does not know it then
                ACTS[first](rider)
            if rider.state not in (ride.AWAY, ride.GONE) or second in ("stop", "leave", "fault"):
                ACTS[second](rider)
        await settled(plane)
        assert rider.state == ride.GONE
        assert not plane.servers["web"].connections
        assert len(plane.plane.lane) == len(plane.servers) + len(plane.endpoint("api", f"127.0.0.1:{port}").idle)
        assert not plane.plane.lane.timed
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("late", [0.1, 0.6], ids=["within a sweep", "later"])
async def test_an_exchange_whose_body_comes_late_has_begun_with_its_head(
    tmp_path: Path, nursery: trio.Nursery, late: float
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane, client(plane) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n")
        await trio.sleep(late)
        await stream.send_all(b"body")
        await until(stream, b"ok")
        record = await plane.record()
    assert record.reason == Reason.OK
    assert record.t.total >= late
