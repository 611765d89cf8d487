"""Counters by name: what the shared page says of one series, summed over all processes. Pure.

Read by the admin API and the command line; metrics render from the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tcpgate.stats.page import FIELDS, SharedPage


def totals(shared: SharedPage, blocks: Mapping[str, int], kind: str, name: str, processes: int) -> dict[str, int]:
    """Field -> sum over all pages, for `kind/name`; zeroes for a series that has no block yet."""
    block = blocks.get(f"{kind}/{name}")
    if block is None:
        return dict.fromkeys(FIELDS[kind], 0)
    return {field: shared.total(block + index, processes) for index, field in enumerate(FIELDS[kind])}


def worker_figures(shared: SharedPage, index: int) -> dict[str, int]:
    """What worker `index` says of itself."""
    page = shared.pages[index]
    return {field: page[slot] for slot, field in enumerate(FIELDS["worker"])}


def share(part: int, rest: int) -> float | None:
    """What `part` is of both, from 0 to 1 in four digits; None of nothing. Rounded down, so 1.0 is all."""
    return part * 10_000 // (part + rest) / 10_000 if part + rest else None


def series(blocks: Mapping[str, int], kind: str) -> Iterator[str]:
    """The names of every series of a kind, retired ones too: a counter that was shown once does not vanish."""
    prefix = f"{kind}/"
    return (key.removeprefix(prefix) for key in blocks if key.startswith(prefix))
