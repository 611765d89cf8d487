"""The service manager's side of process/systemd.py is a real datagram socket here, read as systemd reads it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.process.systemd import (
    FIRST_FD,
    UNNAMED,
    Notifier,
    credentials_directory,
    listen_fds,
    watchdog_interval,
)


@attrs.define
class Manager:
    """What systemd's end of NOTIFY_SOCKET received."""

    sock: socket.socket
    address: str

    def received(self) -> dict[str, str]:
        """The next datagram's assignments; BlockingIOError if none has come."""
        return self.received_with_fds()[0]

    def received_with_fds(self) -> tuple[dict[str, str], list[int]]:
        """The next datagram's assignments and the descriptors that came with it."""
        data, fds, _, _ = socket.recv_fds(self.sock, 8192, 64)
        lines = data.decode().splitlines()
        facts = dict(line.split("=", 1) for line in lines)
        assert len(facts) == len(lines), f"an assignment came twice: {lines}"
        return facts, list(fds)

    def fill(self) -> int:
        """Send to it until the queue takes no more; how many that were."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.address.replace("@", "\0", 1))
            for count in range(100_000):
                try:
                    sock.send(b"X=1\n")
                except BlockingIOError:
                    return count
        raise AssertionError("the queue never filled")

    def empty(self) -> None:
        """Read everything that waits."""
        while True:
            try:
                self.sock.recv(8192)
            except BlockingIOError:
                return


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens on a path, and one in the abstract namespace."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@tcpgate-test-{os.getpid()}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1))
        sock.setblocking(False)
        yield Manager(sock, address)


@pytest.fixture
def notifier(manager: Manager) -> Notifier:
    """A gateway under that manager."""
    return Notifier.from_environ({"NOTIFY_SOCKET": manager.address})


# -- messages -------------------------------------------------------------------------------------------------------


def test_ready_tells_the_status_in_the_same_datagram(manager: Manager, notifier: Notifier) -> None:
    assert notifier.ready("serving 2 listeners")
    assert manager.received() == {"READY": "1", "STATUS": "serving 2 listeners"}


def test_reloading_carries_the_monotonic_time_in_microseconds(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    facts = manager.received()
    assert facts.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(facts["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda n: n.status("draining"), {"STATUS": "draining"}),
        (lambda n: n.stopping(), {"STOPPING": "1"}),
        (lambda n: n.watchdog(), {"WATCHDOG": "1"}),
        (lambda n: n.extend_timeout(1_500_000), {"EXTEND_TIMEOUT_USEC": "1500000"}),
        (lambda n: n.fdstore_remove("web"), {"FDSTOREREMOVE": "1", "FDNAME": "web"}),
    ],
)
def test_each_message_is_what_sd_notify_documents(
    manager: Manager, notifier: Notifier, call: Callable[[Notifier], bool], facts: dict[str, str]
) -> None:
    assert call(notifier)
    assert manager.received() == facts
    assert (notifier.sent, notifier.failures) == (1, 0)


def test_a_status_of_several_lines_cannot_smuggle_in_an_assignment(manager: Manager, notifier: Notifier) -> None:
    notifier.status("bad config\nSTOPPING=1\r\nMAINPID=1")
    assert manager.received() == {"STATUS": "bad config STOPPING=1 MAINPID=1"}


def test_fdstore_hands_over_descriptors_that_work(manager: Manager, notifier: Notifier) -> None:
    left, right = socket.socketpair()
    with left, right:
        assert notifier.fdstore("web", [right.fileno()])
        facts, fds = manager.received_with_fds()
        assert facts == {"FDSTORE": "1", "FDNAME": "web"}
        with socket.socket(fileno=fds[0]) as stored:
            left.send(b"still here")
            assert stored.recv(64) == b"still here"


def test_fdstore_can_ask_for_descriptors_to_be_kept_unpolled(manager: Manager, notifier: Notifier) -> None:
    page = os.memfd_create("page")
    try:
        assert notifier.fdstore("page", [page], poll=False)
        facts, fds = manager.received_with_fds()
    finally:
        os.close(page)
    assert facts == {"FDSTORE": "1", "FDNAME": "page", "FDPOLL": "0"}
    assert len(fds) == 1
    os.close(fds[0])


# -- a manager that is not there, or slow ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1234", "relative/path"])
def test_without_a_service_manager_nothing_is_sent_and_nothing_fails(address: str) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    assert notifier.address is None
    assert not notifier.ready("up")
    assert not notifier.watchdog()
    assert not notifier.fdstore("web", [0])
    assert (notifier.sent, notifier.failures) == (0, 0)


def test_no_child_inherits_the_right_to_speak_for_the_gateway() -> None:
    environ = {"NOTIFY_SOCKET": "/run/systemd/notify", "PATH": "/bin"}
    assert Notifier.from_environ(environ).address == "/run/systemd/notify"
    assert environ == {"PATH": "/bin"}


def test_a_manager_that_is_gone_is_counted_not_raised(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    assert not notifier.ready("up")
    assert not notifier.watchdog()
    assert (notifier.sent, notifier.failures) == (0, 2)


def test_a_full_queue_does_not_block_and_the_ready_goes_out_with_the_next_message(
    manager: Manager, notifier: Notifier
) -> None:
    manager.fill()
    assert not notifier.ready("up")
    assert notifier.failures == 1
    manager.empty()
    assert notifier.watchdog()
    assert manager.received() == {"READY": "1", "STATUS": "up", "WATCHDOG": "1"}
    assert notifier.watchdog()
    assert manager.received() == {"WATCHDOG": "1"}, "what was owed is paid once"


def test_an_owed_reloading_is_dropped_by_the_ready_that_ends_it(manager: Manager, notifier: Notifier) -> None:
    manager.fill()
    notifier.reloading()
    manager.empty()
    assert notifier.ready("reloaded")
    assert manager.received() == {"READY": "1", "STATUS": "reloaded"}


def test_an_owed_ready_is_dropped_by_the_reload_that_follows(manager: Manager, notifier: Notifier) -> None:
    manager.fill()
    notifier.ready("up")
    manager.empty()
    assert notifier.reloading()
    assert "READY" not in manager.received()


def test_a_lost_watchdog_ping_is_not_sent_later(manager: Manager, notifier: Notifier) -> None:
    manager.fill()
    assert not notifier.watchdog()
    manager.empty()
    assert notifier.status("late")
    assert manager.received() == {"STATUS": "late"}


def test_notifying_leaks_no_descriptor(manager: Manager, notifier: Notifier, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        notifier.watchdog()
        manager.received()
        Notifier(str(tmp_path / "nobody")).watchdog()
    assert len(os.listdir("/proc/self/fd")) == before


# -- sockets that systemd opened ------------------------------------------------------------------------------------

CHILD = """
import fcntl, json, os
from tcpgate.process.systemd import listen_fds
os.environ["LISTEN_PID"] = os.environ["LISTEN_PID"].replace("SELF", str(os.getpid()))
found = listen_fds(os.environ, os.getpid())
flags = [fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fds in found.values() for fd in fds]
print(json.dumps([found, all(flags), [name for name in os.environ if name.startswith("LISTEN")]]))
"""


def _child(pid: str, count: str, names: str | None, opened: int = 3) -> str:
    """What `listen_fds` finds in a process that has `opened` descriptors from FIRST_FD on."""
    environ = {**os.environ, "LISTEN_PID": pid, "LISTEN_FDS": count}
    if names is not None:
        environ["LISTEN_FDNAMES"] = names
    # The shell, not preexec_fn, gives the child exactly these descriptors: what systemd does before exec.
    given = " ".join(f"{FIRST_FD + index}</dev/null" for index in range(opened))
    closed = " ".join(f"{fd}<&-" for fd in range(FIRST_FD + opened, 10))
    command = f'exec "$0" -c "$1" {given} {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, CHILD],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("pid", "count", "names", "found"),
    [
        ("SELF", "3", "web:web:db", '{"web": [3, 4], "db": [5]}'),
        ("SELF", "2", None, '{"unknown": [3, 4]}'),
        ("SELF", "3", "web", '{"web": [3], "unknown": [4, 5]}'),
        ("SELF", "9", "a:b:c:d:e:f:g:h:i", '{"a": [3], "b": [4], "c": [5]}'),
        ("SELF", "0", "", "{}"),
        ("1", "3", "web:web:db", "{}"),
        ("SELF", "three", "web", "{}"),
        ("SELF", "-1", "web", "{}"),
        ("SELF", "²", "web", "{}"),
    ],
)
def test_inherited_sockets_come_by_name_and_close_on_exec(pid: str, count: str, names: str | None, found: str) -> None:
    assert _child(pid, count, names) == f"[{found}, true, []]"


def test_without_the_variables_no_descriptor_is_touched() -> None:
    before = fcntl.fcntl(0, fcntl.F_GETFD)
    assert listen_fds({}, os.getpid()) == {}
    assert fcntl.fcntl(0, fcntl.F_GETFD) == before
    assert UNNAMED == "unknown"


# -- watchdog and credentials ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "7"}, 5.0),
        ({"WATCHDOG_USEC": "500000"}, 0.25),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "ten"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_pinged_twice_in_its_time(environ: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(environ, pid=7) == interval
    assert environ == {}, "a worker must not think that the watchdog is its own"


@given(st.dictionaries(st.sampled_from(["WATCHDOG_USEC", "WATCHDOG_PID"]), st.text(max_size=12)))
def test_no_watchdog_variable_can_stop_the_start(environ: dict[str, str]) -> None:
    interval = watchdog_interval(environ, pid=7)
    assert interval is None or interval > 0


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"CREDENTIALS_DIRECTORY": "/run/credentials/tcpgate.service"}, Path("/run/credentials/tcpgate.service")),
        ({"CREDENTIALS_DIRECTORY": "credentials"}, None),
        ({"CREDENTIALS_DIRECTORY": ""}, None),
        ({}, None),
    ],
)
def test_credentials_come_from_an_absolute_directory_or_not_at_all(
    environ: dict[str, str], directory: Path | None
) -> None:
    assert credentials_directory(environ) == directory
