"""What the hashing balancers and the splits hash on."""

from __future__ import annotations

import pytest

from tcpgate.codec.events import Limits
from tcpgate.codec.grammar import parse_request
from tcpgate.policy.hashing import hash64
from tcpgate.state.keys import cookie, key_of

HEAD = parse_request(
    b"GET /a/b?c HTTP/1.1\r\nHost: t\r\nX-User: ann\r\nX-Empty:\r\nCookie: a=1; user=bob;broken; user=eve\r\n\r\n",
    Limits(),
)


@pytest.mark.parametrize(
    ("rule", "hashed"),
    [
        ("source", b"192.0.2.7"),
        ("path", b"/a/b"),
        ("header:X-User", b"ann"),
        ("header:x-user", b"ann"),
        ("cookie:user", b"bob"),
        # Where the request has none, its source stands in, so that such requests do not all meet at one endpoint.
        ("header:x-absent", b"192.0.2.7"),
        ("header:x-empty", b"192.0.2.7"),
        ("cookie:absent", b"192.0.2.7"),
        ("cookie:broken", b"192.0.2.7"),
    ],
)
def test_each_rule_hashes_what_it_names(rule: str, hashed: bytes) -> None:
    assert key_of(rule, "192.0.2.7", HEAD) == hash64(hashed)


def test_a_flow_has_a_source_only() -> None:
    assert key_of("header:x-user", "192.0.2.7", None) == hash64(b"192.0.2.7")


def test_cookie_names_match_whole_and_by_case() -> None:
    assert cookie(HEAD, b"a") == b"1"
    assert cookie(HEAD, b"use") is None
    assert cookie(HEAD, b"USER") is None
