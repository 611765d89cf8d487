"""Scenarios that nobody thought of: messages of every kind in any order, cut anywhere, from a seed.

A client sends some requests, each in time or ahead of its turn; the endpoint gives each the answer that goes with it,
in pieces. Which, in what order and cut where, the seed says.
"""

from __future__ import annotations

import random
import re

import trio

from tests.proxy.truth import ClientPlay, OriginPlay, Row, Stage, Up, Wire
from tests.proxy.truth_messages import CHUNKED, answer, bare, body, chunks, posted, request

ANSWERS: dict[str, bytes] = {
    "small": answer(7),
    "empty": answer(0, b"X-A: b"),
    "kib": answer(3000, b"Content-Type: text/plain", b"Set-Cookie: a=b"),
    "big": answer(150_000),
    "chunked": CHUNKED + chunks(b"abc", b"defgh"),
    "chunked long": CHUNKED + chunks(*[body(9000)] * 9),
    "trailers": CHUNKED + chunks(b"abc", end=b"0\r\nX-Sum: 1\r\n\r\n"),
    "none": bare(b"204 No Content"),
    "unchanged": bare(b"304 Not Modified", b'ETag: "x"'),
    "missing": answer(9, status=b"404 Not Found"),
    "broken": answer(9, status=b"500 Oh"),
    "closing": answer(5, b"Connection: close"),
    "hinted": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(5),
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold",
    "until the close": b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nall there is",
}
CLOSING = ("closing", "1.0", "until the close")
TORN: dict[str, bytes] = {
    "no word": b"",
    "half a head": answer(5)[:20],
    "half a body": answer(500)[:300],
    "half a chunk": CHUNKED + b"5\r\nab",
    "no HTTP": b"nonsense\r\n\r\n",
}


def asked(rng: random.Random, target: bytes) -> bytes:
    """One request of any kind."""
    kinds = [
        *[request(b"GET", target)] * 4,
        *[request(b"POST", target, b"Content-Length: 5") + b"hello"] * 2,
        request(b"GET", target + b"?q=%d" % rng.randrange(99), b"X-N: %d" % rng.randrange(99), b"Accept: */*"),
        request(b"HEAD", target),
        request(b"DELETE", target),
        posted(rng.choice((0, 1, 50, 2000))).replace(b" / ", b" %b " % target),
        posted(rng.choice((5000, 100_000))).replace(b" / ", b" %b " % target),
        request(b"PUT", target, b"Transfer-Encoding: chunked") + chunks(b"abc", body(400)),
        request(b"TRACE", target),
        request(b"GET", target.replace(b"/", b"/x/../", 1)),
        request(b"GET", b"/none" + target),
    ]
    return rng.choice(kinds)


def chance(seed: int) -> Row:
    """The scenario of that seed."""
    rng = random.Random(seed)
    count = rng.randint(2, 7)
    requests = [asked(rng, b"/%d" % number) for number in range(count)]
    if rng.random() < 0.3:
        requests[-1] = rng.choice(
            (
                request(b"GET", b"/%d" % (count - 1), b"Connection: close"),
                request(b"GET", b"/", b"Bad Name: x"),
                b"GET /%d HTTP/1.0\r\nHost: t\r\n\r\n" % (count - 1),
            )
        )
    names = [rng.choice(list(ANSWERS)) for _ in requests]
    ahead = rng.random() < 0.5
    listener = rng.choice(("", "", 'trusted_proxies = ["127.0.0.1"]'))
    route = rng.choice(("", "", 'filters = ["edit"]'))
    torn = rng.choice(list(TORN)) if rng.random() < 0.25 else ""
    return Row(
        name=f"seed {seed}: {', '.join(names)}{' and ' + torn if torn else ''}",
        says=(),
        client=sends(requests, rng.randrange(1 << 30), ahead=ahead),
        origins=(answers(names, torn, rng.randrange(1 << 30)),),
        listener=listener,
        route=f'path = "~/(x/[.][.]/)?[0-9]*"\n{route}',
        upstream=rng.choice(("", "pool = { max_exchanges = 2 }", "pool = { idle = 0 }", "retry = { attempts = 1 }")),
        more='[filters.edit]\nkind = "headers"\nset = { X-Set = "us" }\nresponse_set = { X-Set = "us" }\n',
        ahead=True,
        pieces=True,
    )


async def cut(wire: Wire, said: bytes, rng: random.Random) -> None:
    """Send it, in up to four pieces, now and then with a pause for the gateway to read one by itself."""
    cuts = sorted(rng.randrange(len(said) + 1) for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 3))))
    for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        await wire.send(said[start:end])
        await trio.sleep(rng.choice((0.0, 0.0, 0.002, 0.03)) if end < len(said) else 0.0)


def sends(requests: list[bytes], seed: int, *, ahead: bool) -> ClientPlay:
    """A client's play: all requests at once, or each behind the last one's answer."""

    async def play(stage: Stage) -> None:
        rng = random.Random(seed)
        client = await stage.client()
        async with trio.open_nursery() as sending:
            if ahead:
                sending.start_soon(cut, client, b"".join(requests), rng)
            for one in requests:
                if not ahead:
                    await cut(client, one, rng)
                said = await client.response(one.partition(b" ")[0])
                if not said or re.search(rb"\r\nConnection: close\r\n", said):
                    break
            if client.end:
                sending.cancel_scope.cancel()

    return play


def answers(names: list[str], torn: str, seed: int) -> OriginPlay:
    """An endpoint's play: to "/3" it says the answer of that number; the first time to "/1" it fails as `torn` says."""

    async def play(up: Up) -> None:
        while said := await up.request():
            method, target = said.split(b" ")[:2]
            number = int(b"0" + re.sub(rb"[^0-9?]", b"", target).partition(b"?")[0])
            rng = random.Random(seed + number)
            name = names[number % len(names)]
            if torn and number == 1:
                await cut(up, TORN[torn], rng)
                return
            whole = ANSWERS[name]
            if method == b"HEAD":
                # Of what comes before it, an interim answer, only the end is the final head.
                at = whole.index(b"\r\n\r\n", whole.index(b"HTTP/1.1 200") if name == "hinted" else 0) + 4
                whole = whole[:at]
            await cut(up, whole, rng)
            # The head alone does not tell of a close that only ends a body: the close would cross the next request.
            if name in CLOSING and not (method == b"HEAD" and name == "until the close"):
                return

    return play
