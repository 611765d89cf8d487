"""The table of scenarios on HTTP/2 streams; see truth_http2.py."""

from __future__ import annotations

from tests.proxy import truth_http2 as play
from tests.proxy.scripted import OK
from tests.proxy.truth import OriginPlay, Row, Up, always, each
from tests.proxy.truth_faults import torn
from tests.proxy.truth_http2 import H2, WINDOW, get, holds, one_by_one, raw, row, while_asked
from tests.proxy.truth_messages import CHUNKED, DATED, answer, bare, body, chunks, cut_everywhere, in_pieces
from tests.proxy.truth_rules import HEADERS, SPLIT

THREE = ("200 ok",) * 3


def answered(name: str, said: bytes, says: str = "200 ok", *, method: str = "GET", pieces: bool = False) -> Row:
    """The same answer three times, from an endpoint that keeps its connections."""
    asks = [(method, "/", ())] * 3
    return row(name, *(says,) * 3, client=one_by_one(*asks), origins=(always(said),), pieces=pieces)


ANSWERS = [
    answered("a GET", OK),
    answered("a HEAD", bare(b"200 OK", b"Content-Length: 7"), method="HEAD"),
    answered("a HEAD without a length", bare(b"200 OK"), method="HEAD"),
    answered("an answer without content", bare(b"204 No Content"), "204 ok"),
    answered("a 204 with a length", bare(b"204 No Content", b"Content-Length: 0"), "204 ok"),
    answered("not modified", bare(b"304 Not Modified", b'ETag: "x"', b"Content-Length: 9"), "304 ok"),
    answered("a length of 0", bare(b"200 OK", b"Content-Length: 0")),
    answered("not found", answer(9, status=b"404 Not Found"), "404 ok"),
    answered("an error of the endpoint's", answer(9, status=b"500 Oh"), "500 ok"),
    answered("a status that nobody knows", answer(9, status=b"299 What"), "299 ok"),
    answered("chunks", CHUNKED + chunks(b"abc", b"defg"), pieces=True),
    answered("chunks and trailers", CHUNKED + chunks(b"abc", end=b"0\r\nX-Sum: 1\r\n\r\n"), pieces=True),
    answered("no chunk", CHUNKED + chunks(), pieces=True),
    answered("a Date", answer(3, DATED)),
    answered("cookies", answer(3, b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2")),
    answered("fields about the connection", answer(3, b"Connection: X-Hop, keep-alive", b"X-Hop: 1", b"Keep-Alive: 5")),
    answered("fields twice", answer(3, b"X-A: 1", b"x-a: 2", b"X-B: 3", b"X-A: 4")),
    answered("bytes beyond ASCII", answer(3, b"X-A: caf\xc3\xa9 \xff")),
    answered("an empty field", answer(3, b"X-A:", b"X-B:   ")),
    answered("a request id of the endpoint's", answer(3, b"X-Request-Id: theirs", b"Via: 1.1 them", b"Server: x")),
    answered("hints before it", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK),
    answered("a 100 before it", b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    answered("more than a frame", answer(40_000)),
    answered("just a window", answer(65535), pieces=True),
    answered("more than a window", answer(300_000), pieces=True),
    answered("more than is read at once", answer(3 << 20), pieces=True),
    row("two pieces, cut everywhere", *("200 ok",) * 60, origins=(cut_everywhere(OK),),
        client=one_by_one(*[get()] * 60)),
    row("byte by byte", *THREE, origins=(in_pieces(answer(20)),)),
    row("a close with each answer", *THREE, origins=(each(answer(3, b"Connection: close")),)),
    row("a body until the close", *THREE, origins=(torn(bare(b"200 OK", b"X-Kept: yes") + b"x"),), pieces=True),
    row("an endpoint of HTTP/1.0", *THREE, origins=(torn(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),)),
    row("answers that differ", *("200 ok",) * 4, client=one_by_one(*[get()] * 4),
        origins=(each(answer(3), answer(3, b"X: 1"), answer(4), answer(3)),), plain=False),
]  # fmt: skip

FIELDS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "everyday fields": ((b"user-agent", b"test"), (b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2")),
    "cookies in pieces": ((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")),
    "te: trailers": ((b"te", b"trailers"),),
    "a range": ((b"range", b"bytes=0-1"), (b"if-none-match", b'"x"')),
    "what only a trusted proxy may say": (
        (b"x-forwarded-for", b"203.0.113.7"), (b"forwarded", b"for=203.0.113.8"), (b"x-request-id", b"mine"),
    ),
    "names in disguise": ((b"x_forwarded_for", b"203.0.113.7"), (b"x_request_id", b"x")),
    "bytes beyond ASCII in a value": ((b"x-a", b"caf\xc3\xa9"),),
    "a Host as well": ((b"host", b"t"),),
    "an Authorization": ((b"authorization", b"Bearer x"),),
    "a priority": ((b"priority", b"u=1, i"),),
    "a call of gRPC's": ((b"content-type", b"application/grpc+proto"), (b"te", b"trailers"), (b"grpc-timeout", b"9S")),
}  # fmt: skip
REFUSED_FIELDS = {
    "Authorization twice": ((b"authorization", b"a"), (b"authorization", b"b")),
    "a framing field in disguise": ((b"content_length", b"3"),),
}
REQUESTS = [
    *(row(what, *THREE, client=one_by_one(*[get("/", *fields)] * 3)) for what, fields in FIELDS.items()),
    *(
        row(what, "200 ok", *("400 bad_request",) * 2, client=one_by_one(get(), *[get("/", *fields)] * 2))
        for what, fields in REFUSED_FIELDS.items()
    ),
    row("more fields than there may be", "200 ok", "431 head_too_large", torn=True, listener="limits = { headers = 9 }",
        client=one_by_one(get(), get("/", *[(b"x", b"1")] * 12))),
    row("a query", *THREE, client=one_by_one(get("/a?b=c&d"), get("/a?"), get("/a?b=c&d"))),
    row("odd paths", *("200 ok",) * 6,
        client=one_by_one(*map(get, ("//a", "/%41", "/a/./b", "/a/../b", "/a%20b", "/~")))),
    row("paths that nobody reads alike", *("400 bad_request",) * 3,
        client=one_by_one(*map(get, ("/%00", "/a%2f..%2fb", "/..%2f")))),
    row("a target that is too long", "200 ok", "414 target_too_long", client=one_by_one(get(), get("/" + "a" * 9000))),
    row("methods", *("200 ok",) * 4,
        client=one_by_one(*[(method, "/", ()) for method in ("DELETE", "OPTIONS", "PUT", "POST")])),
    row("methods that few use", *("200 ok",) * 2, client=one_by_one(*[(m, "/", ()) for m in ("PROPFIND", "TRACE")])),
    row("OPTIONS *", "200 ok", client=one_by_one(("OPTIONS", "*", ()))),
    row("bodies", *("200 ok",) * 3, pieces=True,
        client=one_by_one(*[("POST", "/", (), body(size)) for size in (0, 1, 30_000)])),
    row("bodies of a length", *("200 ok",) * 2,
        client=one_by_one(*[("POST", "/", ((b"content-length", b"5"),), b"hello")] * 2)),
    row("a length of 0, and no body", *("200 ok",) * 2,
        client=one_by_one(*[("POST", "/", ((b"content-length", b"0"),))] * 2)),
    row("another host", *("200 ok",) * 3, client=one_by_one(get(), get(), get(), authority="T.Example:8080")),
    row("a circle", "200 ok", "508 loop_detected", client=one_by_one(get(), get("/", (b"via", b"1.1 tcpgate-test")))),
    row("Max-Forwards", "200 ok", "200 ok", client=one_by_one(*[("OPTIONS", "/", ((b"max-forwards", b"3"),))] * 2)),
]  # fmt: skip

RULES = [
    row("no route", "200 ok", "404 no_route", client=one_by_one(get("/v1"), get("/v2")), route='path = "/v1"'),
    row("no such method", "200 ok", "405 method_not_allowed", route='methods = ["GET"]',
        client=one_by_one(get(), ("PUT", "/", ()))),
    row("a path that a route knows only by its meaning", "200 ok", "200 ok", route='path = "/v1"',
        client=one_by_one(*map(get, ("/v1/a/../b", "/%761/a")))),
    row("an answer of the gateway's own", "202 respond", "202 respond", client=one_by_one(get(), get()), origins=(),
        text=f'[listeners.web]\nbind = ["127.0.0.1:0"]\n{H2}[routes.all]\nrespond = {{ status = 202, body = "x" }}\n'),
    *(
        row(f"a split route by {key}", *("200 ok",) * 8, plain=False, origins=(always(), always(answer(7))),
            client=one_by_one(*[get("/", (b"x-user", b"%d" % n), (b"cookie", b"session=%d" % n)) for n in range(8)]),
            text=SPLIT.replace("$key", key).replace("[routes", f"{H2}[routes"))
        for key in ("source", "header:X-User", "cookie:session")
    ),
    *(
        row(f"balance by {how} of {key}", *("200 ok",) * 8, origins=(always(), always(answer(7))),
            client=one_by_one(*[get("/", (b"x-user", b"%d" % n), (b"cookie", b"session=%d" % n)) for n in range(8)]),
            upstream=f'balance = "{how}"\nhash_key = "{key}"')
        for how in ("ring_hash", "maglev") for key in ("source", "header:X-User", "cookie:session")
    ),
    row("balance in turn", *("200 ok",) * 6, client=one_by_one(*[get()] * 6), origins=(always(), always(answer(7)))),
    row("an access filter that lets in", *THREE, route='filters = ["in"]',
        more='[filters.in]\nkind = "access"\nallow = ["127.0.0.0/8"]\n'),
    row("an access filter that denies", *("403 denied",) * 3, route='filters = ["in"]',
        more='[filters.in]\nkind = "access"\nallow = ["192.0.2.0/24"]\n'),
    row("header edits both ways", *THREE, route='filters = ["edit"]', more=HEADERS,
        client=one_by_one(*[get("/", (b"x-gone", b"1"), (b"user-agent", b"a"))] * 3),
        origins=(always(answer(5, b"X-Powered-By: PHP", b"Set-Cookie: a=1", b"X-Kept: 1")),)),
    row("a trusted proxy", *THREE, listener='trusted_proxies = ["127.0.0.1"]',
        client=one_by_one(*[get("/", *FIELDS["what only a trusted proxy may say"])] * 3)),
    row("a trusted proxy that tells nothing", *THREE, listener='trusted_proxies = ["127.0.0.1"]'),
    row("a pool that keeps nothing", *THREE, upstream="pool = { idle = 0 }"),
    row("connections that serve twice", *THREE, upstream="pool = { max_exchanges = 2 }"),
]  # fmt: skip


async def crosses(up: Up) -> None:
    """An origin's play: it closes as the second request comes."""
    if await up.request():
        await up.send(OK)
    await up.request()


async def reset_by_the_second(up: Up) -> None:
    """An origin's play: it answers one request, and resets for the second."""
    if await up.request():
        await up.send(OK)
    if await up.request():
        up.reset()


def second(said: bytes) -> OriginPlay:
    """An origin's play: a good answer, then `said` and the end."""
    return each(OK, said)


async def forgets(up: Up) -> None:
    """An origin's play: a good answer, then silence."""
    await up.request()
    await up.send(OK)
    await up.rest()


async def speaks_up(up: Up) -> None:
    """An origin's play: an answer, and one that nobody asked for."""
    while await up.request():
        await up.send(OK + OK)


POST = ("POST", "/", ((b"content-length", b"0"),))
FAULTS = [
    row("closes that cross requests", *THREE, origins=(crosses,)),
    row("a close that crosses what must not be sent twice", "200 ok", "502 upstream_closed", origins=(crosses,),
        client=one_by_one(get(), POST)),
    row("resets that cross requests", *THREE, origins=(reset_by_the_second,)),
    row("an answer that nobody asked for", *THREE, origins=(speaks_up,)),
    *(
        row(f"{what} for an answer", "200 ok", says, origins=(second(said),), client=one_by_one(get(), POST))
        for what, said, says in (
            ("garbage", b"nonsense\r\n\r\n", "502 upstream_protocol"),
            ("half a head", b"HTTP/1.1 200 OK\r\nX: ", "502 upstream_incomplete"),
            ("another version", b"HTTP/2.0 200 OK\r\n\r\n", "502 upstream_protocol"),
            ("two lengths", answer(2, b"Content-Length: 3"), "502 upstream_protocol"),
            ("a length and chunks", answer(2, b"Transfer-Encoding: chunked"), "502 upstream_protocol"),
            ("a folded line", answer(2, b"X: a", b" b"), "502 upstream_protocol"),
            ("a switch", b"HTTP/1.1 101 Yes\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "502 upgrade_failed"),
            ("a body cut short", answer(50)[:-9], "200 upstream_incomplete"),
            ("a chunk cut short", CHUNKED + b"9\r\nabc", "200 upstream_incomplete"),
            ("a head that is too large", answer(2, *[b"X: " + b"a" * 9000] * 9), "502 upstream_head_too_large"),
        )
    ),
    row("silence", "200 ok", "504 first_byte_timeout", client=one_by_one(get(), POST), origins=(forgets,),
        upstream='timeouts = { first_byte = "200ms" }'),
    row("silence, and another endpoint", "200 ok", "200 ok", "200 ok", origins=(forgets, always()),
        client=one_by_one(get(), get(), get()), upstream='timeouts = { first_byte = "200ms" }'),
    row("silence for the route's time", "200 ok", "504 exchange_timeout", client=one_by_one(get(), POST),
        origins=(forgets,), route='timeout = "200ms"'),
    row("no endpoint", *("503 no_endpoint",) * 2, client=one_by_one(get(), get()), origins=(),
        text=f'[listeners.web]\nbind = ["127.0.0.1:0"]\n{H2}\n[routes.all]\nupstream = "api"\n'
             '[upstreams.api]\nendpoints = [{ address = "127.0.0.1:$dead", weight = 0 }]\n'),
    row("an endpoint that refuses", *("502 connect_refused",) * 2, client=one_by_one(get(), get()), origins=(),
        text=f'[listeners.web]\nbind = ["127.0.0.1:0"]\n{H2}\n[routes.all]\nupstream = "api"\n'
             '[upstreams.api]\nendpoints = ["127.0.0.1:$dead"]\nretry = { attempts = 1 }\n'),
]  # fmt: skip

TWO = f"""
[listeners.web]
bind = ["127.0.0.1:0"]
{H2}
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$a"]
"""
HELD = (holds(OK),)
PRIORITY = bytes.fromhex("000005020000000009") + bytes.fromhex("00000003ff")
LIFE = [
    row("a stream that its client resets", "200 ok", "499 client_abort", "200 ok", client=while_asked(play.resets),
        origins=HELD),
    row("a connection that its client closes", "200 ok", "499 client_abort", client=while_asked(play.goes),
        origins=HELD),
    row("a connection that its client half-closes", "200 ok", "499 client_abort", origins=HELD,
        client=while_asked(play.half_closes)),
    row("a client that says GOAWAY", "200 ok", "200 ok", client=while_asked(play.says_goaway), origins=HELD),
    row("a client that breaks a rule", "200 ok", "400 bad_request", "400 bad_request", origins=HELD,
        client=while_asked(play.breaks_a_rule)),
    row("a client that sends DATA behind its end", "200 ok", "400 bad_request", origins=HELD,
        client=while_asked(play.sends_on)),
    row("a drain under a request", "200 ok", "200 ok", client=while_asked(play.drains), origins=HELD),
    row("a drain in the middle of an answer", "200 ok", "200 ok", client=while_asked(play.drains),
        origins=(holds(OK[-1:], OK[:-1]),)),
    row("a drain that cuts", "200 ok", "503 drained", client=while_asked(play.is_cut), origins=HELD),
    row("a drain that cuts an answer", "200 ok", "200 drained", client=while_asked(play.is_cut),
        origins=(holds(OK[-1:], OK[:-1]),)),
    row("a reload that takes the route of a request away", "200 ok", "404 no_route", "200 ok", origins=HELD,
        client=while_asked(play.loses_its_route)),
    row("the same, and the answer comes in pieces", "200 ok", "404 no_route", "200 ok",
        origins=(holds(OK[-1:], OK[:-1]),), client=while_asked(play.loses_its_route)),
    row("a reload that takes the endpoint of a request away", *THREE, text=TWO,
        client=while_asked(play.loses_its_endpoint), origins=(holds(CHUNKED + chunks(b"abc")), always(answer(7))),
        pieces=True),
    row("windows of one byte", *THREE, client=one_by_one(get(), get(), get(), settings={WINDOW: 1})),
    row("windows of no byte", "204 ok", "204 ok", origins=(always(bare(b"204 No Content")),),
        client=one_by_one(get(), get(), settings={WINDOW: 0})),
    row("windows just too small", *THREE, client=one_by_one(get(), get(), get(), settings={WINDOW: 99}),
        origins=(always(answer(100)),)),
    row("PRIORITY, and frames that nobody knows", *THREE,
        client=raw(PRIORITY, bytes.fromhex("0000037f0000000000") + b"xyz", before=2, then=get())),
    row("garbage behind good requests", *("200 ok",) * 2, "400 bad_request", client=raw(b"\xff" * 9, before=2)),
]  # fmt: skip

ROWS = [*ANSWERS, *REQUESTS, *RULES, *FAULTS, *LIFE]
