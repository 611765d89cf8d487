"""Between config addresses and socket addresses: targets, texts, numbers, and whose turn it is."""

from __future__ import annotations

import ipaddress
import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.net.address import SocketAddress, Target, alternating, describe, number_of, target_of, with_port
from tcpgate.units import parse_endpoint

FOUR, SIX = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("text", "family", "sockaddr"),
    [
        ("10.0.0.1:80", FOUR, ("10.0.0.1", 80)),
        ("[2001:db8::1]:80", SIX, ("2001:db8::1", 80, 0, 0)),
        ("[fe80::1%7]:80", SIX, ("fe80::1", 80, 0, 7)),
        ("unix:/run/a.sock", socket.AF_UNIX, "/run/a.sock"),
    ],
)
def test_an_address_has_one_target(text: str, family: int, sockaddr: SocketAddress) -> None:
    assert target_of(parse_endpoint(text)) == Target(family, sockaddr)


def test_a_zone_is_an_interface_of_this_host() -> None:
    index, name = socket.if_nameindex()[0]
    assert target_of(parse_endpoint(f"[fe80::1%{name}]:80")).sockaddr == ("fe80::1", 80, 0, index)
    with pytest.raises(ValueError, match="no interface 'nope0'"):
        target_of(parse_endpoint("[fe80::1%nope0]:80"))


def test_a_name_has_no_target_before_it_is_resolved() -> None:
    with pytest.raises(ValueError, match="has to be resolved"):
        target_of(parse_endpoint("example.com:80"))


@pytest.mark.parametrize(
    ("sockaddr", "text", "number"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80", "10.0.0.1"),
        (("::1", 80, 0, 0), "[::1]:80", "::1"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80", "::ffff:10.0.0.1"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80", "fe80::1"),
        ("", "unix:", None),
        ("/a", "unix:/a", None),
        (b"\0name", "unix:@name", None),
        (b"", "unix:", None),
    ],
)
def test_a_peer_is_told_as_an_endpoint_is_written(sockaddr: SocketAddress, text: str, number: str | None) -> None:
    assert describe(sockaddr) == text
    assert number_of(sockaddr) == (ipaddress.ip_address(number) if number else None)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_a_targets_text_is_the_endpoints_text(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    if address.version == 6 and address.ipv4_mapped is not None:
        return  # told as IPv4, on purpose
    endpoint = parse_endpoint(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    assert str(target_of(endpoint)) == str(endpoint)


def test_only_the_port_changes() -> None:
    assert with_port(FOUR, ("10.0.0.1", 0), 80) == Target(FOUR, ("10.0.0.1", 80))
    assert with_port(SIX, ("fe80::1", 0, 5, 7), 80) == Target(SIX, ("fe80::1", 80, 5, 7))
    with pytest.raises(ValueError, match="not an internet address"):
        with_port(socket.AF_UNIX, "/a", 80)


@given(st.lists(st.sampled_from([FOUR, SIX])))
def test_families_take_turns_and_nothing_is_lost(families: list[int]) -> None:
    targets = [Target(family, (str(index), 1)) for index, family in enumerate(families)]
    mixed = alternating(targets)
    assert sorted(mixed, key=str) == sorted(targets, key=str)
    for family in (FOUR, SIX):
        kept = [target for target in mixed if target.family == family]
        assert kept == [target for target in targets if target.family == family], "the order within a family stays"
    if targets:
        assert mixed[0] == targets[0]
    for one, two in pairwise(mixed):
        if one.family == two.family:
            rest = mixed[mixed.index(two) :]
            assert {target.family for target in rest} == {two.family}, "only when the other family has run out"
