"""Whether upstreams and filters make sense, each by itself. Pure.

Warnings are for what is allowed but does nothing, or not what it seems to: a key that this balancer never reads, a
probe that takes longer than its interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from tcpgate.config import schema
from tcpgate.config.prime import next_prime
from tcpgate.config.report import KeyPath, Report, quoted
from tcpgate.units import format_span

HASHING = ("source_hash", "ring_hash", "maglev", "rendezvous")
"""Balancers that pick by a key of the request."""
SLOTS_PER_ENDPOINT = 100
"""maglev: with fewer, shares are off by more than a per cent (the paper's section 5.3)."""


def check_upstreams(config: schema.Config, report: Report) -> None:
    """Each upstream's endpoints, balancer and health check."""
    for name, upstream in config.upstreams.items():
        path: KeyPath = ("upstreams", name)
        _check_endpoints(path, upstream, report)
        _check_balance(path, upstream, report)
        _check_limits(path, upstream, report)
        if upstream.health is not None:
            _check_health((*path, "health"), upstream.health, report)
    for name, listener in config.listeners.items():
        used = config.upstreams.get(listener.upstream or "")
        if used is not None and used.hash_key != "source":
            flows = f"those of listeners.{name} ({report.place(('listeners', name, 'upstream'))})"
            text = f"a tcp flow has no {used.hash_key}: {flows} are hashed by their source"
            report.warn(("upstreams", str(listener.upstream), "hash_key"), text)


def _check_endpoints(path: KeyPath, upstream: schema.Upstream, report: Report) -> None:
    seen: dict[str, int] = {}
    for index, endpoint in enumerate(upstream.endpoints):
        at = (*path, "endpoints", index)
        first = seen.setdefault(endpoint.address, index)
        if first != index:
            report.error(
                at, f"{endpoint.address} is endpoints[{first}] already; for more traffic give that one a weight"
            )
    if not any(endpoint.weight for endpoint in upstream.endpoints):
        report.warn((*path, "endpoints"), "every weight is 0, so no endpoint takes new work")


def _check_balance(path: KeyPath, upstream: schema.Upstream, report: Report) -> None:
    for key in _idle_keys(upstream):
        report.warn((*path, key), f"has no effect with balance = {quoted(upstream.balance)}")
    if upstream.balance == "source_hash" and upstream.hash_key != "source":
        report.warn((*path, "hash_key"), 'source_hash is for the source; for another key take balance = "rendezvous"')
    if upstream.balance != "maglev":
        return
    size, count = upstream.table_size, len(upstream.endpoints)
    prime = next_prime(size)
    if prime != size:
        report.warn((*path, "table_size"), f"{size} is not a prime; the next one, {prime}, is used")
    if prime < SLOTS_PER_ENDPOINT * count:
        text = f"{prime} is small for {count} endpoints; {next_prime(SLOTS_PER_ENDPOINT * count)} keeps the shares even"
        report.warn((*path, "table_size"), text)


def _idle_keys(upstream: schema.Upstream) -> Iterator[str]:
    """Keys of a balancer that were set, though another balancer was chosen."""
    readers: Mapping[str, tuple[str, ...]] = {
        "hash_key": HASHING,
        "bounded_load": HASHING,
        "table_size": ("maglev",),
        "ring_points": ("ring_hash",),
        "decay": ("peak_ewma",),
    }
    plain = schema.Upstream(endpoints=upstream.endpoints)
    for key, balancers in readers.items():
        if getattr(upstream, key) != getattr(plain, key) and upstream.balance not in balancers:
            yield key


def _check_limits(path: KeyPath, upstream: schema.Upstream, report: Report) -> None:
    passive, pool = upstream.passive, upstream.pool
    if passive.eject_for > passive.eject_for_max:
        text = f"is longer than eject_for_max, {format_span(passive.eject_for_max)}"
        report.error((*path, "passive", "eject_for"), text)
    plain = schema.Upstream(endpoints=upstream.endpoints)
    if upstream.panic != plain.panic and not upstream.panic_below:
        report.warn((*path, "panic"), "has no effect: without panic_below panic never begins")
    if upstream.overprovision != plain.overprovision and len({endpoint.tier for endpoint in upstream.endpoints}) == 1:
        report.warn((*path, "overprovision"), "has no effect: every endpoint is in the same tier")
    if not upstream.slow_start.window and upstream.slow_start != plain.slow_start:
        report.warn((*path, "slow_start"), "has no effect without window")
    if not passive.enabled and attrs.evolve(passive, enabled=True) != plain.passive:
        report.warn((*path, "passive"), "has no effect with enabled = false")
    if pool.idle > pool.max_connections:
        report.warn((*path, "pool", "idle"), f"is more than max_connections, {pool.max_connections}, lets there be")


# -- health ---------------------------------------------------------------------------------------------------------


def _check_health(path: KeyPath, health: schema.Health, report: Report) -> None:
    _check_pace(path, health, report)
    if health.http is None:
        plain = schema.Health(http="/")
        for key in ("method", "host", "status", "body"):
            if getattr(health, key) != getattr(plain, key):
                report.warn((*path, key), "has no effect without http")


def _check_pace(path: KeyPath, health: schema.Health, report: Report) -> None:
    if health.timeout > health.interval:
        spans = f"{format_span(health.timeout)} is longer than interval, {format_span(health.interval)}"
        report.warn((*path, "timeout"), f"{spans}: a slow endpoint is asked less often than it seems")
    if health.fast_interval is not None and health.fast_interval > health.interval:
        text = f"{format_span(health.fast_interval)} is slower than interval, {format_span(health.interval)}"
        report.warn((*path, "fast_interval"), text)


# -- filters --------------------------------------------------------------------------------------------------------


def check_filters(config: schema.Config, report: Report) -> None:
    """Each filter by its kind."""
    for name, spec in config.filters.items():
        path: KeyPath = ("filters", name)
        if isinstance(spec, schema.HeadersFilter):
            if not (spec.set or spec.remove or spec.response_set or spec.response_remove):
                report.warn(path, "names no header field, so it does nothing")
        elif not spec.allow and not spec.deny:
            report.warn(path, "neither allow nor deny names a network, so everyone is let in")
