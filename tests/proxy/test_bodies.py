"""Bodies and their ends: chunks and trailers both ways, HTTP/1.0 on either side, answers before the body is over."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tcpgate.codec.http1 import MAX_INFORMATIONAL
from tests.gateway import Recorder, plain_answer, talk
from tests.plane import serving
from tests.proxy.scripted import GET, OK, answering, client, config, head, origin, post, rest, settled, until

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"


async def test_chunks_and_trailers_go_up(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await until(stream, b"X-Sum: 9\r\n\r\n"))
        await stream.send_all(OK)

    raw = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        for piece in (raw, b"3\r\nabc", b"\r\n4;x=y\r\nde", b"fg\r\n0\r\nX-Sum: 9\r\n\r\n"):
            await stream.send_all(piece)
            await trio.sleep(0.01)
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
    assert b"Transfer-Encoding: chunked\r\n" in got[0]
    assert b"x=y" not in got[0]
    assert got[0].endswith(b"0\r\nX-Sum: 9\r\n\r\n")


async def test_chunks_and_trailers_come_down(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, answering(CHUNKED))
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), GET, until=lambda said: said.endswith(b"7\r\n\r\n"))
    assert b"\r\nTransfer-Encoding: chunked\r\n" in said
    assert said.endswith(b"5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n")


async def test_a_1_0_client_gets_a_chunked_answer_up_to_the_close(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, answering(CHUNKED))
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), b"GET / HTTP/1.0\r\nHost: t\r\n\r\n")
    assert b"Transfer-Encoding" not in said
    assert said.endswith(b"\r\n\r\nhello")


async def test_an_answer_up_to_the_close_of_a_1_0_origin_is_chunked_for_the_client(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await origin(nursery, answering(b"HTTP/1.0 200 OK\r\n\r\nhello"))
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(2):  # and its connection goes on
            await stream.send_all(GET)
            said = await until(stream, b"0\r\n\r\n")
            assert said.endswith(b"5\r\nhello\r\n0\r\n\r\n")
        await settled(plane, connections=1)
        assert plane.counts("endpoint", f"api/127.0.0.1:{port}")["reused"] == 0


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_leaves_both_connections_usable(
    tmp_path: Path, nursery: trio.Nursery, status: bytes
) -> None:
    port = await origin(nursery, answering(*[b"HTTP/1.1 %b\r\nX-End: 1\r\n\r\n" % status] * 2))
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        for _ in range(2):
            await stream.send_all(GET)
            assert (await head(stream)).startswith(b"HTTP/1.1 " + status)
        await settled(plane, connections=1)
        assert plane.counts("endpoint", f"api/127.0.0.1:{port}")["reused"] == 1


async def test_a_head_answer_keeps_its_length_and_has_no_body(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", OK))
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(GET.replace(b"GET", b"HEAD"))
        said = await head(stream)
        assert b"Content-Length: 99\r\n" in said
        assert said.endswith(b"\r\n\r\n")
        await stream.send_all(GET)
        assert (await until(stream, b"ok")).endswith(b"\r\n\r\nok")


async def test_informational_heads_are_passed_on_before_the_final_one(tmp_path: Path, nursery: trio.Nursery) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    port = await origin(nursery, answering(early + early + OK))
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), GET, until=lambda said: said.endswith(b"ok"))
        old = await talk(plane.port(), b"GET / HTTP/1.0\r\nHost: t\r\n\r\n")
    assert said.count(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n") == 2
    assert b"HTTP/1.1 200 OK\r\n" in said
    assert old.startswith(b"HTTP/1.1 200 ")  # RFC 9110 15.2: a 1.0 client must not get one


async def test_1xx_without_end_end_with_a_502(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, answering(b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INFORMATIONAL + 1)))
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), GET, until=lambda said: b"problem" in said)
        record = await plane.record()
    assert said.count(b"HTTP/1.1 102 ") <= MAX_INFORMATIONAL
    assert b"HTTP/1.1 502 " in said
    assert (record.reason, record.status, record.answered_by) == ("upstream_protocol", 502, "gateway")
    assert len(record.attempts) == 1  # no other endpoint once the client has got a word of this one


async def test_a_client_that_sends_on_after_an_early_answer_gets_all_of_it(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    answer = b"a" * 300_000
    over = trio.Event()

    async def refuse(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n" + answer)
        # Closing with a body unread resets, and its own kernel would throw away what of the answer has not left yet.
        await over.wait()

    port = await origin(nursery, refuse)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(post(20_000_000))
        for _ in range(20):  # all of it, before it reads a word
            await stream.send_all(bytes(1_000_000))
        said = await rest(stream)
        over.set()
        await stream.aclose()
        await settled(plane)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(b"\r\n\r\n" + answer)
    assert (record.reason, record.status) == ("ok", 413)


async def test_an_answer_that_breaks_in_the_first_read_is_passed_on_as_far_as_it_is_good(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await origin(
        nursery, answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n")
    )
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), GET)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert not said.endswith(b"0\r\n\r\n")
    assert (record.reason, record.status, record.answered_by) == ("upstream_protocol", 200, "upstream")
    assert len(record.attempts) == 1


async def test_a_small_body_goes_up_with_its_head_in_one_piece(tmp_path: Path, nursery: trio.Nursery) -> None:
    pieces: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        pieces.append(await stream.receive_some(65536))
        await stream.send_all(OK)

    port = await origin(nursery, play)
    async with serving(tmp_path, config(port)) as plane:
        await talk(plane.port(), post(5) + b"hello", until=lambda said: said.endswith(b"ok"))
    assert pieces[0].endswith(b"\r\n\r\nhello")


async def test_bodies_stream_in_both_directions_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        said = await until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + said.partition(b"\r\n\r\n")[2])
        while chunk := await stream.receive_some(65536):
            await stream.send_all(chunk)

    raw = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(tmp_path, config(await origin(nursery, echo))) as plane, client(plane) as stream:
        await stream.send_all(raw)
        await head(stream)
        for word in (b"one", b"two", b"six"):
            await stream.send_all(b"3\r\n%b\r\n" % word)
            assert await until(stream, word + b"\r\n") == b"3\r\n%b\r\n" % word
        await stream.send_all(b"0\r\n\r\n")
        assert await until(stream, b"0\r\n\r\n") == b"0\r\n\r\n"
        record = await plane.record()
    assert record.reason == "ok"


async def test_after_an_early_success_the_body_still_goes_up_and_both_connections_go_on(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    got: list[bytes] = []

    async def early(stream: trio.SocketStream) -> None:
        got.append(await head(stream))
        await stream.send_all(OK)
        got.append(await until(stream, b"-end"))
        got.append(await head(stream))
        await stream.send_all(OK)

    port = await origin(nursery, early)
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        await stream.send_all(post(8))
        assert b"Connection: close" not in await until(stream, b"ok")
        await stream.send_all(b"body")
        await trio.sleep(0.02)
        await stream.send_all(b"-end" + GET)
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
        await settled(plane, connections=1)
        assert plane.counts("endpoint", f"api/127.0.0.1:{port}")["reused"] == 1
    assert got[1] == b"body-end"
    assert [record.reason for record in plane.records] == ["ok", "ok"]


async def test_a_client_that_leaves_after_an_early_success_has_had_its_answer(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await origin(nursery, answering(OK, b""))
    async with serving(tmp_path, config(port)) as plane:
        async with client(plane) as stream:
            await stream.send_all(post(8))
            await until(stream, b"ok")
        record = await plane.record()
        await settled(plane)
    assert (record.reason, record.status) == ("ok", 200)


async def test_asterisk_and_absolute_form_go_up_as_origin_servers_want_them(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    recorder = Recorder(lambda head, body: plain_answer())
    port = await nursery.start(recorder.serve)
    async with serving(tmp_path, config(port)) as plane:
        for line in (b"OPTIONS * HTTP/1.1", b"GET http://a.test/x?y HTTP/1.1"):
            host = b"a.test"
            await talk(plane.port(), line + b"\r\nHost: %b\r\n\r\n" % host, until=lambda said: said.endswith(b"hello"))
        question = b"OPTIONS * HTTP/1.1\r\nHost: t\r\nMax-Forwards: 0\r\n\r\n"
        said = await talk(plane.port(), question, until=lambda said: said.endswith(b"\r\n\r\n"))
    assert [request.target for request, _ in recorder.requests] == [b"*", b"/x?y"]
    assert said.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nAllow: " in said
