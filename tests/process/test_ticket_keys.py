"""The keys of session tickets on their way: drawn by the fleet, the same in every worker, changed every 12 hours."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from tcpgate.net import tickets
from tcpgate.net.openssl import TICKET_KEYS_SIZE
from tcpgate.process import fleet as fleet_module
from tcpgate.process.fleet import TICKETS_EVERY
from tcpgate.process.link import memory_link_pair
from tcpgate.process.worker import Worker
from tcpgate.state import messages
from tcpgate.stats.page import SharedPage
from tests.process.crew import Crew, TaskWorker, make_page, until


@pytest.fixture
def page() -> Iterator[SharedPage]:
    shared = make_page()
    yield shared
    shared.close()
    os.close(shared.fd)


@pytest.fixture
def crew(page: SharedPage, nursery: trio.Nursery) -> Crew:
    return Crew(nursery=nursery, shared=page)


def keys_of(worker: TaskWorker) -> list[bytes]:
    return [message.keys for message in worker.heard if isinstance(message, messages.Tickets)]


async def test_every_worker_hears_the_same_keys_before_anything_else(crew: Crew, autojump_clock: MockClock) -> None:
    await crew.begin(workers=3)
    heard = {tuple(keys_of(worker)) for worker in crew.living().values()}
    assert len(heard) == 1
    ((keys,),) = heard
    assert len(keys) == TICKET_KEYS_SIZE
    assert all(isinstance(worker.heard[0], messages.Tickets) for worker in crew.living().values())


async def test_new_keys_come_every_twelve_hours_and_later_workers_get_the_newest(
    crew: Crew, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TICKETS_EVERY == 12 * 3600
    monkeypatch.setattr(fleet_module, "TICKETS_EVERY", 20.0)  # the crew does something every second
    await crew.begin(workers=2)
    crew.nursery.start_soon(crew.fleet.renew_tickets_forever)
    await trio.sleep(50)
    for worker in crew.living().values():
        assert len(set(keys_of(worker))) == 3
    crew.living()[1].process.kill()
    await until(crew.fleet.serving)
    await until(lambda: crew.living().get(1) is not None and bool(keys_of(crew.living()[1])))

    assert keys_of(crew.living()[1]) == keys_of(crew.living()[2])[-1:]


async def test_an_interpreter_that_takes_no_keys_is_told_of_once(
    crew: Crew, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "LIBSSL", None)
    monkeypatch.setattr(fleet_module, "TICKETS_EVERY", 20.0)
    await crew.begin(workers=2)
    crew.nursery.start_soon(crew.fleet.renew_tickets_forever)
    await trio.sleep(70)
    assert len(crew.told("tickets_unshared")) == 1


async def test_a_worker_seals_with_the_keys_that_it_was_told(page: SharedPage) -> None:
    ours, theirs = memory_link_pair()
    worker = Worker(1, theirs, page)
    told = tickets.draw()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await ours.send(messages.Tickets(keys=told))
        await ours.send(messages.Stop())
        nursery.start_soon(ours.send_forever)
        with trio.fail_after(20):
            await ours_closed(worker)
        nursery.cancel_scope.cancel()
    assert worker.tickets.keys == told


async def ours_closed(worker: Worker) -> None:
    """Until the worker has obeyed."""
    while not worker.root.cancel_scope.cancel_called:
        await trio.sleep(0.01)


def test_no_key_shows_in_a_message() -> None:
    keys = tickets.draw()
    assert keys.hex() not in repr(messages.Tickets(keys=keys))
    assert repr(keys) not in repr(messages.Tickets(keys=keys))
