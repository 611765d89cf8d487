"""Where log lines end, with real pipes, sockets, files and a stand-in for journald's socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tcpgate.errors import ConfigError
from tcpgate.process import log_targets
from tcpgate.process.log_targets import (
    PATIENCE,
    FileTarget,
    JournalTarget,
    StreamTarget,
    Written,
    journal_datagram,
    open_target,
)
from tcpgate.stats.line import LINE_LIMIT

ROOT = Path(__file__).parents[2]


def some_lines(count: int, size: int = 300) -> list[bytes]:
    return [json.dumps({"n": n, "x": "x" * size}).encode() + b"\n" for n in range(count)]


def read_all(fd: int) -> bytes:
    """What is in the pipe now."""
    os.set_blocking(fd, False)
    data = b""
    try:
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    return data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


# -- streams --------------------------------------------------------------------------------------------------------


def test_lines_come_out_as_they_went_in(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = some_lines(100)
    assert StreamTarget(writer).write(lines) == Written(100)
    assert read_all(reader) == b"".join(lines)
    assert StreamTarget(writer).write([]) == Written(0)


def test_each_write_is_whole_lines_and_small_enough_never_to_be_mixed() -> None:
    # A datagram socket keeps the bounds of each write.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lines = [*some_lines(20), *some_lines(3, LINE_LIMIT - 30), *some_lines(20, 1)]
    target = StreamTarget(os.dup(ours.fileno()))
    assert target.write(lines) == Written(len(lines))
    target.close()
    ours.close()
    writes = list(iter(lambda: theirs.recv(1 << 20), b""))
    assert b"".join(writes) == b"".join(lines)
    assert all(len(write) <= LINE_LIMIT and write.endswith(b"\n") for write in writes)
    for write, after in pairwise(writes):  # and no more of them than needed
        assert len(write) + len(after.splitlines(keepends=True)[0]) > LINE_LIMIT
    theirs.close()


WRITE_UNTIL_TOLD = """
import itertools, json, select, sys
from tcpgate.process.log_targets import StreamTarget
target, who, numbers = StreamTarget(1), sys.argv[1], itertools.count()
while not select.select([0], [], [], 0)[0]:
    some = itertools.islice(numbers, 50)
    lines = [json.dumps({"who": who, "n": n, "x": who * (n * 37 % 2000)}).encode() + b"\\n" for n in some]
    while lines:
        written = target.write(lines)
        assert written.error is None, written.error
        lines = lines[written.done :]
print(next(numbers), file=sys.stderr)
"""


def start_writer(who: str, stdout: int, until: int) -> subprocess.Popen[bytes]:
    """It writes lines until `until` can be read."""
    command = [sys.executable, "-c", WRITE_UNTIL_TOLD, who]
    return subprocess.Popen(command, stdin=until, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT)


@pytest.mark.parametrize("kind", ["pipe", "pipe made non-blocking", "socket"])
def test_workers_that_share_stdout_never_mix_their_lines(kind: str) -> None:
    if kind.startswith("pipe"):
        reader, writer = os.pipe()
        os.set_blocking(writer, kind == "pipe")
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)  # narrow, so that they wait for each other all the time
    else:  # what systemd gives to a service
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        reader, writer = ours.detach(), theirs.detach()
    until, stop = os.pipe()
    with contextlib.ExitStack() as started:
        workers = {who: started.enter_context(start_writer(who, writer, until)) for who in "abc"}
        os.close(writer)
        os.close(until)
        count, turns, last = dict.fromkeys(workers, 0), dict.fromkeys(workers, 0), ""
        with open(reader, "rb") as out, open(stop, "wb") as stopper:
            for line in out:
                fact = json.loads(line)
                who = fact["who"]
                assert fact == {"who": who, "n": count[who], "x": who * (count[who] * 37 % 2000)}
                count[who] += 1
                turns[who] += who != last
                last = who
                # A busy machine may let one write a great deal alone, so all go on until each has often cut in.
                if min(turns.values()) >= 50:
                    stopper.close()
        said = {who: int(worker.communicate()[1]) for who, worker in workers.items()}
    assert said == count, "each line came, and came once"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stopped_is_waited_for_a_moment_and_found_again(pipe: tuple[int, int], blocking: bool) -> None:
    reader, writer = pipe
    os.set_blocking(writer, blocking)
    target, lines = StreamTarget(writer), some_lines(1000)
    began = time.monotonic()
    first = target.write(lines)
    assert PATIENCE <= time.monotonic() - began < PATIENCE + 10
    assert first.error is None
    assert 0 < first.done < 1000
    assert target.write(lines[first.done :]) == Written(0)
    got = read_all(reader)
    assert got == b"".join(lines[: first.done])
    second = target.write(lines[first.done : first.done + 10])
    assert second == Written(10)
    assert read_all(reader) == b"".join(lines[first.done : first.done + 10])
    assert os.get_blocking(writer) == blocking


def test_a_reader_that_wakes_meanwhile_gets_all(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_targets, "PATIENCE", 30.0)  # a busy machine may be slow to read
    reader, writer = pipe
    lines = some_lines(2000)
    got: list[bytes] = []

    def read_late() -> None:
        time.sleep(0.06)
        while len(b"".join(got)) < len(b"".join(lines)):
            got.append(os.read(reader, 1 << 16))

    thread = threading.Thread(target=read_late)
    thread.start()
    assert StreamTarget(writer).write(lines) == Written(2000)
    thread.join(10)
    assert b"".join(got) == b"".join(lines)


def test_a_reader_that_is_gone_is_an_error_at_once(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_targets, "PATIENCE", 30.0)
    reader, writer = pipe
    os.close(reader)
    began = time.monotonic()
    written = StreamTarget(writer).write(some_lines(5))
    assert written.done == 0
    assert written.error is not None
    assert written.error.errno == errno.EPIPE
    assert time.monotonic() - began < 20, "it was not waited for"


def test_a_line_torn_by_a_stuck_reader_does_not_spoil_the_next(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)  # only so can a pipe take a part
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    target = StreamTarget(writer)
    written = target.write([b"x" * 20_000 + b"\n"])
    assert written.done == 0
    assert written.error is not None
    assert "middle of a line" in str(written.error)
    torn = read_all(reader)
    assert target.write([b"next\n"]) == Written(1)
    assert torn + read_all(reader) == b"x" * len(torn) + b"\nnext\n"
    assert target.write([b"over\n"]) == Written(1)
    assert read_all(reader) == b"over\n"


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_new_file_is_for_its_group_to_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        FileTarget(tmp_path / "access.log").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "access.log").stat().st_mode) == 0o640


def test_a_file_that_is_there_keeps_its_mode_and_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"old\n")
    path.chmod(0o604)
    target = FileTarget(path)
    assert target.write([b"new\n"]) == Written(1)
    target.close()
    assert path.read_bytes() == b"old\nnew\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_two_workers_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    first, second = FileTarget(path), FileTarget(path)
    lines = some_lines(900)
    for start in range(0, 900, 300):
        assert first.write(lines[start : start + 150]).done == 150
        assert second.write(lines[start + 150 : start + 300]).done == 150
    assert path.read_bytes() == b"".join(lines)
    first.close()
    second.close()


def test_a_rotated_file_is_let_go_of(tmp_path: Path) -> None:
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    target = FileTarget(path)
    target.write([b"1\n"])
    path.rename(old)
    target.write([b"2\n"])
    target.reopen()
    target.write([b"3\n"])
    assert (old.read_bytes(), path.read_bytes()) == (b"1\n2\n", b"3\n")
    target.close()


def test_a_file_that_cannot_be_reopened_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    target = FileTarget(folder / "access.log")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        target.reopen()
    assert target.write([b"1\n"]) == Written(1)
    assert (moved / "access.log").read_bytes() == b"1\n"
    target.close()


def test_a_full_disk_is_an_error_and_not_forever(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    target = FileTarget(path)
    written = target.write(some_lines(3))
    assert written.done == 0
    assert written.error is not None
    assert written.error.errno == errno.ENOSPC
    path.unlink()
    target.reopen()
    assert target.write(some_lines(3)) == Written(3)
    target.close()


RUN_FULL = """
import resource, sys
from pathlib import Path
from tcpgate.process.log_targets import FileTarget
target = FileTarget(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
written = target.write([b"line %d\\n" % n for n in range(5)])
assert (written.done, written.error.strerror) == (3, "File too large"), written
written = target.write([b"lost\\n"])
assert (written.done, written.error.strerror) == (0, "File too large"), written
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert target.write([b"whole\\n"]).done == 1
"""


def test_a_disk_that_fills_up_within_a_line_tears_only_that_one(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    subprocess.run([sys.executable, "-c", RUN_FULL, path], cwd=ROOT, check=True)
    assert path.read_bytes() == b"line 0\nline 1\nline 2\nline\nwhole\n"


# -- the journal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(5)
        yield sock


def fields(datagram: bytes) -> dict[str, str]:
    """A datagram read as journald reads it."""
    found = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        key, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[8 + size + 1 :]
        found[key.decode()] = value.decode()
    return found


ACCESS = (
    b'{"v":1,"id":"abc","trace":"","route":"api","reason":"connect_refused","status":502,"endpoint":"10.0.0.1:80"}\n'
)


def test_a_line_becomes_a_message_with_what_one_searches_by(journald: socket.socket, tmp_path: Path) -> None:
    target = JournalTarget(tmp_path / "socket")
    assert target.write([ACCESS, b'{"level":"error","event":"worker_died","logger":"a\\nb"}\n']) == Written(2)
    assert fields(journald.recv(1 << 16)) == {
        "MESSAGE": ACCESS.decode().rstrip("\n"),
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "tcpgate",
        "REQUEST_ID": "abc",
        "REASON": "connect_refused",
        "STATUS": "502",
        "ROUTE": "api",
        "ENDPOINT": "10.0.0.1:80",
    }
    assert fields(journald.recv(1 << 16)) == {
        "MESSAGE": '{"level":"error","event":"worker_died","logger":"a\\nb"}',
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "tcpgate",
        "EVENT": "worker_died",
        "LOGGER": "a\nb",
    }
    target.close()


@pytest.mark.parametrize(("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3")])
def test_a_level_is_a_priority(level: str, priority: str) -> None:
    assert fields(journal_datagram(json.dumps({"level": level}).encode() + b"\n", "x"))["PRIORITY"] == priority


def test_no_field_of_a_clients_can_add_another(journald: socket.socket, tmp_path: Path) -> None:
    line = json.dumps({"id": "x\nPRIORITY=0\nREASON=forged", "reason": "ok"}).encode() + b"\n"
    target = JournalTarget(tmp_path / "socket")
    target.write([line])
    found = fields(journald.recv(1 << 16))
    assert (found["PRIORITY"], found["REASON"], found["REQUEST_ID"]) == ("6", "ok", "x\nPRIORITY=0\nREASON=forged")
    target.close()


def test_a_busy_journald_is_waited_for_a_moment_and_found_again(journald: socket.socket, tmp_path: Path) -> None:
    target, lines = JournalTarget(tmp_path / "socket"), some_lines(2000)
    first = target.write(lines)
    assert first.error is None
    assert 0 < first.done < 2000
    for n in range(first.done):
        assert json.loads(fields(journald.recv(1 << 16))["MESSAGE"])["n"] == n
    assert target.write(lines[first.done : first.done + 5]) == Written(5)
    assert json.loads(fields(journald.recv(1 << 16))["MESSAGE"])["n"] == first.done
    target.close()


def test_a_journald_that_restarts_is_found_again(journald: socket.socket, tmp_path: Path) -> None:
    target = JournalTarget(tmp_path / "socket")
    journald.close()
    written = target.write([ACCESS])
    assert written.done == 0
    assert written.error is not None
    assert written.error.errno == errno.ECONNREFUSED
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        again.settimeout(5)
        assert target.write([ACCESS]) == Written(1)
        assert fields(again.recv(1 << 16))["REQUEST_ID"] == "abc"
    target.close()


# -- by name --------------------------------------------------------------------------------------------------------


def test_off_is_no_target() -> None:
    assert open_target("off") is None


def test_stdout_is_a_duplicate_so_closing_it_closes_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    target = open_target("stdout", stdout=writer)
    assert target is not None
    target.write([b"1\n"])
    target.close()
    os.write(writer, b"2\n")
    assert read_all(reader) == b"1\n2\n"


def test_the_journal_is_found_where_it_listens(journald: socket.socket, tmp_path: Path) -> None:
    target = open_target("journal", journal=tmp_path / "socket")
    assert target is not None
    assert target.write([ACCESS]) == Written(1)
    assert journald.recv(1 << 16)
    target.close()


@pytest.mark.parametrize(
    ("access", "text"),
    [
        ("{}/missing/access.log", "{0}/missing/access.log: log.access: there is no directory {0}/missing; make it, or"),
        ("{}", "{0}: log.access: cannot be opened: Is a directory"),
        ("{}/fifo", "{0}/fifo: log.access: cannot be opened: No such device or address"),
        ("journal", "{0}/socket: log.access: cannot be opened: systemd's journal does not listen there"),
        ("stdout", "stdout: log.access: cannot be opened: Bad file descriptor"),
    ],
)
def test_what_cannot_be_opened_is_a_problem_of_the_config(tmp_path: Path, access: str, text: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError) as caught:
        open_target(access.format(tmp_path), stdout=9999, journal=tmp_path / "socket")
    assert str(caught.value).startswith(text.format(tmp_path))
