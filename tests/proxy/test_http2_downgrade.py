"""From HTTP/2 to HTTP/1.1 at the gateway's edge: raw frames in, and what the origin saw out.

Every case is refused in the right way, or passes with exactly one meaning; either way the next request on the same
connection is heard as what it is, and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from tests.plane import serving
from tests.proxy.downgrade_cases import CASES, Case, pseudo
from tests.proxy.http2_raw import RawClient, headers, raw_client
from tests.proxy.scripted import OK, config, origin
from tests.proxy.truth import Wire

OURS = re.compile(rb"(?:X-Forwarded-\w+|Forwarded|Via|X-Request-Id): [^\r]*\r\n")
LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "readable"])


def _text(port: int, *, lane: bool) -> str:
    return config(port, listener="http2 = true", gateway=f"lane = {str(lane).lower()}")


async def _recorder(nursery: trio.Nursery, seen: list[bytes], said: bytes = OK) -> int:
    """The port of an origin that writes down every request, as its framing delimits it."""

    async def play(stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        while request := await wire.message():
            seen.append(OURS.sub(b"", bytes(wire.got)))  # what came behind it, too
            wire.got.clear()
            wire._at = 0
            await wire.send(OK if b" /next " in request else said)

    return await origin(nursery, play)


@LANES
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_request_is_refused_or_has_one_meaning(
    case: Case, lane: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    seen: list[bytes] = []
    port = await _recorder(nursery, seen)
    async with serving(tmp_path, _text(port, lane=lane)) as plane, raw_client(plane) as client:
        await client.stream.send_all(case.said)
        assert await client.outcome() == case.comes
        ours = [one for one in seen if b" /next " not in one]
        if case.sees is not None:
            assert ours == [case.sees]
        elif not ours or b"Transfer-Encoding" not in ours[0]:  # a head may have gone before its body was found wrong
            assert all(b"evil" not in one for one in ours)
        if not case.comes.startswith("goaway"):
            await client.stream.send_all(headers(pseudo(path=b"/next"), stream=3))
            assert await client.outcome(3) == "200"
            assert seen[-1] == b"GET /next HTTP/1.1\r\nHost: t\r\n\r\n"
        assert all(b"/evil" not in one.partition(b"\r\n\r\n")[0] or one == case.sees for one in seen)


def test_the_cases_are_all_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


# -- answers --------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[bytes, str, list[tuple[bytes, bytes]], bytes]] = {
    "fields about the connection": (
        b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n"
        b"Upgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok", "200", [(b"x-kept", b"1")], b"ok"),
    "upper case": (b"HTTP/1.1 200 OK\r\nX-UP: A\r\nContent-Length: 0\r\n\r\n", "200", [(b"x-up", b"A")], b""),
    "a 204 with a length": (b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "204", [], b""),
    "a 204 with a body": (b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "204", [], b""),
    "a 304 with a body": (b"HTTP/1.1 304 No\r\nContent-Length: 4\r\n\r\nevil", "304", [], b""),
    "an answer behind the answer": (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "200", [], b"ok"),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", "200", [], b"ok"),
    "a version of 1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "200", [], b"ok"),
    "bytes beyond ASCII": (b"HTTP/1.1 200 OK\r\nX: \xe9\r\nContent-Length: 0\r\n\r\n", "200", [(b"x", b"\xe9")], b""),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "502", [], b""),
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "502", [], b""),
    "a pseudo-header field": (b"HTTP/1.1 200 OK\r\n:status: 404\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "a space in a name": (b"HTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "a folded line": (b"HTTP/1.1 200 OK\r\nX: 1\r\n y\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "NUL in a value": (b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "a bare CR": (b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "a switch that nobody asked for": (b"HTTP/1.1 101 Yes\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "502",
        [], b""),
    "a status of two digits": (b"HTTP/1.1 20 OK\r\n\r\n", "502", [], b""),
    "a status of 600": (b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n", "502", [], b""),
    "another coding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "502", [], b""),
    "a chunk that is none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "cut INTERNAL_ERROR", [], b""),
}  # fmt: skip
HOP = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"x-hop"}
ADDED = {b":status", b"date", b"via", b"x-request-id", b"content-length", b"proxy-status", b"content-type"}


@LANES
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_has_one_meaning_on_its_stream(
    name: str, lane: bool, tmp_path: Path, nursery: trio.Nursery
) -> None:
    said, comes, kept, content = ANSWERS[name]
    seen: list[bytes] = []
    port = await _recorder(nursery, seen, said)
    async with serving(tmp_path, _text(port, lane=lane)) as plane, raw_client(plane) as client:
        # An idle upstream connection first, so that the lane may take it.
        await _ask(client, 1, b"/next", "200")
        client.body = b""
        # A POST: it is not sent a second time.
        await client.stream.send_all(
            headers([*pseudo(method=b"POST", path=b"/asked"), (b"content-length", b"0")], stream=3)
        )
        assert await client.outcome(3) == comes
        fields = client.fields[3]
        names = [field for field, _ in fields]
        assert HOP.isdisjoint(names)
        assert all(field == field.lower() for field in names)
        assert names[0] == b":status"
        assert names.count(b":status") == 1
        if comes not in ("502", "cut INTERNAL_ERROR"):
            assert [pair for pair in fields if pair[0] not in ADDED] == kept
            assert client.body == content
        if b"evil" in said:
            assert b"evil" not in client.body
        await _ask(client, 5, b"/next", "200")
        assert client.body.endswith(b"ok")


async def _ask(client: RawClient, number: int, path: bytes, comes: str) -> None:
    await client.stream.send_all(headers(pseudo(path=path), stream=number))
    assert await client.outcome(number) == comes
