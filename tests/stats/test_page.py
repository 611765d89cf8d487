"""The shared page on a real memfd: two mappings, a killed process, a layout that never moves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.stats.page import FIELDS, GAUGES, MAX_PAGES, OFFSETS, SLOTS_PER_PAGE, Layout, SharedPage, size_of

PAGES = 4
KINDS = sorted(set(FIELDS) - {"worker"})


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("tcpgate-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_of(PAGES))
    yield fd
    os.close(fd)


@pytest.fixture
def page(memfd: int) -> Iterator[SharedPage]:
    page = SharedPage(memfd, PAGES)
    yield page
    page.close()


def memory_used(fd: int) -> int:
    """Bytes that the kernel keeps for the memfd."""
    return os.fstat(fd).st_blocks * 512


def test_two_mappings_see_each_others_slots(memfd: int, page: SharedPage) -> None:
    other = SharedPage(memfd, PAGES)
    other.pages[1][7] += 41
    page.pages[1][7] += 1
    assert other.pages[1][7] == page.pages[1][7] == 42
    other.close()
    assert page.pages[1][7] == 42


def test_pages_do_not_overlap(page: SharedPage) -> None:
    for index in range(PAGES):
        page.pages[index][0] = page.pages[index][SLOTS_PER_PAGE - 1] = index + 1
    assert [p[0] for p in page.pages] == [p[SLOTS_PER_PAGE - 1] for p in page.pages] == [1, 2, 3, 4]


def test_a_total_is_the_supervisors_page_and_those_of_the_workers_asked_for(page: SharedPage) -> None:
    for index, value in enumerate((1, 10, 100, 1000)):
        page.pages[index][5] = value
    assert [page.total(5, processes) for processes in range(4)] == [1, 11, 111, 1111]


def test_a_slot_takes_what_sixty_four_bits_hold(page: SharedPage) -> None:
    for value in (2**63 - 1, -(2**63), -1):
        page.pages[0][0] = value
        assert page.pages[0][0] == value


COUNT_UNTIL_KILLED = """
import sys
from tcpgate.stats.page import SharedPage
page = SharedPage(int(sys.argv[1]), int(sys.argv[2]))
mine, slot = page.pages[2], int(sys.argv[3])
mine[slot + 1] = 5
while True:
    mine[slot] += 1
    if mine[slot] == 1000:
        print(flush=True)
"""


def test_a_worker_killed_while_it_counts_loses_no_count_and_the_next_one_goes_on(memfd: int, page: SharedPage) -> None:
    last = 0
    for _ in range(2):
        command = [sys.executable, "-c", COUNT_UNTIL_KILLED, str(memfd), str(PAGES), "40"]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, pass_fds=[memfd], stdout=subprocess.PIPE, cwd=root) as worker:
            assert worker.stdout is not None
            if last == 0:
                worker.stdout.readline()
            else:
                while page.pages[2][40] < last + 1000:
                    assert worker.poll() is None
            seen = page.pages[2][40]
            worker.send_signal(signal.SIGKILL)
            assert worker.wait(10) == -signal.SIGKILL
        assert page.total(40, 3) >= seen > last
        assert page.pages[2][41] == 5
        last = page.pages[2][40]


def test_zeroed_gauges_are_those_of_one_worker_and_counters_stay(page: SharedPage) -> None:
    layout = Layout()
    for kind in KINDS:
        layout.reserve(kind, "one")
        layout.reserve(kind, "two/three")
    used = range(max(layout.blocks.values()) + 100)
    for index in (1, 2):
        for slot in used:
            page.pages[index][slot] = 9
    page.zero_gauges(2, layout.blocks)
    assert all(page.pages[1][slot] == 9 for slot in used)
    gauges = {
        block + OFFSETS[key.partition("/")[0]][field]
        for key, block in layout.blocks.items()
        for field in GAUGES.get(key.partition("/")[0], ())
    }
    assert {slot for slot in used if page.pages[2][slot] == 0} == gauges
    assert len(gauges) == 1 + 2 * sum(len(GAUGES.get(kind, ())) for kind in KINDS)


def test_every_gauge_is_a_field() -> None:
    for kind, gauges in GAUGES.items():
        assert set(gauges) <= set(FIELDS[kind])


@pytest.mark.parametrize("kind", FIELDS)
def test_offsets_are_the_fields_in_order(kind: str) -> None:
    assert list(OFFSETS[kind]) == list(FIELDS[kind])
    assert list(OFFSETS[kind].values()) == list(range(len(FIELDS[kind])))


@given(asked=st.lists(st.tuples(st.sampled_from(KINDS), st.text(max_size=3)), max_size=60))
def test_no_key_ever_moves_and_no_two_blocks_overlap(asked: list[tuple[str, str]]) -> None:
    layout = Layout()
    seen: dict[str, int] = {}
    for kind, name in asked:
        block = layout.reserve(kind, name)
        assert seen.setdefault(f"{kind}/{name}", block) == block
    taken: set[int] = set(range(len(FIELDS["worker"])))
    for key, block in seen.items():
        own = set(range(block, block + len(FIELDS[key.partition("/")[0]])))
        assert not own & taken
        taken |= own
    assert layout.blocks == {"worker": 0, **seen}


def test_a_full_page_says_so_and_known_keys_stay_known() -> None:
    layout = Layout()
    first = layout.reserve("endpoint", "0")
    for name in range(1, (SLOTS_PER_PAGE - len(FIELDS["worker"])) // len(FIELDS["endpoint"])):
        layout.reserve("endpoint", str(name))
    assert len(layout.blocks) > 10_000
    with pytest.raises(MemoryError, match="no room for endpoint/last"):
        layout.reserve("endpoint", "last")
    assert "endpoint/last" not in layout.blocks
    assert layout.reserve("endpoint", "0") == first
    assert max(layout.blocks.values()) + len(FIELDS["endpoint"]) <= SLOTS_PER_PAGE


def test_memory_is_paid_for_only_where_something_is_counted() -> None:
    fd = os.memfd_create("tcpgate-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_of())
    page = SharedPage(fd)
    assert len(page.pages) == MAX_PAGES
    assert memory_used(fd) == 0
    for worker in page.pages[:3]:
        worker[0] += 1
        worker[SLOTS_PER_PAGE // 2] += 1
    touched = memory_used(fd)
    assert 0 < touched <= 6 * 64 * 1024  # six places, in pages of at most 64 KiB
    assert page.total(0, 2) == 3
    assert memory_used(fd) == touched
    page.close()
    os.close(fd)


def test_a_memfd_that_is_too_small_is_refused() -> None:
    fd = os.memfd_create("tcpgate-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_of(1))
    with pytest.raises(ValueError, match="length"):
        SharedPage(fd, 2)
    os.close(fd)
