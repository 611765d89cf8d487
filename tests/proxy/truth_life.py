"""Scenarios of connections: kept and closed, pipelined, interim answers, tunnels, reloads between requests, drains."""

from __future__ import annotations

import trio

from tests.proxy.scripted import GET, OK, SWITCHING, UPGRADE, post
from tests.proxy.truth import ClientPlay, OriginPlay, Row, Stage, Up, always, ask, each
from tests.proxy.truth_messages import CHUNKED, answer, bare, body, chunks, posted, request

CLOSE = request(b"GET", b"/", b"Connection: close")
ECHO_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


def paths(count: int) -> list[bytes]:
    """So many different GETs."""
    return [request(b"GET", b"/%d" % number) for number in range(count)]


async def echo(up: Up) -> None:
    """An origin's play: every answer's body is the request line that it answers."""
    while said := await up.request():
        line = said.partition(b"\r\n")[0]
        await up.send(ECHO_ANSWER % (len(line), line))


def burst(*requests: bytes, apart: int = 0, answers: int | None = None) -> ClientPlay:
    """A client's play: all requests at once (or in pieces of `apart` bytes), then so many answers, in their order."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        if apart:
            await client.trickle(b"".join(requests), apart)
        else:
            await client.send(b"".join(requests))
        for one in requests[:answers]:
            await client.response(one.partition(b" ")[0])
        if answers is not None:
            await client.rest()

    return play


KEPT = [
    Row(
        name="five requests on one connection", says=("200 ok",) * 5, client=ask(*paths(5)), origins=(echo,), plain=True
    ),
    Row(
        name="fifty requests on one connection",
        says=("200 ok",) * 50,
        client=ask(*paths(50)),
        origins=(echo,),
        plain=True,
    ),
    Row(name="a client that asks for the close", says=("200 ok", "200 ok"), client=ask(GET, CLOSE), plain=True),
    Row(
        name="a client that asks for the close and sends a body",
        says=("200 ok",),
        client=ask(posted(30, b"Connection: close")),
        plain=True,
    ),
    Row(
        name="a client that asks for the close and sends on",
        says=("200 ok",),
        client=burst(CLOSE, GET, answers=1),
        ahead=True,
    ),
    Row(
        name="an origin that asks for the close",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(answer(3, b"Connection: close")),),
        plain=True,
    ),
    Row(
        name="an origin that asks for the close of a chunked answer",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(CHUNKED.replace(b"X-Kept", b"Connection: close\r\nX-Kept") + chunks(b"abc")),),
        plain=True,
        pieces=True,
    ),
    Row(
        name="both ask for the close",
        says=("200 ok",),
        client=ask(CLOSE),
        origins=(each(answer(3, b"Connection: close")),),
        plain=True,
    ),
    Row(name="empty lines before a request", says=("200 ok", "200 ok"), client=ask(b"\r\n" + GET, b"\r\n" + GET)),
]

PIPELINED = [
    Row(
        name="two pipelined requests",
        says=("200 ok", "200 ok"),
        client=burst(*paths(2)),
        origins=(echo,),
        plain=True,
        ahead=True,
    ),
    Row(
        name="ten pipelined requests",
        says=("200 ok",) * 10,
        client=burst(*paths(10)),
        origins=(echo,),
        plain=True,
        ahead=True,
    ),
    Row(
        name="a hundred pipelined requests",
        says=("200 ok",) * 100,
        client=burst(*paths(100)),
        origins=(echo,),
        plain=True,
        ahead=True,
    ),
    Row(
        name="ten pipelined requests in small pieces",
        says=("200 ok",) * 10,
        client=burst(*paths(10), apart=7),
        origins=(echo,),
        ahead=True,
    ),
    Row(
        name="pipelined requests with bodies",
        says=("200 ok",) * 4,
        client=burst(posted(10), GET, posted(1000), posted(0)),
        origins=(echo,),
        plain=True,
        ahead=True,
    ),
    Row(
        name="pipelined requests, plain and not",
        says=("200 ok", "200 ok", "404 no_route", "200 ok", "200 ok"),
        client=burst(
            *paths(1),
            request(b"POST", b"/1", b"Transfer-Encoding: chunked") + chunks(b"abc"),
            b"GET /x HTTP/1.1\r\nHost: nowhere\r\n\r\n",
            request(b"TRACE", b"/3"),
            *paths(1),
        ),
        origins=(echo,),
        route='hosts = ["t"]',
        ahead=True,
    ),
    Row(
        name="pipelined requests behind which one is malformed",
        says=("200 ok", "200 ok", "400 bad_request"),
        client=burst(*paths(2), b"GET / HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n", *paths(2), answers=3),
        origins=(echo,),
        ahead=True,
    ),
    Row(
        name="a pipelined half of a request, then its rest",
        says=("200 ok", "200 ok"),
        client=burst(GET + GET[:10], GET[10:]),
        ahead=True,
    ),
    Row(
        name="pipelined HEAD and GET",
        says=("200 ok", "200 ok", "200 ok"),
        client=burst(request(b"HEAD"), GET, request(b"HEAD")),
        origins=(each(*[bare(b"200 OK", b"Content-Length: 4"), answer(4)] * 2),),
        plain=True,
        ahead=True,
    ),
]

# -- before the final answer ----------------------------------------------------------------------------------------

EXPECTING = post(5, b"Expect: 100-continue")
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


async def expects(stage: Stage) -> None:
    """A client's play: it sends its body once it may."""
    client = await stage.client()
    await client.send(EXPECTING)
    said = await client.until(b"\r\n\r\n")
    if said.startswith(b"HTTP/1.1 100"):
        await client.send(b"hello")
        await client.response()
        await client.send(GET)
        await client.response()
    else:
        await client.rest()


async def says_go_on(up: Up) -> None:
    """An origin's play: 100, the body, the answer, and another one."""
    await up.until(b"\r\n\r\n")
    await up.send(GO_ON)
    await up.exactly(5)
    await up.send(OK)
    await always()(up)


async def says_no(up: Up) -> None:
    """An origin's play: it wants no body."""
    await up.until(b"\r\n\r\n")
    await up.send(answer(2, status=b"417 No"))
    await up.rest()


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


async def hints_then_waits(up: Up) -> None:
    """An origin's play: a 103 by itself, the answer later."""
    while await up.request():
        await up.send(EARLY)
        await trio.sleep(0.05)
        await up.send(OK)


INTERIM = [
    Row(name="Expect, and the origin goes on", says=("200 ok", "200 ok"), client=expects, origins=(says_go_on,)),
    Row(name="Expect, and the origin does not want it", says=("417 ok",), client=expects, origins=(says_no,)),
    Row(
        name="Expect with the body behind it",
        says=("200 ok", "200 ok"),
        client=ask(EXPECTING + b"hello", GET),
        origins=(says_go_on,),
    ),
    Row(
        name="an expectation that nobody knows",
        says=("417 expectation_unknown",),
        client=ask(request(b"GET", b"/", b"Expect: the unexpected")),
    ),
    Row(
        name="interim answers in one piece with the final one",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(PROCESSING + EARLY + OK),),
    ),
    Row(
        name="an interim answer, and the final one later",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(hints_then_waits,),
    ),
    Row(
        name="interim answers for a 1.0 client",
        says=("200 ok",),
        client=ask(b"GET / HTTP/1.0\r\nHost: t\r\n\r\n"),
        origins=(always(EARLY + OK),),
    ),
]

# -- tunnels --------------------------------------------------------------------------------------------------------


def tunnels(after: bytes = b"") -> OriginPlay:
    """An origin's play: it switches, says `after` in the same breath, and then echoes."""

    async def play(up: Up) -> None:
        await up.request()
        await up.send(SWITCHING + after)
        while word := await up.some():
            await up.send(word)

    return play


def tunnelled(greeting: bytes = b"") -> ClientPlay:
    """A client's play: through a tunnel and back, then its half of the end."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        await client.send(UPGRADE)
        await client.until(b"\r\n\r\n")
        await client.exactly(len(greeting))
        for word in (b"one", b"two", body(5000)):
            await client.send(word)
            await client.exactly(len(word))
        await client.stream.send_eof()
        await client.rest()

    return play


async def plain_then_tunnel(stage: Stage) -> None:
    """A client's play: two requests, and the upgrade on the same connection."""
    client = await stage.client()
    for _ in range(2):
        await client.send(GET)
        await client.response()
    await client.send(UPGRADE)
    await client.until(b"\r\n\r\n")
    await client.send(b"ping")
    await client.exactly(4)
    await client.stream.send_eof()
    await client.rest()


async def plain_then_echo(up: Up) -> None:
    """An origin's play: 200 to what is plain, a tunnel for what upgrades."""
    while said := await up.request():
        if b"\r\nUpgrade: echo" not in said:
            await up.send(OK)
            continue
        await up.send(SWITCHING)
        await up.send(await up.exactly(4))
        await up.rest()


TUNNELS = [
    Row(name="a tunnel", says=("101 tunnel_closed",), client=tunnelled(), origins=(tunnels(),)),
    Row(
        name="a tunnel in which both speak at once",
        says=("101 tunnel_closed",),
        client=tunnelled(greeting=b"welcome"),
        origins=(tunnels(after=b"welcome"),),
    ),
    Row(name="an upgrade that the origin ignores", says=("200 ok", "200 ok"), client=ask(UPGRADE, GET)),
    Row(
        name="an upgrade to what nobody asked for",
        says=("502 upgrade_failed",),
        client=ask(UPGRADE),
        origins=(each(SWITCHING.replace(b"echo", b"other")),),
    ),
    Row(
        name="a 101 that nobody asked for",
        says=("502 upgrade_failed",),
        origins=(each(SWITCHING),),
    ),
    Row(
        name="a tunnel after plain requests",
        says=("200 ok", "200 ok", "101 tunnel_closed"),
        client=plain_then_tunnel,
        origins=(plain_then_echo,),
    ),
]

# -- reloads, and the end -------------------------------------------------------------------------------------------


def reloading(**changes: str) -> ClientPlay:
    """A client's play: a request, a reload with `changes`, two requests on the same connection, one on a new one."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        await client.send(GET)
        await client.response()
        await stage.quiet()
        stage.reload(**changes)
        for _ in range(2):
            await client.send(GET)
            await client.response()
        newcomer = await stage.client()
        await newcomer.send(request(b"GET", b"/" + b"long" * 30))
        await newcomer.response()

    return play


async def reload_in_the_middle(stage: Stage) -> None:
    """A client's play: the reload comes between a request and its answer, and takes the endpoint away."""
    client = await stage.client()
    await client.send(GET)
    await stage.wait("asked")
    stage.reload(text=stage.row.text.replace("$a", "$b"))
    stage.cue("answer")
    await client.response()
    await client.send(GET)
    await client.response()


def held(said: bytes = OK, before: bytes = b"") -> OriginPlay:
    """An origin's play: "asked" is given when a request has come, and `said` waits for "answer"."""

    async def play(up: Up) -> None:
        while await up.request():
            await up.send(before)
            up.stage.cue("asked")
            await up.stage.wait("answer")
            await up.send(said)

    return play


def leaving(drain: float, *, answered: bool = True, idle: bool = False) -> ClientPlay:
    """A client's play: the listener is retired while its request is under way (or while it is `idle`)."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        if idle:
            stage.cue("answer")
        await client.send(GET)
        if idle:
            await client.response()
            await stage.quiet()
        else:
            await stage.wait("asked")
        stage.plane.servers["web"].retire(drain)
        if answered and not idle:
            await trio.sleep(0.02)
            stage.cue("answer")
        await client.rest()
        stage.cue("answer")
        await client.stream.aclose()
        with trio.fail_after(20):
            await stage.plane.servers["web"].wait_ended()

    return play


TWO = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$a"]
"""
RELOADS = [
    Row(
        name="a reload that changes nothing",
        says=("200 ok",) * 4,
        client=reloading(),
        plain=True,
    ),
    Row(
        name="a reload that narrows the route",
        says=("200 ok", "404 no_route", "404 no_route", "404 no_route"),
        client=reloading(route='path = "/only"'),
    ),
    Row(
        name="a reload that sends the route elsewhere",
        says=("200 ok",) * 4,
        client=reloading(text=TWO.replace("$a", "$b")),
        origins=(always(), always(answer(7))),
        text=TWO,
        plain=True,
    ),
    Row(
        name="a reload that adds a filter",
        says=("200 ok", "403 denied", "403 denied", "403 denied"),
        client=reloading(route='filters = ["in"]', more='[filters.in]\nkind = "access"\nallow = ["192.0.2.0/24"]\n'),
    ),
    Row(
        name="a reload that changes the listener's limits",
        says=("200 ok", "200 ok", "200 ok", "414 target_too_long"),
        client=reloading(listener='limits = { target = "100B" }'),
    ),
    Row(
        name="a reload that trusts the peer",
        says=("200 ok",) * 4,
        client=reloading(listener='trusted_proxies = ["127.0.0.1"]'),
        plain=True,
    ),
    Row(
        name="a reload that answers by itself",
        says=("200 ok", "202 respond", "202 respond", "202 respond"),
        client=reloading(text=TWO.replace('upstream = "api"', "respond = { status = 202 }")),
        text=TWO,
    ),
    Row(
        name="a reload that keeps fewer idle connections",
        says=("200 ok",) * 4,
        client=reloading(upstream="pool = { idle = 0 }"),
        plain=True,
    ),
    Row(
        name="a reload that takes the endpoint away under a request",
        says=("200 ok", "200 ok"),
        client=reload_in_the_middle,
        origins=(held(), always(answer(7))),
        text=TWO,
    ),
]
ENDS = [
    Row(
        name="leaving an idle connection",
        says=("200 ok",),
        client=leaving(10, idle=True),
        origins=(held(),),
        plain=True,
    ),
    Row(name="leaving while the answer is awaited", says=("200 ok",), client=leaving(10), origins=(held(),)),
    Row(
        name="leaving in the middle of the answer",
        says=("200 ok",),
        client=leaving(10),
        origins=(held(b"k", before=OK[:-1]),),
    ),
    Row(
        name="a drain that cuts before the answer",
        says=("503 drained",),
        client=leaving(0.2, answered=False),
        origins=(held(),),
    ),
    Row(
        name="a drain that cuts in the middle of the answer",
        says=("200 drained",),
        client=leaving(0.2, answered=False),
        origins=(held(b"k", before=OK[:-1]),),
    ),
]

ROWS = [*KEPT, *PIPELINED, *INTERIM, *TUNNELS, *RELOADS, *ENDS]
