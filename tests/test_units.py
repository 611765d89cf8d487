"""Spans, sizes, rates and networks: what people write becomes the right number, and nothing else is accepted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.units import (
    Address,
    Network,
    Networks,
    format_size,
    format_span,
    parse_network,
    parse_rate,
    parse_size,
    parse_size_rate,
    parse_span,
)

Parse = Callable[[str], float]

MEANT: list[tuple[Parse, str, float]] = [
    (parse_span, "250ms", 0.25),
    (parse_span, "0ms", 0.0),
    (parse_span, "2s", 2.0),
    (parse_span, "1.5s", 1.5),
    (parse_span, "5m", 300.0),
    (parse_span, "1h", 3600.0),
    (parse_span, "7d", 604800.0),
    (parse_span, "1m30s", 90.0),
    (parse_span, "1m5ms", 60.005),
    (parse_span, "1d2h3m4s5ms", 93784.005),
    (parse_size, "0B", 0),
    (parse_size, "512B", 512),
    (parse_size, "64KiB", 65536),
    (parse_size, "1.5MiB", 1572864),
    (parse_size, "2GiB", 2147483648),
    (parse_size, "1TiB", 1099511627776),
    (parse_size, "10KB", 10_000),
    (parse_size, "10MB", 10_000_000),
    (parse_size, "1GB", 10**9),
    (parse_size, "1TB", 10**12),
    (parse_rate, "100/s", 100.0),
    (parse_rate, "600/m", 10.0),
    (parse_rate, "3600/h", 1.0),
    (parse_rate, "86400/d", 1.0),
    (parse_rate, "2/ms", 2000.0),
    (parse_rate, "0.5/s", 0.5),
    (parse_size_rate, "1KiB/s", 1024.0),
    (parse_size_rate, "10MB/s", 10_000_000.0),
    (parse_size_rate, "512B/s", 512.0),
]

# What Python's own float() and int() would take, or what a hurried hand writes.
NEVER_A_NUMBER = ["", " ", "s", "1", "1 s", " 1s", "1s ", "1s\n", "-1s", "+1s", "1_0s", "1e3s", ".5s", "1.s", "0x1s"]
REFUSED: list[tuple[Parse, str]] = [
    *[(parse_span, text) for text in NEVER_A_NUMBER],
    *[
        (parse_span, text)
        for text in ("infs", "nans", "²s", "\u0661s", "1S", "1sec", "1 m", "1w", "1us", "1m 30s", "1,5s")
    ],
    (parse_span, "1" * 16 + "s"),
    (parse_span, "1." + "1" * 7 + "s"),
    *[(parse_size, text) for text in ("", "64", "64K", "64k", "64kb", "64 KiB", "-1B", "1BiB", "1iB", "1_0B", "²B")],
    *[(parse_rate, text) for text in ("", "100", "/s", "100/", "100/S", "100 / s", "-1/s", "100/s/s", "1e3/s", "²/s")],
    *[(parse_size_rate, text) for text in ("", "1KiB", "100/s", "1KiB/m", "1KiB/S", "1 KiB/s", "-1B/s", "²B/s")],
]


@pytest.mark.parametrize(("parse", "text", "number"), MEANT)
def test_what_is_meant_is_understood(parse: Parse, text: str, number: float) -> None:
    assert parse(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(("parse", "text"), REFUSED)
def test_what_is_refused_is_told_how_to_write_it(parse: Parse, text: str) -> None:
    with pytest.raises(ValueError, match=r'^.* is not a .*; write it as "') as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("parse", [parse_span, parse_size, parse_rate, parse_size_rate])
@given(text=st.text(max_size=30) | st.from_regex(r"[0-9._²]{0,4}(ms|s|m|KiB|B|/s|)*", fullmatch=True))
def test_any_text_is_a_number_that_is_not_negative_or_a_value_error(parse: Parse, text: str) -> None:
    try:
        number = parse(text)
    except ValueError:
        return
    assert 0 <= number < float("inf")
    assert text.isascii()


@given(st.integers(0, 10**9))
def test_a_span_that_is_shown_reads_back_as_itself(milliseconds: int) -> None:
    assert parse_span(format_span(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (2, "2s"), (60, "1m"), (90, "1m30s"), (3600, "1h"), (3661.5, "1h1m1.5s")],
)
def test_a_span_is_shown_as_people_write_it(seconds: float, text: str) -> None:
    assert format_span(seconds) == text


@given(st.integers(0, 2**50))
def test_a_size_that_is_shown_reads_back_to_four_digits(count: int) -> None:
    assert parse_size(format_size(count)) == pytest.approx(count, rel=6e-4, abs=1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (512, "512B"), (1024, "1KiB"), (1536, "1.5KiB"), (2 << 30, "2GiB"), (5 << 40, "5TiB")],
)
def test_a_size_is_shown_as_people_write_it(count: int, text: str) -> None:
    assert format_size(count) == text


# -- networks -------------------------------------------------------------------------------------------------------

# Few bits, so that random networks touch, nest and overlap.
V4_NETWORKS = st.builds(
    lambda number, prefix: ipaddress.ip_network(((10 << 24) + number, prefix), strict=False),
    st.integers(0, 255),
    st.integers(22, 32),
)
V6_NETWORKS = st.builds(
    lambda number, prefix: ipaddress.ip_network((f"2001:db8::{number:x}", prefix), strict=False),
    st.integers(0, 255),
    st.integers(118, 128),
)
EDGES = ["0.0.0.0", "9.255.255.255", "10.0.4.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
ADDRESSES = (
    st.integers(0, 511).map(lambda number: ipaddress.ip_address((10 << 24) + number))
    | st.integers(0, 511).map(lambda number: ipaddress.ip_address(f"2001:db8::{number:x}"))
    | st.sampled_from(EDGES).map(ipaddress.ip_address)
)


@given(st.lists(V4_NETWORKS | V6_NETWORKS, max_size=8), ADDRESSES)
def test_an_address_is_in_the_set_exactly_if_it_is_in_one_of_its_networks(
    networks: list[Network], address: Address
) -> None:
    assert (address in Networks(networks)) == any(address in network for network in networks)


@given(st.lists(V4_NETWORKS, max_size=8), st.integers(0, 511))
def test_a_mapped_address_is_the_ipv4_address_that_it_maps(networks: list[Network], number: int) -> None:
    plain = ipaddress.IPv4Address((10 << 24) + number)
    mapped = ipaddress.IPv6Address(f"::ffff:{plain}")
    assert (mapped in Networks(networks)) == (plain in Networks(networks))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
        ("::1", "::1", "127.0.0.1"),
        # Written mapped, as a dual-stack host shows them: the IPv4 network is meant.
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.0"),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4"),
        ("::ffff:0:0/96", "203.0.113.9", "2001:db8::1"),
    ],
)
def test_a_network_holds_what_it_says(text: str, inside: str, outside: str) -> None:
    networks = Networks([parse_network(text)])
    assert ipaddress.ip_address(inside) in networks
    assert ipaddress.ip_address(outside) not in networks


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "010.0.0.1", "host", "10.0.0.0/-1", "1"])
def test_a_network_that_is_none_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is not a network; write it as "):
        parse_network(text)


def test_an_empty_set_is_false_and_holds_nothing() -> None:
    assert not Networks()
    assert ipaddress.ip_address("10.0.0.1") not in Networks()
    assert Networks([parse_network("10.0.0.0/8")])


def test_sets_compare_by_what_was_written_so_that_a_reload_sees_no_change() -> None:
    first, second = (Networks([parse_network("10.0.0.0/8"), parse_network("::1")]) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != Networks([parse_network("10.0.0.0/8")])
    assert first != "10.0.0.0/8, ::1/128"
    assert repr(first) == "Networks(10.0.0.0/8, ::1/128)"
