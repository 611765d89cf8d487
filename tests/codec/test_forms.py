"""Forms of heads: filled with any clean value and with nothing else, few, and steady when there are too many."""

from __future__ import annotations

import pytest

from tcpgate.codec.forms import MAX_FORM, Form, Forms, RequestFields

SAID: RequestFields = (b"a.test", b"a.test", None, True, False, b"")
FIRST = b"Host: a.test\r\nUser-Agent: " + b"x" * 60 + b"\r\n"
LINES = [FIRST, b"X-Id: 1\r\n", b"A: b\r\n"]
FORM = Form(LINES, [b"", *LINES[1:]], [1], SAID)


def learnt(forms: Forms, lines: list[bytes], *fresh: int) -> bytes:
    """Teach it a head, its first line apart, of which all goes on but Host and dropped fields; the head."""
    found = [b"" if line.startswith((b"Host", b"Drop")) else line for line in lines]
    forms.learn(lines, found, [lines[at] for at in fresh], (*SAID[:5], b"".join(found)))
    return b"".join([*lines, b"\r\n"])


def test_a_clean_value_fills_the_blank() -> None:
    assert FORM.fill(FIRST + b"X-Id: 5 \xff;\t5\r\nA: b\r\n\r\n") == (*SAID[:5], b"X-Id: 5 \xff;\t5\r\nA: b\r\n")


@pytest.mark.parametrize(
    "value",
    [b"", b" 5", b"5 ", b"5\t", b"\t", b"5\r\nA: b", b"5\n", b"5\r", b"\x00", b"5\x7f", b"\n", b"\r\n", b"\x0b5"],
)
def test_no_other_value_does(value: bytes) -> None:
    assert FORM.fill(FIRST + b"X-Id: " + value + b"\r\nA: b\r\n\r\n") is None


def test_start_and_end_may_not_overlap() -> None:
    lines = [b"A: b\r\n", b"X: 1\r\n", b"X: 2\r\n", b"X: \r\n"]
    form = Form(lines, lines, [1, 2], SAID)
    assert form.fill(b"A: b\r\nX: \r\n\r\n") is None
    assert form.fill(b"A: b\r\nX: 1\r\nX: \r\n\r\n") is None
    assert form.fill(b"A: b\r\nX: 1\r\nX: \r\nX: \r\n\r\n") is None
    assert form.fill(b"A: b\r\nX: 1\r\nX: 1\r\nX: \r\n\r\n") is not None


def test_blanks_of_dropped_fields_are_judged_and_dropped() -> None:
    forms = Forms()
    lines = [FIRST, b"Dropped: 1\r\n", b"X-Id: 1\r\n", b"A: b\r\n", b"Dropped: 2\r\n"]
    for _ in range(2):
        learnt(forms, lines, 1, 2, 4)
    good = FIRST + b"Dropped: 7\r\nX-Id: 8\r\nA: b\r\nDropped: 9\r\n\r\n"
    assert forms.fill(good) == (*SAID[:5], b"X-Id: 8\r\nA: b\r\n")
    for number in (b"7", b"8", b"9"):
        for value in (b"", b" ", b"\x00", b"7\r", b"7\r\nX: y", b"7 "):
            assert forms.fill(good.replace(number, value)) is None


@pytest.mark.parametrize("fresh", [[b"X-Id: 1\r\n", b""], [b"A: b\r\n", b"A: b\r\n"]], ids=["special", "twice"])
def test_where_a_fresh_line_has_a_meaning_or_comes_twice_no_form_is_made(fresh: list[bytes]) -> None:
    forms = Forms()
    lines = [FIRST, b"X-Id: 1\r\n", b"Content-Length: 5\r\n", b"A: b\r\n", b"A: b\r\n"]
    for _ in range(3):
        forms.learn(lines, lines, fresh, SAID)
    assert forms.fill(b"".join([*lines, b"\r\n"])) is None


@pytest.mark.parametrize("at", [2, 3])
def test_what_was_learnt_twice_is_known_with_other_values(at: int) -> None:
    forms = Forms()
    lines = [*FIRST.splitlines(keepends=True), b"X-Id: 1\r\n", b"A: 1\r\n"]
    raw = learnt(forms, lines, at)
    assert forms.fill(raw) is None
    learnt(forms, lines, at)
    lines[at] = lines[at].replace(b"1", b"other")
    assert forms.fill(b"".join([*lines, b"\r\n"])) == (*SAID[:5], b"".join(lines[1:]))
    assert forms.fill(b"".join([*lines, b"B: 1\r\n\r\n"])) is None


def test_a_head_that_is_too_long_or_differs_at_its_beginning_makes_no_form() -> None:
    forms = Forms()
    long = [*FIRST.splitlines(keepends=True), b"X-Id: 1\r\n", b"A: %s\r\n" % (b"x" * MAX_FORM)]
    early = [b"Host: a.test\r\n", b"X-Id: 1\r\n", FIRST]
    for lines, at in ((long, 2), (early, 1)):
        for _ in range(3):
            assert forms.fill(learnt(forms, lines, at)) is None


def test_newcomers_do_not_drive_out_what_is_used() -> None:
    forms = Forms()
    heads = [[*FIRST.splitlines(keepends=True), b"X-Id: 1\r\n", b"Kind: %d\r\n" % kind] for kind in range(40)]
    raws = [learnt(forms, heads[0], 2)] + [learnt(forms, lines, 2) for lines in heads]
    known = [raw for raw in set(raws) if forms.fill(raw) is not None]
    assert len(known) == 4
    assert learnt(forms, heads[2], 2) in known
