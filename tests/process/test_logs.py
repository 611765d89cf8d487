"""The log sink: nothing that becomes of the reader reaches the loop, and every lost line is counted and told."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tcpgate.config import schema
from tcpgate.errors import ConfigError
from tcpgate.process import logs
from tcpgate.process.log_targets import PATIENCE, Written, open_target
from tcpgate.process.logs import Facts, LineSink
from tcpgate.stats.journal import Journal
from tcpgate.stats.record import AccessRecord
from tcpgate.units import Bytes

Eventually = Callable[..., Any]


@attrs.define(eq=False)
class Bench:
    """A sink, the pipe that is its stdout, and what it told."""

    folder: Path
    reader: int = -1
    writer: int = -1
    told: list[tuple[str, str, str]] = attrs.field(factory=list)
    lost: int = 0
    got: bytes = b""
    journal: Journal = attrs.field(factory=Journal)
    sink: LineSink = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.sink = LineSink(self._lose, self._hear, functools.partial(open_target, stdout=self.writer))

    def _lose(self, lines: int) -> None:
        self.lost += lines

    def _hear(self, kind: str, level: str, text: str, facts: Facts) -> None:
        self.told.append((kind, level, text))
        self.journal.tell(kind, level, text, facts, ts=0.0)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.told]

    def access(self, target: str, **more: Any) -> None:
        self.sink.configure(schema.Log(access=target.format(self.folder), **more))

    def read(self) -> list[bytes]:
        """All lines that have come out so far."""
        try:
            while chunk := os.read(self.reader, 1 << 20):
                self.got += chunk
        except BlockingIOError:
            pass
        return self.got.splitlines(keepends=True)

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
async def bench(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bench]:
    """A running sink on stdout."""
    bench = Bench(tmp_path)
    bench.access("stdout")
    nursery.start_soon(bench.sink.write_forever)
    yield bench
    nursery.cancel_scope.cancel()
    await bench.sink.drain(trio.current_time() + 0.5)
    bench.close()


class Slow:
    """A target whose first write ends when the test says so."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def write(self, lines: Sequence[bytes]) -> Written:
        self.began.set()
        self.may_end.wait(10)
        self.batches.append(len(lines))
        return Written(len(lines))

    def close(self) -> None:
        pass


def line(n: int, size: int = 100) -> bytes:
    return json.dumps({"n": n, "x": "x" * size}).encode() + b"\n"


# -- lines ----------------------------------------------------------------------------------------------------------


async def test_lines_come_out_in_order_and_soon(bench: Bench, eventually: Eventually) -> None:
    lines = [line(n) for n in range(20)]
    for one in lines:
        bench.sink.append(one)
    assert bench.read() == []  # gathered, not written by the one who appends
    await eventually(lambda: bench.read() == lines)
    bench.sink.append(line(20))
    await eventually(lambda: bench.read() == [*lines, line(20)])
    assert (bench.lost, bench.told) == (0, [])


async def test_lines_taken_together_are_lines_taken_one_by_one(bench: Bench, eventually: Eventually) -> None:
    lines = [line(n) for n in range(60)]
    for start in range(0, 60, 7):
        bench.sink.extend(lines[start : start + 7])
    await eventually(lambda: bench.read() == lines)
    bench.access("stdout", buffer=4096)
    bench.sink.extend(lines)
    assert 60 - bench.lost == max(n for n in range(60) if sum(map(len, lines[:n])) <= 4096)
    await eventually(lambda: len(bench.read()) == 120 - bench.lost)


async def test_a_full_batch_does_not_wait_for_the_clock(
    bench: Bench, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BATCH_SECONDS", 60.0)
    count = logs.BATCH_BYTES // len(line(1)) + 1
    for n in range(count):
        bench.sink.append(line(n))
    await eventually(lambda: len(bench.read()) == count, within=30)


async def test_lines_that_come_during_a_write_wait_to_be_a_batch_of_their_own(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(logs, "BATCH_SECONDS", 60.0)
    target = Slow()
    sink = LineSink(lambda lines: None, opener=lambda access: target)
    sink.configure(schema.Log(access="stdout", buffer=Bytes(40_000)))  # a batch is 10,000
    nursery.start_soon(sink.write_forever)
    await trio.testing.wait_all_tasks_blocked()
    for n in range(1, 15):
        sink.append(b"x" * 999 + b"\n")
        if n == 10:
            await eventually(target.began.is_set)
    target.may_end.set()
    await eventually(lambda: target.batches == [10])
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert target.batches == [10]  # four lines are no reason to wake anybody
    for _ in range(6):
        sink.append(b"x" * 999 + b"\n")
    await eventually(lambda: target.batches == [10, 10])


async def test_a_line_that_comes_after_a_batch_is_written_though_it_is_alone(
    bench: Bench, eventually: Eventually
) -> None:
    for n in range(3):
        bench.sink.append(line(n))
        await eventually(lambda n=n: len(bench.read()) == n + 1)


async def test_lines_appended_while_others_are_written_follow_them(bench: Bench, eventually: Eventually) -> None:
    count = 3000
    for n in range(count):
        bench.sink.append(line(n))
        if n % 100 == 0:
            bench.read()
            await trio.sleep(0.002)
    await eventually(lambda: bench.read() == [line(n) for n in range(count)])


async def test_records_and_events_become_lines(bench: Bench, eventually: Eventually) -> None:
    bench.access("stdout", level="warning")
    bench.journal.subscribe(bench.sink.append_event)
    bench.journal.tell("ready", ts=1.0)  # info
    bench.journal.tell("log_dropped", ts=2.0)  # a warning
    bench.journal.tell("worker_died", ts=3.0)  # an error
    bench.sink.append_record(AccessRecord(ts=4.0, id="abc"))
    await eventually(lambda: len(bench.read()) == 3)
    facts = [json.loads(one) for one in bench.read()]
    assert [fact.get("event") for fact in facts] == ["log_dropped", "worker_died", None]
    assert facts[2]["id"] == "abc"


# -- a slow reader --------------------------------------------------------------------------------------------------


async def test_a_stuck_reader_costs_lines_and_never_the_loop(
    bench: Bench, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CALM", 0.1)
    bench.access("stdout", buffer=1 << 20)
    stuck, taken = 0, 0
    for n in range(20_000):
        began = time.perf_counter()
        bench.sink.append(line(n, 200))
        stuck += time.perf_counter() - began > 0.1
        if n % 1000 == 0:
            await trio.sleep(0.01)  # the writer fills the pipe and is stuck
    lost = bench.lost
    taken = 20_000 - lost
    assert stuck < 10, "a busy machine takes the core away now and then; a stuck reader would be met by each line"
    assert lost == bench.sink.dropped > 10_000
    assert taken * len(line(1, 200)) > 900_000  # about what the buffer holds: what is being written counts as well
    assert bench.kinds == ["log_dropped"]
    assert bench.told[0][1] == "warning"
    # The reader wakes: every line that was taken comes, whole and in order, and the end of it is told once.
    await eventually(lambda: len(bench.read()) == taken)
    numbers = [json.loads(one)["n"] for one in bench.read()]
    assert numbers == sorted(set(numbers))
    await eventually(lambda: bench.kinds == ["log_dropped", "log_restored"])
    assert str(lost) in bench.told[1][2]
    # And the next time is told anew.
    bench.access("stdout", buffer=4096)
    for n in range(100):
        bench.sink.append(line(n))
    assert bench.kinds == ["log_dropped", "log_restored", "log_dropped"]


async def test_an_event_of_the_loss_itself_does_not_begin_another(bench: Bench) -> None:
    bench.access("stdout", buffer=4096)
    bench.journal.subscribe(bench.sink.append_event)
    for n in range(100):
        bench.sink.append(line(n))
    await trio.sleep(0.15)
    bench.sink.append(line(100))
    assert bench.kinds == ["log_dropped"]


async def test_a_reader_that_is_gone_is_told_once_and_hurts_nobody(bench: Bench, eventually: Eventually) -> None:
    os.close(bench.reader)
    bench.reader = -1
    for n in range(3):
        bench.sink.append(line(n))
        await eventually(lambda n=n: bench.lost == n + 1)
    assert bench.kinds == ["log_failed"]
    assert "Broken pipe" in bench.told[0][2]


# -- the end --------------------------------------------------------------------------------------------------------


async def test_a_drain_writes_what_waits_after_the_writer_was_cancelled(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.access("stdout")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sink.write_forever)
        for n in range(300):
            bench.sink.append(line(n))
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert await bench.sink.drain() == 0
    assert bench.read() == [line(n) for n in range(300)]
    bench.close()


async def test_a_drain_works_in_a_scope_that_is_cancelled(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.access("stdout")
    bench.sink.append(line(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await bench.sink.drain() == 0
    assert bench.read() == [line(1)]
    bench.close()


async def test_a_drain_ends_at_its_deadline_and_says_what_is_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.access("stdout")
    for n in range(1000):
        bench.sink.append(line(n, 200))
    began = trio.current_time()
    left = await bench.sink.drain(began + 0.3)
    assert trio.current_time() - began < 20
    assert left == bench.lost > 100
    assert bench.kinds == ["log_dropped"]
    bench.close()


async def test_a_drain_waits_for_the_batch_that_is_being_written(tmp_path: Path, eventually: Eventually) -> None:
    bench = Bench(tmp_path)
    bench.access("stdout")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sink.write_forever)
        for n in range(1000):
            bench.sink.append(line(n, 200))  # more than the pipe holds, so the thread waits for us
        await eventually(bench.read)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(eventually, lambda: len(bench.read()) == 1000)
        assert await bench.sink.drain(trio.current_time() + 30) == 0
    assert bench.read() == [line(n, 200) for n in range(1000)]
    bench.close()


def test_a_write_that_outlives_the_run_disturbs_nobody(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        bench.access("stdout", buffer=Bytes(400_000))  # a quarter of it is a batch
        for n in range(1000):
            bench.sink.append(line(n, 200))
        with trio.move_on_after(0.05):
            await bench.sink.write_forever()

    trio.run(main)
    time.sleep(PATIENCE + 0.1)  # an exception in the thread would fail this test
    assert len(bench.read()) > 100
    bench.close()


# -- files ----------------------------------------------------------------------------------------------------------


async def test_a_rotated_file_is_reopened_at_once(bench: Bench, eventually: Eventually, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    bench.access("{}/access.log")
    bench.sink.append(line(1))
    await eventually(lambda: path.read_bytes() == line(1))
    path.rename(tmp_path / "access.log.1")
    bench.sink.reopen()
    await eventually(path.exists)  # with no line to write
    bench.sink.append(line(2))
    await eventually(lambda: path.read_bytes() == line(2))
    assert bench.told == []


async def test_a_reopen_asked_while_the_target_is_replaced_is_not_forgotten(
    bench: Bench, eventually: Eventually, tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    bench.access("{}/access.log")  # stdout has its last job before it
    path.rename(tmp_path / "access.log.1")
    bench.sink.reopen()
    await eventually(path.exists)


async def test_a_reopen_that_fails_is_told_and_the_old_file_goes_on(
    bench: Bench, eventually: Eventually, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    bench.access("{}/logs/access.log")
    await trio.sleep(0.01)
    (tmp_path / "logs").rename(tmp_path / "moved")
    bench.sink.reopen()
    bench.sink.append(line(1))
    await eventually(lambda: (tmp_path / "moved/access.log").read_bytes() == line(1))
    await eventually(lambda: bench.kinds == ["log_failed"])  # the thread has written before the loop hears of it
    assert "the old one goes on" in bench.told[0][2]
    assert bench.lost == 0


async def test_reopening_stdout_does_nothing(bench: Bench, eventually: Eventually) -> None:
    bench.sink.reopen()
    bench.sink.append(line(1))
    await eventually(lambda: bench.read() == [line(1)])
    assert bench.told == []


async def test_a_full_disk_is_told_once_and_so_is_its_end(
    bench: Bench, eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CALM", 0.05)
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    bench.access("{}/access.log")
    for n in range(3):
        bench.sink.append(line(n))
        await eventually(lambda n=n: bench.lost == n + 1)
    await trio.sleep(0.2)  # silence does not make a disk whole
    assert bench.kinds == ["log_failed"]
    assert bench.told[0][1:] == ("error", "log lines cannot be written: No space left on device")
    path.unlink()
    bench.sink.reopen()
    bench.sink.append(line(3))
    await eventually(lambda: bench.kinds == ["log_failed", "log_restored"])
    assert "3 were lost" in bench.told[1][2]
    assert path.read_bytes() == line(3)


# -- a reload -------------------------------------------------------------------------------------------------------


async def test_another_target_takes_over_and_no_line_is_lost(
    bench: Bench, eventually: Eventually, tmp_path: Path
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    open_before = len(os.listdir("/proc/self/fd"))
    bench.sink.append(line(0))
    for n, target in enumerate(("{}/first", "{}/second", "{}/third", "stdout"), 1):
        bench.access(target)
        bench.sink.append(line(n))
    await eventually(lambda: bench.read() == [line(0), line(4)])
    assert [path.read_bytes() for path in (first, second, third)] == [line(1), line(2), line(3)]
    assert bench.lost == 0
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_the_same_target_is_not_opened_again(bench: Bench, eventually: Eventually, tmp_path: Path) -> None:
    bench.access("{}/access.log")
    bench.sink.append(line(1))
    (tmp_path / "access.log").rename(tmp_path / "moved")
    bench.access("{}/access.log", buffer=8192)
    bench.sink.append(line(2))
    await eventually(lambda: (tmp_path / "moved").read_bytes() == line(1) + line(2))
    assert not (tmp_path / "access.log").exists()


async def test_a_target_that_cannot_be_opened_changes_nothing(bench: Bench, eventually: Eventually) -> None:
    with pytest.raises(ConfigError, match="there is no directory"):
        bench.access("{}/missing/access.log", level="error", buffer=4096)
    for n in range(100):
        bench.sink.append(line(n))
    await eventually(lambda: len(bench.read()) == 100)


async def test_switched_off_nothing_more_is_taken_and_what_was_taken_is_written(
    bench: Bench, eventually: Eventually
) -> None:
    bench.sink.append(line(1))
    bench.access("off")
    bench.sink.append(line(2))
    bench.sink.append_record(AccessRecord(ts=0.0))
    await eventually(lambda: bench.read() == [line(1)])
    await trio.sleep(0.15)
    assert bench.read() == [line(1)]
    assert bench.lost == 0
    bench.access("stdout")
    bench.sink.append(line(3))
    await eventually(lambda: bench.read() == [line(1), line(3)])


async def test_switched_off_before_a_stuck_reader_the_lines_that_waited_are_counted(
    bench: Bench, eventually: Eventually
) -> None:
    for n in range(1000):
        bench.sink.append(line(n, 200))
    bench.access("off")
    await eventually(lambda: bench.lost > 0)
    await eventually(lambda: len(bench.read()) + bench.lost == 1000)
    bench.access("stdout", buffer=Bytes(100_000))
    lines = [line(n, 200) for n in range(400)]  # some 90,000 bytes: all of the buffer is free again
    for one in lines:
        bench.sink.append(one)
    await eventually(lambda: bench.read()[-400:] == lines)


async def test_events_go_to_stdout_when_access_lines_are_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sink.configure(schema.Log(access="off"), events=True)
    bench.journal.subscribe(bench.sink.append_event)
    bench.journal.tell("ready", ts=0.0)
    assert await bench.sink.drain() == 0
    assert [json.loads(one)["event"] for one in bench.read()] == ["ready"]
    bench.close()


async def test_before_it_is_configured_a_sink_takes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sink.append(line(1))
    assert await bench.sink.drain() == 0
    assert bench.read() == []
    bench.close()


class Faulty:
    """A target with a bug."""

    def write(self, lines: Sequence[bytes]) -> Written:
        raise KeyError("bug")

    def close(self) -> None:
        """Nothing is open."""


async def test_a_bug_in_a_target_costs_its_lines_only(eventually: Eventually, nursery: trio.Nursery) -> None:
    told: list[str] = []
    dropped: list[int] = []
    sink = LineSink(dropped.append, lambda kind, level, text, facts: told.append(text), lambda access: Faulty())
    sink.configure(schema.Log())
    nursery.start_soon(sink.write_forever)
    for n in range(2):
        sink.append(line(n))
        await eventually(lambda n=n: dropped == [1] * (n + 1))
    assert told == ["log lines cannot be written: KeyError('bug')"]
    nursery.cancel_scope.cancel()


async def test_a_sink_without_a_journal_counts_in_silence(bench: Bench) -> None:
    dropped: list[int] = []
    sink = LineSink(dropped.append, opener=functools.partial(open_target, stdout=bench.writer))
    sink.configure(schema.Log(buffer=Bytes(4096)))
    for n in range(100):
        sink.append(line(n))
    assert sink.dropped == len(dropped) > 50
    await sink.drain()
