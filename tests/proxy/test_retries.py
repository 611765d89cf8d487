"""When a request goes out a second time, and when it must not."""

from __future__ import annotations

import itertools
from pathlib import Path

import trio

from tests.gateway import talk
from tests.plane import serving
from tests.proxy.scripted import (
    GET,
    OK,
    Play,
    always_ok,
    answering,
    client,
    config,
    head,
    origin,
    post,
    rest,
    settled,
    until,
)

FIRST = 'balance = "first"'


def stale(requests: list[bytes]) -> Play:
    """An origin's play: a connection serves one request, and is torn when the next one comes, unannounced."""

    async def play(stream: trio.SocketStream) -> None:
        requests.append(await head(stream))
        await stream.send_all(OK)
        requests.append(await head(stream))

    return play


async def ok(stream: trio.SocketStream, request: bytes = GET) -> bytes:
    """One exchange, with its first line told."""
    await stream.send_all(request)
    return (await until(stream, b"\r\n\r\n")).partition(b"\r\n")[0]


async def test_a_request_that_meets_a_closing_connection_goes_over_a_new_one_to_the_same_endpoint(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    requests: list[bytes] = []
    port = await origin(nursery, stale(requests))
    text = config(port, upstream="retry = { attempts = 1 }\npassive = { bad_answers = 1 }")
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        for _ in range(3):
            assert await ok(stream) == b"HTTP/1.1 200 OK"
        await settled(plane, connections=1)
        counts = plane.counts("endpoint", f"api/127.0.0.1:{port}")
    assert [[one.reason for one in record.attempts] for record in plane.records] == [
        ["ok"],
        ["upstream_closed", "ok"],
        ["upstream_closed", "ok"],
    ]
    assert counts["answers_bad"] == 0  # nobody's fault
    assert plane.observed == []


async def test_stale_connections_to_every_endpoint_cost_no_request(tmp_path: Path, nursery: trio.Nursery) -> None:
    requests: list[bytes] = []
    ports = [await origin(nursery, stale(requests)) for _ in range(4)]
    text = config(*ports, upstream="retry = { attempts = 2 }")
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        for _ in range(12):
            assert await ok(stream) == b"HTTP/1.1 200 OK"
    assert {record.status for record in plane.records} == {200}


async def test_a_post_that_meets_a_closing_connection_is_not_sent_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    requests: list[bytes] = []
    port, other = await origin(nursery, stale(requests)), await origin(nursery, always_ok)
    async with serving(tmp_path, config(port, other, upstream=FIRST)) as plane, client(plane) as stream:
        assert await ok(stream) == b"HTTP/1.1 200 OK"
        assert (await ok(stream, post(2) + b"hi")).startswith(b"HTTP/1.1 502 ")
        record = await plane.record(2)
    assert [one.reason for one in record.attempts] == ["upstream_closed"]


async def test_a_close_that_was_seen_in_time_is_no_attempt(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, answering(OK))
    async with serving(tmp_path, config(port)) as plane, client(plane) as stream:
        assert await ok(stream, post(2) + b"hi") == b"HTTP/1.1 200 OK"
        await trio.sleep(0.05)  # the origin's end of stream arrives
        assert await ok(stream, post(2) + b"ho") == b"HTTP/1.1 200 OK"
    assert [len(record.attempts) for record in plane.records] == [1, 1]


async def test_a_body_that_was_kept_goes_out_again_byte_for_byte(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []

    async def fail(stream: trio.SocketStream) -> None:
        await until(stream, b"body")

    async def play(stream: trio.SocketStream) -> None:
        got.append(await until(stream, b"-end"))
        await stream.send_all(OK)

    ports = [await origin(nursery, fail), await origin(nursery, play)]
    async with serving(tmp_path, config(*ports, upstream=FIRST)) as plane, client(plane) as stream:
        await stream.send_all(post(9).replace(b"POST", b"PUT") + b"body")  # the first endpoint leaves in the middle
        await trio.sleep(0.05)
        await stream.send_all(b"2-end")
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
        record = await plane.record()
    assert got[0].endswith(b"\r\n\r\nbody2-end")
    assert [one.reason for one in record.attempts] == ["upstream_closed", "ok"]


async def test_a_body_too_long_to_be_kept_is_sent_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def fail(stream: trio.SocketStream) -> None:
        await until(stream, b"body")

    ports = [await origin(nursery, fail), await origin(nursery, always_ok)]
    text = config(*ports, upstream=FIRST + '\nretry = { replay = "2B" }')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(post(4).replace(b"POST", b"PUT") + b"body")
        assert (await head(stream)).startswith(b"HTTP/1.1 502 ")
        record = await plane.record()
    assert [one.reason for one in record.attempts] == ["upstream_closed"]


async def test_nothing_is_tried_again_once_the_client_has_got_a_word(tmp_path: Path, nursery: trio.Nursery) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    ports = [await origin(nursery, answering(hints)), await origin(nursery, always_ok)]
    async with serving(tmp_path, config(*ports, upstream=FIRST)) as plane:
        said = await talk(plane.port(), GET, until=lambda said: b"HTTP/1.1 502 " in said)
        record = await plane.record()
    assert said.startswith(hints[:-2])
    assert [one.reason for one in record.attempts] == ["upstream_closed"]
    assert (record.answered_by, record.status) == ("gateway", 502)


async def test_a_get_is_tried_at_another_endpoint_when_one_dies_before_a_word(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    ports = [await origin(nursery, answering(b"")), await origin(nursery, always_ok)]
    async with serving(tmp_path, config(*ports, upstream=FIRST)) as plane, client(plane) as stream:
        assert await ok(stream) == b"HTTP/1.1 200 OK"
        record = await plane.record()
        bad = plane.counts("endpoint", f"api/127.0.0.1:{ports[0]}")["answers_bad"]
    assert [one.reason for one in record.attempts] == ["upstream_closed", "ok"]
    assert bad == 1


async def test_endpoints_that_all_fail_are_each_tried_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    tried = itertools.count()

    async def fail(stream: trio.SocketStream) -> None:
        await head(stream)
        next(tried)

    ports = [await origin(nursery, fail) for _ in range(3)]
    async with serving(tmp_path, config(*ports, upstream="retry = { attempts = 9 }")) as plane, client(plane) as stream:
        assert (await ok(stream)).startswith(b"HTTP/1.1 502 ")
        record = await plane.record()
        await settled(plane, connections=1)
    assert next(tried) == 3
    assert len({one.endpoint for one in record.attempts}) == 3


async def test_an_exchange_that_runs_out_of_time_tells_the_attempt_and_blames_the_endpoint(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async def never(stream: trio.SocketStream) -> None:
        await rest(stream)

    port = await origin(nursery, never)
    async with serving(tmp_path, config(port, route='timeout = "100ms"')) as plane, client(plane) as stream:
        assert (await ok(stream)).startswith(b"HTTP/1.1 504 ")
        record = await plane.record()
        await settled(plane, connections=1)
        bad = plane.counts("endpoint", f"api/127.0.0.1:{port}")["answers_bad"]
    assert [one.reason for one in record.attempts] == ["exchange_timeout"]
    assert bad == 1
