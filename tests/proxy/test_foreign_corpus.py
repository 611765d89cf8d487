"""A second corpus of HTTP/1.1's musts, and a judge of its own, through the real data plane; see foreign.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.plane import serving
from tests.proxy.foreign import Case, load
from tests.proxy.foreign_ends import Origin
from tests.proxy.foreign_stage import Stage

CASES = load()
CONFIG = """
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{port}", "127.0.0.2:{port}"]
"""


async def wrongs(folder: Path, nursery: trio.Nursery, cases: list[Case], step: int) -> list[str]:
    """What the gateway does wrong, one text for each case that it fails."""
    origin = Origin()
    port = await nursery.start(origin.serve)
    found: list[str] = []
    async with serving(folder, CONFIG.format(port=port)) as plane:
        stage = Stage(plane.port(), origin, "tcpgate-test")
        for case in cases:
            found += [f"{case.group} / {case.name} ({case.rule}): {fault}" for fault in await stage.play(case, step)]
    nursery.cancel_scope.cancel()
    return found


@pytest.mark.parametrize("group", sorted({case.group for case in CASES}))
async def test_the_gateway_keeps_every_must_of_a_group(group: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    found = await wrongs(tmp_path, nursery, [case for case in CASES if case.group == group], 1 << 20)
    assert not found, "\n".join(found)


@pytest.mark.slow
async def test_the_cut_of_the_clients_writes_changes_no_verdict(tmp_path: Path, nursery: trio.Nursery) -> None:
    short = [case for case in CASES if len(case.raw) < 400]
    found = await wrongs(tmp_path, nursery, short, 7)
    assert not found, "\n".join(found)


def test_no_two_cases_are_the_same() -> None:
    assert len({(case.group, case.name) for case in CASES}) == len(CASES) > 300
