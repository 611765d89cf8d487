"""Scenarios of messages: methods, framings, bodies of every size both ways, and the pieces in which they come."""

from __future__ import annotations

import trio

from tests.proxy.scripted import GET, post
from tests.proxy.truth import ClientPlay, OriginPlay, Row, Stage, Up, always, ask, each

SIZES = {"no byte": 0, "one byte": 1, "1 KiB": 1 << 10, "64 KiB": 1 << 16, "65 KiB": 65 << 10, "1 MiB": 1 << 20}
DATED = b"Date: Sun, 06 Nov 1994 08:49:37 GMT"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kept: yes\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\nHost: t\r\n\r\n"


def body(size: int) -> bytes:
    """So many bytes, in which a piece that is lost, doubled or moved shows."""
    return b"".join(b"%07d\n" % number for number in range(size // 8 + 1))[:size]


def answer(size: int = 2, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A response with a Content-Length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % size, *fields, b"", body(size)]
    return b"\r\n".join(lines)


def bare(status: bytes, *fields: bytes) -> bytes:
    """A response without a body."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", b""])


def request(method: bytes = b"GET", target: bytes = b"/", *fields: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), b"Host: t", *fields, b"", b""])


def posted(size: int, *fields: bytes) -> bytes:
    """A POST and its body."""
    return post(size, *fields) + body(size)


def chunks(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def in_pieces(said: bytes, size: int = 1, pause: float = 0.0) -> OriginPlay:
    """An origin's play: every answer in packets of so many bytes."""

    async def play(up: Up) -> None:
        while await up.request():
            await up.trickle(said, size, pause)

    return play


def cut_everywhere(said: bytes) -> OriginPlay:
    """An origin's play: the k-th answer of a connection comes in two parts, of which the first has k bytes."""

    async def play(up: Up) -> None:
        count = 0
        while await up.request():
            count += 1
            await up.send(said[:count])
            await trio.sleep(0.002)  # so that the gateway mostly reads it by itself
            await up.send(said[count:])

    return play


def trickled(*requests: bytes, size: int = 1) -> ClientPlay:
    """A client's play: every request in packets of so many bytes."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        for one in requests:
            await client.trickle(one, size)
            await client.response()

    return play


def sent_apart(*parts: bytes) -> ClientPlay:
    """A client's play: one request in parts, each sent once the gateway has had time to read the last."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        for part in parts:
            await client.send(part)
            await trio.sleep(0.03)
        await client.response(parts[0].partition(b" ")[0])

    return play


async def until_close(up: Up) -> None:
    """An origin's play: a body that ends with the connection."""
    await up.request()
    await up.send(b"HTTP/1.1 200 OK\r\nX-Kept: yes\r\n\r\n" + body(500))


async def drinks_all(up: Up) -> None:
    """An origin's play: it says how much it got."""
    while said := await up.request():
        await up.send(answer(len(said) % 97))


SMALL = [
    Row(name="a small GET", says=("200 ok",), plain=True),
    Row(
        name="a GET with many fields and a query",
        says=("200 ok",),
        client=ask(
            request(
                b"GET",
                b"/a/b?c=d&e=%20f",
                *(b"X-Field-%d: value %d" % (n, n) for n in range(20)),
                b"Cookie: a=b; c=d",
                b"Accept: */*",
                b'If-None-Match: "x"',
            )
        ),
        origins=(always(answer(5, DATED, b"Server: o/1", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Vary: *")),),
        plain=True,
    ),
    *(
        Row(name=f"the method {method.decode()}", says=("200 ok",), client=ask(request(method)), plain=True)
        for method in (b"GET", b"DELETE", b"OPTIONS", b"TRACE", b"PUT", b"PATCH", b"POST", b"PROPFIND", b"M-SEARCH")
        if method not in (b"TRACE", b"PROPFIND", b"M-SEARCH")
    ),
    *(
        Row(name=f"the method {method.decode()}", says=("200 ok",), client=ask(request(method)))
        for method in (b"TRACE", b"PROPFIND", b"M-SEARCH", b"get")
    ),
    Row(
        name="OPTIONS of everything",
        says=("200 ok",),
        client=ask(request(b"OPTIONS", b"*")),
    ),
    Row(name="an absolute target", says=("200 ok",), client=ask(request(b"GET", b"http://other.example:81/p?q"))),
    Row(
        name="HEAD",
        says=("200 ok", "200 ok"),
        client=ask(request(b"HEAD"), request(b"GET")),
        origins=(each(bare(b"200 OK", b"Content-Length: 7"), answer(7)),),
        plain=True,
    ),
    Row(
        name="HEAD of a chunked response",
        says=("200 ok", "200 ok"),
        client=ask(request(b"HEAD"), GET),
        origins=(each(CHUNKED, answer(7)),),
    ),
    Row(
        name="204",
        says=("204 ok", "204 ok"),
        client=ask(request(b"DELETE"), request(b"DELETE")),
        origins=(always(bare(b"204 No Content", b"X-A: b")),),
        plain=True,
    ),
    Row(
        name="304",
        says=("304 ok", "304 ok"),
        client=ask(GET, GET),
        origins=(always(bare(b"304 Not Modified", b'ETag: "x"', b"Content-Length: 12345")),),
        plain=True,
    ),
    Row(name="an odd reason phrase", says=("299 ok",), origins=(always(answer(2, status=b"299 So \xe4hm so")),)),
    Row(name="no reason phrase", says=("200 ok",), origins=(always(answer(2, status=b"200 ")),)),
    Row(
        name="a response with its own Date, Via, X-Request-Id and Connection",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(
            always(answer(2, DATED, b"Via: 1.0 inner", b"X-Request-Id: mine", b"Connection: x-hop", b"X-Hop: 1")),
        ),
    ),
    Row(
        name="response fields of one hop",
        says=("200 ok",),
        origins=(always(answer(2, b"Keep-Alive: timeout=5", b"Proxy-Authenticate: Basic", b"Trailer: X", b"TE: x")),),
    ),
    Row(
        name="request fields of one hop",
        says=("200 ok",),
        client=ask(
            request(b"GET", b"/", b"Connection: x-hop, keep-alive", b"X-Hop: 1", b"Keep-Alive: 5", b"TE: trailers")
        ),
    ),
    Row(
        name="request fields that no origin may get",
        says=("200 ok",),
        client=ask(request(b"GET", b"/", b"Proxy: evil", b"Proxy-Authorization: x", b"HTTP2-Settings: AA")),
    ),
    Row(
        name="a request with a port in its Host",
        says=("200 ok",),
        client=ask(GET.replace(b" t\r", b" T.Example:8080\r")),
    ),
    Row(name="spaces around a value", says=("200 ok",), client=ask(request(b"GET", b"/", b"X-A: \t a  b \t", b"X-B:"))),
    Row(name="bytes above 127 in a value", says=("200 ok",), client=ask(request(b"GET", b"/", b"X-A: \xc3\xa4\xff"))),
    Row(
        name="lower-case and mixed-case names",
        says=("200 ok",),
        client=ask(b"GET / HTTP/1.1\r\nhOsT: t\r\nx-lower: 1\r\nACCEPT: a\r\ncontent-length: 0\r\n\r\n"),
        origins=(always(b"HTTP/1.1 200 OK\r\ncONTENT-lENGTH: 2\r\nx-Odd: 1\r\n\r\nok"),),
        plain=True,
    ),
]

VERSIONS = [
    Row(name="a 1.0 client", says=("200 ok",), client=ask(GET_1_0)),
    Row(name="a 1.0 client without a Host", says=("200 ok",), client=ask(b"GET / HTTP/1.0\r\n\r\n")),
    Row(
        name="a 1.0 client that would keep the connection",
        says=("200 ok",),
        client=ask(GET_1_0[:-2] + b"Connection: keep-alive\r\n\r\n"),
    ),
    Row(
        name="a 1.0 client and a chunked response",
        says=("200 ok",),
        client=ask(GET_1_0),
        origins=(always(CHUNKED + chunks(b"abc", b"defg")),),
    ),
    Row(
        name="a 1.0 response",
        says=("200 ok",),
        origins=(each(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),),
    ),
    Row(
        name="a 1.0 response that keeps the connection",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(each(*[b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"] * 2),) * 1,
    ),
    Row(
        name="a 1.0 response until the close",
        says=("200 ok",),
        origins=(each(b"HTTP/1.0 200 OK\r\n\r\n" + body(300)),),
        pieces=True,
    ),
]

BODIES_DOWN = [
    *(
        Row(
            name=f"a response of {name}",
            says=("200 ok", "200 ok"),
            client=ask(GET, GET),
            origins=(always(answer(size, b"Content-Type: text/plain")),),
            plain=True,
        )
        for name, size in SIZES.items()
    ),
    Row(
        name="one chunk",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(CHUNKED + chunks(b"hello")),),
        plain=True,
        pieces=True,
    ),
    Row(
        name="many chunks",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(CHUNKED + chunks(*(body(n) for n in range(1, 200)))),),
        plain=True,
        pieces=True,
    ),
    Row(
        name="a chunked megabyte",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(CHUNKED + chunks(*[body(1 << 14)] * 64)),),
        plain=True,
        pieces=True,
    ),
    Row(
        name="a chunked body of nothing",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(CHUNKED + b"0\r\n\r\n"),),
        plain=True,
        pieces=True,
    ),
    Row(
        name="chunks with trailers",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(
            always(
                CHUNKED.replace(b"X-Kept", b"Trailer: X-Sum\r\nX-Kept")
                + chunks(b"abc", end=b"0\r\nX-Sum: 7\r\nX-More: 8\r\n\r\n")
            ),
        ),
        pieces=True,
    ),
    Row(
        name="chunks with extensions",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(always(CHUNKED + b'3;a=b;c="d"\r\nabc\r\n004 ;x\r\ndefg\r\n0;last\r\n\r\n'),),
        pieces=True,
    ),
    Row(
        name="a chunked response that comes byte by byte",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(in_pieces(CHUNKED + chunks(b"abc", b"0123456789abcdef")),),
        pieces=True,
    ),
    Row(
        name="a chunked response cut at every byte",
        says=("200 ok",) * 80,
        client=ask(*[GET] * 80),
        origins=(cut_everywhere(CHUNKED + chunks(b"abc", b"0123456789abcdef")),),
        pieces=True,
    ),
    Row(
        name="a response that comes byte by byte",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(in_pieces(answer(20, b"X-A: b")),),
    ),
    Row(
        name="a response cut at every byte",
        says=("200 ok",) * len(answer(9)),
        client=ask(*[GET] * len(answer(9))),
        origins=(cut_everywhere(answer(9)),),
    ),
    Row(
        name="a response body that comes slowly",
        says=("200 ok",),
        origins=(in_pieces(answer(200), size=60, pause=0.03),),
    ),
    Row(name="a response until the close", says=("200 ok",), origins=(until_close,), pieces=True),
    Row(
        name="a response until the close and a request behind it",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        origins=(until_close,),
        pieces=True,
    ),
]

BODIES_UP = [
    *(
        Row(
            name=f"a request of {name}",
            says=("200 ok", "200 ok"),
            client=ask(posted(size), posted(size, b"Content-Type: text/plain")),
            origins=(drinks_all,),
            plain=size <= 1 << 10,  # a larger one may not be here as a whole when its head is read
        )
        for name, size in SIZES.items()
    ),
    Row(
        name="a request that comes byte by byte",
        says=("200 ok", "200 ok"),
        client=trickled(request(b"GET", b"/abc?d"), posted(20)),
        origins=(drinks_all,),
    ),
    *(
        Row(
            name=f"a request cut {where}",
            says=("200 ok",),
            client=sent_apart(posted(40)[:at], posted(40)[at:]),
            origins=(drinks_all,),
        )
        for where, at in {
            "in its method": 2,
            "in its line": 10,
            "between CR and LF": len(b"POST / HTTP/1.1\r"),
            "before the last LF": len(post(40)) - 1,
            "behind its head": len(post(40)),
            "in its body": len(post(40)) + 7,
        }.items()
    ),
    Row(
        name="a chunked request",
        says=("200 ok", "200 ok"),
        client=ask(*[request(b"POST", b"/", b"Transfer-Encoding: chunked") + chunks(b"abc", b"de")] * 2),
        origins=(drinks_all,),
        pieces=True,
    ),
    Row(
        name="a chunked request with trailers and extensions",
        says=("200 ok",),
        client=ask(
            request(b"POST", b"/", b"Transfer-Encoding: chunked", b"Trailer: X-T")
            + b"3;a=b\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
        ),
        origins=(drinks_all,),
        pieces=True,
    ),
    Row(
        name="a GET with a body",
        says=("200 ok",),
        client=ask(request(b"GET", b"/", b"Content-Length: 3") + b"abc"),
        origins=(drinks_all,),
    ),
]

ROWS = [*SMALL, *VERSIONS, *BODIES_DOWN, *BODIES_UP]
