"""One endpoint's machine, scene by scene: who says what, which state follows, and why it says so."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import pytest

from tcpgate.config.schema import Endpoint, Health, Passive, SlowStart, Upstream
from tcpgate.policy.health import HISTORY, EndpointHealth, EndpointState, ProbeResult, Transition, Word
from tcpgate.units import Seconds

HEALTHY, DEGRADED, DOWN = EndpointState.HEALTHY, EndpointState.DEGRADED, EndpointState.DOWN
EJECTED, DRAINING, MAINT = EndpointState.EJECTED, EndpointState.DRAINING, EndpointState.MAINT

ENDPOINT = Endpoint(address="10.0.0.1:80", weight=4)
PROBED = Upstream(endpoints=(ENDPOINT,), health=Health(tcp=True, rise=2, fall=3))
UNPROBED = Upstream(endpoints=(ENDPOINT,))
OK = ProbeResult(ok=True, cause="status 200")
REFUSED = ProbeResult(ok=False, cause="connect refused")
TIMED_OUT = ProbeResult(ok=False, cause="timed out in head")


def machine(upstream: Upstream = PROBED, *, now: float = 0.0, newcomer: bool = False) -> EndpointHealth:
    return EndpointHealth(name="api/10.0.0.1:80", upstream=upstream, endpoint=ENDPOINT, born=now, newcomer=newcomer)


def healthy(upstream: Upstream = PROBED) -> EndpointHealth:
    """One that has passed its first probe."""
    endpoint = machine(upstream)
    endpoint.observe_probe(OK, 0.0)
    assert endpoint.state is HEALTHY
    return endpoint


def down(upstream: Upstream = PROBED) -> EndpointHealth:
    endpoint = machine(upstream)
    endpoint.observe_probe(REFUSED, 0.0)
    assert endpoint.state is DOWN
    return endpoint


def slow_start(upstream: Upstream, window: float = 10.0, **more: float) -> Upstream:
    return attrs.evolve(upstream, slow_start=SlowStart(window=Seconds(window), **more))


def step(transition: Transition | None) -> tuple[EndpointState | None, EndpointState] | None:
    return (transition.previous, transition.state) if transition else None


# -- the first verdict ----------------------------------------------------------------------------------------------


def test_an_endpoint_without_probes_is_healthy_from_the_start() -> None:
    endpoint = machine(UNPROBED)
    assert (endpoint.state, endpoint.unproved, endpoint.usable, endpoint.cause) == (HEALTHY, False, True, "not probed")
    assert endpoint.next_probe() is None
    assert endpoint.deadline() is None
    assert endpoint.observe_probe(REFUSED, 1.0) is None, "a probe of an earlier config came late"
    assert endpoint.state is HEALTHY


def test_a_probed_endpoint_is_unproved_and_takes_nothing_until_its_first_answer() -> None:
    endpoint = machine()
    assert (endpoint.state, endpoint.unproved, endpoint.usable) == (DOWN, True, False)
    assert endpoint.cause == "probe: no answer yet"
    assert endpoint.tick(100.0) is None, "time alone proves nothing"


def test_one_success_is_enough_for_the_first_verdict() -> None:
    endpoint = machine()
    assert endpoint.observe_probe(OK, 1.0) == Transition(
        previous=None, state=HEALTHY, cause="probe: status 200 (first)", at=1.0
    )
    assert (endpoint.unproved, endpoint.usable, endpoint.weight, endpoint.since) == (False, True, 4, 1.0)


def test_one_failure_is_enough_for_the_first_verdict() -> None:
    endpoint = machine()
    transition = endpoint.observe_probe(REFUSED, 1.0)
    assert transition == Transition(previous=None, state=DOWN, cause="probe: connect refused (first)", at=1.0)
    assert not endpoint.unproved


def test_a_probe_that_the_gateway_could_not_make_decides_nothing() -> None:
    unable = ProbeResult(ok=None, cause="could not ask: Too many open files")
    fresh, up = machine(), healthy()
    for endpoint in (fresh, up):
        for now in range(10):
            assert endpoint.observe_probe(unable, float(now)) is None
    assert fresh.unproved
    assert up.state is HEALTHY
    assert up.history[-1].result is unable


# -- probes ---------------------------------------------------------------------------------------------------------


def test_fall_failures_in_a_row_take_it_down_and_each_says_how_far_it_is() -> None:
    endpoint = healthy()
    assert step(endpoint.observe_probe(REFUSED, 1.0)) == (HEALTHY, DEGRADED)
    assert endpoint.cause == "probe: connect refused (1 of 3)"
    assert endpoint.weight == 4, "doubt costs no weight"
    assert endpoint.observe_probe(TIMED_OUT, 2.0) is None
    assert endpoint.cause == "probe: timed out in head (2 of 3)"
    assert endpoint.observe_probe(REFUSED, 3.0) == Transition(
        previous=DEGRADED, state=DOWN, cause="probe: connect refused (3 of 3)", at=3.0
    )


def test_a_success_between_failures_starts_the_count_anew() -> None:
    endpoint = healthy()
    endpoint.observe_probe(REFUSED, 1.0)
    endpoint.observe_probe(REFUSED, 2.0)
    assert step(endpoint.observe_probe(OK, 3.0)) == (DEGRADED, HEALTHY)
    assert endpoint.cause == "probe: status 200"
    endpoint.observe_probe(REFUSED, 4.0)
    endpoint.observe_probe(REFUSED, 5.0)
    assert endpoint.state is DEGRADED


def test_rise_successes_in_a_row_bring_it_back() -> None:
    endpoint = down()
    assert endpoint.observe_probe(OK, 1.0) is None
    assert endpoint.observe_probe(REFUSED, 2.0) is None
    assert endpoint.observe_probe(OK, 3.0) is None
    transition = endpoint.observe_probe(OK, 4.0)
    assert transition == Transition(previous=DOWN, state=HEALTHY, cause="probe: status 200 (2 of 2)", at=4.0)


def test_a_down_endpoint_tells_its_newest_failure_and_keeps_the_count_that_took_it_out() -> None:
    endpoint = healthy()
    for now in (1.0, 2.0, 3.0, 4.0):
        endpoint.observe_probe(REFUSED, now)
    assert endpoint.cause == "probe: connect refused (3 of 3)"
    endpoint.observe_probe(TIMED_OUT, 5.0)
    assert endpoint.cause == "probe: timed out in head"
    assert endpoint.falls == 5


def test_the_last_twenty_results_are_kept_with_their_times() -> None:
    endpoint = healthy()
    for now in range(1, 101):
        endpoint.observe_probe(OK if now % 2 else REFUSED, float(now))
    assert len(endpoint.history) == HISTORY
    assert [past.at for past in endpoint.history] == [float(now) for now in range(81, 101)]
    assert endpoint.history[-1].result is REFUSED


# -- live traffic ---------------------------------------------------------------------------------------------------


def test_a_run_of_failed_connects_ejects_for_a_while_and_says_why() -> None:
    endpoint = machine(UNPROBED)
    assert endpoint.observe_live(2, 0, "connect refused", 1.0) is None
    transition = endpoint.observe_live(3, 0, "connect refused", 1.0)
    assert step(transition) == (HEALTHY, EJECTED)
    assert endpoint.cause == "live: connect refused (3 connects in a row), out for 10s"
    assert endpoint.deadline() == 11.0
    assert endpoint.tick(10.9) is None
    assert endpoint.tick(11.0) == Transition(previous=EJECTED, state=HEALTHY, cause="ejection over", at=11.0)


def test_a_run_of_bad_answers_ejects_with_another_cause() -> None:
    endpoint = machine(UNPROBED)
    assert endpoint.observe_live(0, 4, "status 503", 1.0) is None
    assert step(endpoint.observe_live(0, 5, "status 503", 1.0)) == (HEALTHY, EJECTED)
    assert endpoint.cause == "live: status 503 (5 answers in a row), out for 10s"


def test_reports_that_were_under_way_do_not_prolong_an_ejection() -> None:
    endpoint = machine(UNPROBED)
    endpoint.observe_live(3, 0, "connect refused", 0.0)
    assert endpoint.observe_live(9, 0, "connect refused", 5.0) is None
    assert endpoint.deadline() == 10.0


def test_ejections_that_follow_soon_last_twice_as_long_each_up_to_the_maximum() -> None:
    passive = Passive(eject_for=Seconds(10.0), eject_for_max=Seconds(60.0))
    endpoint = machine(attrs.evolve(UNPROBED, passive=passive))
    now, spans = 0.0, []
    for _ in range(6):
        endpoint.observe_live(3, 0, "connect refused", now)
        back = endpoint.deadline()
        assert back is not None
        spans.append(back - now)
        endpoint.tick(back)
        now = back + 1.0
    assert spans == [10, 20, 40, 60, 60, 60]


def test_calm_takes_doublings_back_one_span_at_a_time() -> None:
    endpoint = machine(UNPROBED)

    def eject(now: float) -> float:
        endpoint.observe_live(3, 0, "connect refused", now)
        back = endpoint.deadline()
        assert back is not None
        endpoint.tick(back)
        return back - now

    assert eject(0.0) == 10  # back at 10
    assert eject(11.0) == 20  # back at 31
    assert eject(31.0 + 20.0) == 20, "20 s of calm healed the second"  # back at 71
    assert eject(71.0 + 19.9) == 40, "19.9 s healed nothing"  # back at 130.9
    assert eject(130.9 + 40.0 + 20.0 + 10.0) == 10, "all is forgiven"


def test_live_traffic_that_is_not_to_judge_is_not_heard() -> None:
    endpoint = machine(attrs.evolve(UNPROBED, passive=Passive(enabled=False)))
    assert endpoint.observe_live(1000, 1000, "connect refused", 1.0) is None
    assert endpoint.state is HEALTHY


def test_over_the_limit_it_is_kept_in_until_its_run_ends() -> None:
    endpoint = machine(UNPROBED)
    assert endpoint.observe_live(3, 0, "connect refused", 1.0, may_eject=False) is None
    assert endpoint.state is HEALTHY
    assert endpoint.kept_in == "live: connect refused (3 connects in a row)"
    endpoint.observe_live(0, 0, "", 2.0)
    assert endpoint.kept_in == ""


def test_a_kept_in_endpoint_is_ejected_once_there_is_room() -> None:
    endpoint = machine(UNPROBED)
    endpoint.observe_live(3, 0, "connect refused", 1.0, may_eject=False)
    assert step(endpoint.observe_live(4, 0, "connect refused", 2.0)) == (HEALTHY, EJECTED)
    assert endpoint.kept_in == ""


# -- both witnesses -------------------------------------------------------------------------------------------------


def test_one_failed_probe_takes_an_ejected_endpoint_down() -> None:
    endpoint = healthy()
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    transition = endpoint.observe_probe(REFUSED, 2.0)
    assert transition == Transition(
        previous=EJECTED, state=DOWN, cause="probe: connect refused (while ejected)", at=2.0
    )
    assert endpoint.deadline() is None, "from here probes decide, not the clock"
    endpoint.observe_probe(OK, 3.0)
    assert step(endpoint.observe_probe(OK, 3.5)) == (DOWN, HEALTHY)


def test_rise_successes_refute_a_first_ejection_for_failed_connects() -> None:
    endpoint = healthy()
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    assert endpoint.observe_probe(OK, 1.5) is None
    transition = endpoint.observe_probe(OK, 2.0)
    assert transition == Transition(previous=EJECTED, state=HEALTHY, cause="probe: status 200 (2 of 2)", at=2.0)
    assert endpoint.rises == 0


def test_going_down_out_of_an_ejection_ends_it_for_good() -> None:
    endpoint = healthy()
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    endpoint.observe_probe(REFUSED, 2.0)
    assert step(endpoint.configure(UNPROBED, ENDPOINT, 3.0)) == (DOWN, HEALTHY)


def test_successes_that_an_ejection_outlived_do_not_count_later() -> None:
    endpoint = healthy()
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    endpoint.observe_probe(OK, 10.0)
    assert endpoint.rises == 1
    endpoint.tick(11.0)
    assert (endpoint.state, endpoint.rises) == (HEALTHY, 0)


def test_probes_do_not_shorten_an_ejection_that_follows_soon_after_another() -> None:
    endpoint = healthy()
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    endpoint.observe_probe(OK, 1.5)
    endpoint.observe_probe(OK, 2.0)
    endpoint.observe_live(3, 0, "connect refused", 3.0)
    for now in range(4, 23):
        assert endpoint.observe_probe(OK, float(now)) is None
    assert step(endpoint.observe_probe(OK, 23.0)) == (EJECTED, HEALTHY)
    assert endpoint.cause == "ejection over"


def test_probes_do_not_shorten_an_ejection_for_bad_answers() -> None:
    endpoint = healthy()
    endpoint.observe_live(0, 5, "status 500", 1.0)
    for now in range(2, 11):
        assert endpoint.observe_probe(OK, float(now)) is None
    assert step(endpoint.tick(11.0)) == (EJECTED, HEALTHY)


def test_an_ejection_that_is_over_waits_for_the_next_probe_if_the_last_one_failed() -> None:
    endpoint = healthy()
    endpoint.observe_probe(REFUSED, 0.5)
    endpoint.observe_live(0, 5, "status 500", 1.0)
    assert endpoint.state is EJECTED
    assert endpoint.deadline() is None
    assert endpoint.tick(12.0) is None
    assert step(endpoint.observe_probe(OK, 13.0)) == (EJECTED, HEALTHY)


# -- operators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "state"), [(Word.DRAIN, DRAINING), (Word.MAINT, MAINT)])
@pytest.mark.parametrize("start", [machine, healthy, down])
def test_an_operators_word_wins_over_every_witness(
    start: Callable[[], EndpointHealth], word: Word, state: EndpointState
) -> None:
    endpoint = start()
    previous = None if endpoint.unproved else endpoint.state
    transition = endpoint.command(word, 1.0)
    assert transition == Transition(previous=previous, state=state, cause=f"operator: {word}", at=1.0)
    for now in (2.0, 3.0, 4.0):
        assert endpoint.observe_probe(OK, now) is None
        assert endpoint.observe_live(99, 99, "connect refused", now) is None
    assert (endpoint.state, endpoint.usable, endpoint.cause) == (state, False, f"operator: {word}")
    assert endpoint.command(word, 5.0) is None, "said twice is said once"


def test_a_draining_endpoint_is_still_probed_and_comes_back_with_what_they_found() -> None:
    endpoint = healthy()
    endpoint.command(Word.DRAIN, 1.0)
    assert endpoint.next_probe() is not None
    for now in (2.0, 3.0, 4.0):
        endpoint.observe_probe(REFUSED, now)
    transition = endpoint.command(Word.READY, 5.0)
    assert transition == Transition(previous=DRAINING, state=DOWN, cause="probe: connect refused (3 of 3)", at=5.0)


def test_after_maintenance_a_probed_endpoint_is_unproved_again_and_probed_soon() -> None:
    endpoint = healthy()
    endpoint.command(Word.MAINT, 1.0)
    assert endpoint.next_probe() is None
    assert endpoint.command(Word.READY, 100.0) is None, "nothing is known that could be told"
    assert (endpoint.state, endpoint.unproved) == (DOWN, True)
    due = endpoint.next_probe()
    assert due is not None
    assert 100.0 <= due <= 100.1
    assert step(endpoint.observe_probe(OK, 100.2)) == (None, HEALTHY)


def test_after_maintenance_and_a_drain_a_probed_endpoint_has_to_prove_itself_too() -> None:
    endpoint = healthy()
    endpoint.command(Word.MAINT, 10.0)
    assert endpoint.command(Word.DRAIN, 1000.0) == Transition(
        previous=MAINT, state=DRAINING, cause="operator: drain", at=1000.0
    )
    next_probe = endpoint.next_probe()
    assert next_probe is not None
    assert 1000.0 <= next_probe <= 1000.1
    endpoint.command(Word.READY, 1000.05)
    assert (endpoint.unproved, endpoint.usable) == (True, False), "what it was before maintenance proves nothing"
    assert step(endpoint.observe_probe(REFUSED, 1000.1)) == (None, DOWN)


def test_probes_during_a_drain_after_maintenance_count() -> None:
    endpoint = healthy()
    endpoint.command(Word.MAINT, 10.0)
    endpoint.command(Word.DRAIN, 1000.0)
    endpoint.observe_probe(OK, 1000.1)
    assert step(endpoint.command(Word.READY, 1001.0)) == (DRAINING, HEALTHY)


def test_after_maintenance_an_unprobed_endpoint_is_healthy_at_once() -> None:
    endpoint = machine(UNPROBED)
    endpoint.command(Word.MAINT, 1.0)
    assert endpoint.command(Word.READY, 2.0) == Transition(
        previous=MAINT, state=HEALTHY, cause="operator: ready", at=2.0
    )


def test_the_word_ready_ends_an_ejection_but_does_not_overrule_probes() -> None:
    ejected, dead = machine(UNPROBED), down()
    ejected.observe_live(3, 0, "connect refused", 1.0)
    assert step(ejected.command(Word.READY, 2.0)) == (EJECTED, HEALTHY)
    assert dead.command(Word.READY, 2.0) is None
    assert dead.state is DOWN


def test_an_operators_weight_wins_over_the_configs_until_it_is_taken_back() -> None:
    endpoint = healthy()
    assert endpoint.set_weight(0, 1.0) is None
    assert (endpoint.weight, endpoint.usable, endpoint.state) == (0, False, HEALTHY)
    endpoint.configure(PROBED, attrs.evolve(ENDPOINT, weight=9), 2.0)
    assert endpoint.weight == 0
    endpoint.set_weight(None, 3.0)
    assert endpoint.weight == 9


# -- slow start -----------------------------------------------------------------------------------------------------


def test_an_endpoint_that_comes_back_climbs_in_steps_to_its_full_weight() -> None:
    endpoint = machine(slow_start(UNPROBED))
    assert endpoint.state is HEALTHY, "at a start of all there is no slow start"
    endpoint.observe_live(3, 0, "connect refused", 0.0)
    assert step(endpoint.tick(10.0)) == (EJECTED, DEGRADED)
    assert endpoint.cause == "ejection over; slow start"
    weights, now, transition = [endpoint.weight], 10.0, None
    while (due := endpoint.deadline()) is not None:
        assert due > now
        now = due
        transition = endpoint.tick(now)
        weights.append(endpoint.weight)
    assert now == 20.0
    assert step(transition) == (DEGRADED, HEALTHY)
    assert endpoint.cause == "slow start over"
    assert weights == pytest.approx([0.4, 0.4, *(4 * n / 20 for n in range(2, 21))])
    assert len(weights) == 21


def test_aggression_bends_the_climb_as_envoy_does() -> None:
    endpoint = machine(slow_start(UNPROBED, aggression=2.0, floor=0.3), newcomer=True)
    assert endpoint.state is DEGRADED
    assert endpoint.weight == pytest.approx(4 * 0.3)
    endpoint.tick(5.0)
    assert endpoint.weight == pytest.approx(4 * 0.5**0.5)


def test_a_newcomer_to_a_working_group_starts_slowly() -> None:
    endpoint = machine(slow_start(PROBED), newcomer=True)
    assert step(endpoint.observe_probe(OK, 1.0)) == (None, DEGRADED)
    assert endpoint.cause == "probe: status 200 (first); slow start"
    assert endpoint.weight == pytest.approx(0.4)


def test_going_out_while_climbing_starts_the_climb_anew() -> None:
    endpoint = machine(slow_start(UNPROBED), newcomer=True)
    endpoint.tick(9.0)
    endpoint.command(Word.DRAIN, 9.0)
    assert endpoint.deadline() is None
    endpoint.command(Word.READY, 9.5)
    assert endpoint.weight == pytest.approx(0.4)
    assert endpoint.deadline() == pytest.approx(10.0)


def test_doubt_while_climbing_says_the_doubt_and_then_the_climb_again() -> None:
    endpoint = machine(slow_start(PROBED), newcomer=True)
    endpoint.observe_probe(OK, 0.0)
    endpoint.observe_probe(REFUSED, 1.0)
    assert (endpoint.state, endpoint.cause) == (DEGRADED, "probe: connect refused (1 of 3)")
    endpoint.observe_probe(OK, 2.0)
    assert (endpoint.state, endpoint.cause) == (DEGRADED, "probe: status 200; slow start")


# -- reloads --------------------------------------------------------------------------------------------------------


def test_a_new_probe_keeps_the_verdict_of_the_old_one_and_starts_soon() -> None:
    for endpoint, state in ((healthy(), HEALTHY), (down(), DOWN)):
        assert endpoint.configure(attrs.evolve(PROBED, health=Health(http="/healthz")), ENDPOINT, 50.0) is None
        assert endpoint.state is state
        due = endpoint.next_probe()
        assert due is not None
        assert 50.0 <= due <= 50.1


def test_the_first_probe_of_a_healthy_unprobed_endpoint_does_not_take_it_out_meanwhile() -> None:
    endpoint = machine(UNPROBED)
    assert endpoint.configure(PROBED, ENDPOINT, 1.0) is None
    assert (endpoint.state, endpoint.unproved) == (HEALTHY, False)
    assert step(endpoint.observe_probe(REFUSED, 2.0)) == (HEALTHY, DEGRADED)


def test_an_endpoint_that_is_no_longer_probed_is_no_longer_down() -> None:
    for endpoint in (down(), machine()):
        transition = endpoint.configure(UNPROBED, ENDPOINT, 5.0)
        assert transition is not None
        assert (transition.state, transition.cause) == (HEALTHY, "config: no longer probed")


def test_doubt_from_the_old_probe_is_dropped_with_it() -> None:
    endpoint = healthy()
    endpoint.observe_probe(REFUSED, 1.0)
    transition = endpoint.configure(attrs.evolve(PROBED, health=Health(http="/")), ENDPOINT, 2.0)
    assert transition == Transition(previous=DEGRADED, state=HEALTHY, cause="config: probed in another way", at=2.0)


def test_switching_live_judgement_off_ends_an_ejection() -> None:
    endpoint = machine(UNPROBED)
    endpoint.observe_live(3, 0, "connect refused", 1.0)
    transition = endpoint.configure(attrs.evolve(UNPROBED, passive=Passive(enabled=False)), ENDPOINT, 2.0)
    assert transition is not None
    assert (transition.state, transition.cause) == (HEALTHY, "config: live traffic no longer judges")


def test_switching_slow_start_off_gives_the_full_weight_at_once() -> None:
    endpoint = machine(slow_start(UNPROBED), newcomer=True)
    transition = endpoint.configure(UNPROBED, ENDPOINT, 1.0)
    assert transition == Transition(previous=DEGRADED, state=HEALTHY, cause="config: no slow start", at=1.0)
    assert endpoint.weight == 4


def test_an_operators_word_and_an_ejection_outlive_a_reload() -> None:
    drained, ejected = healthy(), machine(UNPROBED)
    drained.command(Word.DRAIN, 1.0)
    drained.configure(attrs.evolve(PROBED, health=Health(http="/")), ENDPOINT, 2.0)
    assert drained.state is DRAINING
    ejected.observe_live(3, 0, "connect refused", 1.0)
    ejected.configure(attrs.evolve(UNPROBED, balance="random"), attrs.evolve(ENDPOINT, weight=7), 2.0)
    assert ejected.state is EJECTED
    assert ejected.deadline() == 11.0


# -- when to probe --------------------------------------------------------------------------------------------------


def test_a_failing_endpoint_is_probed_fast_until_it_is_decided() -> None:
    endpoint, rng = healthy(), random.Random(1)

    def pause_after(result: ProbeResult, now: float) -> float:
        endpoint.probe_began(now, rng)
        endpoint.observe_probe(result, now)
        due = endpoint.next_probe()
        assert due is not None
        return due - now

    pause_after(OK, 0.0)
    assert 1.8 <= pause_after(OK, 2.0) <= 2.0
    assert 0.45 <= pause_after(REFUSED, 4.0) <= 0.5
    assert 0.45 <= pause_after(REFUSED, 4.5) <= 0.5
    assert 1.35 <= pause_after(REFUSED, 5.0) <= 1.5, "down: so that the second success is 2 s after the return"
    assert 0.45 <= pause_after(OK, 6.5) <= 0.5, "a return is near"
    assert 1.8 <= pause_after(OK, 7.0) <= 2.0


def test_an_ejection_is_looked_into_fast_only_if_probes_can_end_it() -> None:
    rng = random.Random(1)
    for connects, bad, low, high in ((3, 0, 0.45, 0.5), (0, 5, 1.8, 2.0)):
        endpoint = healthy()
        endpoint.probe_began(0.0, rng)
        endpoint.probe_began(2.0, rng)
        endpoint.observe_live(connects, bad, "broken", 2.0)
        due = endpoint.next_probe()
        assert due is not None
        assert low <= due - 2.0 <= high
