"""The lane and the readable path tell the same truth: every scenario, played with each, leaves the same behind.

The scenarios stand in the truth_*.py modules beside this one; how one is played and what is compared, in truth_run.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proxy import truth_faults, truth_life, truth_messages, truth_rules, truth_tunnels
from tests.proxy.truth import Row
from tests.proxy.truth_chance import chance
from tests.proxy.truth_run import HAS_LANE, differences, origin_sockets, played, unchunked

ROWS = [*truth_messages.ROWS, *truth_rules.ROWS, *truth_life.ROWS, *truth_faults.ROWS, *truth_tunnels.ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_both_paths_tell_the_same(row: Row, tmp_path: Path) -> None:
    with origin_sockets(len(row.origins)) as sockets:
        off = await played(tmp_path, row, sockets, lane=False)
        on = await played(tmp_path, row, sockets, lane=True)
    assert tuple(f"{one['status']} {one['reason']}" for one in off.records) == row.says, "with the lane off"
    differ = differences(on, off)
    assert not differ, "\n".join(differ)
    if HAS_LANE:
        assert off.lane["lane_exchanges"] == 0
        if row.plain:
            assert on.lane["lane_exchanges"] == len(row.says), f"the lane did not take all of it: {on.lane}"


@pytest.mark.parametrize("seed", range(25))
async def test_both_paths_tell_the_same_of_what_nobody_thought_of(seed: int, tmp_path: Path) -> None:
    await compare(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1300, 25))
async def test_both_paths_tell_the_same_of_a_great_deal_more(seed: int, tmp_path: Path) -> None:
    for one in range(seed, seed + 25):
        await compare(one, tmp_path)


async def compare(seed: int, folder: Path) -> None:
    """One scenario of chance, played twice."""
    row = chance(seed)
    with origin_sockets(len(row.origins)) as sockets:
        off = await played(folder, row, sockets, lane=False)
        on = await played(folder, row, sockets, lane=True)
    differ = differences(on, off)
    assert not differ, "\n".join([row.name, *differ])


def test_the_table_is_whole() -> None:
    """A name tells one scenario, and there are as many as the gateway has ways."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 120
    assert sum(row.plain for row in ROWS) >= 40


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"3\r\nabc\r\n0\r\n\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", True),
        (b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabd\r\n0\r\n\r\n", False),
        (b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n", False),
        (b"3\r\nabc\r\n0\r\n\r\n", b"3;x\r\nabc\r\n0\r\n\r\n", False),
        (b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\nT: 1\r\n\r\n", False),
        (b"5\r\nab", b"1\r\na\r\n1\r\nb", True),
        (b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\nHTTP/1.1 404 No\r\n\r\n", False),
    ],
)
def test_only_where_a_body_is_cut_into_chunks_is_taken_for_nothing(one: bytes, other: bytes, same: bool) -> None:
    assert (unchunked(CHUNKED + one) == unchunked(CHUNKED + other)) is same
