"""How an endpoint is told whom a client has proved to be: Client-Cert, and Envoy's X-Forwarded-Client-Cert.

Both are written for one certificate, the client's own. Those that came with a request are never passed on beside ours:
a recipient could not tell which is whose (RFC 9440 3.1: "MUST sanitize").

Source: RFC 9440 2.1, 2.2 (Client-Cert, a Byte Sequence of RFC 8941 3.3.5), Envoy's "x-forwarded-client-cert". Pure.
"""

from __future__ import annotations

import base64

from tcpgate.codec.events import NO_FIELDS, Fields
from tcpgate.codec.tls_facts import ClientCert

_QUOTED = frozenset('",;= \\')
_NAMES = {"URI": "URI", "DNS": "DNS"}
"""Subject alternative names that Envoy's field has a key for."""


def client_cert_fields(client: ClientCert | None) -> Fields:
    """The fields that tell of `client`; none for a client that has shown no certificate."""
    if client is None:
        return NO_FIELDS
    elements = [f"Hash={client.sha256}", f"Subject={_quote(client.subject)}"]
    for name in client.sans:
        kind, _, value = name.partition(":")
        if kind in _NAMES:
            elements.append(f"{_NAMES[kind]}={_value(value)}")
    # Names may hold any character of Unicode; a field's value is best without.
    told = ";".join(elements).encode("ascii", "backslashreplace")
    return Fields(
        [
            (b"Client-Cert", b":%b:" % base64.b64encode(client.der)),
            (b"X-Forwarded-Client-Cert", told.translate(None, _UNTOLD)),
        ]
    )


_UNTOLD = bytes([*range(32), 127])
"""Control characters, which no field may hold."""


def _value(text: str) -> str:
    return _quote(text) if _QUOTED & set(text) else text


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
