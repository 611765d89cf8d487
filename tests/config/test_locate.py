"""The finder of lines: every key path of any TOML, on the line where its key stands."""

from __future__ import annotations

import random
from typing import Any

import tomli
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.locate import line_of, lines
from tcpgate.config.report import KeyPath, dotted

TEXT = '''\
# comment with [brackets] and = signs
top = 1
"quoted key"."with \\"marks\\"" = [1, # comment, with ] and "quotes"
  2, { k = 3,
    j = [ """
[not.a.table]
k = 4""" ] } ]
[t]
u = 1.5
v = """
w = 3
"""
\'lit.eral\' = \'\'\'
"x = 1\'\'\'
"\\u0061b" = 2026-01-01T00:00:00Z
[[many]]
b = 1
[[many]]
b = { }
[many.c]
d.e.f = [[1], [2,
 3]]
[[many.g]]
h = "]"
[ spaced . "out" ]
i = true
'''

PLACES = {
    "top": 2,
    '"quoted key"': 3,
    '"quoted key"."with \\"marks\\""': 3,
    '"quoted key"."with \\"marks\\""[0]': 3,
    '"quoted key"."with \\"marks\\""[1]': 4,
    '"quoted key"."with \\"marks\\""[2]': 4,
    '"quoted key"."with \\"marks\\""[2].k': 4,
    '"quoted key"."with \\"marks\\""[2].j': 5,
    '"quoted key"."with \\"marks\\""[2].j[0]': 5,
    "t": 8,
    "t.u": 9,
    "t.v": 10,
    't."lit.eral"': 13,
    "t.ab": 15,
    "many": 16,
    "many[0]": 16,
    "many[0].b": 17,
    "many[1]": 18,
    "many[1].b": 19,
    "many[1].c": 20,
    "many[1].c.d": 21,
    "many[1].c.d.e": 21,
    "many[1].c.d.e.f": 21,
    "many[1].c.d.e.f[0]": 21,
    "many[1].c.d.e.f[0][0]": 21,
    "many[1].c.d.e.f[1]": 21,
    "many[1].c.d.e.f[1][0]": 21,
    "many[1].c.d.e.f[1][1]": 22,
    "many[1].g": 23,
    "many[1].g[0]": 23,
    "many[1].g[0].h": 24,
    "spaced": 25,
    "spaced.out": 25,
    "spaced.out.i": 26,
}


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key path in a parsed tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(paths(item, (*path, key)) for key, item in items))


def test_every_way_to_write_a_key_is_found_on_its_line() -> None:
    index = lines(TEXT)
    assert {dotted(path): line for path, line in index.items() if path} == PLACES
    assert paths(tomli.loads(TEXT)) == set(index)


def test_lines_end_in_either_way() -> None:
    assert lines(TEXT.replace("\n", "\r\n")) == lines(TEXT)


def test_what_the_toml_does_not_write_out_has_the_line_of_what_is_around_it() -> None:
    index = lines("[a]\nb = 1\n")
    assert line_of(index, ("a", "c", "d")) == 1
    assert line_of(index, ("x",)) == 0


def test_values_too_deep_to_follow_keep_the_line_of_what_holds_them() -> None:
    index = lines("a = " + "[" * 200 + "\n1, {b = 2}" + "]" * 200 + "\nc = 1\n")
    assert index["c",] == 3
    assert index["a", 0, 0] == 1


def test_a_file_without_a_last_newline_and_one_without_a_key() -> None:
    assert lines("a = 1") == {(): 0, ("a",): 1}
    assert lines("# nothing\n") == {(): 0}


class Writer:
    """Writes random TOML, every key and every number in it unique, so that a line shows what stands on it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.count = 0

    def unique(self, prefix: str) -> str:
        """A word that occurs once: `k7x`."""
        self.count += 1
        return f"{prefix}{self.count}x"

    def key(self) -> str:
        """A key, quoted in one of three ways, perhaps dotted."""
        word = self.unique("k")
        forms = [word, f'"{word}"', f"'{word}'", f"{word} . {self.unique('k')}", f'"[{word}] = #"', f'"{word}\\""']
        return self.rng.choice(forms)

    def gap(self) -> str:
        """What may stand between the items of an array."""
        return self.rng.choice(["", " ", "\n", ' # comment ] "\n  '])

    def value(self, depth: int) -> str:
        """A scalar, an array or an inline table."""
        kind = self.rng.randrange(8 if depth else 6)
        if kind == 6:
            items = [self.gap() + self.value(depth - 1) + self.gap() for _ in range(self.rng.randrange(4))]
            return f"[{','.join(items)}{self.gap() if items else ''}]"
        if kind == 7:
            pairs = [f"{self.key()} = {self.value(depth - 1)}" for _ in range(self.rng.randrange(3))]
            return "{" + ", ".join(pairs) + "}"
        word = self.unique("v")
        return [
            "17",
            f'"{word} ]}},\\""',
            f"'{word}'",
            f'"""\n{word}\n[a]\nb = 1\n"" """',
            f"'''{word}\n'x\n'''",
            "-1.5e3",
        ][kind]

    def pairs(self) -> str:
        """The body of a table."""
        return "".join(f"{self.gap_line()}{self.key()} = {self.value(3)}\n" for _ in range(self.rng.randrange(4)))

    def gap_line(self) -> str:
        """What may stand before a key."""
        return self.rng.choice(["", "\n", "# k = 1\n", "  "])

    def document(self) -> str:
        """A whole file."""
        text = self.pairs()
        for _ in range(self.rng.randrange(5)):
            name = self.unique("k")
            text += self.rng.choice([f"[{name}]\n", f"[ '{name}'.{self.unique('k')} ] # x\n"]) + self.pairs()
            for _ in range(self.rng.randrange(3)):
                text += f"[[{name}a]]\n" + self.pairs()
        return text


@given(st.integers(0, 1 << 32))
def test_every_path_of_any_toml_is_found_where_its_key_is_written(seed: int) -> None:
    text = Writer(random.Random(seed)).document()
    index = lines(text)
    assert set(index) == paths(tomli.loads(text))
    written = text.split("\n")
    for path, line in index.items():
        if path and isinstance(path[-1], str):
            key = path[-1].strip('"[] =#')
            assert key in written[line - 1], (dotted(path), line, text)
