"""The order of the routes as people read it, and what each says to a request."""

from __future__ import annotations

import pytest

from tcpgate.codec.events import Fields
from tcpgate.config.schema import Redirect, Respond, Route
from tcpgate.errors import Reason
from tcpgate.policy.route import NO_ROUTE, BadPath, Found, MethodNotAllowed, RouteTable
from tcpgate.policy.route_index import MAX_REGEX_PATH
from tcpgate.policy.route_order import Question, Row, explain, order

ROUTES = {
    "all": Route(respond=Respond(status=404)),
    "old": Route(path="=/old", redirect=Redirect(to="/new", status=301)),
    "beta": Route(
        hosts=("api.example.com", "*.example.com"),
        path="/v1/",
        methods=("GET", "POST"),
        headers={"X-Env": "beta", "x-user": "*"},
        query={"debug": "~1|true"},
        filters=("keys", "limit"),
        split={"api": 95, "canary": 5},
    ),
    "api": Route(hosts=("api.example.com",), path="/v1", upstream="api"),
    "ids": Route(path=r"~/[0-9]+", upstream="api"),
    "admin": Route(listeners=("admin",), hosts=("[::1]",), upstream="admin"),
}


def rows(listener: str) -> list[Row]:
    return [row for row in order(RouteTable.build(ROUTES, ["web", "admin"])) if row.listener == listener]


def test_routes_are_listed_in_the_order_in_which_they_are_tried() -> None:
    places = [(row.route, row.host, row.path, row.reason) for row in rows("web")]
    assert places == [
        ("beta", "api.example.com", "/v1/", "exact host, prefix of 1 segment, methods, 2 headers, 1 query parameter"),
        ("api", "api.example.com", "/v1", "exact host, prefix of 1 segment"),
        ("beta", "*.example.com", "/v1/", "wildcard host, prefix of 1 segment, methods, 2 headers, 1 query parameter"),
        ("old", "*", "=/old", "any host, exact path"),
        ("all", "*", "/", "any host, any path"),
        ("ids", "*", "~/[0-9]+", "any host, regular expression"),
    ]


def test_a_row_has_everything_that_the_listing_shows() -> None:
    assert rows("web")[0] == Row(
        route="beta",
        listener="web",
        host="api.example.com",
        path="/v1/",
        methods=("GET", "POST"),
        conditions=("header x-env = beta", "header x-user present", "query debug = ~1|true"),
        target="split api=95 canary=5",
        filters=("keys", "limit"),
        reason="exact host, prefix of 1 segment, methods, 2 headers, 1 query parameter",
    )
    assert {row.route: row.target for row in rows("admin")} == {
        "beta": "split api=95 canary=5",
        "api": "upstream api",
        "admin": "upstream admin",
        "old": "redirect 301 /new",
        "all": "respond 404",
        "ids": "upstream api",
    }


def test_a_listener_lists_its_own_routes_only() -> None:
    assert "admin" not in {row.route for row in rows("web")}
    assert "admin" in {row.route for row in rows("admin")}


def ask(
    path: str, *, host: str = "api.example.com", headers: dict[str, str] | None = None, query: str = "debug=1"
) -> Question:
    fields = Fields((name.encode(), value.encode()) for name, value in (headers or {}).items())
    return Question(
        listener="web", method=b"GET", host=host.encode(), path=path.encode(), fields=fields, query=query.encode()
    )


def whys(question: Question, routes: dict[str, Route] | None = None) -> dict[str, str]:
    """What each route's first place says."""
    table = RouteTable.build(routes or ROUTES, ["web", "admin"])
    return {finding.row.route: finding.why for finding in reversed(explain(table, question).findings)}


def test_the_route_that_takes_a_request_and_those_that_it_hides_are_told() -> None:
    table = RouteTable.build(ROUTES, ["web"])
    told = explain(table, ask("/v1/x", headers={"x-env": "beta", "x-user": "ann"}))
    assert isinstance(told.match, Found)
    assert told.match.name == "beta"
    assert [(finding.row.route, finding.verdict, finding.why) for finding in told.findings] == [
        (
            "beta",
            "takes",
            "the first that matches: exact host, prefix of 1 segment, methods, 2 headers, 1 query parameter",
        ),
        ("api", "hidden", "it would match, but beta comes first"),
        ("beta", "hidden", "it would match, but beta comes first"),
        ("old", "no", "the path is not /old"),
        ("all", "hidden", "it would match, but beta comes first"),
        ("ids", "no", "the path does not match ~/[0-9]+"),
    ]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        (ask("/v1", host="example.org"), "the host is not api.example.com"),
        (ask("/v2"), "the path is not under /v1/"),
        (ask("/v1"), "header x-env is absent"),
        (ask("/v1", headers={"x-env": "secret"}), "header x-env is not beta"),
        (ask("/v1", headers={"x-env": "beta"}), "header x-user is absent"),
        (ask("/v1", headers={"x-env": "beta", "x-user": ""}, query=""), "query debug is absent"),
        (ask("/v1", headers={"x-env": "beta", "x-user": ""}, query="debug=2"), "query debug is not ~1|true"),
    ],
)
def test_a_route_tells_the_first_thing_that_keeps_it_from_a_request(question: Question, why: str) -> None:
    assert whys(question)["beta"] == why


def test_a_route_tells_that_only_the_method_is_wrong() -> None:
    routes = {"a": Route(methods=("PUT", "POST"), upstream="u")}
    told = explain(RouteTable.build(routes, ["web"]), ask("/"))
    assert told.match == MethodNotAllowed((b"POST", b"PUT"))
    assert [finding.why for finding in told.findings] == ["the method is not PUT or POST"]


def test_a_path_too_long_for_a_regular_expression_is_told() -> None:
    routes = {"a": Route(path="~.*", upstream="u")}
    told = explain(RouteTable.build(routes, ["web"]), ask("/" + "x" * MAX_REGEX_PATH))
    assert isinstance(told.match, BadPath)
    assert told.match.reason is Reason.TARGET_TOO_LONG
    assert str(MAX_REGEX_PATH) in told.findings[0].why


def test_a_trap_is_explained_without_asking_any_route() -> None:
    told = explain(RouteTable.build(ROUTES, ["web"]), ask("/x/..%2Fadmin"))
    assert isinstance(told.match, BadPath)
    assert told.match.reason is Reason.BAD_REQUEST
    assert told.findings == ()


def test_a_path_with_two_meanings_is_explained_by_the_strict_one() -> None:
    routes = {"admin": Route(path="/admin", upstream="u"), "all": Route(upstream="u")}
    told = explain(RouteTable.build(routes, ["web"]), ask("//admin"))
    assert isinstance(told.match, BadPath)
    assert [(finding.row.route, finding.verdict) for finding in told.findings] == [("admin", "no"), ("all", "takes")]


def test_nothing_is_found_where_there_is_nothing() -> None:
    told = explain(RouteTable.build({}, ["web"]), ask("/"))
    assert told.match == NO_ROUTE
    assert told.findings == ()


def test_a_route_that_leads_nowhere_is_listed_all_the_same() -> None:
    (row,) = order(RouteTable.build({"a": Route()}, ["web"]))
    assert row.target == "nothing"
