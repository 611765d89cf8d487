"""Names: asked once, kept for a while, never forgotten because a name server fails. Look-ups run in real threads."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import attrs
import outcome
import pytest
import trio
from trio.lowlevel import start_thread_soon
from trio.testing import MockClock, wait_all_tasks_blocked

from tcpgate.errors import Reason, Retry, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.resolve import KEEP, KEEP_FAILURE, PATIENCE, SIZE, THREADS, Resolver, _Name
from tcpgate.units import HostPort, UnixPath

HOST = HostPort("db.test", 5432, numeric=False)
ONE = Target(socket.AF_INET, ("10.0.0.1", 0))
TWO = Target(socket.AF_INET6, ("::2", 0, 0, 0))


@attrs.define(eq=False)
class NameServer:
    """Answers as it is told to, in the thread that asks."""

    answer: list[Target] | Exception = attrs.field(factory=lambda: [ONE])
    asked: Counter[str] = attrs.field(factory=Counter)
    open_gate: threading.Event = attrs.field(factory=threading.Event)
    """While it is not set, nobody gets an answer."""

    def __attrs_post_init__(self) -> None:
        self.open_gate.set()

    def __call__(self, host: str) -> list[Target]:
        self.asked[host] += 1
        assert self.open_gate.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def addresses(targets: tuple[Target, ...]) -> list[str]:
    """The targets as texts."""
    return [str(target) for target in targets]


async def test_an_address_or_a_path_asks_nobody() -> None:
    server = NameServer()
    resolver = Resolver(server)
    assert addresses(await resolver.resolve(HostPort("10.0.0.9", 80))) == ["10.0.0.9:80"]
    assert addresses(await resolver.resolve(UnixPath("/a"))) == ["unix:/a"]
    assert not server.asked


async def test_an_unknown_zone_is_a_failed_name() -> None:
    with pytest.raises(UpstreamError) as caught:
        await Resolver().resolve(HostPort("fe80::1%nope0", 80))
    assert caught.value.reason is Reason.DNS_FAILED


async def test_the_systems_resolver_knows_localhost() -> None:
    found = addresses(await Resolver().resolve(HostPort("localhost", 80, numeric=False)))
    assert {"127.0.0.1:80", "[::1]:80"} & set(found)


async def test_a_name_that_nobody_knows_has_failed_before_anything_was_sent() -> None:
    with pytest.raises(UpstreamError) as caught:
        await Resolver().resolve(HostPort("a" * 64 + ".invalid", 80, numeric=False))
    assert (caught.value.reason, caught.value.retry) == (Reason.DNS_FAILED, Retry.IF_UNSENT)


async def test_an_answer_is_kept_and_then_asked_for_again(mock_clock: MockClock) -> None:
    server = NameServer()
    resolver = Resolver(server)
    for _ in range(3):
        assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]
    assert server.asked[HOST.host] == 1
    server.answer = [TWO, ONE]
    mock_clock.jump(KEEP)
    assert addresses(await resolver.resolve(HOST)) == ["[::2]:5432", "10.0.0.1:5432"]
    assert server.asked[HOST.host] == 2


@pytest.mark.parametrize("failure", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label"), []])
async def test_a_failure_is_kept_for_a_short_time(mock_clock: MockClock, failure: list[Target] | Exception) -> None:
    server = NameServer(failure)
    resolver = Resolver(server)
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await resolver.resolve(HOST)
    assert server.asked[HOST.host] == 1
    server.answer = [ONE]
    mock_clock.jump(KEEP_FAILURE)
    assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]


async def test_a_name_server_that_fails_does_not_take_the_last_good_answer_away(mock_clock: MockClock) -> None:
    server = NameServer()
    resolver = Resolver(server)
    await resolver.resolve(HOST)
    server.answer = socket.gaierror(-3, "Temporary failure in name resolution")
    for _ in range(20):
        mock_clock.jump(KEEP)
        assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]
    assert server.asked[HOST.host] == 21


async def test_a_slow_name_server_delays_a_known_name_only_a_little_and_then_not_for_a_while(
    mock_clock: MockClock,
) -> None:
    server = NameServer()
    resolver = Resolver(server)
    await resolver.resolve(HOST)
    mock_clock.jump(KEEP)
    server.open_gate.clear()
    server.answer = [TWO]
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(PATIENCE)
    await ask()  # the slow look-up is still under way; nobody asks beside it
    server.open_gate.set()
    while True:
        await trio.lowlevel.checkpoint()  # its thread is on its way
        if addresses(await resolver.resolve(HOST)) == ["[::2]:5432"]:
            break
    assert server.asked[HOST.host] == 2, "the late answer was used"


async def test_who_asks_together_asks_once() -> None:
    server = NameServer()
    server.open_gate.clear()
    resolver = Resolver(server)
    found: list[list[str]] = []

    async def ask() -> None:
        found.append(addresses(await resolver.resolve(HOST)))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        server.open_gate.set()
    assert found == [["10.0.0.1:5432"]] * 10
    assert server.asked[HOST.host] == 1


async def test_a_deadline_ends_the_wait_and_the_late_answer_serves_the_next_one() -> None:
    server = NameServer()
    server.open_gate.clear()
    resolver = Resolver(server)
    with pytest.raises(UpstreamError) as caught:
        await resolver.resolve(HOST, deadline=trio.current_time() + 0.02)
    assert caught.value.reason is Reason.DNS_FAILED
    assert caught.value.detail == "db.test: the resolver gave no answer in time"
    server.open_gate.set()
    assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]
    assert server.asked[HOST.host] == 1


async def test_cancelling_one_who_asks_does_not_harm_the_others() -> None:
    server = NameServer()
    server.open_gate.clear()
    resolver = Resolver(server)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]

        with trio.move_on_after(0.01) as first:
            await resolver.resolve(HOST)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        server.open_gate.set()
    assert first.cancelled_caught


async def test_a_dead_name_server_takes_no_more_than_its_share_of_threads() -> None:
    server = NameServer()
    server.open_gate.clear()
    resolver = Resolver(server)
    async with trio.open_nursery() as nursery:
        for index in range(3 * THREADS):
            nursery.start_soon(resolver.resolve, HostPort(f"h{index}.test", 80, numeric=False))
        await wait_all_tasks_blocked(0.02)
        assert server.asked.total() <= THREADS
        server.open_gate.set()
    assert server.asked.total() == 3 * THREADS


async def test_a_host_without_room_for_a_thread_fails_the_name_and_not_for_ever(mock_clock: MockClock) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    server = NameServer()
    resolver = Resolver(server, start_thread=no_thread)
    for _ in range(THREADS + 1):
        with pytest.raises(UpstreamError, match="can't start new thread"):
            await resolver.resolve(HOST)
        mock_clock.jump(KEEP_FAILURE)
    resolver.start_thread = start_thread_soon
    assert addresses(await resolver.resolve(HOST)) == ["10.0.0.1:5432"]


async def test_the_cache_forgets_the_name_that_was_used_least_recently() -> None:
    server = NameServer()
    resolver = Resolver(server)
    await resolver.resolve(HOST)
    for index in range(SIZE - 1):
        await resolver.resolve(HostPort(f"h{index}.test", 80, numeric=False))
    await resolver.resolve(HOST)
    await resolver.resolve(HostPort("one.more", 80, numeric=False))
    await resolver.resolve(HOST)
    assert server.asked[HOST.host] == 1
    await resolver.resolve(HostPort("h0.test", 80, numeric=False))
    assert server.asked["h0.test"] == 2


def test_an_answer_that_comes_after_the_run_is_dropped() -> None:
    async def run() -> trio.lowlevel.TrioToken:
        await trio.lowlevel.checkpoint()
        return trio.lowlevel.current_trio_token()

    name = _Name("db.test")
    Resolver()._hand_over(trio.run(run), name, outcome.Value([ONE]))
    assert name.good == ()


async def test_what_is_known_is_told_without_waiting_and_what_is_not_is_left_to_wait_for(
    mock_clock: MockClock,
) -> None:
    server = NameServer()
    resolver = Resolver(server)
    assert addresses(resolver.known(HostPort("10.0.0.9", 80)) or ()) == ["10.0.0.9:80"]
    assert addresses(resolver.known(UnixPath("/a")) or ()) == ["unix:/a"]
    assert resolver.known(HostPort("fe80::1%nope0", 80)) is None
    assert resolver.known(HOST) is None
    assert not server.asked
    await resolver.resolve(HOST)
    assert addresses(resolver.known(HOST) or ()) == ["10.0.0.1:5432"]
    mock_clock.jump(KEEP)
    assert resolver.known(HOST) is None, "it is stale: who asks starts a look-up"
    server.answer = []
    with pytest.raises(UpstreamError):
        await resolver.resolve(HOST)
    assert resolver.known(HOST) is None, "that it has no address is told by who waits"
