"""The lane: who is called, when, and what a callback that raises, closes or never ends costs the others."""

from __future__ import annotations

import itertools
import logging
import select
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest
import trio

from tcpgate.net import lane as lane_module
from tcpgate.net.lane import NOTHING, READ, SWEEP_SLICE, WRITE, Callback, Lane


@attrs.define(eq=False)
class Rider:
    """One end of a socket pair in the lane; what it does when it is called is the test's."""

    lane: Lane
    near: socket.socket
    far: socket.socket
    act: Callable[[int], None] = lambda mask: None
    calls: list[int] = attrs.field(factory=list)
    faults: list[Exception] = attrs.field(factory=list)
    sweeps: list[float] = attrs.field(factory=list)
    on_sweep: Callable[[], None] = lambda: None

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self.near.fileno()

    def ride(self, events: int = READ) -> Rider:
        """Get into the lane."""
        self.lane.add(self.fd, self.ready, events)
        return self

    def ready(self, mask: int) -> None:
        """The lane's callback."""
        self.calls.append(mask)
        self.act(mask)

    def read(self, mask: int = 0) -> None:
        """An `act`: take what is there."""
        self.near.recv(65536)

    def on_fault(self, exc: Exception) -> None:
        """The lane's word that `ready` raised."""
        self.faults.append(exc)
        self.lane.remove(self.fd)

    def sweep(self, now: float) -> None:
        """The lane's word that time passes."""
        self.sweeps.append(now)
        self.on_sweep()


@pytest.fixture
def lane() -> Iterator[Lane]:
    """An empty lane, on Trio's clock."""
    lane = Lane(trio.current_time)
    yield lane
    lane.close()


@pytest.fixture
def make(lane: Lane) -> Iterator[Callable[[], Rider]]:
    """Makes riders, not yet in the lane; their sockets are closed at the end."""
    made: list[Rider] = []

    def rider() -> Rider:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        made.append(Rider(lane, near, far))
        return made[-1]

    yield rider
    for one in made:
        one.near.close()
        one.far.close()


Make = Callable[[], Rider]


# -- registration ---------------------------------------------------------------------------------------------------


def test_a_callback_is_told_what_is_ready(lane: Lane, make: Make) -> None:
    reader, writer, silent = make().ride(), make().ride(WRITE), make().ride()
    reader.far.send(b"x")
    assert lane.turn()
    assert (reader.calls, writer.calls, silent.calls) == ([READ], [WRITE], [])
    assert len(lane) == 3


def test_what_is_left_unread_is_offered_again(lane: Lane, make: Make) -> None:
    rider = make().ride()
    rider.far.send(b"xy")
    lane.turn()
    lane.turn()
    rider.read()
    assert not lane.turn()
    assert rider.calls == [READ, READ]


def test_those_that_go_first_are_called_first_whatever_became_ready_before_them(lane: Lane, make: Make) -> None:
    riders = [make().ride() for _ in range(6)]
    order: list[Rider] = []
    for rider in riders:
        rider.act = lambda mask, rider=rider: order.append(rider)  # type: ignore[misc]
        rider.far.send(b"x")
    lane.first |= {riders[3].fd, riders[5].fd}
    lane.turn()
    assert set(order[:2]) == {riders[3], riders[5]}
    assert len(order) == 6
    lane.remove(riders[3].fd)
    assert lane.first == {riders[5].fd}


def test_the_end_of_a_turn_comes_behind_its_last_callback(lane: Lane, make: Make) -> None:
    seen: list[tuple[str, bool]] = []
    rider = make().ride()
    rider.act = lambda mask: seen.append(("callback", lane.in_turn))
    lane.at_end_of_turn = lambda: seen.append(("end", lane.in_turn))
    assert not lane.turn()
    rider.far.send(b"x")
    lane.turn()
    assert seen == [("callback", True), ("end", True)]
    assert not lane.in_turn


def test_a_rider_is_told_of_other_events_once_it_asks_for_others(lane: Lane, make: Make) -> None:
    rider = make().ride()
    rider.far.send(b"x")
    lane.change(rider.fd, WRITE)
    lane.turn()
    lane.change(rider.fd, NOTHING)
    assert not lane.turn()
    lane.change(rider.fd, READ | WRITE)
    lane.turn()
    assert rider.calls == [WRITE, READ | WRITE]


def test_one_that_asks_for_nothing_is_told_of_a_hang_up_all_the_same(lane: Lane, make: Make) -> None:
    rider = make().ride(NOTHING)
    rider.far.close()
    lane.turn()
    assert rider.calls
    assert rider.calls[0] & select.EPOLLHUP


def test_a_removed_rider_is_not_called_and_may_come_back(lane: Lane, make: Make) -> None:
    rider = make().ride()
    rider.far.send(b"x")
    lane.remove(rider.fd)
    lane.remove(rider.fd)  # idempotent
    assert not lane.turn()
    assert len(lane) == 0
    rider.ride()
    lane.turn()
    assert rider.calls == [READ]


def test_a_forgotten_rider_may_be_closed_at_once_and_its_number_used_anew(lane: Lane, make: Make) -> None:
    first = make().ride()
    fd = first.fd
    first.far.send(b"x")
    lane.forget(fd)
    first.near.close()
    assert not lane.turn()
    second = make()
    while second.fd != fd:  # the lowest free number is given out first, so it comes soon
        second = make()
    second.ride()
    second.far.send(b"x")
    lane.turn()
    assert (first.calls, second.calls) == ([], [READ])


def test_a_rider_cannot_be_added_twice(lane: Lane, make: Make) -> None:
    rider = make().ride()
    with pytest.raises(FileExistsError):
        rider.ride()
    rider.far.send(b"x")
    lane.turn()
    assert rider.calls == [READ]


def test_a_closed_lane_calls_nobody(make: Make) -> None:
    other = Lane(trio.current_time)
    rider = make()
    rider.lane = other
    rider.ride()
    rider.far.send(b"x")
    other.close()
    assert len(other) == 0
    assert rider.calls == []


# -- callbacks that misbehave ---------------------------------------------------------------------------------------


def fail(mask: int) -> None:
    """An `act` that is a bug."""
    raise ZeroDivisionError("a bug")


def test_a_callback_that_raises_costs_its_own_rider_only(
    lane: Lane, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    riders = [make().ride() for _ in range(5)]
    for rider in riders:
        rider.act = rider.read
        rider.far.send(b"x")
    bad = riders[2]
    bad.act = fail
    with caplog.at_level(logging.ERROR, "tcpgate.net.lane"):
        while lane.turn():
            pass
    assert [type(exc) for exc in bad.faults] == [ZeroDivisionError]
    assert [len(rider.calls) for rider in riders] == [1] * 5
    assert [rider.faults for rider in riders if rider is not bad] == [[]] * 4
    assert lane.faults == 1
    assert len(lane) == 4
    assert ["a callback failed" in record.message for record in caplog.records] == [True]
    riders[0].far.send(b"again")
    lane.turn()
    assert len(riders[0].calls) == 2


async def test_a_fault_while_the_lane_runs_does_not_end_the_run(
    lane: Lane, make: Make, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = make().ride(), make().ride()
    bad.act, good.act = fail, good.read
    nursery.start_soon(lane.run_forever)
    for rider in (bad, good, good, good):
        count = len(rider.calls)
        rider.far.send(b"x")
        with trio.fail_after(20):
            while len(rider.calls) == count:
                await trio.sleep(0.001)
    assert (lane.faults, len(bad.faults), len(good.faults)) == (1, 1, 0)
    assert "ZeroDivisionError" in caplog.text


def test_a_rider_removed_by_another_in_the_same_batch_is_not_called(lane: Lane, make: Make) -> None:
    one, two = make().ride(), make().ride()

    def remover(other: Rider) -> Callable[[int], None]:
        def act(mask: int) -> None:
            lane.remove(other.fd)
            other.near.close()

        return act

    one.act, two.act = remover(two), remover(one)
    one.far.send(b"x")
    two.far.send(b"x")
    lane.turn()
    # Whichever the kernel gave first has ended the other.
    assert sorted([one.calls, two.calls]) == [[], [READ]]
    assert (lane.faults, len(lane)) == (0, 1)


def test_a_number_that_is_used_anew_inside_a_batch_calls_the_new_rider_for_nothing(lane: Lane, make: Make) -> None:
    """The event is the old one's; the new one finds nothing to read and takes "not now" for an answer."""
    one, two, heirs, found = make().ride(), make().ride(), list[Rider](), list[str]()

    def patient(heir: Rider) -> Callable[[int], None]:
        def act(mask: int) -> None:
            try:
                heir.read()
                found.append("data")
            except BlockingIOError:
                found.append("not now")

        return act

    def replace(other: Rider) -> Callable[[int], None]:
        def act(mask: int) -> None:
            fd = other.fd
            lane.remove(fd)
            other.near.close()
            heir = make()
            while heir.fd != fd:  # the lowest free number is given out first, so it comes soon
                heir = make()
            heir.act = patient(heir)
            heirs.append(heir.ride())

        return act

    one.act, two.act = replace(two), replace(one)
    one.far.send(b"x")
    two.far.send(b"x")
    lane.turn()
    assert found == ["not now"]
    assert (lane.faults, len(heirs), len(one.calls) + len(two.calls)) == (0, 1, 1)
    for rider in (one, two):
        if rider.near.fileno() >= 0:
            lane.remove(rider.fd)
    heirs[0].far.send(b"y")
    lane.turn()
    assert found == ["not now", "data"]


# -- running --------------------------------------------------------------------------------------------------------


async def test_callbacks_that_never_run_dry_let_other_tasks_run(lane: Lane, make: Make, nursery: trio.Nursery) -> None:
    rider = make().ride()  # it never reads, so it is ready for ever
    rider.far.send(b"x")
    nursery.start_soon(lane.run_forever)
    with trio.fail_after(20):
        for _ in range(20):
            seen = len(rider.calls)
            while len(rider.calls) == seen:
                await trio.lowlevel.checkpoint()
    assert len(rider.calls) >= 20


async def test_a_slice_ends_by_the_clock_not_by_the_batch(make: Make, nursery: trio.Nursery) -> None:
    """Between two turns of other tasks there are about `SLICE` seconds of callbacks, by the lane's own clock."""
    now = 0.0
    lane = Lane(lambda: now)
    rider = make()
    rider.lane = lane

    def spend(mask: int) -> None:
        nonlocal now
        now += lane_module.SLICE / 10

    rider.act = spend
    rider.ride().far.send(b"x")
    turns: list[int] = []

    async def other() -> None:
        while len(turns) < 12:
            await trio.lowlevel.checkpoint()
            turns.append(len(rider.calls))

    async with trio.open_nursery() as running:
        running.start_soon(lane.run_forever)
        with trio.fail_after(20):
            await other()
        running.cancel_scope.cancel()
    lane.close()
    steps = [after - before for before, after in itertools.pairwise(turns) if after > before]
    assert steps
    # Ten callbacks and the one that passes the bound; twice that if Trio lets the lane go last and then first.
    assert max(steps) <= 22


def test_a_batch_is_bounded_so_that_time_is_looked_at(lane: Lane, make: Make) -> None:
    riders = [make().ride() for _ in range(lane_module.BATCH + 20)]
    for rider in riders:
        rider.far.send(b"x")
    lane.turn()
    assert sum(len(rider.calls) for rider in riders) == lane_module.BATCH
    for rider in riders:
        rider.act = rider.read
    while lane.turn():
        pass
    assert all(rider.calls for rider in riders)  # nobody starves behind those that were first


async def test_cancelling_the_run_keeps_everybody_registered(lane: Lane, make: Make) -> None:
    rider = make().ride()
    rider.act = rider.read

    async def run(count: int) -> None:
        async with trio.open_nursery() as running:
            running.start_soon(lane.run_forever)
            rider.far.send(b"x")
            with trio.fail_after(20):
                while len(rider.calls) < count:
                    await trio.sleep(0.001)
            running.cancel_scope.cancel()

    await run(1)
    assert len(lane) == 1
    rider.far.send(b"meanwhile")
    await trio.sleep(0.01)
    assert len(rider.calls) == 1  # nobody runs the lane
    await run(2)


# -- time limits ----------------------------------------------------------------------------------------------------


async def test_the_sweep_asks_each_timed_rider_once(lane: Lane, make: Make) -> None:
    timed, untimed = [make() for _ in range(3)], make()
    lane.timed.update(timed)
    before = trio.current_time()
    await lane.sweep()
    assert [len(rider.sweeps) for rider in timed] == [1, 1, 1]
    assert untimed.sweeps == []
    assert all(before <= rider.sweeps[0] <= trio.current_time() for rider in timed)


async def test_one_that_the_sweep_of_another_has_ended_is_not_asked(lane: Lane, make: Make) -> None:
    one, two = make(), make()
    one.on_sweep = lambda: lane.timed.discard(two)
    two.on_sweep = lambda: lane.timed.discard(one)
    lane.timed.update([one, two])
    await lane.sweep()
    assert sorted([len(one.sweeps), len(two.sweeps)]) == [0, 1]


async def test_one_that_joins_in_the_middle_of_a_sweep_waits_for_the_next(lane: Lane, make: Make) -> None:
    one, late = make(), make()
    one.on_sweep = lambda: lane.timed.add(late)
    lane.timed.add(one)
    await lane.sweep()
    assert late.sweeps == []
    await lane.sweep()
    assert len(late.sweeps) == 1


async def test_a_sweep_that_raises_costs_its_own_rider_only(
    lane: Lane, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    riders = [make() for _ in range(5)]

    def fail_once() -> None:
        lane.timed.discard(riders[2])
        raise ZeroDivisionError("a bug")

    riders[2].on_sweep = fail_once
    lane.timed.update(riders)
    await lane.sweep()
    await lane.sweep()
    assert [len(rider.sweeps) for rider in riders] == [2, 2, 1, 2, 2]
    assert [len(rider.faults) for rider in riders] == [0, 0, 1, 0, 0]
    assert lane.faults == 1
    assert "ZeroDivisionError" in caplog.text


@attrs.define(eq=False)
class Counting:
    """Timed, and nothing else."""

    seen: list[int]

    def sweep(self, now: float) -> None:
        """Count."""
        self.seen[0] += 1

    def on_fault(self, exc: Exception) -> None:
        """Counting does not fail."""
        raise exc


async def test_a_long_sweep_lets_other_tasks_run_between_its_slices(lane: Lane) -> None:
    seen = [0]
    lane.timed.update(Counting(seen) for _ in range(3 * SWEEP_SLICE))
    stops: list[int] = []
    async with trio.open_nursery() as sweeping:
        sweeping.start_soon(lane.sweep)
        while seen[0] < 3 * SWEEP_SLICE:
            await trio.lowlevel.checkpoint()
            stops.append(seen[0])
    # Trio may let the sweep go last in one turn and first in the next, so two slices may pass between two looks.
    assert max(after - before for before, after in itertools.pairwise([0, *stops])) <= 2 * SWEEP_SLICE


async def test_the_sweep_comes_round_by_itself_about_every_quarter_second(
    lane: Lane, make: Make, nursery: trio.Nursery
) -> None:
    rider = make()
    lane.timed.add(rider)
    began = trio.current_time()
    nursery.start_soon(lane.sweep_forever)
    with trio.fail_after(20):
        while len(rider.sweeps) < 3:
            await trio.sleep(0.01)
    # Never early; how late is the machine's.
    assert [at - began >= turn * lane_module.SWEEP_EVERY for turn, at in enumerate(rider.sweeps, 1)] == [True] * 3


def test_callbacks_are_methods_of_riders() -> None:
    """What `Lane._fault` leans on: a bound method knows its rider."""
    lane = Lane(lambda: 0.0)
    near, far = socket.socketpair()
    callback: Callback = Rider(lane, near, far).ready
    assert callback.__self__.lane is lane  # type: ignore[attr-defined]
    lane.close()
    near.close()
    far.close()
