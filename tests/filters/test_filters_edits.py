"""Edits of header fields: kept beside the head, applied when it is sent."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import Fields, Pair
from tcpgate.filters.base import Edits, RequestView

FIELDS = Fields([(b"Host", b"h"), (b"X-A", b"1"), (b"x-a", b"2"), (b"X-B", b"3")])
names = st.sampled_from([b"X-A", b"x-a", b"X-B", b"x-c", b"X-C"])
steps = st.lists(st.tuples(st.sampled_from(["set", "add", "remove"]), names, st.sampled_from([b"7", b"8"])), max_size=8)


def test_no_edits_leave_the_very_same_fields() -> None:
    edits = Edits()
    assert not edits
    assert edits.apply(FIELDS) is FIELDS


def test_to_set_a_field_replaces_every_line_of_it_whatever_its_spelling() -> None:
    edits = Edits()
    edits.set(b"X-a", b"9")
    assert edits
    assert list(edits.apply(FIELDS)) == [(b"Host", b"h"), (b"X-B", b"3"), (b"X-a", b"9")]


def test_to_remove_a_field_takes_every_line_of_it() -> None:
    edits = Edits()
    edits.remove(b"X-A")
    assert list(edits.apply(FIELDS)) == [(b"Host", b"h"), (b"X-B", b"3")]
    assert edits.get(FIELDS, b"x-a") is None


def test_to_add_a_line_leaves_those_that_are_there() -> None:
    edits = Edits()
    edits.add(b"X-A", b"9")
    assert edits.apply(FIELDS).all(b"x-a") == [b"1", b"2", b"9"]
    assert edits.get(FIELDS, b"x-a") == b"1"


@given(steps)
def test_edits_do_what_doing_them_one_by_one_does(edits: list[tuple[str, bytes, bytes]]) -> None:
    kept = Edits()
    lines: list[Pair] = list(FIELDS)
    for what, name, value in edits:
        if what == "remove":
            kept.remove(name)
        elif what == "set":
            kept.set(name, value)
        else:
            kept.add(name, value)
        if what != "add":
            lines = [line for line in lines if line[0].lower() != name.lower()]
        if what != "remove":
            lines.append((name, value))
    assert list(kept.apply(FIELDS)) == lines
    for name in (b"x-a", b"x-b", b"x-c", b"host"):
        assert kept.get(FIELDS, name) == Fields(lines).get(name)


def test_a_filter_sees_what_the_ones_before_it_have_changed(make_view: Callable[..., RequestView]) -> None:
    view = make_view((b"X-A", b"1"))
    view.request.set(b"X-A", b"2")
    assert view.get(b"x-a") == b"2"
    assert view.head.fields.get(b"x-a") == b"1"


def test_a_client_has_a_text_even_without_an_address(make_view: Callable[..., RequestView]) -> None:
    assert make_view(client="2001:db8::1").client_text == "2001:db8::1"
    assert make_view(client=None).client_text == "unix"
