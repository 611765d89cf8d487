"""ClientHellos: real ones, made by OpenSSL, in every cut; and those that no client should send."""

from __future__ import annotations

import itertools
import ssl
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.codec import client_hello
from tcpgate.codec.client_hello import MAX_HELLO, ClientHello, NotTls, is_grease, parse
from tcpgate.codec.partial import NeedMore
from tcpgate.errors import ClientError, Reason

TLS12, TLS13 = 0x0303, 0x0304


@cache
def openssl_hello(name: str | None = "a.example", alpn: tuple[str, ...] = (), newest: str = "") -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if newest == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(came, out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def vector(size: int, value: bytes) -> bytes:
    return len(value).to_bytes(size, "big") + value


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, value)


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes((kind,)) + vector(2, name) for name in names)))


def alpn(*protocols: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, protocol) for protocol in protocols)))


def message(*extensions: bytes, suites: bytes = b"\x13\x01", compression: bytes = b"\0", session: bytes = b"") -> bytes:
    """A ClientHello without its record."""
    body = b"".join((b"\x03\x03", bytes(32), vector(1, session), vector(2, suites), vector(1, compression)))
    if extensions:
        body += vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


def records(data: bytes, *sizes: int) -> bytes:
    """`data` in records of these sizes, the rest in one more."""
    parts, at = [], 0
    for size in (*sizes, len(data)):
        if data[at : at + size]:
            parts.append(b"\x16\x03\x01" + vector(2, data[at : at + size]))
        at += size
    return b"".join(parts)


def read(data: bytes) -> ClientHello:
    found = parse(data)
    assert isinstance(found, ClientHello)
    return found


# -- what clients send ----------------------------------------------------------------------------------------------


def test_openssls_hello_tells_name_protocols_and_versions() -> None:
    data = openssl_hello("A.Example", ("h2", "http/1.1"))
    found = read(data + b"early data, or anything")
    assert (found.server_name, found.alpn, found.size) == ("a.example", ("h2", "http/1.1"), len(data))
    assert TLS13 in found.versions
    assert not found.has_ech


def test_a_hello_may_name_nobody_and_offer_nothing() -> None:
    found = read(openssl_hello(None, newest="1.2"))
    assert (found.server_name, found.alpn, found.versions) == ("", (), (TLS12,))
    assert read(records(message())) == ClientHello(versions=(TLS12,), size=len(records(message())))


def test_one_message_over_several_records_is_one_hello() -> None:
    whole = openssl_hello("a.example", ("h2",))[5:]
    for sizes in ([1], [3], [4], [1, 1, 1, 1, 1], [len(whole) - 1], [10] * 20):
        cut = records(whole, *sizes)
        found = read(cut)
        assert (found.server_name, found.alpn, found.size) == ("a.example", ("h2",), len(cut))


def test_grease_is_left_out_wherever_it_stands() -> None:
    versions = extension(43, vector(1, b"\x0a\x0a\x03\x04\x03\x03"))
    data = records(
        message(extension(0x1A1A, b""), sni(b"a.example"), alpn(b"\xaa\xaa", b"h2"), versions, extension(0xFAFA, b"\0"))
    )
    found = read(data)
    assert (found.server_name, found.alpn, found.versions) == ("a.example", ("h2",), (TLS13, TLS12))
    assert is_grease(0x0A0A)
    assert not is_grease(0x0A1A)
    assert not is_grease(TLS13)


def test_the_outer_name_of_an_encrypted_hello_is_the_name() -> None:
    found = read(records(message(sni(b"public.example"), extension(0xFE0D, bytes(80)))))
    assert (found.server_name, found.has_ech) == ("public.example", True)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"WWW.Example.COM", "www.example.com"),
        (b"www.example.com.", "www.example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"under_score.example", "under_score.example"),
        (b"localhost", "localhost"),
        (b"192.0.2.1", "192.0.2.1"),
        (b".".join([b"a" * 63] * 3 + [b"a" * 61]), ".".join(["a" * 63] * 3 + ["a" * 61])),
    ],
)
def test_a_name_is_lower_case_and_has_no_dot_at_its_end(raw: bytes, name: str) -> None:
    assert read(records(message(sni(raw)))).server_name == name


def test_names_of_other_kinds_are_passed_over() -> None:
    mixed = extension(0, vector(2, b"\x07" + vector(2, b"x") + b"\0" + vector(2, b"a.example")))
    assert read(records(message(mixed))).server_name == "a.example"
    assert read(records(message(sni(b"what", kind=9)))).server_name == ""


# -- what none should send ------------------------------------------------------------------------------------------

BAD = {
    "two host names": message(sni(b"a.example", b"b.example")),
    "the same name twice": message(sni(b"a.example", b"a.example")),
    "the extension twice": message(sni(b"a.example"), sni(b"a.example")),
    "an unknown extension twice": message(extension(99, b""), extension(99, b"")),
    "no name in the list": message(extension(0, vector(2, b""))),
    "an empty extension": message(extension(0, b"")),
    "an empty name": message(sni(b"")),
    "a list that is too long": message(extension(0, vector(2, b"\0" + vector(2, b"a")) + b"\0")),
    "a list that is cut short": message(extension(0, b"\0\x09\0\0\x01a")),
    "no protocol in the list": message(alpn()),
    "an empty protocol": message(alpn(b"h2", b"")),
    "no version": message(extension(43, b"\0")),
    "half a version": message(extension(43, b"\x03\x03\x04\x03")),
    "no cipher suite": message(suites=b""),
    "half a cipher suite": message(suites=b"\x13\x01\x13"),
    "no compression": message(compression=b""),
    "a long session id": message(session=bytes(33)),
    "more than it says": message(sni(b"a.example"))[:1] + vector(3, message(sni(b"a.example"))[4:] + b"!"),
    "extensions cut short": message(sni(b"a.example"))[:1] + vector(3, message(sni(b"a.example"))[4:-1]),
    "nothing": b"\x01\0\0\0",
    "another message": b"\x02" + message()[1:],
    "a hello over the bound": b"\x01\x01\x00\x01" + bytes(100),
}


@pytest.mark.parametrize("what", BAD)
def test_a_malformed_hello_is_refused(what: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse(records(BAD[what]))
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    "name",
    [
        *(b"a..b", b".a", b".", b"a b", b"a\0b", b"a/b", b"a:443", b"[::1]", b"::1", b"*.a.example", b"a\n", b"a.."),
        *(b"b\xc3\xbccher.example", b"a" * 64, b".".join([b"a" * 63] * 4), b"%61.example", b"a@b"),
    ],
)
def test_a_name_that_is_no_host_name_is_refused(name: bytes) -> None:
    with pytest.raises(ClientError):
        parse(records(message(sni(name))))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # a long one
        records(message(sni(b"a.example")), 8)[:13] + b"\x15\x03\x03\x00\x02\x02\x28",  # an alert in between
        records(message(sni(b"a.example")), 8)[:13] + b"\x16\x02\x00\x00\x02ab",
        records(message(extension(21, bytes(1000))), *[1] * 300),  # in more pieces than anyone needs
        records(message(extension(90, bytes(0xFF00)), suites=b"\x13\x01" * 500), *[1 << 14] * 5),
    ],
)
def test_records_that_carry_no_hello_are_refused(data: bytes) -> None:
    with pytest.raises(ClientError):
        parse(data)


def test_a_hello_is_as_long_as_the_bound_and_no_longer() -> None:
    assert read(records(message(extension(21, bytes(60_000))), *[1 << 14] * 4)).size < MAX_HELLO
    padded = records(message(extension(21, bytes(300))))
    assert parse(padded, len(padded)) == read(padded)
    with pytest.raises(ClientError):
        parse(padded, len(padded) - 1)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x00\x02\x00\x15", b"\x16\x02\x00", b"\x15\x03\x01", b"\0", b"\x16G"],
)
def test_what_is_no_tls_is_told_as_such(data: bytes) -> None:
    assert isinstance(parse(data), NotTls)


def test_an_alert_is_a_record_that_openssl_understands() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(came, out, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    came.write(client_hello.alert(client_hello.UNRECOGNIZED_NAME))
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        tls.do_handshake()


# -- any bytes ------------------------------------------------------------------------------------------------------

HELLOS = st.sampled_from(
    [
        openssl_hello("a.example", ("h2", "http/1.1")),
        openssl_hello(None),
        records(openssl_hello("a.example", ("h2",))[5:], 1, 2, 3, 100),
        records(message(sni(b"a.example"), alpn(b"h2")), 7),
    ]
)


def verdict(data: bytes) -> object:
    try:
        found = parse(data)
    except ClientError:
        return "refused"
    if isinstance(found, NeedMore):
        assert found.size > len(data)
        return "more"
    return found


@given(whole=HELLOS)
@settings(max_examples=10)
def test_each_part_of_a_hello_asks_for_more_and_never_for_too_much(whole: bytes) -> None:
    for end in range(len(whole)):
        wanted = parse(whole[:end])
        assert isinstance(wanted, NeedMore)
        assert end < wanted.size <= len(whole)
    assert isinstance(parse(whole), ClientHello)


@given(whole=HELLOS, changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4))
def test_changed_bytes_give_a_verdict_that_every_prefix_shares(whole: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(whole)
    for at, byte in changes:
        data[at % len(data)] = byte
    said = [verdict(bytes(data[:end])) for end in range(0, len(data) + 1, 7)] + [verdict(bytes(data))]
    decided = list(itertools.dropwhile(lambda one: one == "more", said))
    assert "more" not in decided
    assert len(set(decided)) <= 1


@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c"])
)
def test_any_bytes_give_a_verdict(data: bytes, start: bytes) -> None:
    verdict(start + data)
