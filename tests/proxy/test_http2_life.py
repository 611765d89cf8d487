"""The life of an HTTP/2 connection: windows, time limits, refusals, a drain, and what breaks the rules."""

from __future__ import annotations

from pathlib import Path

import h2.settings
import pytest
import trio

from tcpgate.codec.http2 import frames
from tcpgate.proxy import http2
from tests.gateway import Recorder, plain_answer
from tests.plane import serving
from tests.proxy.http2_client import http2_client
from tests.proxy.scripted import always_ok, busy, client, config, head, origin, rest, settled, silent

H2 = "http2 = true"
BIG = b"x" * (4 << 20)


async def _deaf(stream: trio.SocketStream) -> None:
    """An origin's play: it neither reads nor says anything."""
    await trio.sleep_forever()


async def test_a_client_that_gives_no_window_holds_its_endpoint_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    sent = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal sent
        await head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(1024):
            await stream.send_all(b"x" * 65536)
            sent += 65536

    async with serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane:
        async with http2_client(plane) as client:
            client.holds = True
            number = await client.request()
            other = await client.request(path="/other")
            with trio.move_on_after(1):
                await client.rest()
            held = len(client.answers[number].body) + len(client.answers[other].body)
            before = sent
            await trio.sleep(0.2)
            assert sent == before  # the endpoint is not read while the client's windows are shut
        await plane.record(2)
    assert held == 65535  # the connection's window, of both streams
    assert {record.reason for record in plane.records} == {"client_abort"}


async def test_a_stream_whose_window_is_shut_does_not_hold_up_another(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await nursery.start(
        Recorder(lambda request, body: plain_answer(BIG if request.target == b"/big" else b"small")).serve
    )
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        client.h2.increment_flow_control_window(1 << 20)
        client.holds = True
        big = await client.request(path="/big")
        while len(client.answers[big].body) < 65535:
            assert await client.hear()
        for _ in range(5):
            assert (await client.answer(await client.request())).body == b"small"
        assert not client.answers[big].ended
        client.holds = False
        client.h2.increment_flow_control_window(1 << 25, big)
        client.h2.increment_flow_control_window(1 << 25)
        await client.flush()
        assert (await client.answer(big)).body == BIG


async def test_an_upload_that_nobody_reads_is_held_back_at_one_window(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, _deaf)
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        number = await client.request("POST", end=False)
        sent = 0
        with trio.move_on_after(1.5):
            while True:
                await client.send(number, b"x" * 16384)
                sent += 16384
        assert sent < 16 << 20  # kernel buffers and one window
        other = await client.request("POST", end=False)  # and others are served
        await client.send(other, b"y" * 1000, end=True)
        await busy(plane, 2)


async def test_a_client_that_reads_too_slowly_loses_its_stream(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await nursery.start(Recorder(lambda request, body: plain_answer(BIG)).serve)
    text = config(port, listener=f'{H2}\ntimeouts = {{ stall = "300ms", min_rate = "1MiB/s" }}')
    async with serving(tmp_path, text) as plane, http2_client(plane) as client:
        client.holds = True
        answer = await client.answer(await client.request())
        record = await plane.record()
    assert answer.reset == frames.INTERNAL_ERROR
    assert (record.reason, record.status, record.answered_by) == ("client_slow", 200, "upstream")


async def test_a_stream_above_the_limit_is_refused_and_may_come_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port, listener=f"{H2}\nlimits = {{ streams = 2 }}")) as plane:
        async with http2_client(plane) as client:
            await client.request()
            await client.request()  # before our SETTINGS have come, h2 takes no limit for known
            third = await client.answer(await client.request())
            await busy(plane, 2)
        await plane.record(2)
    assert third.reset == frames.REFUSED_STREAM
    assert third.heads == []


async def test_an_idle_connection_is_told_and_closed(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port, listener=f'{H2}\ntimeouts = {{ idle = "200ms" }}')) as plane:
        async with http2_client(plane) as client:
            await client.answer(await client.request())
            await client.rest()
        await settled(plane)
    assert client.goaways == [(1, frames.NO_ERROR)]


async def test_a_preface_without_settings_ends_in_the_time_of_a_head(tmp_path: Path) -> None:
    text = config(1, listener=f'{H2}\ntimeouts = {{ head = "200ms" }}')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(frames.PREFACE)
        said = await rest(stream)
    assert frames.goaway(0, frames.NO_ERROR, b"") in said


async def test_a_header_block_without_its_end_is_given_up(tmp_path: Path) -> None:
    text = config(1, listener=f'{H2}\ntimeouts = {{ head = "200ms" }}')
    async with serving(tmp_path, text) as plane, client(plane) as stream:
        await stream.send_all(
            frames.PREFACE + frames.settings([]) + frames.frame_head(1 << 8 | frames.HEADERS, 0, 1) + b"\x82"
        )
        said = await rest(stream)
        record = await plane.record()
    assert frames.goaway(0, frames.ENHANCE_YOUR_CALM, b"")[13:17] in said
    assert (record.reason, record.status) == ("head_timeout", 408)


async def test_a_drain_lets_open_streams_finish_and_says_goaway_twice(tmp_path: Path, nursery: trio.Nursery) -> None:
    gate = trio.Event()

    async def play(stream: trio.SocketStream) -> None:
        await head(stream)
        await gate.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    port = await origin(nursery, play)
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        number = await client.request()
        await busy(plane)
        plane.servers["web"].retire(30)
        while len(client.goaways) < 2:
            assert await client.hear()
        gate.set()
        answer = await client.answer(number)
        await client.rest()
    assert client.goaways == [(frames.LARGEST, frames.NO_ERROR), (number, frames.NO_ERROR)]
    assert (answer.status, answer.body) == (200, b"ok")


async def test_the_end_of_a_drain_answers_what_is_still_open(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port, listener=H2)) as plane:
        async with http2_client(plane) as client:
            number = await client.request()
            await busy(plane)
            plane.servers["web"].retire(0.2)
            answer = await client.answer(number)
        record = await plane.record()
    assert (answer.status, answer.ended) == (503, True)
    assert (record.status, record.reason) == (503, "drained")


async def test_a_reload_serves_the_next_stream_of_an_open_connection(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    text = config(port, listener=H2)
    async with serving(tmp_path, text) as plane, http2_client(plane) as client:
        assert (await client.answer(await client.request())).status == 200
        plane.apply(
            text.replace("[routes.all]", '[routes.new]\npath = "/new"\nrespond = { status = 201 }\n[routes.all]')
        )
        assert (await client.answer(await client.request(path="/new"))).status == 201
        record = await plane.record(2)
    assert record.generation == 2


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"path": "/a%00"}, 400, "bad_request"),
        ({"path": "/" + "a" * 9000}, 414, "target_too_long"),
        ({"scheme": "https"}, 421, "bad_request"),
    ],
)
async def test_what_is_no_request_to_the_grammar_is_answered(
    tmp_path: Path, fields: dict[str, str], status: int, reason: str
) -> None:
    async with serving(tmp_path, config(1, listener=H2)) as plane, http2_client(plane) as client:
        answer = await client.answer(await client.request(**fields))  # type: ignore[arg-type]
        record = await plane.record()
        bad = plane.counts("listener", "web")["bad_requests"]
    assert (answer.status, answer.ended) == (status, True)
    assert (record.reason, record.status, record.proto, bad) == (reason, status, "h2", 1)


async def test_a_malformed_request_resets_its_stream_and_is_written_down(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        client.h2.config.validate_outbound_headers = False
        client.h2.config.normalize_outbound_headers = False
        bad = await client.answer(await client.request(fields=[(b"connection", b"close")]))
        good = await client.answer(await client.request())
        await plane.record(2)
    assert bad.reset == frames.PROTOCOL_ERROR
    assert good.status == 200
    assert (plane.records[0].reason, plane.records[0].status) == ("bad_request", 400)
    assert "HTTP/1 connection" in plane.records[0].detail


async def test_a_body_that_is_not_as_long_as_it_says_never_looks_whole(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        got.append(await rest(stream))

    async with serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane:
        async with http2_client(plane) as client:
            number = await client.request("POST", fields=[(b"content-length", b"10")], body=b"short")
            answer = await client.answer(number)
        record = await plane.record()
        await settled(plane)
    assert answer.reset == frames.PROTOCOL_ERROR
    assert (record.reason, record.detail) == ("bad_request", "DATA: not as long as Content-Length says")
    assert all(not raw.endswith(b"short" + b"x" * 5) for raw in got)


async def test_rapid_resets_end_their_connection_and_no_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, always_ok)
    async with serving(tmp_path, config(port, listener=f"{H2}\nlimits = {{ resets = 20 }}")) as plane:
        async with http2_client(plane) as good, http2_client(plane) as bad:
            for _ in range(30):
                number = await bad.request()
                bad.h2.reset_stream(number, 8)
                await bad.flush()
            await bad.rest()
            assert (await good.answer(await good.request())).status == 200
        await settled(plane)
    assert [code for _, code in bad.goaways] == [frames.ENHANCE_YOUR_CALM]
    assert any("flood" in record.detail for record in plane.records)


async def test_the_window_that_a_reset_stream_left_unread_is_given_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, _deaf)
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        for _ in range(40):  # 40 x 60 kB is more than the connection's window
            number = await client.request("POST", end=False)
            await client.send(number, b"x" * 60000)
            client.h2.reset_stream(number, 8)
            await client.flush()
        with trio.fail_after(30):
            await client.send(await client.request("POST", end=False), b"x" * 60000)


async def test_a_client_that_connects_and_says_nothing_more_can_be_drained(tmp_path: Path) -> None:
    async with serving(tmp_path, config(1, listener=H2)) as plane, http2_client(plane) as client:
        while not client.h2.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL):
            assert await client.hear()
        plane.servers["web"].retire(30)
        await client.rest()
    assert client.goaways == [(frames.LARGEST, 0), (0, 0)]


async def test_the_second_goaway_does_not_wait_for_a_silent_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "FINAL_AFTER", 0.1)
    async with serving(tmp_path, config(1, listener=H2)) as plane, client(plane) as stream:
        await stream.send_all(frames.PREFACE + frames.settings([]))
        await stream.receive_some(1)
        plane.servers["web"].retire(30)
        said = await rest(stream)
    assert said.endswith(frames.goaway(0, frames.NO_ERROR, b""))
