"""The board: tasks, words and reloads, on a clock that jumps and with probes that answer what the test says."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import attrs
import pytest
import trio
import trio.testing
from trio.abc import Clock

from tcpgate.config.schema import Endpoint, Health, Passive, SlowStart, Upstream
from tcpgate.control.health import HealthBoard
from tcpgate.policy.health import EndpointState, ProbeResult, Word
from tcpgate.state.messages import EndpointStatus, Observed
from tcpgate.state.reach import Reach
from tcpgate.stats.journal import Journal
from tcpgate.units import Seconds

HEALTHY, DEGRADED, DOWN = EndpointState.HEALTHY, EndpointState.DEGRADED, EndpointState.DOWN
EJECTED, DRAINING, MAINT = EndpointState.EJECTED, EndpointState.DRAINING, EndpointState.MAINT
OK = ProbeResult(ok=True, cause="status 200", latency=0.001, size=12)
REFUSED = ProbeResult(ok=False, cause="connect refused")
TCP = Health(tcp=True)


def upstream(
    *addresses: str,
    health: Health | None = TCP,
    passive: Passive | None = None,
    slow_start: SlowStart | None = None,
) -> Upstream:
    endpoints = tuple(Endpoint(address=address) for address in addresses)
    return Upstream(
        endpoints=endpoints, health=health, passive=passive or Passive(), slow_start=slow_start or SlowStart()
    )


@attrs.define
class World:
    """The board with everything around it made up: origins that answer from a table, and ears for what is told."""

    probes: trio.Nursery
    origins: dict[str, ProbeResult | Exception | None] = attrs.field(factory=dict)
    """Address -> what a probe finds; None: it hangs until its deadline. Not there: it answers."""
    asked: list[tuple[float, str, Health]] = attrs.field(factory=list)
    under_way: int = 0
    published: list[EndpointStatus] = attrs.field(factory=list)
    told: list[tuple[str, str, str, Mapping[str, str | int | float]]] = attrs.field(factory=list)
    journal: Journal = attrs.field(factory=Journal)
    """As in the supervisor: it knows each kind's level."""
    board: HealthBoard = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.board = HealthBoard(publish=self.publish, tell=self.tell, ask=self.ask, rng=random.Random(1))

    async def ask(self, spec: Health, address: str, deadline: float, reach: Reach) -> ProbeResult:
        self.asked.append((trio.current_time(), address, spec))
        self.under_way += 1
        try:
            answer = self.origins.get(address, OK)
            await trio.sleep(0.001)
            if answer is None:
                await trio.sleep_until(deadline)
                return ProbeResult(ok=False, cause="timed out in connect")
        finally:
            self.under_way -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def publish(self, statuses: Sequence[EndpointStatus]) -> None:
        assert statuses, "nothing is published in vain"
        self.published += statuses

    def tell(self, kind: str, level: str, text: str, facts: Mapping[str, str | int | float]) -> None:
        event = self.journal.tell(kind, level, text, facts, ts=0.0)
        self.told.append((event.kind, event.level, event.text, event.facts))

    def apply(self, **upstreams: Upstream) -> None:
        self.board.apply(upstreams, self.probes)

    def state(self, endpoint: str, upstream: str = "api") -> EndpointState:
        return self.status(endpoint, upstream).state

    def status(self, endpoint: str, upstream: str = "api") -> EndpointStatus:
        [status] = [s for s in self.board.statuses() if (s.upstream, s.endpoint) == (upstream, endpoint)]
        return status

    def kinds(self) -> list[str]:
        return [kind for kind, *_ in self.told]

    async def until(self, endpoint: str, state: EndpointState) -> float:
        """Seconds until the endpoint is in that state."""
        began = trio.current_time()
        with trio.fail_after(3600):
            while self.state(endpoint) is not state:
                await trio.sleep(0.01)
        return trio.current_time() - began

    def refused(self, endpoint: str, times: int = 3) -> None:
        """A worker reports a run of refused connects."""
        self.board.observe(Observed(upstream="api", endpoint=endpoint, connect_failures=times, cause="connect refused"))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as probes:
        yield World(probes)
        probes.cancel_scope.cancel()


# -- the first round ------------------------------------------------------------------------------------------------


async def test_the_first_round_is_over_when_every_probed_endpoint_has_answered_either_way(
    autojump_clock: Clock, world: World
) -> None:
    world.origins["b:1"] = REFUSED
    world.apply(api=upstream("a:1", "b:1"), db=upstream("c:1", health=None))
    assert [(s.endpoint, s.state, s.unproved) for s in world.published] == [
        ("a:1", DOWN, True),
        ("b:1", DOWN, True),
        ("c:1", HEALTHY, False),
    ]
    assert world.board.unproved() == ["api/a:1", "api/b:1"]
    with trio.fail_after(0.2):
        await world.board.wait_first_round()
    assert world.board.unproved() == []
    assert (world.state("a:1"), world.state("b:1")) == (HEALTHY, DOWN)
    assert [(kind, level, text) for kind, level, text, _ in sorted(world.told, key=lambda told: told[2])] == [
        ("endpoint_up", "info", "api/a:1 is healthy: probe: status 200 (first)"),
        ("endpoint_down", "warning", "api/b:1 is down: probe: connect refused (first)"),
    ]


async def test_who_does_not_answer_before_the_callers_deadline_is_named(autojump_clock: Clock, world: World) -> None:
    world.origins["b:1"] = None
    world.apply(api=upstream("a:1", "b:1", health=Health(tcp=True, timeout=Seconds(60.0))))
    with trio.move_on_after(5) as scope:
        await world.board.wait_first_round()
    assert scope.cancelled_caught
    assert world.board.unproved() == ["api/b:1"]
    assert world.status("b:1").unproved


async def test_there_is_nothing_to_wait_for_without_probes(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", health=None))
    with trio.testing.assert_checkpoints():
        await world.board.wait_first_round()


async def test_the_first_round_does_not_wait_for_what_is_gone_or_in_maintenance(
    autojump_clock: Clock, world: World
) -> None:
    world.origins |= {"a:1": None, "b:1": None}
    slow = Health(tcp=True, timeout=Seconds(60.0))
    world.apply(api=upstream("a:1", "b:1", health=slow))
    await trio.sleep(0.2)
    world.board.command("api", "a:1", Word.MAINT)
    world.apply(api=upstream("a:1", health=slow))
    with trio.fail_after(0.1):
        await world.board.wait_first_round()


async def test_endpoints_of_a_reload_make_a_first_round_of_their_own(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1"))
    await world.board.wait_first_round()
    world.apply(api=upstream("a:1", "b:1"))
    assert world.board.unproved() == ["api/b:1"]
    with trio.fail_after(0.2):
        await world.board.wait_first_round()
    assert world.state("b:1") is HEALTHY


# -- out and back ---------------------------------------------------------------------------------------------------


async def test_a_dead_endpoint_is_out_within_its_fall_window_and_back_within_one_interval(
    autojump_clock: Clock, world: World
) -> None:
    world.apply(api=upstream("a:1", "b:1"))
    await trio.sleep(10)
    world.told.clear()
    world.origins["a:1"] = REFUSED
    assert await world.until("a:1", DOWN) <= 2.0 + 2 * 0.5 + 0.02
    assert world.kinds() == ["endpoint_degraded", "endpoint_down"]
    assert world.status("a:1").cause == "probe: connect refused (3 of 3)"
    await trio.sleep(17.3)
    world.told.clear()
    del world.origins["a:1"]
    assert await world.until("a:1", HEALTHY) <= 2.0 + 0.02
    [(kind, level, _, facts)] = world.told
    assert (kind, level) == ("endpoint_up", "info")
    assert facts == {
        "upstream": "api",
        "endpoint": "a:1",
        "state": "healthy",
        "previous": "down",
        "cause": "probe: status 200 (2 of 2)",
        "weight": 1.0,
    }
    assert world.state("b:1") is HEALTHY


async def test_live_traffic_takes_it_out_first_and_the_probe_is_brought_forward(
    autojump_clock: Clock, world: World
) -> None:
    world.apply(api=upstream("a:1", "b:1"))
    await trio.sleep(10)
    world.told.clear()
    world.origins["a:1"] = REFUSED
    world.refused("a:1")
    assert world.state("a:1") is EJECTED
    assert world.published[-1].state is EJECTED
    assert await world.until("a:1", DOWN) <= 0.5 + 0.02, "not a whole interval later"
    assert world.kinds() == ["endpoint_ejected", "endpoint_down"]


async def test_an_ejection_of_an_unprobed_endpoint_ends_by_the_clock_alone(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", "b:1", health=None))
    world.refused("a:1")
    await trio.sleep(9.9)
    assert world.state("a:1") is EJECTED
    await trio.sleep(0.2)
    assert world.state("a:1") is HEALTHY
    assert [(kind, level) for kind, level, *_ in world.told] == [
        ("endpoint_ejected", "warning"),
        ("endpoint_restored", "info"),
    ]
    assert world.asked == []


async def test_slow_start_is_published_step_by_step(autojump_clock: Clock, world: World) -> None:
    spec = upstream("a:1", "b:1", health=None, slow_start=SlowStart(window=Seconds(10.0)))
    world.apply(api=spec)
    world.refused("a:1")
    await trio.sleep(25)
    weights = [s.weight for s in world.published if s.endpoint == "a:1" and s.state is not EJECTED][1:]
    assert weights == sorted(weights)
    assert len(weights) == 19, "two steps are below the floor of a tenth"
    assert weights[0] == pytest.approx(0.1)
    assert weights[-1] == 1.0
    assert world.kinds() == ["endpoint_ejected", "endpoint_restored", "endpoint_healthy"]


async def test_the_limit_keeps_an_endpoint_in_and_says_so_once(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", "b:1", "c:1", health=None, passive=Passive(max_ejected=50)))
    world.refused("a:1")
    world.told.clear()
    for times in (3, 4, 5):
        world.refused("b:1", times)
    assert world.state("b:1") is HEALTHY
    assert [(kind, level) for kind, level, *_ in world.told] == [("endpoint_kept_in", "warning")]
    assert "kept in: limit (max_ejected = 50)" in world.told[0][2]
    await trio.sleep(10.1)  # a:1 is back, so there is room
    world.refused("b:1", 6)
    assert world.state("b:1") is EJECTED


async def test_endpoints_that_probes_or_operators_took_out_count_towards_the_limit(
    autojump_clock: Clock, world: World
) -> None:
    world.apply(api=upstream("a:1", "b:1", health=None))
    world.board.command("api", "a:1", Word.DRAIN)
    world.refused("b:1")
    await trio.testing.wait_all_tasks_blocked()
    assert world.state("b:1") is HEALTHY, "the last one is not ejected"


async def test_probes_are_not_bound_by_the_limit(autojump_clock: Clock, world: World) -> None:
    world.origins |= {"a:1": REFUSED, "b:1": REFUSED}
    world.apply(api=upstream("a:1", "b:1"))
    await world.board.wait_first_round()
    assert {s.state for s in world.board.statuses()} == {DOWN}


async def test_only_differences_are_published(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1"))
    await trio.sleep(100)
    assert [s.state for s in world.published] == [DOWN, HEALTHY]
    world.apply(api=upstream("a:1"))
    world.board.observe(Observed(upstream="api", endpoint="a:1", connect_failures=1, cause="connect refused"))
    assert len(world.published) == 2


# -- operators ------------------------------------------------------------------------------------------------------


async def test_an_operators_words_are_obeyed_told_and_published_at_once(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1"))
    await world.board.wait_first_round()
    world.told.clear()
    world.board.command("api", "a:1", Word.DRAIN)
    assert world.published[-1].state is DRAINING
    world.board.command("api", "a:1", Word.READY)
    assert world.published[-1].state is HEALTHY
    world.board.set_weight("api", "a:1", 7)
    assert world.published[-1].weight == 7
    world.board.set_weight("api", "a:1", None)
    assert world.published[-1].weight == 1
    assert world.kinds() == ["endpoint_draining", "endpoint_up", "endpoint_weight", "endpoint_weight"]
    assert world.told[-1][2] == "api/a:1 is healthy: operator: weight the config's"


async def test_maintenance_ends_the_probe_under_way_and_ready_begins_anew(autojump_clock: Clock, world: World) -> None:
    world.origins["a:1"] = None
    world.apply(api=upstream("a:1", health=Health(tcp=True, timeout=Seconds(60.0))))
    await trio.sleep(1)
    assert world.under_way == 1
    world.board.command("api", "a:1", Word.MAINT)
    await trio.testing.wait_all_tasks_blocked()
    assert world.under_way == 0
    asked = len(world.asked)
    await trio.sleep(100)
    assert len(world.asked) == asked
    assert world.state("a:1") is MAINT
    del world.origins["a:1"]
    world.board.command("api", "a:1", Word.READY)
    assert world.status("a:1").unproved
    assert await world.until("a:1", HEALTHY) < 0.2


async def test_words_on_an_unknown_endpoint_are_refused(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1"))
    await trio.testing.wait_all_tasks_blocked()
    for name, endpoint in (("api", "z:1"), ("web", "a:1")):
        with pytest.raises(LookupError, match=f"there is no endpoint {name}/{endpoint}"):
            world.board.command(name, endpoint, Word.DRAIN)
        with pytest.raises(LookupError):
            world.board.set_weight(name, endpoint, 1)


async def test_live_words_on_an_endpoint_that_is_gone_are_dropped(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", "b:1", health=None))
    world.apply(api=upstream("a:1", health=None))
    await trio.testing.wait_all_tasks_blocked()
    published = len(world.published)
    world.refused("b:1")
    world.board.observe(Observed(upstream="web", endpoint="a:1", bad_answers=9, cause="status 500"))
    assert len(world.published) == published


# -- reloads --------------------------------------------------------------------------------------------------------


async def test_a_reload_that_changes_nothing_touches_nothing(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", "b:1"))
    await trio.sleep(10.2)
    tasks, reports, asked = set(world.probes.child_tasks), world.board.describe(), len(world.asked)
    world.apply(api=upstream("b:1", "a:1"))
    await trio.testing.wait_all_tasks_blocked()
    assert set(world.probes.child_tasks) == tasks
    assert sorted(map(repr, world.board.describe())) == sorted(map(repr, reports))
    assert len(world.asked) == asked


async def test_a_reload_of_five_thousand_endpoints_does_not_stop_the_supervisor(
    autojump_clock: Clock, world: World
) -> None:
    addresses = [f"10.0.{number >> 8}.{number & 255}:80" for number in range(5000)]
    world.apply(api=upstream(*addresses, health=None))
    began = time.process_time()
    world.apply(api=upstream(*addresses, health=None))
    world.apply(api=upstream(*addresses, health=None, passive=Passive(connect_failures=7)))
    assert time.process_time() - began < 1.0  # 3.5 s while each endpoint compared the whole upstream
    assert len(world.board.statuses()) == 5000


async def test_a_removed_endpoint_takes_its_task_and_its_probe_with_it(autojump_clock: Clock, world: World) -> None:
    world.origins |= {"a:1": None, "c:1": None}
    slow = Health(tcp=True, timeout=Seconds(60.0))
    world.apply(api=upstream("a:1", "b:1", health=slow), db=upstream("c:1", health=slow))
    await trio.sleep(1)
    assert (world.under_way, len(world.probes.child_tasks)) == (2, 3)
    world.apply(api=upstream("b:1", health=slow))
    await trio.testing.wait_all_tasks_blocked()
    assert (world.under_way, len(world.probes.child_tasks)) == (0, 1)
    assert [s.endpoint for s in world.board.statuses()] == ["b:1"]
    asked = {address for _, address, _ in world.asked}
    await trio.sleep(100)
    assert {address for _, address, _ in world.asked} == asked


async def test_a_changed_probe_replaces_the_one_under_way_and_keeps_the_state(
    autojump_clock: Clock, world: World
) -> None:
    world.apply(api=upstream("a:1"))
    await trio.sleep(10)
    world.origins["a:1"] = None
    with trio.fail_after(3):
        while not world.under_way:
            await trio.sleep(0.01)
    del world.origins["a:1"]
    new = Health(http="/healthz")
    world.apply(api=upstream("a:1", health=new))
    await trio.sleep(0.2)
    assert world.asked[-1][2] is new
    assert world.state("a:1") is HEALTHY
    assert world.board.describe()[0].falls == 0, "the old probe's failure is nobody's any more"


async def test_a_reload_with_another_weight_keeps_everything_else(autojump_clock: Clock, world: World) -> None:
    world.origins["a:1"] = REFUSED
    world.apply(api=upstream("a:1", "b:1"))
    await trio.sleep(10)
    history = world.board.describe()[0].history
    spec = upstream("a:1", "b:1")
    world.apply(api=attrs.evolve(spec, endpoints=tuple(attrs.evolve(e, weight=5) for e in spec.endpoints)))
    assert [(s.endpoint, s.state, s.weight) for s in world.published[-2:]] == [("a:1", DOWN, 5), ("b:1", HEALTHY, 5)]
    assert [past.cause for past in world.board.describe()[0].history] == [past.cause for past in history]


async def test_an_endpoint_that_joins_a_working_group_starts_slowly_and_a_new_group_does_not(
    autojump_clock: Clock, world: World
) -> None:
    slow = SlowStart(window=Seconds(10.0))
    world.apply(api=upstream("a:1", health=None, slow_start=slow))
    assert world.state("a:1") is HEALTHY
    world.apply(
        api=upstream("a:1", "b:1", health=None, slow_start=slow), db=upstream("c:1", health=None, slow_start=slow)
    )
    await trio.testing.wait_all_tasks_blocked()
    assert (world.state("a:1"), world.state("b:1"), world.state("c:1", "db")) == (HEALTHY, DEGRADED, HEALTHY)


async def test_the_same_address_in_two_upstreams_is_two_endpoints(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1"), web=upstream("a:1"))
    await world.board.wait_first_round()
    world.board.command("web", "a:1", Word.MAINT)
    assert (world.state("a:1"), world.state("a:1", "web")) == (HEALTHY, MAINT)


async def test_under_any_sequence_of_words_and_reloads_there_is_one_task_per_endpoint(
    autojump_clock: Clock, world: World
) -> None:
    rng = random.Random(99)
    healths = (None, TCP, Health(http="/", timeout=Seconds(5.0)))
    addresses = [f"{letter}:1" for letter in "abcdef"]
    wanted: dict[str, Upstream] = {}
    for _ in range(300):
        action = rng.randrange(5)
        if action == 0:
            wanted = {
                name: upstream(*rng.sample(addresses, rng.randint(1, 6)), health=rng.choice(healths))
                for name in rng.sample(["api", "web", "db"], rng.randint(0, 3))
            }
            world.apply(**wanted)
        elif action == 1:
            world.origins = {address: rng.choice([OK, REFUSED, None]) for address in addresses}
        elif wanted:
            name = rng.choice(list(wanted))
            address = rng.choice(wanted[name].endpoints).address
            if action == 2:
                world.board.command(name, address, rng.choice(list(Word)))
            elif action == 3:
                world.board.set_weight(name, address, rng.choice([None, 0, 9]))
            else:
                world.board.observe(Observed(upstream=name, endpoint=address, connect_failures=3, cause="refused"))
        await trio.sleep(rng.choice([0.0, 0.01, 0.7, 3.0]))
        await trio.testing.wait_all_tasks_blocked()
        expected = {f"health of {name}/{e.address}" for name, spec in wanted.items() for e in spec.endpoints}
        assert sorted(task.name for task in world.probes.child_tasks) == sorted(expected)
        latest = {(s.upstream, s.endpoint): s for s in world.published}
        assert all(latest[s.upstream, s.endpoint] == s for s in world.board.statuses()), "the workers know it all"
    assert "bug" not in world.kinds()


# -- the rest -------------------------------------------------------------------------------------------------------


async def test_a_bug_in_a_probe_is_told_and_neither_ends_the_task_nor_blames_the_endpoint(
    autojump_clock: Clock, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.apply(api=upstream("a:1"))
    await trio.sleep(10)
    world.told.clear()
    world.origins["a:1"] = ZeroDivisionError("oops")
    await trio.sleep(4)
    assert world.state("a:1") is HEALTHY
    assert world.told[0][:2] == ("bug", "error")
    assert "ZeroDivisionError" in world.told[0][2]
    assert "health task failed endpoint=api/a:1" in caplog.text
    world.origins["a:1"] = REFUSED
    await world.until("a:1", DOWN)


async def test_an_endpoint_is_described_for_people(autojump_clock: Clock, world: World) -> None:
    world.origins["a:1"] = REFUSED
    spec = upstream("a:1", "b:1")
    world.apply(
        api=attrs.evolve(spec, endpoints=(attrs.evolve(spec.endpoints[0], weight=4, tier=2), *spec.endpoints[1:]))
    )
    await trio.sleep(10)
    world.board.set_weight("api", "a:1", 9)
    down, up = world.board.describe()
    assert (down.upstream, down.endpoint, down.state, down.cause) == (
        "api", "a:1", DOWN, "probe: connect refused (first)",
    )  # fmt: skip
    assert (down.weight, down.config_weight, down.operator_weight, down.tier) == (9, 4, 9, 2)
    assert 9.8 < down.lasting < 10
    assert down.next_probe is not None
    assert 0 <= down.next_probe <= 1.5
    assert down.falls == len(down.history) >= 6
    assert [past.ago for past in down.history] == sorted((past.ago for past in down.history), reverse=True)
    assert (up.unproved, up.kept_in, up.rises) == (False, "", 0)
    assert attrs.asdict(up.history[-1]) | {"ago": 0} == {
        "ago": 0, "ok": True, "cause": "status 200", "latency": 0.001, "size": 12,
    }  # fmt: skip


async def test_an_unprobed_endpoint_has_no_next_probe(autojump_clock: Clock, world: World) -> None:
    world.apply(api=upstream("a:1", health=None))
    await trio.testing.wait_all_tasks_blocked()
    assert world.board.describe()[0].next_probe is None
