"""Certificates for tests, made in memory: good ones, and those with one thing wrong."""

from __future__ import annotations

import datetime
import ipaddress
from functools import cache
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
"""When tests of judgement take place."""
Key = Any


def ec_key(curve: ec.EllipticCurve | None = None) -> Key:
    """A new key; quick."""
    return ec.generate_private_key(curve or ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048) -> Key:
    """The one RSA key of that size: making one takes its time."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def key_pem(key: Key, password: bytes | None = None, form: str = "PKCS8") -> str:
    """A key as PEM."""
    hidden: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    shape = getattr(serialization.PrivateFormat, form)
    return str(key.private_bytes(serialization.Encoding.PEM, shape, hidden).decode())


def cert_pem(*certs: x509.Certificate) -> str:
    """Certificates as PEM, one after the other."""
    return "".join(cert.public_bytes(serialization.Encoding.PEM).decode() for cert in certs)


@attrs.frozen
class Leaf:
    """A certificate with its key."""

    cert: x509.Certificate
    key: Key

    @property
    def chain(self) -> str:
        """The certificate as PEM."""
        return cert_pem(self.cert)

    @property
    def private(self) -> str:
        """The key as PEM."""
        return key_pem(self.key)


def make(
    *names: str,
    issuer: Leaf | None = None,
    key: Key | None = None,
    common_name: str | None = None,
    authority: bool = False,
    begins: datetime.datetime | None = None,
    ends: datetime.datetime | None = None,
    days: float = 90.0,
) -> Leaf:
    """A certificate for `names`, self-signed without an `issuer`, valid from a day before `NOW` for `days` after it."""
    key = key or ec_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer.cert.subject if issuer else subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=begins or NOW - datetime.timedelta(days=1),
        not_valid_after=ends or NOW + datetime.timedelta(days=days),
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    return Leaf(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def authority(name: str = "Test CA", **more: Any) -> Leaf:
    """A certificate that signs others."""
    return make(common_name=name, authority=True, **more)


def with_sha1(leaf: Leaf) -> Leaf:
    """The same certificate, by an RSA key, saying that SHA-1 signed it; the signature is not made anew, nor looked at
    by who shows it."""
    der = leaf.cert.public_bytes(serialization.Encoding.DER)
    sha256, sha1 = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("0b", "05"))
    assert der.count(sha256) == 2
    return Leaf(x509.load_der_x509_certificate(der.replace(sha256, sha1)), leaf.key)


def revoked(issuer: Leaf, *leaves: Leaf, days: float = 30.0, signer: Leaf | None = None) -> str:
    """The issuer's list of these, as PEM; signed by `signer` if that is another."""
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=issuer.cert.subject,
        last_update=NOW - datetime.timedelta(days=60),
        next_update=NOW + datetime.timedelta(days=days),
    )
    for leaf in leaves:
        entry = x509.RevokedCertificateBuilder(serial_number=leaf.cert.serial_number, revocation_date=NOW)
        builder = builder.add_revoked_certificate(entry.build())
    made = builder.sign((signer or issuer).key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()
