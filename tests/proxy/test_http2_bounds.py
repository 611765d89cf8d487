"""What one HTTP/2 client may cost: its time, what it makes us keep, and what a drain still owes it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tcpgate.codec.http2 import frames
from tcpgate.codec.http2_stream import Inflow
from tcpgate.net.http2_link import MOST_WAITING
from tcpgate.proxy.http2 import Http2Connection
from tests.plane import TestPlane, serving
from tests.proxy.downgrade_cases import pseudo
from tests.proxy.http2_client import http2_client
from tests.proxy.http2_raw import RawClient, data, frame, headers, raw_client
from tests.proxy.scripted import OK, always_ok, client, config, head, origin, rest, settled, silent
from tests.proxy.test_http2_websocket import accepting, connect, received

H2 = "http2 = true"
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "readable"])


def _text(port: int, *, lane: bool, listener: str = "", **more: str) -> str:
    return config(port, listener=f"{H2}\n{listener}", gateway=f"lane = {str(lane).lower()}", **more)


def _connection(plane: TestPlane) -> Http2Connection:
    """The one that is open."""
    [connection] = plane.servers["web"].connections
    assert isinstance(connection, Http2Connection)
    return connection


# -- time -----------------------------------------------------------------------------------------------------------


async def test_settings_that_nobody_acknowledges_end_the_connection(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, silent), listener=f'{H2}\ntimeouts = {{ handshake = "200ms" }}')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(frames.PREFACE + frames.settings([]) + headers(pseudo()))
        said = await rest(stream)
        await plane.record(2)
        await settled(plane)
    assert frames.goaway(1, frames.SETTINGS_TIMEOUT, b"SETTINGS that were not acknowledged") in said
    assert {(record.status, record.reason) for record in plane.records} == {(408, "head_timeout")}


async def test_a_client_that_acknowledges_in_time_stays(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok), listener=f'{H2}\ntimeouts = {{ handshake = "300ms" }}')
    async with serving(tmp_path, text) as plane, raw_client(plane) as client:
        await trio.sleep(0.6)
        await client.stream.send_all(headers(pseudo()))
        assert await client.outcome() == "200"


@pytest.mark.parametrize("framed", [True, False], ids=["with a length", "without"])
async def test_a_body_that_drips_is_given_up(framed: bool, tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, silent)
    text = config(port, listener=f'{H2}\ntimeouts = {{ stall = "200ms", min_rate = "1KiB/s" }}')
    async with serving(tmp_path, text) as plane, raw_client(plane) as client, trio.open_nursery() as dripping:
        dripping.start_soon(_drip, client, framed)
        assert await client.outcome() == "408"
        dripping.cancel_scope.cancel()
        assert (await plane.record()).reason == "body_timeout"
        await settled(plane, connections=1)


async def _drip(client: RawClient, framed: bool) -> None:
    length = [(b"content-length", b"100000")] if framed else []
    await client.stream.send_all(headers([*pseudo(method=b"POST"), *length], end=False))
    while True:
        await client.stream.send_all(data(b"x", end=False))
        await trio.sleep(0.02)


@LANES
async def test_a_calls_timeout_is_heard_on_either_path(lane: bool, tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        while b" /held " not in await head(stream):
            await stream.send_all(OK)
        await silent(stream)

    call = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"100m")]
    async with serving(tmp_path, _text(await origin(nursery, play), lane=lane)) as plane, raw_client(plane) as client:
        await client.stream.send_all(headers(pseudo()))
        assert await client.outcome() == "200"
        await client.stream.send_all(headers([*pseudo(method=b"POST", path=b"/held"), *call], stream=3))
        assert await client.outcome(3) == "200"
    assert dict(client.fields[3])[b"grpc-status"] == b"4"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"INVALID CONNECTION PREFACE\r\n\r\n", b"\0\0"),  # a frame's length
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"HTTP/1.1 "),
        (b"GET  / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
    ],
)
async def test_a_preface_that_is_none_is_answered_as_what_it_may_be(line: bytes, answer: bytes, tmp_path: Path) -> None:
    # RFC 9113 3.4: PROTOCOL_ERROR to a preface that is none. RFC 9112 3: a 400 to a request that is none.
    async with serving(tmp_path, config(1, listener=H2)) as plane, client(plane) as stream:
        await stream.send_all(line)
        said = await rest(stream)
        await settled(plane)
    assert said.startswith(answer)
    assert answer != b"\0\0" or b"\0\0\0\1" in said[-60:]  # GOAWAY, PROTOCOL_ERROR


# -- what it makes us keep ------------------------------------------------------------------------------------------


def test_many_small_pieces_of_a_body_are_few() -> None:
    inflow = Inflow()
    for _ in range(32 << 10):
        inflow.put(b"ab")
    assert inflow.size == 64 << 10
    assert len(inflow._pieces) <= 32
    assert (inflow.take(3), inflow.take(1 << 20)) == (b"aba", b"ba" * 32766 + b"b")
    assert inflow.size == 0


LARGE = b"HTTP/1.1 204 No\r\n" + b"X: " + b"x" * 12_000 + b"\r\n\r\n"


@LANES
async def test_a_client_that_asks_and_never_reads_is_not_read_either(
    lane: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async def play(stream: trio.SocketStream) -> None:
        while await head(stream):
            await stream.send_all(LARGE)

    async with serving(tmp_path, _text(await origin(nursery, play), lane=lane)) as plane:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        await sock.connect(("127.0.0.1", plane.port()))
        async with trio.SocketStream(sock) as stream:
            await stream.send_all(frames.PREFACE + frames.settings([]) + frame(frames.SETTINGS, frames.ACK, 0))
            number, most = 1, 0
            with trio.move_on_after(20) as patience:
                while True:
                    for _ in range(20):
                        await stream.send_all(headers(pseudo(), stream=number))
                        number += 2
                    patience.deadline = trio.current_time() + 1.0
                    while len(plane.records) < number // 2:
                        await trio.sleep(0.001)
                    most = max(most, len(_connection(plane).link.machine.out))
            # It asks in steps of 20 answers of 12 kB; the kernels took what they took, and then nobody read it.
            assert most <= MOST_WAITING + 21 * 12_200
            assert len(plane.records) < number // 2
            assert number // 2 < 2000
        await settled(plane)


async def test_a_client_that_writes_before_it_reads_is_read_while_body_data_waits(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    taken = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal taken
        said = await head(stream)
        taken += len(said)  # some of the body is with it; chunks make up for the head
        if b" /big " in said:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (16 << 20) + bytes(16 << 20))
        while got := await stream.receive_some(65536):
            taken += len(got)

    patient = f'{H2}\ntimeouts = {{ stall = "60s" }}'  # nobody is to be cut for not reading here
    async with serving(tmp_path, config(await origin(nursery, play), listener=patient)) as plane:
        async with raw_client(plane) as client:
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            wide = frames.settings([(4, 1 << 30)]) + frames.window_update(0, 1 << 30)
            await client.stream.send_all(wide + headers(pseudo(path=b"/big")))
            before, sent = -1, 0
            while before != sent:  # until the kernels have taken what they take
                await trio.sleep(0.2)
                before, sent = sent, _connection(plane).link.stream.bytes_out
            with trio.fail_after(50):
                for number in range(3, 33, 2):
                    post = headers(pseudo(method=b"POST"), end=False, stream=number)
                    await client.stream.send_all(post + 4 * data(bytes(15_000), end=False, stream=number))
                while taken < 15 * 60_000:
                    await trio.sleep(0.002)
        await settled(plane)


# -- what a connection remembers ------------------------------------------------------------------------------------


async def test_what_a_secure_connection_may_ask_is_not_known_to_another(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await origin(nursery, always_ok), listener=H2)
    async with serving(tmp_path, text) as plane, raw_client(plane) as client:
        await client.stream.send_all(headers(pseudo()))
        assert await client.outcome() == "200"
        shared = _connection(plane).shared
        fields = tuple(pseudo(scheme=b"https"))
        assert shared.read_http2(fields, True) is not None
        assert shared.read_http2(fields, False) is None


# -- a drain --------------------------------------------------------------------------------------------------------


async def test_a_drain_that_is_over_still_takes_the_time_of_a_farewell(tmp_path: Path, nursery: trio.Nursery) -> None:
    heard: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(accepting(await head(stream)))
        heard.append(await stream.receive_some(4096))
        await stream.send_all(b"\x88\x02\x03\xf4")
        await rest(stream)

    text = config(
        await origin(nursery, play), listener=H2, route='websocket = { max_message = "1KiB" }', gateway='drain = "2s"'
    )
    async with serving(tmp_path, text) as plane, http2_client(plane) as client:
        number = await connect(client)
        assert (await client.head(number)).status == 200
        plane.servers["web"].retire(0.0)
        told = await received(client, number, 4)
        await client.send(number, b"\x88\x82\0\0\0\0" + told[2:4])  # the answer to its Close
        answer = await client.answer(number)
        record = await plane.record()
        await settled(plane)
    assert told[0] == 0x88
    assert int.from_bytes(told[2:4], "big") == 1012
    assert (answer.reset, answer.ended) == (frames.NO_ERROR, True)  # whole, and nobody reads what still comes
    assert (record.reason, record.detail) == ("drained", "closed with 1012")
    assert heard[0][:1] == b"\x88"
