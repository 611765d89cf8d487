"""Counters by name: sums over pages, and the names that there are."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tcpgate.stats.page import FIELDS, Layout, SharedPage, size_of
from tcpgate.stats.totals import series, share, totals, worker_figures

PAGES = 4


@pytest.fixture
def shared() -> Iterator[SharedPage]:
    fd = os.memfd_create("totals")
    os.ftruncate(fd, size_of(PAGES))
    page = SharedPage(fd, PAGES)
    yield page
    page.close()
    os.close(fd)


def test_a_total_is_the_sum_over_the_supervisor_and_the_workers_that_are_counted(shared: SharedPage) -> None:
    layout = Layout()
    block = layout.reserve("route", "all")
    for index in range(PAGES):
        shared.pages[index][block] = 10**index
    assert totals(shared, layout.blocks, "route", "all", processes=2)["exchanges"] == 111
    assert totals(shared, layout.blocks, "route", "all", processes=3)["exchanges"] == 1111


def test_a_series_without_a_block_counts_nothing_yet(shared: SharedPage) -> None:
    assert totals(shared, Layout().blocks, "listener", "web", 1) == dict.fromkeys(FIELDS["listener"], 0)


def test_a_worker_is_shown_by_its_own_page_alone(shared: SharedPage) -> None:
    shared.pages[1][FIELDS["worker"].index("exchanges")] = 7
    assert worker_figures(shared, 1)["exchanges"] == 7
    assert worker_figures(shared, 2)["exchanges"] == 0


def test_series_are_named_without_their_kind_and_names_may_hold_slashes() -> None:
    layout = Layout()
    layout.reserve("endpoint", "api/unix:/run/a.sock")
    layout.reserve("listener", "web")
    assert list(series(layout.blocks, "endpoint")) == ["api/unix:/run/a.sock"]
    assert list(series(layout.blocks, "listener")) == ["web"]


def test_a_share_is_of_both_and_of_nothing_there_is_none() -> None:
    assert (share(0, 0), share(0, 7), share(7, 0), share(1, 2)) == (None, 0.0, 1.0, 0.3333)
    assert share(10**9 - 1, 1) == 0.9999
