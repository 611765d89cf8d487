"""A route compiled: whatever the config check lets through, in the same sense."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config import forms
from tcpgate.policy.host import HostPattern, compile_host
from tcpgate.policy.path import match_path, readings
from tcpgate.policy.rule import compile_path, parse_query

path_text = st.text(alphabet="/=~ab.%2F5c;é \\?#*+|(){}[]!\n", max_size=10)
host_text = st.text(alphabet="*.abA-_:[]109é/~%", max_size=12)


@given(st.one_of(path_text, path_text.map(lambda text: "/" + text), path_text.map(lambda text: "=/" + text)))
def test_a_path_that_the_config_check_lets_through_is_compiled(text: str) -> None:
    if not forms.route_path(text):
        assert compile_path(text).text == text


@given(host_text)
def test_a_host_that_the_config_check_lets_through_is_compiled(text: str) -> None:
    if not forms.host(text):
        assert str(compile_host(text)) == (text.lower() if "[" not in text else str(compile_host(text)))


@given(st.from_regex(r"/[a-c/~-]{0,6}([.*+?{|(\\]?[a-c1,)}]{0,3})", fullmatch=True), st.text("/abc~-1", max_size=6))
def test_a_regular_expression_matches_only_below_the_segments_it_is_filed_under(pattern: str, text: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error:
        return
    key = compile_path("~" + pattern).key
    for path in ("/" + text, pattern, pattern.replace("\\", ""), key.decode() + "/" + text, key.decode()):
        if path.startswith("/") and compiled.fullmatch(path):
            assert path.startswith(key.decode() + "/"), key


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        (r"/api/v1/\d+", b"/api/v1"),
        (r"/api/v1", b"/api"),
        (r"/api/v1/", b"/api/v1"),
        (r"/api/v1/?", b"/api"),
        (r"/api/v1/*x", b"/api"),
        (r"/api/v{2}", b"/api"),
        (r"/api/x+", b"/api"),
        (r"/a|/b/c", b""),
        (r"/(?i:a)/b", b""),
        (r".*/b", b""),
        (r"[/]a/b", b""),
        ("", b""),
    ],
)
def test_a_regular_expression_is_filed_under_its_literal_segments(pattern: str, key: bytes) -> None:
    assert compile_path("~" + pattern).key == key


@given(st.lists(st.sampled_from(["a", "é", "x y", "b.c", "@d"]), min_size=1, max_size=4))
def test_a_route_s_path_covers_its_own_reading(segments: list[str]) -> None:
    text = "/" + "/".join(segments)
    sent = match_path(text.replace("é", "%C3%A9").replace(" ", "%20").encode())
    assert sent is not None
    (reading,) = readings(sent)
    for pattern in (text, "=" + text, "~" + text):
        assert compile_path(pattern).holds(reading)


@pytest.mark.parametrize(
    ("pattern", "host", "holds"),
    [
        ("a.example", b"a.example", True),
        ("a.example", b"b.a.example", False),
        ("*.example", b"a.example", True),
        ("*.example", b"b.a.example", True),
        ("*.example", b"example", False),
        ("*.example", b".example", False),
        ("*.example", b"aexample", False),
    ],
)
def test_a_host_pattern_tells_which_hosts_it_covers(pattern: str, host: bytes, holds: bool) -> None:
    assert compile_host(pattern).holds(host) is holds


def test_host_patterns_sort_by_how_specific_they_are() -> None:
    wanted = ["a.b.c", "z", "*.a.b.c", "*.b.c", "*.c"]
    compiled: list[HostPattern] = [compile_host(text) for text in reversed(wanted)]
    assert [str(pattern) for pattern in sorted(compiled, key=lambda pattern: pattern.order)] == wanted


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (None, {}),
        (b"", {}),
        (b"&&", {}),
        (b"a", {b"a": b""}),
        (b"a=1&a=2", {b"a": b"1"}),
        (b"a=1=2", {b"a": b"1=2"}),
        (b"=1", {b"": b"1"}),
        (b"a%3D=%26+%2B", {b"a=": b"& +"}),
        (b"a=%&b=%4&c=%zz", {b"a": b"%", b"b": b"%4", b"c": b"%zz"}),
    ],
)
def test_a_query_is_parsed_as_forms_are(query: bytes | None, parameters: dict[bytes, bytes]) -> None:
    assert parse_query(query) == parameters
