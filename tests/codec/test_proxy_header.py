"""PROXY headers against the specification: every form it defines, every one it forbids, and any cut of either."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec import proxy_header as ph
from tcpgate.codec.crc32c import crc32c
from tcpgate.codec.partial import NeedMore
from tcpgate.codec.proxy_header import NOT_PROXY, SIGNATURE, NotProxy, ProxyHeader, parse, render
from tcpgate.codec.tls_facts import ClientCert, TlsFacts
from tcpgate.errors import ClientError, Reason

V4 = bytes((192, 0, 2, 1, 198, 51, 100, 2)) + b"\x30\x39\x01\xbb"
V6 = bytes(15) + b"\x01" + bytes.fromhex("20010db8") + bytes(11) + b"\x02" + b"\x00\x00\xff\xff"
UNIX = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def v2(block: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + block


def summed(block: bytes, family: int = 0x11, behind: bytes = b"") -> bytes:
    """With a right checksum between `block` and `behind`."""
    whole = v2(block + tlv(ph.CRC32C, bytes(4)) + behind, family)
    at = 16 + len(block) + 3
    return whole[:at] + crc32c(whole).to_bytes(4, "big") + whole[at + 4 :]


def header(data: bytes) -> ProxyHeader:
    found = parse(data)
    assert isinstance(found, ProxyHeader)
    return found


LINES = {
    b"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n": (("192.0.2.1", 12345), ("198.51.100.2", 443)),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": (("255.255.255.255", 65535),) * 2,
    b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n": (("0.0.0.0", 0),) * 2,
    b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n": (("2001:db8::1", 1), ("::1", 65535)),
    b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 :: 1 2\r\n": (("2001:db8::1", 1), ("::", 2)),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n": (("::ffff:192.0.2.1", 1), ("::1", 2)),
    b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n": (
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    )
    * 2,
}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_line_names_both_ends(line: bytes) -> None:
    found = header(line + b"GET / HTTP/1.1\r\n")
    assert (found.source, found.destination) == LINES[line]
    assert (found.local, found.size, found.tlvs) == (False, len(line), ())


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN \n\r \xff\r\n",
        b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
    ],
    ids=str,
)
def test_unknown_leaves_the_real_ends_whatever_follows_in_its_line(line: bytes) -> None:
    found = header(line)
    assert (found.local, found.source, found.size) == (True, None, len(line))
    assert len(line) <= 107


BAD_LINES = [
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY unknown\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
    b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1\t2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 0x1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1.0 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 a b\r\n",
    b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1/8 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 host 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 ::1 ::1 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 ::1 1 2\r\n",
    b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP6 ::1 2.2.2.2 1 2\r\n",
    b"PROXY TCP6 ::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP6 [::1] ::1 1 2\r\n",
    b"PROXY TCP6 :::1 ::1 1 2\r\n",
    b"PROXY TCP6 1::2::3 ::1 1 2\r\n",
    b"PROXY TCP6 g::1 ::1 1 2\r\n",
    b"PROXY TCP6 12345::1 ::1 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\0\r\n",
    b"PROXY TCP4 \xd9\xa1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 \xd9\xa1\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"PROXY TCP4 " + b"1" * 97,
]


@pytest.mark.parametrize("line", BAD_LINES, ids=str)
def test_a_malformed_line_is_refused(line: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        parse(line)
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("block", "family", "source", "destination"),
    [
        (V4, 0x11, ("192.0.2.1", 12345), ("198.51.100.2", 443)),
        (V6, 0x21, ("::1", 0), ("2001:db8::2", 65535)),
        (UNIX, 0x31, "/run/client", "/run/server"),
        (b"\0abstract".ljust(108, b"\0") + bytes(108), 0x31, "@abstract", ""),
        (b"x" * 108 + b"y" * 108, 0x31, "x" * 108, "y" * 108),
        (bytes(10) + b"\xff\xff\x01\x02\x03\x04" + V6[16:], 0x21, ("::ffff:1.2.3.4", 0), ("2001:db8::2", 65535)),
    ],
)
def test_a_binary_header_names_both_ends(block: bytes, family: int, source: ph.End, destination: ph.End) -> None:
    found = header(v2(block, family) + b"hello")
    assert (found.source, found.destination, found.size) == (source, destination, 16 + len(block))
    assert not found.local


@pytest.mark.parametrize(
    "data",
    [
        v2(b"", 0x00, 0x20),
        v2(V4, 0x11, 0x20),
        v2(b"\x04\xff\xff", 0x00, 0x20),  # not even its TLVs are looked at
        v2(b"junk", 0x99, 0x20),
        v2(b"", 0x00),
        v2(b"whatever", 0x00),
        v2(V4, 0x10),
        v2(b"", 0x01),
        v2(V4, 0x12),
        v2(V6, 0x22),
        v2(UNIX, 0x32),
        v2(bytes(0xFFFF), 0x00, 0x20),
    ],
    ids=lambda data: data[12:20].hex(),
)
def test_local_and_what_is_no_stream_leave_the_real_ends(data: bytes) -> None:
    found = header(data + b"behind")
    assert (found.local, found.source, found.destination, found.size) == (True, None, None, len(data))


@pytest.mark.parametrize(
    "data",
    [
        v2(V4, 0x11, 0x11),  # version
        v2(V4, 0x11, 0x31),
        v2(V4, 0x11, 0x01),
        v2(V4, 0x11, 0x22),  # command
        v2(V4, 0x11, 0x2F),
        v2(V4, 0x41),  # family
        v2(V4, 0xF1),
        v2(V4, 0x13),  # transport
        v2(V4, 0x1F),
        v2(V4[:-1]),  # too short for its addresses
        v2(b""),
        v2(V6[:-1], 0x21),
        v2(V4, 0x21),
        v2(UNIX[:-1], 0x31),
        v2(V4 + b"\x04"),  # TLVs that are cut short
        v2(V4 + b"\x04\x00"),
        v2(V4 + b"\x04\x00\x01"),
        v2(V4 + tlv(4, b"") + b"\xea\x00\x05abcd"),
        v2(V4 + tlv(ph.CRC32C, bytes(4))),
        v2(V4 + tlv(ph.CRC32C, b"abc")),
        v2(V4 + tlv(ph.CRC32C, b"")),
        summed(V4)[:-1] + bytes((summed(V4)[-1] ^ 1,)),
        v2(V4 + tlv(ph.UNIQUE_ID, bytes(129))),
        v2(V4 + tlv(ph.SSL, b"\x01\0\0\0")),
        v2(V4 + tlv(ph.SSL, b"\x01\0\0\0\0\x21\x00\x09TLSv1.3")),
    ],
    ids=lambda data: f"{data[12:16].hex()}-{data[-8:].hex()}",
)
def test_a_malformed_binary_header_is_refused(data: bytes) -> None:
    with pytest.raises(ClientError):
        parse(data + bytes(300))


def test_a_checksum_counts_with_its_own_place_zero_and_covers_all() -> None:
    good = summed(V4 + tlv(ph.AUTHORITY, b"a.example"), behind=tlv(0xE0, b"own"))
    assert header(good).tlvs == ((ph.AUTHORITY, b"a.example"), (0xE0, b"own"))
    marker = good.index(bytes((ph.CRC32C, 0, 4)))  # with another type it is no checksum any more
    for place in (place for place in range(16, len(good)) if place != marker):
        broken = good[:place] + bytes((good[place] ^ 0x80,)) + good[place + 1 :]
        with pytest.raises(ClientError):
            assert parse(broken) is None
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720 B.4's polynomial, the catalogue's check value


def test_tlvs_are_kept_in_order_and_padding_is_not() -> None:
    tlvs = [(ph.ALPN, b"h2"), (ph.UNIQUE_ID, bytes(128)), (ph.NETNS, b"blue"), (0xE5, b""), (ph.ALPN, b"again")]
    block = V4 + tlv(ph.NOOP, b"pad") + b"".join(tlv(*one) for one in tlvs) + tlv(ph.NOOP, b"")
    found = header(v2(block))
    assert found.tlvs == tuple(tlvs)
    assert (found.value(ph.ALPN), found.value(0xEA), found.ssl, found.authority) == (b"h2", None, None, "")


def test_the_ssl_tlv_tells_of_the_client() -> None:
    subs = tlv(ph.SSL_VERSION, b"TLSv1.3") + tlv(ph.SSL_CN, "Zoë".encode()) + tlv(ph.SSL_CIPHER, b"X")
    ssl = header(v2(V4 + tlv(ph.SSL, b"\x05\0\0\0\0" + subs))).ssl
    assert ssl is not None
    assert (ssl.version, ssl.common_name, ssl.cipher) == ("TLSv1.3", "Zoë", "X")
    assert (ssl.over_tls, ssl.has_certificate, ssl.verified) == (True, True, True)
    unverified = header(v2(V4 + tlv(ph.SSL, b"\x01\0\0\0\x01"))).ssl
    assert unverified is not None
    assert (unverified.has_certificate, unverified.verified) == (False, False)


@pytest.mark.parametrize(
    "data",
    [
        b"PROX\r\n",
        b"PRO /",
        b"proxy TCP4 ",
        b"GET / HTTP/1.1\r\n",
        b"\r\nGET",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"\x16\x03",
        b"\0",
    ],
)
def test_what_is_no_header_is_told_as_such(data: bytes) -> None:
    assert isinstance(parse(data), NotProxy)


WHOLE = [
    *LINES,
    b"PROXY UNKNOWN\r\n",
    summed(V4, behind=tlv(0xE0, b"x")),
    v2(V6, 0x21),
    v2(UNIX, 0x31),
    v2(b"", 0, 0x20),
]


@pytest.mark.parametrize("whole", WHOLE, ids=lambda data: data[:20].hex())
def test_each_part_of_a_header_asks_for_more_than_it_has(whole: bytes) -> None:
    for end in range(len(whole)):
        wanted = parse(whole[:end])
        assert isinstance(wanted, NeedMore)
        assert end < wanted.size <= len(whole)


@given(
    data=st.binary(max_size=60), start=st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"!"])
)
def test_whatever_comes_every_prefix_agrees_with_the_whole(data: bytes, start: bytes) -> None:
    whole = start + data
    said = [_verdict(whole[:end]) for end in range(len(whole) + 1)]
    decided = list(itertools.dropwhile(lambda one: one == "more", said))
    assert "more" not in decided
    assert len(set(decided)) <= 1


@given(whole=st.sampled_from(WHOLE), at=st.integers(0, 60), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_verdict_and_no_other_error(whole: bytes, at: int, byte: int) -> None:
    at %= len(whole)
    assert _verdict(whole[:at] + bytes((byte,)) + whole[at + 1 :])


def _verdict(data: bytes) -> object:
    try:
        found = parse(data)
    except ClientError:
        return "refused"
    return "more" if isinstance(found, NeedMore) else found


# -- writing --------------------------------------------------------------------------------------------------------

FACTS = TlsFacts(version="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256", alpn="h2", server_name="a.example")
CERT = ClientCert(subject="CN=alice,O=Example", sans=(), sha256="", serial="01", issuer="CN=ca", not_after=0.0, der=b"")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("source", "destination"),
    [(("192.0.2.1", 1), ("198.51.100.2", 65535)), (("2001:db8::1", 0), ("::1", 443))],
)
def test_what_is_written_is_read_back(version: str, source: ph.End, destination: ph.End) -> None:
    found = header(render("v1" if version == "v1" else "v2", source, destination))
    assert (found.source, found.destination, found.local) == (source, destination, False)


def test_families_that_differ_are_told_as_mapped_and_mapped_ones_as_what_they_are() -> None:
    v4, v6 = ("192.0.2.1", 5), ("2001:db8::1", 6)
    for version in ("v1", "v2"):
        mixed = header(render("v1" if version == "v1" else "v2", v4, v6))
        assert (mixed.source, mixed.destination) == (("::ffff:192.0.2.1", 5), v6)
    assert render("v1", ("::ffff:192.0.2.1", 5), v4) == b"PROXY TCP4 192.0.2.1 192.0.2.1 5 5\r\n"
    assert header(render("v2", ("fe80::1%eth0", 1), v6)).source == ("fe80::1", 1)


def test_unix_sockets_are_told_by_v2_only_and_what_is_not_known_as_unknown() -> None:
    assert render("v1", "/a", "/b") == render("v1", None, ("::1", 1)) == b"PROXY UNKNOWN\r\n"
    found = header(render("v2", "/a", "@b"))
    assert (found.source, found.destination) == ("/a", "@b")
    assert header(render("v2", None, ("::1", 1))).local


def test_v2_carries_the_clients_tls_its_name_and_a_checksum_that_holds() -> None:
    data = render("v2", ("::1", 1), ("::1", 2), tls=attrs.evolve(FACTS, client=CERT), authority="a.example", alpn="h2")
    found = header(data)
    assert (found.authority, found.value(ph.ALPN)) == ("a.example", b"h2")
    assert found.ssl is not None
    assert (found.ssl.version, found.ssl.cipher, found.ssl.common_name) == (FACTS.version, FACTS.cipher, "alice")
    assert found.ssl.verified
    nobody = header(render("v2", ("::1", 1), ("::1", 2), tls=FACTS)).ssl
    assert nobody is not None
    assert not nobody.verified
    with pytest.raises(ClientError):
        parse(data[:-1] + bytes((data[-1] ^ 1,)))


def test_not_proxy_is_one_object() -> None:
    assert parse(b"x") is NOT_PROXY
