"""Plain tables for a terminal: columns as wide as their longest cell, nothing that a pipe or `awk` would stumble over.

On a terminal cells may be cut to fit the line, those of the last column first; into a pipe they are whole. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

ELLIPSIS = "…"
LEAST = 12
"""Characters that a column keeps however narrow the terminal is: less says nothing."""
_SPANS = ((86400, "d"), (3600, "h"), (60, "m"))


def render(
    rows: Iterable[Mapping[str, object]],
    columns: Sequence[str],
    *,
    empty: str = "none",
    width: int | None = None,
    may_hide: Sequence[str] = (),
) -> str:
    """`rows` as lines under a header; `columns` are keys, shown as they are in capitals.

    `width`: cells are cut so that no line is longer; None: none is. Columns of `may_hide` are left out where
    no row has anything for them.
    """
    rows = list(rows)
    if not rows:
        return empty
    shown = [one for one in columns if one not in may_hide or any(_text(row.get(one)) != "-" for row in rows)]
    lines = [[column.replace("_", " ").upper() for column in shown]]
    lines += [[_text(row.get(column)) for column in shown] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(shown))]
    if width is not None:
        _fit(widths, width - 2 * (len(shown) - 1))
    return "\n".join(
        "  ".join(cut(cell, size).ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _fit(widths: list[int], room: int) -> None:
    """Narrow the last column, and then, one after the other, the widest ones, until all of them fit."""
    widths[-1] = min(widths[-1], max(LEAST, room - sum(widths[:-1])))
    while sum(widths) > room and max(widths) > LEAST:
        widest = widths.index(max(widths))
        widths[widest] -= 1


def cut(text: str, width: int) -> str:
    """`text`, ended by an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else text[: max(0, width - 1)] + ELLIPSIS


def span(seconds: float) -> str:
    """A duration as a person says it: "0.3s", "12s", "3m", "5h", "12d"."""
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f}s"


def percent(share: float | None) -> str | None:
    """A share from 0 to 1: "99.31%"; None of None."""
    return None if share is None else f"{share:.2%}"


def ms(microseconds: int) -> str:
    """A short time: "0.3ms"."""
    return f"{microseconds / 1000:.1f}ms"


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    # A cell is one line, whatever an endpoint said in its cause.
    return " ".join(str(value).split()) or "-"
