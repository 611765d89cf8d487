"""Problems as the config's readers find them: where they stand, and the nearest right word. Pure.

A place in a config is a *key path*, `("upstreams", "api", "endpoints", 1, "weight")`. `dotted` writes it for people,
and a `Where` turns it into a file and a line. Every reader adds to one `Report`, so that all problems show at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import attrs

from tcpgate.errors import Problem

Key = str | int
KeyPath = tuple[Key, ...]
Where = Callable[[KeyPath], tuple[str, int]]
"""Key path -> file name and 1-based line; line 0 where the TOML has none."""
Names = Mapping[str, Collection[str]]
"""Table -> every name that the TOML has there, be its table right or wrong."""


class AnyName(frozenset[str]):
    """The names of a table that could not be read: it may have any, so none can be called wrong."""

    def __contains__(self, name: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True


_BARE = re.compile(r"[A-Za-z0-9_-]+")
MAX_SHOWN = 60
"""Characters of a wrong value that a message repeats: enough to find it, too few to flood a terminal."""
MAX_GUESSES = 100
"""Problems with which a name is looked for that is near: in a table of thousands it takes 10 ms each."""


def dotted(path: KeyPath) -> str:
    """`upstreams.api.endpoints[1].weight`; a key that TOML would quote is quoted."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE.fullmatch(key) else quoted(key))
    return text


def quoted(text: str) -> str:
    """`text` in double quotes, cut to a readable length, without a character that could move a terminal's cursor."""
    cut = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    return printable(json.dumps(cut, ensure_ascii=False))


def printable(text: str) -> str:
    """`text` with everything escaped that could move a cursor, or that no terminal shows."""
    return "".join(mark if mark.isprintable() else json.dumps(mark)[1:-1] for mark in text)


def listed(words: Iterable[str], link: str = "or") -> str:
    """`"a", "b" or "c"`."""
    *most, last = [quoted(word) for word in words]
    return f"{', '.join(most)} {link} {last}" if most else last


def nearest(word: str, known: Collection[str]) -> str:
    """` (did you mean "web"?)`, or nothing where no known word is near."""
    # get_close_matches is quadratic in the word's length; no right word is longer than this.
    near = difflib.get_close_matches(word[:MAX_SHOWN], known, n=1)
    if not near:
        folded = {name.casefold(): name for name in known}
        near = [folded[word.casefold()]] if word.casefold() in folded else []
    return f" (did you mean {quoted(near[0])}?)" if near else ""


def found(value: Any) -> str:
    """What a TOML value is, for "expected ..., found ...": `the string "80"`, `a table`."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {quoted(value)}"
        case int():
            # A hexadecimal integer may have more digits than Python will write out.
            return f"the integer {value}" if abs(value) < 10**20 else "a huge integer"
        case float():
            return f"the number {value:g}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"the date or time {value}"


@attrs.define
class Report:
    """The problems of one config so far, each with its place."""

    where: Where
    problems: list[Problem] = attrs.field(factory=list)
    muted: set[KeyPath] = attrs.field(factory=set)
    """Values of which nobody knows what they should have been: what is said of them later would be noise."""

    def error(self, path: KeyPath, text: str) -> None:
        """Add a problem with which the config cannot serve."""
        self._add(path, text, warning=False)

    def warn(self, path: KeyPath, text: str) -> None:
        """Add what is allowed, but can hardly be meant."""
        self._add(path, text, warning=True)

    def judge(self, path: KeyPath, text: str) -> None:
        """Add an error, unless `text` is empty: for functions that say what is wrong, or nothing."""
        if text:
            self.error(path, text)

    def judge_name(self, path: KeyPath, table: str, name: str, known: Names) -> None:
        """Add an error unless `table` has `name`; the nearest one is the cure."""
        if name not in known[table]:
            cure = self.nearest(name, known[table]) if known[table] else f"; there is no [{table}.*] at all"
            self.error(path, f"there is no {table.removesuffix('s')} {quoted(name)}{cure}")

    def nearest(self, word: str, known: Collection[str]) -> str:
        """As `nearest`, while there are few problems: nobody reads the guesses of the last thousand."""
        return nearest(word, known) if len(self.problems) < MAX_GUESSES else ""

    def _add(self, path: KeyPath, text: str, *, warning: bool) -> None:
        if self.muted and any(path[:length] in self.muted for length in range(len(path) + 1)):
            return
        file, line = self.where(path)
        self.problems.append(Problem(file=file, line=line, path=dotted(path), text=text, warning=warning))

    def place(self, path: KeyPath) -> str:
        """`file:line` of a path, to point at from another problem's text."""
        file, line = self.where(path)
        return f"{file}:{line}" if line else file

    @property
    def errors(self) -> list[Problem]:
        """The problems that are not warnings."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that are."""
        return [problem for problem in self.problems if problem.warning]
