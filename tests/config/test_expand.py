"""The environment in a config's strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.expand import MAX_DEPTH, Environment
from tcpgate.config.report import Report

VARIABLES = {"NAME": "value", "EMPTY": "", "_x1": "under"}


def expanded(value: Any, variables: Mapping[str, str] = VARIABLES) -> tuple[Any, list[str]]:
    """What becomes of `value`, and the problems told."""
    report = Report(lambda path: ("t.toml", 1))
    tree = Environment(variables, report).tree(value)
    return tree, [problem.text for problem in report.problems]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a${NAME}b${_x1}c", "avaluebunderc"),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${ABSENT:-}", ""),
        ("${ABSENT:-a:-b$c d}", "a:-b$c d"),
        ("${NAME:-default}", "value"),
        ("${NAME:?must be there}", "value"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$$${NAME}", "$${NAME}"),
        ("$$${NAME}", "$value"),
        ("~/a$", "~/a$"),
        ("$NAME", "$NAME"),
        ("a $ b", "a $ b"),
    ],
)
def test_a_reference_becomes_its_value(text: str, result: str) -> None:
    assert expanded(text) == (result, [])


@pytest.mark.parametrize(
    "text", ["${}", "${NAME", "${1X}", "${NAME:+x}", "${NAME:x}", "${NAME-x}", "${ NAME }", "${NÄME}"]
)
def test_what_looks_like_a_reference_must_be_one(text: str) -> None:
    result, problems = expanded(text)
    assert result == text
    assert len(problems) == 1
    assert 'write "${NAME}", "${NAME:-default}" or "${NAME:?message}"' in problems[0]


def test_a_default_cannot_hold_another_reference() -> None:
    result, problems = expanded("${ABSENT:-${NAME}}")
    assert result == "${ABSENT:-${NAME}}"
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${ABSENT}", 'the environment variable ABSENT is not set; set it, or write "${ABSENT:-default}"'),
        ("${NAMES}", 'the environment variable NAMES is not set (did you mean "NAME"?)'),
        ("${ABSENT:?}", 'the environment variable ABSENT is not set; set it, or write "${ABSENT:-default}"'),
        ("${EMPTY:?say it}", "the environment variable EMPTY is empty: say it"),
        ("${ABSENT:?say it}", "the environment variable ABSENT is not set: say it"),
    ],
)
def test_a_variable_that_is_not_there_is_named(text: str, problem: str) -> None:
    assert expanded(text)[1] == [f'"{text}": {problem}']


def test_a_variable_that_is_no_text_is_told() -> None:
    problem = '"${RAW}": the environment variable RAW is not UTF-8'
    assert expanded("${RAW}", {"RAW": b"a\xff".decode(errors="surrogateescape")}) == ("${RAW}", [problem])


def test_strings_anywhere_are_expanded_and_nothing_else() -> None:
    tree = {"${NAME}": ["${NAME}", 1, {"a": "${NAME}", "b": True, "c": 1.5}]}
    assert expanded(tree) == ({"${NAME}": ["value", 1, {"a": "value", "b": True, "c": 1.5}]}, [])


def test_values_do_not_expand_again() -> None:
    assert expanded("${A}", {"A": "${B}", "B": "no"}) == ("${B}", [])


def test_nesting_has_an_end() -> None:
    tree: Any = "leaf"
    for _ in range(MAX_DEPTH * 3):
        tree = [tree]
    assert expanded(tree)[1] == ["is nested too deeply to be a config"]


@given(st.text(alphabet="${}:-?aNAME \n"), st.dictionaries(st.sampled_from(["A", "NAME", "a"]), st.text()))
def test_any_text_is_expanded_or_told(text: str, variables: dict[str, str]) -> None:
    result, problems = expanded(text, variables)
    assert isinstance(result, str)
    if "$" not in text:
        assert (result, problems) == (text, [])
