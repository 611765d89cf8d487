"""Scenarios of what goes wrong: malformed heads, clients that vanish, endpoints that break, times that run out."""

from __future__ import annotations

import socket

import trio

from tests.proxy.scripted import GET, OK, post
from tests.proxy.truth import Client, ClientPlay, OriginPlay, Row, Stage, Up, always, ask, each
from tests.proxy.truth_life import held
from tests.proxy.truth_messages import CHUNKED, answer, body, chunks, posted, request

# -- heads that are refused -----------------------------------------------------------------------------------------

TE = b"Transfer-Encoding: chunked"
MALFORMED: dict[str, tuple[bytes, str]] = {
    "a bare LF": (b"GET / HTTP/1.1\nHost: t\r\n\r\n", "400 bad_request"),
    "a bare CR": (request(b"GET", b"/", b"X: a\rb"), "400 bad_request"),
    "a folded field": (request(b"GET", b"/", b"X: a", b" b"), "400 bad_request"),
    "a space before the colon": (request(b"GET", b"/", b"X : a"), "400 bad_request"),
    "a space in a name": (request(b"GET", b"/", b"Bad Name: a"), "400 bad_request"),
    "a line without a colon": (request(b"GET", b"/", b"nonsense"), "400 bad_request"),
    "an empty name": (request(b"GET", b"/", b": a"), "400 bad_request"),
    "a NUL in a value": (request(b"GET", b"/", b"X: a\0b"), "400 bad_request"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", "400 bad_request"),
    "two Hosts": (request(b"GET", b"/", b"Host: t"), "400 bad_request"),
    "a Host that is none": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400 bad_request"),
    "Content-Length twice": (posted(3, b"Content-Length: 3"), "400 bad_request"),
    "Content-Length that is none": (request(b"POST", b"/", b"Content-Length: +3") + b"abc", "400 bad_request"),
    "both framings": (posted(3, TE), "400 bad_request"),
    "chunked twice": (request(b"POST", b"/", TE, TE), "400 bad_request"),
    "another coding": (request(b"POST", b"/", b"Transfer-Encoding: gzip, chunked"), "501 coding_unsupported"),
    "a coding in 1.0": (b"POST / HTTP/1.0\r\nHost: t\r\n" + TE + b"\r\n\r\n", "400 bad_request"),
    "a framing field in disguise": (request(b"GET", b"/", b"Content_Length: 3"), "400 bad_request"),
    "no version": (b"GET /\r\n\r\n", "400 bad_request"),
    "two spaces in the line": (b"GET  / HTTP/1.1\r\nHost: t\r\n\r\n", "400 bad_request"),
    "another version": (b"GET / HTTP/2.0\r\nHost: t\r\n\r\n", "505 version_unsupported"),
    "a version in lower case": (b"GET / http/1.1\r\nHost: t\r\n\r\n", "400 bad_request"),
    "a method that is no token": (b"G(T / HTTP/1.1\r\nHost: t\r\n\r\n", "400 bad_request"),
    "a method that is too long": (b"M" * 40 + b" / HTTP/1.1\r\nHost: t\r\n\r\n", "501 method_unsupported"),
    "CONNECT": (b"CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n", "501 method_unsupported"),
    "a target that is none": (b"GET a HTTP/1.1\r\nHost: t\r\n\r\n", "400 bad_request"),
    "a fragment": (request(b"GET", b"/a#b"), "400 bad_request"),
    "TRACE with content": (b"TRACE / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nab", "400 bad_request"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", "400 bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 version_unsupported"),
    "Authorization twice": (request(b"GET", b"/", b"Authorization: a", b"Authorization: b"), "400 bad_request"),
    "a long head": (request(b"GET", b"/", *[b"X: " + b"a" * 5000] * 8), "431 head_too_large"),
    "a long head without an end": (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 40_000, "431 head_too_large"),
    "many fields": (request(b"GET", b"/", *[b"X: a"] * 101), "431 head_too_large"),
    "a long target": (request(b"GET", b"/" + b"a" * 9000), "414 target_too_long"),
    "a long body": (posted(2000), "413 body_too_large"),
    "a long chunked body": (request(b"POST", b"/", TE) + chunks(body(2000)), "413 body_too_large"),
    "a chunk that is none": (request(b"POST", b"/", TE) + b"zz\r\nabc\r\n", "400 bad_request"),
}


def refused(raw: bytes, *, before: int = 0) -> ClientPlay:
    """A client's play: what is refused, after so many good requests, and the end."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        for _ in range(before):
            await client.send(GET)
            await client.response()
        await client.send(raw)
        await client.response()
        if not client.end:
            await client.stream.send_eof()
            await client.rest()

    return play


REFUSED = [
    *(
        Row(
            name=f"{what}, which is refused",
            says=(says,),
            client=refused(raw),
            listener='limits = { body = "1KiB" }',
            torn="long head" in what,
        )
        for what, (raw, says) in MALFORMED.items()
    ),
    *(
        Row(
            name=f"{what} after a good request",
            says=("200 ok", MALFORMED[what][1]),
            client=refused(MALFORMED[what][0], before=1),
            listener='limits = { body = "1KiB" }',
            torn="long head" in what,
        )
        for what in ("a bare LF", "two Hosts", "both framings", "a long head", "a long target", "a long body", "TLS")
    ),
]

# -- clients that are slow, or leave --------------------------------------------------------------------------------


def vanishing(raw: bytes, how: str, *, wait: str = "") -> ClientPlay:
    """A client's play: it sends `raw`, waits for a cue, and is gone: "close", "reset", or "half" and what comes."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        await client.send(raw)
        if wait:
            await stage.wait(wait)
        if how == "half":
            await client.stream.send_eof()
            await client.rest()
        elif how == "reset":
            client.reset()
        else:
            await client.stream.aclose()

    return play


def half_closes_at_once(raw: bytes) -> ClientPlay:
    """A client's play: its end of stream comes with its request, to an endpoint that answers at once.

    A half-close counts as leaving, but nobody looks for one while an answer is due any moment. There is an idle
    upstream connection from another client's exchange: a connect would take long enough to notice.
    """

    async def play(stage: Stage) -> None:
        other = await stage.client()
        await other.send(GET)
        await other.response()
        await stage.quiet()
        await vanishing(raw, "half")(stage)

    return play


def watched(said: bytes = b"") -> OriginPlay:
    """An origin's play: it takes a request, says what it says, and waits for the gateway to leave."""

    async def play(up: Up) -> None:
        await up.until(b"\r\n\r\n")
        await up.send(said)
        up.stage.cue("asked")
        await up.rest()

    return play


def torn(said: bytes, *, reset: bool = False) -> OriginPlay:
    """An origin's play: a request, `said`, and the end of the connection."""

    async def play(up: Up) -> None:
        await up.request()
        await up.send(said)
        if reset:
            await trio.sleep(0.02)  # a reset takes what was not read with it
            up.reset()

    return play


async def leaves_in_the_answer(stage: Stage) -> None:
    """A client's play: it goes once it has seen a part of the answer."""
    client = await stage.client()
    await client.send(GET)
    await client.until(b"0000001\n")
    client.reset()


async def leaves_behind_the_answer(stage: Stage) -> None:
    """A client's play: it goes without a goodbye after each answer."""
    for _ in range(3):
        client = await stage.client()
        await client.send(GET)
        await client.response()
        client.reset()
        await stage.quiet()


async def slow_reader(stage: Stage) -> None:
    """A client's play: it reads nothing for a while, and then all."""
    client = await stage.client(window=1 << 14)
    await client.send(GET)
    await trio.sleep(0.3)
    await client.response()
    await client.send(GET)
    await client.response()


async def slow_reader_of_less(stage: Stage) -> None:
    """A client's play: it reads late, and to the end of what there is."""
    client = await stage.client(window=1 << 14)
    await client.send(GET)
    await trio.sleep(0.3)
    await client.until(b"%07d\n" % 300_000)
    await stage.records(1)
    client.got.clear()  # how much of it comes before the reset is the kernels' affair


async def slow_and_gone(stage: Stage) -> None:
    """A client's play: it reads a part, late, and resets."""
    client = await stage.client(window=1 << 14)
    await client.send(GET)
    await trio.sleep(0.2)
    await client.exactly(100_000)
    client.reset()
    await stage.records(1)


async def never_reads(stage: Stage) -> None:
    """A client's play: it reads nothing, until it is given up."""
    client = await stage.client(window=1 << 12)
    await client.send(GET)
    await stage.records(1)


def silent_client(said: bytes = b"", first: bytes = b"") -> ClientPlay:
    """A client's play: a good request if there is a `first`, some bytes, and then no more until the gateway ends it."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        if first:
            await client.send(first)
            await client.response()
        await client.send(said)
        await client.rest()

    return play


async def trickles_a_head(stage: Stage) -> None:
    """A client's play: a head that never ends, byte by byte."""
    client = await stage.client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.trickle, request(b"GET", b"/", b"X: " + b"a" * 400)[:-4], 1, 0.01)
        await client.rest()
        nursery.cancel_scope.cancel()


async def trickles_a_body(stage: Stage) -> None:
    """A client's play: a body in good time, piece by piece."""
    client = await stage.client()
    await client.send(post(60))
    await client.trickle(body(60), 10, 0.02)
    await client.response()
    await client.send(GET)
    await client.response()


BIG = answer(4 << 20)
CLIENTS = [
    Row(name="a client that says nothing and goes", says=(), client=vanishing(b"", "close")),
    Row(name="a client that resets before a byte", says=(), client=vanishing(b"", "reset")),
    Row(
        name="a client that goes in the middle of a head",
        says=(),
        client=vanishing(GET[:12], "close"),
    ),
    Row(name="a client that half-closes in a head", says=(), client=vanishing(GET[:12], "half")),
    Row(name="a client that half-closes before a byte", says=(), client=vanishing(b"", "half")),
    *(
        Row(
            name=f"a client that goes ({how}) before the answer",
            says=("499 client_abort",),
            client=vanishing(GET, how, wait="asked"),
            origins=(watched(),),
        )
        for how in ("close", "reset", "half")
    ),
    Row(
        name="a client that goes before its body is whole",
        says=("499 client_abort",),
        client=vanishing(post(500) + b"abc", "close", wait="asked"),
        origins=(watched(),),
    ),
    Row(
        name="a client that goes in the middle of a short answer",
        says=("200 client_abort",),
        client=leaves_in_the_answer,
        origins=(watched(answer(4000)[:2000]),),
    ),
    Row(
        name="a client that half-closes at once behind its request",
        says=("200 ok", "200 ok"),
        client=half_closes_at_once(GET),
    ),
    Row(
        name="a client that half-closes at once behind a body",
        says=("200 ok", "200 ok"),
        client=half_closes_at_once(posted(100)),
    ),
    Row(
        name="clients that reset behind their answers",
        says=("200 ok",) * 3,
        client=leaves_behind_the_answer,
        plain=True,
    ),
    Row(
        name="a client that half-closes behind its request and an answer that is there at once",
        says=("200 ok",),
        client=ask(request(b"GET", b"/", b"Connection: close")),
        plain=True,
    ),
    Row(name="a slow reader", says=("200 ok", "200 ok"), client=slow_reader, origins=(always(BIG),)),
    Row(
        name="a slow reader of chunks",
        says=("200 ok", "200 ok"),
        client=slow_reader,
        origins=(always(CHUNKED + chunks(*[body(50_000)] * 80)),),
        pieces=True,
    ),
    Row(
        name="a slow reader of a body until the close",
        says=("200 ok", "200 ok"),
        client=slow_reader,
        origins=(torn(CHUNKED.replace(b"Transfer-Encoding: chunked\r\n", b"") + body(3 << 20)),),
        pieces=True,
    ),
    Row(
        name="a slow reader of what the endpoint cuts short",
        says=("200 upstream_incomplete",),
        client=slow_reader_of_less,
        origins=(torn(BIG[: 3 << 20]),),
    ),
    Row(
        name="a slow reader who leaves in the middle",
        says=("200 client_abort",),
        client=slow_and_gone,
        origins=(always(BIG),),
        torn=True,
    ),
    Row(
        name="one that never reads",
        torn=True,
        says=("200 client_slow",),
        client=never_reads,
        origins=(watched(BIG),),
        listener='timeouts = { stall = "200ms", min_rate = "1MiB/s" }',
    ),
    Row(
        name="no byte at all",
        says=(),
        client=silent_client(),
        listener='timeouts = { head = "200ms", idle = "200ms" }',
    ),
    Row(
        name="idle too long after an answer",
        says=("200 ok",),
        client=silent_client(first=GET),
        listener='timeouts = { head = "200ms", idle = "200ms" }',
        plain=True,
    ),
    Row(
        name="half a head",
        says=("408 head_timeout",),
        client=silent_client(GET[:10]),
        listener='timeouts = { head = "200ms" }',
    ),
    Row(
        name="half a head after an answer",
        says=("200 ok", "408 head_timeout"),
        client=silent_client(GET[:10], first=GET),
        listener='timeouts = { head = "200ms" }',
    ),
    Row(
        name="a head that trickles",
        torn=True,
        says=("408 head_timeout",),
        client=trickles_a_head,
        listener='timeouts = { head = "300ms" }',
    ),
    Row(name="a body that trickles in good time", says=("200 ok", "200 ok"), client=trickles_a_body),
    Row(
        name="a body that stops",
        says=("408 body_timeout",),
        client=silent_client(post(1000) + b"abc"),
        origins=(watched(),),
        listener='timeouts = { stall = "200ms", min_rate = "1KiB/s" }',
    ),
]

# -- endpoints that fail --------------------------------------------------------------------------------------------


def stale(*, after: bytes = b"", reset: bool = False) -> OriginPlay:
    """An origin's play: the first connection dies when its second request comes, the others serve."""

    async def play(up: Up) -> None:
        if up.stage.heard[0][0] is not up:
            await always(answer(5))(up)
            return
        await up.request()
        await up.send(OK)
        await up.request()  # the close crosses it, as far as the gateway can tell
        await up.send(after)
        if reset:
            up.reset()

    return play


def closes_idle(up_said: bytes = b"") -> OriginPlay:
    """An origin's play: behind its first answer it says something that nobody asked for, or just closes."""

    async def play(up: Up) -> None:
        if up.stage.heard[0][0] is not up:
            await always(answer(5))(up)
            return
        await up.request()
        await up.send(OK)
        await up.stage.wait("idle")
        if up_said:
            await up.send(up_said)
        else:
            await up.stream.send_eof()
        up.stage.cue("closed")
        await up.rest()

    return play


async def asks_behind_the_close(stage: Stage) -> None:
    """A client's play: a request, then two more once the idle upstream connection is of no use any more."""
    client = await stage.client()
    await client.send(GET)
    await client.response()
    await stage.quiet()
    stage.cue("idle")
    await stage.wait("closed")
    await trio.sleep(0.02)
    for _ in range(2):
        await client.send(GET)
        await client.response()


async def asks_as_it_speaks(stage: Stage) -> None:
    """A client's play: its request, and then what the endpoint says unasked, reach the gateway in the same instant.

    What an endpoint has said before it was asked is no answer (RFC 9112 9.5), be it by a hair.
    """
    client = await stage.client()
    await client.send(GET)
    await client.response()
    await stage.quiet()
    (up,) = stage.heard[0]
    # Straight into the kernel, one behind the other: no task of the gateway runs in between.
    for stream, said in ((client.stream, GET), (up.stream, answer(9))):
        assert socket.socket.send(stream.socket._sock, said) == len(said)  # type: ignore[attr-defined]
    await client.response()
    await client.send(GET)
    await client.response()


def asks_as_it_closes(asked: bytes) -> ClientPlay:
    """A client's play: the same with an endpoint that closes. Nothing was sent there, so nothing is lost."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        await client.send(GET)
        await client.response()
        await stage.quiet()
        (up,) = stage.heard[0]
        assert socket.socket.send(client.stream.socket._sock, asked) == len(asked)  # type: ignore[attr-defined]
        socket.socket.shutdown(up.stream.socket._sock, socket.SHUT_WR)  # type: ignore[attr-defined]
        await client.response()
        await client.send(GET)
        await client.response()

    return play


def each_connection(first: OriginPlay, later: OriginPlay) -> OriginPlay:
    """An origin's play: its first connection is played so and then held open, the others otherwise."""

    async def play(up: Up) -> None:
        if up.stage.heard[0][0] is up:
            await first(up)
            await up.rest()
        else:
            await later(up)

    return play


def in_two(one: bytes, other: bytes) -> OriginPlay:
    """An origin's play: every answer in two parts, each read by itself."""

    async def play(up: Up) -> None:
        while await up.request():
            await up.send(one)
            await trio.sleep(0.05)
            await up.send(other)

    return play


def timed(name: str, says: str, origin: OriginPlay, **where: str) -> Row:
    """A row in which a time runs out."""
    return Row(name=name, says=(says,), client=one_and_the_end, origins=(origin,), **where)  # type: ignore[arg-type]


async def two_at_once(stage: Stage) -> None:
    """A client's play: a second connection while the first one waits for its answer."""
    first = await stage.client()
    await first.send(GET)
    await stage.wait("asked")
    second = await stage.client()
    await second.rest()
    stage.cue("answer")
    await first.response()


async def one_and_the_end(stage: Stage) -> None:
    """A client's play: one request, and what comes, be it torn."""
    client: Client = await stage.client()
    await client.send(GET)
    await client.response()
    if client.end != "reset":
        await stage.records(1)


LONG = answer(3000)
BROKEN: dict[str, tuple[OriginPlay, str]] = {
    "closes without a word": (torn(b""), "502 upstream_closed"),
    "resets without a word": (torn(b"", reset=True), "502 upstream_closed"),
    "closes in the middle of its head": (torn(OK[:20]), "502 upstream_incomplete"),
    "resets in the middle of its head": (torn(OK[:20], reset=True), "502 upstream_closed"),
    "closes in the middle of its body": (torn(LONG[:1500]), "200 upstream_incomplete"),
    "resets in the middle of its body": (torn(LONG[:1500], reset=True), "200 upstream_closed"),
    "closes in the middle of its chunks": (torn(CHUNKED + chunks(b"abc", end=b"5\r\nab")), "200 upstream_incomplete"),
    "closes before the last chunk": (torn(CHUNKED + chunks(b"abc", end=b"")), "200 upstream_incomplete"),
    "sends a chunk that is none": (torn(CHUNKED + chunks(b"abc", end=b"xx\r\n")), "200 upstream_protocol"),
    "says what is no HTTP": (torn(b"SSH-2.0-OpenSSH\r\n\r\n"), "502 upstream_protocol"),
    "speaks HTTP/2": (torn(OK.replace(b"1.1", b"2.0")), "502 upstream_protocol"),
    "frames twice": (torn(CHUNKED.replace(b"X-Kept: yes", b"Content-Length: 3") + b"abc"), "502 upstream_protocol"),
    "gives two lengths": (torn(OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n")), "502 upstream_protocol"),
    "folds a field": (torn(OK.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n")), "502 upstream_protocol"),
    "sends a bare LF": (torn(OK.replace(b"OK\r\n", b"OK\n")), "502 upstream_protocol"),
    "puts a space before a colon": (torn(OK.replace(b"\r\n\r\n", b"\r\nX : a\r\n\r\n")), "200 ok"),
    "has a head without an end": (torn(OK[:17] + b"X: " + b"a" * 200_000), "502 upstream_head_too_large"),
}
LIMITED = "retry = { attempts = 1 }"
ENDPOINTS = [
    *(
        Row(
            name=f"an endpoint that {what}",
            says=(says,),
            client=one_and_the_end,
            origins=(play,),
            upstream=LIMITED,
            pieces="chunk" in what,
            torn="without an end" in what,
        )
        for what, (play, says) in BROKEN.items()
    ),
    Row(
        name="an endpoint that closes, and the next one",
        says=("200 ok",),
        origins=(torn(b""), always(answer(4))),
        upstream='balance = "first"',
    ),
    Row(
        name="an endpoint that closes on a POST, which is not repeated",
        says=("502 upstream_closed",),
        client=ask(posted(10)),
        origins=(torn(b""), always(answer(4))),
        upstream='balance = "first"',
    ),
    Row(
        name="an endpoint that refuses, and the next one",
        says=("200 ok", "200 ok", "200 ok"),
        client=ask(GET, posted(10), GET),
        origins=(always(answer(4)),),
        text="""
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
balance = "first"
endpoints = ["127.0.0.1:$dead", "127.0.0.1:$a"]
""",
    ),
    Row(
        name="no endpoint that accepts",
        says=("502 connect_refused", "502 connect_refused"),
        client=ask(GET, posted(10)),
        origins=(),
        text="""
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$dead"]
""",
    ),
    Row(
        name="a connection that went stale under a GET",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(stale(),),
    ),
    Row(
        name="a connection that was reset under a GET",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(stale(reset=True),),
    ),
    Row(
        name="a connection that went stale under a POST",
        says=("200 ok", "502 upstream_closed"),
        client=ask(GET, posted(10)),
        origins=(stale(),),
    ),
    Row(
        name="a reused connection that answers in halves",
        says=("200 ok", "502 upstream_incomplete"),
        client=ask(GET, posted(10)),
        origins=(stale(after=OK[:10]),),
    ),
    Row(
        name="an idle upstream connection that was closed",
        says=("200 ok",) * 3,
        client=asks_behind_the_close,
        origins=(closes_idle(),),
        plain=True,
    ),
    Row(
        name="an idle upstream connection that speaks",
        says=("200 ok",) * 3,
        client=asks_behind_the_close,
        origins=(closes_idle(answer(9)),),
        plain=True,
    ),
    Row(
        name="an idle upstream connection that speaks as the next request comes",
        says=("200 ok",) * 3,
        client=asks_as_it_speaks,
        origins=(each_connection(always(OK), always(answer(5))),),
    ),
    *(
        Row(
            name=f"an idle upstream connection that closes as the next {what} comes",
            says=("200 ok",) * 3,
            client=asks_as_it_closes(asked),
            origins=(each_connection(always(OK), always(answer(5))),),
        )
        for what, asked in (("GET", GET), ("POST", posted(10)))
    ),
    Row(
        name="bytes behind a response",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(OK + b"more"),),
    ),
    Row(
        name="a second response in the same breath",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(OK + answer(9)),),
    ),
    Row(
        name="bytes behind a chunked response",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(CHUNKED + chunks(b"abc") + b"more"),),
        pieces=True,
    ),
    Row(
        name="bytes behind the last chunk, which comes later",
        says=("200 ok", "200 ok", "200 ok"),
        client=ask(GET, GET, GET),
        origins=(in_two(CHUNKED + chunks(b"abc", end=b""), b"0\r\n\r\n" + answer(9)),),
        pieces=True,
    ),
    Row(
        name="bytes behind the end of a body, which comes later",
        says=("200 ok", "200 ok", "200 ok"),
        client=ask(GET, GET, GET),
        origins=(in_two(LONG[:1000], LONG[1000:] + answer(9)),),
        torn=True,  # what nobody asked for may be read before it is thrown away, or not
    ),
    Row(
        name="bytes behind a 204",
        says=("204 ok", "204 ok"),
        client=ask(GET, GET),
        origins=(each(b"HTTP/1.1 204 No Content\r\n\r\nmore"),),
    ),
    timed(
        "no first byte in time",
        "504 first_byte_timeout",
        watched(),
        upstream=f'{LIMITED}\ntimeouts = {{ first_byte = "200ms" }}',
    ),
    timed("no first byte in the exchange's time", "504 exchange_timeout", watched(), route='timeout = "200ms"'),
    timed(
        "half a head, and no more in time",
        "504 first_byte_timeout",
        watched(OK[:20]),
        upstream=f'{LIMITED}\ntimeouts = {{ first_byte = "200ms" }}',
    ),
    timed(
        "half a body, and no more in time",
        "200 upstream_idle",
        watched(LONG[:1500]),
        upstream='timeouts = { read = "200ms" }',
    ),
    timed(
        "half a body, and the exchange's time is over",
        "200 exchange_timeout",
        watched(LONG[:1500]),
        route='timeout = "800ms"',
    ),
    Row(
        name="a full house",
        says=("503 connection_limit", "200 ok"),
        client=two_at_once,
        listener="max_connections = 1",
        origins=(held(),),
    ),
]

ROWS = [*REFUSED, *CLIENTS, *ENDPOINTS]
