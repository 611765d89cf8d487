"""Names in certificates, as text: those a certificate is for, and distinguished names.

Source: RFC 9525 6.3 (wildcards), RFC 4514 2 (distinguished names as text). Called by `tls_server.py`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Final

from tcpgate.net.tls_client import as_path

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""OpenSSL's long names to those of RFC 4514 3; others stay long."""
_SPECIAL = re.compile(r'["+,;<>\\=]|^[ #]| $')


def names_in(chain: bytes) -> tuple[str, ...]:
    """The names that the first certificate of `chain` (PEM) is for: DNS names and addresses, lower case; if there are
    none, its common name. ssl.SSLError for what is no certificate."""
    with as_path(chain) as path:
        known = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]  # the only way there without a connection
    names = tuple(value.lower() for kind, value in known.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return names or tuple(
        value.lower() for parts in known.get("subject", ()) for kind, value in parts if kind == "commonName"
    )


def wildcard_for(name: str) -> str:
    """The wildcard that `name` falls under: "*" in the place of its leftmost label; "" if there is none."""
    _, dot, domain = name.partition(".")
    return f"*.{domain}" if dot and domain else ""


def distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """RFC 4514's text of what `getpeercert` gives: the most special part first."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_SPECIAL.sub(_escaped, value)}" for kind, value in part)
        for part in reversed(list(parts))
    )


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}"
