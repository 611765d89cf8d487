"""Scenarios of what the gateway decides: routes, paths, filters, whom it trusts, own answers, and the balancers."""

from __future__ import annotations

from tests.proxy.scripted import GET
from tests.proxy.truth import ClientPlay, Row, Stage, always, ask, each
from tests.proxy.truth_messages import answer, posted, request

TRUSTING = 'trusted_proxies = ["127.0.0.0/8", "10.0.0.0/8"]'
THREE = (always(answer(1)), always(answer(2)), always(answer(3)))


def target(path: bytes) -> bytes:
    """A GET of it."""
    return request(b"GET", path)


def from_many(*requests: bytes) -> ClientPlay:
    """A client's play: every request on a connection of its own."""

    async def play(stage: Stage) -> None:
        for one in requests:
            client = await stage.client()
            await client.send(one)
            await client.response(one.partition(b" ")[0])

    return play


# -- which route ----------------------------------------------------------------------------------------------------

ROUTES = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.exact]
path = "=/exact"
upstream = "one"
[routes.prefix]
path = "/v1"
upstream = "two"
[routes.pattern]
path = "~/img/[0-9]+"
upstream = "one"
[routes.hosted]
hosts = ["*.example.com"]
upstream = "two"
[routes.posts]
path = "/posts"
methods = ["POST", "PUT"]
upstream = "one"
[routes.asked]
path = "/asked"
query = { v = "2" }
upstream = "one"
[routes.headed]
path = "/headed"
headers = { x-kind = "~a+" }
upstream = "two"
[upstreams.one]
endpoints = ["127.0.0.1:$a"]
[upstreams.two]
endpoints = ["127.0.0.1:$b"]
"""
ONE_TWO = (always(answer(11)), always(answer(12)))

ROUTED = [
    Row(
        name="routes by exact path, prefix and pattern",
        says=("200 ok",) * 4,
        client=ask(target(b"/exact"), target(b"/v1/a"), target(b"/img/12"), target(b"/v1?x=/exact")),
        origins=ONE_TWO,
        text=ROUTES,
        plain=True,
    ),
    Row(
        name="routes by host, query and header",
        says=("200 ok",) * 3,
        client=ask(
            GET.replace(b" t\r", b" A.Example.COM:80\r"),
            target(b"/asked?v=2"),
            request(b"GET", b"/headed", b"X-Kind: aaa"),
        ),
        origins=ONE_TWO,
        text=ROUTES,
        plain=True,
    ),
    Row(
        name="no route",
        says=("404 no_route", "200 ok", "404 no_route"),
        client=ask(target(b"/exact/"), target(b"/exact"), target(b"/asked?v=3")),
        origins=ONE_TWO,
        text=ROUTES,
    ),
    Row(
        name="no route for a request with a body",
        says=("404 no_route", "200 ok"),
        client=ask(posted(100).replace(b" / ", b" /none "), target(b"/exact")),
        origins=ONE_TWO,
        text=ROUTES,
    ),
    Row(
        name="a method that no route has",
        says=("405 method_not_allowed", "405 method_not_allowed", "200 ok"),
        client=ask(target(b"/posts"), request(b"HEAD", b"/posts"), posted(3).replace(b" / ", b" /posts ")),
        origins=ONE_TWO,
        text=ROUTES,
    ),
    Row(
        name="routes of one listener only",
        says=("200 ok", "404 no_route"),
        client=ask(target(b"/a"), target(b"/b")),
        text="""
[listeners.web]
bind = ["127.0.0.1:0"]
[listeners.other]
bind = ["127.0.0.2:0"]
[routes.a]
path = "/a"
listeners = ["web"]
upstream = "api"
[routes.b]
path = "/b"
listeners = ["other"]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$a"]
""",
    ),
]

PATHS = [
    *(
        Row(
            name=f"the path {path.decode()}",
            says=("200 ok",) * 2,
            client=ask(target(path), target(path + b"?%61=/../b")),
        )
        for path in (
            *(b"/%61bc", b"/a/./b", b"/a/../b", b"/../a", b"/a/%2e%2e/%2e%2e/b", b"/."),
            *(b"//a", b"/a//b/", b"/a;x=1/b;y", b"/%7Euser/%e4", b"/a%20b", b"/a%2Fb"),
        )
    ),
    *(
        Row(
            name=f"the path {path.decode()}, which is refused",
            says=("400 bad_request",),
            client=ask(target(path)),
        )
        for path in (b"/%", b"/%0", b"/%zz", b"/%00", b"/a\\b", b"/a/..;/b")
    ),
    Row(
        name="a path that is routed by what it means",
        says=("200 ok",) * 3,
        client=ask(target(b"/%76%31/a"), target(b"/x/../exact"), target(b"/./v1")),
        origins=ONE_TWO,
        text=ROUTES,
    ),
]

# -- own answers and splits -----------------------------------------------------------------------------------------

OWN = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.fixed]
path = "/fixed"
respond = { status = 418, body = "short\\n", content_type = "text/x-tea" }
[routes.nothing]
path = "/nothing"
respond = { status = 204 }
[routes.moved]
path = "/moved"
redirect = { to = "https://{host}/new{path}{query}", status = 301 }
[routes.rest]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:$a"]
"""
SPLIT = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
split = { one = 1, two = 1 }
split_key = "$key"
[upstreams.one]
endpoints = ["127.0.0.1:$a"]
[upstreams.two]
endpoints = ["127.0.0.1:$b"]
"""
USERS = [
    request(b"GET", b"/", b"X-User: u%d" % n, b"Cookie: session=s%d; other=1" % n, b"Accept: */*") for n in range(12)
]

ANSWERED = [
    Row(
        name="fixed responses between forwarded ones",
        says=("418 respond", "200 ok", "204 respond", "418 respond", "200 ok"),
        client=ask(*map(target, (b"/fixed", b"/x", b"/nothing", b"/fixed/a?b", b"/y"))),
        text=OWN,
    ),
    Row(
        name="a fixed response to HEAD and to POST",
        says=("418 respond", "418 respond", "200 ok"),
        client=ask(request(b"HEAD", b"/fixed"), posted(9).replace(b" / ", b" /fixed "), GET),
        text=OWN,
    ),
    Row(
        name="redirects",
        says=("301 redirect", "301 redirect"),
        client=ask(target(b"/moved/a?b=c"), request(b"HEAD", b"/moved")),
        text=OWN,
    ),
    *(
        Row(
            name=f"a route split by {key}",
            says=("200 ok",) * 12,
            client=ask(*USERS),
            origins=ONE_TWO,
            text=SPLIT.replace("$key", key),
            plain=True,
        )
        for key in ("source", "header:X-User", "cookie:session")
    ),
]

# -- filters --------------------------------------------------------------------------------------------------------

HEADERS = """
[filters.edit]
kind = "headers"
set = { X-Set = "by us", User-Agent = "tcpgate" }
remove = ["X-Gone", "Accept"]
response_set = { X-Frame-Options = "DENY", X-Set = "by us" }
response_remove = ["X-Powered-By", "Set-Cookie"]
[filters.edit-more]
kind = "headers"
set = { X-Set = "by the second", X-Second = "2" }
response_set = { X-Second = "2" }
"""
EDITED = answer(5, b"X-Powered-By: PHP", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"X-Set: theirs", b"X-Kept: 1")

FILTERED = [
    Row(
        name="an access filter that lets in",
        says=("200 ok", "200 ok"),
        client=ask(GET, GET),
        route='filters = ["in"]',
        more='[filters.in]\nkind = "access"\nallow = ["127.0.0.0/8"]\ndeny = ["10.0.0.0/8"]\n',
        plain=True,
    ),
    Row(
        name="an access filter that denies",
        says=("403 denied", "403 denied", "403 denied"),
        client=ask(GET, posted(10), request(b"HEAD")),
        route='filters = ["in"]',
        more='[filters.in]\nkind = "access"\nallow = ["192.0.2.0/24"]\n',
    ),
    Row(
        name="an access filter that denies by name",
        says=("403 denied",),
        route='filters = ["edit", "in"]',
        more=HEADERS + '[filters.in]\nkind = "access"\ndeny = ["127.0.0.1/32"]\n',
    ),
    Row(
        name="header edits both ways",
        says=("200 ok", "200 ok"),
        client=ask(*[request(b"GET", b"/", b"X-Gone: 1", b"Accept: a", b"User-Agent: curl", b"X-Set: c", b"Z: 1")] * 2),
        origins=(always(EDITED),),
        route='filters = ["edit"]',
        more=HEADERS,
        plain=True,
    ),
    Row(
        name="header edits by two filters",
        says=("200 ok", "200 ok"),
        client=ask(request(b"GET", b"/", b"X-Gone: 1", b"Z: 1"), posted(12, b"X-Set: 0")),
        origins=(always(EDITED),),
        route='filters = ["edit", "edit-more"]',
        more=HEADERS,
        plain=True,
    ),
    Row(
        name="header edits of the gateway's own answers",
        says=("503 no_endpoint", "502 connect_refused"),
        client=ask(target(b"/none"), target(b"/dead")),
        origins=(),
        text="""
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.none]
path = "/none"
filters = ["edit"]
upstream = "none"
[routes.dead]
path = "/dead"
filters = ["edit"]
upstream = "dead"
[upstreams.none]
endpoints = [{ address = "127.0.0.1:$dead", weight = 0 }]
[upstreams.dead]
endpoints = ["127.0.0.1:$dead"]
""",
        more=HEADERS,
    ),
]

# -- whom it trusts -------------------------------------------------------------------------------------------------

VOUCHING = {
    "X-Forwarded-For": (b"X-Forwarded-For: 203.0.113.7, 10.1.2.3",),
    "Forwarded": (b'Forwarded: for=203.0.113.8;host=h;proto=https, for="10.1.2.3:99"',),
    "both chains": (b"X-Forwarded-For: 203.0.113.7", b"Forwarded: for=203.0.113.8"),
    "X-Request-Id": (b"X-Request-Id: given-by-the-proxy-1",),
    "the rest": (
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: front.example",
        b"X-Forwarded-Port: 443",
        b"X-Real-IP: 203.0.113.9",
        b"X-Forwarded-Prefix: /p",
        b"Via: 1.1 front, 1.0 other",
    ),
    "disguised names": (b"X_Forwarded_For: 203.0.113.7", b"X_Request_Id: x"),
    "a malformed chain": (b"X-Forwarded-For: 203.0.113.7, nonsense, 10.1.2.3", b"X-Request-Id: not allowed"),
}
TRUST = [
    *(
        Row(
            name=f"{what} from a trusted proxy",
            says=("200 ok",) * 3,
            client=ask(request(b"GET", b"/", *fields), GET, posted(3, *fields)),
            listener=TRUSTING,
            plain=what != "the rest",
        )
        for what, fields in VOUCHING.items()
    ),
    *(
        Row(
            name=f"{what} from anybody",
            says=("200 ok",) * 3,
            client=ask(request(b"GET", b"/", *fields), GET, posted(3, *fields)),
            plain=what != "the rest",
        )
        for what, fields in VOUCHING.items()
    ),
    Row(
        name="a filter sees the client that a trusted proxy names",
        says=("200 ok", "403 denied", "403 denied"),
        client=ask(
            request(b"GET", b"/", b"X-Forwarded-For: 203.0.113.7"),
            request(b"GET", b"/", b"X-Forwarded-For: 198.51.100.1"),
            GET,
        ),
        listener=TRUSTING,
        route='filters = ["in"]',
        more='[filters.in]\nkind = "access"\nallow = ["203.0.113.0/24"]\n',
    ),
    Row(
        name="a request that came round in a circle",
        says=("508 loop_detected", "200 ok"),
        client=ask(request(b"GET", b"/", b"Via: 1.1 a, 1.1 tcpgate-test (x)"), request(b"GET", b"/", b"Via: 1.1 a")),
    ),
    Row(
        name="Max-Forwards",
        says=("200 ok", "200 ok", "204 respond", "405 respond", "200 ok"),
        client=ask(
            request(b"OPTIONS", b"/", b"Max-Forwards: 5"),
            request(b"TRACE", b"/", b"Max-Forwards: 1"),
            request(b"OPTIONS", b"/", b"Max-Forwards: 0"),
            request(b"TRACE", b"/", b"Max-Forwards: 0", b"X-A: b"),
            request(b"GET", b"/", b"Max-Forwards: 0"),
        ),
    ),
]

# -- who gets it ----------------------------------------------------------------------------------------------------


def balanced(how: str, listener: str = "") -> str:
    """An upstream of three, balanced so."""
    return f"""
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[routes.all]
upstream = "api"
[upstreams.api]
{how}
endpoints = [
  {{ address = "127.0.0.1:$a", weight = 5 }},
  {{ address = "127.0.0.1:$b", weight = 1 }},
  {{ address = "127.0.0.1:$c", weight = 1 }},
]
"""


MANY = [request(b"GET", b"/p%d" % n, b"X-User: u%d" % n, b"Cookie: s=c%d" % n) for n in range(21)]
FROM_ALL_OVER = [request(b"GET", b"/", b"X-Forwarded-For: 203.0.113.%d" % n) for n in range(21)]


async def status_changes(stage: Stage) -> None:
    """A client's play: the endpoints' health changes between its requests."""
    client = await stage.client()
    a, b, c = (f"127.0.0.1:{port}" for port in stage.ports[:3])
    for endpoint, state in ((a, "healthy"), (a, "down"), (b, "draining"), (a, "healthy"), (c, "maint"), (b, "healthy")):
        stage.plane.set_status("api", endpoint, state)
        for _ in range(4):
            await client.send(GET)
            await client.response()


BALANCED = [
    *(
        Row(
            name=f"balance by {how}",
            says=("200 ok",) * 21,
            client=ask(*MANY),
            origins=THREE,
            text=balanced(f'balance = "{how}"'),
            plain=True,
        )
        for how in ("round_robin", "weighted_round_robin", "least_connections", "first")
    ),
    *(
        Row(
            name=f"balance by {how} of {key}",
            says=("200 ok",) * 21,
            client=ask(*MANY),
            origins=THREE,
            text=balanced(f'balance = "{how}"\nhash_key = "{key}"'),
            plain=True,
        )
        for how, key in (
            ("source_hash", "source"),
            ("ring_hash", "header:X-User"),
            ("maglev", "cookie:s"),
            ("rendezvous", "path"),
        )
    ),
    *(
        Row(
            name=f"balance by {how} of the source that a trusted proxy names",
            says=("200 ok",) * 21,
            client=ask(*FROM_ALL_OVER),
            origins=THREE,
            text=balanced(f'balance = "{how}"', TRUSTING),
            plain=True,
        )
        for how in ("source_hash", "ring_hash")
    ),
    Row(
        name="balance by weight from many connections",
        says=("200 ok",) * 14,
        client=from_many(*[GET] * 14),
        origins=THREE,
        text=balanced('balance = "weighted_round_robin"'),
        plain=True,
    ),
    Row(
        name="endpoints that go and come back",
        says=("200 ok",) * 24,
        client=status_changes,
        origins=THREE,
        text=balanced('balance = "weighted_round_robin"'),
        plain=True,
    ),
    Row(
        name="a pool that keeps no connection",
        says=("200 ok",) * 3,
        client=ask(GET, GET, GET),
        upstream="pool = { idle = 0 }",
        plain=True,
    ),
    Row(
        name="a pool whose connections serve twice",
        says=("200 ok",) * 5,
        client=ask(*[GET] * 5),
        upstream="pool = { max_exchanges = 2 }",
        plain=True,
    ),
    Row(
        name="5xx answers",
        says=("500 ok", "503 ok", "500 ok", "503 ok", "500 ok", "200 ok", "500 ok"),
        client=ask(*[GET] * 7),
        origins=(
            each(
                *[answer(3, status=b"500 Oh"), answer(3, b"Retry-After: 9", status=b"503 No")] * 2,
                answer(3, status=b"500 Oh"),
                answer(1),
                answer(3, status=b"500 Oh"),
            ),
        ),
        plain=True,
    ),
    Row(
        name="4xx answers and redirects of the origin",
        says=("404 ok", "401 ok", "302 ok", "413 ok"),
        client=ask(GET, GET, GET, posted(20)),
        origins=(
            each(
                answer(3, status=b"404 Not Found"),
                answer(0, b"WWW-Authenticate: Basic", status=b"401 Unauthorized"),
                answer(0, b"Location: /x", status=b"302 Found"),
                answer(9, status=b"413 Too Much"),
            ),
        ),
        plain=True,
    ),
]

ROWS = [*ROUTED, *PATHS, *ANSWERED, *FILTERED, *TRUST, *BALANCED]
