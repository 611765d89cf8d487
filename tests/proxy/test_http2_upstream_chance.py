"""HTTP/2 endpoints that answer, refuse, reset, end and lose connections as chance has it, under clients that leave as
they like: every answer is its own request's, and in the end nothing is in flight."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tcpgate.errors import Reason
from tests.plane import TestPlane, serving
from tests.proxy import scripted
from tests.proxy.http2_origin import STREAMS, Ask, Wire, http2_origin
from tests.proxy.scripted import client, rest

pytestmark = pytest.mark.slow

EXPECTED = {
    Reason.OK,
    Reason.CLIENT_ABORT,
    Reason.UPSTREAM_CLOSED,
    Reason.UPSTREAM_INCOMPLETE,
    Reason.ENDPOINT_LIMIT,
}


class Chance:
    """An endpoint's play."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    async def play(self, wire: Wire) -> None:
        """Take requests until it is time to end the connection, in one way or another."""
        rng = self.rng
        async with trio.open_nursery() as nursery:
            last = 0
            for _ in range(rng.randrange(5, 60)):
                try:
                    asked = await wire.ask()
                except trio.BrokenResourceError:
                    break  # inside a nursery it would become a group
                nursery.start_soon(self._answer, wire, asked)
                last = asked.number
            if rng.random() < 0.6:
                await wire.goaway(last)  # what came meanwhile is not answered, and has to be asked elsewhere
                await wire.until(lambda: False)
            nursery.cancel_scope.cancel()

    async def _answer(self, wire: Wire, asked: Ask) -> None:
        rng = self.rng
        await trio.sleep(rng.random() * 0.01)
        if _is_over(wire, asked):
            return
        what = rng.random()
        if what < 0.03:
            await wire.reset(asked, 7)
        elif what < 0.06:
            await wire.reset(asked, 2)
        else:
            await wire.until(lambda: asked.ended or asked.reset is not None)
            if not _is_over(wire, asked):
                await self._say(wire, asked, rng.choice((1, 100, 20_000, 200_000)))

    async def _say(self, wire: Wire, asked: Ask, size: int) -> None:
        """The request's path and content, over and over."""
        text = asked.path + b" " + asked.body + b"\n"
        said = text * max(1, size // len(text))
        try:
            await wire.head(asked)
            for start in range(0, len(said), 20_000):
                if _is_over(wire, asked):
                    return
                await wire.data(asked, said[start : start + 20_000])
            await wire.data(asked, b"", end=True)
        except Exception:
            if not _is_over(wire, asked):  # else the gateway has ended it while we spoke
                raise


def _is_over(wire: Wire, asked: Ask) -> bool:
    return wire.ended or asked.reset is not None


async def one_client(plane: TestPlane, number: int, rng: random.Random, bad: list[bytes]) -> None:
    """Requests, one after the other, each on a connection of its own; some are left in the middle."""
    for index in range(25):
        path, body = b"/%d-%d" % (number, index), b"b" * rng.choice((0, 0, 10, 100_000))
        head = b"%b %b HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
            (b"POST" if body else b"GET"),
            path,
            len(body),
        )
        leaves = rng.random() < 0.2
        with trio.move_on_after(rng.random() * 0.03 if leaves else 60) as scope:
            async with client(plane) as stream:
                async with trio.open_nursery() as sending:
                    sending.start_soon(_send, stream, head + body)
                    said = await rest(stream)
                    sending.cancel_scope.cancel()
                _judge(said, path + b" " + body, bad)
        assert leaves or not scope.cancelled_caught, "no answer in a minute"


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        return  # it was answered before its end


def _judge(said: bytes, text: bytes, bad: list[bytes]) -> None:
    """Nothing but the own text may be in an answer of an endpoint's."""
    head, _, body = said.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"x-request-id" not in head.lower():
        return
    content, whole = _dechunk(body)
    expected = text + b"\n"
    count = len(content) // len(expected) + 1
    if not (expected * count).startswith(content) or (whole and len(content) % len(expected)):
        bad.append(content[:200])


def _dechunk(body: bytes) -> tuple[bytes, bool]:
    content = b""
    while body:
        line, found, body = body.partition(b"\r\n")
        if not found or not line:
            return content, False
        size = int(line, 16)
        if size == 0:
            return content, True
        content, body = content + body[:size], body[size + 2 :]
    return content, False


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_answers_are_not_mixed_up_and_everything_ends(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    bad: list[bytes] = []
    chances = [Chance(seed * 10 + index) for index in range(2)]
    more = f"[upstreams.api.pool]\nmax_exchanges = {rng.choice((7, 40, 10_000))}\n"
    async with (
        http2_origin(chances[0].play, settings={STREAMS: 3}) as first,
        http2_origin(chances[1].play) as second,
        serving(tmp_path, scripted.config(first.port, second.port, upstream=f'http = "h2"\n{more}')) as plane,
    ):
        async with trio.open_nursery() as clients:
            for number in range(12):
                clients.start_soon(one_client, plane, number, random.Random(seed * 100 + number), bad)
        with trio.fail_after(30):
            while any(_in_flight(plane)):
                await trio.sleep(0.005)
        for endpoint in plane.plane.runtime.endpoints():
            endpoint.withdraw()
        with trio.fail_after(30):
            while any(count["connections"] for count in _counts(plane)):
                await trio.sleep(0.005)
        reasons = {record.reason for record in plane.records}
    assert bad == []
    assert reasons <= EXPECTED
    assert sum(1 for record in plane.records if record.reason == Reason.OK) > 150


def _counts(plane: TestPlane) -> list[dict[str, int]]:
    return [plane.counts("endpoint", f"api/{one.name}") for one in plane.plane.runtime.endpoints()]


def _in_flight(plane: TestPlane) -> list[int]:
    return [count["active"] for count in _counts(plane)]
