"""Snapshots: built from a config, reusing every plan that still holds."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate import kinds
from tcpgate.codec.events import NO_FIELDS
from tcpgate.config import schema
from tcpgate.policy.path import match_path
from tcpgate.policy.route import Found
from tcpgate.state.build import build
from tcpgate.state.snapshot import Snapshot
from tcpgate.stats.page import Layout
from tcpgate.units import Networks
from tests.state.world import reserve

LAYOUT = Layout()


def built(config: schema.Config, previous: Snapshot | None = None) -> Snapshot:
    reserve(LAYOUT, config)
    number = previous.generation + 1 if previous else 1
    return build(config, number, LAYOUT.blocks, kinds.make_filter, previous)


def config(**changes: Any) -> schema.Config:  # one of the config's tables, by name
    base = schema.Config(
        listeners={"web": schema.Listener(bind=("127.0.0.1:80",)), "db": schema.Listener(bind=("127.0.0.1:81",))},
        routes={
            "a": schema.Route(path="/a", upstream="x", filters=("mark", "inside")),
            "b": schema.Route(path="/b", split={"x": 1, "y": 1}, filters=("mark",)),
            "c": schema.Route(path="/c", respond=schema.Respond()),
        },
        filters={"mark": schema.HeadersFilter(set={"x-mark": "1"}), "inside": schema.AccessFilter()},
    )
    return attrs.evolve(base, **changes)


def test_a_snapshot_has_a_plan_for_everything_with_what_it_names_at_hand() -> None:
    snapshot = built(config())
    assert [name for name, _ in snapshot.routes["a"].filters] == ["mark", "inside"]
    assert snapshot.routes["a"].filters[0][1] is snapshot.routes["b"].filters[0][1]
    assert snapshot.routes["b"].split is not None
    assert snapshot.routes["c"].split is None
    path = match_path(b"/b/x")
    assert path is not None
    found = snapshot.table.match("web", b"GET", b"any", path, NO_FIELDS)
    assert isinstance(found, Found)
    assert found.name == "b"
    blocks = [plan.block for plan in snapshot.listeners.values()] + [plan.block for plan in snapshot.routes.values()]
    assert len(set(blocks)) == len(blocks)


def test_the_same_config_again_is_made_of_the_same_objects() -> None:
    first = built(config())
    second = built(config(), first)
    assert second.generation == 2
    assert second.table is first.table
    for kind in ("listeners", "routes"):
        for name, plan in getattr(first, kind).items():
            assert getattr(second, kind)[name] is plan


def test_only_what_changed_and_what_names_it_is_built_anew() -> None:
    first = built(config())
    filters = {**first.config.filters, "inside": schema.AccessFilter(deny=Networks())}
    changed = {**filters, "mark": schema.HeadersFilter(set={"x-mark": "2"})}
    second = built(config(filters=filters), first)
    assert second.routes["a"] is first.routes["a"]  # equal specs are no change, whatever object they are
    third = built(config(filters=changed), second)
    assert third.routes["a"] is not first.routes["a"]
    assert third.routes["b"] is not first.routes["b"]
    assert third.routes["c"] is first.routes["c"]
    assert third.routes["a"].filters[1][1] is first.routes["a"].filters[1][1]  # "inside" is as it was
    assert third.table is first.table  # no route has changed


def test_a_change_of_listeners_or_routes_makes_another_table() -> None:
    first = built(config())
    routes = {**first.config.routes, "d": schema.Route(path="/d", upstream="x")}
    assert built(config(routes=routes), first).table is not first.table
    tcp = {
        "web": first.config.listeners["web"],
        "db": schema.Listener(bind=("127.0.0.1:81",), protocol="tcp", upstream="x"),
    }
    assert built(config(listeners=tcp), first).table is not first.table


def test_a_config_that_nobody_checked_is_refused() -> None:
    with pytest.raises(KeyError):
        built(config(filters={}))


names = st.sampled_from(["a", "b", "c", "d"])
paths = st.sampled_from(["/", "/one", "=/two"])
routes = st.dictionaries(names, st.builds(schema.Route, path=paths, upstream=st.just("x")), max_size=4)
listeners = st.dictionaries(
    names, st.builds(schema.Listener, bind=st.tuples(st.sampled_from(["127.0.0.1:1", "127.0.0.1:2"]))), max_size=3
)


@given(st.lists(st.tuples(listeners, routes), min_size=2, max_size=6))
def test_an_unchanged_plan_is_the_same_object_over_any_story(
    story: list[tuple[dict[str, schema.Listener], dict[str, schema.Route]]],
) -> None:
    previous: Snapshot | None = None
    for wanted_listeners, wanted_routes in story:
        snapshot = built(schema.Config(listeners=wanted_listeners, routes=wanted_routes), previous)
        if previous is not None:
            for kind in ("listeners", "routes"):
                for name, plan in getattr(snapshot, kind).items():
                    old = getattr(previous, kind).get(name)
                    assert (plan is old) is (old is not None and old.spec == plan.spec)
        previous = snapshot
