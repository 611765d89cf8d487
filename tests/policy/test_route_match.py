"""Which route takes a request: the order of specificity, one rule at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tcpgate.codec.events import Fields
from tcpgate.config.schema import Route
from tcpgate.errors import Reason
from tcpgate.policy.path import match_path
from tcpgate.policy.route import NO_ROUTE, BadPath, Found, Match, MethodNotAllowed, RouteTable
from tcpgate.policy.rule import MAX_REGEX_VALUE


def table(routes: Mapping[str, Mapping[str, Any]], listeners: tuple[str, ...] = ("web",)) -> RouteTable:
    return RouteTable.build({name: Route(upstream="u", **spec) for name, spec in routes.items()}, listeners)


def ask(
    routes: RouteTable,
    path: str = "/",
    *,
    method: str = "GET",
    host: str = "h",
    listener: str = "web",
    headers: Mapping[str, str] | None = None,
) -> Match:
    raw, mark, query = path.encode().partition(b"?")
    normal = match_path(raw)
    assert normal is not None
    fields = Fields((name.encode(), value.encode()) for name, value in (headers or {}).items())
    return routes.match(listener, method.encode(), host.encode(), normal, fields, query if mark else None)


def name(match: Match) -> str:
    """The route's name; for anything else its type's."""
    return match.name if isinstance(match, Found) else type(match).__name__


# -- hosts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "route"),
    [
        ("api.example.com", "exact"),
        ("www.example.com", "below"),
        ("a.b.example.com", "below"),
        ("x.deep.example.com", "deeper"),
        ("deep.example.com", "below"),
        ("example.com", "any"),
        ("badexample.com", "any"),
        ("", "any"),
        ("[2001:db8::1]", "v6"),
        ("192.0.2.1", "v4"),
        (".example.com", "below"),
    ],
)
def test_the_most_specific_host_goes_first(host: str, route: str) -> None:
    routes = table({
        "any": {},
        "below": {"hosts": ("*.example.com",)},
        "deeper": {"hosts": ("*.deep.example.com",)},
        "exact": {"hosts": ("API.example.com",)},
        "v6": {"hosts": ("[2001:DB8:0::1]",)},
        "v4": {"hosts": ("192.0.2.1",)},
    })  # fmt: skip
    assert name(ask(routes, host=host)) == route


def test_a_wildcard_has_any_depth_below_it_but_not_its_apex() -> None:
    routes = table({"below": {"hosts": ("*.example.com",)}})
    assert name(ask(routes, host="a.b.c.d.e.example.com")) == "below"
    assert ask(routes, host="example.com") == NO_ROUTE
    assert ask(routes, host="com") == NO_ROUTE


def test_a_host_is_looked_at_before_the_path() -> None:
    routes = table({"host": {"hosts": ("h",), "path": "/"}, "path": {"path": "=/a/b"}})
    assert name(ask(routes, "/a/b")) == "host"


def test_what_the_routes_of_a_host_do_not_take_falls_through_to_less_specific_hosts() -> None:
    routes = table({
        "exact": {"hosts": ("a.example.com",), "path": "/api"},
        "below": {"hosts": ("*.example.com",), "path": "/web"},
        "any": {"path": "/all"},
    })  # fmt: skip
    assert name(ask(routes, "/api", host="a.example.com")) == "exact"
    assert name(ask(routes, "/web", host="a.example.com")) == "below"
    assert name(ask(routes, "/all", host="a.example.com")) == "any"
    assert ask(routes, "/other", host="a.example.com") == NO_ROUTE


def test_a_route_with_several_hosts_is_found_by_each() -> None:
    routes = table({"both": {"hosts": ("a", "*.b", "A")}})
    assert [name(ask(routes, host=host)) for host in ("a", "x.b", "b")] == ["both", "both", "NoRoute"]


# -- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/x", "/api/x/y", "/%61pi", "/x/../api"])
def test_a_prefix_covers_whole_segments(path: str) -> None:
    assert name(ask(table({"api": {"path": "/api"}}), path)) == "api"
    assert name(ask(table({"api": {"path": "/api/"}}), path)) == "api"


@pytest.mark.parametrize("path", ["/", "/apix", "/ap", "/API", "/x/api", "/api%20", "/api-"])
def test_a_prefix_covers_nothing_else(path: str) -> None:
    assert ask(table({"api": {"path": "/api"}}), path) == NO_ROUTE


@pytest.mark.parametrize("path", ["/", "/a", "/a/b/c", "*", "/.", "//"])
def test_the_root_covers_every_path(path: str) -> None:
    assert name(ask(table({"all": {}}), path)) == "all"


def test_an_exact_path_is_exactly_that() -> None:
    routes = table({"a": {"path": "=/a"}, "slash": {"path": "=/a/"}, "root": {"path": "=/"}})
    assert [name(ask(routes, path)) for path in ("/a", "/a/", "/", "/a/b", "*")] == [
        *("a", "slash", "root", "NoRoute", "NoRoute")
    ]


def test_exact_goes_before_prefix_before_regular_expression() -> None:
    routes = table({
        "exact": {"path": "=/a/b"},
        "long": {"path": "/a/b"},
        "short": {"path": "/a"},
        "regex": {"path": "~/.*"},
    })  # fmt: skip
    found = [name(ask(routes, path)) for path in ("/a/b", "/a/b/", "/a/c", "/x")]
    assert found == ["exact", "long", "short", "regex"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        (r"/v\d+/users", "/v12/users", True),
        (r"/v\d+/users", "/v12/users/7", False),
        (r"/v\d+/users", "/x/v12/users", False),
        (r"/api/v1/.*", "/api/v1/", True),
        (r"/api/v1/?x", "/api/v1x", True),
        (r"/api/v1+", "/api/v111", True),
        (r"/a|/b", "/b", True),
        (r"(?i)/api/x", "/API/X", True),
        (r"/a.b", "/a%0Ab", True),
        (r"/café", "/caf%c3%a9", True),
        (r".*\.php", "/x/y.php", True),
        (r"/a//b", "/a/b", False),
    ],
)
def test_a_regular_expression_must_match_the_whole_path(pattern: str, path: str, matches: bool) -> None:
    assert (name(ask(table({"r": {"path": "~" + pattern}}), path)) == "r") is matches


def test_the_longest_regular_expression_goes_first_wherever_its_literal_part_ends() -> None:
    routes = table({
        "a": {"path": "~/.*"},
        "b": {"path": "~/api/x.*"},
        "c": {"path": "~/api/[a-z0-9]*"},
        "d": {"path": "~/(api)/xy.*"},
    })  # fmt: skip
    assert [name(ask(routes, path)) for path in ("/api/xyz", "/api/xaz!", "/q")] == ["c", "b", "a"]


def test_a_regular_expression_does_not_look_at_a_huge_path_and_nobody_gets_around_it() -> None:
    routes = table({"regex": {"hosts": ("h",), "path": "~/admin/.*"}, "all": {}})
    assert name(ask(routes, "/admin/" + "x" * 8000)) == "regex"
    match = ask(routes, "/admin/" + "x" * 9000)
    assert isinstance(match, BadPath)
    assert match.reason is Reason.TARGET_TOO_LONG
    assert name(ask(routes, "/other/" + "x" * 9000)) == "all"


# -- paths that can be read in several ways -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/admin%2f", "/admin%2Fx", "//admin", "/a/..//admin", "/admin;x", "/admin;x/y", "/%2561dmin"),
        *("/admin%5Cx", "/;/admin", "/admin%3Fx", "/admin%23", "/admin%3bx", "/x;/../;y/admin"),
    ],
)
def test_no_spelling_leads_around_a_guarded_prefix(path: str) -> None:
    routes = table({"guarded": {"path": "/admin", "filters": ("keys",)}, "open": {"path": "/"}})
    match = ask(routes, path)
    assert isinstance(match, BadPath)
    assert match.reason is Reason.BAD_REQUEST
    assert "route open" in match.detail
    assert "route guarded" in match.detail


@pytest.mark.parametrize("path", ["/public//admin", "/public%2F", "/public;x", "//public"])
def test_a_path_that_some_read_as_nobody_s_is_not_served(path: str) -> None:
    routes = table({"public": {"path": "/public/admin"}, "file": {"path": "=/public%20x"}, "p": {"path": "=/public"}})
    match = ask(routes, path)
    assert isinstance(match, BadPath) or match == NO_ROUTE


def test_a_path_that_leads_to_one_route_only_by_the_strict_reading_is_told_so() -> None:
    routes = table({"only": {"path": "~/x//y"}})
    match = ask(routes, "/x//y")
    assert isinstance(match, BadPath)
    assert "to none" in match.detail


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/api/v4/projects/group%2Fproject",
            "/api/fetch/https://example.com//x",
            "/api/a;v=1/b",
            "/api/c%23",
            "/api/%2F/q",
        ),
        *("/api/100%25", "/api/What%3F", "/api/%2541"),
    ],
)
def test_a_path_that_leads_to_one_route_in_every_reading_is_served(path: str) -> None:
    assert name(ask(table({"api": {"path": "/api"}, "all": {}}), path)) == "api"


def test_a_path_that_no_route_takes_as_it_stands_is_not_found_whatever_others_read() -> None:
    routes = table({"admin": {"path": "/admin"}})
    assert ask(routes, "//admin") == NO_ROUTE
    assert ask(routes, "/x%2Fy") == NO_ROUTE


def test_escapes_of_delimiters_mean_the_same_as_the_delimiters() -> None:
    routes = table({"scope": {"path": "/@scope"}, "all": {}})
    assert name(ask(routes, "/%40scope/pkg")) == "scope"


@pytest.mark.parametrize("path", ["/café/x", "/caf%C3%A9", "/caf%c3%a9/x", "/my files", "/my%20files"])
def test_a_route_may_be_written_as_people_write_it(path: str) -> None:
    routes = table({"cafe": {"path": "/café"}, "files": {"path": "/my files"}})
    sent = path.replace("é", "%C3%A9").replace(" ", "%20")
    assert name(ask(routes, sent)) in ("cafe", "files")


# -- methods, header fields, query ----------------------------------------------------------------------------------


def test_a_route_with_methods_goes_before_one_without() -> None:
    routes = table({"a": {}, "b": {"methods": ("POST", "PUT")}})
    assert name(ask(routes, method="POST")) == "b"
    assert name(ask(routes, method="PUT")) == "b"
    assert name(ask(routes, method="GET")) == "a"


def test_get_does_not_imply_head_and_methods_are_case_sensitive() -> None:
    routes = table({"a": {"methods": ("GET",)}})
    assert ask(routes, method="HEAD") == MethodNotAllowed((b"GET",))
    assert ask(routes, method="get") == MethodNotAllowed((b"GET",))


def test_the_methods_allowed_are_those_of_every_route_that_would_match_with_another_method() -> None:
    routes = table({
        "exact": {"path": "=/a", "methods": ("PUT",)},
        "prefix": {"path": "/a", "methods": ("GET", "POST")},
        "host": {"hosts": ("h",), "methods": ("DELETE",)},
        "other host": {"hosts": ("g",), "methods": ("PATCH",)},
        "other path": {"path": "/b", "methods": ("PATCH",)},
        "regex": {"path": "~/a.*", "methods": ("QUERY",)},
        "header": {"path": "/a", "methods": ("LOCK",), "headers": {"x": "1"}},
        "other header": {"path": "/a", "methods": ("PATCH",), "headers": {"x": "2"}},
    })  # fmt: skip
    match = ask(routes, "/a", method="TRACE", headers={"x": "1"})
    assert match == MethodNotAllowed((b"DELETE", b"GET", b"LOCK", b"POST", b"PUT", b"QUERY"))


def test_a_method_falls_through_to_a_route_that_takes_it() -> None:
    routes = table({"api": {"path": "/api", "methods": ("POST",)}, "all": {}})
    assert name(ask(routes, "/api", method="GET")) == "all"


def test_methods_weigh_more_than_fields_and_fields_more_than_the_query() -> None:
    routes = table({
        "method": {"methods": ("GET",)},
        "two fields": {"headers": {"x": "1", "y": "1"}},
        "field": {"headers": {"x": "1"}},
        "two parameters": {"query": {"a": "1", "b": "1"}},
        "parameter": {"query": {"a": "1"}},
        "none": {},
    })  # fmt: skip
    both = {"x": "1", "y": "1"}
    assert name(ask(routes, "/?a=1&b=1", headers=both)) == "method"
    assert name(ask(routes, "/?a=1&b=1", headers=both, method="PUT")) == "two fields"
    assert name(ask(routes, "/?a=1&b=1", headers={"x": "1"}, method="PUT")) == "field"
    assert name(ask(routes, "/?b=1&a=1", method="PUT")) == "two parameters"
    assert name(ask(routes, "/?a=1", method="PUT")) == "parameter"
    assert name(ask(routes, "/?a=2", method="PUT")) == "none"


def test_an_exact_value_goes_before_a_regular_expression_before_presence() -> None:
    routes = table({
        "a present": {"headers": {"x-env": "*"}},
        "b regex": {"headers": {"x-env": "~be.*"}},
        "c exact": {"headers": {"X-Env": "beta"}},
    })  # fmt: skip
    found = [name(ask(routes, headers={"X-ENV": value})) for value in ("beta", "bela", "prod", "")]
    assert found == ["c exact", "b regex", "a present", "a present"]
    assert ask(routes) == NO_ROUTE


def test_names_decide_between_routes_that_are_as_specific() -> None:
    routes = table({"b": {"headers": {"x": "1"}}, "a": {"headers": {"y": "1"}}, "c": {"headers": {"z": "~1"}}})
    assert name(ask(routes, headers={"x": "1", "y": "1"})) == "a"
    assert name(ask(routes, headers={"x": "1", "z": "1"})) == "b"
    assert name(ask(routes, headers={"z": "1"})) == "c"


def test_every_condition_must_hold() -> None:
    routes = table({"a": {"headers": {"x": "1", "y": "~[0-9]+"}, "query": {"q": "*", "r": "~a|b"}}})
    both = {"x": "1", "y": "42"}
    assert name(ask(routes, "/?q&r=a", headers=both)) == "a"
    for path, headers in [("/?q&r=c", both), ("/?r=a", both), ("/?q&r=a", {"x": "1"}), ("/?q&r=a", both | {"y": "n"})]:
        assert ask(routes, path, headers=headers) == NO_ROUTE


def test_several_lines_of_a_field_are_one_value() -> None:
    routes = table({"a": {"headers": {"x": "1, 2"}}})
    normal = match_path(b"/")
    assert normal is not None
    lines = Fields([(b"X", b"1"), (b"x", b"2")])
    assert name(routes.match("web", b"GET", b"h", normal, lines)) == "a"
    assert name(routes.match("web", b"GET", b"h", normal, Fields([(b"X", b"1")]))) == "NoRoute"


def test_a_query_is_decoded_and_the_first_of_equal_names_counts() -> None:
    routes = table({"a": {"query": {"name": "a b&c", "é": "1"}}})
    assert name(ask(routes, "/?%6eame=a+b%26c&%c3%a9=1&name=other")) == "a"
    assert name(ask(routes, "/?name=other&name=a+b%26c&%c3%a9=1")) == "NoRoute"
    assert name(ask(routes, "/?&&=&name=a%20b%26c&%C3%A9=1")) == "a"


def test_a_huge_value_matches_no_regular_expression() -> None:
    routes = table({"a": {"headers": {"x": "~a*"}}, "b": {}})
    assert name(ask(routes, headers={"x": "a" * MAX_REGEX_VALUE})) == "a"
    assert name(ask(routes, headers={"x": "a" * (MAX_REGEX_VALUE + 1)})) == "b"


def test_a_route_hidden_by_a_more_specific_one_is_found_once_that_does_not_match() -> None:
    routes = table({
        "a": {"methods": ("GET", "PUT"), "headers": {"x": "1"}},
        "b": {"methods": ("GET",), "headers": {"x": "1"}},
        "c": {"methods": ("GET", "POST"), "headers": {"x": "1"}},
        "d": {"headers": {"x": "1"}},
        "e": {"headers": {"x": "1"}},
    })  # fmt: skip
    one = {"x": "1"}
    assert [name(ask(routes, method=m, headers=one)) for m in ("GET", "PUT", "POST", "HEAD")] == ["a", "a", "c", "d"]


# -- listeners ------------------------------------------------------------------------------------------------------


def test_a_route_is_on_the_listeners_it_names_or_on_every_one() -> None:
    routes = table({"web": {"listeners": ("web",)}, "all": {"path": "/all"}}, ("web", "admin", "other"))
    assert name(ask(routes, listener="web")) == "web"
    assert ask(routes, listener="admin") == NO_ROUTE
    assert [name(ask(routes, "/all", listener=one)) for one in ("web", "admin", "other")] == ["all"] * 3


def test_a_table_without_routes_answers_too() -> None:
    assert ask(table({})) == NO_ROUTE


def test_a_found_route_comes_with_its_spec() -> None:
    match = ask(table({"a": {"filters": ("keys",)}}))
    assert isinstance(match, Found)
    assert match.spec == Route(upstream="u", filters=("keys",))


# -- what no table is built from ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"path": "api"}, "is not a path"),
        ({"path": "=api"}, "is not a path"),
        ({"path": ""}, "is not a path"),
        ({"path": "/a%zz"}, "is not a path"),
        ({"path": "/x/..;/y"}, "is not a path"),
        ({"path": "/a//b"}, "read in different ways"),
        ({"path": "/a;b"}, "read in different ways"),
        ({"path": "=/a%2Fb"}, "read in different ways"),
        ({"path": "/a%3Fb"}, "read in different ways"),
        ({"path": "~("}, "is not a regular expression"),
        ({"hosts": ("a:80",)}, "has a port"),
        ({"hosts": ("a b",)}, "is not a host"),
        ({"hosts": ("",)}, "is not a host"),
        ({"hosts": ("*.",)}, "is not a host"),
        ({"hosts": ("a.*.b",)}, "is not a host"),
        ({"hosts": ("*.[::1]",)}, "is not a host"),
        ({"hosts": ("bücher.example",)}, "'xn--bcher-kva.example'"),
        ({"hosts": ("bü..example",)}, "'xn--...'"),
        ({"methods": ("get",)}, "GET"),
        ({"methods": ("G T",)}, "not a token"),
        ({"headers": {"x y": "1"}}, "not a token"),
        ({"headers": {"x": "~["}}, "is not a regular expression"),
        ({"query": {"x": "~["}}, "is not a regular expression"),
    ],
)
def test_a_route_that_cannot_be_meant_is_no_part_of_a_table(spec: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"^routes\.bad: ") as caught:
        table({"good": {}, "bad": spec})
    assert text in str(caught.value)
