"""What PEM text holds, and whether OpenSSL would agree."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519
from hypothesis import strategies as st

from tcpgate.config import certificate
from tests import pki

# -- reading --------------------------------------------------------------------------------------------------------


def test_a_certificate_says_its_names_its_time_and_who_it_is() -> None:
    leaf = pki.make("A.example", "*.b.example", "10.0.0.1", "::1", common_name="ignored.example", days=9)
    (read,) = certificate.read_chain(leaf.chain)
    assert read.names == ("a.example", "*.b.example", "10.0.0.1", "::1")
    assert not read.common_name_only
    assert read.not_after - read.not_before == 10 * 86400
    assert read.fingerprint == leaf.cert.fingerprint(hashes.SHA256()).hex()
    assert read.self_signed
    assert not read.authority
    assert read.subject == "CN=ignored.example"
    assert read.title == "a.example"


def test_a_common_name_counts_only_where_there_is_no_other_name() -> None:
    (read,) = certificate.read_chain(pki.make(common_name="Old.Example").chain)
    assert (read.names, read.common_name_only) == (("old.example",), True)
    (person,) = certificate.read_chain(pki.make(common_name="Ann Other").chain)
    assert (person.names, person.common_name_only, person.title) == ((), False, "CN=Ann Other")


def test_what_another_signed_is_not_self_signed() -> None:
    ca = pki.authority()
    read = certificate.read_chain(pki.cert_pem(pki.make("a", issuer=ca).cert, ca.cert))
    assert [one.self_signed for one in read] == [False, True]
    assert [one.authority for one in read] == [False, True]


def test_text_around_the_blocks_is_left_out_and_so_is_what_else_the_file_holds() -> None:
    leaf = pki.make("a")
    both = f"subject=Ä\n{leaf.private}notes\n{leaf.chain}".replace("\n", "\r\n")
    assert certificate.certificate_blocks(both) == leaf.chain
    assert certificate.key_block(both) == leaf.private
    assert "PRIVATE" not in certificate.certificate_blocks(both)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no certificate: it is not PEM, which begins with -----BEGIN"),
        ("\x30\x82\x01", "holds no certificate: it is not PEM, which begins with -----BEGIN"),
        ("-----BEGIN CERTIFICATE-----\nMII", "holds no certificate: a block of PEM is cut off or damaged"),
        (pki.make("a").private, "holds no certificate, but a private key; cert and key may be swapped"),
        (pki.revoked(pki.authority()), "holds no certificate, but a list of revoked ones"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nMII=\n-----END CERTIFICATE REQUEST-----\n",
            "holds no certificate, but the request for one; what the authority answered belongs here",
        ),
        (
            "-----BEGIN TRUSTED CERTIFICATE-----\nMII=\n-----END TRUSTED CERTIFICATE-----\n",
            "holds no certificate, but OpenSSL's own form of one; `openssl x509 -in FILE` writes the usual form",
        ),
    ],
)
def test_a_file_without_a_certificate_is_told_what_it_is(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="holds no certificate") as caught:
        certificate.read_chain(text)
    assert str(caught.value) == told
    assert certificate.held(text) == []


def test_a_damaged_certificate_is_told_by_its_number() -> None:
    good = pki.make("a").chain
    bad = good.splitlines()
    bad[2] = bad[2][::-1]
    with pytest.raises(ValueError, match="certificate 2 of 2: "):
        certificate.read_chain(good + "\n".join(bad))


@hypothesis.given(st.text(max_size=200), st.integers(0, 800), st.integers(0, 800))
def test_any_text_is_read_or_refused_by_a_value_error(noise: str, start: int, end: int) -> None:
    text = SAMPLE[:start] + noise + SAMPLE[end:]
    findings = list(certificate.pair_findings(text, text))
    assert all(one.text.isprintable() for one in findings)
    assert bool(certificate.held(text)) == all(one.part != "cert" for one in findings)
    with contextlib.suppress(ValueError):
        assert certificate.read_lists(text) == []


SAMPLE = pki.make("sample.example").chain

# -- pairs ----------------------------------------------------------------------------------------------------------


def told(chain: str, key: str) -> list[str]:
    """What is wrong with a pair."""
    found = certificate.pair_findings(chain, key)
    lines = [f"{one.part}: {'warning: ' if one.warning else ''}{one.text}" for one in found]
    return [UNREADABLE if line.startswith(f"{UNREADABLE}: ") else line for line in lines]  # the rest is a library's


CA = pki.authority()
LEAF = pki.make("a.example", issuer=CA)
OTHER = pki.make("b.example")
WEAK_RSA = pki.make("a.example", key=pki.rsa_key(1024))
SHORT_CURVE = pki.make("a.example", key=pki.ec_key(ec.SECP192R1()))
UNREADABLE = "key: holds a private key that cannot be read"
WEAK_HASH = pki.with_sha1(pki.make("a.example", issuer=pki.authority("RSA CA", key=pki.rsa_key())))

PAIRS: list[tuple[str, str, str, list[str]]] = [
    ("a good one", LEAF.chain, LEAF.private, []),
    ("with its issuer", LEAF.chain + CA.chain, LEAF.private, []),
    ("an RSA key", pki.make("r", key=pki.rsa_key()).chain, pki.key_pem(pki.rsa_key()), []),
    ("PKCS #1", pki.make("r", key=pki.rsa_key()).chain, pki.key_pem(pki.rsa_key(), form="TraditionalOpenSSL"), []),
    ("SEC 1", LEAF.chain, pki.key_pem(LEAF.key, form="TraditionalOpenSSL"), []),
    ("both in one file", LEAF.chain + LEAF.private, LEAF.private + LEAF.chain, []),
    (
        "swapped",
        LEAF.private,
        LEAF.chain,
        [
            "cert: holds no certificate, but a private key; cert and key may be swapped",
            "key: holds no private key, but a certificate; cert and key may be swapped",
        ],
    ),
    ("another's key", LEAF.chain, OTHER.private, ["key: is not the key of the certificate for a.example"]),
    (
        "the issuer first",
        CA.chain + LEAF.chain,
        LEAF.private,
        ["cert: has the certificate of this key as number 2; it must be the first, then its issuers"],
    ),
    (
        "an encrypted key",
        LEAF.chain,
        pki.key_pem(LEAF.key, b"secret"),
        [
            "key: is encrypted, and there is nobody to ask for its passphrase; "
            "`openssl pkey -in FILE -out NEW` writes it without"
        ],
    ),
    (
        "an encrypted key of the old form",
        LEAF.chain,
        pki.key_pem(LEAF.key, b"secret", "TraditionalOpenSSL"),
        [
            "key: is encrypted, and there is nobody to ask for its passphrase; "
            "`openssl pkey -in FILE -out NEW` writes it without"
        ],
    ),
    (
        "OpenSSH's key",
        LEAF.chain,
        pki.key_pem(LEAF.key, form="OpenSSH"),
        ["key: holds no private key, but a key of OpenSSH's form; `ssh-keygen -p -m PKCS8 -f FILE` rewrites it"],
    ),
    (
        "a short key",
        WEAK_RSA.chain,
        WEAK_RSA.private,
        ["cert: has an RSA key of 1024 bits; 2048 is the least"],
    ),
    (
        "a short key of the issuer",
        LEAF.chain + WEAK_RSA.chain,
        LEAF.private,
        [
            "cert: has an RSA key of 1024 bits (certificate 2, a.example); 2048 is the least",
            "cert: warning: is in the wrong order: certificate 2, a.example, did not issue the one before it, "
            "a.example; each is followed by its issuer",
        ],
    ),
    (
        "a hash that is broken",
        WEAK_HASH.chain,
        WEAK_HASH.private,
        ["cert: is signed with MD5 or SHA-1, which can be forged and is refused"],
    ),
    (
        "a short curve",
        SHORT_CURVE.chain,
        SHORT_CURVE.private,
        ["cert: has a curve of 192 bits; 224 is the least"],
    ),
    (
        "a damaged key",
        LEAF.chain,
        "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
        [UNREADABLE],
    ),
    ("an empty key", LEAF.chain, "", ["key: holds no private key: it is not PEM, which begins with -----BEGIN"]),
]


@pytest.mark.parametrize(("chain", "key", "expected"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_a_pair_is_told_what_is_wrong_with_it(chain: str, key: str, expected: list[str]) -> None:
    assert told(chain, key) == expected


@pytest.mark.parametrize(("chain", "key", "expected"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_openssl_refuses_what_is_refused_here_and_takes_the_rest(
    chain: str, key: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cert").write_text(chain)
    (tmp_path / "key").write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    refused = any("warning: " not in one for one in expected)
    try:
        # What OpenSSL does with a password that it does not need is nothing; without one it would ask the terminal.
        context.load_cert_chain(tmp_path / "cert", tmp_path / "key", password="")
    except (ssl.SSLError, ValueError):
        assert refused
    else:
        assert not refused


def test_a_key_of_another_kind_is_known_too() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    assert told(LEAF.chain, pki.key_pem(key)) == ["key: is not the key of the certificate for a.example"]
    old = pki.make("a.example", key=dsa.generate_private_key(1024))
    # OpenSSL would take it, and then find no cipher for any client.
    assert told(old.chain, old.private) == ["cert: has a DSA key, which TLS has no use for any more"]


def test_a_chain_out_of_order_is_a_warning_because_many_clients_sort_it() -> None:
    middle = pki.authority("Middle", issuer=CA)
    leaf = pki.make("a.example", issuer=middle)
    assert told(leaf.chain + middle.chain + CA.chain, leaf.private) == []
    (line,) = told(leaf.chain + CA.chain + middle.chain, leaf.private)
    assert line.startswith("cert: warning: is in the wrong order: certificate 2, CN=Test CA, did not issue")


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "server", "wanted"),
    [
        (["a.example"], "a.example", True),
        (["*.example"], "a.example", True),
        (["*.example"], "b.a.example", False),
        (["*.example"], "example", False),
        (["*.example"], "*.example", True),
        (["a.example"], "*.example", False),
        (["10.0.0.1"], "10.0.0.1", True),
    ],
)
def test_a_wildcard_is_for_one_label(names: list[str], server: str, wanted: bool) -> None:
    assert certificate.is_for(names, server) is wanted


@pytest.mark.parametrize(
    ("leaf", "names", "expected"),
    [
        (pki.make("a.example"), [], []),
        (pki.make("a.example"), ["a.example"], []),
        (pki.make("a.example"), ["b.example"], ["is not for b.example but for a.example; clients will refuse it"]),
        (pki.make(), [], ["has no server name inside; set names, or it is shown as the last resort only"]),
        (pki.make(), ["b.example"], []),
        (
            pki.make(common_name="a.example"),
            [],
            ["has a common name only, a.example; clients want it as subjectAltName and refuse it (RFC 9525)"],
        ),
    ],
)
def test_names_that_clients_will_not_believe_are_told(leaf: pki.Leaf, names: list[str], expected: list[str]) -> None:
    assert [one.text for one in certificate.name_warnings(leaf.chain, names)] == expected


# -- authorities and lists ------------------------------------------------------------------------------------------


def test_an_authority_that_may_not_sign_is_told() -> None:
    assert list(certificate.authority_warnings(CA.chain)) == []
    assert list(certificate.authority_warnings(CA.chain + LEAF.chain)) == [
        "has as number 2 a.example, which is no authority (CA:FALSE): nothing that it signed counts"
    ]
    assert list(certificate.authority_warnings(OTHER.chain)) == []  # trusted by itself


STRANGER = pki.authority("Stranger")
NAMESAKE = pki.authority("Test CA")


@pytest.mark.parametrize(
    ("lists", "authorities", "expected"),
    [
        (lambda: pki.revoked(CA, LEAF), CA.chain, []),
        (lambda: pki.revoked(CA) + pki.revoked(STRANGER), CA.chain + STRANGER.chain, []),
        (
            lambda: pki.revoked(CA),
            CA.chain + STRANGER.chain,
            [("has no list of CN=Stranger: whomever that authority certified is refused", True)],
        ),
        (
            lambda: pki.revoked(STRANGER),
            CA.chain,
            [
                ("is the list of CN=Stranger, which is not one of client_ca", False),
                ("has no list of CN=Test CA: whomever that authority certified is refused", True),
            ],
        ),
        (
            lambda: pki.revoked(CA, signer=NAMESAKE),
            CA.chain,
            [
                ("says that it is the list of CN=Test CA, but that authority's key did not sign it", False),
                ("has no list of CN=Test CA: whomever that authority certified is refused", True),
            ],
        ),
    ],
)
def test_a_list_belongs_to_an_authority_that_signed_it(
    lists: Callable[[], str], authorities: str, expected: list[tuple[str, bool]]
) -> None:
    assert list(certificate.list_findings(lists(), authorities)) == expected


def test_the_first_list_to_end_ends_them_all() -> None:
    both = pki.revoked(CA, days=30) + pki.revoked(STRANGER, days=3)
    assert certificate.lists_end(both) == pki.NOW.timestamp() + 3 * 86400


def test_a_file_without_a_list_is_told_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"holds no list of revoked certificates \(X509 CRL\), but a certificate"):
        certificate.read_lists(CA.chain)
    with pytest.raises(ValueError, match="has something that cannot be read as a list of revoked: "):
        certificate.read_lists("-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n")


def test_who_only_says_that_it_signed_itself_did_not() -> None:
    forged = pki.make("a.example", issuer=pki.make(), common_name=None)
    (read,) = certificate.read_chain(forged.chain)
    assert read.issuer == read.subject
    assert not read.self_signed
