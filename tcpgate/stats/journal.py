"""The event journal: what happened to the gateway, apart from traffic, in the last thousand events.

Every change of state that a person would want to know, and nothing per request, becomes one `Event` of a closed list
of kinds. The journal keeps the last ones for `tcpgate events` and the admin API, and hands each new one to its
subscribers: the log, the live feed, alerts.

Source: Envoy's health check event log and systemd's journal for the idea of a cursor (`since`). Pure.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Literal, get_args

import attrs

from tcpgate.stats.line import SCHEMA, cut, quote, scalar

Level = Literal["debug", "info", "warning", "error"]
"""ERROR: a human must act. WARNING: degraded, and the text says what still works. INFO: a state changed."""
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the least severe."""

Fact = str | int | float
Hear = Callable[["Event"], None]


class EventKind(enum.StrEnum):
    """The closed list. One word each; the table `KINDS` says the rest."""

    # The process
    STARTED = "started"
    START_FAILED = "start_failed"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    CONFIG_WARNING = "config_warning"
    BUG = "bug"
    OTHER = "other"
    # Reload
    RELOAD_OK = "reload_ok"
    RELOAD_FAILED = "reload_failed"
    RELOAD_NOOP = "reload_noop"
    # Certificates
    CERTIFICATES_RELOADED = "certificates_reloaded"
    CERTIFICATE_KEPT = "certificate_kept"
    CERTIFICATE_EXPIRES = "certificate_expires"
    TICKETS_UNSHARED = "tickets_unshared"
    # Endpoints
    ENDPOINT_UP = "endpoint_up"
    ENDPOINT_HEALTHY = "endpoint_healthy"
    ENDPOINT_DEGRADED = "endpoint_degraded"
    ENDPOINT_DOWN = "endpoint_down"
    ENDPOINT_EJECTED = "endpoint_ejected"
    ENDPOINT_KEPT_IN = "endpoint_kept_in"
    ENDPOINT_RESTORED = "endpoint_restored"
    ENDPOINT_DRAINING = "endpoint_draining"
    ENDPOINT_MAINT = "endpoint_maint"
    ENDPOINT_WEIGHT = "endpoint_weight"
    # Upstreams
    PANIC_ON = "panic_on"
    PANIC_OFF = "panic_off"
    UPSTREAM_DOWN = "upstream_down"
    UPSTREAM_UP = "upstream_up"
    # Workers
    WORKER_STARTED = "worker_started"
    WORKER_LEFT = "worker_left"
    WORKER_DIED = "worker_died"
    WORKER_HUNG = "worker_hung"
    WORKER_BACKOFF = "worker_backoff"
    # Limits
    ACCEPT_BACKOFF = "accept_backoff"
    # Logs
    LOG_DROPPED = "log_dropped"
    LOG_FAILED = "log_failed"
    LOG_RESTORED = "log_restored"
    LOG_REOPENED = "log_reopened"
    # Operators
    ADMIN_COMMAND = "admin_command"


@attrs.frozen
class KindFacts:
    """What an event of a kind means."""

    level: Level
    """How severe, unless the teller knows better."""
    text: str
    """One line for a person."""


KINDS: Mapping[EventKind, KindFacts] = {
    EventKind.STARTED: KindFacts("info", "The supervisor began: version, pid, config."),
    EventKind.START_FAILED: KindFacts("error", "The gateway cannot serve this config here; it leaves."),
    EventKind.READY: KindFacts("info", "The gateway takes traffic."),
    EventKind.DRAINING: KindFacts("info", "The gateway stops accepting and lets open work end."),
    EventKind.STOPPED: KindFacts("info", "The gateway is about to leave."),
    EventKind.CONFIG_WARNING: KindFacts("warning", "The config serves, but something in it is likely not meant."),
    EventKind.BUG: KindFacts("error", "A state that cannot be; what it touched ended, the gateway goes on."),
    EventKind.OTHER: KindFacts("warning", "Of a kind that this version does not know; the fact `kind` names it."),
    EventKind.RELOAD_OK: KindFacts("info", "Every worker serves the new generation."),
    EventKind.RELOAD_FAILED: KindFacts("error", "The new config cannot serve; the old generation goes on."),
    EventKind.RELOAD_NOOP: KindFacts("info", "The config says what it said before; nothing was touched."),
    EventKind.CERTIFICATES_RELOADED: KindFacts("info", "A certificate's file changed; new connections are shown it."),
    EventKind.CERTIFICATE_KEPT: KindFacts("warning", "A changed file cannot be used; what it held before goes on."),
    EventKind.CERTIFICATE_EXPIRES: KindFacts("warning", "A certificate is near its end, or past it."),
    EventKind.TICKETS_UNSHARED: KindFacts("warning", "TLS sessions are resumed in the worker that began them only."),
    EventKind.ENDPOINT_UP: KindFacts("info", "The endpoint takes traffic, after it took none."),
    EventKind.ENDPOINT_HEALTHY: KindFacts("info", "The endpoint takes its full weight of traffic again."),
    EventKind.ENDPOINT_DEGRADED: KindFacts("info", "The endpoint takes traffic; it starts slowly, or failed a probe."),
    EventKind.ENDPOINT_DOWN: KindFacts("warning", "Probes say that the endpoint cannot work; others take its traffic."),
    EventKind.ENDPOINT_EJECTED: KindFacts("warning", "Live traffic failed at the endpoint; it takes none for a while."),
    EventKind.ENDPOINT_KEPT_IN: KindFacts("warning", "Live traffic fails there, but too many are out: it stays in."),
    EventKind.ENDPOINT_RESTORED: KindFacts("info", "The ejection is over; the endpoint takes traffic again."),
    EventKind.ENDPOINT_DRAINING: KindFacts("info", "The endpoint finishes what it has and takes nothing new."),
    EventKind.ENDPOINT_MAINT: KindFacts("info", "An operator took the endpoint out; it is not probed."),
    EventKind.ENDPOINT_WEIGHT: KindFacts("info", "An operator changed the endpoint's weight."),
    EventKind.PANIC_ON: KindFacts("error", "Too few endpoints are healthy: traffic is spread over every one."),
    EventKind.PANIC_OFF: KindFacts("info", "Enough endpoints are healthy again."),
    EventKind.UPSTREAM_DOWN: KindFacts("error", "No endpoint of the upstream takes traffic: its routes answer 503."),
    EventKind.UPSTREAM_UP: KindFacts("info", "The upstream has an endpoint again."),
    EventKind.WORKER_STARTED: KindFacts("info", "A worker serves."),
    EventKind.WORKER_LEFT: KindFacts("info", "A worker has drained, as it was told, and is gone."),
    EventKind.WORKER_DIED: KindFacts("error", "A worker ended unasked: its connections are lost, another one starts."),
    EventKind.WORKER_HUNG: KindFacts("error", "A worker's loop no longer turns; it is replaced."),
    EventKind.WORKER_BACKOFF: KindFacts("error", "A worker keeps dying; the next start waits."),
    EventKind.ACCEPT_BACKOFF: KindFacts("warning", "accept() has no descriptor or memory; it waits and tries again."),
    EventKind.LOG_DROPPED: KindFacts("warning", "Log lines come faster than they can be written; some were dropped."),
    EventKind.LOG_FAILED: KindFacts("error", "Log lines cannot be written (full disk, lost reader); they are dropped."),
    EventKind.LOG_RESTORED: KindFacts("info", "Log lines are written again; says how many are lost."),
    EventKind.LOG_REOPENED: KindFacts("info", "The log file was opened anew, after its rotation."),
    EventKind.ADMIN_COMMAND: KindFacts("info", "An operator changed something through the admin API: who, what."),
}


_WORDS = frozenset(map(str, KINDS))


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened."""

    ts: float
    """Seconds since 1970 UTC."""
    seq: int
    """1, 2, 3 ... in this run; a gap means that the ring forgot some."""
    kind: EventKind
    level: Level
    text: str
    """What happened, for a person; no secrets."""
    facts: Mapping[str, Fact] = attrs.field(factory=dict)
    """The same for a program: upstream, endpoint, worker, cause ..."""
    generation: int = 0

    def document(self) -> dict[str, object]:
        """The event as JSON has it, in the API and in the log."""
        return {
            "ts": self.ts,
            "level": self.level,
            "event": str(self.kind),
            "seq": self.seq,
            "generation": self.generation,
            "text": self.text,
            "facts": dict(self.facts),
        }


@attrs.define
class Journal:
    """The last `size` events, and who wants to hear of new ones."""

    size: int = 1000
    last_seq: int = 0
    _events: deque[Event] = attrs.field(init=False)
    _hearers: list[Hear] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._events = deque(maxlen=self.size)

    def tell(
        self,
        kind: str,
        level: str = "",
        text: str = "",
        facts: Mapping[str, Fact] | None = None,
        *,
        ts: float,
        generation: int = 0,
    ) -> Event:
        """Keep a new event and hand it on. Text and level are the kind's own unless given.

        The words may come from a worker: one that is in no list here still makes an event.
        """
        known = EventKind(kind) if kind in _WORDS else EventKind.OTHER
        self.last_seq += 1
        event = Event(
            ts=ts,
            seq=self.last_seq,
            kind=known,
            level=level if level in LEVELS else KINDS[known].level,
            text=text or KINDS[known].text,
            facts={**(facts or {}), "kind": kind} if known is EventKind.OTHER else dict(facts or {}),
            generation=generation,
        )
        self._events.append(event)
        for hear in tuple(self._hearers):
            hear(event)
        return event

    def since(self, seq: int) -> list[Event]:
        """The kept events after `seq`, oldest first; 0 gives all of them.

        A `seq` that this run has not reached is another run's cursor, so everything here is new to its holder.
        """
        if seq > self.last_seq:
            seq = 0
        oldest = self.last_seq - len(self._events) + 1
        return list(islice(self._events, max(0, seq - oldest + 1), None))

    def subscribe(self, hear: Hear) -> Callable[[], None]:
        """Call `hear` with each new event, until the function given back is called.

        `hear` runs inside `tell`: it must not block and must not raise, only take note (put in a queue, set an event).
        """
        self._hearers.append(hear)

        def unsubscribe() -> None:
            if hear in self._hearers:
                self._hearers.remove(hear)

        return unsubscribe


_TEXT_ROOM, _NAME_ROOM, _FACT_ROOM, _FACTS_ROOM = 1200, 40, 1500, 2400  # with all around them less than LINE_LIMIT


def render(event: Event) -> bytes:
    """`event` as one JSON line with its line end: ASCII, at most `line.LINE_LIMIT` bytes; facts that do not fit are
    left out."""
    facts, room = [], _FACTS_ROOM
    for name, value in event.facts.items():
        fact = f"{quote(cut(name, _NAME_ROOM))}:{scalar(cut(value, _FACT_ROOM) if isinstance(value, str) else value)}"
        if len(fact) < room:
            facts.append(fact)
            room -= len(fact) + 1
    return (
        f'{{"v":{SCHEMA},"ts":{event.ts:.6f},"level":"{event.level}","event":{quote(event.kind)},"seq":{event.seq},'
        f'"generation":{event.generation},"text":{quote(cut(event.text, _TEXT_ROOM))},"facts":{{{",".join(facts)}}}}}\n'
    ).encode("ascii")
