"""Expect: 100-continue, whoever says what first."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tcpgate.proxy import attempt
from tests.plane import serving
from tests.proxy.scripted import OK, client, config, head, origin, post, rest, settled, silent, until

ASK = post(5, b"Expect: 100-continue")
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "CONTINUE_AFTER", 0.05)


async def test_the_origins_100_is_passed_on_and_the_body_follows(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await head(stream))
        await stream.send_all(GO_ON)
        got.append(await until(stream, b"hello"))
        await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(ASK)
        assert (await head(stream)).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"hello")
        assert (await until(stream, b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")
    assert b"Expect: 100-continue\r\n" in got[0]
    assert got[0].endswith(b"\r\n\r\n")
    assert got[1] == b"hello"


async def test_a_final_answer_without_a_100_ends_the_connection_and_no_body_goes_up(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await head(stream))
        await stream.send_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        got.append(await rest(stream))

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(ASK)
        said = await rest(stream)
        await stream.aclose()
        await settled(plane)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close\r\n" in said
    assert said.endswith(b"\r\n\r\nno")
    assert got[1] == b""


@pytest.mark.usefixtures("_soon")
async def test_where_the_origin_ignores_the_expectation_we_say_100(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await until(stream, b"hello")
        await stream.send_all(GO_ON + OK)  # a late 100 of its own is not passed on as well

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(ASK)
        assert await until(stream, b"\r\n\r\n") == GO_ON
        await stream.send_all(b"hello")
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")  # and the connection goes on
        record = await plane.record()
    assert (record.reason, record.status) == ("ok", 200)


@pytest.mark.usefixtures("_soon")
async def test_a_client_that_does_not_wait_gets_no_100_of_ours(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await until(stream, b"hello")
        await trio.sleep(0.1)
        await stream.send_all(OK)

    async with serving(tmp_path, config(await origin(nursery, play))) as plane, client(plane) as stream:
        await stream.send_all(ASK + b"hello")
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("_soon")
async def test_a_client_that_never_sends_what_it_announced_is_slow_and_the_endpoint_is_not_blamed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await origin(nursery, silent)
    text = config(port, listener='timeouts = { stall = "100ms", min_rate = "1KiB/s" }')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(ASK)
        said = await rest(stream)
        record = await plane.record()
        await stream.aclose()
        await settled(plane)
        assert plane.counts("endpoint", f"api/127.0.0.1:{port}")["answers_bad"] == 0
    assert said.startswith(GO_ON + b"HTTP/1.1 408 ")
    assert record.reason == "body_timeout"


async def test_while_a_client_waits_for_the_100_it_is_not_slow(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await trio.sleep(0.7)
        await stream.send_all(GO_ON)
        await until(stream, b"hello")
        await stream.send_all(OK)

    text = config(await origin(nursery, play), listener='timeouts = { stall = "300ms", min_rate = "1KiB/s" }')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(ASK)
        assert (await head(stream)).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"hello")
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200 ")
