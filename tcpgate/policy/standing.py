"""How an upstream stands as a whole: whether anybody in it takes traffic, and whether its health is still believed.
Pure.

Endpoints come and go; what wakes a person is the upstream. `judge` is told of every endpoint's state and answers with
what has changed for the upstreams: nobody left (its routes answer 503), somebody again, panic begun, panic over. The
rule for panic is the one that `spread.py` picks by. An upstream none of whose endpoints has been probed yet is not
judged: it is not down, it is new.

Source: Envoy's panic threshold; HAProxy's "backend has no server available".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from tcpgate.config.schema import Upstream
from tcpgate.policy.health import EndpointState
from tcpgate.policy.spread import is_panic

WITHDRAWN = frozenset({EndpointState.DRAINING, EndpointState.MAINT})
"""By an operator's word: not counted as lost, so that maintenance makes no panic."""


class Status(Protocol):
    """What is known of one endpoint; `state.messages.EndpointStatus` is one."""

    @property
    def upstream(self) -> str:
        """The upstream's name."""
        ...

    @property
    def endpoint(self) -> str:
        """The endpoint's address."""
        ...

    @property
    def state(self) -> EndpointState:
        """Its state."""
        ...

    @property
    def weight(self) -> float:
        """Its effective weight."""
        ...

    @property
    def unproved(self) -> bool:
        """Whether no probe has answered yet."""
        ...


@attrs.frozen(kw_only=True)
class Change:
    """An upstream stands otherwise than before."""

    kind: str
    """upstream_down, upstream_up, panic_on, panic_off: words of the event journal."""
    upstream: str
    text: str


@attrs.define
class Standings:
    """Every upstream's standing. Starts from the best: what is first seen well is no news."""

    _seen: dict[str, dict[str, Status]] = attrs.field(factory=dict)
    """Upstream -> endpoint -> what was last said of it."""
    _down: set[str] = attrs.field(factory=set)
    _panic: set[str] = attrs.field(factory=set)

    def judge(self, upstreams: Mapping[str, Upstream], changed: Iterable[Status]) -> list[Change]:
        """What the `changed` statuses change for their upstreams. `upstreams` is the config that serves; what is no
        longer in it is forgotten, so after a reload all statuses are to be given."""
        touched: dict[str, None] = {}
        for status in changed:
            self._seen.setdefault(status.upstream, {})[status.endpoint] = status
            touched[status.upstream] = None
        for name in self._seen.keys() - upstreams.keys():
            del self._seen[name]
            self._down.discard(name)
            self._panic.discard(name)
        changes: list[Change] = []
        for name in touched:
            if name in upstreams:
                changes += self._judge_one(name, upstreams[name])
        return changes

    def _judge_one(self, name: str, spec: Upstream) -> Iterable[Change]:
        seen = self._seen[name]
        for address in seen.keys() - {endpoint.address for endpoint in spec.endpoints}:
            del seen[address]
        group = list(seen.values())
        return () if any(status.unproved for status in group) else self._judge(name, spec, group)

    def _judge(self, name: str, spec: Upstream, group: list[Status]) -> Iterable[Change]:
        counted = [status for status in group if status.state not in WITHDRAWN and status.weight > 0]
        taking = [status for status in counted if status.state.takes_traffic]
        share, whole = sum(status.weight for status in taking), sum(status.weight for status in counted)
        panic = is_panic(spec, share, whole)
        serves = bool(taking) or (panic and spec.panic == "all")
        of = f"{len(taking)} of {len(group)} endpoints take traffic"
        if _toggle(self._panic, name, on=panic):
            word, then = ("panic_on", "spread over all") if panic else ("panic_off", "health counts again")
            yield Change(
                kind=word, upstream=name, text=f"{name}: {of}: {then if spec.panic == 'all' else 'answered 503'}"
            )
        if _toggle(self._down, name, on=not serves):
            word = "upstream_up" if serves else "upstream_down"
            yield Change(kind=word, upstream=name, text=f"{name}: {of}" + ("" if serves else ": answered 503"))


def _toggle(names: set[str], name: str, *, on: bool) -> bool:
    """Put `name` into the set, or take it out; whether that changed anything."""
    changed = (name in names) != on
    (names.add if on else names.discard)(name)
    return changed
