"""Long bodies with TLS on either side or on both: whole by their hashes, held back by slow readers, told when cut.

And what an endpoint says beyond the end of its answer, where TLS hides it from the kernel.
"""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.errors import Reason
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import client_context, write_certificate
from tests.tls_origin import NAME, Wire, ca_pem, tls_origin

MIB = 1 << 20
BODY = random.Random(7).randbytes(6 * MIB + 4711)
"""Long enough for splice, had it no keys to mind."""
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"

ByteStream = trio.abc.Stream


@attrs.frozen
class Sides:
    """Where TLS is, and whether the lane is on."""

    folder: Path
    into: bool
    out: bool
    lane: bool

    @asynccontextmanager
    async def plane(self, port: int, plain: int, more: str = "") -> AsyncIterator[TestPlane]:
        """A data plane before one endpoint, at `port` by TLS or at `plain` without."""
        pair = write_certificate(self.folder, "a", "a.example")
        (self.folder / "ca.pem").write_text(ca_pem())
        text = f"""
[gateway]
lane = {str(self.lane).lower()}
[listeners.web]
bind = ["127.0.0.1:0"]
{f"[listeners.web.tls]{chr(10)}certificates = [{pair}]" if self.into else ""}
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{port if self.out else plain}"]
{more}
{f'[upstreams.api.tls]{chr(10)}ca = "ca.pem"{chr(10)}name = "{NAME}"' if self.out else ""}
"""
        with trio.fail_after(60):
            async with serving(self.folder, text) as plane:
                yield plane

    async def connect(self, plane: TestPlane, buffer: int = 0) -> ByteStream:
        """A client's connection."""
        sock = trio.socket.socket()
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await sock.connect(("127.0.0.1", plane.port()))
        raw = trio.SocketStream(sock)
        if not self.into:
            return raw
        tls = trio.SSLStream(raw, client_context(), server_hostname="a.example", https_compatible=True)
        await tls.do_handshake()
        return tls


@pytest.fixture(params=["in-lane", "out-lane", "both-lane", "in-task", "out-task", "both-task"])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Sides:
    where, how = request.param.split("-")
    return Sides(tmp_path, where != "out", where != "in", how == "lane")


@asynccontextmanager
async def origins(answer: bytes, pieces: int = 0) -> AsyncIterator[tuple[int, int, list[bytes]]]:
    """Ports of an endpoint by TLS and of a plain one: both read a request whole, by its length, and give `answer`."""
    bodies: list[bytes] = []

    async def play(stream: ByteStream) -> None:
        data = bytearray()
        while True:
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some(65536)
                if not more:
                    return
                data += more
            head, _, rest = bytes(data).partition(b"\r\n\r\n")
            body, data = bytearray(rest), bytearray()
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            while len(body) < size:
                body += await stream.receive_some(65536)
            bodies.append(bytes(body))
            step = pieces or len(answer)
            for at in range(0, len(answer), step):
                await stream.send_all(answer[at : at + step])

    async def by_tls(wire: Wire) -> None:
        await play(wire.tls)

    async def plain(stream: trio.SocketStream) -> None:
        try:
            await play(stream)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with tls_origin(by_tls) as origin, trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, plain, listeners)
        yield origin.port, listeners[0].socket.getsockname()[1], bodies
        nursery.cancel_scope.cancel()


def with_length(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def in_chunks(body: bytes, size: int) -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % framed


async def read_answer(stream: ByteStream) -> bytes:
    """One answer's body."""
    said = bytearray()
    while b"\r\n\r\n" not in said:
        more = await stream.receive_some(65536)
        assert more, "the connection ended in the head"
        said += more
    head, _, rest = bytes(said).partition(b"\r\n\r\n")
    if b"transfer-encoding" not in head.lower():
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = bytearray(rest)
        while len(body) < size:
            more = await stream.receive_some(65536)
            assert more, f"the connection ended after {len(body)} of {size} bytes"
            body += more
        return bytes(body)
    framed = bytearray(rest)
    while not framed.endswith(b"0\r\n\r\n"):
        more = await stream.receive_some(65536)
        assert more, "the connection ended before the last chunk"
        framed += more
    body, at = bytearray(), 0
    while size := int(framed[at : (end := framed.index(b"\r\n", at))], 16):
        body += framed[end + 2 : end + 2 + size]
        at = end + size + 4
    return bytes(body)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["length", "chunks", "odd pieces"])
async def test_a_long_answer_arrives_whole_and_the_connection_goes_on(sides: Sides, kind: str) -> None:
    answer = in_chunks(BODY, 70_001) if kind == "chunks" else with_length(BODY)
    async with (
        origins(answer, 7_919 if kind == "odd pieces" else 0) as (port, plain, _),
        sides.plane(port, plain) as plane,
        await sides.connect(plane) as client,
    ):
        for _ in range(2):
            await client.send_all(GET)
            assert digest(await read_answer(client)) == digest(BODY)
        first, second = [await plane.record(number) for number in (1, 2)]
    assert {first.reason, second.reason} == {Reason.OK}


async def test_a_long_request_arrives_whole(sides: Sides) -> None:
    async with (
        origins(with_length(b"ok")) as (port, plain, bodies),
        sides.plane(port, plain) as plane,
        await sides.connect(plane) as client,
    ):
        for _ in range(2):
            head = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % len(BODY)
            await client.send_all(head)
            await client.send_all(BODY)
            assert await read_answer(client) == b"ok"
    assert [digest(body) for body in bodies] == [digest(BODY)] * 2


async def test_a_client_that_reads_slowly_gets_everything(sides: Sides) -> None:
    async with (
        origins(with_length(BODY)) as (port, plain, _),
        sides.plane(port, plain) as plane,
        await sides.connect(plane, buffer=4096) as client,
    ):
        await client.send_all(GET)
        await trio.sleep(0.3)  # every buffer on the way is full by now
        assert digest(await read_answer(client)) == digest(BODY)


@pytest.mark.parametrize("lane", [True, False])
async def test_what_an_endpoint_says_beyond_its_answer_is_nobodys_answer(tmp_path: Path, lane: bool) -> None:
    """The surplus is in the very record that ends the body: no descriptor tells of it."""
    body = BODY[:100_000]
    sides = Sides(tmp_path, into=False, out=True, lane=lane)

    async def play(wire: Wire) -> None:
        while await wire.head():
            data = with_length(body) + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
            await wire.say(data[:-3000])
            await trio.sleep(0.05)  # so that what follows is one record, taken by itself
            await wire.say(data[-3000:])

    async with (
        tls_origin(play) as origin,
        sides.plane(origin.port, 0) as plane,
        await sides.connect(plane) as client,
    ):
        for _ in range(3):
            await client.send_all(GET)
            assert await read_answer(client) == body
    assert len(origin.wires) == 3  # none was used again
