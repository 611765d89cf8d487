"""The route table against two oracles: one that tries every route, and origins that read paths in their own ways."""

from __future__ import annotations

import itertools
import re
from random import Random
from typing import Any, Literal

import attrs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcpgate.codec.events import Fields
from tcpgate.config.schema import Route
from tcpgate.policy.path import NormalPath, is_plain, is_single, match_path
from tcpgate.policy.route import MAX_SIMPLE, NO_ROUTE, Found, Match, MethodNotAllowed, RouteTable
from tcpgate.policy.route_order import Question, explain, order

# -- every route tried, in an order computed from the config's own text ---------------------------------------------

HOSTS = ["a.example.com", "b.a.example.com", "example.com", "*.example.com", "*.a.example.com", "*.com", "c", "[::1]"]
PATHS = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "=/",
    "=/a",
    "=/a/",
    "=/a/b",
    "/ab",
    "~/a.*",
    "~/a/b/?.*",
    "~.*b",
    "~/a|/ab",
]
METHODS = ["GET", "POST", "HEAD"]
VALUES = ["1", "2", "*", "~[12]", "~.+"]

routes = st.builds(
    Route,
    listeners=st.sampled_from([(), (), ("web",), ("admin",), ("web", "admin")]),
    hosts=st.lists(st.sampled_from(HOSTS), max_size=2, unique=True).map(tuple),
    path=st.sampled_from(PATHS),
    methods=st.lists(st.sampled_from(METHODS), max_size=2, unique=True).map(tuple),
    headers=st.dictionaries(st.sampled_from(["x", "Y"]), st.sampled_from(VALUES), max_size=2),
    query=st.dictionaries(st.sampled_from(["p", "q"]), st.sampled_from(VALUES), max_size=2),
    upstream=st.just("u"),
)
tables = st.dictionaries(st.sampled_from([f"r{number}" for number in range(20)]), routes, max_size=12)
plain_tables = tables.map(
    lambda table: {
        name: attrs.evolve(route, headers={}, query={})
        for name, route in table.items()
        if not route.path.startswith("~")
    }
)


@attrs.frozen
class Request:
    listener: str
    method: str
    host: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]


requests = st.builds(
    Request,
    listener=st.sampled_from(["web", "admin"]),
    method=st.sampled_from([*METHODS, "PUT"]),
    host=st.sampled_from(["a.example.com", "b.a.example.com", "example.com", "z.example.com", "c", "d", "[::1]", ""]),
    path=st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/a/b/c/d", "/ab", "/b", "/x/b", "*"]),
    headers=st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2", "3"]), max_size=2),
    query=st.dictionaries(st.sampled_from(["p", "q"]), st.sampled_from(["1", "2", ""]), max_size=2),
)


def host_rank(pattern: str) -> tuple[int, int, str]:
    if not pattern:
        return (2, 0, "")
    return (1, -pattern.count("."), pattern) if pattern.startswith("*.") else (0, 0, pattern)


def host_matches(pattern: str, host: str) -> bool:
    return not pattern or host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def path_rank(path: str) -> tuple[int, int, str]:
    if path.startswith("="):
        return (0, 0, path)
    if path.startswith("~"):
        return (2, -len(path), path)
    return (1, -len(segments(path)), path.rstrip("/"))


def segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def path_matches(pattern: str, path: str) -> bool:
    if pattern.startswith("="):
        return path == pattern[1:]
    if pattern.startswith("~"):
        return re.fullmatch(pattern[1:], path) is not None
    wanted = segments(pattern)
    return segments(path)[: len(wanted)] == wanted


def value_matches(wanted: str, value: str | None) -> bool:
    if value is None:
        return False
    if wanted == "*":
        return True
    return re.fullmatch(wanted[1:], value) is not None if wanted.startswith("~") else value == wanted


def oracle(table: dict[str, Route], request: Request) -> str | set[str]:
    """The route's name, or the methods that would have found one."""
    found: list[tuple[Any, ...]] = []
    allow: set[str] = set()
    for name, route in table.items():
        wanted = [*route.headers.values(), *route.query.values()]
        for host in route.hosts or ("",):
            holds = (
                (not route.listeners or request.listener in route.listeners)
                and host_matches(host, request.host)
                and path_matches(route.path, request.path)
                and all(value_matches(want, request.headers.get(key.lower())) for key, want in route.headers.items())
                and all(value_matches(want, request.query.get(key)) for key, want in route.query.items())
            )
            if not holds:
                continue
            if route.methods and request.method not in route.methods:
                allow |= set(route.methods)
                continue
            exact = sum(want[0] not in "*~" for want in wanted)
            regex = sum(want[0] == "~" for want in wanted)
            counts = (not route.methods, -len(route.headers), -len(route.query), -exact, -regex)
            found.append((host_rank(host), path_rank(route.path), counts, name))
    return min(found)[-1] if found else allow


def question(request: Request) -> Question:
    query = "&".join(f"{key}={value}" for key, value in request.query.items())
    return Question(
        listener=request.listener,
        method=request.method.encode(),
        host=request.host.encode(),
        path=request.path.encode(),
        fields=Fields((key.encode(), value.encode()) for key, value in request.headers.items()),
        query=query.encode() or None,
    )


def match(table: RouteTable, request: Request) -> Match:
    asked = question(request)
    path = match_path(asked.path)
    assert path is not None
    return table.match(asked.listener, asked.method, asked.host, path, asked.fields, asked.query)


@settings(max_examples=100)
@given(tables, st.lists(requests, min_size=1, max_size=8))
def test_the_table_finds_what_trying_every_route_finds(table: dict[str, Route], asked: list[Request]) -> None:
    built = RouteTable.build(table, ["web", "admin"])
    for request in asked:
        expected = oracle(table, request)
        found = match(built, request)
        if isinstance(expected, str):
            assert found == Found(expected, table[expected])
        elif expected:
            assert found == MethodNotAllowed(tuple(sorted(method.encode() for method in expected)))
        else:
            assert found == NO_ROUTE


def simply(table: RouteTable, request: Request) -> str | None:
    asked = question(request)
    path = match_path(asked.path)
    assert path is not None
    return table.simply(asked.listener, asked.method, asked.host, path) if is_plain(path) else None


@settings(max_examples=100)
@given(tables, st.lists(requests, min_size=1, max_size=12))
def test_the_short_cut_finds_what_the_table_finds_whatever_was_asked_before(
    table: dict[str, Route], asked: list[Request]
) -> None:
    built = RouteTable.build(table, ["web", "admin"])
    for request in [*asked, *asked]:
        name = simply(built, request)
        if name is not None:
            assert match(built, request) == Found(name, table[name])


@settings(max_examples=100)
@given(plain_tables, st.lists(requests, min_size=1, max_size=12))
def test_without_conditions_and_regular_expressions_the_short_cut_finds_every_path_that_is_not_named_whole(
    table: dict[str, Route], asked: list[Request]
) -> None:
    built = RouteTable.build(table, ["web", "admin"])
    named = {route.path[1:] for route in table.values() if route.path.startswith("=")}
    for request in asked:
        found = match(built, request)
        if request.path not in named and is_plain(request.path.encode()):
            assert simply(built, request) == (found.name if isinstance(found, Found) else None)


def test_the_short_cut_forgets_rather_than_grows() -> None:
    built = RouteTable.build({"all": Route(path="/", upstream="u")}, ["web"])
    for number in range(2 * MAX_SIMPLE):
        assert built.simply("web", b"GET", b"host%d" % number, NormalPath(b"/x")) == "all"
    assert len(built._simple) <= MAX_SIMPLE


@given(tables, requests, st.randoms())
def test_the_order_of_the_config_does_not_matter(table: dict[str, Route], request: Request, random: Random) -> None:
    names = list(table)
    random.shuffle(names)
    shuffled = {name: table[name] for name in names}
    listeners = ["web", "admin"]
    first, second = RouteTable.build(table, listeners), RouteTable.build(shuffled, listeners)
    assert match(first, request) == match(second, request)
    assert order(first) == order(second)


@given(tables, requests)
def test_the_explanation_and_the_table_agree(table: dict[str, Route], request: Request) -> None:
    built = RouteTable.build(table, ["web", "admin"])
    told = explain(built, question(request))
    assert told.match == match(built, request)
    takers = [finding.row.route for finding in told.findings if finding.verdict == "takes"]
    assert takers == ([told.match.name] if isinstance(told.match, Found) else [])
    assert [finding.row for finding in told.findings] == [
        row for row in order(built) if row.listener == request.listener
    ]


# -- origins with their own opinion of a path -----------------------------------------------------------------------


@attrs.frozen
class Origin:
    """What an origin does to the path that it gets before it looks for the resource."""

    layers: int
    """How often it decodes."""
    decodes_slash: bool
    """Whether that makes separators of encoded slashes."""
    backslash_is_slash: bool
    parameters: Literal["keep", "drop first", "drop decoded"]
    merges: bool
    cuts: str
    """Characters at which it cuts the decoded path."""

    def sees(self, path: bytes) -> str:
        text = path.decode("ascii")
        if self.parameters == "drop first":
            text = re.sub(";[^/]*", "", text)
        for _ in range(self.layers):
            text = re.sub("%([0-9A-Fa-f]{2})", self._decoded, text)
        for cut in self.cuts:
            text = text.split(cut)[0]
        if self.backslash_is_slash:
            text = text.replace("\\", "/")
        if self.parameters == "drop decoded":
            text = re.sub(";[^/]*", "", text)
        return re.sub("/+", "/", text) if self.merges else text

    def _decoded(self, escape: re.Match[str]) -> str:
        char = chr(int(escape[1], 16))
        return escape[0] if char in "/\\" and not self.decodes_slash else char


origins = st.builds(
    Origin,
    layers=st.integers(1, 3),
    decodes_slash=st.booleans(),
    backslash_is_slash=st.booleans(),
    parameters=st.sampled_from(["keep", "drop first", "drop decoded"]),
    merges=st.booleans(),
    cuts=st.sampled_from(["", "?", "#", "?#"]),
)
SEPARATORS = ["/", "/", "/", "/", "//", "%2F", "%2f", "%5C", "%252F", "%255C", ";x%2F", "%3By%5C", ";/", "?", ""]
SEGMENTS = ["a", "b", "c", "a", "b", "c", "", "%61", "%2562", "a;x", "b%3Bx", "c%253B", ";", "a%3F", "b%23x", "c%253Fx"]
SEGMENTS += ["%25", "%252561", "..", "..;", "%2E.", "x", "a%20", "%2", "5C"]
pairs = st.tuples(st.sampled_from(SEPARATORS), st.sampled_from(SEGMENTS)).map("".join)
twisted = st.lists(pairs, min_size=1, max_size=4).map("".join)
clean = st.sampled_from(["/", "/a", "/b", "/a/b", "/a/b/c", "/b/a", "/c", "=/a", "=/a/b", "=/a/b/", "=/b/c"])


def resource(table: dict[str, Route], path: str) -> str | None:
    """The route that was meant to guard what an origin sees: exact, then the longest prefix of whole segments."""
    for name, route in table.items():
        if route.path == "=" + path:
            return name
    prefixes = [name for name, route in table.items() if route.path[0] == "/" and covers(route.path, path)]
    return max(prefixes, key=lambda name: len(table[name].path), default=None)


def covers(prefix: str, path: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(prefix + "/")


@settings(max_examples=300)
@example(["/", "/x/c"], "/x;a%2Fb/c", Origin(1, True, False, "drop first", False, ""))
@example(["/", "/x/b"], "/x;a%2Fb/c", Origin(1, True, False, "drop decoded", False, ""))
@example(["/", "/x/c"], "/x;y%3F/c", Origin(1, True, False, "drop decoded", False, ""))
@example(["/", "/a"], "/x%3F/..%2Fa", Origin(1, True, False, "keep", False, ""))
@example(["/", "/a"], "/a%23b%3Fc", Origin(1, False, False, "keep", False, "?#"))
@given(st.lists(clean, min_size=3, unique=True), twisted, origins)
def test_whatever_an_origin_makes_of_a_path_it_is_what_its_route_guards(
    patterns: list[str], raw: str, origin: Origin
) -> None:
    table = {f"r{number}": Route(path=path, upstream="u") for number, path in enumerate(patterns)}
    path = match_path(raw.encode())
    if path is None:
        return
    found = RouteTable.build(table, ["web"]).match("web", b"GET", b"", path, Fields())
    if isinstance(found, Found):
        seen = origin.sees(path)
        assert {".", ".."}.isdisjoint(seen.split("/")), "an origin would climb"
        assert resource(table, seen) == found.name


def test_every_origin_sees_a_plain_path_as_it_is() -> None:
    path = match_path(b"/a/b.c/~x/@d!")
    assert path is not None
    assert is_single(path)
    choices = itertools.product(
        (1, 3), (True, False), (True, False), ("keep", "drop first", "drop decoded"), (True, False)
    )
    for layers, slash, backslash, parameters, merges in choices:
        assert Origin(layers, slash, backslash, parameters, merges, "?#").sees(path) == path.decode()  # type: ignore[arg-type]
