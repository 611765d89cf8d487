"""What a reload would touch: two configs compared by name, never by position. Pure.

Everything with a name keeps it across reloads, and what is equal is not touched: its connections, its pools, its probes
and what was learnt of it stay. So a difference is told as what it does, not as lines of text: which sockets open and
close, which endpoints begin and drain, whose probes follow new rules. `Diff.empty` holds exactly if the configs are
equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs

from tcpgate.config import schema, schema_tls, validators
from tcpgate.config.export import HIDDEN, Json, plain, span_text
from tcpgate.config.report import dotted

NEEDS_RESTART = frozenset({"gateway.state_dir", "admin.bind", "admin.token"})
"""Settings that the process reads once, when it starts; all others take effect with the reload."""

FILES = {"chain_pem": "cert"}
"""The content's field -> the file's, where it is not called so but for `_pem`."""
MAX_VALUE = 80
"""Characters of a value that a line for people shows."""

T = TypeVar("T")
D = TypeVar("D", bound="TableDiff")


@attrs.frozen
class Change:
    """One key that is set differently."""

    key: str
    """Dotted, below the table that the change is told of: `limits.head`."""
    old: Any
    new: Any
    """As TOML has them; None: not set. A secret that has changed is "***" in both, and so is what a file held."""


@attrs.frozen(kw_only=True)
class TableDiff:
    """One named table that both configs have, and that is not the same."""

    name: str
    changes: tuple[Change, ...]
    """All that is not told by a field of its own."""

    def touches(self, key: str) -> bool:
        """Whether this key, or one below it, has changed."""
        return any(change.key == key or change.key.startswith(f"{key}.") for change in self.changes)


@attrs.frozen(kw_only=True)
class ListenerDiff(TableDiff):
    """A listener: its addresses apart, because only they are sockets."""

    bound: tuple[str, ...]
    unbound: tuple[str, ...]


@attrs.frozen(kw_only=True)
class UpstreamDiff(TableDiff):
    """An upstream: its endpoints apart, by address."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[TableDiff, ...]
    """Endpoints whose weight or tier has changed."""


@attrs.frozen(kw_only=True)
class Tables(Generic[D]):
    """The named tables of one kind: which came, which went, which changed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[D, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.changed)


@attrs.frozen(kw_only=True)
class Diff:
    """Everything that differs between two configs."""

    old: schema.Config = attrs.field(repr=False)
    new: schema.Config = attrs.field(repr=False)
    settings: tuple[Change, ...]
    """Of gateway, admin and log, with full keys: `gateway.drain`."""
    listeners: Tables[ListenerDiff]
    routes: Tables[TableDiff]
    filters: Tables[TableDiff]
    upstreams: Tables[UpstreamDiff]

    @property
    def empty(self) -> bool:
        """Whether a reload has nothing to do."""
        tables = (self.listeners, self.routes, self.filters, self.upstreams)
        return not self.settings and all(table.empty for table in tables)

    @property
    def restart(self) -> tuple[str, ...]:
        """Settings that have changed, but that only a restart (or an upgrade in place) brings into effect."""
        return tuple(change.key for change in self.settings if change.key in NEEDS_RESTART)

    def describe(self) -> list[str]:
        """What a reload would do, line by line, for people."""
        return list(_lines(self))

    def as_json(self) -> Json:
        """The same for programs."""
        tables = ("listeners", "routes", "filters", "upstreams")
        return {
            "empty": self.empty,
            "restart": list(self.restart),
            "settings": [attrs.asdict(change) for change in self.settings],
            **{name: attrs.asdict(getattr(self, name)) for name in tables},
        }


# -- comparing ------------------------------------------------------------------------------------------------------


def diff(old: schema.Config, new: schema.Config) -> Diff:
    """What changes from `old` to `new`."""
    settings = [
        attrs.evolve(change, key=f"{table}.{change.key}")
        for table in ("gateway", "admin", "log")
        for change in _changes(getattr(old, table), getattr(new, table))
    ]
    return Diff(
        old=old,
        new=new,
        settings=tuple(settings),
        listeners=_tables(old.listeners, new.listeners, _compare_listeners),
        routes=_tables(old.routes, new.routes, _compare),
        filters=_tables(old.filters, new.filters, _compare),
        upstreams=_tables(old.upstreams, new.upstreams, _compare_upstreams),
    )


def _tables(old: Mapping[str, T], new: Mapping[str, T], compare: Callable[[str, T, T], D]) -> Tables[D]:
    return Tables(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(
            compare(name, old[name], item) for name, item in new.items() if name in old and old[name] != item
        ),
    )


def _compare(name: str, old: Any, new: Any) -> TableDiff:
    return TableDiff(name=name, changes=tuple(_changes(old, new)))


def _compare_listeners(name: str, old: schema.Listener, new: schema.Listener) -> ListenerDiff:
    bound, unbound = _gone_and_come(new.bind, old.bind)
    return ListenerDiff(name=name, changes=_but(old, new, "bind", bound or unbound), bound=bound, unbound=unbound)


def _compare_upstreams(name: str, old: schema.Upstream, new: schema.Upstream) -> UpstreamDiff:
    before = {endpoint.address: endpoint for endpoint in old.endpoints}
    after = {endpoint.address: endpoint for endpoint in new.endpoints}
    endpoints = _tables(before, after, _compare)
    return UpstreamDiff(
        name=name,
        changes=_but(old, new, "endpoints", not endpoints.empty),
        added=endpoints.added,
        removed=endpoints.removed,
        changed=endpoints.changed,
    )


def _gone_and_come(some: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What only the first has, and what only the second has."""
    return (
        tuple(item for item in some if item not in others),
        tuple(item for item in others if item not in some),
    )


def _but(old: Any, new: Any, key: str, told: object) -> tuple[Change, ...]:
    """The changes without that of the list `key`, if it is told otherwise. If nothing came or went, its order
    changed."""
    return tuple(change for change in _changes(old, new) if change.key != key or not told)


def _changes(old: Any, new: Any, prefix: str = "") -> Iterator[Change]:
    """Each key, down to plain values, that differs between two objects of the schema."""
    if type(old) is not type(new):
        # Only a filter can become another class, by its kind; then no key of the old one has a meaning.
        yield Change("kind", old.kind, new.kind)
        return
    for field in attrs.fields(attrs.resolve_types(type(new))):
        before, after, key = getattr(old, field.name), getattr(new, field.name), prefix + field.name
        if before == after:
            continue
        if _is_table(before) and _is_table(after):
            yield from _changes(before, after, f"{key}.")
        elif (pairs := _pairs(before, after)) is not None:
            for place, (one, other) in pairs.items():
                yield from _changes(one, other, f"{key}{place}.")
        elif field.name.endswith("_pem"):
            # Told as the file that held it; that the file is another one has been told already.
            file = FILES.get(field.name, field.name.removesuffix("_pem"))
            if getattr(old, file) == getattr(new, file):
                yield Change(prefix + file, plain(before, field.type), plain(after, field.type))
        else:
            yield Change(key, plain(before, field.type), plain(after, field.type))


def _is_table(value: Any) -> bool:
    return attrs.has(type(value)) and not isinstance(value, validators.Secret)


def _pairs(old: Any, new: Any) -> dict[str, tuple[Any, Any]] | None:
    """What stands in the same place in two lists or tables of tables; None if they are not that, or not alike.

    Endpoints are none: they are told by their addresses.
    """
    match old, new:
        case (schema_tls.Certificate(), *_), (schema_tls.Certificate(), *_) if len(old) == len(new):
            return {f"[{index}]": pair for index, pair in enumerate(zip(old, new, strict=True))}
        case Mapping(), Mapping() if old.keys() == new.keys() and all(map(_is_table, [*old.values(), *new.values()])):
            return {f".{dotted((name,))}": (old[name], new[name]) for name in new}
    return None


# -- telling --------------------------------------------------------------------------------------------------------


def _lines(change: Diff) -> Iterator[str]:
    """ "+" comes, "-" goes, "~" changes."""
    for setting in change.settings:
        late = " (takes effect after a restart)" if setting.key in NEEDS_RESTART else ""
        yield f"~ {_shown(setting)}{late}"
    yield from _listener_lines(change)
    yield from _upstream_lines(change)
    for kind, tables in (("route", change.routes), ("filter", change.filters)):
        yield from (f"+ {kind} {name}" for name in tables.added)
        yield from (f"- {kind} {name}: open exchanges finish as they began" for name in tables.removed)
        yield from (f"~ {kind} {table.name}: {_all(table.changes)}, for new requests" for table in tables.changed)


def _listener_lines(change: Diff) -> Iterator[str]:
    drain = f"open connections have {span_text(change.new.gateway.drain)} to finish"
    for name in change.listeners.added:
        yield f"+ listener {name}: listens on {', '.join(change.new.listeners[name].bind)}"
    for name in change.listeners.removed:
        yield f"- listener {name}: no longer on {', '.join(change.old.listeners[name].bind)}; {drain}"
    for listener in change.listeners.changed:
        parts = [f"listens on {', '.join(listener.bound)} too"] if listener.bound else []
        parts += [f"no longer on {', '.join(listener.unbound)}, open connections stay"] if listener.unbound else []
        if listener.touches("protocol"):
            parts.append(f"{_all(listener.changes)}, {drain}")
        elif listener.changes:
            parts.append(f"{_all(listener.changes)}, for new connections")
        yield f"~ listener {listener.name}: {'; '.join(parts)}"


def _upstream_lines(change: Diff) -> Iterator[str]:
    for name in change.upstreams.added:
        spec = change.new.upstreams[name]
        yield f"+ upstream {name}: {', '.join(endpoint.address for endpoint in spec.endpoints)}{_probed(spec)}"
    for name in change.upstreams.removed:
        yield f"- upstream {name}: {_ENDPOINT_GOES}"
    for upstream in change.upstreams.changed:
        yield from _one_upstream(upstream, change.new.upstreams[upstream.name])


_ENDPOINT_GOES = "no new work, what is open finishes, idle connections close, probes end"


def _probed(spec: schema.Upstream) -> str:
    return "; probed before it takes traffic" if spec.health is not None else ""


def _one_upstream(upstream: UpstreamDiff, spec: schema.Upstream) -> Iterator[str]:
    where = f"upstream {upstream.name}"
    yield from (f"+ {where}: endpoint {address}{_probed(spec)}" for address in upstream.added)
    yield from (f"- {where}: endpoint {address}: {_ENDPOINT_GOES}" for address in upstream.removed)
    for endpoint in upstream.changed:
        yield f"~ {where}: endpoint {endpoint.name}: {_all(endpoint.changes)}; its connections stay"
    for change in upstream.changes:
        yield f"~ {where}: {_shown(change)}{_EFFECTS.get(change.key.partition('.')[0], '')}"


_EFFECTS = {
    "health": "; probes follow it from now on, states stay",
    "passive": "; what is ejected stays so for its time",
    "pool": "; open connections stay",
    "timeouts": ", for new attempts",
    "retry": ", for new requests",
    "balance": "; picks begin afresh, connections stay",
}


def _all(changes: Sequence[Change]) -> str:
    return ", ".join(map(_shown, changes))


def _shown(change: Change) -> str:
    if change.old == change.new == HIDDEN:
        return f"{change.key} is another one"
    return f"{change.key} {_value(change.old)} -> {_value(change.new)}"


def _value(value: Any) -> str:
    if value is None:
        return "(not set)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else "(set)"
