"""A snapshot is what its config says, and shares with the one before whatever has not changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate import kinds
from tcpgate.config import schema
from tcpgate.filters.base import Filter
from tcpgate.state.build import build
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats.page import Layout
from tcpgate.units import Networks, Seconds, parse_network

NAMES = ("a", "b", "c")
LISTENERS = st.sampled_from(
    [
        schema.Listener(bind=("127.0.0.1:1",)),
        schema.Listener(bind=("127.0.0.1:2",)),
        schema.Listener(bind=("127.0.0.1:1",), max_connections=7),
        schema.Listener(bind=("127.0.0.1:3",), protocol="tcp", upstream="u"),
    ]
)
FILTERS: st.SearchStrategy[schema.Filter] = st.sampled_from(
    [
        schema.HeadersFilter(set={"x": "1"}),
        schema.HeadersFilter(set={"x": "2"}),
        schema.AccessFilter(deny=Networks((parse_network("10.0.0.0/8"),))),
    ]
)
TARGETS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"upstream": "u"},
        {"upstream": "v"},
        {"split": {"u": 1, "v": 2}},
        {"split": {"u": 2, "v": 1}},
        {"respond": schema.Respond()},
    ]
)


@st.composite
def configs(draw: st.DrawFn) -> schema.Config:
    """Small configs that often have something in common."""
    filters = draw(st.dictionaries(st.sampled_from(NAMES), FILTERS))
    routes = {
        name: schema.Route(
            path=f"/{draw(st.sampled_from(NAMES))}",
            filters=tuple(draw(st.lists(st.sampled_from(sorted(filters)), max_size=2, unique=True))) if filters else (),
            **draw(TARGETS),
        )
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    endpoint = schema.Endpoint(address="10.0.0.1:1", weight=draw(st.integers(1, 2)))
    return schema.Config(
        listeners=draw(st.dictionaries(st.sampled_from(NAMES), LISTENERS)),
        routes=routes,
        filters=filters,
        upstreams={name: schema.Upstream(endpoints=(endpoint,)) for name in ("u", "v")},
    )


def compiled(config: schema.Config, number: int, previous: Snapshot | None, layout: Layout) -> Snapshot:
    for kind, names in (("listener", config.listeners), ("route", config.routes)):
        for name in names:
            layout.reserve(kind, name)
    return build(config, number, layout.blocks, kinds.make_filter, previous)


def used(snapshot: Snapshot) -> Mapping[str, Filter]:
    return {name: filter_ for plan in snapshot.routes.values() for name, filter_ in plan.filters}


@given(configs())
def test_a_snapshot_has_a_plan_for_each_name_of_its_config(config: schema.Config) -> None:
    layout = Layout()
    snapshot = compiled(config, 7, None, layout)
    assert (snapshot.generation, snapshot.config) == (7, config)
    assert {name: plan.spec for name, plan in snapshot.listeners.items()} == config.listeners
    assert {name: plan.spec for name, plan in snapshot.routes.items()} == config.routes
    for name, route in snapshot.routes.items():
        assert route.block == layout.blocks[f"route/{name}"]
        assert tuple(used_name for used_name, _ in route.filters) == route.spec.filters
        assert (route.split is not None) == bool(route.spec.split)
    for name, listener in snapshot.listeners.items():
        assert listener.block == layout.blocks[f"listener/{name}"]


@given(configs(), configs())
def test_what_is_the_same_is_the_same_object_and_what_differs_is_not(old: schema.Config, new: schema.Config) -> None:
    layout = Layout()
    before = compiled(old, 1, None, layout)
    after = compiled(new, 2, before, layout)
    for name, plan in after.listeners.items():
        same = old.listeners.get(name) == new.listeners[name]
        assert (before.listeners.get(name) is plan) == same
    for name, route in after.routes.items():
        same = old.routes.get(name) == new.routes[name] and all(
            old.filters[one] == new.filters[one] for one in route.spec.filters
        )
        assert (before.routes.get(name) is route) == same
    for name, filter_ in used(after).items():
        if name in used(before):
            assert (used(before)[name] is filter_) == (old.filters[name] == new.filters[name])
    assert used(after).keys() <= new.filters.keys()
    http_before = [name for name, one in old.listeners.items() if one.protocol == "http"]
    http_after = [name for name, one in new.listeners.items() if one.protocol == "http"]
    assert (before.table is after.table) == (old.routes == new.routes and http_before == http_after)


@given(st.lists(configs(), min_size=2, max_size=5))
def test_a_chain_of_reloads_ends_where_a_fresh_start_would(chain: list[schema.Config]) -> None:
    layout, snapshot = Layout(), None
    for number, config in enumerate(chain, 1):
        snapshot = compiled(config, number, snapshot, layout)
    assert snapshot is not None
    fresh = compiled(chain[-1], 1, None, layout)
    assert {name: (plan.spec, plan.block) for name, plan in snapshot.listeners.items()} == {
        name: (plan.spec, plan.block) for name, plan in fresh.listeners.items()
    }
    for name, route in fresh.routes.items():
        kept = snapshot.routes[name]
        assert (kept.spec, kept.block) == (route.spec, route.block)
        assert [(one, type(two)) for one, two in kept.filters] == [(one, type(two)) for one, two in route.filters]


def test_two_routes_share_one_filter_so_what_it_learns_is_one() -> None:
    shared = schema.HeadersFilter(set={"x": "1"})
    config = schema.Config(
        listeners={"web": schema.Listener(bind=("127.0.0.1:1",))},
        filters={"f": shared},
        routes={name: schema.Route(path=f"/{name}", filters=("f",), respond=schema.Respond()) for name in NAMES},
    )
    snapshot = compiled(config, 1, None, Layout())
    assert len({id(filter_) for plan in snapshot.routes.values() for _, filter_ in plan.filters}) == 1


def test_a_config_that_no_check_has_passed_is_an_error_and_not_half_a_snapshot() -> None:
    dangling = schema.Config(routes={"a": schema.Route(filters=("nowhere",), respond=schema.Respond())})
    with pytest.raises(KeyError):
        compiled(dangling, 1, None, Layout())


def test_a_series_without_slots_is_an_error() -> None:
    config = schema.Config(listeners={"web": schema.Listener(bind=("127.0.0.1:1",))})
    with pytest.raises(KeyError):
        build(config, 1, {}, kinds.make_filter, None)


def test_a_reload_of_one_route_among_thousands_makes_one_plan() -> None:
    layout = Layout()
    routes = {f"r{n}": schema.Route(path=f"/{n}", upstream="u") for n in range(2000)}
    old = schema.Config(
        listeners={"web": schema.Listener(bind=("127.0.0.1:1",))},
        routes=routes,
        upstreams={"u": schema.Upstream(endpoints=(schema.Endpoint(address="10.0.0.1:1"),))},
    )
    changed = attrs.evolve(routes["r7"], timeout=Seconds(1.0))
    before = compiled(old, 1, None, layout)
    after = compiled(attrs.evolve(old, routes={**routes, "r7": changed}), 2, before, layout)
    assert [name for name in after.routes if after.routes[name] is not before.routes[name]] == ["r7"]
