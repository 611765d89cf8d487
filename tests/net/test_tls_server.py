"""TlsServer with real handshakes: who gets which certificate, who is refused and how, what is known afterwards."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tcpgate.codec.client_hello import alert
from tcpgate.codec.tls_facts import TlsFacts
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_server import Pair, Rules, ServerTls, TlsServer, facts
from tcpgate.net.tls_socket import TlsSocket
from tests.net.loopback import Loopback
from tests.net.tls_rig import as_tls, authority, begin, client_context, connect, leaf, receive, shake, wait

OLD = ssl.TLSVersion.TLSv1_2
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@attrs.frozen
class Asks:
    """A hello, as far as it is asked."""

    server_name: str = ""
    alpn: tuple[str, ...] = ()


def pem(cert: trustme.LeafCert) -> tuple[bytes, bytes]:
    return b"".join(blob.bytes() for blob in cert.cert_chain_pems), cert.private_key_pem.bytes()


def pair(*names: str, shown_for: tuple[str, ...] = (), label: str = "") -> Pair:
    chain, key = pem(leaf(*names))
    return Pair(names=shown_for, chain=chain, key=key, label=label)


def names_shown(tls: TlsSocket) -> set[str]:
    shown: Mapping[str, Any] | None = tls.getpeercert()
    assert shown
    return {value for _, value in shown["subjectAltName"]}


def lenient() -> ssl.SSLContext:
    """A client that looks at certificates, but for whom they are it does not care."""
    context = client_context()
    context.check_hostname = False
    return context


# -- which certificate ----------------------------------------------------------------------------------------------


def test_exact_comes_before_wildcard_and_wildcard_before_the_first(loopback: Loopback) -> None:
    server = TlsServer(
        ServerTls(pairs=(pair("first.example"), pair("*.shop.example"), pair("api.shop.example"), pair("127.0.0.1")))
    )
    for asked, shown in (
        ("first.example", "first.example"),
        ("api.shop.example", "api.shop.example"),
        ("www.shop.example", "*.shop.example"),
        ("a.b.shop.example", "first.example"),  # a wildcard is one label
        ("shop.example", "first.example"),
        ("unknown.example", "first.example"),
    ):
        _, client = connect(loopback, server, lenient(), asked)
        assert names_shown(client) == {shown}, asked
    assert server.choose(Asks("127.0.0.1")) is not server.choose(Asks(""))
    assert server.choose(Asks("")) is server.choose(Asks("first.example"))


def test_names_of_the_config_stand_instead_of_those_inside(loopback: Loopback) -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"), pair("b.example", shown_for=("Other.Example.",)))))
    assert set(server.names) == {"other.example", "a.example"}
    _, client = connect(loopback, server, lenient(), "other.example")
    assert names_shown(client) == {"b.example"}
    _, client = connect(loopback, server, lenient(), "b.example")
    assert names_shown(client) == {"a.example"}


def test_two_keys_of_other_kinds_for_the_same_names_are_both_offered(loopback: Loopback) -> None:
    rsa = authority().issue_cert("two.example", key_type=trustme.KeyType.RSA)
    chain, key = pem(rsa)
    server = TlsServer(ServerTls(pairs=(pair("two.example"), Pair(chain=chain, key=key))))
    for ciphers, kind in (("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA"), ("ECDHE-RSA-AES128-GCM-SHA256", "RSA")):
        context = client_context(OLD)
        context.set_ciphers(ciphers)
        tls, _ = connect(loopback, server, context, "two.example")
        assert kind in facts(tls).cipher


def test_strict_names_refuse_who_asks_for_another_and_who_asks_for_none() -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"), pair("*.b.example")), strict_sni=True))
    for asked, good in (("a.example", True), ("x.b.example", True), ("c.example", False), ("", False)):
        assert (server.choose(Asks(asked)) is not None) is good
        refusal = server.refusal(Asks(asked))
        assert (refusal is None) is good
        assert refusal is None or refusal.alert == 112


def test_the_alert_for_an_unknown_name_is_what_a_client_understands(loopback: Loopback) -> None:
    here, there = loopback.pair()
    client = as_tls(there, client_context(), "unknown.example")
    loopback.own(client)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), strict_sni=True))
    refusal = server.refusal(Asks("unknown.example"))
    assert refusal is not None
    here.send(alert(refusal.alert))
    assert wait(client)
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        client.do_handshake()


# -- what is asked of clients ---------------------------------------------------------------------------------------


def known_client(context: ssl.SSLContext, ca: trustme.CA | None = None) -> trustme.LeafCert:
    cert = (ca or authority()).issue_cert("alice@example.org", "alice.example", common_name="alice, ops")
    cert.configure_cert(context)
    return cert


def trusted(ca: trustme.CA | None = None) -> bytes:
    return (ca or authority()).cert_pem.bytes()


@VERSIONS
def test_a_required_certificate_is_asked_for_judged_and_told(loopback: Loopback, version: ssl.TLSVersion) -> None:
    rules = Rules(client_auth="required", client_ca=trusted())
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=rules))
    context = client_context(version)
    cert = known_client(context)

    tls, _ = connect(loopback, server, context, "a.example")

    known = facts(tls).client
    assert known is not None
    raw = x509.load_pem_x509_certificate(cert.cert_chain_pems[0].bytes())
    assert known.der == raw.public_bytes(serialization.Encoding.DER)
    assert known.sha256 == raw.fingerprint(hashes.SHA256()).hex()
    assert known.subject == raw.subject.rfc4514_string()
    assert known.issuer == raw.issuer.rfc4514_string()
    assert int(known.serial, 16) == raw.serial_number
    assert known.not_after == raw.not_valid_after_utc.timestamp()
    assert set(known.sans) == {"email:alice@example.org", "DNS:alice.example"}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", ["none", "a stranger's"])
def test_who_shows_no_certificate_or_a_strangers_gets_an_alert(
    loopback: Loopback, version: ssl.TLSVersion, shows: str
) -> None:
    rules = Rules(client_auth="required", client_ca=trusted())
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=rules))
    context = client_context(version)
    if shows != "none":
        known_client(context, trustme.CA())

    here, client = begin(loopback, context, "a.example")
    tls = server.wrap(here, Asks("a.example"))
    loopback.own(tls)
    with pytest.raises(ssl.SSLError, match=r"PEER_DID_NOT_RETURN|CERTIFICATE_VERIFY_FAILED"):
        shake(tls, client)

    with pytest.raises((ssl.SSLError, OSError), match=r"(?i)alert") as caught:  # noqa: PT012 - by version
        shake(client)
        receive(client)
    said = str(caught.value).lower().replace("_", " ")
    assert any(words in said for words in ("unknown ca", "certificate required", "handshake failure"))


def test_an_optional_certificate_may_be_missing_but_not_wrong(loopback: Loopback) -> None:
    rules = Rules(client_auth="optional", client_ca=trusted())
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=rules))
    tls, _ = connect(loopback, server, client_context(), "a.example")
    assert facts(tls).client is None

    context = client_context()
    known_client(context, trustme.CA())
    with pytest.raises(ssl.SSLError):
        connect(loopback, server, context, "a.example")


def test_a_host_has_its_own_rules_and_the_others_keep_theirs(loopback: Loopback) -> None:
    strict = Rules(client_auth="required", client_ca=trusted(), min_version="1.3")
    hosts = {"admin.example": strict, "*.in.example": attrs.evolve(strict, min_version="1.2")}
    server = TlsServer(ServerTls(pairs=(pair("www.example"), pair("admin.example")), hosts=hosts))

    connect(loopback, server, client_context(OLD), "www.example")
    for name in ("admin.example", "x.in.example"):
        with pytest.raises(ssl.SSLError):
            connect(loopback, server, lenient(), name)
    context = lenient()
    known_client(context)
    tls, _ = connect(loopback, server, context, "admin.example")
    assert facts(tls).client is not None
    tls, _ = connect(loopback, server, context, "x.in.example")
    assert facts(tls).client is not None
    context = client_context(OLD)
    known_client(context)
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL|VERSION"):
        connect(loopback, server, context, "admin.example")


def crl(ca: trustme.CA, *revoked: trustme.LeafCert) -> bytes:
    """The authority's list of what it has revoked."""
    key = ca._private_key
    now = datetime.datetime.now(datetime.UTC)
    raw = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(raw.subject)
        .last_update(now - datetime.timedelta(days=1))
        .next_update(now + datetime.timedelta(days=1))
    )
    for cert in revoked:
        number = x509.load_pem_x509_certificate(cert.cert_chain_pems[0].bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_revoked_certificate_is_refused_and_another_one_is_not(loopback: Loopback) -> None:
    good, bad = client_context(), client_context()
    known_client(good)
    rules = Rules(client_auth="required", client_ca=trusted(), client_crl=crl(authority(), known_client(bad)))
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=rules))

    tls, _ = connect(loopback, server, good, "a.example")
    assert facts(tls).client is not None
    with pytest.raises(ssl.SSLError, match="certificate revoked"):
        connect(loopback, server, bad, "a.example")


def test_an_authority_without_a_list_counts_no_more_once_there_are_lists(loopback: Loopback) -> None:
    other = trustme.CA()
    rules = Rules(client_auth="required", client_ca=trusted() + trusted(other), client_crl=crl(other))
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=rules))
    context = client_context()
    known_client(context)
    with pytest.raises(ssl.SSLError):
        connect(loopback, server, context, "a.example")
    context = client_context()
    known_client(context, other)
    connect(loopback, server, context, "a.example")


# -- ALPN, versions, ciphers ----------------------------------------------------------------------------------------


def test_the_servers_order_of_protocols_decides_and_none_in_common_is_refused(loopback: Loopback) -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"),), rules=Rules(alpn=("h2", "http/1.1"))))
    context = client_context()
    context.set_alpn_protocols(["http/1.1", "h2"])
    tls, _ = connect(loopback, server, context, "a.example")
    assert facts(tls).alpn == "h2"
    tls, _ = connect(loopback, server, client_context(), "a.example")
    assert facts(tls).alpn == ""

    refusal = server.refusal(Asks("a.example", ("smtp",)))
    assert refusal is not None
    assert refusal.alert == 120
    assert server.choose(Asks("a.example", ("smtp",))) is None
    with_none = TlsServer(ServerTls(pairs=(pair("a.example"),)))
    assert with_none.refusal(Asks("a.example", ("smtp",))) is None


def test_what_is_agreed_on_is_told(loopback: Loopback) -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"),)))
    tls, client = connect(loopback, server, client_context(ssl.TLSVersion.TLSv1_3), "a.example")
    assert facts(tls) == TlsFacts(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384", server_name="a.example")
    assert facts(tls).text == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert facts(client).server_name == "a.example"
    tls, _ = connect(loopback, server, client_context(OLD), "a.example")
    assert facts(tls).version == "TLSv1.2"
    assert "GCM" in facts(tls).cipher


def test_ciphers_without_forward_secrecy_or_authentication_of_the_data_are_not_spoken(loopback: Loopback) -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"),)))
    for weak in ("ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-SHA"):
        context = client_context(OLD)
        context.set_ciphers(weak)
        with pytest.raises(ssl.SSLError, match=r"NO_SHARED_CIPHER|HANDSHAKE_FAILURE"):
            connect(loopback, server, context, "a.example")
    listed = TlsServer(ServerTls(pairs=(pair("a.example"),), ciphers="ECDHE-ECDSA-CHACHA20-POLY1305"))
    tls, _ = connect(loopback, listed, client_context(OLD), "a.example")
    assert facts(tls).cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"


# -- what is wrong --------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_named_when_it_is_built() -> None:
    good = pair("a.example")
    other = pair("b.example")
    encrypted = x509_encrypted(good.key)
    for spec, words in (
        (ServerTls(pairs=()), "no certificate"),
        (ServerTls(pairs=(attrs.evolve(good, key=other.key, label="a.crt"),)), r"a\.crt: key values mismatch"),
        (ServerTls(pairs=(good, attrs.evolve(other, chain=b"nothing", label="b.crt"))), r"b\.crt"),
        (ServerTls(pairs=(attrs.evolve(good, key=encrypted, label="a.crt"),)), r"a\.crt: "),
        (ServerTls(pairs=(good,), ciphers="NONSENSE"), "NONSENSE"),
        (ServerTls(pairs=(good,), rules=Rules(client_auth="required")), "needs client_ca"),
        (ServerTls(pairs=(good,), rules=Rules(client_auth="required", client_ca=b"x")), "client_ca: "),
        (
            ServerTls(pairs=(good,), hosts={"x.example": Rules(client_auth="optional", client_ca=b"x")}),
            r'hosts\."x\.example": client_ca',
        ),
        (
            ServerTls(pairs=(good,), rules=Rules(client_auth="required", client_ca=trusted(), client_crl=trusted())),
            "client_crl: there is no list in it",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            TlsServer(spec)


def x509_encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_no_key_shows_in_a_repr() -> None:
    spec = ServerTls(pairs=(pair("a.example"),), tickets=TicketKeys())
    assert "PRIVATE" not in repr(spec)


def test_who_has_gone_before_the_handshake_is_not_wrapped(loopback: Loopback) -> None:
    server = TlsServer(ServerTls(pairs=(pair("a.example"),)))
    here, there = loopback.pair()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    there.close()
    here.setblocking(False)
    wait(here)
    with pytest.raises(ConnectionResetError):
        server.wrap(here, Asks("a.example"))
    assert here.fileno() == -1
