"""The board: every endpoint's machine and its task, in the supervisor, and what both tell the rest of the gateway.

Theory of operation. Each endpoint has one `EndpointHealth` (policy/health.py) and one task. The task does what its
machine says is due: a probe, or a tick of the clock; else it sleeps until the next of them, or until somebody changed
the machine. Words from outside (live traffic, operators, a reload) go into the machine at once, synchronously, and
wake the task. After every input `_settle` compares what the workers were last told with what is true now, and
publishes the difference; a transition is told as an event.

Identity is (upstream, address). `apply` touches what differs: an endpoint that is new gets a machine and a task, one
that is gone loses both, one whose config changed keeps its state. So no probe can outlive its endpoint, and none can
be lost.

Owner: the nursery that is passed to `apply` owns one task per endpoint. Everything else here is sync, so no await can
split it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import attrs
import trio

from tcpgate.config.schema import Endpoint, Health, Upstream
from tcpgate.policy.health import EndpointHealth, EndpointState, ProbeResult, Transition, Word
from tcpgate.policy.outlier import room
from tcpgate.state.messages import EndpointStatus, Observed
from tcpgate.state.reach import Reach, reach_of
from tcpgate.stats.journal import EventKind

logger = logging.getLogger("tcpgate.control.health")

Facts = Mapping[str, str | int | float]
AskOnce = Callable[[Health, str, float, Reach], Awaitable[ProbeResult]]
"""Probe this address until this deadline, reached in this way; `probe.probe_once` with the kinds bound to it."""

AFTER_BUG = 1.0
"""Pause before a task that ran into a bug of ours goes on (seconds)."""

EVENTS: Mapping[tuple[EndpointState | None, EndpointState], EventKind] = {
    (EndpointState.HEALTHY, EndpointState.DEGRADED): EventKind.ENDPOINT_DEGRADED,
    (EndpointState.DEGRADED, EndpointState.HEALTHY): EventKind.ENDPOINT_HEALTHY,
    (EndpointState.EJECTED, EndpointState.DEGRADED): EventKind.ENDPOINT_RESTORED,
    (EndpointState.EJECTED, EndpointState.HEALTHY): EventKind.ENDPOINT_RESTORED,
}
"""(from, to) -> kind of the event; what is not here depends on the new state alone."""
EVENTS_BY_STATE: Mapping[EndpointState, EventKind] = {
    EndpointState.HEALTHY: EventKind.ENDPOINT_UP,
    EndpointState.DEGRADED: EventKind.ENDPOINT_UP,
    EndpointState.DOWN: EventKind.ENDPOINT_DOWN,
    EndpointState.EJECTED: EventKind.ENDPOINT_EJECTED,
    EndpointState.DRAINING: EventKind.ENDPOINT_DRAINING,
    EndpointState.MAINT: EventKind.ENDPOINT_MAINT,
}


@attrs.frozen(kw_only=True)
class PastProbe:
    """One earlier probe, as the API shows it."""

    ago: float
    """Seconds."""
    ok: bool | None
    cause: str
    latency: float
    size: int


@attrs.frozen(kw_only=True)
class EndpointReport:
    """All that is known of an endpoint's health, as the API shows it; spans in seconds."""

    upstream: str
    endpoint: str
    state: EndpointState
    cause: str
    lasting: float
    """How long it has been in that state."""
    unproved: bool
    weight: float
    config_weight: int
    operator_weight: int | None
    tier: int
    rises: int
    falls: int
    kept_in: str
    """Why live traffic would have ejected it, had the limit allowed it."""
    next_probe: float | None
    """Seconds from now; None: it is not probed."""
    history: tuple[PastProbe, ...]
    """Oldest first."""


@attrs.define(eq=False, kw_only=True)
class _Entry:
    """One endpoint on the board."""

    upstream: str
    machine: EndpointHealth
    told: EndpointStatus | None = None
    """What the workers know."""
    task: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    asking: trio.CancelScope | None = None
    """The probe under way."""
    changed: trio.Event = attrs.field(factory=trio.Event)
    """Set: the machine has another idea of what is due."""

    @property
    def address(self) -> str:
        return self.machine.endpoint.address

    def status(self) -> EndpointStatus:
        machine = self.machine
        return EndpointStatus(
            upstream=self.upstream,
            endpoint=self.address,
            state=machine.state,
            weight=machine.weight,
            cause=machine.cause,
            unproved=machine.unproved,
        )

    def drop_probe(self) -> None:
        """Forget the probe under way: what it asks is no longer the question."""
        if self.asking is not None:
            self.asking.cancel()


class HealthBoard:
    """Every endpoint's health. Methods that name an endpoint raise LookupError if there is none by that name."""

    def __init__(
        self,
        *,
        publish: Callable[[Sequence[EndpointStatus]], None],
        tell: Callable[[str, str, str, Facts], None],
        ask: AskOnce,
        rng: random.Random,
    ) -> None:
        self._publish = publish
        self._tell = tell
        self._ask = ask
        self._rng = rng
        self._board: dict[str, dict[str, _Entry]] = {}
        self._unproved: set[tuple[str, str]] = set()
        """Whom the first round still waits for."""
        self._all_proved = trio.Event()

    # -- config -----------------------------------------------------------------------------------------------------

    def apply(self, upstreams: Mapping[str, Upstream], probes: trio.Nursery) -> None:
        """Make the board be what the config says. `probes` gets a task for each endpoint that is new."""
        for name in self._board.keys() - upstreams.keys():
            for entry in self._board.pop(name).values():
                self._remove(entry)
        touched = [entry for name, spec in upstreams.items() for entry in self._apply_upstream(name, spec, probes)]
        self._publish_changes(touched)

    def _apply_upstream(self, name: str, spec: Upstream, probes: trio.Nursery) -> list[_Entry]:
        """Bring one upstream to its config; the entries that may have something new to tell."""
        old = self._board.get(name, {})
        known = next((entry.machine.upstream for entry in old.values()), None)
        if known == spec:
            spec = known  # compared by value here, once; from here on the same object is the same config
        working = any(entry.machine.usable for entry in old.values())
        wanted = {endpoint.address: endpoint for endpoint in spec.endpoints}
        for address in old.keys() - wanted.keys():
            self._remove(old[address])
        self._board[name] = entries = {}
        touched = []
        for address, endpoint in wanted.items():
            entry = old.get(address)
            if entry is None:
                entry = self._add(name, spec, endpoint, newcomer=working)
                probes.start_soon(self._attend_forever, entry, name=f"health of {name}/{address}")
                touched.append(entry)
            elif self._configure(entry, spec, endpoint):
                touched.append(entry)
            entries[address] = entry
        return touched

    def _add(self, name: str, spec: Upstream, endpoint: Endpoint, *, newcomer: bool) -> _Entry:
        machine = EndpointHealth(
            name=f"{name}/{endpoint.address}",
            upstream=spec,
            endpoint=endpoint,
            born=trio.current_time(),
            newcomer=newcomer,
        )
        entry = _Entry(upstream=name, machine=machine)
        if machine.unproved:
            self._unproved.add((name, endpoint.address))
            if self._all_proved.is_set():
                self._all_proved = trio.Event()
        return entry

    def _configure(self, entry: _Entry, spec: Upstream, endpoint: Endpoint) -> bool:
        """Whether the endpoint's config changed; if so it is applied, with the state kept."""
        machine = entry.machine
        if machine.upstream is spec:
            return False
        if machine.upstream.health != spec.health:
            entry.drop_probe()
        self._note(entry, machine.configure(spec, endpoint, trio.current_time()))
        return True

    def _remove(self, entry: _Entry) -> None:
        entry.task.cancel()
        self._proved(entry)

    # -- words from outside -----------------------------------------------------------------------------------------

    def observe(self, seen: Observed) -> None:
        """A worker's word on live traffic. One on an endpoint that was removed meanwhile is dropped."""
        entry = self._board.get(seen.upstream, {}).get(seen.endpoint)
        if entry is None:
            return
        machine = entry.machine
        kept_in = machine.kept_in
        transition = machine.observe_live(
            seen.connect_failures,
            seen.bad_answers,
            seen.cause,
            trio.current_time(),
            may_eject=self._may_eject(seen.upstream),
        )
        if machine.kept_in and not kept_in:
            limit = f"limit (max_ejected = {machine.upstream.passive.max_ejected})"
            self._event(entry, EventKind.ENDPOINT_KEPT_IN, f"kept in: {limit}; {machine.kept_in}", machine.state)
        self._settle(entry, transition)

    def _may_eject(self, upstream: str) -> bool:
        """Whether one more endpoint may be taken out. Whoever is out counts, whatever took it out."""
        entries = self._board[upstream].values()
        out = sum(not entry.machine.usable for entry in entries)
        limit = next(iter(entries)).machine.upstream.passive.max_ejected
        return out < room(limit, len(entries))

    def command(self, upstream: str, endpoint: str, word: Word) -> None:
        """An operator's word on an endpoint."""
        entry = self._find(upstream, endpoint)
        if word is Word.MAINT:
            entry.drop_probe()
        self._settle(entry, entry.machine.command(word, trio.current_time()))

    def set_weight(self, upstream: str, endpoint: str, weight: int | None) -> None:
        """An operator's weight, over the config's; None gives it back to the config."""
        entry = self._find(upstream, endpoint)
        self._settle(entry, entry.machine.set_weight(weight, trio.current_time()))
        text = "the config's" if weight is None else str(weight)
        self._event(entry, EventKind.ENDPOINT_WEIGHT, f"operator: weight {text}", entry.machine.state)

    def _find(self, upstream: str, endpoint: str) -> _Entry:
        entry = self._board.get(upstream, {}).get(endpoint)
        if entry is None:
            raise LookupError(f"there is no endpoint {upstream}/{endpoint}")
        return entry

    # -- what is so -------------------------------------------------------------------------------------------------

    def statuses(self) -> list[EndpointStatus]:
        """Every endpoint, as a worker must know it."""
        return [entry.status() for entry in self._entries()]

    def describe(self) -> list[EndpointReport]:
        """Every endpoint, as a person wants to know it."""
        return [_report(entry, trio.current_time()) for entry in self._entries()]

    async def wait_first_round(self) -> None:
        """Return once every endpoint that is probed has a verdict, or an operator's word. The caller has a deadline."""
        await trio.lowlevel.checkpoint()
        while self._unproved:
            await self._all_proved.wait()

    def unproved(self) -> list[str]:
        """Whom `wait_first_round` waits for, as "upstream/address"."""
        return sorted(f"{upstream}/{address}" for upstream, address in self._unproved)

    def _entries(self) -> Iterator[_Entry]:
        for entries in self._board.values():
            yield from entries.values()

    # -- telling ----------------------------------------------------------------------------------------------------

    def _settle(self, entry: _Entry, transition: Transition | None) -> None:
        """After each input but a reload's: tell what it changed, and let the task think again."""
        self._note(entry, transition)
        self._publish_changes([entry])

    def _note(self, entry: _Entry, transition: Transition | None) -> None:
        entry.changed.set()
        if not entry.machine.unproved:
            self._proved(entry)
        if transition is not None:
            kind = EVENTS.get((transition.previous, transition.state), EVENTS_BY_STATE[transition.state])
            self._event(entry, kind, transition.cause, transition.previous)

    def _proved(self, entry: _Entry) -> None:
        self._unproved.discard((entry.upstream, entry.address))
        if not self._unproved:
            self._all_proved.set()

    def _event(self, entry: _Entry, kind: EventKind, cause: str, previous: EndpointState | None) -> None:
        machine = entry.machine
        facts: dict[str, str | int | float] = {
            "upstream": entry.upstream,
            "endpoint": entry.address,
            "state": machine.state,
            "previous": previous or "unproved",
            "cause": cause,
            "weight": machine.weight,
        }
        # Each kind has its own level.
        self._tell(kind, "", f"{entry.upstream}/{entry.address} is {machine.state}: {cause}", facts)

    def _publish_changes(self, touched: Sequence[_Entry]) -> None:
        changed = []
        for entry in touched:
            status = entry.status()
            if status != entry.told:
                entry.told = status
                changed.append(status)
        if changed:
            self._publish(changed)

    # -- the endpoint's task ----------------------------------------------------------------------------------------

    async def _attend_forever(self, entry: _Entry) -> None:
        """Do what the machine says is due, until the scope is cancelled. A bug costs a pause, not the task."""
        with entry.task:
            while True:
                try:
                    await self._attend_once(entry)
                except Exception as exc:
                    logger.exception("health task failed endpoint=%s", entry.machine.name)
                    self._event(entry, EventKind.BUG, f"health task: {exc!r}", entry.machine.state)
                    await trio.sleep(AFTER_BUG)

    async def _attend_once(self, entry: _Entry) -> None:
        """One probe that is due, else one sleep until something is."""
        machine = entry.machine
        entry.changed = trio.Event()
        probe_at = machine.next_probe()
        if probe_at is not None and probe_at <= trio.current_time():
            await self._probe(entry)
            return
        due = [at for at in (probe_at, machine.deadline()) if at is not None]
        with trio.move_on_at(min(due, default=math.inf)):
            await entry.changed.wait()
        self._tick(entry)

    def _tick(self, entry: _Entry) -> None:
        transition = entry.machine.tick(trio.current_time())
        self._settle(entry, transition)

    async def _probe(self, entry: _Entry) -> None:
        """Ask once, and tell the machine; a probe that was dropped meanwhile is not told."""
        machine, now = entry.machine, trio.current_time()
        health = machine.upstream.health
        assert health is not None  # or there would be no next probe
        machine.probe_began(now, self._rng)
        with trio.CancelScope() as entry.asking:
            result = await self._ask(health, entry.address, now + health.timeout, reach_of(machine.upstream))
        dropped, entry.asking = entry.asking.cancelled_caught, None
        if not dropped:
            self._settle(entry, machine.observe_probe(result, trio.current_time()))


def _report(entry: _Entry, now: float) -> EndpointReport:
    machine = entry.machine
    due = machine.next_probe()
    return EndpointReport(
        upstream=entry.upstream,
        endpoint=entry.address,
        state=machine.state,
        cause=machine.cause,
        lasting=now - machine.since,
        unproved=machine.unproved,
        weight=machine.weight,
        config_weight=machine.endpoint.weight,
        operator_weight=machine.operator_weight,
        tier=machine.endpoint.tier,
        rises=machine.rises,
        falls=machine.falls,
        kept_in=machine.kept_in,
        next_probe=None if due is None else max(0.0, due - now),
        history=tuple(
            PastProbe(
                ago=now - past.at,
                ok=past.result.ok,
                cause=past.result.cause,
                latency=past.result.latency,
                size=past.result.size,
            )
            for past in machine.history
        ),
    )
