"""Certificates of clients that an authority has signed, and that prove nothing all the same."""

from __future__ import annotations

import datetime
import ssl
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tcpgate.net.tls_client import load_pair
from tcpgate.net.tls_server import Pair, Rules, ServerTls, TlsServer, facts
from tcpgate.net.tls_socket import TlsSocket
from tests import pki
from tests.net.loopback import Loopback
from tests.net.tls_rig import begin, client_context, leaf, shake

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
VALID: dict[str, Any] = {"begins": NOW - DAY, "ends": NOW + DAY}
CA = pki.authority("Clients", **VALID)
LOWER = pki.make(common_name="Lower", authority=True, issuer=CA, **VALID)
LEAF = pki.make("friend.example", issuer=CA, **VALID)
SERVERS_ONLY, CLIENTS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def for_use(*uses: x509.ObjectIdentifier) -> pki.Leaf:
    """A certificate of the authority's for these uses only."""
    key = pki.ec_key()
    builder = x509.CertificateBuilder(
        subject_name=x509.Name([]),
        issuer_name=CA.cert.subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=VALID["begins"],
        not_valid_after=VALID["ends"],
    ).add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    names = x509.SubjectAlternativeName([x509.DNSName("friend.example")])
    return pki.Leaf(builder.add_extension(names, critical=True).sign(CA.key, hashes.SHA256()), key)


def shows(loopback: Loopback, chain: str, key: str, rules: Rules) -> TlsSocket:
    """The server's end of a connection whose client shows this."""
    cert = leaf("a.example")
    pair = Pair(chain=b"".join(blob.bytes() for blob in cert.cert_chain_pems), key=cert.private_key_pem.bytes())
    context = client_context()
    load_pair(context, f"{chain}\n{key}".encode())
    here, client = begin(loopback, context, "a.example")
    server = TlsServer(ServerTls(pairs=(pair,), rules=rules))
    tls = server.wrap(here, Hello())
    loopback.own(tls)
    shake(tls, client)
    return tls


class Hello:
    """What such a client asks for."""

    server_name = "a.example"
    alpn: tuple[str, ...] = ()


def by(authority: pki.Leaf) -> Rules:
    return Rules(client_auth="required", client_ca=authority.chain.encode())


@pytest.mark.parametrize(
    "made",
    [LEAF, for_use(CLIENTS), for_use(CLIENTS, SERVERS_ONLY)],
    ids=["any use", "clients", "clients and servers"],
)
def test_one_that_is_for_clients_counts(made: pki.Leaf, loopback: Loopback) -> None:
    known = facts(shows(loopback, made.chain, made.private, by(CA))).client
    assert known is not None
    assert known.sans == ("DNS:friend.example",)


@pytest.mark.parametrize(
    ("made", "behind"),
    [
        (for_use(SERVERS_ONLY), ""),
        (pki.make("friend.example", issuer=CA, begins=NOW - 9 * DAY, ends=NOW - DAY), ""),
        (pki.make("friend.example", issuer=CA, begins=NOW + DAY, ends=NOW + 9 * DAY), ""),
        (pki.make("friend.example", issuer=LEAF, **VALID), LEAF.chain),  # signed by what is no authority
        (
            pki.make("friend.example", issuer=pki.authority("Clients", **VALID), **VALID),
            "",
        ),  # of an authority that only has the name
        (pki.make("friend.example", **VALID), ""),  # by itself
    ],
    ids=["for servers", "over", "not yet", "of a friend's", "of a namesake's", "self-signed"],
)
@pytest.mark.parametrize("asks", ["required", "optional"])
def test_others_are_refused_even_where_none_need_be_shown(
    asks: str, made: pki.Leaf, behind: str, loopback: Loopback
) -> None:
    rules = Rules(client_auth="required" if asks == "required" else "optional", client_ca=CA.chain.encode())
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        shows(loopback, f"{made.chain}\n{behind}", made.private, rules)


def test_an_intermediate_authority_that_is_named_means_its_own_only(loopback: Loopback) -> None:
    below = pki.make("friend.example", issuer=LOWER, **VALID)
    assert facts(shows(loopback, below.chain, below.private, by(LOWER))).client is not None
    assert facts(shows(loopback, f"{below.chain}\n{LOWER.chain}", below.private, by(CA))).client is not None
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
        shows(loopback, f"{LEAF.chain}\n{CA.chain}", LEAF.private, by(LOWER))
