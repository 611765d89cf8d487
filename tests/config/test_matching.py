"""What check says of routes, held against the table that serves by them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgate.codec.events import Fields
from tcpgate.config import forms, schema
from tcpgate.config.check import check
from tcpgate.config.matching import EXACT, PREFIX, REGEX, Index, PathKey, Rule, path_key, rules
from tcpgate.policy.host import compile_host
from tcpgate.policy.path import match_path
from tcpgate.policy.route import Found, RouteTable
from tcpgate.policy.rule import compile_path

LISTENERS = {name: schema.Listener(bind=(f"fd:{name}",)) for name in ("l1", "l2")}
HOSTS = ["a.example", "b.a.example", "*.a.example", "*.example", "A.Example", "[::1]", "[0::1]"]
PATHS = [
    "/",
    "/v",
    "/v/",
    "/v/x",
    "=/v",
    "=/v/x",
    "=/v%2Dx",
    "/v-x",
    "~/v/.*",
    "~/v",
    "~/[vw]",
    "~.*",
    "~/v/x+",
    "~/v|/w",
]
CONDITIONS = ["1", "2", "*", "~[12]"]

routes = st.builds(
    schema.Route,
    listeners=st.sampled_from([(), (), ("l1",), ("l2",), ("l1", "l2")]),
    hosts=st.lists(st.sampled_from(HOSTS), max_size=2).map(tuple),
    path=st.sampled_from(PATHS),
    methods=st.sampled_from([(), (), ("GET",), ("PUT",), ("GET", "PUT")]),
    headers=st.dictionaries(st.sampled_from(["h", "G"]), st.sampled_from(CONDITIONS), max_size=2),
    query=st.dictionaries(st.sampled_from(["q"]), st.sampled_from(CONDITIONS), max_size=1),
    respond=st.just(schema.Respond()),
)
tables = st.dictionaries(st.sampled_from("abcdefgh"), routes, max_size=8)
requests = st.fixed_dictionaries(
    {
        "listener": st.sampled_from(["l1", "l2"]),
        "host": st.sampled_from(["a.example", "b.a.example", "c.b.a.example", "x.example", "[::1]", "y"]),
        "path": st.sampled_from(["/", "/v", "/v/", "/v/x", "/v/xx", "/v-x", "/w", "/vx", "/v/x/y"]),
        "method": st.sampled_from(["GET", "PUT", "POST"]),
        "headers": st.dictionaries(st.sampled_from(["h", "g"]), st.sampled_from("123"), max_size=2),
        "query": st.dictionaries(st.just("q"), st.sampled_from("123"), max_size=1),
    }
)
Request = dict[str, object]


def config_of(table: Mapping[str, schema.Route]) -> schema.Config:
    """A config of these routes and two listeners."""
    return schema.Config(listeners=LISTENERS, routes=table)


def served(table: RouteTable, request: Request) -> str:
    """The route that serves the request; "" if none does."""
    headers, query = request["headers"], request["query"]
    assert isinstance(headers, dict)
    assert isinstance(query, dict)
    path = match_path(str(request["path"]).encode())
    assert path is not None
    match = table.match(
        str(request["listener"]),
        str(request["method"]).encode(),
        str(request["host"]).encode(),
        path,
        Fields([(name.encode(), value.encode()) for name, value in headers.items()]),
        "&".join(f"{name}={value}" for name, value in query.items()).encode(),
    )
    return match.name if isinstance(match, Found) else ""


def holds(wanted: str, value: str | None) -> bool:
    """Whether a condition holds."""
    if value is None or wanted == "*":
        return value is not None
    return bool(re.fullmatch(wanted[1:], value)) if wanted.startswith("~") else value == wanted


def predicted(index: Index, request: Request) -> str:
    """The first rule in the order of `matching` that holds in full."""
    fields: Mapping[str, Mapping[str, str]] = {"headers": request["headers"], "query": request["query"]}  # type: ignore[dict-item]
    for rule in index.candidates(str(request["listener"]), str(request["host"]), str(request["path"])):
        if rule.methods and request["method"] not in rule.methods:
            continue
        if all(holds(wanted, fields[kind].get(name)) for (kind, name), wanted in rule.conditions.items()):
            return rule.name
    return ""


@given(tables, st.lists(requests, min_size=1, max_size=5))
def test_the_order_of_check_is_the_order_that_serves(table: dict[str, schema.Route], asked: list[Request]) -> None:
    config = config_of(table)
    index, serving = Index(rules(config)), RouteTable.build(table, LISTENERS)
    for request in asked:
        assert predicted(index, request) == served(serving, request)


@given(tables, st.lists(requests, min_size=1, max_size=20))
def test_what_check_calls_unreachable_serves_nothing(table: dict[str, schema.Route], asked: list[Request]) -> None:
    problems = check(config_of(table))
    hidden = {problem.path.removeprefix("routes.") for problem in problems if "no request reaches it" in problem.text}
    serving = RouteTable.build(table, LISTENERS)
    assert not hidden & {served(serving, request) for request in asked}


@given(tables, st.lists(requests, min_size=1, max_size=20))
def test_without_equals_no_name_decides_who_serves(table: dict[str, schema.Route], asked: list[Request]) -> None:
    problems = check(config_of(table))
    if any("takes the same requests as" in problem.text or "is as specific as" in problem.text for problem in problems):
        return
    # Names in reverse, so that whatever a name decided would be decided the other way.
    flipped = {chr(ord("z") - ord(name)): route for name, route in table.items()}
    before, after = RouteTable.build(table, LISTENERS), RouteTable.build(flipped, LISTENERS)
    for request in asked:
        name = served(before, request)
        assert served(after, request) == (chr(ord("z") - ord(name)) if name else "")


@given(st.text(alphabet="/v.x%2Ff5C3BEe;?#\\~=* \x01é", max_size=12))
@example("/%2e%2e/x")
@example("/a%2fb")
@example("/%c3%a9")
@example("~(?L)x")
@example("~(?u)x")
def test_a_path_that_check_lets_through_compiles_and_keeps_its_meaning(text: str) -> None:
    if forms.route_path(text):
        return
    compiled, key = compile_path(text), path_key(text)
    assert (key.kind, compiled.kind) in [(EXACT, 0), (PREFIX, 1), (REGEX, 2)]


@given(st.text(alphabet="a.*:/[]1%-_é A", max_size=10))
@example("[::1%eth0]")
@example("*.[::1]")
@example("1.2.3.4")
def test_a_host_that_check_lets_through_compiles(text: str) -> None:
    if not forms.host(text):
        compile_host(text)


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("~/v1/x[0-9]+", "/v1"),
        ("~/v1/x", "/v1"),
        ("~/v1/?", ""),
        ("~/v1/*", ""),
        ("~/v1?/x", ""),
        ("~/a|/b/c", ""),
        ("~(?i)/v1/x", ""),
        ("~[/]x", ""),
        ("=/v1/x", "/v1/x"),
        ("/v1/", "/v1"),
    ],
)
def test_the_segments_that_every_path_begins_with(path: str, head: str) -> None:
    assert path_key(path).head == head


def test_equal_paths_in_different_spellings_are_equal() -> None:
    assert path_key("/v%2dx/") == path_key("/v-x") == PathKey(PREFIX, "/v-x")
    assert path_key("=/v/") != path_key("=/v")


def big(count: int, **keys: object) -> dict[str, schema.Route]:
    """Many routes, each told apart by what `keys` makes of its number."""
    return {
        f"r{number}": schema.Route(
            **{key: value(number) for key, value in keys.items() if callable(value)}, respond=schema.Respond()
        )
        for number in range(count)
    }


@pytest.mark.parametrize(
    "table",
    [
        big(5000, path=lambda number: f"/v{number}"),
        big(5000, hosts=lambda number: (f"h{number}.example",)),
        big(5000, headers=lambda number: {"x-tenant": str(number)}),
        big(5000, path=lambda number: f"~/v{number}/[0-9]+"),
    ],
    ids=["paths", "hosts", "headers", "regular expressions"],
)
def test_five_thousand_routes_are_checked_in_a_second_or_two(table: dict[str, schema.Route]) -> None:
    began = time.process_time()
    assert check(config_of(table)) == []
    assert time.process_time() - began < 5


def chain(count: int) -> dict[str, schema.Route]:
    """Redirects, each to the next; the last to a page."""
    return {
        f"r{number}": schema.Route(path=f"=/v{number}", redirect=schema.Redirect(to=f"/v{number + 1}"))
        for number in range(count)
    }


def test_a_chain_as_long_as_clients_follow_is_fine() -> None:
    assert check(config_of(chain(20))) == []


def test_a_longer_chain_is_told_where_it_begins() -> None:
    problems = check(config_of(chain(22)))
    assert [(problem.path, problem.warning) for problem in problems] == [
        ("routes.r0.redirect.to", False),
        ("routes.r1.redirect.to", False),
    ]
    way = "http://any.example/v0 -> /v1 -> /v2 -> /v3 and so on"
    assert problems[0].text == f"leads through more than 20 redirects, and clients give up: {way}"


def test_two_thousand_redirects_are_followed() -> None:
    assert len(check(config_of(chain(2000)))) == 1980


def test_rules_that_share_a_place_are_compared_in_their_own_rank_only() -> None:
    table = {
        "any": schema.Route(respond=schema.Respond()),
        "get": schema.Route(methods=("GET",), respond=schema.Respond()),
        "one": schema.Route(headers={"a": "1"}, respond=schema.Respond()),
        "two": schema.Route(headers={"a": "1", "b": "1"}, respond=schema.Respond()),
    }
    assert check(config_of(table)) == []
    (one,) = [rule for rule in rules(config_of(table)) if rule.name == "one"]
    assert isinstance(one, Rule)
    assert one.rank == (True, -1, 0, -1, 0)
