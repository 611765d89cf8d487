"""Clients of HTTP/2 that do anything at any moment, before endpoints that do: nothing of it is left behind.

Which moments a stream's exchange has (asked, answered in part, given up by the lane, taken over by a task, cut) is not
listed here: chance meets them all, and what counts is that every exchange is written down once, and that no gauge, no
upstream connection and no place in the lane's watch is kept.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import trio

from tcpgate.codec.http2 import frames
from tests.plane import TestPlane, serving
from tests.proxy.downgrade_cases import pseudo
from tests.proxy.http2_raw import data, frame, headers
from tests.proxy.scripted import OK, config, head, in_flight, origin, settled

BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
KINDS = ("ok", "pieces", "late", "close", "garbage", "reset", "chunks", "big", "hints", "twice")
WINDOW = 4


async def _play(stream: trio.SocketStream) -> None:
    """An origin's play: what a path asks for."""
    while said := await head(stream):
        kind = said.split(b" ", 2)[1].strip(b"/").decode()
        if kind in ("ok", "close", "hints"):
            await stream.send_all((b"HTTP/1.1 103 Hm\r\n\r\n" if kind == "hints" else b"") + OK)
        elif kind in ("pieces", "late"):
            await trio.sleep(0.02 if kind == "late" else 0)
            await stream.send_all(OK[:20])
            await trio.sleep(0.002)
            await stream.send_all(OK[20:])
        elif kind == "chunks":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        elif kind == "big":
            await stream.send_all(BIG)
        elif kind == "twice":
            await stream.send_all(OK + OK)
        elif kind == "garbage":
            await stream.send_all(b"nonsense\r\n\r\n")
        if kind in ("close", "garbage", "reset"):
            return


async def _client(plane: TestPlane, rng: random.Random) -> int:
    """One connection's life; how many requests it has begun."""
    begun, number = 0, 1
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream, trio.open_nursery() as nursery:
        window = rng.choice((0, 1, 100, 65535))
        said = frames.PREFACE + frames.settings([(WINDOW, window)]) + frame(frames.SETTINGS, frames.ACK, 0)
        nursery.start_soon(_swallow, stream)
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(rng.randrange(3, 25)):
                what = rng.random()
                if what < 0.6:
                    path = b"/" + rng.choice(KINDS).encode()
                    method = rng.choice((b"GET", b"GET", b"GET", b"HEAD", b"DELETE"))
                    said += headers(pseudo(method=method, path=path), stream=number)
                    begun, number = begun + 1, number + 2
                elif what < 0.75 and number > 1:
                    said += frames.rst_stream(rng.randrange(1, number, 2), frames.CANCEL)
                elif what < 0.85 and number > 1:
                    said += frames.window_update(rng.choice((0, rng.randrange(1, number, 2))), rng.randrange(1, 5000))
                elif what < 0.9:
                    said += headers(pseudo(method=b"POST", path=b"/ok"), end=False, stream=number)
                    said += data(b"abc", end=rng.random() < 0.7, stream=number)
                    begun, number = begun + 1, number + 2
                if rng.random() < 0.6:
                    await stream.send_all(said)
                    said = b""
                    await trio.sleep(rng.choice((0, 0, 0.001, 0.005)))
            await stream.send_all(said)
            await trio.sleep(rng.choice((0, 0.01, 0.05)))
        nursery.cancel_scope.cancel()
    return begun


async def _swallow(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some(65536):
            pass


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "readable"])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_clients_and_endpoints_do_nothing_is_left(
    seed: int, lane: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    rng = random.Random(seed)
    port = await origin(nursery, _play)
    listener = 'http2 = true\ntimeouts = { stall = "300ms" }\nlimits = { resets = 1000 }'
    text = config(port, listener=listener, gateway=f"lane = {str(lane).lower()}")
    begun: list[int] = []

    async def one(plane: TestPlane) -> None:
        begun.append(await _client(plane, rng))

    async with serving(tmp_path, text) as plane:
        for _ in range(5):
            async with trio.open_nursery() as clients:
                for _ in range(rng.randrange(1, 6)):
                    clients.start_soon(one, plane)
            if rng.random() < 0.3:
                plane.apply(text)
        await settled(plane)
        left = (in_flight(plane), len(plane.plane.lane.timed), plane.counts("worker", "")["lane_faults"])
        # What a client said and then cut off may never have been read; nothing is written down twice.
        assert len({record.id for record in plane.records}) == len(plane.records) <= sum(begun)
        assert not any(record.reason == "bug" for record in plane.records)
    assert left == ((0, 0, 0), 0, 0)
