"""What is known of a TLS connection once its handshake is done: facts for filters, headers, records and the log.

Pure: values only. `net/tls_server.py` makes them of a socket; `proxy/arrived.py` carries them with the connection.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ClientCert:
    """The certificate that a client has proved to be its own; it was judged by the listener's authorities."""

    subject: str
    """Distinguished name as RFC 4514 writes it: "CN=alice,OU=ops,O=Example"."""
    sans: tuple[str, ...]
    """Subject alternative names, each as "KIND:value", as OpenSSL writes them: "DNS:a.example", "IP:10.0.0.1",
    "URI:spiffe://...", "email:..."."""
    sha256: str
    """Of the DER form, hex, lower case: who it is, shortly."""
    serial: str
    """Hex, upper case, as OpenSSL writes it."""
    issuer: str
    """As `subject`."""
    not_after: float
    """Unix time from which on it is not valid."""
    der: bytes = attrs.field(repr=False)
    """All of it, for Client-Cert (RFC 9440)."""

    @property
    def name(self) -> str:
        """Who it is, in one line: the subject, or the first alternative name where that is empty."""
        return self.subject or (self.sans[0] if self.sans else self.sha256)

    @property
    def common_name(self) -> str:
        """The subject's CN, or ""."""
        for part in self.subject.split(","):
            if part.startswith("CN="):
                return part[3:]
        return ""


@attrs.frozen(kw_only=True)
class TlsFacts:
    """One TLS connection, of either side."""

    version: str
    """"TLSv1.2" or "TLSv1.3"."""
    cipher: str
    """By OpenSSL's name: "TLS_AES_256_GCM_SHA384", "ECDHE-RSA-AES128-GCM-SHA256"."""
    alpn: str = ""
    """What was agreed on; "" for nothing."""
    server_name: str = ""
    """What the client asked for (SNI), lower case; "" for nothing."""
    resumed: bool = False
    """It goes on with an earlier session."""
    client: ClientCert | None = None
    """Who the client has proved to be, if it was asked and did."""

    @property
    def text(self) -> str:
        """For the access record: "TLSv1.3 TLS_AES_256_GCM_SHA384"."""
        return f"{self.version} {self.cipher}"
