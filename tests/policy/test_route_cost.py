"""What a match costs, counted in the interpreter's instructions: they do not depend on the machine or its load."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from tcpgate.codec.events import Fields
from tcpgate.config.schema import Route
from tcpgate.policy.path import match_path
from tcpgate.policy.route import NO_ROUTE, Found, RouteTable

if TYPE_CHECKING:
    from _typeshed import TraceFunction

FIELDS = Fields([(b"Host", b"h"), (b"X-Tenant", b"t7")])
KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "host": lambda number: {"hosts": (f"h{number}.example.com",)},
    "wildcard": lambda number: {"hosts": (f"*.w{number}.example.com",)},
    "prefix": lambda number: {"path": f"/v1/s{number}", "methods": ("GET",)},
    "exact": lambda number: {"path": f"=/v1/e{number}"},
    "header": lambda number: {"path": "/tenants", "headers": {"x-tenant": f"t{number}"}},
    "query": lambda number: {"path": "/search", "query": {"tenant": f"t{number}", "page": "*"}},
    "regex": lambda number: {"path": rf"~/r/r{number}/\d+"},
}
REQUESTS = {
    "host": (b"h7.example.com", b"/v1/x/y"),
    "wildcard": (b"a.b.w7.example.com", b"/v1/x/y"),
    "prefix": (b"h", b"/v1/s7/x"),
    "exact": (b"h", b"/v1/e7"),
    "header": (b"h", b"/tenants/x"),
    "query": (b"h", b"/search"),
    "regex": (b"h", b"/r/r7/42"),
}


def table(each: int) -> RouteTable:
    """A table with `each` routes of every kind."""
    routes = {
        f"{kind}{number}": Route(upstream="u", **make(number)) for kind, make in KINDS.items() for number in range(each)
    }
    return RouteTable.build(routes, ["web"])


@pytest.fixture(scope="module")
def small() -> RouteTable:
    return table(10)


@pytest.fixture(scope="module")
def large() -> RouteTable:
    return table(1500)


def instructions(call: Callable[[], object]) -> int:
    """Instructions that `call` executes in Python code. A dict lookup is one, whatever the size of the dict."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # what other tests left behind may end by Python code of its own
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def cost(routes: RouteTable, host: bytes, raw: bytes, expected: object) -> int:
    path = match_path(raw)
    assert path is not None
    found = routes.match("web", b"GET", host, path, FIELDS, b"tenant=t7&page=1")
    assert (found.name if isinstance(found, Found) else found) == expected
    return instructions(lambda: routes.match("web", b"GET", host, path, FIELDS, b"tenant=t7&page=1"))


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_routes_cost_no_more_per_request_than_seventy(
    kind: str, small: RouteTable, large: RouteTable
) -> None:
    host, path = REQUESTS[kind]
    assert cost(large, host, path, f"{kind}7") <= cost(small, host, path, f"{kind}7") * 1.02


def test_a_request_that_no_route_takes_costs_no_more_either(small: RouteTable, large: RouteTable) -> None:
    asked = (b"x.y.z.example.org", b"/nowhere/at/all", NO_ROUTE)
    assert cost(large, *asked) <= cost(small, *asked) * 1.02


def test_a_client_cannot_make_a_match_dear_with_a_long_host_or_path(large: RouteTable) -> None:
    plain = cost(large, b"a.b.c.w7.example.com", b"/a/b/c/d", "wildcard7")
    assert cost(large, b"a." * 100 + b"w7.example.com", b"/a" * 4000, "wildcard7") <= plain * 1.02


def test_a_bucket_scans_no_routes_that_others_hide() -> None:
    few, many = (
        {f"r{number:05}": Route(upstream="u", methods=("POST",)) for number in range(count)} for count in (1, 500)
    )
    end = {"z": Route(upstream="u", methods=("GET",))}
    costs = [cost(RouteTable.build(routes | end, ["web"]), b"h", b"/", "z") for routes in (few, many)]
    assert costs[0] == costs[1]
