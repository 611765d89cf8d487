"""From a checked config to a Snapshot, reusing every plan of the previous one that still holds. Pure.

A worker calls `build` in a thread, because a table of 10,000 routes takes a while; nothing here touches what serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tcpgate.config import schema
from tcpgate.filters.base import Filter
from tcpgate.policy.route import RouteTable
from tcpgate.policy.split import Split
from tcpgate.state.snapshot import ListenerPlan, RoutePlan, Snapshot

MakeFilter = Callable[[schema.Filter], Filter]


def build(
    config: schema.Config, generation: int, slots: Mapping[str, int], make_filter: MakeFilter, previous: Snapshot | None
) -> Snapshot:
    """The snapshot of `config`; ValueError or KeyError if it is not one that `config.check` passed."""
    filters = _filters(config, make_filter, previous)
    listeners = {
        name: _keep_listener(name, spec, previous)
        or ListenerPlan(name=name, spec=spec, block=slots[f"listener/{name}"])
        for name, spec in config.listeners.items()
    }
    routes = {
        name: _keep_route(name, spec, filters, previous) or _route(name, spec, filters, slots)
        for name, spec in config.routes.items()
    }
    return Snapshot(
        generation=generation,
        config=config,
        listeners=listeners,
        routes=routes,
        table=_table(config, previous),
    )


def _filters(config: schema.Config, make_filter: MakeFilter, previous: Snapshot | None) -> dict[str, Filter]:
    """Each filter by name; an unchanged one is the same object, so what it has counted stays."""
    made: dict[str, Filter] = {}
    if previous is not None:
        old = previous.config.filters
        in_use = (pair for plan in previous.routes.values() for pair in plan.filters)
        made = {name: filter_ for name, filter_ in in_use if config.filters.get(name) == old.get(name)}
    for name, spec in config.filters.items():
        if name not in made:
            made[name] = make_filter(spec)
    return made


def _keep_listener(name: str, spec: schema.Listener, previous: Snapshot | None) -> ListenerPlan | None:
    plan = previous.listeners.get(name) if previous else None
    return plan if plan is not None and plan.spec == spec else None


def _keep_route(
    name: str, spec: schema.Route, filters: Mapping[str, Filter], previous: Snapshot | None
) -> RoutePlan | None:
    plan = previous.routes.get(name) if previous else None
    if plan is None or plan.spec != spec or any(filters[used] is not filter_ for used, filter_ in plan.filters):
        return None
    return plan


def _route(name: str, spec: schema.Route, filters: Mapping[str, Filter], slots: Mapping[str, int]) -> RoutePlan:
    return RoutePlan(
        name=name,
        spec=spec,
        filters=tuple((used, filters[used]) for used in spec.filters),
        split=Split(spec.split) if spec.split else None,
        block=slots[f"route/{name}"],
    )


def _table(config: schema.Config, previous: Snapshot | None) -> RouteTable:
    """The match table; the same object while routes and http listeners are the same."""
    http = _http_listeners(config)
    if previous is not None and previous.config.routes == config.routes and _http_listeners(previous.config) == http:
        return previous.table
    return RouteTable.build(config.routes, http)


def _http_listeners(config: schema.Config) -> list[str]:
    return [name for name, spec in config.listeners.items() if spec.protocol == "http"]
