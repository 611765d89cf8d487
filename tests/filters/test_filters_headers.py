"""`kind = "headers"`: what it changes, and what it refuses to be made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import Fields, ResponseHead
from tcpgate.codec.syntax import is_token, is_value
from tcpgate.config import fields
from tcpgate.config.schema import HeadersFilter
from tcpgate.filters.base import CONTINUE, Edits, RequestView
from tcpgate.filters.headers import Headers

FRAMING = ["Connection", "content-length", "Transfer-Encoding", "TE", "Trailer", "Upgrade", "Keep-Alive"]
FRAMING += ["Proxy-Connection"]


def test_request_fields_are_set_and_removed(make_view: Callable[..., RequestView]) -> None:
    view = make_view((b"Cookie", b"a"), (b"x-env", b"prod"), (b"X-Env", b"test"))
    verdict = Headers(HeadersFilter(set={"X-Env": "beta"}, remove=("cookie",))).on_request(view)
    assert verdict == CONTINUE
    assert list(view.request.apply(view.head.fields)) == [(b"Host", b"h"), (b"X-Env", b"beta")]
    assert not view.response


def test_response_fields_are_set_and_removed(make_view: Callable[..., RequestView], response: ResponseHead) -> None:
    view = make_view()
    spec = HeadersFilter(
        response_set={"Strict-Transport-Security": "max-age=1"}, response_remove=("SERVER", "set-cookie")
    )
    Headers(spec).on_response(view, response)
    assert list(view.response.apply(response.fields)) == [(b"Strict-Transport-Security", b"max-age=1")]
    assert not view.request


def test_the_host_may_be_set_because_origins_have_names_of_their_own(make_view: Callable[..., RequestView]) -> None:
    view = make_view()
    Headers(HeadersFilter(set={"Host": "origin.internal:8080"})).on_request(view)
    assert list(view.request.apply(view.head.fields)) == [(b"Host", b"origin.internal:8080")]


def test_of_a_field_both_removed_and_set_the_new_value_stays(make_view: Callable[..., RequestView]) -> None:
    view = make_view((b"X", b"1"))
    Headers(HeadersFilter(set={"X": "2"}, remove=("x",))).on_request(view)
    assert view.request.apply(view.head.fields).all(b"x") == [b"2"]


def test_a_later_filter_wins_over_an_earlier_one(make_view: Callable[..., RequestView]) -> None:
    view = make_view()
    for spec in (HeadersFilter(set={"X": "1"}), HeadersFilter(remove=("x",)), HeadersFilter(set={"x": "2"})):
        Headers(spec).on_request(view)
    assert view.request.apply(view.head.fields).all(b"x") == [b"2"]


@pytest.mark.parametrize("key", ["set", "response_set"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "x") for name in FRAMING),
        ("X Y", "1"),
        ("", "1"),
        ("X:", "1"),
        ("Ü", "1"),
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X", "a\x7f"),
        ("X", " a"),
        ("X", "a\t"),
    ],
)
def test_nothing_that_could_break_a_head_or_its_framing_is_set(key: str, name: str, value: str) -> None:
    spec: dict[str, Any] = {key: {name: value}}
    with pytest.raises(ValueError, match=r"token|control character|space|cannot be changed"):
        Headers(HeadersFilter(**spec))


@pytest.mark.parametrize("name", [*FRAMING, "X Y", ""])
def test_what_frames_a_message_is_not_removed(name: str) -> None:
    with pytest.raises(ValueError, match=r"token|cannot be changed"):
        Headers(HeadersFilter(remove=(name,)))
    with pytest.raises(ValueError, match=r"token|cannot be changed"):
        Headers(HeadersFilter(response_remove=(name,)))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (HeadersFilter(remove=("HOST",)), "Host cannot be removed"),
        (HeadersFilter(set={"host": "a b"}), "is not a host"),
        (HeadersFilter(set={"host": "a/b"}), "is not a host"),
        (HeadersFilter(set={"host": "a:99999"}), "port"),
    ],
)
def test_what_could_not_be_meant_is_refused(spec: HeadersFilter, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Headers(spec)


@given(st.text(max_size=4), st.text(max_size=6))
def test_whatever_is_accepted_can_be_sent(name: str, value: str) -> None:
    try:
        changes = Headers(HeadersFilter(response_set={name: value}))
    except ValueError:
        return
    edits = Edits()
    view = RequestView(head=None, client=None, response=edits)  # type: ignore[arg-type]
    changes.on_response(view, None)  # type: ignore[arg-type]
    ((sent, text),) = edits.apply(Fields())
    assert is_token(sent)
    assert is_value(text)
    assert text == text.strip(b" \t")


NAMES = st.one_of(st.sampled_from(["Host", "host", "TE", "X-A", "x-a", "Set-Cookie", "Ü", ""]), st.text(max_size=3))
VALUES = st.one_of(
    st.sampled_from(["a.example", "a:80", "[::1]:80", "a b", "*.x", " a", "a\n", ""]), st.text(max_size=3)
)


@given(
    st.sampled_from(["set", "response_set"]).flatmap(
        lambda key: st.tuples(st.just(key), st.dictionaries(NAMES, VALUES, max_size=2))
    )
    | st.sampled_from(["remove", "response_remove"]).flatmap(
        lambda key: st.tuples(st.just(key), st.lists(NAMES, max_size=2).map(tuple))
    )
)
def test_a_filter_is_made_of_whatever_the_config_check_lets_through(setting: tuple[str, Any]) -> None:
    key, value = setting
    spec = HeadersFilter(**{key: value})
    try:
        fields.judge(HeadersFilter, key, value)
    except fields.Misformed as wrong:
        if not all("twice" in text or "same header" in text for _, text in wrong.findings):
            with pytest.raises(ValueError, match=r"."):
                Headers(spec)
    else:
        Headers(spec)
