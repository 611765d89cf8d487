"""Exchanges over HTTP/2 through the real data plane: what goes up, what comes down, what is written."""

from __future__ import annotations

from pathlib import Path

import h11
import pytest
import trio

from tcpgate.net import http2_stream
from tests.gateway import Recorder, plain_answer
from tests.plane import serving
from tests.proxy.http2_client import http2_client
from tests.proxy.scripted import answering, config, head, origin, settled, silent, until

H2 = "http2 = true"


@pytest.fixture(params=["lane = true", "lane = false"])
def gateway(request: pytest.FixtureRequest) -> str:
    """Plain exchanges move in the lane, or all have tasks: what comes of them is the same."""
    mode: str = request.param
    return mode


async def test_a_request_goes_up_as_http_1_and_its_answer_comes_down(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    recorder = Recorder(lambda head, body: plain_answer(b"hello", b"X-Origin: Yes", b"Keep-Alive: timeout=5"))
    port = await nursery.start(recorder.serve)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        number = await client.request(
            path="/a?b=c", fields=[(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]
        )
        answer = await client.answer(number)
        record = await plane.record()
    assert (answer.status, answer.body, answer.ended, answer.reset) == (200, b"hello", True, None)
    assert answer.fields[b"x-origin"] == b"Yes"
    assert answer.fields[b"content-length"] == b"5"
    assert not answer.fields.keys() & {b"connection", b"keep-alive", b"transfer-encoding"}
    request, body = recorder.requests[0]
    fields = dict(request.headers)
    assert (request.method, request.target, body) == (b"GET", b"/a?b=c", b"")
    assert fields[b"host"] == b"t.example"
    assert fields[b"cookie"] == b"a=1; b=2"
    assert fields[b"te"] == b"trailers"
    assert fields[b"via"].startswith(b"2.0 ")
    assert (record.status, record.reason, record.answered_by, record.proto) == (200, "ok", "upstream", "h2")
    assert (record.method, record.host, record.path, record.route) == ("GET", "t.example", "/a", "all")


async def test_many_streams_are_served_at_a_time_each_with_its_own_answer(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    gate = trio.Event()
    seen: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        request = await head(stream)
        seen.append(request)
        if len(seen) == 20:
            gate.set()
        await gate.wait()  # nobody is answered before all are here
        path = request.split(b" ")[1]
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2, gateway=gateway)) as plane,
        http2_client(plane) as client,
    ):
        numbers = [await client.request(path=f"/{index}") for index in range(20)]
        answers = [await client.answer(number) for number in numbers]
        await plane.record(20)
        connections = plane.counts("listener", "web")["accepted"]
    assert [answer.body for answer in answers] == [b"/%d" % index for index in range(20)]
    assert connections == 1


async def test_a_body_without_a_length_goes_up_chunked_with_its_trailers(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await until(stream, b"X-Sum: 7\r\n\r\n".lower()))
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Done: yes\r\n\r\n"
        )

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2, gateway=gateway)) as plane,
        http2_client(plane) as client,
    ):
        number = await client.request("POST", body=b"hello", end=False)
        client.h2.send_headers(number, [(b"x-sum", b"7")], end_stream=True)
        await client.flush()
        answer = await client.answer(number)
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.trailers == [(b"x-done", b"yes")]
    assert b"transfer-encoding: chunked\r\n" in got[0].lower()
    assert b"\r\n5\r\nhello\r\n0\r\n" in got[0]


async def test_head_204_and_304_have_no_body_and_end_with_their_heads(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    def answer(request: h11.Request, body: bytes) -> bytes:
        status = {b"/204": b"204 No Content", b"/304": b"304 Not Modified"}.get(request.target, b"200 OK")
        length = b"" if b"204" in status else b"Content-Length: 5\r\n"
        return b"HTTP/1.1 %b\r\n%b\r\n" % (status, length)

    port = await nursery.start(Recorder(answer).serve)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        told = []
        for method, path in (("HEAD", "/"), ("GET", "/204"), ("GET", "/304")):
            found = await client.answer(await client.request(method, path))
            told.append((found.status, found.fields.get(b"content-length"), found.body, found.reset))
    assert told == [(200, b"5", b"", None), (204, None, b"", None), (304, b"5", b"", None)]


async def test_a_large_download_and_a_large_upload_arrive_whole(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    big = bytes(range(256)) * 8192  # 2 MiB

    def answer(request: h11.Request, body: bytes) -> bytes:
        return plain_answer(body if request.method == b"POST" else big)

    port = await nursery.start(Recorder(answer).serve)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        down = await client.answer(await client.request())
        number = await client.request("POST", body=b"", end=False, fields=[(b"content-length", b"%d" % len(big))])
        await client.send(number, big, end=True)
        up = await client.answer(number)
        await plane.record(2)
    assert down.body == big
    assert up.body == big


async def test_an_error_of_the_gateways_own_is_a_whole_answer(tmp_path: Path, gateway: str) -> None:
    async with serving(tmp_path, config(1, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        answer = await client.answer(await client.request())
        record = await plane.record()
    assert (answer.status, answer.reset, answer.ended) == (502, None, True)
    assert answer.fields[b"content-type"] == b"application/problem+json"
    assert (record.status, record.reason) == (502, "connect_refused")


async def test_an_answer_before_the_end_of_the_body_is_followed_by_a_reset_without_an_error(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    play = answering(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2, gateway=gateway)) as plane,
        http2_client(plane) as client,
    ):
        number = await client.request("POST", body=b"some", end=False)
        answer = await client.answer(number)
        while answer.reset is None:
            assert await client.hear()
        other = await client.answer(await client.request())  # the connection goes on
    assert (answer.status, answer.body, answer.ended, answer.reset) == (403, b"no", True, 0)
    assert other.status == 403


async def test_an_answer_that_breaks_off_resets_its_stream_and_no_other(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    async def play(stream: trio.SocketStream) -> None:
        if b"/torn" in await head(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        else:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2, gateway=gateway)) as plane,
        http2_client(plane) as client,
    ):
        torn = await client.answer(await client.request(path="/torn"))
        whole = await client.answer(await client.request())
        await plane.record(2)
    assert (torn.status, torn.body, torn.ended, torn.reset) == (200, b"half", False, 2)
    assert (whole.status, whole.body) == (200, b"ok")
    assert [record.reason for record in plane.records] == ["upstream_incomplete", "ok"]


async def test_a_reset_stream_cancels_its_exchange(tmp_path: Path, nursery: trio.Nursery, gateway: str) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        number = await client.request()
        with trio.fail_after(30):
            while plane.counts("endpoint", f"api/127.0.0.1:{port}")["active"] != 1:
                await trio.sleep(0.002)
        client.h2.reset_stream(number, 8)
        await client.flush()
        record = await plane.record()
        await settled(plane, connections=1)
    assert (record.status, record.reason, record.answered_by) == (499, "client_abort", "client")
    assert [attempt.reason for attempt in record.attempts] == ["client_abort"]


async def test_a_lost_connection_cancels_all_its_exchanges(tmp_path: Path, nursery: trio.Nursery, gateway: str) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane:
        async with http2_client(plane) as client:
            for _ in range(3):
                await client.request()
            with trio.fail_after(30):
                while plane.counts("endpoint", f"api/127.0.0.1:{port}")["active"] != 3:
                    await trio.sleep(0.002)
        await plane.record(3)
        await settled(plane)
    assert {record.reason for record in plane.records} == {"client_abort"}


async def test_a_100_comes_before_the_body_where_the_client_asks_for_it(
    tmp_path: Path, nursery: trio.Nursery, gateway: str
) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await head(stream))
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        got.append(await until(stream, b"hello"))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2, gateway=gateway)) as plane,
        http2_client(plane) as client,
    ):
        fields = [(b"expect", b"100-continue"), (b"content-length", b"5")]
        number = await client.request("POST", fields=fields, end=False)
        first = await client.head(number)
        assert first.status == 100
        await client.send(number, b"hello", end=True)
        answer = await client.answer(number)
    assert [dict(one)[b":status"] for one in answer.heads] == [b"100", b"200"]
    assert b"Expect: 100-continue" in got[0]
    assert got[1] == b"hello"


async def test_a_body_goes_on_behind_a_whole_answer_as_long_as_it_comes(
    tmp_path: Path, nursery: trio.Nursery, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_stream, "REST_PAUSE", 0.3)
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        got.append(await until(stream, b"0\r\n\r\n"))

    port = await origin(nursery, play)
    async with serving(tmp_path, config(port, listener=H2, gateway=gateway)) as plane, http2_client(plane) as client:
        number = await client.request("POST", body=b"first", end=False)
        assert (await client.answer(number)).body == b"ok"
        await client.send(number, b"second", end=True)
        await plane.record()
        silent = await client.request("POST", body=b"first", end=False)
        assert (await client.answer(silent)).body == b"ok"
        with trio.fail_after(30):
            while client.answers[silent].reset is None:
                assert await client.hear()
        await plane.record(2)
    assert b"second" in got[0]
    assert client.answers[number].reset is None
    assert client.answers[silent].reset == 0
    assert [record.reason for record in plane.records] == ["ok", "ok"]
