"""The environment in a config's strings: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`; `$$` is one `$`. Pure.

Only strings are expanded, and only to strings: a number stays what TOML says it is. A lone `$` means itself, because
regular expressions end in one.

Source: POSIX.1-2017 Shell Command Language 2.6.2 (parameter expansion): with a colon, an empty variable counts as
unset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from tcpgate.config.report import KeyPath, Report, quoted

_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<inside>[^{}]*)(?P<end>\}?))")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>.*))?", re.DOTALL)
MAX_DEPTH = 16
"""Nesting of tables and lists; the schema needs six."""


@attrs.frozen
class Environment:
    """Puts variables into every string of a tree; what cannot be done goes to `report`."""

    variables: Mapping[str, str]
    report: Report

    def tree(self, value: Any, path: KeyPath = ()) -> Any:
        """A copy of `value` with every reference replaced. Keys stay as they are."""
        match value:
            case dict() | list() if len(path) > MAX_DEPTH:
                self.report.error(path, "is nested too deeply to be a config")
                return type(value)()
            case dict():
                return {key: self.tree(item, (*path, key)) for key, item in value.items()}
            case list():
                return [self.tree(item, (*path, index)) for index, item in enumerate(value)]
            case str() if "$" in value:
                return self.text(value, path)
        return value

    def text(self, text: str, path: KeyPath) -> str:
        """`text` with its references replaced; one that cannot be is left as it is, and reported."""

        failed: list[str] = []

        def replacement(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            try:
                return self.value(match["inside"], closed=bool(match["end"]))
            except ValueError as exc:
                self.report.error(path, f"{quoted(match[0])}: {exc}")
                failed.append(match[0])
                return match[0]

        expanded = _REFERENCE.sub(replacement, text)
        if failed:
            self.report.muted.add(path)
        return expanded

    def value(self, inside: str, *, closed: bool) -> str:
        """What `${inside}` stands for; ValueError says why it stands for nothing."""
        match = _INSIDE.fullmatch(inside) if closed else None
        if match is None:
            raise ValueError('write "${NAME}", "${NAME:-default}" or "${NAME:?message}"; for a plain "${" write "$${"')
        name, kind, rest = match["name"], match["kind"], match["rest"]
        value = self.variables.get(name)
        if value is not None and _has_stray_bytes(value):
            raise ValueError(f"the environment variable {name} is not UTF-8")
        if value or (value is not None and kind is None):
            return value
        if kind == "-":
            return rest
        state = "is empty" if value == "" else "is not set"
        if kind == "?" and rest:
            raise ValueError(f"the environment variable {name} {state}: {rest}")
        cure = self.report.nearest(name, self.variables) or '; set it, or write "${' + name + ':-default}"'
        raise ValueError(f"the environment variable {name} {state}{cure}")


def _has_stray_bytes(text: str) -> bool:
    """Whether Python had to keep bytes of the environment that are no text (PEP 383)."""
    return any("\udc80" <= mark <= "\udcff" for mark in text)
