"""From a key path to the line on which it stands. Pure.

tomli gives values without their lines, so the text is read once more here; only when there is a problem to place. The
text has passed tomli before, so this scanner need not judge it: it follows tables, dotted and quoted keys, arrays and
inline tables over any number of lines, and notes the line on which each key path begins.

Source: TOML 1.0 (toml.io/en/v1.0.0), its ABNF for what ends a string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs
import tomli

from tcpgate.config.report import Key, KeyPath

_TOKEN = re.compile(
    r'''
    (?P<text> """(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
  | (?P<newline> \n )
  | (?P<mark> [\[\]{}=,.] )
  | (?P<bare> [^\s\[\]{}=,."'\#]+ )
  | (?P<skip> \#[^\n]* | [ \t\r]+ | . )
    ''',
    re.VERBOSE | re.DOTALL,
)
MAX_DEPTH = 64
"""Nesting that is followed; deeper values keep the line of what holds them."""


@attrs.frozen
class _Token:
    kind: str
    text: str
    line: int


def lines(text: str) -> dict[KeyPath, int]:
    """The 1-based line of every key path in `text`, which is valid TOML; that of `()` is 0."""
    scanner = _Scanner(_tokens(text))
    scanner.document()
    return scanner.index


def line_of(index: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the nearest thing around it that the TOML writes out (a default has no line)."""
    while path not in index:
        path = path[:-1]
    return index[path]


def _tokens(text: str) -> list[_Token]:
    tokens, line = [], 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "skip"
        if kind != "skip":
            tokens.append(_Token(kind, match[0], line))
        line += match[0].count("\n")
    return [*tokens, _Token("end", "", line)]


def _unquoted(token: _Token) -> str:
    """The key that a token names. Escapes are rare in keys, so tomli undoes them."""
    if token.kind == "bare":
        return token.text
    if token.text[0] == "'" or "\\" not in token.text:
        return token.text[1:-1]
    return str(tomli.loads(f"key = {token.text}")["key"])


@attrs.define
class _Scanner:
    tokens: list[_Token]
    at: int = 0
    index: dict[KeyPath, int] = attrs.field(factory=lambda: {(): 0})
    arrays: dict[KeyPath, int] = attrs.field(factory=dict)
    """Array of tables -> the index of its last table."""

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def document(self) -> None:
        table: KeyPath = ()
        while self.token.kind != "end":
            if self.token.text == "[":
                table = self.header()
            elif self.token.kind in ("bare", "text"):
                self.pair(table, depth=0)
            else:
                self.at += 1

    def note(self, path: KeyPath, line: int) -> None:
        self.index.setdefault(path, line)

    def header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: the path of the table that it opens."""
        line = self.token.line
        repeated = self.tokens[self.at + 1].text == "["
        self.at += 2 if repeated else 1
        *parents, last = self.key()
        path: KeyPath = ()
        for key in parents:
            path = self.inside((*path, key))
            self.note(path, line)
        path = (*path, last)
        if repeated:
            self.arrays[path] = self.arrays.get(path, -1) + 1
            self.note(path, line)
        path = self.inside(path)
        self.note(path, line)
        return path

    def inside(self, path: KeyPath) -> KeyPath:
        """`path`, or the last table in it where it is an array of tables."""
        return (*path, self.arrays[path]) if path in self.arrays else path

    def key(self) -> list[Key]:
        """The parts of a dotted key; stops before `=` or `]`."""
        parts: list[Key] = []
        while self.token.text not in ("=", "]") and self.token.kind != "end":
            if self.token.text != ".":
                parts.append(_unquoted(self.token))
            self.at += 1
        return parts

    def pair(self, table: KeyPath, depth: int) -> None:
        """`a.b = value` in `table`."""
        line, path = self.token.line, table
        for key in self.key():
            path = (*path, key)
            self.note(path, line)
        self.at += 1  # the equals sign
        self.value(path, depth)

    def value(self, path: KeyPath, depth: int) -> None:
        """Whatever stands at `path`; stops before the comma, bracket or newline that ends it."""
        if self.token.text == "[" and depth < MAX_DEPTH:
            self.array(path, depth + 1)
        elif self.token.text == "{" and depth < MAX_DEPTH:
            self.inline_table(path, depth + 1)
        else:
            self.skip_value()

    def array(self, path: KeyPath, depth: int) -> None:
        self.at += 1
        count = 0
        while self.token.text != "]":
            if self.token.kind == "newline" or self.token.text == ",":
                self.at += 1
                continue
            self.note((*path, count), self.token.line)
            self.value((*path, count), depth)
            count += 1
        self.at += 1

    def inline_table(self, path: KeyPath, depth: int) -> None:
        self.at += 1
        while self.token.text != "}":
            if self.token.kind in ("bare", "text"):
                self.pair(path, depth)
            else:
                self.at += 1
        self.at += 1

    def skip_value(self) -> None:
        """Past a scalar, or past brackets too deep to follow."""
        open_brackets = 0
        while self.token.kind != "end":
            if open_brackets == 0 and (self.token.kind == "newline" or self.token.text in (",", "]", "}")):
                return
            if self.token.kind == "mark":
                open_brackets += (self.token.text in "[{") - (self.token.text in "]}")
            self.at += 1
