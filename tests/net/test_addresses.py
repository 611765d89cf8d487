"""The addresses that people write in a config: what is understood, what is refused, and that text and value agree."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.units import HostPort, InheritedFd, UnixPath, parse_bind, parse_endpoint

UNDERSTOOD = {
    "10.0.0.1:80": HostPort("10.0.0.1", 80),
    "[::1]:80": HostPort("::1", 80),
    "[FE80:0::1%eth0]:80": HostPort("fe80::1%eth0", 80),
    "localhost:1": HostPort("localhost", 1, numeric=False),
    "API_1.Internal:8080": HostPort("api_1.internal", 8080, numeric=False),
    "a.:80": HostPort("a.", 80, numeric=False),
    "unix:/run/app.sock": UnixPath("/run/app.sock"),
}
REFUSED = [
    "",
    "80",
    ":80",
    "*:80",
    "::1:80",
    "[::1]",
    "[1.2.3.4]:80",
    "1.2.3:80",
    "010.0.0.1:80",
    "1.2.3.4.5:80",
    "1.2.3.\u00b2:80",
    "\u00b2:80",
    "a:0",
    "a:65536",
    "a:-1",
    "a:\u0661",
    "a:1_0",
    "-a:80",
    "a..b:80",
    "a b:80",
    "a" * 64 + ":80",
    ".".join(["a" * 60] * 5) + ":80",
    "http://a:80",
    "unix:relative",
    "unix:",
    "unix:/dir/",
    "unix:/a\0b",
    "unix:/" + "a" * 107,
    "fd:web",
]


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_an_endpoint_is_understood(text: str) -> None:
    address = parse_endpoint(text)
    assert address == UNDERSTOOD[text]
    assert getattr(address, "numeric", True) == getattr(UNDERSTOOD[text], "numeric", True)


@pytest.mark.parametrize("text", REFUSED)
def test_an_endpoint_that_is_none_is_refused_with_its_text_shown(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text differs, that it shows the input does not
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


def test_a_bind_may_be_an_address_a_path_or_an_inherited_socket() -> None:
    assert parse_bind("0.0.0.0:0") == HostPort("0.0.0.0", 0)
    assert parse_bind("[::]:443") == HostPort("::", 443)
    assert parse_bind("localhost:80") == HostPort("127.0.0.1", 80)
    assert parse_bind("unix:/a") == UnixPath("/a")
    assert parse_bind("fd:web.socket") == InheritedFd("web.socket")


@pytest.mark.parametrize("text", ["example.com:80", "fd:", "fd:a:b", "fd:a b", "unix:a", "*:80", "0.0.0.0"])
def test_a_bind_that_cannot_be_listened_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|fd:NAME"):
        parse_bind(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_any_numeric_endpoint_comes_back_from_its_own_text(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    endpoint = HostPort(str(address), port)
    assert parse_endpoint(str(endpoint)) == endpoint


@given(st.text())
def test_any_text_parses_to_something_that_writes_itself_the_same_or_raises_value_error(text: str) -> None:
    try:
        address = parse_endpoint(text)
    except ValueError:
        return
    assert parse_endpoint(str(address)) == address


@given(st.text(alphabet="abc.-_0123456789:[]%/unixfd", max_size=40))
def test_texts_that_look_like_addresses_hold_the_same(text: str) -> None:
    for parse in (parse_endpoint, parse_bind):
        try:
            address = parse(text)
        except ValueError:
            continue
        assert parse(str(address)) == address
