"""What one client can do to the others, and for how long it may do nothing: the same with the lane and without it.

Each test runs with the lane on and off: the bounds are promises of the gateway, not of one of its paths.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tcpgate.errors import Reason
from tests.net.loopback import HELD
from tests.plane import TestPlane, serving
from tests.proxy.scripted import (
    GET,
    OK,
    Play,
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

SWEEP = 0.25
"""How late the lane may be with a time limit (seconds)."""
SLACK = 3.0
"""How late a machine that is busy with other things may be on top of that (seconds)."""
PIECE = bytes(1 << 18)
LONG = HELD + (24 << 20)


@pytest.fixture(params=[True, False], ids=["lane", "readable"])
def gateway(request: pytest.FixtureRequest) -> str:
    """The `[gateway]` table's text that turns the lane on, or off."""
    return f"lane = {str(request.param).lower()}"


class Counted:
    """An origin that pours a long answer, and counts what it got rid of."""

    def __init__(self, size: int = LONG) -> None:
        self.size = size
        self.sent = 0

    async def play(self, stream: trio.SocketStream) -> None:
        """200 to every request, with a long body if it asks for /long."""
        while asked := await head(stream):
            if not asked.startswith(b"GET /long"):
                await stream.send_all(OK)
                continue
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.size)
            for _ in range(self.size // len(PIECE)):
                await stream.send_all(PIECE)
                self.sent += len(PIECE)


GET_LONG = GET.replace(b"/ ", b"/long ", 1)


async def small(plane: TestPlane, count: int) -> None:
    """So many exchanges of a client that does all right."""
    async with client(plane) as stream:
        for _ in range(count):
            await stream.send_all(GET)
            assert (await until(stream, b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")


async def stopped(what: Callable[[], int]) -> int:
    """`what`, once it has stopped to grow: for as long as a busy machine may keep anybody waiting."""
    same = 0
    with trio.fail_after(30):
        before = what()
        while same < 4:
            await trio.sleep(0.15)
            before, same = what(), same + 1 if what() == before else 0
    return before


# -- those who do not read ------------------------------------------------------------------------------------------


async def test_a_reader_that_stops_holds_up_its_own_answer_only_and_gets_all_of_it_later(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    pouring = Counted()
    async with serving(tmp_path, config(await origin(nursery, pouring.play), gateway=gateway)) as plane:
        async with client(plane) as stream:
            await stream.send_all(GET_LONG)
            answer = await until(stream, b"\r\n\r\n")
            got, whole = len(answer), answer.index(b"\r\n\r\n") + 4 + pouring.size
            while got < 8 << 20:  # by now it is known for a bulky one: whatever moves those bytes, moves them
                got += len(await stream.receive_some(1 << 18))
            sent = await stopped(lambda: pouring.sent)
            assert sent < got + HELD
            await small(plane, 20)
            assert pouring.sent == sent
            while got < whole and (chunk := await stream.receive_some(1 << 20)):
                got += len(chunk)
        await settled(plane)
        record = plane.records[-1]
    assert (record.reason, record.status, record.bytes_out, got) == (Reason.OK, 200, whole, whole)
    assert plane.plane.pipes.made == 0  # whatever was borrowed came back and was closed


async def test_a_reader_that_never_goes_on_is_ended_by_the_minimum_rate(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    pouring = Counted()
    text = config(
        await origin(nursery, pouring.play),
        gateway=gateway,
        listener='timeouts = { stall = "400ms", min_rate = "64MiB/s" }',
    )
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(GET_LONG)
        got = 0
        while got < 8 << 20:
            got += len(await stream.receive_some(1 << 18))
        async with trio.open_nursery() as others:
            others.start_soon(small, plane, 50)
            await plane.record(51)
        await settled(plane)
        (record,) = (record for record in plane.records if record.path == "/long")
    assert (record.reason, record.status, record.answered_by) == (Reason.CLIENT_SLOW, 200, "upstream")
    assert record.rule == "timeouts.min_rate" or record.rule == "routes.all"
    assert 8 << 20 <= record.bytes_out < got + HELD
    assert pouring.sent < got + HELD
    assert [record.reason for record in plane.records if record.path == "/"] == [Reason.OK] * 50


async def test_many_who_ask_and_never_read_are_no_burden_to_the_others(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    pouring = Counted()
    async with serving(tmp_path, config(await origin(nursery, pouring.play), gateway=gateway)) as plane:
        deaf = [socket.create_connection(("127.0.0.1", plane.port())) for _ in range(20)]
        for sock in deaf:
            sock.sendall(GET_LONG + GET * 50)
        await stopped(lambda: pouring.sent)
        await small(plane, 50)
        assert pouring.sent < 20 * HELD
        for sock in deaf:
            sock.close()
        await settled(plane)
    reasons = [record.reason for record in plane.records if record.path == "/long"]
    assert reasons == [Reason.CLIENT_ABORT] * 20


async def test_a_client_that_sends_ahead_and_reads_no_answer_is_not_read_for_ever(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    """What is pipelined waits in the kernel, not in the worker's memory."""
    enough = trio.Event()

    async def late(stream: trio.SocketStream) -> None:
        await head(stream)
        await enough.wait()

    async with serving(tmp_path, config(await origin(nursery, late), gateway=gateway)) as plane:
        sock = socket.create_connection(("127.0.0.1", plane.port()))
        sock.sendall(GET)
        await busy(plane)
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        taken = 0

        async def flood() -> None:
            nonlocal taken
            while True:
                taken += await stream.socket.send(GET * 10_000)

        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood)
            await stopped(lambda: taken)
            flooding.cancel_scope.cancel()
        assert taken < HELD
        await stream.aclose()
        enough.set()  # nobody watches a client that has sent so much ahead: it is missed when it is answered
        await settled(plane)


async def test_what_is_sent_ahead_of_a_long_answer_is_not_read_on_and_on_as_the_answer_goes_out(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    """The client reads its answer with many a stop, and never ceases to send requests."""
    pouring = Counted(size=64 << 20)
    taken = got = 0
    text = config(await origin(nursery, pouring.play), gateway=gateway)
    async with serving(tmp_path, text) as plane, client(plane) as stream:

        async def flood() -> None:
            nonlocal taken
            while True:
                taken += await stream.socket.send(GET * 10_000)

        await stream.send_all(GET_LONG)
        got += len(await stream.receive_some(1000))
        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood)
            await stopped(lambda: taken)
            before = taken
            while got < 48 << 20:
                got += len(await stream.receive_some(1 << 18))
                await trio.sleep(0.003)  # so that the gateway is ahead, and has to stop for us
            flooding.cancel_scope.cancel()
    # Not a byte of it has its turn yet, so no more is taken than fills the kernels' buffers, within a few reads.
    assert taken - before < 1 << 20, (before, taken)


async def test_nobody_spins_while_an_endpoint_pauses_and_the_client_has_sent_a_lot_ahead(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    go_on = trio.Event()

    async def halves(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(OK[:-1])
            await go_on.wait()
            await stream.send_all(OK[-1:])

    text = config(await origin(nursery, halves), gateway=gateway)
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await until(stream, b"\r\n\r\no")
        await stream.send_all(GET * 5000)
        await trio.sleep(0.2)
        cpu = time.process_time()
        await trio.sleep(0.5)
        cpu = time.process_time() - cpu
        go_on.set()
        await plane.record(20)
    assert cpu < 0.2, "the worker has nothing to do, and is busy with it"


# -- fairness -------------------------------------------------------------------------------------------------------


async def test_a_client_that_pipelines_without_end_does_not_keep_the_others_waiting(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    count = 5000
    text = config(await origin(nursery, always_ok), gateway=gateway)
    async with serving(tmp_path, text) as plane, client(plane) as hose:

        async def read_all() -> None:
            seen = 0
            while seen < count * len(b"HTTP/1.1 200 OK\r\n"):
                seen += len(await hose.receive_some(1 << 16))

        async with trio.open_nursery() as hosing:
            hosing.start_soon(read_all)
            hosing.start_soon(hose.send_all, GET * count)
            while not plane.records:
                await trio.lowlevel.checkpoint()
            await small(plane, 20)
            served = len(plane.records)
            hosing.cancel_scope.cancel()
    # It is a matter of order: those few came in between, not behind all that was sent before them.
    assert served < count


async def test_a_long_answer_does_not_keep_the_others_waiting(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    pouring = Counted(size=512 << 20)
    text = config(await origin(nursery, pouring.play), gateway=gateway)
    async with serving(tmp_path, text) as plane, client(plane) as hose:

        async def read_all() -> None:
            while await hose.receive_some(1 << 20):
                pass

        async with trio.open_nursery() as hosing:
            await hose.send_all(GET_LONG)
            hosing.start_soon(read_all)
            while pouring.sent < 4 << 20:
                await trio.lowlevel.checkpoint()
            await small(plane, 20)
            sent = pouring.sent
            hosing.cancel_scope.cancel()
    assert sent < pouring.size


async def test_a_timer_runs_on_time_while_the_worker_is_kept_busy(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    """A hundred clients that ask without a pause: whoever sleeps 10 ms in the same worker still gets his turns."""
    turns, stop = [0], trio.Event()

    async def ask_on(plane: TestPlane) -> None:
        async with client(plane) as stream:
            while not stop.is_set():
                await stream.send_all(GET)
                await until(stream, b"\r\n\r\nok")

    async with serving(tmp_path, config(await origin(nursery, always_ok), gateway=gateway)) as plane:
        async with trio.open_nursery() as asking:
            for _ in range(100):
                asking.start_soon(ask_on, plane)
            await plane.record(200)
            for _ in range(20):
                before = len(plane.records)
                await trio.sleep(0.01)
                turns.append(len(plane.records) - before)
            stop.set()
        await settled(plane)
    # In exchanges, not in seconds: 10 ms are some tens of them here; thousands would be a worker that sees nobody else.
    assert 0 < max(turns) < 3000


# -- time limits ----------------------------------------------------------------------------------------------------


async def ended_after(plane: TestPlane, said: bytes, first: bytes = b"") -> tuple[float, bytes]:
    """(seconds until the gateway ended it, what it said then) for a client that says no more than this."""
    async with client(plane) as stream:
        if first:
            await stream.send_all(first)
            await until(stream, b"\r\n\r\nok")
        if said:
            await stream.send_all(said)
        began = trio.current_time()
        answer = await rest(stream)
        return trio.current_time() - began, answer


LIMITS: dict[str, tuple[dict[str, str], Play, bytes, bytes, str]] = {
    "idle": ({"listener": 'timeouts = { idle = "400ms" }'}, always_ok, b"", GET, ""),
    "fresh": ({"listener": 'timeouts = { head = "400ms" }'}, always_ok, b"", b"", ""),
    "head": ({"listener": 'timeouts = { head = "400ms" }'}, always_ok, GET[:10], b"", "408 head_timeout"),
    "later head": ({"listener": 'timeouts = { head = "400ms" }'}, always_ok, GET[:10], GET, "408 head_timeout"),
    "exchange": (
        {"route": 'timeout = "400ms"'},
        silent,
        GET[:-2] + b"Connection: close\r\n\r\n",
        b"",
        "504 exchange_timeout",
    ),
    "first byte": (
        {"upstream": 'timeouts = { first_byte = "400ms" }\nretry = { attempts = 1 }'},
        silent,
        GET[:-2] + b"Connection: close\r\n\r\n",
        b"",
        "504 first_byte_timeout",
    ),
    "small body": (
        {"listener": 'timeouts = { stall = "400ms", min_rate = "1KiB/s" }'},
        silent,
        post(10) + b"abc",
        b"",
        "408 body_timeout",
    ),
}


@pytest.mark.parametrize("what", LIMITS)
async def test_a_time_limit_is_kept_to_a_quarter_of_a_second(
    tmp_path: Path, nursery: trio.Nursery, gateway: str, what: str
) -> None:
    """Never early; late by one sweep at most, and by what the machine is."""
    parts, play, said, first, says = LIMITS[what]
    text = config(await origin(nursery, play), gateway=gateway, **parts)
    async with serving(tmp_path, text) as plane:
        seconds, answer = await ended_after(plane, said, first)
        await settled(plane)
        found = [f"{record.status} {record.reason}" for record in plane.records if not first or record.status != 200]
    assert 0.39 <= seconds < 0.4 + SWEEP + SLACK  # 10 ms for the two clocks that are read one after the other
    assert found == ([says] if says else [])
    assert answer.startswith(b"HTTP/1.1 %b " % says[:3].encode() if says else b"")


async def test_a_read_limit_in_the_middle_of_an_answer_is_kept_to_a_quarter_of_a_second(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    async def half(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(OK[:-1])
        await rest(stream)

    for part, reason in (
        ({"upstream": 'timeouts = { read = "400ms" }'}, Reason.UPSTREAM_IDLE),
        ({"route": 'timeout = "400ms"'}, Reason.EXCHANGE_TIMEOUT),
    ):
        text = config(await origin(nursery, half), gateway=gateway, **part)
        async with serving(tmp_path, text) as plane:
            seconds, answer = await ended_after(plane, GET)
            await settled(plane)
            assert (plane.records[-1].reason, plane.records[-1].status) == (reason, 200)
        assert answer.endswith(b"\r\n\r\no")
        assert 0.39 <= seconds < 0.4 + SWEEP + SLACK


async def test_many_idle_connections_are_all_ended_in_time(tmp_path: Path, nursery: trio.Nursery, gateway: str) -> None:
    """More than one slice of the sweep."""
    count = 1500
    text = config(
        await origin(nursery, always_ok), gateway=gateway, listener='timeouts = { head = "400ms", idle = "400ms" }'
    )
    async with serving(tmp_path, text) as plane:
        idle = []
        for at in range(count):
            idle.append(socket.create_connection(("127.0.0.1", plane.port())))
            if at % 100 == 99:
                await trio.lowlevel.checkpoint()
        await settled(plane)
        accepted = plane.counts("listener", "web")["accepted"]
        for sock in idle:
            sock.setblocking(False)
            assert sock.recv(1) == b""  # ended by the gateway, in good order
            sock.close()
    assert accepted == count
    assert plane.records == []


# -- bugs -----------------------------------------------------------------------------------------------------------


class BuggyOnce:
    """A balancer with a bug that shows now and then; what it wraps is a real one."""

    keyed = False

    def __init__(self, plane: TestPlane) -> None:
        self.real = plane.plane.runtime.upstreams["api"].spread
        self.left = 0

    def pick(self, key: int, skip: tuple[str, ...], now: float) -> object:
        """Raise for so many calls as the test wants, else pick."""
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("a bug")
        return self.real.pick(key, skip, now)


async def test_a_bug_costs_one_connection_and_is_counted(
    tmp_path: Path, nursery: trio.Nursery, gateway: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, config(await origin(nursery, always_ok), gateway=gateway)) as plane:
        buggy = BuggyOnce(plane)
        plane.plane.runtime.upstreams["api"].spread = buggy  # type: ignore[assignment]
        async with client(plane) as one, client(plane) as other:
            for stream in (one, other):
                await stream.send_all(GET)
                await until(stream, b"\r\n\r\nok")
            buggy.left = 2
            await one.send_all(GET)
            said = await rest(one)
            buggy.left = 0
            await other.send_all(GET)
            assert (await until(other, b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
        await small(plane, 3)
        await settled(plane)
        bugs = [record for record in plane.records if record.reason is Reason.BUG]
        lane = getattr(plane.plane, "lane", None)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert [(record.status, record.answered_by) for record in bugs] == [(500, "gateway")]
    assert "ZeroDivisionError" in caplog.text
    if lane is not None:
        assert lane.faults == (1 if "true" in gateway else 0)
