"""The fleet with workers that are tasks: every order of deaths, hangs and reloads, in virtual time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from trio.abc import Clock

from tcpgate.policy.health import EndpointState
from tcpgate.process.frames import Frame
from tcpgate.process.remote import ANSWER_WITHIN, RemoteWorker
from tcpgate.state import messages
from tcpgate.stats.page import GAUGES, OFFSETS, SharedPage
from tests.process.crew import Crew, generation, make_page, until


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = make_page()
    yield shared
    shared.close()
    os.close(shared.fd)


@pytest.fixture
async def crew(page: SharedPage, nursery: trio.Nursery) -> Crew:
    return Crew(nursery=nursery, shared=page)


async def reload(crew: Crew, number: int) -> list[str]:
    """Both steps, as the reloader takes them; the problems."""
    problems, holding = await crew.fleet.prepare(generation(number))
    if problems:
        crew.fleet.abandon(generation(number))
    else:
        await crew.fleet.commit(generation(number))
    assert problems or holding
    return problems


def status(endpoint: str, cause: str = "") -> messages.EndpointStatus:
    return messages.EndpointStatus(
        upstream="u", endpoint=endpoint, state=EndpointState.HEALTHY, weight=1.0, cause=cause
    )


# -- starting -------------------------------------------------------------------------------------------------------


async def test_every_worker_is_brought_to_the_current_generation(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=3)
    assert crew.serving() == {1: 1, 2: 1, 3: 1}
    assert len(crew.told("worker_started")) == 3


async def test_a_start_where_no_worker_can_build_says_so_instead_of_trying_for_ever(
    crew: Crew, autojump_clock: Clock
) -> None:
    crew.script.refuses = {1: "ValueError: no", 2: "ValueError: no"}
    await crew.fleet.commit(generation(1))
    crew.fleet.resize(2, 1.0, crew.nursery)
    with trio.fail_after(5):
        assert "ValueError: no" in await crew.fleet.wait_serving()


async def test_a_start_where_workers_only_die_says_so(crew: Crew, autojump_clock: Clock) -> None:
    crew.script.dies_in_prepare = {1}
    await crew.fleet.commit(generation(1))
    crew.fleet.resize(1, 1.0, crew.nursery)
    with trio.fail_after(5):
        assert "3 workers ended before one of them served" in await crew.fleet.wait_serving()


async def test_a_process_that_cannot_be_started_is_tried_again(crew: Crew, autojump_clock: Clock) -> None:
    crew.script.cannot_start = 2
    await crew.begin(workers=1)
    assert crew.serving() == {1: 1}
    assert len(crew.told("worker_died")) == 2


async def test_a_start_that_never_succeeds_is_hopeless(crew: Crew, autojump_clock: Clock) -> None:
    crew.script.cannot_start = 100
    await crew.fleet.commit(generation(1))
    crew.fleet.resize(1, 1.0, crew.nursery)
    with trio.fail_after(5):
        assert await crew.fleet.wait_serving() != ""


# -- reloading ------------------------------------------------------------------------------------------------------


async def test_a_reload_reaches_every_worker(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=3)
    assert await reload(crew, 2) == []
    assert crew.serving() == {1: 2, 2: 2, 3: 2}
    assert crew.fleet.serving()


async def test_one_worker_that_cannot_build_stops_the_reload_everywhere(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=3)
    crew.script.refuses = {2: "no such thing"}
    assert await reload(crew, 2) == ["worker 2: no such thing"]
    await until(lambda: all(worker.holds == 0 for worker in crew.living().values()))
    assert crew.serving() == {1: 1, 2: 1, 3: 1}
    assert crew.told("worker_died") == []


async def test_a_worker_that_dies_in_prepare_holds_nothing_up_and_its_successor_serves(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.dies_in_prepare = {1}
    before = trio.current_time()
    problems, holding = await crew.fleet.prepare(generation(2))
    assert (problems, holding) == ([], 1)
    assert trio.current_time() - before < 1
    crew.script.dies_in_prepare = set()
    await crew.fleet.commit(generation(2))
    await until(crew.fleet.serving)
    assert crew.serving() == {1: 2, 2: 2}


async def test_a_worker_that_dies_in_commit_holds_nothing_up_and_its_successor_serves(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.dies_in_commit = {1}
    problems, _ = await crew.fleet.prepare(generation(2))
    before = trio.current_time()
    crew.nursery.start_soon(crew.fleet.commit, generation(2))
    await until(lambda: len(crew.told("worker_died")) == 1)
    crew.script.dies_in_commit = set()
    await until(crew.fleet.serving)
    assert problems == []
    assert trio.current_time() - before < 1
    assert crew.serving() == {1: 2, 2: 2}


async def test_a_worker_that_hangs_in_prepare_fails_the_reload_after_its_time(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.hangs_in_prepare = {2}
    before = trio.current_time()
    problems = await reload(crew, 2)
    assert problems == [f"worker 2 did not answer within {ANSWER_WITHIN:g} s"]
    assert trio.current_time() - before == pytest.approx(ANSWER_WITHIN, abs=1)
    assert crew.serving() == {1: 1, 2: 1}


async def test_an_answer_that_comes_late_is_not_taken_for_one_to_the_next_reload(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=1)
    crew.script.builds_for = ANSWER_WITHIN + 5
    assert await reload(crew, 2) != []
    crew.script.builds_for = 0
    crew.script.refuses = {1: "still not"}
    # The worker says "prepared 2" first, and then what it thinks of 3.
    assert await reload(crew, 3) == ["worker 1: still not"]
    assert crew.serving() == {1: 1}


async def test_a_worker_that_does_not_commit_is_replaced_and_the_others_serve_meanwhile(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.hangs_in_commit = {1}
    problems, _ = await crew.fleet.prepare(generation(2))
    crew.nursery.start_soon(crew.fleet.commit, generation(2))
    await until(lambda: crew.serving().get(2) == 2, within=1)
    await trio.sleep(ANSWER_WITHIN - 1)
    crew.script.hangs_in_commit = set()
    await until(crew.fleet.serving)
    assert problems == []
    assert "worker 1 cannot serve and is replaced" in crew.told("worker_hung")[0]
    assert crew.serving() == {1: 2, 2: 2}


async def test_a_worker_that_starts_during_a_reload_is_asked_one_thing_at_a_time_and_ends_at_the_new_one(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.builds_for = 3.0
    crew.living()[1].process.kill()
    await until(lambda: len(crew.living()) == 2)
    problems, holding = await crew.fleet.prepare(generation(2))
    assert (problems, holding) == ([], 1)  # the one that is starting is not asked
    await crew.fleet.commit(generation(2))
    await until(crew.fleet.serving)
    assert crew.serving() == {1: 2, 2: 2}
    starting = crew.living()[1]
    asked = [message.generation for message in starting.heard if isinstance(message, messages.Prepare)]
    assert asked in ([1, 2], [2])
    assert len(crew.told("worker_died")) == 1


async def test_ten_generations_in_a_row_while_workers_die_end_at_the_last(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=4)
    crew.script.builds_for = 0.3
    for number in range(2, 12):
        victim = crew.living().get(1 + number % 4)
        if victim is not None:
            victim.process.kill()
        await publish_whoever_serves(crew, number)
    await until(crew.fleet.serving)
    assert set(crew.serving().values()) == {11}


async def publish_whoever_serves(crew: Crew, number: int) -> None:
    problems, _ = await crew.fleet.prepare(generation(number))
    assert problems == []
    await crew.fleet.commit(generation(number))


async def test_nobody_who_could_build_is_told_apart_from_everybody_who_did(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=2)
    for worker in crew.living().values():
        worker.process.kill()
    await until(lambda: not crew.fleet.workers)
    assert await crew.fleet.prepare(generation(2)) == ([], 0)


# -- what workers hear ----------------------------------------------------------------------------------------------


async def test_states_that_change_faster_than_a_worker_listens_are_said_once_with_the_last_word(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=1)
    for turn in range(5000):
        crew.fleet.publish((status("10.0.0.1:1", cause=str(turn)), status(f"10.0.0.2:{turn + 1}")))
    worker = crew.living()[1]
    await until(lambda: len({one.endpoint for one in worker.statuses()}) == 5001)
    told = [message for message in worker.heard if isinstance(message, messages.Statuses)]
    assert len(told) <= 3
    assert [one.cause for one in worker.statuses() if one.endpoint == "10.0.0.1:1"][-1] == "4999"


async def test_a_worker_that_does_not_listen_keeps_nobody_else_waiting(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=2)
    crew.script.builds_for = 1000.0
    crew.nursery.start_soon(crew.fleet.prepare, generation(2))  # worker 1 and 2 are deep in thought
    await trio.sleep(0.1)
    crew.script.builds_for = 0.0
    before = trio.current_time()
    for turn in range(100):
        crew.fleet.publish((status(f"10.0.0.1:{turn + 1}"),))
        await trio.lowlevel.checkpoint()
    assert trio.current_time() - before < 1


async def test_a_worker_that_starts_hears_how_every_endpoint_is(crew: Crew, autojump_clock: Clock) -> None:
    crew.statuses = [status("10.0.0.1:1", cause="as it is")]
    await crew.begin(workers=1)
    prepare = next(one for one in crew.living()[1].heard if isinstance(one, messages.Prepare))
    assert prepare.statuses == tuple(crew.statuses)


async def test_what_workers_say_carries_who_said_it(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=2)
    facts: list[dict[str, str | int | float]] = []
    crew.fleet.tell = lambda kind, level, text, more: facts.append(dict(more))
    crew.living()[2].link.send_nowait(messages.Told(kind="other", level="info", text="hello", facts={"x": 1}))
    seen = messages.Observed(upstream="u", endpoint="10.0.0.1:1", connect_failures=3)
    crew.living()[1].link.send_nowait(seen)
    await until(lambda: bool(facts and crew.observed))
    assert facts == [{"x": 1, "worker": 2}]
    assert crew.observed == [seen]


async def test_a_worker_that_says_what_no_honest_one_says_is_ended(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=1)
    liar = crew.living()[1]
    assert liar.link._pipe.push_nowait(Frame(b'["Stop", {}]', []))
    await until(lambda: liar.process.returncode is not None)
    await until(crew.fleet.serving)
    assert crew.living()[1] is not liar


# -- deaths ---------------------------------------------------------------------------------------------------------


async def test_a_death_is_told_and_the_next_one_starts_at_once(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=2)
    await trio.sleep(100)
    crew.living()[1].process.kill()
    await until(lambda: bool(crew.told("worker_died")), within=0.1)
    await until(crew.fleet.serving, within=0.5)
    assert crew.told("worker_died") == ["worker 1 ended by signal SIGKILL; starting another"]
    assert crew.fleet.deaths == 1


async def test_what_a_dead_worker_had_in_flight_is_forgotten_before_the_next_one_starts(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=1)
    block = crew.layout.reserve("endpoint", "u/10.0.0.1:1")
    page = crew.shared.pages[1]
    active, attempts = block + OFFSETS["endpoint"]["active"], block + OFFSETS["endpoint"]["attempts"]
    page[active], page[attempts] = 7, 100
    seen_at_start: list[int] = []
    start = crew.fleet.start

    async def look(index: int, fd: int) -> RemoteWorker:
        seen_at_start.append(page[active])
        return await start(index, fd)

    crew.fleet.start = look
    crew.living()[1].process.kill()
    await until(lambda: bool(crew.told("worker_died")))
    await until(crew.fleet.serving)
    assert "active" in GAUGES["endpoint"]
    assert seen_at_start == [0]
    assert page[attempts] == 100  # a counter goes on where it stopped


async def test_a_worker_that_keeps_dying_is_started_with_a_growing_pause(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=1)
    crew.script.dies_in_prepare = {1}
    began, count = trio.current_time(), len(crew.started)
    crew.living()[1].process.kill()
    await trio.sleep(60)
    assert 10 < len(crew.started) - count < 25  # 0.1, 0.2, ... 5, 5, 5 ...
    assert crew.told("worker_backoff")
    crew.script.dies_in_prepare = set()
    await until(crew.fleet.serving)
    assert trio.current_time() - began < 70


async def test_a_hung_worker_gets_sigabrt_then_its_end_and_is_replaced(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=1)
    hung = crew.living()[1]
    crew.rest = 1e-9
    await until(lambda: hung.process.returncode is not None)
    crew.rest = 1e9
    await until(crew.fleet.serving)
    assert [sig.name for sig in hung.process.signals] == ["SIGABRT"]
    assert "has not turned for" in crew.told("worker_hung")[0]


async def test_a_bug_in_a_workers_task_is_told_and_costs_that_life_alone(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=2)
    crew.fleet.observe = lambda seen: 1 / 0  # type: ignore[assignment]
    crew.living()[1].link.send_nowait(messages.Observed(upstream="u", endpoint="e"))
    await until(lambda: bool(crew.told("bug")))
    await until(crew.fleet.serving)
    assert crew.serving() == {1: 1, 2: 1}
    assert "the task of worker 1 failed" in crew.told("bug")[0]


# -- more and fewer -------------------------------------------------------------------------------------------------


async def test_the_fleet_grows_and_shrinks(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=1)
    crew.fleet.resize(4, 1.0, crew.nursery)
    await until(crew.fleet.serving)
    assert sorted(crew.living()) == [1, 2, 3, 4]
    crew.fleet.resize(2, 1.0, crew.nursery)
    await until(lambda: len(crew.living()) == 2)
    assert sorted(crew.living()) == [1, 2]
    assert len(crew.told("worker_left")) == 2
    assert crew.told("worker_died") == []
    assert crew.fleet.most == 4  # the pages of those that left still hold their counts


async def test_a_fleet_that_grows_while_it_still_shrinks_has_one_process_for_each_page(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=3)
    crew.script.drains_for = 20.0
    crew.fleet.resize(1, 30.0, crew.nursery)
    await trio.sleep(1)
    crew.fleet.resize(3, 30.0, crew.nursery)
    for _ in range(100):
        living = [worker.index for worker in crew.started if worker.process.returncode is None]
        assert len(living) == len(set(living))
        await trio.sleep(0.5)
    assert crew.fleet.serving()
    assert len(crew.started) == 5


async def test_a_worker_that_is_leaving_takes_no_part_in_a_reload(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=3)
    crew.script.drains_for = 100.0
    crew.fleet.resize(2, 100.0, crew.nursery)
    before = trio.current_time()
    assert await reload(crew, 2) == []
    assert trio.current_time() - before < 1
    assert crew.serving() == {1: 2, 2: 2, 3: 1}


async def test_a_worker_told_to_leave_in_the_middle_of_a_reload_does_not_hold_it_up(
    crew: Crew, autojump_clock: Clock
) -> None:
    await crew.begin(workers=2)
    crew.script.hangs_in_prepare = {2}
    found: list[tuple[list[str], int]] = []

    async def prepare() -> None:
        found.append(await crew.fleet.prepare(generation(2)))

    crew.nursery.start_soon(prepare)
    await trio.sleep(1)
    crew.fleet.resize(1, 1.0, crew.nursery)
    await until(lambda: bool(found), within=1)
    assert found == [([], 1)]


async def test_at_the_end_every_worker_is_seen_off_and_none_starts_again(crew: Crew, autojump_clock: Clock) -> None:
    await crew.begin(workers=3)
    crew.script.drains_for = 2.0
    crew.living()[3].process.kill()  # its successor is on its way when the others are told
    crew.fleet.see_off(30.0)
    with trio.fail_after(5):
        await crew.fleet.wait_gone()
    await trio.sleep(30)
    assert crew.living() == {}


async def test_cancelling_the_fleet_leaves_no_process(page: SharedPage, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        crew = Crew(nursery=nursery, shared=page)
        await crew.begin(workers=3)
        nursery.cancel_scope.cancel()
    assert crew.living() == {}
    assert crew.fleet.workers == {}
