"""Scenarios of tunnels: what goes through them, in bulk and with the 101, and each of their ends."""

from __future__ import annotations

import trio

from tests.proxy.scripted import SWITCHING, UPGRADE
from tests.proxy.sockets import ASK, KEY, TEXT, agree, close, frame
from tests.proxy.truth import ClientPlay, OriginPlay, Row, Stage, Up
from tests.proxy.truth_messages import body

BULK = 3 << 20


def ended_by(end: str) -> tuple[ClientPlay, OriginPlay]:
    """Both plays of a tunnel that "client" or "origin" ends, in good order or ("... resets") not."""
    who, _, how = end.partition(" ")

    async def client(stage: Stage) -> None:
        one = await stage.client()
        await one.send(UPGRADE)
        await one.until(b"\r\n\r\n")
        await one.send(b"ping")
        await one.exactly(4)
        if who == "origin":
            stage.cue("end")
            await one.rest()
        elif how == "resets":
            one.reset()
            await stage.records(1)
        else:
            await one.stream.send_eof()
            await one.rest()

    async def origin(up: Up) -> None:
        await up.request()
        await up.send(SWITCHING)
        await up.send(await up.exactly(4))
        if who == "origin":
            await up.stage.wait("end")
            if how == "resets":
                up.reset()
                return
            await up.stream.send_eof()
        await up.rest()

    return client, origin


def waits(before: str = "") -> ClientPlay:
    """A client's play: an open tunnel, until somebody else has ended it; `before`: what happens meanwhile."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        await client.send(UPGRADE)
        await client.until(b"\r\n\r\n")
        if before == "removal":
            stage.reload(text=stage.row.text.replace("$a", "$b"))
        elif before == "drain":
            stage.plane.servers["web"].retire(0.3)
        await client.rest()

    return play


async def silent(up: Up) -> None:
    """An origin's play: a tunnel in which nothing is said."""
    await up.request()
    await up.send(SWITCHING)
    await up.rest()


async def in_bulk(stage: Stage) -> None:
    """A client's play: a lot, and as much back, at the same time."""
    client = await stage.client()
    await client.send(UPGRADE)
    await client.until(b"\r\n\r\n")
    async with trio.open_nursery() as both:
        both.start_soon(client.send, body(BULK))
        await client.exactly(BULK)
    await client.stream.send_eof()
    await client.rest()


async def bulk_back(up: Up) -> None:
    """An origin's play: the same from the other side."""
    await up.request()
    await up.send(SWITCHING)
    async with trio.open_nursery() as both:
        both.start_soon(up.send, body(BULK)[::-1])
        await up.exactly(BULK)
    await up.rest()


async def eager(stage: Stage) -> None:
    """A client's play: it does not wait for the 101 to speak, and says more than one read holds."""
    client = await stage.client()
    await client.send(UPGRADE + body(50))
    await client.until(b"\r\n\r\n")
    await client.exactly(70_000)
    await client.stream.send_eof()
    await client.rest()


async def eager_back(up: Up) -> None:
    """An origin's play: with the 101 comes more than goes into one read."""
    await up.request()
    await up.send(SWITCHING + body(70_000))
    await up.exactly(50)
    await up.rest()


async def frames_there(stage: Stage) -> None:
    """A client's play: a WebSocket, whose end it begins."""
    client = await stage.client()
    await client.send(ASK + frame(TEXT, b"early", masked=True))
    await client.until(b"\r\n\r\n")
    await client.exactly(len(frame(TEXT, b"hello", masked=False)))
    await client.send(close(1000, masked=True))
    await client.rest()


async def frames_back(up: Up) -> None:
    """An origin's play: its other side."""
    await up.request()
    await up.send(agree(KEY) + b"\r\n" + frame(TEXT, b"hello", masked=False))
    await up.exactly(len(frame(TEXT, b"early", masked=True)))
    await up.exactly(len(close(1000, masked=True)))
    await up.send(close(1000, masked=False))
    await up.rest()


TWO = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$a"]
"""


def _end(name: str, reason: str, *, torn: bool) -> Row:
    client, origin = ended_by(name)
    return Row(name=f"a tunnel: the {name}", says=(f"101 {reason}",), client=client, origins=(origin,), torn=torn)


ROWS = [
    _end("client ends", "tunnel_closed", torn=False),
    _end("origin ends", "tunnel_closed", torn=False),
    _end("client resets", "client_abort", torn=True),
    _end("origin resets", "upstream_closed", torn=True),
    Row(
        name="a tunnel in which nothing moves",
        says=("101 idle_timeout",),
        client=waits(),
        origins=(silent,),
        listener='timeouts = { tunnel = "300ms" }',
    ),
    Row(
        name="a tunnel whose endpoint is removed",
        says=("101 drained",),
        client=waits("removal"),
        origins=(silent, silent),
        text=TWO,
        gateway='drain = "300ms"',
    ),
    Row(name="a tunnel that a drain cuts", says=("101 drained",), client=waits("drain"), origins=(silent,)),
    Row(name="a tunnel in bulk", says=("101 tunnel_closed",), client=in_bulk, origins=(bulk_back,)),
    Row(name="a tunnel that both begin early", says=("101 tunnel_closed",), client=eager, origins=(eager_back,)),
    Row(
        name="a WebSocket whose frames are read",
        says=("101 tunnel_closed",),
        client=frames_there,
        origins=(frames_back,),
        route='websocket = { max_message = "1KiB" }',
    ),
]
