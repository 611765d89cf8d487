"""Fields and the small syntax under them: order kept, names found in any case, lists split where HTTP splits them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import Data, Fields, Limits, RequestHead
from tcpgate.codec.grammar import parse_request
from tcpgate.codec.syntax import quote, split_list, split_parameters, unquote
from tests.codec import messages

FIELDS = Fields([(b"Host", b"a"), (b"X-A", b"1, 2"), (b"x-a", b"3"), (b"Cookie", b"secret=1")])


def test_a_name_is_found_in_any_case_and_the_first_value_wins() -> None:
    assert FIELDS.get(b"x-a") == b"1, 2"
    assert FIELDS.all(b"x-a") == [b"1, 2", b"3"]
    assert FIELDS.get(b"x-b") is None
    assert FIELDS.all(b"x-b") == []
    assert b"host" in FIELDS
    assert b"x-b" not in FIELDS


def test_all_lines_of_a_name_make_one_list() -> None:
    assert FIELDS.members(b"x-a") == [b"1", b"2", b"3"]
    assert Fields([(b"Connection", b"Close, ,X-A")]).tokens(b"connection") == [b"close", b"x-a"]


def test_order_and_names_stay_as_they_were_sent() -> None:
    assert list(FIELDS)[1:3] == [(b"X-A", b"1, 2"), (b"x-a", b"3")]
    assert list(FIELDS.without({b"x-a", b"cookie"})) == [(b"Host", b"a")]
    assert list(FIELDS.plus([(b"Z", b"z")]))[-1] == (b"Z", b"z")
    assert len(FIELDS) == 4, "what is derived leaves the original alone"


def test_fields_compare_by_value() -> None:
    assert Fields([(b"A", b"1")]) == Fields([(b"A", b"1")])
    assert Fields([(b"A", b"1")]) != Fields([(b"a", b"1")])
    assert Fields() != ()
    assert len({Fields([(b"A", b"1")]), Fields([(b"A", b"1")])}) == 1


def test_no_value_shows_in_a_repr() -> None:
    head = parse_request(b"GET /?token=hush HTTP/1.1\r\nHost: a\r\nCookie: hush\r\n\r\n", Limits())
    assert isinstance(head, RequestHead)
    assert "hush" not in repr(head)
    assert "Cookie" in repr(head)
    assert repr(Data(b"hush")) == "Data(data=<4 bytes>)"


@pytest.mark.parametrize(
    ("value", "members"),
    [
        (b"", []),
        (b" , ,\t,", []),
        (b"a", [b"a"]),
        (b" a ,\tb\t", [b"a", b"b"]),
        (b'"a,b", c', [b'"a,b"', b"c"]),
        (b'"a\\",b", c', [b'"a\\",b"', b"c"]),
        (b'"a\\\\",b', [b'"a\\\\"', b"b"]),
        (b'a\\,"b"', [b"a\\", b'"b"']),
        (b'"never ends, b', [b'"never ends, b']),
        (b'x="a,b";y, "", z', [b'x="a,b";y', b'""', b"z"]),
    ],
)
def test_a_list_is_split_at_commas_outside_quotes(value: bytes, members: list[bytes]) -> None:
    assert split_list(value) == members


def test_parameters_are_split_at_semicolons_outside_quotes() -> None:
    assert split_parameters(b'a; b="c;d" ;;e') == [b"a", b'b="c;d"', b"e"]


@given(st.lists(messages.values.filter(bool), max_size=6))
def test_quoted_members_survive_a_list(members: list[bytes]) -> None:
    assert [unquote(member) for member in split_list(b", ".join(map(quote, members)))] == members


@pytest.mark.parametrize("text", [b"", b'"', b'"a', b'"a"b"', b'"a\\"', b'"\x00"', b'"\\\x00"', b"a b", b"'a b'"])
def test_no_other_text_is_a_token_or_a_quoted_string(text: bytes) -> None:
    assert unquote(text) is None


@given(st.binary(max_size=40))
def test_what_is_neither_token_nor_quoted_string_means_nothing(text: bytes) -> None:
    plain = unquote(text)
    if plain is not None:
        assert unquote(quote(plain)) == plain


def test_a_list_of_many_broken_quotes_is_split_in_one_pass() -> None:
    value = b'"' + b'\\"' * 100_000 + b","
    assert split_list(value) == [value]
