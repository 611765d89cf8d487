"""How problems are worded."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.report import MAX_SHOWN, AnyName, Report, dotted, found, listed, nearest, printable, quoted
from tcpgate.errors import Problem


def test_a_path_is_written_as_toml_would() -> None:
    assert dotted(("upstreams", "api", "endpoints", 1, "weight")) == "upstreams.api.endpoints[1].weight"
    assert dotted(("routes", "a.b", 0)) == 'routes."a.b"[0]'
    assert dotted(()) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        ("80", 'the string "80"'),
        (80, "the integer 80"),
        (10**20, "a huge integer"),
        (-(10**20), "a huge integer"),
        (1.5, "the number 1.5"),
        ([1], "a list"),
        ({}, "a table"),
        (datetime.date(2026, 1, 2), "the date or time 2026-01-02"),
    ],
)
def test_what_was_found_is_named(value: object, text: str) -> None:
    assert found(value) == text


def test_words_are_listed() -> None:
    assert listed(["a"]) == '"a"'
    assert listed(["a", "b", "c"]) == '"a", "b" or "c"'
    assert listed(["a", "b"], "and") == '"a" and "b"'


@pytest.mark.parametrize(
    ("word", "near"),
    [("wbe", ' (did you mean "web"?)'), ("WEB", ' (did you mean "web"?)'), ("xyz", ""), ("", ""), ("w" * 100_000, "")],
)
def test_the_nearest_word_is_offered(word: str, near: str) -> None:
    assert nearest(word, ["web", "api"]) == near


@given(st.text())
def test_no_text_can_move_a_cursor(text: str) -> None:
    assert quoted(text).isprintable()
    assert printable(text).isprintable()
    assert len(quoted(text)) <= 12 * MAX_SHOWN + 2


def test_a_long_text_is_cut() -> None:
    assert quoted("x" * 100) == '"' + "x" * 57 + '..."'
    assert quoted("x" * MAX_SHOWN) == '"' + "x" * MAX_SHOWN + '"'


def test_a_report_keeps_places_and_knows_errors_from_warnings() -> None:
    report = Report(lambda path: ("f.toml", len(path)))
    report.error(("a", "b"), "wrong")
    report.warn(("a",), "odd")
    report.muted.add(("m",))
    report.error(("m", "x"), "unheard")
    report.judge((), "")
    report.judge((), "all wrong")
    assert report.errors == [
        Problem(file="f.toml", line=2, path="a.b", text="wrong"),
        Problem(file="f.toml", line=0, path="", text="all wrong"),
    ]
    assert report.warnings == [Problem(file="f.toml", line=1, path="a", text="odd", warning=True)]
    assert (report.place(("a",)), report.place(())) == ("f.toml:1", "f.toml")


def test_any_name_is_in_a_table_that_could_not_be_read() -> None:
    assert "anything" in AnyName()
    assert AnyName()
    report = Report(lambda path: ("f", 0))
    report.judge_name(("x",), "upstreams", "u", {"upstreams": AnyName()})
    assert report.problems == []
