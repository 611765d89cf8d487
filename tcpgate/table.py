"""Plain tables for a terminal: columns as wide as their longest cell, nothing that a pipe or `awk` would stumble over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def render(rows: Iterable[Mapping[str, object]], columns: Sequence[str], *, empty: str = "none") -> str:
    """`rows` as lines under a header; `columns` are keys, shown as they are in capitals."""
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    if not cells:
        return empty
    header = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(line[index]) for line in [header, *cells]) for index in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *cells])
    return "\n".join(line.rstrip() for line in lines)


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)
