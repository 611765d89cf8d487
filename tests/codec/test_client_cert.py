"""What endpoints are told of a client's certificate, and whose word on it never reaches them."""

from __future__ import annotations

import base64

import attrs
import pytest

from tcpgate.codec import forwarded
from tcpgate.codec.client_cert import client_cert_fields
from tcpgate.codec.tls_facts import ClientCert

ALICE = ClientCert(
    subject="CN=alice,OU=ops,O=Example",
    sans=("DNS:alice.example", "URI:spiffe://example/alice", "IP:10.0.0.1", "email:alice@example"),
    sha256="ab" * 32,
    serial="01",
    issuer="CN=ca",
    not_after=2e9,
    der=b"\x30\x03der",
)


def test_a_certificate_is_told_as_the_rfc_and_as_envoy_write_it() -> None:
    fields = dict(client_cert_fields(ALICE))
    assert fields[b"Client-Cert"] == b":" + base64.b64encode(ALICE.der) + b":"
    assert fields[b"X-Forwarded-Client-Cert"] == (
        b"Hash=" + b"ab" * 32 + b';Subject="CN=alice,OU=ops,O=Example";DNS=alice.example;URI=spiffe://example/alice'
    )


def test_no_certificate_is_not_told() -> None:
    assert not list(client_cert_fields(None))


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ('CN=a"b', b'Subject="CN=a\\"b"'),
        ("CN=a\\,b", b'Subject="CN=a\\\\,b"'),
        ("CN=\u00e9", b'Subject="CN=\\xe9"'),
        ("CN=a\r\nX: y", b'Subject="CN=aX: y"'),
    ],
)
def test_a_subject_cannot_break_out_of_its_field(subject: str, told: bytes) -> None:
    fields = dict(client_cert_fields(attrs.evolve(ALICE, subject=subject, sans=("URI:a;Hash=b", "DNS:x"))))
    assert told + b';URI="a;Hash=b";DNS=x' in fields[b"X-Forwarded-Client-Cert"]


@pytest.mark.parametrize("name", [b"Client-Cert", b"client-cert-chain", b"X-Forwarded-Client-Cert"])
def test_what_a_client_says_of_its_certificate_counts_only_from_a_trusted_proxy(name: bytes) -> None:
    assert forwarded.believes_proxy(name, trusted=False)
    assert not forwarded.believes_proxy(name, trusted=True)
    assert forwarded.believes_proxy(name.replace(b"-", b"_"), trusted=True), "in disguise it never does"
