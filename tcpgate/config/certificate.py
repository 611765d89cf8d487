"""What PEM text holds: certificates, keys, lists of revoked ones; and whether they belong together.

OpenSSL takes a certificate and its key apart only when a context is made of them, and tells what is wrong in its own
words ("EE_KEY_TOO_SMALL"), without the file. Here the same is asked beforehand, of each file, and said with the cure.
What is refused here, and nothing else, is what OpenSSL would refuse at its security level 2, Python's and Debian's; and
DSA keys, with which no client could shake hands.

Pure. Source: RFC 7468 (PEM), RFC 5280 (certificates, lists), RFC 6125 6.4 (names: a common name counts only where there
is no DNS name), OpenSSL's SSL_CTX_set_security_level(3).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)
_KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
_CERTIFICATES = ("CERTIFICATE", "X509 CERTIFICATE")
_LISTS = ("X509 CRL",)
MIN_RSA = 2048
"""Bits; OpenSSL's level 2 asks for 112 bits of security, which these are."""
MIN_CURVE = 224
"""Bits; the same strength."""
WEAK_HASHES = (hashes.MD5, hashes.SHA1)

Part = Literal["cert", "key"]


@attrs.frozen
class Finding:
    """One thing that is wrong with a pair of files."""

    part: Part
    """Which of the two."""
    text: str
    warning: bool = False


@attrs.frozen(kw_only=True)
class Certificate:
    """One certificate, read."""

    subject: str
    """As RFC 4514 writes it; a certificate may have none."""
    issuer: str
    names: tuple[str, ...]
    """DNS names in lower case and addresses; where there are none, the common name if it could be one."""
    common_name_only: bool
    """The names are the common name's, which no browser looks at any more."""
    not_before: float
    """Unix time."""
    not_after: float
    fingerprint: str
    """SHA-256 of its DER form, hex: who it is, whatever file it is in."""
    self_signed: bool
    authority: bool
    """It may sign others."""
    raw: x509.Certificate = attrs.field(repr=False, eq=False)

    @property
    def title(self) -> str:
        """What people call it: its first name, or its subject."""
        return self.names[0] if self.names else self.subject or self.fingerprint[:16]


# -- reading --------------------------------------------------------------------------------------------------------


def blocks(text: str, labels: Sequence[str]) -> list[str]:
    """The PEM blocks of these labels, without the text around them."""
    return [f"{match[0]}\n".replace("\r\n", "\n") for match in _BLOCK.finditer(text) if match[1] in labels]


def certificate_blocks(text: str) -> str:
    """The certificates of `text`, and nothing else: a file may hold the key as well, as HAProxy's do."""
    return "".join(blocks(text, _CERTIFICATES))


def key_block(text: str) -> str:
    """The first private key of `text`, or nothing."""
    return next(iter(blocks(text, _KEYS)), "")


def list_blocks(text: str) -> str:
    """The revocation lists of `text`."""
    return "".join(blocks(text, _LISTS))


def read_chain(text: str) -> list[Certificate]:
    """Every certificate of `text`, in order. Raises ValueError if one cannot be read, or there is none."""
    found = blocks(text, _CERTIFICATES)
    if not found:
        raise ValueError(f"holds no certificate{_instead(text)}")
    return [_read(block, f"certificate {number} of {len(found)}") for number, block in enumerate(found, 1)]


def _instead(text: str) -> str:
    """What a file is, that is not what was looked for."""
    labels = [match[1] for match in _BLOCK.finditer(text)]
    if any(label in _KEYS for label in labels):
        return ", but a private key; cert and key may be swapped"
    known = {
        "CERTIFICATE REQUEST": ", but the request for one; what the authority answered belongs here",
        "TRUSTED CERTIFICATE": ", but OpenSSL's own form of one; `openssl x509 -in FILE` writes the usual form",
        "PKCS7": ", but a PKCS #7 bundle; `openssl pkcs7 -print_certs -in FILE` takes it apart",
        "OPENSSH PRIVATE KEY": ", but a key of OpenSSH's form; `ssh-keygen -p -m PKCS8 -f FILE` rewrites it",
        "PUBLIC KEY": ", but a public key",
    }
    for label in labels:
        if label in (*_CERTIFICATES, *_LISTS):
            return f", but {'a certificate' if label in _CERTIFICATES else 'a list of revoked ones'}"
        if label in known:
            return known[label]
    if "-----BEGIN" in text:
        return ": a block of PEM is cut off or damaged"
    return ": it is not PEM, which begins with -----BEGIN"


def _read(block: str, which: str) -> Certificate:
    try:
        raw = x509.load_pem_x509_certificate(block.encode())
        raw.public_key()
        names, by_common_name = _names(raw)
        return Certificate(
            subject=raw.subject.rfc4514_string(),
            issuer=raw.issuer.rfc4514_string(),
            names=names,
            common_name_only=by_common_name,
            not_before=raw.not_valid_before_utc.timestamp(),
            not_after=raw.not_valid_after_utc.timestamp(),
            fingerprint=raw.fingerprint(hashes.SHA256()).hex(),
            self_signed=raw.issuer == raw.subject and _issued(raw, raw),
            authority=_is_authority(raw),
            raw=raw,
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as exc:
        raise ValueError(f"has something that cannot be read as a certificate, {which}: {_first_line(exc)}") from None


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200] or type(exc).__name__


def _names(raw: x509.Certificate) -> tuple[tuple[str, ...], bool]:
    """Server names and addresses, and whether they are but the common name."""
    try:
        found = raw.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
        names += [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        names = []
    if names:
        return tuple(dict.fromkeys(names)), False
    common = [str(item.value).lower() for item in raw.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    usable = tuple(name for name in common[-1:] if re.fullmatch(r"(\*\.)?[a-z0-9_.-]+", name))
    return usable, bool(usable)


def _is_authority(raw: x509.Certificate) -> bool:
    try:
        return raw.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return raw.version is x509.Version.v1  # which had no such word; OpenSSL takes a self-signed one for a root


def _issued(issuer: x509.Certificate, raw: x509.Certificate) -> bool:
    """Whether `issuer` signed `raw`."""
    try:
        raw.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


# -- a certificate and its key --------------------------------------------------------------------------------------


def pair_findings(chain_text: str, key_text: str) -> Iterator[Finding]:
    """What is wrong with a certificate's file and its key's."""
    chain, key = None, None
    try:
        chain = read_chain(chain_text)
    except ValueError as exc:
        yield Finding("cert", str(exc))
    try:
        key = _read_key(key_text)
    except ValueError as exc:
        yield Finding("key", str(exc))
    if chain is None:
        return
    yield from _weak(chain)
    if key is None:
        return
    owners = [number for number, one in enumerate(chain, 1) if _same_key(one.raw.public_key(), key.public_key())]
    if not owners:
        yield Finding("key", f"is not the key of the certificate for {chain[0].title}")
    elif owners[0] != 1:
        text = f"has the certificate of this key as number {owners[0]}; it must be the first, then its issuers"
        yield Finding("cert", text)
    else:
        yield from _disorder(chain)


def _read_key(text: str) -> Any:
    """The private key of `text`. Raises ValueError that says why there is none."""
    block = key_block(text)
    if not block:
        hint = "; cert and key may be swapped" if certificate_blocks(text) else ""
        raise ValueError(f"holds no private key{_instead(text)}{hint}")
    if "BEGIN ENCRYPTED" in block or "Proc-Type: 4,ENCRYPTED" in block:
        cure = "`openssl pkey -in FILE -out NEW` writes it without"
        raise ValueError(f"is encrypted, and there is nobody to ask for its passphrase; {cure}")
    try:
        return serialization.load_pem_private_key(block.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ValueError(f"holds a private key that cannot be read: {_first_line(exc)}") from None


def _same_key(one: Any, other: Any) -> bool:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bool(one.public_bytes(*form) == other.public_bytes(*form))


def _weak(chain: Sequence[Certificate]) -> Iterator[Finding]:
    """What OpenSSL refuses to show to a client."""
    for number, one in enumerate(chain, 1):
        key = one.raw.public_key()
        which = "" if number == 1 else f" (certificate {number}, {one.title})"
        match key:
            case rsa.RSAPublicKey() if key.key_size < MIN_RSA:
                yield Finding("cert", f"has an RSA key of {key.key_size} bits{which}; {MIN_RSA} is the least")
            case ec.EllipticCurvePublicKey() if key.key_size < MIN_CURVE:
                yield Finding("cert", f"has a curve of {key.key_size} bits{which}; {MIN_CURVE} is the least")
            case dsa.DSAPublicKey():
                yield Finding("cert", f"has a DSA key{which}, which TLS has no use for any more")
        weak = not one.self_signed and isinstance(_hash_of(one.raw), WEAK_HASHES)
        if weak:
            yield Finding("cert", f"is signed with MD5 or SHA-1{which}, which can be forged and is refused")


def _hash_of(raw: x509.Certificate) -> hashes.HashAlgorithm | None:
    try:
        return raw.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None


def _disorder(chain: Sequence[Certificate]) -> Iterator[Finding]:
    """What a client may stumble over, though many do not."""
    for number, (one, issuer) in enumerate(itertools.pairwise(chain), 2):
        if one.raw.issuer != issuer.raw.subject:
            text = f"certificate {number}, {issuer.title}, did not issue the one before it, {one.title}"
            yield Finding("cert", f"is in the wrong order: {text}; each is followed by its issuer", warning=True)
            return


def name_warnings(chain_text: str, names: Sequence[str]) -> Iterator[Finding]:
    """Why a client may not believe that this certificate is for these names; for none: for those inside it."""
    first = read_chain(chain_text)[0]
    if not first.names and not names:
        text = "has no server name inside; set names, or it is shown as the last resort only"
        yield Finding("cert", text, warning=True)
    elif first.common_name_only:
        text = f"has a common name only, {first.title}; clients want it as subjectAltName and refuse it (RFC 9525)"
        yield Finding("cert", text, warning=True)
    for name in names:
        if first.names and not is_for(first.names, name):
            text = f"is not for {name} but for {', '.join(first.names[:3])}; clients will refuse it"
            yield Finding("cert", text, warning=True)


def is_for(names: Iterable[str], server: str) -> bool:
    """Whether names of a certificate take in this one: itself, or by a wildcard for one label (RFC 6125 6.4.3)."""
    return not {server, f"*.{server.partition('.')[2]}"}.isdisjoint(names)


# -- authorities and what they revoked ------------------------------------------------------------------------------


def authority_warnings(text: str) -> Iterator[str]:
    """What is odd about a file of authorities. Raises ValueError if it holds none."""
    for number, one in enumerate(read_chain(text), 1):
        if not one.authority and not one.self_signed:
            yield f"has as number {number} {one.title}, which is no authority (CA:FALSE): nothing that it signed counts"


def read_lists(text: str) -> list[x509.CertificateRevocationList]:
    """Every revocation list. Raises ValueError if one cannot be read, or there is none."""
    found = blocks(text, _LISTS)
    if not found:
        raise ValueError(f"holds no list of revoked certificates (X509 CRL){_instead(text)}")
    try:
        return [x509.load_pem_x509_crl(block.encode()) for block in found]
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ValueError(f"has something that cannot be read as a list of revoked: {_first_line(exc)}") from None


def list_findings(lists_text: str, authorities_text: str) -> Iterator[tuple[str, bool]]:
    """How the lists fail their authorities: text, and whether it is but a warning."""
    lists, authorities = read_lists(lists_text), read_chain(authorities_text)
    covered = set()
    for one in lists:
        named = [issuer for issuer in authorities if issuer.raw.subject == one.issuer]
        signed = [issuer for issuer in named if _signed(one, issuer.raw)]
        who = one.issuer.rfc4514_string()
        if not named:
            yield f"is the list of {who}, which is not one of client_ca", False
        elif not signed:
            yield f"says that it is the list of {who}, but that authority's key did not sign it", False
        covered |= {issuer.fingerprint for issuer in signed}
    for issuer in authorities:
        if issuer.fingerprint not in covered:
            yield f"has no list of {issuer.subject}: whomever that authority certified is refused", True


def _signed(one: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return one.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # of an odd kind: a TypeError
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def lists_end(text: str) -> float | None:
    """When the first of the lists is out of date (Unix time); None: never."""
    ends = [one.next_update_utc.timestamp() for one in read_lists(text) if one.next_update_utc is not None]
    return min(ends, default=None)


def held(text: str) -> list[Certificate]:
    """The same, nothing for text that holds none: for tellers of what the loader has judged already."""
    try:
        return read_chain(text)
    except ValueError:
        return []
