"""What a reload would touch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st

from tcpgate.config import schema, validators
from tcpgate.config.diff import NEEDS_RESTART, Diff, Tables, diff
from tcpgate.units import Seconds

Configs = st.SearchStrategy[schema.Config]


def config(**tables: Any) -> schema.Config:
    """A config of a listener, a route and an upstream, but for what the test gives."""
    return schema.Config(
        **{
            "listeners": {"web": schema.Listener(bind=("0.0.0.0:80",))},
            "routes": {"all": schema.Route(upstream="api")},
            "upstreams": {"api": upstream("a:1", "b:1")},
            **tables,
        }
    )


def upstream(*addresses: str, **keys: Any) -> schema.Upstream:
    """An upstream with these endpoints."""
    return schema.Upstream(endpoints=tuple(schema.Endpoint(address=address) for address in addresses), **keys)


# -- properties -----------------------------------------------------------------------------------------------------


@hypothesis.given(st.data())
def test_equal_configs_differ_in_nothing(configs: Configs, data: st.DataObject) -> None:
    one = data.draw(configs)
    same = attrs.evolve(one)
    assert diff(one, same).empty
    assert diff(one, same).describe() == []
    assert diff(one, same).as_json()["empty"] is True


def applied(names: Mapping[str, Any], tables: Tables[Any]) -> set[str]:
    """The names after the change."""
    assert not set(tables.added) & set(names)
    return (set(names) - set(tables.removed)) | set(tables.added)


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_a_difference_leads_from_the_old_names_to_the_new_ones(configs: Configs, data: st.DataObject) -> None:
    old, new = data.draw(configs), data.draw(configs)
    change = diff(old, new)
    assert change.empty == (old == new)
    assert bool(change.describe()) == (old != new)
    for kind in ("listeners", "routes", "filters", "upstreams"):
        before, after, tables = getattr(old, kind), getattr(new, kind), getattr(change, kind)
        assert applied(before, tables) == set(after)
        assert {table.name for table in tables.changed} == {
            name for name in before.keys() & after.keys() if before[name] != after[name]
        }
    for listener in change.listeners.changed:
        binds = (set(old.listeners[listener.name].bind) - set(listener.unbound)) | set(listener.bound)
        assert binds == set(new.listeners[listener.name].bind)
    for one in change.upstreams.changed:
        before = {endpoint.address: endpoint for endpoint in old.upstreams[one.name].endpoints}
        after = {endpoint.address: endpoint for endpoint in new.upstreams[one.name].endpoints}
        assert applied(before, Tables(added=one.added, removed=one.removed, changed=())) == set(after)
        assert {table.name for table in one.changed} == {
            address for address in before.keys() & after.keys() if before[address] != after[address]
        }


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_every_changed_table_says_what_changed_and_all_of_it_is_json(configs: Configs, data: st.DataObject) -> None:
    old, new = data.draw(configs), data.draw(configs)
    change = diff(old, new)
    for tables in (change.routes, change.filters):
        assert all(table.changes for table in tables.changed)
        assert all(one.old != one.new for table in tables.changed for one in table.changes)
    assert json.loads(json.dumps(change.as_json())) is not None
    assert all(line[0] in "+-~" and "\n" not in line for line in change.describe())


# -- listeners ------------------------------------------------------------------------------------------------------


def lines(old: schema.Config, new: schema.Config) -> list[str]:
    """What is told of the way from `old` to `new`."""
    return diff(old, new).describe()


def test_listeners_come_and_go() -> None:
    new = config(listeners={"tls": schema.Listener(bind=("0.0.0.0:443", "[::]:443"))})
    assert lines(config(), new) == [
        "+ listener tls: listens on 0.0.0.0:443, [::]:443",
        "- listener web: no longer on 0.0.0.0:80; open connections have 30s to finish",
    ]


def test_a_listener_that_moves_tells_its_sockets_apart_from_its_keys() -> None:
    moved = schema.Listener(bind=("[::]:80",), max_connections=5, limits=schema.HttpLimits(headers=7))
    change = diff(config(), config(listeners={"web": moved}))
    (web,) = change.listeners.changed
    assert (web.bound, web.unbound) == (("[::]:80",), ("0.0.0.0:80",))
    assert [(one.key, one.old, one.new) for one in web.changes] == [
        ("max_connections", 10000, 5),
        ("limits.headers", 100, 7),
    ]
    assert web.touches("limits")
    assert not web.touches("timeouts")
    assert change.describe() == [
        "~ listener web: listens on [::]:80 too; no longer on 0.0.0.0:80, open connections stay; "
        "max_connections 10000 -> 5, limits.headers 100 -> 7, for new connections"
    ]


def test_a_listener_that_changes_its_protocol_drains() -> None:
    new = config(
        gateway=schema.Gateway(drain=Seconds(5.0)),
        listeners={"web": schema.Listener(bind=("0.0.0.0:80",), protocol="tcp", upstream="api")},
    )
    assert lines(config(), new) == [
        "~ gateway.drain 30s -> 5s",
        "~ listener web: protocol http -> tcp, upstream (not set) -> api, open connections have 5s to finish",
    ]


def test_another_order_of_addresses_is_a_change_but_moves_no_socket() -> None:
    old = config(listeners={"web": schema.Listener(bind=("0.0.0.0:80", "[::]:80"))})
    new = config(listeners={"web": schema.Listener(bind=("[::]:80", "0.0.0.0:80"))})
    (web,) = diff(old, new).listeners.changed
    assert (web.bound, web.unbound) == ((), ())
    assert [one.key for one in web.changes] == ["bind"]


# -- upstreams ------------------------------------------------------------------------------------------------------


def test_endpoints_are_compared_by_address() -> None:
    endpoints = (schema.Endpoint(address="c:1"), schema.Endpoint(address="b:1", weight=3, tier=1))
    new = config(upstreams={"api": schema.Upstream(endpoints=endpoints)})
    assert lines(config(), new) == [
        "+ upstream api: endpoint c:1",
        "- upstream api: endpoint a:1: no new work, what is open finishes, idle connections close, probes end",
        "~ upstream api: endpoint b:1: weight 1 -> 3, tier 0 -> 1; its connections stay",
    ]


def test_another_order_of_endpoints_is_a_change() -> None:
    (api,) = diff(config(), config(upstreams={"api": upstream("b:1", "a:1")})).upstreams.changed
    assert (api.added, api.removed, api.changed) == ((), (), ())
    assert [one.key for one in api.changes] == ["endpoints"]


def test_upstreams_come_and_go() -> None:
    new = config(upstreams={"new": upstream("c:1", "d:1", health=schema.Health(tcp=True))})
    assert lines(config(), new) == [
        "+ upstream new: c:1, d:1; probed before it takes traffic",
        "- upstream api: no new work, what is open finishes, idle connections close, probes end",
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"balance": "p2c"}, "balance round_robin -> p2c; picks begin afresh, connections stay"),
        ({"pool": schema.Pool(idle=8)}, "pool.idle 64 -> 8; open connections stay"),
        ({"retry": schema.RetryPolicy(attempts=1)}, "retry.attempts 3 -> 1, for new requests"),
        ({"timeouts": schema.UpstreamTimeouts(connect=Seconds(0.5))}, "timeouts.connect 3s -> 500ms, for new attempts"),
        (
            {"passive": schema.Passive(enabled=False)},
            "passive.enabled true -> false; what is ejected stays so for its time",
        ),
        ({"health": schema.Health(tcp=True)}, "health (not set) -> (set); probes follow it from now on, states stay"),
        ({"bounded_load": 1.5}, "bounded_load (not set) -> 1.5"),
    ],
)
def test_each_key_of_an_upstream_tells_its_effect(keys: dict[str, Any], line: str) -> None:
    new = config(upstreams={"api": upstream("a:1", "b:1", **keys)})
    assert lines(config(), new) == [f"~ upstream api: {line}"]


# -- the rest -------------------------------------------------------------------------------------------------------


def test_routes_and_filters_come_go_and_change() -> None:
    old = config(
        routes={"all": schema.Route(upstream="api"), "old": schema.Route(upstream="api", path="/old")},
        filters={"f": schema.HeadersFilter(remove=("x",)), "g": schema.AccessFilter()},
    )
    new = config(
        routes={"all": schema.Route(upstream="api", hosts=("a",), timeout=Seconds(5.0)), "new": schema.Route()},
        filters={"f": schema.AccessFilter(), "h": schema.AccessFilter()},
    )
    assert lines(old, new) == [
        "+ route new",
        "- route old: open exchanges finish as they began",
        '~ route all: hosts [] -> ["a"], timeout 1h -> 5s, for new requests',
        "+ filter h",
        "- filter g: open exchanges finish as they began",
        "~ filter f: kind headers -> access, for new requests",
    ]


def test_settings_that_need_a_restart_are_named() -> None:
    old = config(admin=schema.Admin(token=validators.Secret("one"), token_file="f"))
    new = config(
        gateway=schema.Gateway(state_dir="/srv", workers=3),
        admin=schema.Admin(bind="127.0.0.1:1", token=validators.Secret("two"), token_file="f"),
        log=schema.Log(level="debug"),
    )
    change = diff(old, new)
    assert set(change.restart) == {"gateway.state_dir", "admin.bind", "admin.token"} == NEEDS_RESTART
    late = "(takes effect after a restart)"
    assert change.describe() == [
        "~ gateway.workers auto -> 3",
        f"~ gateway.state_dir /var/lib/tcpgate -> /srv {late}",
        f"~ admin.bind unix:/run/tcpgate/admin.sock -> 127.0.0.1:1 {late}",
        f"~ admin.token is another one {late}",
        "~ log.level info -> debug",
    ]


def test_a_secret_shows_in_no_form_of_a_difference() -> None:
    old = config(admin=schema.Admin(token=validators.Secret("hunter2")))
    new = config(admin=schema.Admin(token=validators.Secret("swordfish")))
    change = diff(old, new)
    assert not change.empty
    for text in (repr(change), json.dumps(change.as_json()), *change.describe()):
        assert "hunter2" not in text
        assert "swordfish" not in text


def test_every_setting_that_needs_a_restart_is_a_key_of_the_schema() -> None:
    for key in NEEDS_RESTART:
        table, _, name = key.partition(".")
        assert hasattr(getattr(schema.Config(), table), name)


def test_the_json_form_has_every_part() -> None:
    change = diff(config(), config(upstreams={"api": upstream("b:1", balance="first")}))
    assert isinstance(change, Diff)
    document = json.loads(json.dumps(change.as_json()))
    assert document["upstreams"]["changed"] == [
        {
            "name": "api",
            "changes": [{"key": "balance", "old": "round_robin", "new": "first"}],
            "added": [],
            "removed": ["a:1"],
            "changed": [],
        }
    ]
    assert set(document) == {"empty", "restart", "settings", "listeners", "routes", "filters", "upstreams"}
