"""What a path means: one form to forward, every way to read it, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.policy import path as path_module
from tcpgate.policy.path import decode_escapes, is_plain, is_single, match_path, readings

TOKENS = [
    *("/", "/", "//", "a", "b", "admin", ".", "..", "%2e", "%2E%2e", "%61", "%41", "%7e", "%2F", "%2f", "%5c", "%3B"),
    *(";", ";x=1", "%3f", "%23", "%25", "%252F", "%252e%252e", "%2525", "%00", "%2500", "%c3%a9", "%20", "|", "[", "!"),
    *("%21", "%40", "@", "%", "%4", "%zz", "\\", "\x01", " ", "#", "?", "\xe9"),
]
paths = st.lists(st.sampled_from(TOKENS), max_size=8).map(lambda parts: ("/" + "".join(parts)).encode("latin-1"))


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"*", b"*"),
        (b"/api/v1/users/7", b"/api/v1/users/7"),
        (b"/.well-known/x..y/...", b"/.well-known/x..y/..."),
        # Escapes of unreserved characters, and the case of hex digits (RFC 3986 6.2.2)
        (b"/%61dmin", b"/admin"),
        (b"/%7Euser/%2D%5f", b"/~user/-_"),
        (b"/caf%c3%a9", b"/caf%C3%A9"),
        (b"/a%2fb", b"/a%2Fb"),
        # Reserved characters keep their spelling: they may be data
        (b"/%40x/@x", b"/%40x/@x"),
        # Dot segments (RFC 3986 5.2.4, and its examples in 5.4)
        (b"/x/../admin", b"/admin"),
        (b"/x/%2e%2E/admin", b"/admin"),
        (b"/a/b/c/./../../g", b"/a/g"),
        (b"/../../g", b"/g"),
        (b"/a/b/.", b"/a/b/"),
        (b"/a/b/..", b"/a/"),
        (b"/..", b"/"),
        (b"/.", b"/"),
        (b"/a//../b", b"/a/b"),
        (b"/..//b", b"//b"),
        # Slashes are not merged, parameters stay: both may be data
        (b"/fetch/https://example.com//x", b"/fetch/https://example.com//x"),
        (b"/a;v=1/b;w", b"/a;v=1/b;w"),
        # What clients send raw although it is no URI character
        (b"/a|b[0]{c}^", b"/a%7Cb%5B0%5D%7Bc%7D%5E"),
        (b'/"<>`', b"/%22%3C%3E%60"),
        # GitLab, npm, RabbitMQ
        (b"/api/v4/projects/group%2Fproject", b"/api/v4/projects/group%2Fproject"),
        (b"/@scope%2Fname", b"/@scope%2Fname"),
        (b"/api/queues/%2F/name", b"/api/queues/%2F/name"),
        (b"/wiki/What%3F", b"/wiki/What%3F"),
        (b"/100%25", b"/100%25"),
    ],
)  # fmt: skip
def test_a_path_has_one_normal_form(raw: bytes, normal: bytes) -> None:
    assert match_path(raw) == normal


@pytest.mark.parametrize(
    "raw",
    [
        b"api",
        b"%2Fapi",
        b"/%",
        b"/%4",
        b"/%4g",
        b"/%00",
        b"/a%00b",
        b"/a b",
        b"/a\tb",
        b"/a\x7f",
        b"/a\\b",
        b"/a#b",
        b"/a?b",
        b"/caf\xc3\xa9",
        # Dots that only some recipients see
        b"/x/..%2Fadmin",
        b"/x/%2e%2e%2fadmin",
        b"/x%2F../../admin/..%5Cx",
        b"/x/..%5Cadmin",
        b"/x/..;/admin",
        b"/x/..;a=b/admin",
        b"/x/.;/admin",
        b"/x/%252e%252e/admin",
        b"/x/%25252e./admin",
        b"/x/..%3Fy",
        b"/x/..%23y",
        b"/x/%2E%2E%3By/admin",
        # A slash inside a parameter: to drop it and to split at it lead apart
        b"/x;a%2Fb/c",
        b"/x;a%5Cb/c",
        b"/x;a%252Fb/c",
        # More layers than anybody's data has
        b"/%2525252561",
        # The end of a string, one layer down
        b"/a%2500",
    ],
)
def test_what_is_no_path_or_a_trap_is_refused(raw: bytes) -> None:
    assert match_path(raw) is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/a/b", [b"/a/b"]),
        (b"*", [b"*"]),
        (b"/caf%C3%A9%20x", ["/café x".encode()]),
        (b"/%40x%21", [b"/@x!"]),
        (b"/100%25", [b"/100%25"]),
        (b"/a%2Fb", [b"/a%2Fb", b"/a/b"]),
        (b"/a%5Cb", [b"/a%5Cb", b"/a/b"]),
        (b"//admin", [b"//admin", b"/admin"]),
        (b"/a//", [b"/a//", b"/a/"]),
        (b"/admin;x", [b"/admin;x", b"/admin"]),
        (b"/admin%3Bx/y", [b"/admin%3Bx/y", b"/admin/y"]),
        (b"/;x/admin", [b"/;x/admin", b"/admin"]),
        (b"/%2561dmin", [b"/%2561dmin", b"/admin"]),
        (b"/a%252Fb", [b"/a%252Fb", b"/a/b"]),
        (b"/a%3Fb/c", [b"/a%3Fb/c", b"/a"]),
        (b"/a%23b/c", [b"/a%23b/c", b"/a"]),
        (b"/a%23b%3Fc", [b"/a%23b%3Fc", b"/a%23b", b"/a"]),
    ],
)
def test_a_path_has_every_reading_that_recipients_are_known_to_have(path: bytes, found: list[bytes]) -> None:
    normal = match_path(path)
    assert normal is not None
    assert readings(normal) == found


def test_one_layer_of_escapes_is_taken_off_and_lone_percent_signs_stay() -> None:
    assert decode_escapes(b"%41%2f%25%zz%4") == b"A/%%zz%4"


@given(paths)
def test_a_normal_form_is_its_own_normal_form(raw: bytes) -> None:
    normal = match_path(raw)
    if normal is not None:
        assert match_path(normal) == normal


@given(paths)
def test_neither_a_normal_form_nor_any_reading_has_a_dot_segment(raw: bytes) -> None:
    normal = match_path(raw)
    if normal is not None:
        for path in (normal, *readings(normal)):
            assert {b".", b".."}.isdisjoint(path.split(b"/"))


@given(paths)
def test_a_normal_form_is_visible_ascii_that_a_request_line_can_carry(raw: bytes) -> None:
    normal = match_path(raw)
    if normal is not None:
        assert all(0x21 <= code <= 0x7E and code not in b'#?\\"<>[]^`{|}' for code in normal)


@given(paths)
def test_the_quick_looks_say_what_the_slow_ones_find(raw: bytes) -> None:
    normal = match_path(raw)
    if is_plain(raw):
        assert normal == raw
    if normal is not None and is_single(normal):
        assert readings(normal) == [normal]


@given(
    st.lists(st.sampled_from([b"a", b"~", b"Z", b"-", b"%", b"\xc3\xa9", b"!", b"x y", b"."]), min_size=1), st.data()
)
def test_every_spelling_of_a_segment_has_the_same_strict_reading(parts: list[bytes], data: st.DataObject) -> None:
    def spell(byte: int) -> bytes:
        must = byte in b"% " or byte >= 0x80
        escaped = b"%%%02X" % byte if data.draw(st.booleans()) else b"%%%02x" % byte
        return escaped if must or data.draw(st.booleans()) else bytes((byte,))

    text = b"/v/" + b"".join(parts) + b"x"
    spelled = [b"/v/" + b"".join(spell(byte) for byte in text[3:]) for _ in range(2)]
    first, second = (match_path(path) for path in spelled)
    assert first is not None
    assert second is not None
    assert readings(first)[0] == readings(second)[0] == text.replace(b"%", b"%25")


@given(st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"%41", b";x", b"//", b"-", b"\xe9", b"B.c"]), max_size=7))
def test_a_path_that_is_plainest_is_its_own_and_only_reading(parts: list[bytes]) -> None:
    path = b"/" + b"".join(parts)
    if path_module._is_plainest(path):
        assert not path.translate(None, path_module._PLAIN)
        assert b"//" not in path
        assert not path_module._has_dot_segment(path)
        assert readings(path_module.NormalPath(path)) == [path]
