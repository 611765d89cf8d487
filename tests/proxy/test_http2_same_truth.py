"""On HTTP/2 streams, too, the lane and the readable path tell the same truth (as test_same_truth.py for HTTP/1.1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tcpgate.codec.http2 import frames
from tests.plane import TestPlane, serving
from tests.proxy.http2_client import Http2Client, http2_client
from tests.proxy.scripted import OK, always_ok, answering, busy, config, head, in_flight, origin, settled, silent
from tests.proxy.truth import Row
from tests.proxy.truth_http2 import WINDOW, get, together
from tests.proxy.truth_http2_rows import ROWS
from tests.proxy.truth_run import differences, origin_sockets, played

H2 = "http2 = true"
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "readable"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_both_paths_tell_the_same_of_streams(row: Row, tmp_path: Path) -> None:
    with origin_sockets(len(row.origins)) as sockets:
        off = await played(tmp_path, row, sockets, lane=False)
        on = await played(tmp_path, row, sockets, lane=True)
    assert tuple(f"{one['status']} {one['reason']}" for one in off.records) == row.says, "with the lane off"
    differ = differences(on, off)
    assert not differ, "\n".join(differ)
    assert off.lane["lane_exchanges"] == 0


def test_the_table_of_streams_is_whole() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 110


def _text(port: int, *, lane: bool, listener: str = "", upstream: str = "") -> str:
    return config(port, listener=f"{H2}\n{listener}", upstream=upstream, gateway=f"lane = {str(lane).lower()}")


async def warmed(plane: TestPlane, client: Http2Client, count: int) -> None:
    """Idle upstream connections, and a client that knows what it may do."""
    for number in [await client.request() for _ in range(count)]:
        await client.answer(number)
    await settled(plane, connections=1)


@LANES
async def test_a_hundred_streams_at_once_are_all_answered(tmp_path: Path, nursery: trio.Nursery, lane: bool) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, _text(port, lane=lane)) as plane:
        async with http2_client(plane) as client:
            await warmed(plane, client, 50)
            for _ in range(3):
                numbers = await together(client, *[get(f"/{index}") for index in range(100)])
                answers = [await client.answer(number) for number in numbers]
                assert {(answer.status, answer.body) for answer in answers} == {(200, b"ok")}
                await settled(plane, connections=1)
        await plane.record(350)
        assert {record.reason for record in plane.records} == {"ok"}
        assert plane.counts("route", "all")["exchanges"] == 350


@LANES
async def test_a_request_and_its_reset_in_one_segment_leave_nothing(
    tmp_path: Path, nursery: trio.Nursery, lane: bool
) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, _text(port, lane=lane)) as plane, http2_client(plane) as client:
        numbers = [await client.request() for _ in range(3)]
        await busy(plane, 3)
        for number in numbers:
            client.h2.reset_stream(number, frames.CANCEL)
        for _ in range(20):
            number = client.h2.get_next_available_stream_id()
            pseudo = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"t"), (b":path", b"/"))
            client.h2.send_headers(number, pseudo, end_stream=True)
            client.h2.reset_stream(number, frames.CANCEL)
        await client.flush()
        await plane.record(23)
        await settled(plane, connections=1)
        assert {record.reason for record in plane.records} == {"client_abort"}


@LANES
async def test_a_reset_ends_a_request_at_once_whatever_its_endpoint_does(
    tmp_path: Path, nursery: trio.Nursery, lane: bool
) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await answering(OK)(stream)
        await head(stream)
        assert await stream.receive_some(1) == b""  # the gateway closes it, while we say nothing
        gone.set()

    gone = trio.Event()
    port = await origin(nursery, play)
    async with serving(tmp_path, _text(port, lane=lane)) as plane, http2_client(plane) as client:
        await warmed(plane, client, 1)
        number = await client.request()
        await busy(plane)
        client.h2.reset_stream(number, frames.CANCEL)
        await client.flush()
        with trio.fail_after(20):
            await gone.wait()
        record = await plane.record(2)
        assert (record.reason, record.detail) == ("client_abort", "RST_STREAM: CANCEL")


@LANES
async def test_a_worker_that_stops_leaves_nothing_in_flight(tmp_path: Path, nursery: trio.Nursery, lane: bool) -> None:
    async def play(stream: trio.SocketStream) -> None:
        while said := await head(stream):
            if b" /held " not in said:
                await stream.send_all(OK)

    port = await origin(nursery, play)
    left: tuple[object, ...] = ()
    async with serving(tmp_path, _text(port, lane=lane)) as plane, http2_client(plane) as client:
        await warmed(plane, client, 5)
        for _ in range(8):
            await client.request(path="/held")
        await busy(plane, 8)
        plane.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(20):
            while len(plane.records) < 13 or plane.servers["web"].connections:
                await trio.sleep(0.002)
        endpoint = next(iter(plane.plane.runtime.endpoints()))
        left = (endpoint.active(), in_flight(plane), len(plane.plane.lane.timed))
    # Not in there: what is raised in a scope that is cancelled would not be heard of.
    assert left == (0, (0, 0, 0), 0)
    assert {record.reason for record in plane.records[5:]} == {"drained"}


@LANES
async def test_a_window_that_opens_byte_by_byte_lets_the_answer_through(
    tmp_path: Path, nursery: trio.Nursery, lane: bool
) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, _text(port, lane=lane)) as plane, http2_client(plane, settings={WINDOW: 0}) as client:
        await warmed_by_windows(client)
        number = await client.request()
        await client.head(number)
        assert client.answers[number].body == b""
        for count in (1, 2):
            client.h2.increment_flow_control_window(1, number)
            await client.flush()
            while len(client.answers[number].body) < count:
                assert await client.hear()
        assert (await client.answer(number)).body == b"ok"


async def warmed_by_windows(client: Http2Client) -> None:
    """One answer, whose window is given at once."""
    number = await client.request()
    client.h2.increment_flow_control_window(100, number)
    await client.flush()
    await client.answer(number)
