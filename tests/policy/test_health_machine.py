"""The machine under any sequence of words: what must hold whatever probes, traffic, operators, reloads and time do."""

from __future__ import annotations

import random

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tcpgate.config.schema import Endpoint, Health, Passive, SlowStart, Upstream
from tcpgate.policy.health import HISTORY, EndpointHealth, EndpointState, ProbeResult, Transition, Word
from tcpgate.units import Seconds

PASSIVE = Passive(eject_for=Seconds(10.0), eject_for_max=Seconds(45.0))
HEALTHS = (None, Health(tcp=True, rise=2, fall=3), Health(http="/", rise=1, fall=1), Health(tls=True, rise=4, fall=2))
CONFIGS = [
    Upstream(endpoints=(Endpoint(address="a:1"),), health=health, passive=passive, slow_start=SlowStart(window=window))
    for health in HEALTHS
    for passive in (PASSIVE, attrs.evolve(PASSIVE, enabled=False))
    for window in (Seconds(0.0), Seconds(30.0))
]
CONNECTS, BAD = PASSIVE.connect_failures, PASSIVE.bad_answers


class AnyLife(RuleBasedStateMachine):
    """Beside the machine runs a model of the probes' verdict alone; the rest is held by invariants."""

    @initialize(which=st.sampled_from(range(len(CONFIGS))), newcomer=st.booleans(), seed=st.integers())
    def start(self, which: int, newcomer: bool, seed: int) -> None:
        config = CONFIGS[which]
        self.now = 1000.0
        self.rng = random.Random(seed)
        endpoint = Endpoint(address="a:1", weight=3)
        self.machine = EndpointHealth(
            name="g/a:1", upstream=config, endpoint=endpoint, born=self.now, newcomer=newcomer
        )
        self.word = Word.READY
        self.base = 3
        self.verdict = "unproved" if config.health else "up"
        self.rises = self.falls = 0
        self.blind = False
        self.last = None if config.health else self.machine.state

    # -- inputs -----------------------------------------------------------------------------------------------------

    @rule(ok=st.sampled_from([True, True, False, False, None]), cause=st.sampled_from(["x", "y"]))
    def probe(self, ok: bool | None, cause: str) -> None:
        health = self.machine.upstream.health
        ejected = self.machine.state is EndpointState.EJECTED
        kept = len(self.machine.history)
        if self.machine.next_probe() is not None:
            self.machine.probe_began(self.now, self.rng)
        transition = self.machine.observe_probe(ProbeResult(ok=ok, cause=cause), self.now)
        if health is None or self.word is Word.MAINT:
            assert transition is None
            assert len(self.machine.history) == kept
            return
        self._model(ok, health, ejected)
        self._check(transition)

    def _model(self, ok: bool | None, health: Health, ejected: bool) -> None:
        if ok is True:
            self.rises, self.falls = self.rises + 1, 0
            if self.verdict == "unproved" or (self.verdict == "down" and self.rises >= health.rise):
                self.verdict = "up"
        elif ok is False:
            self.rises, self.falls = 0, self.falls + 1
            need = 1 if ejected or self.verdict == "unproved" else health.fall
            if self.falls >= need:
                self.verdict = "down"

    @rule(connects=st.integers(0, CONNECTS + 1), bad=st.integers(0, BAD + 1), room=st.booleans())
    def live(self, connects: int, bad: int, room: bool) -> None:
        before = self.machine.state
        transition = self.machine.observe_live(connects, bad, "z", self.now, may_eject=room)
        run = connects >= CONNECTS or bad >= BAD
        ejects = run and room and before.takes_traffic and self.machine.upstream.passive.enabled
        assert (transition is not None and transition.state is EndpointState.EJECTED) == ejects
        self._check(transition)

    @rule(word=st.sampled_from(Word))
    def command(self, word: Word) -> None:
        ejected = self.machine.state is EndpointState.EJECTED
        transition = self.machine.command(word, self.now)
        if self.word is Word.MAINT and word is not Word.MAINT and self.machine.upstream.health:
            self.verdict, self.rises, self.falls = "unproved", 0, 0
        # Draining hides an ejection, and with it whether one failed probe is enough: believe the machine afterwards.
        self.blind = word is Word.DRAIN and (ejected or self.blind)
        if word is Word.READY and self.verdict != "unproved":
            self.verdict = "down" if self.machine.state is EndpointState.DOWN else "up"
        self.word = word
        self._check(transition)

    @rule(weight=st.none() | st.integers(0, 256))
    def weigh(self, weight: int | None) -> None:
        self.base = 3 if weight is None else weight
        self._check(self.machine.set_weight(weight, self.now))

    @rule(which=st.sampled_from(range(len(CONFIGS))))
    def reload(self, which: int) -> None:
        config = CONFIGS[which]
        changed = config.health != self.machine.upstream.health
        transition = self.machine.configure(config, self.machine.endpoint, self.now)
        if changed:
            self.rises = self.falls = 0
            if config.health is None:
                self.verdict = "up"
        self._check(transition)

    @rule(span=st.floats(0, 60))
    def wait(self, span: float) -> None:
        self.now += span
        self._check(self.machine.tick(self.now))

    @precondition(lambda self: self.machine.deadline() is not None)
    @rule()
    def wait_for_the_deadline(self) -> None:
        due = self.machine.deadline()
        assert due is not None
        before = (self.machine.state, self.machine.weight)
        self.now = due
        self._check(self.machine.tick(self.now))
        after = self.machine.deadline()
        assert after is None or after > due, "each deadline gets it on"
        assert before[0] is not EndpointState.EJECTED or self.machine.state is not EndpointState.EJECTED

    def _check(self, transition: Transition | None) -> None:
        known = None if self.machine.unproved else self.machine.state
        if transition is None:
            assert known is None or known is self.last, "a state never changes in silence"
        else:
            assert transition.previous is self.last
            assert transition.state is known
            assert transition.state is not transition.previous
            assert transition.cause == self.machine.cause != ""
            assert transition.at == self.machine.since == self.now
        self.last = known

    # -- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def words_win(self) -> None:
        state = self.machine.state
        assert (state is EndpointState.MAINT) == (self.word is Word.MAINT)
        assert (state is EndpointState.DRAINING) == (self.word is Word.DRAIN)
        assert not (self.machine.usable and self.word is not Word.READY)

    @invariant()
    def the_verdict_is_exact(self) -> None:
        if self.word is Word.READY and not self.blind:
            assert (self.machine.state is EndpointState.DOWN) == (self.verdict != "up")
            assert self.machine.unproved == (self.verdict == "unproved")

    @invariant()
    def it_is_usable_only_in_a_state_that_takes_traffic_and_with_a_weight(self) -> None:
        assert self.machine.usable == (self.machine.state.takes_traffic and self.machine.weight > 0)
        floor = self.machine.upstream.slow_start.floor
        assert self.base * floor <= self.machine.weight <= self.base
        if self.machine.weight < self.base:
            assert self.machine.state is EndpointState.DEGRADED

    @invariant()
    def nothing_is_overdue_and_an_ejection_ends(self) -> None:
        due = self.machine.deadline()
        assert due is None or due > self.now
        if self.machine.state is EndpointState.DOWN:
            assert due is None, "only a probe brings it back"
        if self.machine.usable:
            assert self.machine.rises == 0
        if self.machine.state is EndpointState.EJECTED and not self.machine.falls:
            assert due is not None
            assert due <= self.now + PASSIVE.eject_for_max

    @invariant()
    def it_is_probed_unless_in_maintenance(self) -> None:
        probed = self.machine.upstream.health is not None and self.word is not Word.MAINT
        assert (self.machine.next_probe() is not None) == probed
        assert len(self.machine.history) <= HISTORY


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
