"""Can this endpoint take traffic, and how much: one machine per endpoint, the supervisor's. Pure.

Theory of operation. Four facts, each with its own witness, and the first that speaks against the endpoint gives the
state:

    fact       witness           says no when                          state
    word       an operator       maint; drain                          MAINT; DRAINING
    verdict    active probes     `fall` failures in a row, until       DOWN
                                 `rise` successes in a row
    ejection   live traffic      a run of failed connects or of bad    EJECTED
                                 answers, for a while (`outlier.py`)
    doubt      probes, time      the last probe failed, not yet        DEGRADED (takes traffic)
                                 `fall` of them; or slow start
    none of them                                                       HEALTHY

An input changes facts, never the state; `_settle` then derives the state (`_derive`) and returns a `Transition` if it
is another one. What decides is below; why it was decided so:

- First verdict. With probes an endpoint starts *unproved*: DOWN in every list, but nothing is said about it yet. One
  answer decides, whichever it is: `rise` protects from one that flaps, and this one has no past. The gateway reports
  ready after the first round or a deadline; an endpoint that never answered stays unproved, readiness does not wait
  for it. (HAProxy's `init-state` chooses between four such modes; this is its "down".) Without
  probes an endpoint is HEALTHY at once and only live traffic judges it. After maintenance it is unproved again.
- EJECTED and a probe fails: DOWN at once, for two witnesses agree. From there probes alone bring it back, and the
  ejection is over: a killed endpoint that returns must not wait for a clock that was meant for a case the probes
  cannot see.
- EJECTED and probes succeed: an ejection for failed connects ends after `rise` successes, since a probe connects too
  and so refutes it. Not if it follows soon after another (then only time ends it, or each would flap at the probe's
  pace), and not for bad answers: a probe that asks /healthz has never seen what the users see.
- An ejection that is over while the last probe failed waits for the next probe to decide.
- The word `ready` gives the endpoint back to its witnesses. It ends an ejection, because nothing else lets a person
  do that; it does not overrule probes.
- Doubt does not lower the weight: a new weight is a new table in each worker, too much for one lost probe.

How often it is probed is `cadence.py`'s to say.

Source: HAProxy (rise, fall, the meaning of drain and maint), Envoy (outlier detection, slow start), nginx. Caller:
`control/health.py`, which brings the clock, sleeps until `deadline()` or `next_probe()`, and tells the workers.
"""

from __future__ import annotations

import enum
import random
from collections import deque

import attrs

from tcpgate.config.schema import Endpoint, Health, Upstream
from tcpgate.policy.cadence import Cadence, Pace
from tcpgate.policy.hashing import hash64
from tcpgate.policy.outlier import Ejections
from tcpgate.policy.slow_start import Ramp
from tcpgate.units import format_span

HISTORY = 20
"""Probe results that are kept for a person to look at."""
NOT_PROBED = "probe: no answer yet"


class EndpointState(enum.StrEnum):
    """The six states of an endpoint; one word each, the same in the pick, the log, the API and the page."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Takes traffic, but is in slow start (at less than its weight), or its last probe failed, not yet the `fall`th."""
    DRAINING = "draining"
    """An operator's word, or removed by a reload: finishes what it has, takes nothing new. Still probed."""
    DOWN = "down"
    """Active probes say so."""
    EJECTED = "ejected"
    """Live traffic says so, for a while."""
    MAINT = "maint"
    """An operator's word: takes nothing, is not probed."""

    @property
    def takes_traffic(self) -> bool:
        """Whether new work may go there."""
        return self in (EndpointState.HEALTHY, EndpointState.DEGRADED)


class Word(enum.StrEnum):
    """What an operator can say of an endpoint. It holds until another is said, over reloads too."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


class Verdict(enum.Enum):
    """What the probes say."""

    UNPROVED = "unproved"
    UP = "up"
    DOWN = "down"


@attrs.frozen(kw_only=True)
class ProbeResult:
    """What one probe found."""

    ok: bool | None
    """None: the gateway itself could not ask (no file descriptor left, a bug). That says nothing of the endpoint."""
    cause: str
    """What was seen ("status 200") or why it failed ("timed out in head"), for a person."""
    latency: float = 0.0
    """From the begin of the probe to its end (seconds)."""
    size: int = 0
    """Bytes that the endpoint sent."""


@attrs.frozen
class Past:
    """A result and when it came, on the machine's clock."""

    at: float
    result: ProbeResult


@attrs.frozen(kw_only=True)
class Transition:
    """The state changed, or the first verdict came (`previous` is None then)."""

    previous: EndpointState | None
    state: EndpointState
    cause: str
    at: float


@attrs.define(kw_only=True)
class EndpointHealth:
    """One endpoint's facts and the state that follows. Every input takes `now` and returns the transition it made."""

    name: str
    """Stable over reloads and different for each endpoint of the gateway: gives the probe's phase."""
    upstream: Upstream
    endpoint: Endpoint
    born: float
    """`now` at the start."""
    newcomer: bool = False
    """It joins a group that already works, so it gets its share by slow start. At a start of the whole group there is
    nobody to take the rest, and all would climb together."""

    cause: str = attrs.field(default=NOT_PROBED, init=False)
    """Why it is in its state, for a person."""
    since: float = attrs.field(init=False)
    rises: int = attrs.field(default=0, init=False)
    """Successes in a row that count towards a return."""
    falls: int = attrs.field(default=0, init=False)
    """Failures in a row."""
    history: deque[Past] = attrs.field(factory=lambda: deque(maxlen=HISTORY), init=False)
    operator_weight: int | None = attrs.field(default=None, init=False)
    kept_in: str = attrs.field(default="", init=False)
    """Why live traffic would have ejected it, had too many others not been out already."""

    _word: Word = attrs.field(default=Word.READY, init=False)
    _verdict: Verdict = attrs.field(init=False)
    _failure: str = attrs.field(default="", init=False)
    """The last failed probe's cause; `_probe_text` says it with its count."""
    _probe_text: str = attrs.field(default=NOT_PROBED, init=False)
    _eject_text: str = attrs.field(default="", init=False)
    _ejections: Ejections = attrs.field(init=False)
    _ramp: Ramp = attrs.field(init=False)
    _open: bool = attrs.field(default=False, init=False)
    """Whether it takes traffic."""
    _opened_before: bool = attrs.field(default=False, init=False)
    _known: EndpointState | None = attrs.field(default=None, init=False)
    """The state as told in transitions; None while unproved."""
    _cadence: Cadence = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.since = self.born
        self._cadence = Cadence(hash64(self.name.encode()) / 2**64, self.born)
        self._ejections = Ejections(self.upstream.passive)
        self._ramp = Ramp(self.upstream.slow_start)
        self._verdict = Verdict.UP if self.upstream.health is None else Verdict.UNPROVED
        self._settle(self.born, "not probed")

    # -- what is so -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EndpointState:
        """The state now; DOWN while unproved."""
        return self._known or EndpointState.DOWN

    @property
    def unproved(self) -> bool:
        """No probe has answered yet and no operator has spoken: nothing is known for or against it."""
        return self._known is None

    @property
    def weight(self) -> float:
        """Its share: the operator's weight or the config's, times slow start."""
        base = self.endpoint.weight if self.operator_weight is None else self.operator_weight
        return base * self._ramp.factor

    @property
    def usable(self) -> bool:
        """Whether it takes a share of new work."""
        return self._open and self.weight > 0

    # -- inputs -----------------------------------------------------------------------------------------------------

    def observe_probe(self, result: ProbeResult, now: float) -> Transition | None:
        """A probe came back. One that was under way when maintenance began is not listened to."""
        health = self.upstream.health
        if health is None or self._word is Word.MAINT:
            return None
        self.history.append(Past(now, result))
        if result.ok is None:
            return self._settle(now, "")
        why = self._succeeded(result, health, now) if result.ok else self._failed(result, health, now)
        return self._settle(now, why)

    def observe_live(
        self, connect_failures: int, bad_answers: int, cause: str, now: float, *, may_eject: bool = True
    ) -> Transition | None:
        """A worker reports a run of failures at the endpoint, or with zeros that its run is over.

        Runs of several workers are not added up: none of them knows whether the others had successes meanwhile.
        """
        passive = self.upstream.passive
        connects = connect_failures >= passive.connect_failures
        if not (connect_failures or bad_answers):
            self.kept_in = ""
        if not passive.enabled or not self._open or not (connects or bad_answers >= passive.bad_answers):
            return self._settle(now, "")
        run = f"{connect_failures} connects" if connects else f"{bad_answers} answers"
        text = f"live: {cause} ({run} in a row)"
        if not may_eject:
            self.kept_in = text
            return self._settle(now, "")
        self.kept_in = ""
        self.rises = 0
        span = self._ejections.begin(now, connects=connects)
        self._eject_text = f"{text}, out for {format_span(span)}"
        return self._settle(now, self._eject_text)

    def command(self, word: Word, now: float) -> Transition | None:
        """An operator speaks."""
        if word is not Word.DRAIN:
            self._ejections.end(now)
        if self._word is Word.MAINT and word is not Word.MAINT and self.upstream.health is not None:
            self._start_probes(now)
            self._verdict, self._probe_text = Verdict.UNPROVED, NOT_PROBED
        self._word = word
        return self._settle(now, f"operator: {word}")

    def set_weight(self, weight: int | None, now: float) -> Transition | None:
        """An operator's weight instead of the config's; None gives it back."""
        self.operator_weight = weight
        return self._settle(now, "")

    def configure(self, upstream: Upstream, endpoint: Endpoint, now: float) -> Transition | None:
        """A reload changed the config. The verdict stays until new probes say otherwise; without any it is lifted."""
        old, self.upstream, self.endpoint = self.upstream, upstream, endpoint
        self._ejections.spec, self._ramp.spec = upstream.passive, upstream.slow_start
        why = ""
        if upstream.health != old.health:
            self._start_probes(now)
            why = "config: probed in another way"
            if upstream.health is None:
                self._verdict, why = Verdict.UP, "config: no longer probed"
        if not upstream.passive.enabled and self._ejections.until is not None:
            self._ejections.end(now)
            why = "config: live traffic no longer judges"
        if self._ramp.climbing and not upstream.slow_start.window:
            self._ramp.end()
            why = "config: no slow start"
        return self._settle(now, why)

    def tick(self, now: float) -> Transition | None:
        """Time passed: call at `deadline()`, or whenever."""
        return self._settle(now, "")

    # -- time -------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When time alone will change something, so when `tick` is due."""
        # While the last probe failed it is the next probe that decides the end of an ejection, not the clock.
        ejection = None if self.falls else self._ejections.until
        due = [at for at in (ejection, self._ramp.deadline()) if at is not None]
        return min(due, default=None)

    def probe_began(self, now: float, rng: random.Random) -> None:
        """The endpoint is being asked: `next_probe` counts from here, whatever comes of it."""
        self._cadence.began(now, rng)

    def next_probe(self) -> float | None:
        """When the next probe should begin (perhaps already past); None: it is not probed."""
        health = self.upstream.health
        if health is None or self._word is Word.MAINT:
            return None
        return self._cadence.due(health, self._pace())

    def _pace(self) -> Pace:
        if self._verdict is Verdict.DOWN:
            return Pace.CHANGING if self.rises else Pace.DOWN
        refutable = self._ejections.until is not None and self._ejections.may_end_early
        return Pace.CHANGING if self.falls or refutable else Pace.STEADY

    # -- facts ------------------------------------------------------------------------------------------------------

    def _start_probes(self, now: float) -> None:
        self._cadence.restart(now)
        self.rises = self.falls = 0

    def _succeeded(self, result: ProbeResult, health: Health, now: float) -> str:
        """Count a success; the cause of what it changes, "" if nothing."""
        text = f"probe: {result.cause}"
        doubted, self.falls = self.falls > 0, 0
        if self._verdict is Verdict.UNPROVED:
            self._verdict = Verdict.UP
            return f"{text} (first)"
        early = self._ejections.until is not None and self._ejections.may_end_early
        if self._verdict is Verdict.UP and not early:
            return text if doubted else ""
        self.rises += 1
        if self.rises < health.rise:
            return ""
        self.rises = 0
        self._verdict = Verdict.UP
        self._ejections.end(now)
        return f"{text} ({health.rise} of {health.rise})"

    def _failed(self, result: ProbeResult, health: Health, now: float) -> str:
        """Count a failure; the cause of what it changes, "" if nothing."""
        self.rises = 0
        self.falls += 1
        same, self._failure = result.cause == self._failure, result.cause
        if self._verdict is Verdict.DOWN and same:
            return ""  # the count that took it out stays in the text
        need = health.fall
        counted = f" ({self.falls} of {need})"
        if self._verdict is Verdict.DOWN:
            counted = ""
        elif self._verdict is Verdict.UNPROVED:
            need, counted = 1, " (first)"
        elif self._ejections.until is not None:
            need, counted = 1, " (while ejected)"
        self._probe_text = f"probe: {result.cause}{counted}"
        if self.falls >= need:
            self._verdict = Verdict.DOWN
            self._ejections.end(now)
        return self._probe_text

    def _advance(self, now: float) -> str:
        """Let the clock change facts; the cause of what it changed, "" if nothing."""
        until = self._ejections.until
        if until is not None and now >= until and not self.falls:
            self._ejections.end(now)
            return "ejection over"
        return "slow start over" if self._ramp.advance(now) else ""

    # -- the state --------------------------------------------------------------------------------------------------

    def _derive(self, why: str) -> tuple[EndpointState | None, str]:
        """The state that follows from the facts (None: unproved) and its cause; `why` is what happened just now."""
        if self._word is Word.MAINT:
            return EndpointState.MAINT, "operator: maint"
        if self._word is Word.DRAIN:
            return EndpointState.DRAINING, "operator: drain"
        if self._verdict is Verdict.UNPROVED:
            return None, NOT_PROBED
        if self._verdict is Verdict.DOWN:
            return EndpointState.DOWN, self._probe_text
        if self._ejections.until is not None:
            return EndpointState.EJECTED, self._eject_text
        if self.falls:
            return EndpointState.DEGRADED, self._probe_text
        if self._ramp.climbing:
            return EndpointState.DEGRADED, f"{why}; slow start" if why else "slow start"
        return EndpointState.HEALTHY, why

    def _settle(self, now: float, why: str) -> Transition | None:
        """Let time and the facts act; the transition that follows, if one does."""
        why = self._advance(now) or why
        state, cause = self._derive(why)
        opens = state is not None and state.takes_traffic
        if opens and not self._open and (self._opened_before or self.newcomer):
            self._ramp.begin(now)
            state, cause = self._derive(why)
        elif not opens:
            self._ramp.end()
            self.kept_in = ""
        if opens:
            self.rises = 0
        self._open = opens
        self._opened_before = self._opened_before or opens
        if state is self._known:
            # An event that leaves the state as it is may still tell more of it, but does not explain good health.
            if why and state is not EndpointState.HEALTHY:
                self.cause = cause
            return None
        previous, self._known = self._known, state
        self.cause, self.since = cause, now
        return None if state is None else Transition(previous=previous, state=state, cause=cause, at=now)
