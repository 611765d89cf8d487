"""The benchmark's own sums: what wrk says, medians, ratios, limits, and a sender that no stall can slow down."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench import client, processes
from tests.bench.__main__ import chosen, parser
from tests.bench.job import Job, Ports
from tests.bench.origin import make_keys
from tests.bench.peers import ROOT, rivals, tcpgate
from tests.bench.report import (
    Line,
    aligned,
    as_json,
    cell,
    details,
    judge,
    markdown,
    medians,
    short,
    table,
    wrk_figures,
)
from tests.bench.rows import ROWS

SAID = (
    'BENCH {"requests": 1000, "us": 500000, "bytes": 9, "connect": 0, "read": 1, "write": 0, "status": 2, '
    '"timeout": 0, "p50_us": 10, "p99_us": 20, "p999_us": 30, "max_us": 40}\n'
)
LINE = Line("small", "small GET", "cpu_us", "us CPU", {"nginx": 1.2, "envoy": 0.45})


def test_wrk_figures_come_from_its_last_line_with_every_kind_of_failure_summed() -> None:
    figures = wrk_figures("Running 1s test\n" + SAID)
    assert figures["requests"] == 1000
    assert figures["rps"] == 2000.0
    assert figures["failed"] == 3
    assert "status" not in figures


def test_wrk_that_did_not_come_to_its_end_gives_no_figures() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk_figures("unable to connect to 127.0.0.1:1")


def test_medians_are_taken_figure_by_figure_and_failures_are_summed() -> None:
    rounds = [{"cpu_us": 9.0, "failed": 0}, {"cpu_us": 1.0, "failed": 2}, {"cpu_us": 4.0, "failed": 1, "p99_us": 7.0}]
    assert medians(rounds) == {"cpu_us": 4.0, "failed": 3, "p99_us": 7.0}


def test_a_limit_holds_only_if_each_of_its_peers_lets_it() -> None:
    assert judge(LINE, {"tcpgate": {"cpu_us": 18}, "nginx": {"cpu_us": 15}, "envoy": {"cpu_us": 40}}).held is True
    assert judge(LINE, {"tcpgate": {"cpu_us": 19}, "nginx": {"cpu_us": 15}, "envoy": {"cpu_us": 99}}).held is False
    assert judge(LINE, {"tcpgate": {"cpu_us": 18}, "nginx": {"cpu_us": 99}, "envoy": {"cpu_us": 39}}).held is False


def test_a_peer_that_is_not_here_leaves_the_limit_open_unless_another_one_breaks_it() -> None:
    assert judge(LINE, {"tcpgate": {"cpu_us": 18}, "nginx": {"cpu_us": 15}}).held is None
    assert judge(LINE, {"tcpgate": {"cpu_us": 99}, "nginx": {"cpu_us": 15}}).held is False
    assert judge(LINE, {"nginx": {"cpu_us": 15}, "envoy": {"cpu_us": 15}}).held is None


def test_failed_requests_make_a_figure_invalid() -> None:
    own = judge(LINE, {"tcpgate": {"cpu_us": 1, "failed": 3}, "nginx": {"cpu_us": 15}})
    assert (own.held, cell(own, "tcpgate")) == (False, "invalid: 3 failed")
    other = judge(LINE, {"tcpgate": {"cpu_us": 1}, "nginx": {"cpu_us": 15, "failed": 1}, "envoy": {"cpu_us": 40}})
    assert (other.held, cell(other, "nginx"), other.ratio("nginx")) == (None, "invalid: 1 failed", None)


def test_absolute_limits_hold_at_their_edge() -> None:
    most, least = Line("idle", "", "kb", "KB", at_most=6.0), Line("workers", "", "scale", "x", at_least=1.8)
    assert [judge(most, {"tcpgate": {"kb": kb}}).held for kb in (6.0, 6.1)] == [True, False]
    assert [judge(least, {"tcpgate": {"scale": scale}}).held for scale in (1.8, 1.79)] == [True, False]


def test_the_table_shows_ratios_and_leaves_out_who_measured_nothing() -> None:
    judged = judge(LINE, {"tcpgate": {"cpu_us": 18}, "nginx": {"cpu_us": 15}})
    rows = table([judged], ["tcpgate", "nginx", "caddy"])
    assert rows[0] == ["row", "unit", "tcpgate", "nginx", "must be", "held"]
    assert rows[1] == ["small GET", "us CPU", "18.0", "15.0 (1.20x)", "at most 1.2 x nginx, 0.45 x envoy", "-"]
    assert markdown(rows).splitlines()[1] == "|---|---|---|---|---|---|"
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
    assert json.loads(json.dumps(as_json([judged])))[0]["ratios"] == {"nginx": 1.2}


def test_details_show_a_dash_for_what_a_row_does_not_measure() -> None:
    assert details({"idle": {"nginx": {"peak_mb": 20.5, "failed": 0}}})[1][-4:] == ["-", "-", "20.5", "0"]


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1234"), (99.96, "100"), (15.54, "15.5"), (0.534, "0.53"), (0, "0")]
)
def test_figures_have_three_digits_that_count(value: float, text: str) -> None:
    assert short(value) == text


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(1, 1001)]
    assert [client.quantile(values, q) for q in (0.5, 0.99, 0.999, 1.0)] == [500.0, 990.0, 999.0, 1000.0]
    assert (client.quantile([7.0], 0.5), client.quantile([], 0.99)) == (7.0, 0.0)


def test_every_row_names_figures_of_its_own_and_peers_that_there_are() -> None:
    names = [row.name for row in ROWS]
    known = {peer.name for peer in rivals()}
    assert len(set(names)) == len(names)
    for row in ROWS:
        for line in row.lines:
            assert line.row == row.name
            assert known.issuperset(line.versus)


def test_options_choose_rows_in_the_tables_order_and_refuse_unknown_ones() -> None:
    every = {"small": 1, "post": 2, "idle": 3}
    assert chosen("idle,small", every, "row") == [1, 3]
    assert chosen(None, every, "row") == [1, 2, 3]
    with pytest.raises(SystemExit, match="no such row: big; there are small, post, idle"):
        chosen("big", every, "row")
    assert parser().parse_args(["--rounds", "1"]).rounds == 1


# -- the open loop --------------------------------------------------------------------------------------------------


Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(answers, cut_at)` is the port of an origin on one thread: `answers(number)` is what request `number` over
    all gets, None a close; the answer to `cut_at` lacks its last byte, and the connection ends with it."""
    threads = []
    listeners = []

    def start(answers: Callable[[int], bytes | None], cut_at: int = -1) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=answer_all, args=(listener, answers, cut_at))
        thread.start()
        threads.append(thread)
        listeners.append(listener)
        port: int = listener.getsockname()[1]
        return port

    yield start
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        listener.close()


def answer_all(listener: socket.socket, answers: Callable[[int], bytes | None], cut_at: int) -> None:
    """One connection after the other, until the listener is shut down."""
    number = -1
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while connection.recv(65536):
                number += 1
                answer = answers(number)
                if answer is None:
                    break
                connection.sendall(answer[:-1] if number == cut_at else answer)
                if number == cut_at:
                    break


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def sent(port: int, *, rate: float, seconds: float) -> client.Paced:
    """A sender with one connection that has done its work."""
    paced = client.Paced(port, "/", connections=1)
    try:
        paced.run(rate, seconds)
    finally:
        paced.close()
    return paced


def test_a_stall_of_the_server_counts_for_every_request_that_was_due_meanwhile(serve: Serve) -> None:
    def answers(number: int) -> bytes:
        if number == 10:
            time.sleep(0.2)
        return HELLO

    paced = sent(serve(answers), rate=500, seconds=0.5)
    assert (len(paced.latencies), paced.failed) == (250, 0)
    # One request was under way, but a hundred were due: a closed loop would show one long latency.
    assert sum(latency > 0.05 for latency in paced.latencies) >= 50
    assert paced.stall >= 0.2
    assert max(paced.latencies) >= 0.2


def test_an_idle_connection_that_is_closed_is_replaced_and_what_was_sent_on_it_goes_out_again(serve: Serve) -> None:
    paced = sent(serve(lambda number: None if number == 5 else HELLO), rate=200, seconds=0.1)
    assert (len(paced.latencies), paced.failed, paced.retried) == (20, 0, 1)


def test_an_answer_that_breaks_off_or_is_an_error_is_a_failed_request(serve: Serve) -> None:
    def answers(number: int) -> bytes | None:
        if number == 7:
            return b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        return HELLO

    paced = sent(serve(answers, cut_at=3), rate=200, seconds=0.05)
    assert (len(paced.latencies), paced.failed, paced.retried) == (8, 2, 0)


# -- processes ------------------------------------------------------------------------------------------------------


def test_a_service_is_accounted_with_its_children_and_ends_with_them(tmp_path: Path) -> None:
    burn = (
        "import os, time\nos.fork()\nwhile time.process_time() < 0.1: pass\nprint('burnt', flush=True)\ntime.sleep(60)"
    )
    core = min(os.sched_getaffinity(0))
    with processes.stopping() as services:
        service = processes.start("burner", [sys.executable, "-c", burn], tmp_path, cores=[core])
        services.append(service)
        deadline = time.monotonic() + 30
        while service.said().count("burnt") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        pids = service.pids()
        assert len(pids) == 2
        assert sum(service.cpu_ns().values()) >= 0.2e9
        assert service.peak_kb() > service.resident_kb() > 0
        assert all(os.sched_getaffinity(pid) == {core} for pid in pids)
    assert service.pids() == []
    assert service.process.returncode is not None


def test_time_is_what_each_process_spent_between_two_readings() -> None:
    assert processes.spent_ns({1: 10, 2: 20, 3: 5}, {1: 15, 2: 20, 4: 7}) == 12


def test_the_cpu_clock_of_a_process_is_the_kernels() -> None:
    before = time.clock_gettime_ns(processes.cpu_clock(os.getpid()))
    own = time.process_time_ns()
    assert before <= own <= time.clock_gettime_ns(processes.cpu_clock(os.getpid()))


# -- configs --------------------------------------------------------------------------------------------------------


def test_the_gateways_config_is_one_that_it_takes(tmp_path: Path) -> None:
    job = Job(tmp_path, Ports(1001, 1002, 1003, (1004, 1005), 1006), make_keys(tmp_path / "keys"), weight=5)
    command = tcpgate().write(job)
    done = subprocess.run(
        [sys.executable, "-m", "tcpgate", "check", command[-1]],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
