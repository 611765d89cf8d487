"""What is asked of an endpoint that is spoken to by TLS: plain values, and the key that a pin is of.

`state/reach.py` makes them of the config, `net/tls_client.py` makes a context of them. The public key is cut out of
the certificate as it stands there: a pin is a hash of those bytes, and to encode the key anew could write others.

Source: RFC 5280 4.1 (Certificate, SubjectPublicKeyInfo), X.690 8.1.3 (lengths), RFC 7469 2.4 (pins). Pure.
"""

from __future__ import annotations

import base64
import hashlib

import attrs

PIN = "sha256/"
"""What a pin begins with, in text."""
_CONTEXT_0 = 0xA0
"""Tag of the optional version that a TBSCertificate begins with."""
_SEQUENCE = 0x30
_BEFORE_KEY = 5
"""serialNumber, signature, issuer, validity and subject stand between the version and the key."""


@attrs.frozen(kw_only=True, cache_hash=True)
class ClientTls:
    """One way to speak TLS to endpoints. By value: equal ones share a context."""

    ca: str | None = attrs.field(default=None, repr=False)
    """Authorities that count (PEM); None: those of this host."""
    name: str | None = None
    """Server name to ask for and to verify; None: the host in the endpoint's address."""
    verify: bool = True
    """False: whose certificate it is does not matter, but for `pins`."""
    pins: frozenset[bytes] = attrs.field(default=frozenset(), repr=False)
    """SHA-256 of public keys, one of which it must be; none: any."""
    cert: str | None = attrs.field(default=None, repr=False)
    """Our own certificate, with its chain (PEM)."""
    key: str | None = attrs.field(default=None, repr=False)
    """Its private key (PEM)."""
    min_version: str = "1.2"
    alpn: tuple[str, ...] = ()
    """Protocols offered; none: ALPN is not spoken."""
    alpn_required: bool = False
    """An endpoint that agrees on none of them will not do."""

    @property
    def context_key(self) -> tuple[object, ...]:
        """The part that is in a context: all that endpoints with other names or pins have in common."""
        return (self.ca, self.verify, self.cert, self.key, self.min_version, self.alpn)


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a certificate in DER. ValueError if it is none."""
    return hashlib.sha256(public_key_of(certificate)).digest()


def text_of(pin: bytes) -> str:
    """A pin as the config writes it."""
    return PIN + base64.b64encode(pin).decode("ascii")


def public_key_of(certificate: bytes) -> bytes:
    """A certificate's SubjectPublicKeyInfo, as it stands there. ValueError if it is no certificate in DER."""
    try:
        begin, _ = _content(certificate, 0, _SEQUENCE)
        begin, end = _content(certificate, begin, _SEQUENCE)
        if certificate[begin] == _CONTEXT_0:
            begin = _content(certificate, begin)[1]
        for _ in range(_BEFORE_KEY):
            begin = _content(certificate, begin)[1]
        behind = _content(certificate, begin, _SEQUENCE)[1]
    except IndexError:
        raise ValueError("not a certificate in DER: it ends early") from None
    if behind > end:
        raise ValueError("not a certificate in DER: a part is longer than the whole")
    return certificate[begin:behind]


def _content(data: bytes, at: int, tag: int | None = None) -> tuple[int, int]:
    """Where the content of the element at `at` begins, and where it ends."""
    if tag is not None and data[at] != tag:
        raise ValueError(f"not a certificate in DER: tag {data[at]:#x} where {tag:#x} belongs")
    size, begin = data[at + 1], at + 2
    if size > 0x80:
        begin += size - 0x80
        size = int.from_bytes(data[at + 2 : begin], "big")
    if begin + size > len(data):
        raise ValueError("not a certificate in DER: it ends early")
    return begin, begin + size
