"""From measurements to tables: medians, ratios, limits held or not. Pure.

A figure whose measurement had failed requests is none: a proxy that answers errors is fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import attrs

Figures = Mapping[str, float]
"""What one measurement gave, by name."""
SUBJECT = "tcpgate"


@attrs.frozen
class Line:
    """One line of the table: which figure of a row, and how large it may be."""

    row: str
    title: str
    figure: str
    unit: str
    versus: Mapping[str, float] = attrs.field(factory=dict)
    """Peer -> at most how many times its figure."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def limits(self) -> str:
        """All of them, for a person."""
        said = [f"{factor:g} x {peer}" for peer, factor in self.versus.items()]
        if self.at_most is not None:
            said.append(f"{self.at_most:g} {self.unit}")
        return ("at most " + ", ".join(said) if said else "") + (f"at least {self.at_least:g}" if self.at_least else "")


@attrs.frozen
class Judged:
    """A line with its figures."""

    line: Line
    figures: Mapping[str, float | None]
    """Peer -> median; None if some request failed."""
    failed: Mapping[str, int]
    held: bool | None
    """None if it has no limit, or the figures to judge it are not here."""

    def ratio(self, peer: str) -> float | None:
        """The subject's figure over a peer's."""
        own, other = self.figures.get(SUBJECT), self.figures.get(peer)
        return own / other if own is not None and other else None


def wrk_figures(output: str) -> dict[str, float]:
    """What wrk.lua said, with `failed` summed; ValueError if it did not come to its end."""
    for line in output.splitlines():
        if line.startswith("BENCH "):
            said: dict[str, float] = json.loads(line[6:])
            failed = sum(said.pop(kind) for kind in ("connect", "read", "write", "status", "timeout"))
            seconds = said.pop("us") / 1e6
            return {**said, "failed": failed, "seconds": seconds, "rps": said["requests"] / seconds if seconds else 0.0}
    raise ValueError(f"wrk said no figures: {output.strip()[-300:]!r}")


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """The median of each figure over the rounds that have it; `failed` is the sum."""
    names = dict.fromkeys(name for one in rounds for name in one)
    result = {name: median(one[name] for one in rounds if name in one) for name in names}
    result["failed"] = sum(one.get("failed", 0) for one in rounds)
    return result


def judge(line: Line, found: Mapping[str, Figures]) -> Judged:
    """A line against the medians of its row, by peer."""
    failed = {peer: int(figures["failed"]) for peer, figures in found.items() if figures.get("failed")}
    figures = {
        peer: None if peer in failed else one[line.figure]
        for peer, one in found.items()
        if line.figure in one or peer in failed
    }
    own = figures.get(SUBJECT)
    checks: list[bool | None] = []
    if SUBJECT in failed:
        checks.append(False)
    elif own is not None:
        for peer, factor in line.versus.items():
            other = figures.get(peer)
            checks.append(None if other is None else own <= factor * other)
        if line.at_most is not None:
            checks.append(own <= line.at_most)
        if line.at_least is not None:
            checks.append(own >= line.at_least)
    # One limit that is broken decides; one that could not be judged leaves the rest undecided.
    held = False if False in checks else None if not checks or None in checks else True
    return Judged(line, figures, failed, held)


# -- for people -----------------------------------------------------------------------------------------------------

HELD = {True: "yes", False: "NO", None: "-"}


def cell(judged: Judged, peer: str) -> str:
    """A peer's figure, and in brackets the subject's as a multiple of it."""
    if peer not in judged.figures:
        return "-"
    value = judged.figures[peer]
    if value is None:
        return f"invalid: {judged.failed[peer]} failed"
    ratio = judged.ratio(peer)
    return short(value) + (f" ({ratio:.2f}x)" if ratio is not None and peer != SUBJECT else "")


def short(value: float) -> str:
    """Three digits that count, or the whole number."""
    return f"{value:.0f}" if value == 0 or value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def table(lines: Sequence[Judged], peers: Sequence[str]) -> list[list[str]]:
    """Cells by row, the first row the header."""
    shown = [SUBJECT, *(peer for peer in peers if peer != SUBJECT)]
    shown = [peer for peer in shown if any(peer in one.figures for one in lines)]
    header = ["row", "unit", *shown, "must be", "held"]
    return [header] + [
        [one.line.title, one.line.unit, *(cell(one, peer) for peer in shown), one.line.limits or "-", HELD[one.held]]
        for one in lines
    ]


def details(found: Mapping[str, Mapping[str, Figures]]) -> list[list[str]]:
    """The rest of each measurement: throughput, latencies, memory."""
    names = ("rps", "p50_us", "p99_us", "p999_us", "cpu_us", "peak_mb", "failed")
    header = ["row", "proxy", "req/s", "p50 us", "p99 us", "p99.9 us", "CPU us/req", "peak MB", "failed"]
    rows = [header]
    for row, peers in found.items():
        for peer, figures in peers.items():
            rows.append([row, peer, *(short(figures[name]) if name in figures else "-" for name in names)])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of one width each."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same for the README."""
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def as_json(lines: Sequence[Judged]) -> list[dict[str, Any]]:
    """The table for programs."""
    return [
        {
            "row": one.line.row,
            "figure": one.line.figure,
            "title": one.line.title,
            "unit": one.line.unit,
            "figures": dict(one.figures),
            "ratios": {peer: one.ratio(peer) for peer in one.figures if peer != SUBJECT},
            "limits": {"versus": dict(one.line.versus), "at_most": one.line.at_most, "at_least": one.line.at_least},
            "held": one.held,
            "failed": dict(one.failed),
        }
        for one in lines
    ]
