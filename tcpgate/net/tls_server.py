"""TLS for those who come: which certificate and which rules a client gets, and what is known of it afterwards.

Theory of operation. A context, of OpenSSL's, holds certificates and rules. It is chosen from the ClientHello *before*
the connection exists: OpenSSL can change a connection's context later, but the authorities, the demand for a
certificate and the versions are then those of the first one, silently. So `arrival.py` peeks at the hello, `choose`
picks, and `wrap` makes a connection of the socket that has still to read that hello.

A server name picks twice, each time exact before wildcard: the *pair* (certificate and key) by the names in it, the
first one for those who name none or another; and the *rules*, by `hosts`, else the listener's. A wildcard stands for
one label of a certificate's, the leftmost (RFC 9525 6.3); for rules it stands for any depth, as it does in routes, or
a name that no certificate is for would be a way around them. Pairs with the very same names are one: with an RSA and an
ECDSA key the client gets what it can use.

Who is let in under one name's rules may then ask for another's host on that connection, as browsers do where one
certificate is for both. `Trust` says for which hosts what was asked of the client is as much as their own rules ask.

The context of each pair with the listener's rules, and of each set of rules with a pair, is made at once, so that what
is wrong with either is found before anything serves; the other combinations when they are first asked for.

A refusal really is an alert on the wire: OpenSSL writes to the descriptor itself, and what we refuse before OpenSSL
has read anything (`refusal`) is for the caller to send by `client_hello.alert`.

Source: RFC 8446 4.2, RFC 6066 3, RFC 7301 3.2, RFC 9525, RFC 5280 5 (CRLs), RFC 9325 (what to offer). Owner: a
listener's generation.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import attrs

from tcpgate.codec.tls_facts import ClientCert, TlsFacts
from tcpgate.net.openssl import LIBSSL
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_client import VERSIONS, as_path, load_pair
from tcpgate.net.tls_names import distinguished_name, names_in, wildcard_for
from tcpgate.net.tls_socket import TlsSocket, prepare

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2)."""
GROUPS = ("X25519MLKEM768:X25519:P-256:P-384", "X25519:P-256:P-384")
"""The first that OpenSSL knows: with the hybrid against quantum computers from 3.5 on. Not its default, in which slow
groups stand too (P-521, X448, finite fields), that a client could choose in order to keep us busy."""
NO_APPLICATION_PROTOCOL, UNRECOGNIZED_NAME = 120, 112
"""Alerts (RFC 8446 6)."""

_VERIFY: Mapping[str, ssl.VerifyMode] = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


_LEVELS: Mapping[str, int] = {"none": 0, "optional": 1, "required": 2}


class Hello(Protocol):
    """What is asked of a ClientHello."""

    @property
    def server_name(self) -> str:
        """Lower case; "" for none."""
        ...

    @property
    def alpn(self) -> tuple[str, ...]:
        """In the client's order."""
        ...


@attrs.frozen(kw_only=True)
class Pair:
    """A certificate and its key."""

    names: tuple[str, ...] = ()
    """Server names that it is for; none: those inside it."""
    chain: bytes
    """PEM: the certificate, then those between it and a root."""
    key: bytes = attrs.field(repr=False)
    """PEM, not encrypted."""
    label: str = ""
    """How a person calls it, for what is wrong with it."""


@attrs.frozen(kw_only=True)
class Rules:
    """What is asked of a client."""

    client_auth: Literal["none", "optional", "required"] = "none"
    client_ca: bytes | None = None
    """PEM: authorities whose client certificates count."""
    client_crl: bytes | None = None
    """PEM: what they have revoked. Every issuer of a chain must then have a list."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    alpn: tuple[str, ...] = ()
    """Protocols, best first; none: ALPN is not spoken."""

    def proves(self, other: Rules, *, shown: bool) -> bool:
        """Whether who was let in under these rules is as well known as `other` ones ask. `shown`: a certificate."""
        if other.client_auth == "none" or (other.client_auth == "optional" and not shown):
            return True
        same = (self.client_ca, self.client_crl) == (other.client_ca, other.client_crl)
        return same and shown and self.client_auth != "none"

    @property
    def fingerprint(self) -> bytes:
        """32 bytes: the same for the same rules only. What a session was begun under, and may be resumed under."""
        words = (self.client_auth, self.min_version, self.client_ca, self.client_crl)
        return hashlib.sha256(repr(words).encode()).digest()


@attrs.frozen(kw_only=True)
class ServerTls:
    """A listener's TLS, in plain values."""

    pairs: tuple[Pair, ...]
    """The first one is for clients that name no server, or another one."""
    rules: Rules = Rules()
    hosts: Mapping[str, Rules] = attrs.field(factory=dict)
    """Server name, or "*." and a domain, to other rules: whole ones, nothing is taken over from `rules`."""
    ciphers: str | None = None
    """OpenSSL's list for TLS 1.2."""
    strict_sni: bool = False
    """Refuse who names a server that no pair is for."""
    tickets: TicketKeys | None = None
    """None: no session is resumed."""


@attrs.frozen
class Refusal:
    """Why a hello goes no further."""

    alert: int
    """To be sent."""
    text: str


class TlsServer:
    """A listener's contexts. ValueError of the constructor says what is wrong with `spec`."""

    def __init__(self, spec: ServerTls) -> None:
        self.spec = spec
        self._groups = _grouped(spec.pairs)
        self._by_name = {
            name: number for number, (names, _) in reversed(list(enumerate(self._groups))) for name in names
        }
        self._hosts = {_plain(name): rules for name, rules in spec.hosts.items()}
        self._made: dict[tuple[int, Rules], ssl.SSLContext] = {}
        for number in range(len(self._groups)):
            self._context(number, spec.rules)
        for name, rules in self._hosts.items():
            self._context(self._group_for(name) or 0, rules, f'hosts."{name}": ')

    @property
    def names(self) -> tuple[str, ...]:
        """Every server name that a pair is for."""
        return tuple(self._by_name)

    # -- choosing ---------------------------------------------------------------------------------------------------

    def refusal(self, hello: Hello) -> Refusal | None:
        """Why this client is not even shaken hands with; None: it is."""
        if self.spec.strict_sni and self._group_for(hello.server_name) is None:
            return Refusal(UNRECOGNIZED_NAME, f"no certificate for server name {hello.server_name or '(none)'}")
        offered = self.rules_for(hello.server_name).alpn
        if offered and hello.alpn and not set(offered) & set(hello.alpn):
            # OpenSSL would go on without: then one protocol's words could be taken for another's (ALPACA).
            return Refusal(NO_APPLICATION_PROTOCOL, f"no protocol in common: the client has {', '.join(hello.alpn)}")
        return None

    def choose(self, hello: Hello) -> ssl.SSLContext | None:
        """The context for this client; None: `refusal` says why not."""
        if self.refusal(hello) is not None:
            return None
        return self._context(self._group_for(hello.server_name) or 0, self.rules_for(hello.server_name))

    def wrap(self, sock: socket.SocketType, hello: Hello) -> TlsSocket:
        """The connection over `sock`, which is connected and non-blocking; its handshake is still to be done.

        `sock` has no descriptor any more then. Raises ConnectionError if the client has gone, and ValueError for one
        that `choose` refuses.
        """
        context = self.choose(hello)
        if context is None:
            raise ValueError("a refused client is not shaken hands with")
        tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)  # type: ignore[arg-type]
        assert isinstance(tls, TlsSocket)
        if not tls.is_connected:
            tls.close()
            raise ConnectionResetError("the client has gone")
        tls.asked_for = hello.server_name
        return tls

    def _group_for(self, name: str) -> int | None:
        found = self._by_name.get(name)
        return found if found is not None else self._by_name.get(wildcard_for(name))

    def rules_for(self, name: str) -> Rules:
        """What is asked of those who name this server; "" for none."""
        found = self._hosts.get(name) if self._hosts else None
        wildcard = wildcard_for(name) if self._hosts else ""
        while found is None and wildcard:
            found, wildcard = self._hosts.get(wildcard), wildcard_for(wildcard.removeprefix("*."))
        return found or self.spec.rules

    @property
    def asks_all_alike(self) -> bool:
        """No name has rules of its own."""
        return not self._hosts

    def trust(self, facts: TlsFacts) -> Trust:
        """What a client has proved by the handshake that these are the facts of."""
        return Trust(self, self.rules_for(facts.server_name), facts.version, facts.client is not None)

    # -- making -----------------------------------------------------------------------------------------------------

    def _context(self, number: int, rules: Rules, where: str = "") -> ssl.SSLContext:
        """The context of a group of pairs under `rules`, made if there is none yet."""
        made = self._made.get((number, rules))
        if made is None:
            made = self._make(self._groups[number][1], rules, where)
            self._made[number, rules] = made
        return made

    def _make(self, pairs: tuple[Pair, ...], rules: Rules, where: str) -> ssl.SSLContext:
        context = prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.minimum_version = VERSIONS[rules.min_version]
        try:
            context.set_ciphers(self.spec.ciphers or CIPHERS)
        except ssl.SSLError as exc:
            raise ValueError(f"ciphers: OpenSSL knows none of {self.spec.ciphers}") from exc
        if LIBSSL is not None:
            any(LIBSSL.set_groups(context, groups) for groups in GROUPS)
        for pair in pairs:
            try:
                load_pair(context, b"\n".join((pair.chain, pair.key)))
            except (ssl.SSLError, OSError) as exc:
                raise ValueError(f"certificate {pair.label or ', '.join(pair.names)}: {_why(exc)}") from exc
        _set_client_auth(context, rules, where)
        if rules.alpn:
            context.set_alpn_protocols(list(rules.alpn))
        self._set_tickets(context, rules)
        return context

    def _set_tickets(self, context: ssl.SSLContext, rules: Rules) -> None:
        if self.spec.tickets is not None:
            self.spec.tickets.seal(context, rules.fingerprint)
            return
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if LIBSSL is not None:
            LIBSSL.keep_no_sessions(context)


@attrs.frozen
class Trust:
    """What one client has proved. Requests for hosts that ask for more are misdirected (RFC 9110 15.5.20).

    A reload may have a host ask for certificates that did not, and lead requests of open connections to new hosts:
    there what is asked now counts. One that changes whose certificates count, as a new list of revoked ones does each
    day, does not cut off who was let in.
    """

    server: TlsServer
    rules: Rules
    version: str
    shown: bool
    """A certificate, found good."""

    def covers(self, host: bytes, server: TlsServer | None) -> bool:
        """Whether it is enough for the rules of `host`, as `codec.target` writes it. `server`: the listener's newest;
        None: it has none any more."""
        if server is None or server is self.server:
            if self.server.asks_all_alike:
                return True
            server = self.server
        name = host.decode("latin-1")
        rules, now = self.server.rules_for(name), server.rules_for(name)
        if _LEVELS[now.client_auth] > _LEVELS[rules.client_auth]:
            rules = now
        if rules is self.rules:
            return True
        return self.rules.proves(rules, shown=self.shown) and self.version >= f"TLSv{rules.min_version}"


def _grouped(pairs: tuple[Pair, ...]) -> list[tuple[tuple[str, ...], tuple[Pair, ...]]]:
    """Pairs by their names, in order."""
    if not pairs:
        raise ValueError("no certificate")
    found: dict[tuple[str, ...], tuple[Pair, ...]] = {}
    for pair in pairs:
        try:
            names = tuple(sorted({_plain(name) for name in pair.names or names_in(pair.chain)}))
        except (ssl.SSLError, OSError) as exc:
            raise ValueError(f"certificate {pair.label}: {_why(exc)}") from exc
        found[names] = (*found.get(names, ()), pair)
    return list(found.items())


def _set_client_auth(context: ssl.SSLContext, rules: Rules, where: str) -> None:
    """Whether and by whom a client must be known."""
    context.verify_mode = _VERIFY[rules.client_auth]
    if rules.client_auth == "none":
        return
    if rules.client_ca is None:
        raise ValueError(f"{where}client_auth needs client_ca")
    # Who names an intermediate authority means those that it has issued for, and no more.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for what, pem in (("client_ca", rules.client_ca), ("client_crl", rules.client_crl)):
        if pem is None:
            continue
        try:
            with as_path(pem) as path:
                context.load_verify_locations(path)
                if what == "client_ca" and LIBSSL is not None:
                    LIBSSL.ask_for_authorities(context, path)  # so that a client knows which certificate to show
        except (ssl.SSLError, OSError) as exc:
            raise ValueError(f"{where}{what}: {_why(exc)}") from exc
    if not context.cert_store_stats()["x509"]:
        raise ValueError(f"{where}client_ca: there is no certificate in it")
    if rules.client_crl is not None:
        if not context.cert_store_stats()["crl"]:
            raise ValueError(f"{where}client_crl: there is no list in it")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _plain(name: str) -> str:
    """As names are compared: lower case, without the root's dot."""
    return name.lower().removesuffix(".")


def _why(exc: OSError) -> str:
    """What OpenSSL says, as words."""
    return str(getattr(exc, "reason", None) or exc.strerror or exc).replace("_", " ").lower()


# -- what is known afterwards ---------------------------------------------------------------------------------------


def facts(tls: TlsSocket) -> TlsFacts:
    """Of a connection, of either side, whose handshake is done."""
    cipher = tls.cipher()
    return TlsFacts(
        version=tls.version() or "",
        cipher=cipher[0] if cipher is not None else "",
        alpn=tls.selected_alpn_protocol() or "",
        server_name=tls.asked_for if tls.server_side else str(tls.server_hostname or ""),
        resumed=bool(tls.session_reused),
        client=_client_of(tls) if tls.server_side and tls.context.verify_mode is not ssl.CERT_NONE else None,
    )


def _client_of(tls: TlsSocket) -> ClientCert | None:
    der = tls.getpeercert(binary_form=True)
    known: Mapping[str, Any] | None = tls.getpeercert()
    if not der or not known:
        return None
    return ClientCert(
        subject=distinguished_name(known.get("subject", ())),
        sans=tuple(f"{kind}:{value}" for kind, value in known.get("subjectAltName", ())),
        sha256=hashlib.sha256(der).hexdigest(),
        serial=known["serialNumber"],
        issuer=distinguished_name(known.get("issuer", ())),
        not_after=float(ssl.cert_time_to_seconds(known["notAfter"])),
        der=der,
    )
