"""Quoting and cutting: whatever text comes in, the JSON is valid and has room."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgate.stats.line import CUT_MARK, cut, quote, scalar

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)  # surrogates too


def room_of(text: str) -> int:
    return len(quote(text)) - 2


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("short", 16, "short"),
        ("exactly sixteen!", 16, "exactly sixteen!"),
        ("seventeen letters", 16, "seventeen let..."),
        ("\x01\x01\x01\x01", 23, "\x01\x01\x01..."),
        ('""""""""""', 19, '""""""""...'),
        ("\udcff", 16, r"\udcff"),
        ("né", 16, "né"),
        ("\U0001f600" * 3, 27, "\U0001f600\U0001f600..."),
    ],
)
def test_a_text_is_cut_to_its_room_in_escaped_bytes(text: str, room: int, expected: str) -> None:
    assert cut(text, room) == expected


@given(text=ANY_TEXT, room=st.integers(16, 200))
@example(text="\\" * 40, room=16)
@example(text="\ud800" * 40, room=16)
def test_a_cut_text_fits_and_every_reader_takes_it(text: str, room: int) -> None:
    short = cut(text, room)
    assert room_of(short) <= room
    assert msgspec.json.decode(quote(short)) == short
    if short != text and short.endswith(CUT_MARK):
        # As much as fits: with one more character of the clean text it would be too long.
        clean = text.encode("utf-8", "backslashreplace").decode()
        kept = len(short) - len(CUT_MARK)
        assert clean.startswith(short[:kept])
        assert room_of(clean[: kept + 1]) + len(CUT_MARK) > room or clean == short


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a\n", '"a\\n"'), (3, "3"), (-1.5, "-1.5"), (True, "true"), (False, "false"), (float("inf"), '"inf"')],
)
def test_a_fact_becomes_json(value: str | float, expected: str) -> None:
    assert scalar(value) == expected


@given(value=st.one_of(st.text(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False)))
def test_every_fact_that_json_has_comes_back(value: str | float) -> None:
    assert json.loads(scalar(value)) == value


def test_a_number_that_json_lacks_is_text() -> None:
    assert json.loads(scalar(float("nan"))) == "nan"
