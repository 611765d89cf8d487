"""HTTP/2 to endpoints through the real data plane: connections that are shared, streams that are not."""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tcpgate.errors import Reason
from tcpgate.net.http2_endpoint import EndpointCarrier
from tcpgate.proxy.http2_upstream import StreamToEndpoint
from tests.gateway import make_nginx
from tests.plane import TestPlane, serving
from tests.proxy import scripted
from tests.proxy.http2_client import http2_client
from tests.proxy.http2_origin import STREAMS, WINDOW, Http2Origin, Wire, http2_origin, serve_all
from tests.proxy.scripted import GET, answering, client, head, post, rest

H2 = 'http = "h2"'
MIB = 1 << 20
FreePort = Callable[[], int]


def config(*ports: int, upstream: str = "", **more: str) -> str:
    """As scripted's, with endpoints of HTTP/2, the first of them first."""
    return scripted.config(*ports, upstream=f'{H2}\nbalance = "first"\n{upstream}', **more)


async def ask(plane: TestPlane, request: bytes = GET) -> bytes:
    """The answer to one request, on a connection of its own."""
    async with client(plane) as stream:
        await stream.send_all(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        return await rest(stream)


def count(plane: TestPlane, port: int) -> dict[str, int]:
    """An endpoint's counters."""
    return plane.counts("endpoint", f"api/127.0.0.1:{port}")


async def gone(plane: TestPlane, port: int, connections: int = 0) -> None:
    """Returns once the endpoint has so many connections."""
    with trio.fail_after(30):
        while count(plane, port)["connections"] != connections:
            await trio.sleep(0.002)


# -- what goes up and comes down ------------------------------------------------------------------------------------


async def test_a_request_goes_up_as_http_2_and_its_answer_comes_down(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.answer(asked, b"hello", fields=[(b"x-origin", b"yes"), (b"set-cookie", b"a=1")])
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        said = await ask(
            plane,
            b"GET /a?b=c HTTP/1.1\r\nHost: T.example:80\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: 1\r\n"
            b"X-Mine: 1\r\nTE: trailers\r\nX-Yours: 2\r\nCookie: a=1\r\n\r\n",
        )
        record = await plane.record()
        asked = origin.wires[0].asks[1]
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"x-origin: yes\r\n" in said
    assert b"Via: 2.0 tcpgate-test" in said
    assert said.endswith(b"\r\n\r\nhello")
    assert [pair[0] for pair in asked.fields[:4]] == [b":method", b":scheme", b":authority", b":path"]
    assert (asked[b":method"], asked[b":scheme"], asked.path) == (b"GET", b"http", b"/a?b=c")
    assert asked[b":authority"] == b"T.example:80"
    fields = dict(asked.fields)
    assert (fields[b"x-yours"], fields[b"cookie"], fields[b"via"][:4]) == (b"2", b"a=1", b"1.1 ")
    assert not fields.keys() & {b"connection", b"keep-alive", b"x-mine", b"host", b"content-length"}
    assert (record.status, record.reason, record.answered_by) == (200, Reason.OK, "upstream")


async def test_a_grpc_call_keeps_its_te_and_its_trailers(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.head(asked, fields=[(b"content-type", b"application/grpc")])
        await wire.data(asked, b"answer")
        wire.h2.send_headers(asked.number, [(b"grpc-status", b"0"), (b"x-last", b"1")], end_stream=True)
        await wire.flush()
        await wire.until(lambda: False)

    text = config
    async with (
        http2_origin(play) as origin,
        serving(tmp_path, text(origin.port, listener="http2 = true")) as plane,
        http2_client(plane) as up,
    ):
        fields = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
        answer = await up.answer(await up.request("POST", "/s/m", fields, b"question"))
        asked = origin.wires[0].asks[1]
        await plane.record()
    assert (answer.status, answer.body) == (200, b"answer")
    assert dict(answer.trailers or []) == {b"grpc-status": b"0", b"x-last": b"1"}
    assert (asked[b"te"], asked.body) == (b"trailers", b"question")


async def test_bodies_without_a_length_have_trailers_on_both_sides(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.head(asked)
        await wire.data(asked, asked.body)
        wire.h2.send_headers(asked.number, [(b"x-sum", b"7")], end_stream=True)
        await wire.flush()
        await wire.until(lambda: False)

    request = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Up: 1\r\n\r\n"
    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        said = await ask(plane, request)
        asked = origin.wires[0].asks[1]
        await plane.record()
    assert asked.trailers == [(b"x-up", b"1")]
    assert b"content-length" not in dict(asked.fields)
    assert b"Transfer-Encoding: chunked" in said
    assert said.endswith(b"3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "status", "fields", "length"),
    [
        (b"HEAD", 200, [(b"content-length", b"1234")], b"1234"),
        (b"HEAD", 200, [], None),
        (b"GET", 204, [], None),
        (b"GET", 304, [(b"content-length", b"99")], b"99"),
        (b"GET", 200, [], b"0"),
    ],
)
async def test_answers_without_a_body_are_whole_by_their_head(
    tmp_path: Path, method: bytes, status: int, fields: list[tuple[bytes, bytes]], length: bytes | None
) -> None:
    async def play(wire: Wire) -> None:
        while not wire.ended:
            await wire.head(await wire.whole(), status, fields, end=True)

    said = b""
    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        for _ in range(2):  # the client's connection lives on, so both know where the answer ended
            await stream.send_all(method + GET[3:])
            said = await head(stream)
        assert said.endswith(b"\r\n\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in said.split(b"\r\n")[1:-2])
    assert said.startswith(b"HTTP/1.1 %d" % status)
    assert lines.get(b"content-length") == length
    assert method == b"HEAD" or b"transfer-encoding" not in lines


async def test_informational_heads_are_passed_on(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.ask()
        await wire.head(asked, 103, [(b"link", b"</a>")])
        await wire.head(asked, 100)
        await wire.until(lambda: asked.ended)
        await wire.answer(asked, asked.body)
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        await stream.send_all(post(3, b"Expect: 100-continue"))
        said = await scripted.until(stream, b"100 Continue\r\nVia: 2.0 tcpgate-test\r\n\r\n")
        await stream.send_all(b"abc")
        said += await scripted.until(stream, b"abc")
        expected = dict(origin.wires[0].asks[1].fields)[b"expect"]
    assert said.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n")
    assert expected == b"100-continue"
    assert b"HTTP/1.1 200 OK" in said


async def test_long_bodies_pass_both_ways_whatever_the_windows(tmp_path: Path) -> None:
    body = bytes(range(256)) * (8 * MIB // 256)

    async def play(wire: Wire) -> None:
        asked = await wire.ask()
        wire.h2.update_settings({WINDOW: 1000})  # less than has been sent: the stream's window is below 0
        await wire.flush()
        await wire.until(lambda: len(asked.body) >= 100_000)
        wire.h2.update_settings({WINDOW: 1 << 20})
        await wire.flush()
        await wire.until(lambda: asked.ended, 60)
        await wire.answer(asked, asked.body)
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        async with trio.open_nursery() as sending:
            sending.start_soon(stream.send_all, post(len(body)) + body)
            said = await head(stream)
            got = said.partition(b"\r\n\r\n")[2]
            while len(got) < len(body):
                got += await stream.receive_some(MIB)
        await plane.record()
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()


async def test_an_answer_before_the_end_of_the_request_is_the_answer(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.ask()
        await wire.answer(asked, b"too much", 413)
        await wire.until(lambda: asked.reset is not None)
        await serve_all(wire)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with client(plane) as stream:
            await stream.send_all(post(10 * MIB) + b"x" * 1000)
            said = await scripted.until(stream, b"too much")
            record = await plane.record()
        again = await ask(plane)
        assert origin.wires[0].asks[1].reset == 8  # CANCEL: the rest is not coming
    assert said.startswith(b"HTTP/1.1 413")
    assert record.reason == Reason.OK
    assert again.endswith(b"/")
    assert len(origin.wires) == 1


async def test_an_answer_is_not_lost_with_its_connection_while_the_request_goes_up(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.ask()
        await wire.answer(asked, b"too much", 413)  # and the connection is reset, with much of the request unread

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        for number in range(1, 6):
            async with client(plane) as stream, trio.open_nursery() as sending:
                sending.start_soon(_send_what_goes, stream, post(10 * MIB) + b"x" * (10 * MIB))
                said = await scripted.until(stream, b"too much")
                record = await plane.record(number)
                sending.cancel_scope.cancel()
            assert said.startswith(b"HTTP/1.1 413")
            assert record.status == 413
        await gone(plane, origin.port)


async def _send_what_goes(stream: trio.SocketStream, data: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)


# -- connections ----------------------------------------------------------------------------------------------------


async def test_a_burst_of_exchanges_shares_one_connection(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        await wire.until(lambda: len(wire.asks) == 30)  # nobody is answered before all are here
        await serve_all(wire)

    said: list[bytes] = []
    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:

        async def one(index: int) -> None:
            said.append(await ask(plane, b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % index))

        async with trio.open_nursery() as nursery:
            for index in range(30):
                nursery.start_soon(one, index)
        await plane.record(30)
        counts = count(plane, origin.port)
    assert sorted(int(one.rpartition(b"/")[2]) for one in said) == list(range(30))
    assert (counts["connects"], counts["reused"], counts["active"], counts["connections"]) == (1, 29, 0, 1)


async def test_more_streams_than_the_endpoint_allows_need_more_connections(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        await wire.until(lambda: len(wire.asks) == 2)
        await serve_all(wire)

    async with http2_origin(play, settings={STREAMS: 2}) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask, plane)
        await plane.record(6)
    assert {record.reason for record in plane.records} == {Reason.OK}
    assert len(origin.wires) == 3


async def test_exchanges_wait_for_streams_where_no_more_connections_may_be(tmp_path: Path) -> None:
    limit = "[upstreams.api.pool]\nmax_connections = 1"
    greet = trio.Event()
    most = 0

    async def play(wire: Wire) -> None:
        nonlocal most
        for _ in range(6):
            asked = await wire.whole()
            most = max(most, wire.h2.open_inbound_streams)
            await wire.answer(asked)
        await wire.until(lambda: False)

    async with (
        http2_origin(play, settings={STREAMS: 2}, greet=greet) as origin,
        serving(tmp_path, config(origin.port, upstream=limit)) as plane,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask, plane)
            await active(plane, origin.port, 6)
            greet.set()
        await plane.record(6)
    assert [record.reason for record in plane.records] == [Reason.OK] * 6
    assert len(origin.wires) == 1
    assert 1 <= most <= 2


async def test_an_endpoint_whose_streams_are_all_taken_is_full(tmp_path: Path) -> None:
    limit = "[upstreams.api.pool]\nmax_connections = 1"

    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.until(lambda: asked.reset is not None)

    async with (
        http2_origin(play, settings={STREAMS: 1}) as origin,
        serving(tmp_path, config(origin.port, upstream=limit)) as plane,
        client(plane) as first,
    ):
        await first.send_all(GET)
        await seen(origin, 1)
        said = await ask(plane)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 503")
    assert record.reason == Reason.ENDPOINT_LIMIT


async def test_an_endpoint_that_takes_no_streams_yet_is_waited_for(tmp_path: Path) -> None:
    more = trio.Event()

    async def play(wire: Wire) -> None:
        await more.wait()
        wire.h2.update_settings({STREAMS: 10})
        await wire.flush()
        await serve_all(wire)

    async with http2_origin(play, settings={STREAMS: 0}) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, plane)
            await active(plane, origin.port, 3)
            while not origin.wires:
                await trio.sleep(0.002)
            await trio.sleep(0.05)
            more.set()
        await plane.record(3)
    assert [record.reason for record in plane.records] == [Reason.OK] * 3
    assert len(origin.wires) == 1


async def test_who_leaves_while_a_connection_is_made_does_not_take_it_along(tmp_path: Path) -> None:
    greet = trio.Event()
    async with http2_origin(greet=greet) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with client(plane) as first, client(plane) as second:
            await first.send_all(GET)
            await active(plane, origin.port, 1)
            await second.send_all(GET)
            await active(plane, origin.port, 2)
            await first.aclose()
            await active(plane, origin.port, 1)
            greet.set()
            said = await scripted.until(second, b"\r\n\r\n/")
        record = await plane.record(2)
        counts = count(plane, origin.port)
    assert said.startswith(b"HTTP/1.1 200")
    assert (plane.records[0].reason, record.reason) == (Reason.CLIENT_ABORT, Reason.OK)
    assert (counts["connects"], counts["connections"], counts["active"]) == (1, 1, 0)


async def test_a_connection_ends_in_good_order_when_it_was_of_use_often_enough(tmp_path: Path) -> None:
    limit = "[upstreams.api.pool]\nmax_exchanges = 3"
    async with http2_origin() as origin, serving(tmp_path, config(origin.port, upstream=limit)) as plane:
        for number in range(1, 8):
            await ask(plane)
            await plane.record(number)
        await gone(plane, origin.port, 1)
        await origin.wires[1].until(lambda: False)
        assert [wire.goaways for wire in origin.wires] == [[0], [0], []]


async def test_an_idle_connection_ends_in_its_time(tmp_path: Path) -> None:
    limit = '[upstreams.api.pool]\nidle_timeout = "100ms"'
    async with http2_origin() as origin, serving(tmp_path, config(origin.port, upstream=limit)) as plane:
        await ask(plane)
        await gone(plane, origin.port)
        await origin.wires[0].until(lambda: False)
    assert origin.wires[0].goaways == [0]


async def test_a_reload_that_reaches_endpoints_otherwise_lets_streams_finish(tmp_path: Path) -> None:
    go = trio.Event()

    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await go.wait()
        await wire.answer(asked, b"late")
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await seen(origin, 1)
        plane.apply(scripted.config(origin.port))  # HTTP/1.1 from now on
        go.set()
        said = await scripted.until(stream, b"late")
        await gone(plane, origin.port)
        await origin.wires[0].until(lambda: False)
    assert said.endswith(b"late")
    assert origin.wires[0].goaways == [0]


async def test_an_endpoint_that_a_reload_removes_finishes_its_streams_and_is_forgotten(tmp_path: Path) -> None:
    go = trio.Event()

    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await go.wait()
        await wire.answer(asked, b"late")
        await wire.until(lambda: False)

    async with (
        http2_origin(play) as old,
        http2_origin() as new,
        serving(tmp_path, config(old.port)) as plane,
        client(plane) as stream,
    ):
        await stream.send_all(GET)
        await seen(old, 1)
        plane.apply(config(new.port))
        go.set()
        said = await scripted.until(stream, b"late")
        await old.wires[0].until(lambda: False)
        with trio.fail_after(30):
            while plane.plane.runtime.retired:
                await trio.sleep(0.005)
                plane.plane.sweep(trio.current_time())
    assert said.endswith(b"late")


async def test_a_connection_that_names_its_client_serves_one_exchange(tmp_path: Path) -> None:
    text = 'proxy_protocol = "v2"'
    async with (
        http2_origin(header=True) as origin,
        serving(tmp_path, config(origin.port, upstream=text)) as plane,
        client(plane) as stream,
    ):
        for _ in range(2):
            await stream.send_all(GET)
            assert (await scripted.until(stream, b"\r\n\r\n/")).startswith(b"HTTP/1.1 200")
        await plane.record(2)
        await gone(plane, origin.port)
    assert len(origin.headers) == 2
    assert all(said[:12] == b"\r\n\r\n\0\r\nQUIT\n" for said in origin.headers)


# -- ends -----------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_cancels_its_stream_and_no_other(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        first, second = await wire.whole(), await wire.whole()
        left = first if first.path == b"/leaves" else second
        await wire.until(lambda: left.reset is not None)
        await wire.answer(first if left is second else second, b"stayed")
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stays:
        await stays.send_all(GET)
        async with client(plane) as leaves:
            await leaves.send_all(b"GET /leaves HTTP/1.1\r\nHost: t\r\n\r\n")
            await seen(origin, 2)
        said = await scripted.until(stays, b"stayed")
        await plane.record(2)
        codes = [one.reset for one in origin.wires[0].asks.values()]
    assert said.startswith(b"HTTP/1.1 200")
    assert sorted(codes, key=str) == [8, None]
    assert [record.reason for record in plane.records] == [Reason.CLIENT_ABORT, Reason.OK]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_refused_stream_goes_to_another_endpoint_whatever_the_method(tmp_path: Path, method: bytes) -> None:
    async def refuse(wire: Wire) -> None:
        while not wire.ended:
            await wire.reset(await wire.whole(), 7)

    request = method + b" / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc"
    async with (
        http2_origin(refuse) as busy,
        http2_origin() as free,
        serving(tmp_path, config(busy.port, free.port)) as plane,
    ):
        said = await ask(plane, request)
        record = await plane.record()
    assert said.endswith(b"/")
    assert [one.reason for one in record.attempts] == [Reason.UPSTREAM_CLOSED, Reason.OK]
    assert len(free.wires) == 1


async def test_what_a_goaway_has_left_unseen_goes_anew_to_the_same_endpoint(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        if len(origin.wires) > 1:
            await serve_all(wire)
        first, second = await wire.whole(), await wire.whole()
        await wire.goaway(first.number)
        await wire.answer(first, b"first")
        await wire.until(lambda: False)  # the gateway ends it, once the first is over
        assert second.reset is None

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with client(plane) as one, client(plane) as other:
            await one.send_all(GET)
            await seen(origin, 1)
            await other.send_all(post(3) + b"abc")
            assert (await scripted.until(one, b"first")).startswith(b"HTTP/1.1 200")
            assert (await scripted.until(other, b"\r\n\r\n/")).startswith(b"HTTP/1.1 200")
        await plane.record(2)
        await gone(plane, origin.port, 1)
    assert {record.reason for record in plane.records} == {Reason.OK}
    assert len(origin.wires) == 2
    assert origin.wires[0].ended


@pytest.mark.parametrize(("method", "answered"), [(b"GET", True), (b"POST", False)])
async def test_a_stream_that_the_endpoint_resets_is_tried_again_if_that_is_safe(
    tmp_path: Path, method: bytes, answered: bool
) -> None:
    async def fail(wire: Wire) -> None:
        while not wire.ended:
            await wire.reset(await wire.whole(), 2)

    async with (
        http2_origin(fail) as bad,
        http2_origin() as good,
        serving(tmp_path, config(bad.port, good.port)) as plane,
    ):
        said = await ask(plane, method + b" / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc")
        record = await plane.record()
        assert count(plane, bad.port)["answers_bad"] == 1
    assert said.startswith(b"HTTP/1.1 200" if answered else b"HTTP/1.1 502")
    assert record.attempts[0].reason == Reason.UPSTREAM_CLOSED
    assert len(good.wires) == answered
    if not answered:
        assert "INTERNAL_ERROR" in record.detail


async def test_a_lost_connection_is_judged_for_each_of_its_streams(tmp_path: Path) -> None:
    async def lose(wire: Wire) -> None:
        await wire.until(lambda: sum(1 for one in wire.asks.values() if one.ended) == 51)
        cut = next(one for one in wire.asks.values() if one.path == b"/begun")
        await wire.head(cut)
        await wire.data(cut, b"some")
        await taken.wait()

    taken = trio.Event()
    said: dict[bytes, bytes] = {}
    async with (
        http2_origin(lose) as bad,
        http2_origin() as good,
        serving(tmp_path, config(bad.port, good.port)) as plane,
    ):

        async def one(method: bytes, path: bytes) -> None:
            said[path] = await ask(plane, method + b" " + path + b" HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")

        async def begun() -> None:
            async with client(plane) as stream:
                await stream.send_all(b"GET /begun HTTP/1.1\r\nHost: t\r\n\r\n")
                said[b"/begun"] = await scripted.until(stream, b"some")
                taken.set()
                said[b"/begun"] += await rest(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begun)
            for index in range(25):
                nursery.start_soon(one, b"GET", b"/g%d" % index)
                nursery.start_soon(one, b"POST", b"/p%d" % index)
        await plane.record(51)
        await gone(plane, bad.port)
    assert all(said[b"/g%d" % index].endswith(b"/g%d" % index) for index in range(25))
    assert all(said[b"/p%d" % index].startswith(b"HTTP/1.1 502") for index in range(25))
    assert not said[b"/begun"].endswith(b"0\r\n\r\n")  # cut, and told so
    reasons = {record.path[:2]: record.reason for record in plane.records}
    assert reasons == {"/g": Reason.OK, "/p": Reason.UPSTREAM_CLOSED, "/b": Reason.UPSTREAM_INCOMPLETE}


async def test_a_close_that_crosses_the_next_request_is_nobodys_fault(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        await wire.answer(await wire.whole(), b"one")
        if len(origin.wires) == 1:
            await wire.ask()
            return  # closed without a word
        await serve_all(wire)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        await ask(plane)
        said = await ask(plane)
        record = await plane.record(2)
        counts = count(plane, origin.port)
    assert said.endswith(b"one")
    assert record.reason == Reason.OK
    assert [one.reason for one in record.attempts] == [Reason.UPSTREAM_CLOSED, Reason.OK]
    assert counts["answers_bad"] == 0


async def test_a_client_that_does_not_read_holds_back_its_own_stream_only(tmp_path: Path) -> None:
    sent = 0

    async def play(wire: Wire) -> None:
        nonlocal sent
        asked = await wire.whole()
        await wire.head(asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_rest, wire)
            while not wire.ended:
                count = min(wire.h2.local_flow_control_window(asked.number), 16384)
                if count:
                    wire.h2.send_data(asked.number, b"x" * count)
                    sent += count
                    await wire.flush()
                else:
                    await wire.until(lambda: wire.h2.local_flow_control_window(asked.number) > 0)

    async def serve_rest(wire: Wire) -> None:
        while not wire.ended:
            await wire.answer(await wire.whole(), b"y" * MIB)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as slow:
        slow.setsockopt(1, 8, 8192)  # SO_RCVBUF
        await slow.send_all(GET)
        await seen(origin, 1)
        before = -1
        with trio.fail_after(30):
            while sent != before:  # until the endpoint waits
                before = sent
                await trio.sleep(0.3)
        for number in range(1, 4):
            assert len(await ask(plane)) > MIB
            await plane.record(number)
        assert sent == before
        assert sent < 16 * MIB
    assert len(origin.wires) == 1


async def test_an_endpoint_that_opens_no_window_costs_its_own_exchange_only(tmp_path: Path) -> None:
    impatient = '[upstreams.api.timeouts]\nwrite = "200ms"'

    async def play(wire: Wire) -> None:
        wire.holds = True
        asked = await wire.ask()
        await wire.until(lambda: asked.reset is not None)
        await serve_all(wire)

    async with (
        http2_origin(play) as origin,
        serving(tmp_path, config(origin.port, upstream=impatient)) as plane,
        client(plane) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.send_all, post(200_000) + b"x" * 200_000)
        said = await head(stream)
        record = await plane.record()
        assert (await ask(plane)).endswith(b"\r\n\r\n/")
        held = len(origin.wires[0].asks[1].body)
    assert said.startswith(b"HTTP/1.1 504")
    assert record.reason == Reason.UPSTREAM_WRITE_TIMEOUT
    assert held == 65535  # the window of a stream that nobody has opened further
    assert len(origin.wires) == 1


async def test_an_exchange_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    async with http2_origin() as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:

        async def once() -> None:
            await stream.send_all(GET)
            await scripted.until(stream, b"\r\n\r\n/")

        await once()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await once()
            await plane.record(6)
            await trio.sleep(0.05)
            left = [one for one in gc.get_objects() if isinstance(one, StreamToEndpoint | EndpointCarrier)]
            assert left == []
        finally:
            gc.enable()


# -- what is no HTTP/2, or none of the right kind -------------------------------------------------------------------


async def test_an_endpoint_that_speaks_http_1_is_told_of_as_that(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await scripted.origin(nursery, answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
    async with serving(tmp_path, config(port)) as plane:
        said = await ask(plane, post(3) + b"abc")
        record = await plane.record()
        assert count(plane, port)["connect_failures"] == 1
        await gone(plane, port)
    assert said.startswith(b"HTTP/1.1 502")
    assert record.reason == Reason.UPSTREAM_PROTOCOL
    assert "it speaks HTTP/1.1 instead of h2: 'HTTP/1.1 400 Bad Request'" in record.detail


async def test_an_endpoint_that_says_nothing_is_given_up_after_the_connect_time(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    port = await scripted.origin(nursery, scripted.silent)
    async with (
        http2_origin() as good,
        serving(tmp_path, config(port, good.port, upstream='[upstreams.api.timeouts]\nconnect = "100ms"')) as plane,
    ):
        said = await ask(plane, post(3) + b"abc")
        record = await plane.record()
        await gone(plane, port)
    assert said.endswith(b"/")
    assert [one.reason for one in record.attempts] == [Reason.CONNECT_TIMEOUT, Reason.OK]


@pytest.mark.parametrize(
    ("block", "reason", "rule"),
    [
        (b"\x88\x00\x01A\x01b", Reason.UPSTREAM_PROTOCOL, "upper case"),
        (b"\x88\x00\x0aconnection\x05close", Reason.UPSTREAM_PROTOCOL, "HTTP/1 connection"),
        (b"\x00\x01a\x01b", Reason.UPSTREAM_PROTOCOL, ":status is missing"),
        (b"\x88" + (b"\x00\x01a\x7f\xe1\x7e" + b"x" * 16352) * 5, Reason.UPSTREAM_HEAD_TOO_LARGE, "larger"),
    ],
)
async def test_an_answer_that_is_malformed_costs_its_own_stream_only(
    tmp_path: Path, block: bytes, reason: Reason, rule: str
) -> None:
    async def play(wire: Wire) -> None:
        other, bad = await wire.whole(), await wire.whole()
        first, rest_ = block[:16384], block[16384:]
        pieces = [(1, first)]
        while rest_:
            pieces.append((9, rest_[:16384]))
            rest_ = rest_[16384:]
        for index, (kind, piece) in enumerate(pieces):
            flags = (4 if index == len(pieces) - 1 else 0) | (1 if kind == 1 else 0)
            await wire.raw(len(piece).to_bytes(3, "big") + bytes((kind, flags)) + bad.number.to_bytes(4, "big") + piece)
        await wire.until(lambda: bad.reset is not None)
        await wire.answer(other, b"well")
        await wire.until(lambda: False)

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        await stream.send_all(GET)
        await seen(origin, 1)
        said = await ask(plane, post(3) + b"abc")
        record = await plane.record()
        assert (await scripted.until(stream, b"well")).startswith(b"HTTP/1.1 200")
    assert said.startswith(b"HTTP/1.1 502")
    assert record.reason == reason
    assert rule in record.detail


async def test_frames_that_break_the_connections_rules_end_it(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.raw(b"\0\0\0\0\0\0\0\0\x63")  # DATA on a stream that nobody has opened
        await wire.until(lambda: False)
        assert asked.reset is None

    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane:
        said = await ask(plane, post(3) + b"abc")
        record = await plane.record()
        await gone(plane, origin.port)
    assert said.startswith(b"HTTP/1.1 502")
    assert record.reason == Reason.UPSTREAM_PROTOCOL
    assert "idle stream" in record.detail
    assert origin.wires[0].goaways == [1]


# -- a server that many run -----------------------------------------------------------------------------------------


async def test_nginx_is_asked_over_http_2(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    nginx = make_nginx(tmp_path / "nginx", port, 'location /proto { return 200 "$server_protocol $http_x_a"; }')
    conf = tmp_path / "nginx" / "nginx.conf"
    conf.write_text(conf.read_text().replace("backlog=4096", "backlog=4096 http2"))
    nginx.start()
    try:
        async with serving(tmp_path, config(port)) as plane:
            said = await ask(plane, b"GET /proto HTTP/1.1\r\nHost: t\r\nX-A: b\r\n\r\n")
            async with trio.open_nursery() as nursery:
                for _ in range(150):  # more than one connection of nginx's takes
                    nursery.start_soon(ask, plane)
            await plane.record(151)
            connects = count(plane, port)["connects"]
    finally:
        nginx.kill()
    assert said.endswith(b"HTTP/2.0 b")
    assert {record.status for record in plane.records} == {200}
    assert connects <= 3


# -- helpers --------------------------------------------------------------------------------------------------------


async def active(plane: TestPlane, port: int, exchanges: int) -> None:
    """Returns once the endpoint has so many exchanges."""
    with trio.fail_after(30):
        while count(plane, port)["active"] != exchanges:
            await trio.sleep(0.002)


async def seen(origin: Http2Origin, asks: int) -> None:
    """Returns once so many requests have come to the endpoint."""
    with trio.fail_after(30):
        while sum(1 for wire in origin.wires for one in wire.asks.values() if one.ended) < asks:
            await trio.sleep(0.002)
