"""Requests sent ahead of their answers: served one by one, answered in order, however the last of them looks."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from tests.gateway import Recorder, plain_answer
from tests.plane import serving
from tests.proxy.scripted import GET, client, config, origin, rest, settled, silent, until


def get(path: bytes) -> bytes:
    """A request for `path`."""
    return b"GET %b HTTP/1.1\r\nHost: t\r\n\r\n" % path


async def test_answers_come_in_the_order_of_the_requests(tmp_path: Path, nursery: trio.Nursery) -> None:
    recorder = Recorder(lambda head, body: plain_answer(b"<%b>" % head.target))
    port = await nursery.start(recorder.serve)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        post = b"POST /1 HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc"
        await stream.send_all(get(b"/0") + post + get(b"/2") + get(b"/3"))
        said = await until(stream, b"</3>")
        await settled(plane, connections=1)
    assert [said.index(b"</%d>" % number) for number in range(4)] == sorted(
        said.index(b"</%d>" % number) for number in range(4)
    )
    assert said.count(b"HTTP/1.1 200 ") == 4
    assert recorder.connections == 1
    assert [body for _, body in recorder.requests] == [b"", b"abc", b"", b""]


async def test_a_bad_request_behind_a_good_one_is_refused_after_the_good_one_was_answered(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    recorder = Recorder(lambda head, body: plain_answer(b"good"))
    port = await nursery.start(recorder.serve)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(GET + b"GET / HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n" + GET)
        said = await rest(stream)
        await stream.aclose()
        await settled(plane)
    first, _, second = said.partition(b"good")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in second
    assert b"HTTP/1.1 200 " not in second
    assert [record.reason for record in plane.records] == ["ok", "bad_request"]
    assert len(recorder.requests) == 1


async def test_what_is_pipelined_behind_an_answer_that_closes_does_not_destroy_that_answer(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    body = b"a" * 150_000  # more than the client's kernel takes unread, less than ours holds
    recorder = Recorder(lambda head, _: plain_answer(body))
    port = await nursery.start(recorder.serve)
    async with serving(tmp_path, config(port)) as plane:
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.connect(("127.0.0.1", plane.port()))
        async with trio.SocketStream(raw) as stream:
            await settled(plane, connections=1)
            await stream.send_all(GET)
            plane.servers["web"].retire(30)
            await plane.record()  # all of the answer is with our kernel
            await trio.sleep(0.02)
            await stream.send_all(get(b"/next") * 100)
            await trio.sleep(0.05)
            said = await rest(stream)
    assert said.endswith(b"\r\n\r\n" + body)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in said


async def test_a_client_that_sends_ahead_without_end_is_held_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Nobody reads more of it than a bound while the first request waits for its answer."""
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        with trio.move_on_after(0.3):
            for _ in range(1000):
                await stream.send_all(get(b"/" + b"a" * 1000) * 64)
        (connection,) = plane.servers["web"].connections
        assert connection.buffered < 300_000  # type: ignore[attr-defined]
    assert len(plane.records) == 1
