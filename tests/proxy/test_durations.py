"""What the data plane observes of durations: which exchanges, into which histogram, how often."""

from __future__ import annotations

from pathlib import Path

import trio

from tcpgate.stats import histogram
from tcpgate.stats.histogram import Durations
from tests.gateway import Recorder, plain_answer, talk
from tests.plane import TestPlane, serving


def durations(plane: TestPlane, kind: str, name: str) -> Durations:
    """The one histogram of a series, as a reader of the page finds it."""
    prefix = {"route": "total", "endpoint": "first_byte"}[kind]
    slots = [plane.counts(kind, name)[field] for field in histogram.field_names(prefix)]
    return Durations(tuple(slots[:-1]), slots[-1])


def config(port: int, listener: str = "") -> str:
    return f"""
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[routes.all]
upstream = "api"
[routes.own]
path = "/own/"
respond = {{ status = 200 }}
[upstreams.api]
endpoints = ["127.0.0.1:{port}"]
"""


GET = b"GET %b HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"


async def test_an_exchange_is_in_its_routes_and_its_endpoints_histogram_once(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await nursery.start(Recorder(lambda head, body: plain_answer(b"hello")).serve)
    async with serving(tmp_path, config(port)) as plane:
        for _ in range(3):
            assert (await talk(plane.port(), GET % b"/")).endswith(b"hello")
        record = await plane.record(3)
        total, first_byte = durations(plane, "route", "all"), durations(plane, "endpoint", f"api/127.0.0.1:{port}")
        spent = [one.t.total for one in plane.records]
        waited = [one.t.first_byte for one in plane.records]
    assert record.reason == "ok"
    assert (total.count, first_byte.count) == (3, 3)
    assert abs(first_byte.sum_us - sum(waited) * 1e6) < 10
    assert first_byte.sum_us <= total.sum_us <= sum(spent) * 1e6  # the record's own is taken a moment later


async def test_an_answer_of_our_own_is_in_the_routes_histogram(tmp_path: Path) -> None:
    async with serving(tmp_path, config(1)) as plane:
        assert (await talk(plane.port(), GET % b"/own/")).startswith(b"HTTP/1.1 200 ")
        await plane.record()
        assert durations(plane, "route", "own").count == 1
        assert durations(plane, "route", "all").count == 0


async def test_an_exchange_that_failed_has_a_total_but_no_first_byte(tmp_path: Path) -> None:
    async with serving(tmp_path, config(1)) as plane:
        assert (await talk(plane.port(), GET % b"/")).startswith(b"HTTP/1.1 50")
        await plane.record()
        assert durations(plane, "route", "all").count == 1
        assert durations(plane, "endpoint", "api/127.0.0.1:1").count == 0


async def test_a_tunnels_life_is_no_answer_time(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def switch(stream: trio.SocketStream) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nbye")
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, switch, 0)
    port = listeners[0].socket.getsockname()[1]
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), b"GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 101 ")
        record = await plane.record()
        assert record.status == 101
        assert plane.counts("route", "all")["status_1xx"] == 1
        assert durations(plane, "route", "all").count == 0
        assert durations(plane, "endpoint", f"api/127.0.0.1:{port}").count == 1  # how soon the 101 came


async def test_a_flows_connect_is_its_endpoints_first_byte(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, greet, 0)
    port = listeners[0].socket.getsockname()[1]
    text = config(port, 'protocol = "tcp"\nupstream = "api"')
    text = text[: text.index("[routes.all]")] + text[text.index("[upstreams.api]") :]
    async with serving(tmp_path, text) as plane:
        assert await talk(plane.port(), b"") == b"hello"
        record = await plane.record()
        connects = durations(plane, "endpoint", f"api/127.0.0.1:{port}")
    assert record.proto == "tcp"
    assert connects.count == 1
    assert abs(connects.sum_us - record.t.connect * 1e6) < 10
