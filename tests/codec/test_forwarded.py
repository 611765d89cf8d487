"""Who the client is, and what the next hop is told of it: trust by hops, from the right, and never further."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import NO_FIELDS, Fields, Limits, Pair
from tcpgate.codec.forwarded import (
    believes_proxy,
    client_address,
    forwarding_fields,
    is_trusted,
    parse_forwarded,
    parse_node,
    passed_through,
    request_id,
)
from tcpgate.codec.grammar import parse_request
from tcpgate.codec.hop import upstream_fields
from tcpgate.units import Address, Networks, parse_network
from tests.codec import messages

TRUSTED = Networks([parse_network("10.0.0.0/8"), parse_network("2001:db8:1::/48")])
PROXY = ipaddress.ip_address("10.0.0.1")
STRANGER = ipaddress.ip_address("203.0.113.9")
addresses = st.ip_addresses()


def xff(*values: bytes) -> Fields:
    return Fields([(b"X-Forwarded-For", value) for value in values])


def forwarded(*values: bytes) -> Fields:
    return Fields([(b"Forwarded", value) for value in values])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"192.0.2.1", "192.0.2.1"),
        (b"192.0.2.1:8080", "192.0.2.1"),
        (b"2001:DB8::1", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"[2001:db8::1]:8080", "2001:db8::1"),
        (b"[2001:db8::1]:_obf", "2001:db8::1"),
        (b"::ffff:192.0.2.1", "192.0.2.1"),
        (b"", None),
        (b"unknown", None),
        (b"_hidden", None),
        (b"192.0.2.256", None),
        (b"192.0.2.01", None),
        (b"192.0.2.1:", None),
        (b"192.0.2.1:123456", None),
        (b"192.0.2.1 ", None),
        (b"[192.0.2.1]", "192.0.2.1"),
        (b"[::1", None),
        (b"fe80::1%eth0", None),
        (b"a.test", None),
        (b"1" * 5000, None),
        (b"\xd9\xa1.0.0.1", None),
    ],
)
def test_a_node_is_an_address_or_nothing(text: bytes, address: str | None) -> None:
    assert parse_node(text) == (None if address is None else ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("peer", "fields", "client"),
    [
        (STRANGER, xff(b"192.0.2.1"), "203.0.113.9"),
        (PROXY, NO_FIELDS, "10.0.0.1"),
        (PROXY, xff(b"192.0.2.1"), "192.0.2.1"),
        (PROXY, xff(b"6.6.6.6, 192.0.2.1, 10.0.0.2"), "192.0.2.1"),
        (PROXY, xff(b"6.6.6.6", b"192.0.2.1", b"10.0.0.2"), "192.0.2.1"),
        (PROXY, xff(b"10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        (PROXY, xff(b"192.0.2.1, unknown, 10.0.0.2"), "10.0.0.2"),
        (PROXY, xff(b"192.0.2.1, ::::"), "10.0.0.1"),
        (PROXY, xff(b""), "10.0.0.1"),
        (PROXY, xff(b"192.0.2.1:5555"), "192.0.2.1"),
        (PROXY, xff(b"2001:db8:2::1, 2001:db8:1::1"), "2001:db8:2::1"),
        (PROXY, forwarded(b"for=192.0.2.1"), "192.0.2.1"),
        (PROXY, forwarded(b'For="[2001:db8:2::1]:80";proto=https, for=10.0.0.2'), "2001:db8:2::1"),
        (PROXY, forwarded(b"for=192.0.2.1, for=10.0.0.2;bad"), "10.0.0.1"),
        (PROXY, forwarded(b"for=192.0.2.1, proto=http"), "10.0.0.1"),
        (PROXY, forwarded(b"for=_hidden"), "10.0.0.1"),
        (PROXY, xff(b"192.0.2.1").plus(forwarded(b"for=6.6.6.6")), "192.0.2.1"),
        (ipaddress.ip_address("::ffff:10.0.0.1"), xff(b"192.0.2.1"), "192.0.2.1"),
        (ipaddress.ip_address("::ffff:203.0.113.9"), NO_FIELDS, "203.0.113.9"),
        (None, xff(b"192.0.2.1"), "192.0.2.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_trusted(
    peer: Address | None, fields: Fields, client: str
) -> None:
    assert client_address(peer, TRUSTED, fields) == ipaddress.ip_address(client)


def test_a_peer_on_a_unix_socket_speaks_for_others_only_where_somebody_may() -> None:
    assert is_trusted(None, TRUSTED)
    assert not is_trusted(None, Networks())
    assert client_address(None, Networks(), xff(b"192.0.2.1")) is None
    assert client_address(None, TRUSTED, NO_FIELDS) is None


@given(addresses, st.binary(max_size=80))
def test_a_stranger_can_say_what_it_likes(peer: Address, text: bytes) -> None:
    fields = xff(text).plus(forwarded(text))
    assert client_address(peer, Networks(), fields) in (peer, peer.ipv4_mapped if peer.version == 6 else peer)


@given(st.binary(max_size=80))
def test_no_text_surprises_the_walk(text: bytes) -> None:
    client_address(PROXY, TRUSTED, xff(text))
    client_address(PROXY, TRUSTED, forwarded(text))
    parse_forwarded(forwarded(text))


@pytest.mark.parametrize(
    ("element", "parameters"),
    [
        (b"for=a", {b"for": b"a"}),
        (b'FOR="a;b, \\"c\\"";proto=http', {b"for": b'a;b, "c"', b"proto": b"http"}),
        (b"for=a;;by=b;", {b"for": b"a", b"by": b"b"}),
        (b"for=a;for=b", None),
        (b"for", None),
        (b"for=", None),
        (b"for = a", None),
        (b'for="a', None),
        (b"for=[::1]", None),
        (b"=a", None),
    ],
)
def test_an_element_of_forwarded_is_well_formed_or_nothing(
    element: bytes, parameters: dict[bytes, bytes] | None
) -> None:
    assert parse_forwarded(forwarded(element)) == [parameters]


def told(
    fields: bytes = b"",
    *,
    peer: Address | None = STRANGER,
    trusted: bool = False,
    secure: bool = False,
    port: int | None = 80,
    line: bytes = b"GET / HTTP/1.1\r\nHost: A.test:8080\r\n",
) -> dict[bytes, bytes]:
    """What the next hop is told, by lower-case name."""
    head = parse_request(line + fields + b"\r\n", Limits())
    made = forwarding_fields(head, peer=peer, trusted=trusted, secure=secure, port=port, name=b"gate")
    assert len({name.lower() for name, _ in made}) == len(made), "a field is said twice"
    return {name.lower(): value for name, value in made}


def test_a_strangers_word_is_replaced() -> None:
    spoofed = (
        b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n"
        b"X-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\nVia: 1.1 other\r\n"
    )
    assert told(spoofed) == {
        b"x-forwarded-for": b"203.0.113.9",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"A.test:8080",
        b"x-forwarded-port": b"80",
        b"forwarded": b'for=203.0.113.9;host="A.test:8080";proto=http',
        b"via": b"1.1 other, 1.1 gate",
    }


def test_a_trusted_proxys_word_is_continued() -> None:
    said = (
        b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.test\r\n"
        b"X-Forwarded-Port: 443\r\nForwarded: for=192.0.2.1;proto=https\r\n"
    )
    found = told(said, peer=PROXY, trusted=True)
    assert found[b"x-forwarded-for"] == b"192.0.2.1, 10.0.0.1"
    assert found[b"x-forwarded-proto"] == b"https"
    assert found[b"x-forwarded-host"] == b"b.test"
    assert found[b"x-forwarded-port"] == b"443"
    assert found[b"forwarded"] == b'for=192.0.2.1;proto=https, for=10.0.0.1;host="A.test:8080";proto=http'


def test_where_a_trusted_proxy_said_it_one_way_the_other_way_says_the_same() -> None:
    found = told(b"X-Forwarded-For: 2001:db8::1, 192.0.2.1\r\n", peer=PROXY, trusted=True)
    assert found[b"forwarded"].startswith(b'for="[2001:db8::1]", for=192.0.2.1, for=10.0.0.1;')
    found = told(b'Forwarded: for="[2001:db8::1]:80", for=_x\r\n', peer=PROXY, trusted=True)
    assert found[b"x-forwarded-for"] == b"2001:db8::1, unknown, 10.0.0.1"


def test_a_trusted_proxys_nonsense_is_not_passed_on() -> None:
    said = b"X-Forwarded-Proto: ftp\r\nX-Forwarded-Host: a b\r\nX-Forwarded-Port: 1_0\r\nForwarded: for=1.1.1.1;bad\r\n"
    found = told(said, peer=PROXY, trusted=True)
    assert found[b"x-forwarded-proto"] == b"http"
    assert found[b"x-forwarded-host"] == b"A.test:8080"
    assert found[b"x-forwarded-port"] == b"80"
    assert found[b"forwarded"] == b'for=10.0.0.1;host="A.test:8080";proto=http'


def test_what_is_not_known_is_not_invented() -> None:
    found = told(peer=None, port=None, line=b"GET / HTTP/1.0\r\n", secure=True)
    assert found == {
        b"x-forwarded-for": b"unknown",
        b"x-forwarded-proto": b"https",
        b"forwarded": b"for=unknown;proto=https",
        b"via": b"1.0 gate",
    }


@given(addresses, st.booleans())
def test_what_we_write_of_a_peer_we_read_again(peer: Address, secure: bool) -> None:
    found = told(peer=peer, secure=secure)
    (element,) = parse_forwarded(forwarded(found[b"forwarded"]))
    assert element is not None
    same = {peer, peer.ipv4_mapped} if peer.version == 6 else {peer}
    assert parse_node(element[b"for"]) in same
    assert parse_node(found[b"x-forwarded-for"]) in same
    assert element[b"host"] == b"A.test:8080"
    assert element[b"proto"] == (b"https" if secure else b"http")


@given(addresses.filter(lambda address: address not in TRUSTED), st.lists(st.sampled_from([1, 2, 3]), max_size=4))
def test_the_last_of_a_chain_of_gateways_knows_the_client(client: Address, hops: list[int]) -> None:
    trail: list[Address] = [client, *(ipaddress.ip_address(f"10.0.0.{hop}") for hop in hops)]
    fields: list[Pair] = [(b"X-Forwarded-For", b"6.6.6.6"), (b"Forwarded", b"for=6.6.6.6")]
    for peer in trail:
        raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in fields) + b"\r\n"
        head = parse_request(raw, Limits())
        trusted = is_trusted(peer, TRUSTED)
        found = client_address(peer, TRUSTED, head.fields)
        made = forwarding_fields(head, peer=peer, trusted=trusted, secure=False, port=80, name=b"gate")
        fields = [pair for pair in upstream_fields(head, made, trusted=trusted) if pair[0] != b"Host"]
        assert found in (client, client.ipv4_mapped if client.version == 6 else client)


@pytest.mark.parametrize(
    ("name", "trusted", "kept_from_the_origin"),
    [
        (b"X-Forwarded-For", True, True),
        (b"Via", True, True),
        (b"X_Forwarded_For", True, True),
        (b"X-Real_IP", True, True),
        (b"X-Real-IP", True, False),
        (b"X-Real-IP", False, True),
        (b"X-Forwarded-Prefix", True, False),
        (b"X-Forwarded-Prefix", False, True),
        (b"X_Forwarded_Prefix", False, True),
        (b"X-Request-Id", False, True),
        (b"X-Request-Id", True, False),
        (b"X-Other", False, False),
        (b"My_Field", False, False),
    ],
)
def test_what_an_origin_would_believe_is_kept_from_it(name: bytes, trusted: bool, kept_from_the_origin: bool) -> None:
    assert believes_proxy(name, trusted=trusted) is kept_from_the_origin


def test_a_loop_is_known_by_our_name_in_via() -> None:
    assert passed_through(Fields([(b"Via", b"1.0 fred, 1.1 gate (v1), 1.1 x")]), b"gate")
    assert passed_through(Fields([(b"Via", b"HTTP/1.1\tgate")]), b"gate")
    assert not passed_through(Fields([(b"Via", b"1.1 gateway, gate, 1.1")]), b"gate")
    assert not passed_through(NO_FIELDS, b"gate")


def test_a_request_id_is_of_a_harmless_form_or_none() -> None:
    assert request_id(Fields([(b"X-Request-ID", b"a-1_2/3")])) == b"a-1_2/3"
    for value in (b"", b"a b", b'a"b', b"a\xff", b"a" * 129):
        assert request_id(Fields([(b"X-Request-Id", value)])) is None
    assert request_id(Fields([(b"X-Request-Id", b"a"), (b"X-Request-Id", b"b")])) is None
    assert request_id(NO_FIELDS) is None


@given(messages.fields)
def test_forwarding_fields_can_always_be_sent(pairs: list[Pair]) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in pairs) + b"\r\n"
    head = parse_request(raw, Limits())
    made = forwarding_fields(head, peer=PROXY, trusted=True, secure=True, port=443, name=b"gate")
    again = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in made) + b"\r\n"
    assert list(parse_request(again, Limits()).fields)[1:] == list(made)
