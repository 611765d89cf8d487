"""WebSockets whose frames are read: what passes, what is refused and how, silence, and goodbyes."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest

from tests.plane import TestPlane, serving
from tests.proxy.http2_client import http2_client
from tests.proxy.scripted import client, config, head, rest, settled
from tests.proxy.sockets import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Raw,
    close,
    code_of,
    frame,
    frames,
    hand_over,
    raw,
    server,
    socket,
)
from tests.proxy.test_http2_websocket import connect, received

LIMIT = 1000
INSPECT = f'websocket = {{ max_message = "{LIMIT}B", ping = "30s" }}'


@asynccontextmanager
async def opened(
    folder: Path, nursery: trio.Nursery, *fields: bytes, route: str = INSPECT, gateway: str = "", listener: str = ""
) -> AsyncIterator[tuple[TestPlane, Raw]]:
    """A WebSocket through the gateway, both of whose ends are the test's."""
    port, accepted = await hand_over(nursery, *fields)
    text = config(port, route=route, gateway=gateway, listener=listener)
    async with serving(folder, text) as plane, raw(plane, accepted) as both:
        yield plane, both


async def exactly(stream: trio.SocketStream, wanted: bytes) -> None:
    """What comes next is `wanted`."""
    said = b""
    with trio.fail_after(20):
        while len(said) < len(wanted):
            said += await stream.receive_some(len(wanted) - len(said))
    assert said == wanted


async def next_frame(stream: trio.SocketStream) -> tuple[int, bytes]:
    """The next frame, alone."""
    said = b""
    with trio.fail_after(20):
        while not (found := frames(said)):
            chunk = await stream.receive_some(1)
            assert chunk, "it ended"
            said += chunk
    return found[0]


# -- what passes ----------------------------------------------------------------------------------------------------


async def test_messages_of_all_sizes_come_back_as_they_went(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await server(nursery), route='websocket = { max_message = "1MiB" }')
    async with serving(tmp_path, text) as plane:
        async with socket(plane) as one:
            for message in ("", "hello", "ä" * 60_000, b"", b"\xff" * 125, b"x" * 126, b"y" * 65_536, b"z" * (1 << 20)):
                await one.send_message(message)
                assert await one.get_message() == message
            await one.ping(b"are you there")
        record = await plane.record()
        await settled(plane)
    assert (record.status, record.reason, record.detail) == (101, "tunnel_closed", "closed with 1000")


async def test_fragments_pings_and_masks_pass_byte_by_byte(tmp_path: Path, nursery: trio.Nursery) -> None:
    said = (
        frame(TEXT, b"one", masked=True, fin=False)
        + frame(PING, b"ping", masked=True)
        + frame(CONTINUATION, b"two", masked=True)
        + frame(PONG, b"unasked", masked=True)
        + frame(BINARY, b"\xff" * 300, masked=True)
    )
    answer = frame(PONG, b"ping", masked=False) + frame(TEXT, masked=False)
    async with opened(tmp_path, nursery) as (_, both):
        for index in range(len(said)):
            await both.client.send_all(said[index : index + 1])
        await exactly(both.server, said)
        await both.server.send_all(answer)
        await exactly(both.client, answer)


async def test_frames_that_come_with_the_101_are_read_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def greet(request: WebSocketRequest) -> None:
        one = await request.accept()
        await one.send_message("welcome")
        await one.send_message(await one.get_message())

    async with serving(tmp_path, config(await server(nursery, greet), route=INSPECT)) as plane, socket(plane) as one:
        assert await one.get_message() == "welcome"
        await one.send_message("thanks")
        assert await one.get_message() == "thanks"


async def test_an_upgrade_to_something_else_is_a_tunnel_as_ever(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        async with stream:
            await head(stream)
            await stream.send_all(b"HTTP/1.1 101 S\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
            await stream.send_all(b"\xff no frames " + await rest(stream))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, play, listeners)
    port = listeners[0].socket.getsockname()[1]
    upgrade = b"GET / HTTP/1.1\r\nHost: t\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"
    async with serving(tmp_path, config(port, route=INSPECT)) as plane, client(plane) as stream:
        await stream.send_all(upgrade + b"\xff\xfe")
        await head(stream)
        await stream.send_eof()
        assert await rest(stream) == b"\xff no frames \xff\xfe"


async def test_compressed_messages_pass_where_both_sides_agreed(tmp_path: Path, nursery: trio.Nursery) -> None:
    deflated = frame(TEXT, b"\xff\x00\xee", masked=True, bits=4)
    async with opened(tmp_path, nursery, b"Sec-WebSocket-Extensions: permessage-deflate") as (_, both):
        await both.client.send_all(deflated)
        await exactly(both.server, deflated)


async def test_a_reader_that_does_not_read_holds_its_sender_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    route = 'websocket = { max_message = "1GiB" }'
    async with opened(tmp_path, nursery, route=route) as (plane, both):
        await both.client.send_all(b"\x82\xff" + struct.pack("!Q", 1 << 29) + b"\0\0\0\0")
        sent = 0
        with trio.move_on_after(60):
            while True:
                with trio.move_on_after(1) as pause:
                    sent += await both.client.socket.send(bytes(1 << 16))
                if pause.cancelled_caught:
                    break
        assert sent < 1 << 27  # what the kernels' buffers hold, and one read of ours
        [server] = plane.servers.values()
        assert all(getattr(one, "buffered", 0) <= 1 << 16 for one in server.connections)
        nursery.start_soon(drop, both.server)
        await both.client.send_all(bytes(1 << 20))


async def drop(stream: trio.SocketStream) -> None:
    """Read, and forget."""
    while await stream.receive_some(1 << 16):
        pass


# -- what is refused ------------------------------------------------------------------------------------------------

FAULTS = {
    "a message above the limit": (frame(BINARY, b"x" * (LIMIT + 1), masked=True), 1009, "message_too_large"),
    "a frame without a mask": (frame(TEXT, b"x", masked=False), 1002, "bad_frame"),
    "an opcode that is none": (frame(5, b"x", masked=True), 1002, "bad_frame"),
    "a fragmented ping": (frame(PING, b"x", masked=True, fin=False), 1002, "bad_frame"),
    "a ping that is too long": (frame(PING, b"x" * 126, masked=True), 1002, "bad_frame"),
    "text that is no UTF-8": (frame(TEXT, b"\xff", masked=True), 1007, "bad_frame"),
    "a bit that nobody agreed to": (frame(TEXT, b"x", masked=True, bits=4), 1002, "bad_frame"),
    "a close with a code that may not be": (close(1005, masked=True), 1002, "bad_frame"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_client_that_breaks_the_rules_is_told_and_so_is_the_server(
    name: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    bad, code, reason = FAULTS[name]
    good = frame(TEXT, b"good", masked=True)
    async with opened(tmp_path, nursery) as (plane, both):
        await both.client.send_all(good + bad + good)
        client = frames(await rest(both.client))
        await both.client.aclose()
        at_server = [await next_frame(both.server), await next_frame(both.server)]
        await both.server.send_all(close(1001, masked=False))
        record = await plane.record()
        await settled(plane)
    assert [(one, code_of(payload)) for one, payload in client] == [(CLOSE, code)]
    assert at_server[0] == (TEXT, b"good")
    assert (at_server[1][0], code_of(at_server[1][1])) == (CLOSE, 1001)
    assert (record.status, record.reason, record.answered_by) == (101, reason, "upstream")
    assert record.detail.startswith("client: ")


async def test_a_server_that_breaks_the_rules_is_told_and_so_is_the_client(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with opened(tmp_path, nursery) as (plane, both):
        await both.server.send_all(frame(TEXT, b"good", masked=False) + frame(TEXT, b"x", masked=True))
        assert await next_frame(both.client) == (TEXT, b"good")
        opcode, payload = await next_frame(both.client)
        await both.client.send_all(close(1011, masked=True))
        at_server = frames(await rest(both.server))
        await both.server.aclose()
        record = await plane.record()
        await settled(plane)
    assert (opcode, code_of(payload)) == (CLOSE, 1011)
    assert [(one, code_of(payload)) for one, payload in at_server] == [(CLOSE, 1002)]
    assert (record.reason, record.detail.partition(":")[0]) == ("upstream_protocol", "upstream")


async def test_the_limit_holds_for_the_server_too_and_for_fragments_together(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    half = frame(BINARY, b"x" * 600, masked=False, fin=False)
    async with opened(tmp_path, nursery) as (plane, both):
        await both.server.send_all(half + frame(CONTINUATION, b"y" * 600, masked=False))
        client, at_server = await both.closes()
        record = await plane.record()
    assert client[0] == (BINARY, b"x" * 600)
    assert [(one, code_of(payload)) for one, payload in client[1:]] == [(CLOSE, 1011)]
    assert [(one, code_of(payload)) for one, payload in at_server] == [(CLOSE, 1009)]
    assert record.reason == "message_too_large"


async def test_a_client_library_is_told_its_message_is_too_large(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await server(nursery), route=INSPECT)) as plane, socket(plane) as one:
        await one.send_message("x" * 2000)
        with pytest.raises(ConnectionClosed) as caught:
            await one.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1009


# -- silence --------------------------------------------------------------------------------------------------------


async def test_a_silent_client_is_pinged_and_its_answer_goes_no_further(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with opened(tmp_path, nursery, route='websocket = { ping = "300ms" }') as (plane, both):
        for _ in range(4):
            opcode, payload = await next_frame(both.client)
            assert opcode == PING
            await both.client.send_all(frame(PONG, payload, masked=True))
        await both.client.send_all(frame(TEXT, b"still", masked=True))
        assert await next_frame(both.server) == (TEXT, b"still")
        assert not plane.records


async def test_a_client_library_that_answers_pings_stays(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(await server(nursery), route='websocket = { ping = "200ms" }')
    async with serving(tmp_path, text) as plane, socket(plane) as one:
        await trio.sleep(1.5)
        await one.send_message("still")
        assert await one.get_message() == "still"
        assert not plane.records


@pytest.mark.slow
async def test_a_client_that_answers_no_ping_is_taken_for_gone(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with opened(tmp_path, nursery, route='websocket = { ping = "300ms" }') as (plane, both):
        client, at_server = await both.closes()
        record = await plane.record()
        await settled(plane)
    assert client[0][0] == PING
    assert [(one, code_of(payload)) for one, payload in client[1:]] == [(CLOSE, 1001)]
    assert [(one, code_of(payload)) for one, payload in at_server] == [(CLOSE, 1001)]
    assert (record.reason, record.detail) == ("idle_timeout", "the client was silent for 0.6s")


async def test_a_websocket_in_which_nothing_moves_ends_for_all_its_pongs(tmp_path: Path, nursery: trio.Nursery) -> None:
    text = config(
        await server(nursery), route='websocket = { ping = "200ms" }', listener='timeouts = { tunnel = "1s" }'
    )
    async with serving(tmp_path, text) as plane, socket(plane) as one:
        with pytest.raises(ConnectionClosed) as caught:
            await one.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1001
        record = await plane.record()
        assert (record.reason, record.detail) == ("idle_timeout", "nothing moved for 1s")


# -- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_close_and_its_answer_end_it_in_good_order(first: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    ask, answer = close(3000, b"done", masked=first == "client"), close(3000, masked=first == "server")
    async with opened(tmp_path, nursery) as (plane, both):
        one, other = (both.client, both.server) if first == "client" else (both.server, both.client)
        await one.send_all(ask)
        await exactly(other, ask)
        await other.send_all(answer)
        await exactly(one, answer)
        assert await one.receive_some(10) == b""
        assert await other.receive_some(10) == b""
        record = await plane.record()
        await settled(plane)
    assert (record.reason, record.detail) == ("tunnel_closed", "closed with 3000")


async def test_a_server_that_ends_without_a_close_is_told_to_the_client_as_going_away(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with opened(tmp_path, nursery) as (plane, both):
        await both.server.send_all(frame(TEXT, b"last", masked=False))
        await both.server.aclose()
        client = frames(await rest(both.client))
        record = await plane.record()
    assert client[0] == (TEXT, b"last")
    assert [(one, code_of(payload)) for one, payload in client[1:]] == [(CLOSE, 1001)]
    assert (record.reason, record.detail) == ("tunnel_closed", "ended without a Close")


async def test_a_client_that_is_lost_is_told_to_the_server(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with opened(tmp_path, nursery) as (plane, both):
        both.client.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await both.client.aclose()
        at_server = await next_frame(both.server)
        await both.server.send_all(close(1001, masked=False))
        record = await plane.record()
        await settled(plane)
    assert (at_server[0], code_of(at_server[1])) == (CLOSE, 1001)
    assert record.reason == "client_abort"


# -- drains ---------------------------------------------------------------------------------------------------------


async def test_a_drain_says_restart_and_the_clients_last_words_still_go(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with opened(tmp_path, nursery) as (plane, both):
        plane.servers["web"].retire(6)
        for text in (b"before", b"and yet"):
            await both.client.send_all(frame(TEXT, text, masked=True))
            assert await next_frame(both.server) == (TEXT, text)
        opcode, payload = await next_frame(both.client)
        assert (opcode, code_of(payload)) == (CLOSE, 1012)
        last = frame(TEXT, b"last words", masked=True) + close(1012, masked=True)
        await both.client.send_all(last)
        await exactly(both.server, last)
        await both.server.send_all(frame(TEXT, b"too late", masked=False) + close(1012, masked=False))
        assert await rest(both.client) == b""
        record = await plane.record()
        await settled(plane)
    assert (record.status, record.reason, record.detail) == (101, "drained", "closed with 1012")
    assert record.answered_by == "upstream"


async def test_a_drain_waits_for_the_end_of_the_message(tmp_path: Path, nursery: trio.Nursery) -> None:
    whole = frame(TEXT, b"one", masked=False, fin=False) + frame(CONTINUATION, b"two", masked=False)
    next_one = frame(TEXT, b"not this", masked=False, fin=False)
    async with opened(tmp_path, nursery, gateway='drain = "4s"') as (plane, both):
        await both.server.send_all(whole[:3])
        await exactly(both.client, whole[:3])
        plane.servers["web"].retire(0)
        await trio.sleep(0.3)
        await both.server.send_all(whole[3:] + next_one)
        await exactly(both.client, whole[3:])
        opcode, payload = await next_frame(both.client)
        assert (opcode, code_of(payload)) == (CLOSE, 1012)


async def test_an_endpoint_that_is_removed_is_told_as_going_away_and_so_is_the_client(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with opened(tmp_path, nursery, gateway='drain = "1s"') as (plane, both):
        plane.apply(config(1, route=INSPECT, gateway='drain = "1s"'))
        opcode, payload = await next_frame(both.client)
        assert (opcode, code_of(payload)) == (CLOSE, 1001)
        await both.client.send_all(close(1001, masked=True))
        await exactly(both.server, close(1001, masked=True))
        await both.server.send_all(close(1001, masked=False))
        assert await rest(both.client) == b""
        assert (await plane.record()).reason == "drained"


async def test_a_client_that_does_not_answer_a_drain_costs_no_more_than_its_time(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with opened(tmp_path, nursery, gateway='drain = "1s"') as (plane, both):
        plane.servers["web"].retire(1)
        client, at_server = await both.closes()
        record = await plane.record()
        await settled(plane)
    assert [(one, code_of(payload)) for one, payload in client] == [(CLOSE, 1012)]
    assert [(one, code_of(payload)) for one, payload in at_server] == [(CLOSE, 1001)]
    assert (record.reason, record.detail) == ("drained", "closed with 1012")


async def test_a_frame_that_a_drain_cuts_is_torn_for_whoever_had_its_beginning(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    part = frame(BINARY, b"x" * 500, masked=False)[:100]
    async with opened(tmp_path, nursery, gateway='drain = "1s"') as (plane, both):
        await both.server.send_all(part)
        await exactly(both.client, part)
        plane.servers["web"].retire(1)
        with pytest.raises(trio.BrokenResourceError):
            await both.client.receive_some(1)
        assert [one for one, _ in frames(await rest(both.server))] == [CLOSE]
        assert (await plane.record()).reason == "drained"


# -- over HTTP/2 ----------------------------------------------------------------------------------------------------


async def test_frames_are_read_of_a_websocket_over_http2_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    port, accepted = await hand_over(nursery)
    good, large = frame(TEXT, b"good", masked=True), frame(BINARY, b"x" * (LIMIT + 1), masked=True)
    async with (
        serving(tmp_path, config(port, route=INSPECT, listener="http2 = true")) as plane,
        http2_client(plane) as two,
    ):
        number = await connect(two)
        server_side = await accepted.receive()
        assert (await two.head(number)).status == 200
        await two.send(number, good)
        await exactly(server_side, good)
        await server_side.send_all(frame(TEXT, b"answer", masked=False))
        await received(two, number, 8)
        await two.send(number, large)
        told = await received(two, number, 12)
        assert (await next_frame(server_side))[0] == CLOSE
        await server_side.send_all(close(1001, masked=False))
        assert (await two.answer(number)).ended
        record = await plane.record()
    assert frames(told)[0] == (TEXT, b"answer")
    assert (frames(told)[1][0], code_of(frames(told)[1][1])) == (CLOSE, 1009)
    assert (record.status, record.reason) == (101, "message_too_large")
