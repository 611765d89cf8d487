"""WebSockets over HTTP/2 (RFC 8441): an extended CONNECT is an HTTP/1.1 origin's Upgrade, and its stream the tunnel."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import trio

from tcpgate.codec.http2 import frames
from tests.plane import TestPlane, serving
from tests.proxy.http2_client import Answer, Http2Client, http2_client
from tests.proxy.scripted import Play, answering, config, head, origin, settled

H2 = "http2 = true"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def connect(client: Http2Client, path: str = "/chat") -> int:
    """Ask for a WebSocket; the number of its stream."""
    number = client.h2.get_next_available_stream_id()
    fields = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":authority", b"t.example"),
    ]
    fields += [(b":path", path.encode()), (b"sec-websocket-version", b"13"), (b"origin", b"http://t.example")]
    client.h2.send_headers(number, fields)
    client.answers[number] = Answer()
    await client.flush()
    return number


def accepting(request: bytes) -> bytes:
    """The 101 that a request for a WebSocket is answered with."""
    lines = dict(line.lower().split(b": ", 1) for line in request.split(b"\r\n")[1:-2])
    keys = [line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")]
    assert lines[b"upgrade"] == b"websocket"
    assert len(base64.b64decode(keys[0], validate=True)) == 16
    accept = base64.b64encode(hashlib.sha1(keys[0] + GUID).digest())
    return b"\r\n".join(
        [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept,
            b"Sec-WebSocket-Protocol: chat",
            b"",
            b"",
        ]
    )


async def echo(stream: trio.SocketStream) -> None:
    """An origin's play: it takes the WebSocket, then says everything back."""
    await stream.send_all(accepting(await head(stream)) + b"welcome")
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def received(client: Http2Client, number: int, count: int) -> bytes:
    """What came in the tunnel, once it is so many bytes."""
    with trio.fail_after(30):
        while len(client.answers[number].body) < count:
            assert await client.hear()
    return client.answers[number].body


async def test_an_extended_connect_becomes_an_upgrade_and_its_stream_a_tunnel(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with (
        serving(tmp_path, config(await origin(nursery, echo), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        number = await connect(client)
        answer = await client.head(number)
        assert answer.status == 200
        assert answer.fields[b"sec-websocket-protocol"] == b"chat"
        assert not answer.fields.keys() & {b"sec-websocket-accept", b"upgrade", b"connection"}
        assert await received(client, number, 7) == b"welcome"
        big = bytes(range(256)) * 2048  # many windows
        await client.send(number, big)
        got = await received(client, number, 7 + len(big))
        assert got[7:] == big
        client.h2.end_stream(number)
        await client.flush()
        assert (await client.answer(number)).ended
        record = await plane.record()
        await settled(plane, connections=1)
    assert (record.status, record.reason, record.answered_by) == (101, "tunnel_closed", "upstream")


async def test_a_reset_of_the_stream_is_a_reset_of_the_tunnel(tmp_path: Path, nursery: trio.Nursery) -> None:
    torn = trio.Event()

    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(accepting(await head(stream)))
        try:
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            torn.set()

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        number = await connect(client)
        await client.head(number)
        client.h2.reset_stream(number, frames.CANCEL)
        await client.flush()
        with trio.fail_after(30):
            await torn.wait()
        record = await plane.record()
        await settled(plane, connections=1)
    assert record.reason == "client_abort"


async def test_a_lost_origin_resets_the_stream(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(accepting(await head(stream)))
        stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0: the close is a reset

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        answer = await client.answer(await connect(client))
        record = await plane.record()
    assert (answer.status, answer.reset) == (200, frames.CANCEL)
    assert record.reason == "upstream_closed"


async def _refused(tmp_path: Path, nursery: trio.Nursery, play: Play) -> tuple[Answer, TestPlane]:
    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        answer = await client.answer(await connect(client))
        await plane.record()
    return answer, plane


async def test_a_200_of_the_origin_is_no_acceptance(tmp_path: Path, nursery: trio.Nursery) -> None:
    answer, plane = await _refused(tmp_path, nursery, answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    assert (answer.status, plane.records[0].reason) == (502, "upgrade_failed")


async def test_a_101_with_another_accept_is_none(tmp_path: Path, nursery: trio.Nursery) -> None:
    wrong = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n"
    answer, plane = await _refused(tmp_path, nursery, answering(wrong))
    assert (answer.status, plane.records[0].reason) == (502, "upgrade_failed")


async def test_a_refusal_of_the_origin_is_passed_on(tmp_path: Path, nursery: trio.Nursery) -> None:
    answer, plane = await _refused(tmp_path, nursery, answering(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"))
    assert (answer.status, answer.body, plane.records[0].reason) == (403, b"no", "ok")


async def test_a_drain_cuts_a_tunnel_at_its_end(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, config(await origin(nursery, echo), listener=H2)) as plane:
        async with http2_client(plane) as client:
            number = await connect(client)
            await received(client, number, 7)
            plane.servers["web"].retire(0.3)
            answer = await client.answer(number)
        record = await plane.record()
    assert answer.reset is not None or client.ended
    assert record.reason == "drained"


async def test_an_inspected_websocket_is_read_frame_by_frame(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(accepting(await head(stream)))
        while await stream.receive_some(65536):
            pass

    text = config(await origin(nursery, play), listener=H2, route='websocket = { max_message = "1KiB" }')
    async with serving(tmp_path, text) as plane, http2_client(plane) as client:
        number = await connect(client)
        assert (await client.head(number)).status == 200
        await client.send(number, b"\x82\xfe\x08\x00" + b"\0\0\0\0" + b"x" * 2048)  # a message that is too large
        answer = await client.answer(number)
        record = await plane.record()
    assert b"\x88" in answer.body  # a Close
    assert record.reason == "message_too_large"
