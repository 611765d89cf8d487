"""Configs with something wrong or odd about them, and exactly what is said of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tcpgate.config.load import load
from tcpgate.errors import ConfigError, Problem

BASE = """\
[listeners.base]
bind = ["127.0.0.1:9999"]
[routes.base]
path = "/base"
upstream = "base"
[upstreams.base]
endpoints = ["10.0.0.1:80"]
"""
ENVIRON = {"DRAIN": "1s", "EMPTY": ""}


@attrs.frozen
class Case:
    """One config of a corpus file."""

    title: str
    toml: str
    expected: list[str]


def cases(name: str) -> list[Case]:
    """The cases of a corpus file beside this one."""
    found = []
    for block in re.split(r"^### ", (Path(__file__).parent / name).read_text(), flags=re.MULTILINE)[1:]:
        title, _, rest = block.strip("\n").partition("\n")
        lines = rest.split("\n")
        expected = [line.removeprefix("=> ") for line in lines if line.startswith("=> ")]
        found.append(Case(title, "\n".join(line for line in lines if not line.startswith("=> ")), expected))
    return found


BAD, ODD = cases("bad.txt"), cases("odd.txt")


def told(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """What loading the case says."""
    monkeypatch.chdir(folder)
    Path("part.toml").touch()
    Path("t.toml").write_text(f"{case.toml}\n{BASE}")
    try:
        return load("t.toml", environ=ENVIRON, credentials=None).warnings
    except ConfigError as exc:
        return exc.problems


def title(case: Case) -> str:
    """The case's name in pytest's output."""
    return case.title


@pytest.mark.parametrize("case", BAD, ids=title)
def test_a_bad_config_is_refused_with_every_problem(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = told(case, tmp_path, monkeypatch)
    assert [str(problem).removeprefix("t.toml:") for problem in problems] == case.expected
    assert any(not problem.warning for problem in problems)


@pytest.mark.parametrize("case", ODD, ids=title)
def test_an_odd_config_loads_with_exactly_these_warnings(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = told(case, tmp_path, monkeypatch)
    assert [str(problem).removeprefix("t.toml:") for problem in problems] == case.expected
    assert all(problem.warning for problem in problems)


def test_the_corpus_is_large_and_its_titles_differ() -> None:
    titles = [case.title for case in BAD + ODD]
    assert len(BAD) >= 60
    assert len(set(titles)) == len(titles)


def test_every_message_is_one_printable_line_that_ends_without_a_stop() -> None:
    for case in BAD + ODD:
        for line in case.expected:
            assert line.isprintable(), line
            assert not line.endswith("."), line


def test_the_problems_of_many_tables_show_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Callable[[int], str]] = [
        lambda number: f'[upstreams.u{number}]\nendpoints = ["x"]\nbalance = "y"',
        lambda number: f'[routes.r{number}]\nupstream = "nobody"\npath = "/{number}"',
        lambda number: f'[filters.f{number}]\nkind = "z"',
    ]
    text = "\n".join(table(number) for number in range(20) for table in tables)
    assert len(told(Case("many", text, []), tmp_path, monkeypatch)) == 20 * 4
