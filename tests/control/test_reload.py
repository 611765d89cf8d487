"""The reloader between a real config reader and fakes of what it drives: sockets, workers, what lives beside it.

Whatever fails, and at whichever step, sockets, generation and config are as before; whatever succeeds, they are as the
file says.
"""

from __future__ import annotations

import errno
import itertools
import logging
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.abc import Clock
from trio.testing import wait_all_tasks_blocked

from tcpgate.config import schema
from tcpgate.config.load import Loaded, load
from tcpgate.control.reload import STOPPING, Reloader, ReloadResult
from tcpgate.errors import ConfigError, Problem

BASE = """
[routes.all]
respond = {}
"""


class Listening(socket.socket):
    """A socket that notes what backlog it was told, and listens nowhere."""

    backlog = 0

    def listen(self, backlog: int = 0, /) -> None:
        self.backlog = backlog


@attrs.define(eq=False)
class Binder:
    """Opens sockets, but not those that are `taken`."""

    taken: set[str] = attrs.field(factory=set)
    cannot_listen: set[str] = attrs.field(factory=set)
    """They can be bound, but somebody was quicker to listen."""
    open: dict[str, Listening] = attrs.field(factory=dict)
    opened: list[str] = attrs.field(factory=list)

    def bind(self, text: str, backlog: int, mode: int) -> socket.socket:
        if text in self.taken:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {text}: the address is already in use")
        assert text not in self.open, "bound twice"
        sock = self.open[text] = Listening()
        sock.listen(backlog)
        self.opened.append(text)
        return sock

    def permit(self, text: str, mode: int) -> None:
        """There is no file."""

    def start(self, text: str) -> None:
        assert text in self.open
        if text in self.cannot_listen:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {text}: the address is already in use")

    def release(self, text: str, sock: socket.socket) -> None:
        assert self.open.pop(text) is sock
        sock.close()


@attrs.define(eq=False)
class Workers:
    """Where generations go. `prepare_is` decides what comes of the next ones."""

    prepare_is: Callable[[], str | None] = lambda: None
    pause: float = 0.0
    """Seconds that each step takes."""
    commit_pause: float = 0.0
    numbers: list[int] = attrs.field(factory=list)
    held: tuple[int, schema.Config, frozenset[str]] | None = None
    serving: tuple[int, schema.Config, frozenset[str]] | None = None
    abandoned: int = 0

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        self.numbers.append(number)
        assert all(sock.fileno() >= 0 for sock in sockets.values())
        self.held = number, config, frozenset(sockets)
        await trio.sleep(self.pause)
        problem = self.prepare_is()
        return [problem] if problem else []

    async def commit(self) -> None:
        await trio.sleep(self.commit_pause)
        self.serving, self.held = self.held, None

    def abandon(self) -> None:
        self.held = None
        self.abandoned += 1


@attrs.define(eq=False)
class Here:
    """What lives beside the workers."""

    refuses: bool = False
    held: bool = False
    applied: list[tuple[schema.Config, schema.Config | None]] = attrs.field(factory=list)

    async def prepare(self, config: schema.Config) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise ConfigError([Problem("/var/log/x", 0, "log.events", "cannot be opened: Is a directory")])
        self.held = True

    def apply(self, config: schema.Config, old: schema.Config | None) -> None:
        self.held = False
        self.applied.append((config, old))

    def abandon(self) -> None:
        self.held = False


@attrs.define(eq=False)
class Bench:
    """A reloader, its file, and the fakes around it."""

    path: Path
    binder: Binder = attrs.field(factory=Binder)
    workers: Workers = attrs.field(factory=Workers)
    here: Here = attrs.field(factory=Here)
    events: list[tuple[str, str, str]] = attrs.field(factory=list)
    loads: int = 0
    reloader: Reloader = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reloader = Reloader(
            load=self.load,
            binder=self.binder,
            publisher=self.workers,
            beside=self.here,
            tell=lambda kind, level, text, facts: self.events.append((kind, level, text)),
        )

    def load(self) -> Loaded:
        self.loads += 1
        return load(self.path, environ={}, credentials=None)

    def write(self, *binds: str, more: str = "") -> None:
        """A config that listens there."""
        listening = ", ".join(f'"{bind}"' for bind in binds)
        self.path.write_text(f"[listeners.web]\nbind = [{listening}]\n{BASE}{more}")

    async def start(self, *binds: str, more: str = "") -> None:
        self.write(*binds, more=more)
        assert (await self.reloader.start(self.load())).ok

    async def preparing(self) -> None:
        """Returns while a reload has begun to publish. A file is read in a real thread, for which no clock waits."""
        with trio.fail_after(1e6):
            while self.workers.held is None:
                await trio.lowlevel.checkpoint()
        await trio.sleep(0.01)

    async def cancel_reload(self) -> None:
        """Reload, and cancel that once it has begun to publish."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reloader.reload)
            await self.preparing()
            nursery.cancel_scope.cancel()

    def is_as(self, *binds: str, generation: int) -> None:
        """Holds if exactly this serves, and nothing was left behind."""
        assert set(self.binder.open) == set(self.reloader.sockets) == set(binds)
        assert self.reloader.generation == generation
        assert self.workers.serving is not None
        assert self.workers.serving[0] == generation
        assert self.workers.serving[1] == self.reloader.config
        assert self.workers.serving[2] == set(binds)
        assert self.workers.held is None
        assert not self.here.held


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "gateway.toml")
    yield made
    made.reloader.close()


A, B, C = "127.0.0.1:1", "127.0.0.1:2", "unix:/tmp/three"

# -- what a reload does ---------------------------------------------------------------------------------------------


async def test_a_reload_binds_what_is_new_and_closes_what_is_gone(bench: Bench) -> None:
    await bench.start(A, B)
    kept = bench.reloader.sockets[B]
    bench.write(B, C)
    result = await bench.reloader.reload()
    assert (result.ok, result.changed, result.generation) == (True, True, 2)
    bench.is_as(B, C, generation=2)
    assert bench.reloader.sockets[B] is kept
    assert bench.here.applied[-1][1] is bench.here.applied[0][0]
    assert bench.events[-1][:2] == ("reload_ok", "info")
    assert result.summary.startswith("reload: generation 2 serves, 1 change in ")


async def test_the_same_text_in_other_words_is_a_noop(bench: Bench) -> None:
    await bench.start(A)
    bench.path.write_text("# only a comment\n" + bench.path.read_text())
    result = await bench.reloader.reload()
    assert (result.ok, result.changed, result.generation) == (True, False, 1)
    assert bench.workers.numbers == [1]
    assert bench.reloader.counts == {"ok": 0, "failed": 0, "noop": 1}


async def test_a_listener_that_takes_anothers_address_over_keeps_the_socket(bench: Bench) -> None:
    await bench.start(A)
    before = bench.reloader.sockets[A]
    bench.path.write_text(f'[listeners.renamed]\nbind = ["{A}"]\n{BASE}')
    assert (await bench.reloader.reload()).ok
    assert bench.reloader.sockets[A] is before
    assert bench.binder.opened == [A]


async def test_a_changed_backlog_is_told_to_the_socket_that_stays(bench: Bench) -> None:
    await bench.start(A, more="[listeners.other]\nbind = ['127.0.0.1:9']\nbacklog = 7\n")
    bench.write(A, more="[listeners.other]\nbind = ['127.0.0.1:9', '127.0.0.1:10']\nbacklog = 99\n")
    assert (await bench.reloader.reload()).ok
    backlogs = {text: sock.backlog for text, sock in bench.binder.open.items()}
    assert backlogs == {A: 4096, "127.0.0.1:9": 99, "127.0.0.1:10": 99}


async def test_a_setting_that_needs_a_restart_says_so_until_it_is_taken_back(bench: Bench) -> None:
    await bench.start(A)
    bench.write(A, more="[admin]\nbind = 'unix:/tmp/other.sock'\n[gateway]\nstate_dir = '/tmp/other'\n")
    result = await bench.reloader.reload()
    assert result.ok
    assert set(result.restart) == {"admin.bind", "gateway.state_dir"}
    assert "only a restart brings into effect: " in result.summary
    bench.write(A, more="[admin]\nbind = 'unix:/tmp/other.sock'\n")
    assert (await bench.reloader.reload()).restart == ("admin.bind",)
    assert (await bench.reloader.reload()).restart == ("admin.bind",)  # nothing changes, and it is still so
    bench.write(A)
    assert (await bench.reloader.reload()).restart == ()


async def test_warnings_are_those_of_the_newest_reading(bench: Bench) -> None:
    unused = "[upstreams.idle]\nendpoints = ['127.0.0.1:5']\n"
    await bench.start(A)
    assert bench.reloader.warnings == ()
    bench.write(A, more=unused)
    result = await bench.reloader.reload()
    assert "upstreams.idle: warning: is not used" in result.warnings[0]
    assert bench.reloader.warnings == result.warnings


# -- what fails -----------------------------------------------------------------------------------------------------


async def failed(bench: Bench, *says: str) -> ReloadResult:
    """Reload, which fails, says so everywhere, and leaves everything as it was."""
    before, told = bench.reloader.generation, len(bench.events)
    result = await bench.reloader.reload()
    assert (result.ok, result.changed, result.generation) == (False, False, before)
    for text in says:
        assert text in result.problems[0]
    assert result.summary.startswith(f"reload failed, generation {before} goes on: ")
    assert ("reload_failed", "error", result.summary) in bench.events[told:]
    assert bench.reloader.last is result
    bench.is_as(A, generation=before)
    return result


async def test_a_file_that_cannot_be_read_changes_nothing(bench: Bench) -> None:
    await bench.start(A)
    bench.path.write_text("[nonsense")
    await failed(bench, "gateway.toml:1")


async def test_an_address_in_use_names_file_line_and_cure_and_every_other_one_too(bench: Bench) -> None:
    await bench.start(A)
    bench.binder.taken = {B, C}
    bench.write(A, B, "127.0.0.1:4", C)
    result = await failed(bench, "gateway.toml:2: listeners.web.bind[1]: cannot listen on 127.0.0.1:2", "`ss -ltnp`")
    assert len(result.problems) == 2
    assert "(and 1 more)" in result.summary


async def test_a_log_that_cannot_be_opened_changes_nothing(bench: Bench) -> None:
    await bench.start(A)
    bench.here.refuses = True
    bench.write(A, B)
    await failed(bench, "log.events", "Is a directory")
    assert bench.workers.numbers == [1]


async def test_a_worker_that_cannot_build_changes_nothing(bench: Bench) -> None:
    await bench.start(A)
    bench.workers.prepare_is = lambda: "worker 2: no"
    bench.write(A, B)
    await failed(bench, "worker 2: no")
    assert bench.workers.abandoned == 1


async def test_the_last_thing_that_can_fail_changes_nothing_either(bench: Bench) -> None:
    await bench.start(A)
    bench.binder.cannot_listen = {B}
    bench.write(A, B)
    await failed(bench, "127.0.0.1:2: cannot listen on 127.0.0.1:2: the address is already in use")
    assert bench.workers.abandoned == 1


async def test_a_number_is_never_used_twice(bench: Bench) -> None:
    await bench.start(A)
    answers = itertools.chain(["no", "no"], itertools.repeat(None))
    bench.workers.prepare_is = lambda: next(answers)
    bench.write(A, B)
    await failed(bench)
    await failed(bench)
    assert (await bench.reloader.reload()).generation == 4
    assert bench.workers.numbers == [1, 2, 3, 4]


async def test_a_bug_of_ours_is_a_failed_reload_and_not_the_end(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def explode() -> str:
        raise ZeroDivisionError("oh")

    await bench.start(A)
    bench.workers.prepare_is = explode
    bench.write(A, B)
    with caplog.at_level(logging.CRITICAL, "tcpgate"):
        await failed(bench, "a bug in the gateway: ZeroDivisionError('oh')")
    assert ("bug", "error", "reload: ZeroDivisionError('oh')") in bench.events
    bench.workers.prepare_is = lambda: None
    assert (await bench.reloader.reload()).ok
    bench.is_as(A, B, generation=3)


async def test_the_first_generation_fails_in_the_same_words(bench: Bench) -> None:
    bench.write(A)
    bench.binder.taken = {A}
    result = await bench.reloader.start(bench.load())
    assert not result.ok
    assert "listeners.web.bind[0]" in result.problems[0]
    assert bench.binder.open == {}
    assert bench.reloader.generation == 0


# -- many at once ---------------------------------------------------------------------------------------------------


async def test_a_storm_of_reloads_is_the_one_under_way_and_one_more(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.pause = 1.0
    results: list[ReloadResult] = []

    async def ask() -> None:
        results.append(await bench.reloader.reload())

    async with trio.open_nursery() as nursery:
        bench.write(A, B)
        nursery.start_soon(ask)
        await bench.preparing()
        bench.write(A, B, C)
        for _ in range(50):
            nursery.start_soon(ask)
            await trio.sleep(0.001)
    assert bench.loads == 3  # the start, the one under way, one for all of the rest
    assert [result.generation for result in results] == [2] + [3] * 50
    bench.is_as(A, B, C, generation=3)


async def test_who_asks_gets_a_file_read_after_asking(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.pause = 1.0
    binds: list[str] = []
    async with trio.open_nursery() as nursery:
        for count in range(2, 12):
            binds = [f"127.0.0.1:{port}" for port in range(100, 100 + count)]
            bench.write(*binds)
            nursery.start_soon(bench.reloader.reload)
            await trio.sleep(0.1)
            bench.workers.pause = 0.01
    assert set(bench.binder.open) == set(binds)


# -- being told to stop, and being cancelled ------------------------------------------------------------------------


async def test_stopping_fails_the_attempt_under_way_and_every_later_one(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.pause = 1000.0
    bench.write(A, B)
    results: list[ReloadResult] = []

    async def ask() -> None:
        results.append(await bench.reloader.reload())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await bench.preparing()
        with trio.fail_after(1):
            await bench.reloader.stop()
    assert [result.problems for result in results] == [(STOPPING,)] * 2
    bench.is_as(A, generation=1)


async def test_stopping_waits_for_a_commit_that_has_begun(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.commit_pause = 5.0
    bench.write(A, B)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reloader.reload)
        await bench.preparing()
        before = trio.current_time()
        await trio.sleep(0.1)
        await bench.reloader.stop()
        assert trio.current_time() - before == pytest.approx(5.0, abs=0.1)
    bench.is_as(A, B, generation=2)


async def test_cancelled_before_the_commit_nothing_is_left(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.pause = 1000.0
    bench.write(A, B)
    await bench.cancel_reload()
    bench.is_as(A, generation=1)
    bench.workers.pause = 0.0
    assert (await bench.reloader.reload()).ok  # the lock is free again


async def test_cancelled_in_the_commit_it_is_finished_first(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.commit_pause = 5.0
    bench.write(A, B)
    await bench.cancel_reload()
    bench.is_as(A, B, generation=2)


async def test_a_commit_that_never_ends_does_not_hold_a_cancellation_for_ever(
    bench: Bench, autojump_clock: Clock
) -> None:
    await bench.start(A)
    bench.workers.commit_pause = 1e6
    bench.write(A, B)
    with trio.fail_after(100):
        await bench.cancel_reload()
    assert bench.reloader.generation == 2


async def test_who_waits_for_a_cancelled_one_is_served_all_the_same(bench: Bench, autojump_clock: Clock) -> None:
    await bench.start(A)
    bench.workers.pause = 10.0
    bench.write(A, B)
    done: list[ReloadResult] = []
    scope = trio.CancelScope()

    async def first() -> None:
        with scope:
            await bench.reloader.reload()

    async def second() -> None:
        done.append(await bench.reloader.reload())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await bench.preparing()
        nursery.start_soon(second)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
    assert [result.ok for result in done] == [True]
    bench.is_as(A, B, generation=3)


async def test_at_the_end_every_socket_is_released(bench: Bench) -> None:
    await bench.start(A, B, C)
    bench.reloader.close()
    assert bench.binder.open == {}
    assert bench.reloader.sockets == {}


# -- any order of them ----------------------------------------------------------------------------------------------

ADDRESSES = [A, B, C, "127.0.0.1:4", "[::1]:5"]


class ReloadMachine(RuleBasedStateMachine):
    """Edits, reloads, and failures at every step, against a model: what serves is what last succeeded."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.folder.name) / "gateway.toml")
        self.serves: tuple[str, ...] = (A,)
        self.written: tuple[str, ...] | None = (A,)
        trio.run(self.bench.start, A)

    def teardown(self) -> None:
        self.bench.reloader.close()
        self.folder.cleanup()
        assert self.bench.binder.open == {}

    def reload(self) -> ReloadResult:
        return trio.run(self.bench.reloader.reload)

    @rule(binds=st.lists(st.sampled_from(ADDRESSES), min_size=1, unique=True))
    def edit(self, binds: list[str]) -> None:
        self.written = tuple(binds)
        self.bench.write(*binds)

    @rule(garbage=st.sampled_from(["[", "x = 1", "[listeners.web]\nbind = []\n", ""]))
    def spoil(self, garbage: str) -> None:
        self.written = None
        self.bench.path.write_text(garbage)

    @rule()
    def reload_well(self) -> None:
        before = self.bench.reloader.generation
        result = self.reload()
        assert result.ok == (self.written is not None)
        if self.written is not None:
            assert result.changed == (self.written != self.serves)
            assert (result.generation > before) == result.changed
            self.serves = self.written

    @precondition(lambda self: self.written not in (None, self.serves))
    @rule(step=st.sampled_from(["bind", "here", "worker", "listen", "bug", "cancel"]))
    def reload_badly(self, step: str) -> None:
        bench, before = self.bench, self.bench.reloader.generation
        assert self.written is not None
        fresh = set(self.written) - set(self.serves)
        if step in ("bind", "listen") and not fresh:
            return
        bench.binder.taken = fresh if step == "bind" else set()
        bench.binder.cannot_listen = fresh if step == "listen" else set()
        bench.here.refuses = step == "here"
        bench.workers.prepare_is = {"worker": lambda: "no", "bug": lambda: str(1 // 0)}.get(step, lambda: None)
        if step == "cancel":
            bench.workers.pause = 1000.0
            trio.run(bench.cancel_reload)
        else:
            logging.disable(logging.CRITICAL)  # the trace of a bug that was made on purpose
            assert not self.reload().ok
            logging.disable(logging.NOTSET)
        bench.binder.taken, bench.binder.cannot_listen, bench.here.refuses = set(), set(), False
        bench.workers.prepare_is, bench.workers.pause = lambda: None, 0.0
        assert bench.reloader.generation == before

    @invariant()
    def what_serves_is_what_last_succeeded(self) -> None:
        self.bench.is_as(*self.serves, generation=self.bench.reloader.generation)

    @invariant()
    def no_number_was_used_twice(self) -> None:
        numbers = self.bench.workers.numbers
        assert len(numbers) == len(set(numbers))
        assert numbers == sorted(numbers)


TestReloadMachine = ReloadMachine.TestCase
TestReloadMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
