"""Scenarios of exchanges on HTTP/2 streams, for the lane and the readable path alike; run by test_http2_same_truth.py.

What a client has heard is written down stream by stream: the fields in their order, the body, the trailers, the end.
In which order the frames of different streams come means nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import h2.settings
import trio

from tests.proxy.http2_client import Answer, Http2Client, Pairs, Settings, greeted
from tests.proxy.truth import Client, ClientPlay, OriginPlay, Row, Stage, always

H2 = "http2 = true\n"
WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE


@contextlib.asynccontextmanager
async def talking(stage: Stage, settings: Settings | None = None) -> AsyncIterator[Http2Client]:
    """A connection of the stage's; at the end, what it has heard is what its wire got."""
    wire = await stage.client()
    client = await greeted(wire.stream, settings)
    try:
        yield client
    finally:
        note(wire, client)


def note(wire: Client, client: Http2Client) -> None:
    """Write down what came."""
    for number, answer in sorted(client.answers.items()):
        wire.got += b"== %d\r\n%b" % (number, _transcript(answer))
    # A drain's first GOAWAY, and how a connection ended.
    wire.got += b"".join(b"goaway %d %d\r\n" % one for one in client.goaways)
    wire.end = "eof" if client.ended else ""


def _transcript(answer: Answer) -> bytes:
    said = b""
    for pairs in answer.heads:
        said += b"\r\n".join(b"%b: %b" % (name.title(), value) for name, value in pairs) + b"\r\n\r\n"
    said += b"body %d: %b\r\n" % (len(answer.body), answer.body)
    for name, value in answer.trailers or ():
        said += b"trailer %b: %b\r\n" % (name, value)
    return said + (b"ended\r\n" if answer.ended else b"") + (b"reset %d\r\n" % answer.reset if answer.reset else b"")


# -- plays of clients -----------------------------------------------------------------------------------------------

Ask = tuple[str, str, Pairs] | tuple[str, str, Pairs, bytes | None]


def get(path: str = "/", *fields: tuple[bytes, bytes]) -> Ask:
    """A GET."""
    return "GET", path, fields


def one_by_one(*asks: Ask, settings: Settings | None = None, authority: str = "t", quiet: bool = True) -> ClientPlay:
    """One request after the other, each when the one before is answered and in the books."""

    async def play(stage: Stage) -> None:
        async with talking(stage, settings) as client:
            for ask in asks:
                await client.answer(await client.request(*ask, authority=authority))
                if quiet:
                    await stage.quiet()

    return play


async def together(client: Http2Client, *asks: Ask) -> list[int]:
    """Begin requests that arrive in one piece."""
    send, pieces = client.stream.send_all, list[bytes]()

    async def hold(data: bytes) -> None:
        pieces.append(bytes(data))

    client.stream.send_all = hold  # type: ignore[method-assign, assignment]
    try:
        numbers = [await client.request(*ask, authority="t") for ask in asks]
    finally:
        client.stream.send_all = send  # type: ignore[method-assign]
    await send(b"".join(pieces))
    return numbers


def raw(*said: bytes, before: int = 0, then: Ask | None = None) -> ClientPlay:
    """Good requests, frames as they are, and another good request, if the connection still takes one."""

    async def play(stage: Stage) -> None:
        async with talking(stage) as client:
            for _ in range(before):
                await client.answer(await client.request(*get(), authority="t"))
            await stage.quiet()
            for piece in said:
                await client.stream.send_all(piece)
            if then is not None:
                await client.answer(await client.request(*then, authority="t"))
            else:
                await client.rest()

    return play


def while_asked(act: Callable[[Stage, Http2Client, int], Awaitable[None]]) -> ClientPlay:
    """A request goes out; once its endpoint has it, `act`; then another exchange, if the connection lives.

    The endpoint was connected before, so that the request is the lane's.
    """

    async def play(stage: Stage) -> None:
        async with talking(stage) as client:
            await client.answer(await client.request(*get("/first"), authority="t"))
            await stage.quiet()
            number = await client.request(*get("/second"), authority="t")
            await stage.wait("asked")
            await act(stage, client, number)
            await stage.records(2)
            stage.cue("answer")  # whoever still waits for it

    return play


async def resets(stage: Stage, client: Http2Client, number: int) -> None:
    """Resets the stream, and asks for something else."""
    client.h2.reset_stream(number, 8)
    await client.flush()
    await stage.records(2)
    stage.cue("answer")
    await client.answer(await client.request(*get("/third"), authority="t"))


async def goes(stage: Stage, client: Http2Client, number: int) -> None:
    """Closes the connection."""
    await client.stream.aclose()
    client.ended = True


async def half_closes(stage: Stage, client: Http2Client, number: int) -> None:
    """Sends no more, and would still read."""
    assert isinstance(client.stream, trio.SocketStream)
    await client.stream.send_eof()
    while await client.stream.receive_some(4096):
        pass
    client.ended = True


async def says_goaway(stage: Stage, client: Http2Client, number: int) -> None:
    """Will take no stream of ours, which there are none of, and waits for its answer."""
    await client.stream.send_all(bytes.fromhex("000008070000000000") + bytes(8))
    stage.cue("answer")
    await client.answer(number)


async def breaks_a_rule(stage: Stage, client: Http2Client, number: int) -> None:
    """DATA on an idle stream."""
    await client.stream.send_all(bytes.fromhex("0000010000000000ff") + b"x")
    await client.rest()


async def sends_on(stage: Stage, client: Http2Client, number: int) -> None:
    """DATA behind its END_STREAM."""
    await client.stream.send_all(b"\0\0\1\0\0" + number.to_bytes(4, "big") + b"x")
    await client.answer(number)


async def drains(stage: Stage, client: Http2Client, number: int) -> None:
    """The listener goes; the answer comes in time."""
    stage.plane.servers["web"].retire(10)
    await trio.sleep(0.02)
    stage.cue("answer")
    await client.rest()


async def is_cut(stage: Stage, client: Http2Client, number: int) -> None:
    """The listener goes, and no answer comes in time."""
    stage.plane.servers["web"].retire(0.2)
    await client.rest()
    stage.cue("answer")


async def loses_its_route(stage: Stage, client: Http2Client, number: int) -> None:
    """A reload takes the route away; what has begun goes on by the old one, what comes by the new."""
    stage.reload(route='path = "/only"')
    await client.answer(await client.request(*get("/third"), authority="t"))
    stage.cue("answer")
    await client.answer(number)


async def loses_its_endpoint(stage: Stage, client: Http2Client, number: int) -> None:
    """A reload takes the endpoint away, under a request that then is answered in two pieces."""
    stage.reload(text=stage.row.text.replace("$a", "$b"))
    await client.answer(await client.request(*get("/third"), authority="t"))
    stage.cue("answer")
    await client.answer(number)


# -- plays of origins -----------------------------------------------------------------------------------------------


def holds(said: bytes, before: bytes = b"") -> OriginPlay:
    """The first request is answered at once, of the next one only `before`, until the cue for the rest."""

    async def play(up: Client) -> None:
        if not await up.message():
            return
        await up.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        while await up.message():
            await up.send(before)
            up.stage.cue("asked")  # type: ignore[attr-defined]  # an origin's wire has it
            await up.stage.wait("answer")  # type: ignore[attr-defined]
            await up.send(said)

    return play  # type: ignore[return-value]


def row(
    name: str,
    *says: str,
    client: ClientPlay | None = None,
    origins: tuple[OriginPlay, ...] = (always(),),
    listener: str = "",
    route: str = "",
    upstream: str = "",
    more: str = "",
    text: str = "",
    plain: bool = False,
    torn: bool = False,
    pieces: bool = False,
) -> Row:
    """A scenario of a listener that takes HTTP/2. Where `text` is a whole config, it says so itself."""
    return Row(
        name=name,
        says=says,
        client=one_by_one(get(), get(), get()) if client is None else client,
        origins=origins,
        listener=H2 + listener,
        route=route,
        upstream=upstream,
        more=more,
        text=text,
        plain=plain,
        torn=torn,
        pieces=pieces,
    )
