"""The config's TLS tables: what a listener shows and asks for, and what it asks of an endpoint.

A path is relative to the file that names it. `load.py` reads the files, so that every worker gets the same bytes, a
reload sees that a file has another content, and only the supervisor has to be able to read a key. What it has read is
held in `Secret` fields, which no TOML can set and no dump shows, whether it is one or not.

Pure. Source of the defaults: Mozilla's "intermediate" configuration, RFC 9325, and the manuals of HAProxy and nginx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from tcpgate.config.validators import Secret

TlsVersion = Literal["1.2", "1.3"]
ClientAuth = Literal["none", "optional", "required"]


@attrs.frozen(kw_only=True)
class Certificate:
    """One certificate with its key, as two PEM files: `{ cert = "api.crt", key = "api.key" }`."""

    cert: str
    """File with the certificate, then the chain up to a root that clients have."""
    key: str
    """File with the private key, not encrypted; "credential:NAME" reads systemd's $CREDENTIALS_DIRECTORY."""
    names: tuple[str, ...] = ()
    """Server names that it is shown for; default: those inside it (DNS names, "*.example.com", addresses)."""
    chain_pem: Secret | None = attrs.field(default=None, repr=False)
    """What `cert` held."""
    key_pem: Secret | None = attrs.field(default=None, repr=False)
    """What `key` held."""


@attrs.frozen(kw_only=True)
class TlsRules:
    """`[listeners.NAME.tls.hosts."NAME"]`: what is asked of those who name this server, instead of the listener's
    rules. What is not set here is the listener's."""

    client_auth: ClientAuth | None = None
    client_ca: str | None = None
    client_crl: str | None = None
    min_version: TlsVersion | None = None
    alpn: tuple[str, ...] | None = None
    client_ca_pem: Secret | None = attrs.field(default=None, repr=False)
    client_crl_pem: Secret | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ListenerTls:
    """`[listeners.NAME.tls]`: present means that clients speak TLS here."""

    certificates: tuple[Certificate, ...] = attrs.field()
    """Chosen by the name that the client asks for: exact before wildcard; the first one for no name or another."""
    strict_sni: bool = False
    """Refuse (alert unrecognized_name) a client that names a server which no certificate is for."""
    client_auth: ClientAuth = "none"
    """"optional" asks for a certificate and judges one that is shown; "required" refuses who shows none."""
    client_ca: str | None = None
    """PEM file: the authorities whose client certificates count."""
    client_crl: str | None = None
    """PEM file: the authorities' lists of certificates that they have revoked. All issuers must then have one."""
    forward_client: bool = False
    """Tell endpoints who the client is by its certificate: Client-Cert (RFC 9440) and X-Forwarded-Client-Cert
    (Envoy's). With or without it, these fields of untrusted peers never pass."""
    min_version: TlsVersion = "1.2"
    """RFC 8996 ended 1.0 and 1.1."""
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    """Protocols offered, best first; for an http listener "h2" and "http/1.1" make sense. For tcp any do, and the
    default means those that the listener's own `alpn` leads somewhere: no client of a database is refused for HTTP."""
    ciphers: str | None = None
    """OpenSSL's cipher list for TLS 1.2; default: ECDHE with AES-GCM or ChaCha20 only. Those of 1.3 are all good."""
    tickets: bool = True
    """Resume sessions by tickets, in whatever worker; their key is made anew every 12 hours."""
    hosts: Mapping[str, TlsRules] = attrs.field(factory=dict)
    """Other rules for some server names ("admin.example.com"; "*.example.com" is any depth below it, as in routes). A
    request for a host whose rules ask for more than those of the connection's server name did is answered 421."""
    client_ca_pem: Secret | None = attrs.field(default=None, repr=False)
    client_crl_pem: Secret | None = attrs.field(default=None, repr=False)

    @certificates.validator
    def _check_certificates(self, _: attrs.Attribute[object], value: tuple[Certificate, ...]) -> None:
        if not value:
            raise ValueError('certificates needs at least one: [{ cert = "site.crt", key = "site.key" }]')


@attrs.frozen(kw_only=True)
class UpstreamTls:
    """`[upstreams.NAME.tls]`: present means that endpoints are spoken to by TLS, and must prove who they are."""

    ca: str | None = None
    """PEM file: the authorities that count; default: those of this host."""
    name: str | None = None
    """Server name that is asked for and that the certificate must have; default: the host in the endpoint's
    address."""
    verify: bool = True
    """False: take any certificate, so that whoever stands in between can read along. With `pin`, the pin decides."""
    pin: tuple[str, ...] = ()
    """"sha256/BASE64" of the endpoint's public key (RFC 7469's form); one of them must match."""
    cert: str | None = None
    """PEM file: our own certificate, for endpoints that ask for one."""
    key: str | None = None
    """PEM file: its key."""
    min_version: TlsVersion = "1.2"
    ca_pem: Secret | None = attrs.field(default=None, repr=False)
    cert_pem: Secret | None = attrs.field(default=None, repr=False)
    key_pem: Secret | None = attrs.field(default=None, repr=False)
