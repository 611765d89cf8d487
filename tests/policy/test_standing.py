"""How an upstream stands as a whole, told once per change."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.schema import Endpoint, Upstream
from tcpgate.policy.health import EndpointState
from tcpgate.policy.standing import Standings

HEALTHY, DOWN, MAINT = EndpointState.HEALTHY, EndpointState.DOWN, EndpointState.MAINT


@attrs.frozen
class Seen:
    """An endpoint's status, as far as standings look."""

    state: EndpointState
    endpoint: str = "a:1"
    upstream: str = "api"
    weight: float = 1.0
    unproved: bool = False


def upstream(panic_below: int = 0, panic: str = "all") -> Upstream:
    endpoints = tuple(Endpoint(address=f"{index}:1") for index in range(4))
    return Upstream(endpoints=endpoints, panic_below=panic_below, panic=panic)  # type: ignore[arg-type]


def kinds(standings: Standings, spec: Upstream, *states: EndpointState) -> list[str]:
    spec = attrs.evolve(spec, endpoints=spec.endpoints[: len(states)])
    seen = [Seen(state, f"{index}:1") for index, state in enumerate(states)]
    return [change.kind for change in standings.judge({"api": spec}, seen)]


def test_nobody_left_and_somebody_again_are_told_once_each() -> None:
    standings, spec = Standings(), upstream()
    assert kinds(standings, spec, HEALTHY, HEALTHY) == []
    assert kinds(standings, spec, HEALTHY, DOWN) == []
    assert kinds(standings, spec, DOWN, DOWN) == ["upstream_down"]
    assert kinds(standings, spec, DOWN, DOWN) == []
    assert kinds(standings, spec, DOWN, HEALTHY) == ["upstream_up"]


def test_panic_to_all_still_serves_and_panic_to_fail_does_not() -> None:
    standings = Standings()
    assert kinds(standings, upstream(50), HEALTHY, DOWN, DOWN) == ["panic_on"]
    assert kinds(standings, upstream(50), DOWN, DOWN, DOWN) == []
    assert kinds(standings, upstream(50), HEALTHY, HEALTHY, DOWN) == ["panic_off"]
    assert kinds(standings, upstream(50, "fail"), DOWN, DOWN, DOWN) == ["panic_on", "upstream_down"]


def test_endpoints_that_reloads_have_taken_away_are_forgotten() -> None:
    standings = Standings()
    for number in range(100):
        spec = Upstream(endpoints=(Endpoint(address=f"{number}:1"),))
        assert standings.judge({"api": spec}, [Seen(HEALTHY, f"{number}:1")]) == []
    assert len(standings._seen["api"]) == 1
    assert standings.judge({}, [Seen(DOWN, "late:1")]) == []
    assert not standings._seen


def test_changes_come_in_the_order_of_what_was_seen() -> None:
    names = [f"u{number}" for number in range(20)]
    specs = {name: upstream() for name in names}
    changes = Standings().judge(specs, [Seen(DOWN, "0:1", name) for name in reversed(names)])
    assert [change.upstream for change in changes] == names[::-1]


def test_maintenance_makes_no_panic_but_can_leave_nobody() -> None:
    standings = Standings()
    assert kinds(standings, upstream(50), HEALTHY, MAINT, MAINT) == []
    assert kinds(standings, upstream(50), MAINT, MAINT, MAINT) == ["upstream_down"]


def test_an_upstream_that_nobody_has_probed_yet_is_not_down() -> None:
    standings = Standings()
    assert standings.judge({"api": upstream()}, [Seen(DOWN, "0:1", unproved=True), Seen(DOWN, "1:1")]) == []


def test_an_upstream_that_a_reload_removes_is_forgotten() -> None:
    standings, spec = Standings(), upstream()
    assert kinds(standings, spec, DOWN) == ["upstream_down"]
    assert standings.judge({}, []) == []
    assert kinds(standings, spec, DOWN) == ["upstream_down"]


def test_what_one_endpoint_says_is_held_against_what_the_others_said_before() -> None:
    standings, spec = Standings(), attrs.evolve(upstream(), endpoints=upstream().endpoints[:2])
    assert standings.judge({"api": spec}, [Seen(HEALTHY, "0:1"), Seen(DOWN, "1:1")]) == []
    (change,) = standings.judge({"api": spec}, [Seen(DOWN, "0:1")])
    assert change.kind == "upstream_down"
    assert "0 of 2 endpoints" in change.text


def test_a_reload_that_leaves_only_the_lost_ones_is_news() -> None:
    standings = Standings()
    assert kinds(standings, upstream(), DOWN, HEALTHY) == []
    assert kinds(standings, upstream(), DOWN) == ["upstream_down"]


@given(st.lists(st.lists(st.sampled_from(EndpointState), min_size=1, max_size=4), max_size=20), st.integers(0, 100))
def test_changes_alternate_whatever_happens(story: list[list[EndpointState]], panic_below: int) -> None:
    standings, spec = Standings(), upstream(panic_below)
    told = [kind for states in story for kind in kinds(standings, spec, *states)]
    for first, second in (("upstream_down", "upstream_up"), ("panic_on", "panic_off")):
        only = [kind for kind in told if kind in (first, second)]
        assert only == [first, second] * (len(only) // 2) + [first] * (len(only) % 2)
