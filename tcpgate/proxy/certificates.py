"""What listeners show those who speak TLS to them: from their tables in the config to contexts of OpenSSL's. And what
endpoints are asked for, which is the same work.

Made while a generation is prepared, in a thread: a key takes milliseconds, and one that cannot be used must fail the
reload, not a client. A listener whose table, files' contents included, is the same keeps what it has.

Called by the worker, which hands the result to the plane with the generation (`Plane.tls`).
"""

from __future__ import annotations

import attrs

from tcpgate.codec import postgres
from tcpgate.config import schema
from tcpgate.config.schema_tls import ListenerTls, TlsRules
from tcpgate.config.validators import Secret
from tcpgate.errors import ConfigError, Problem
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_client import Contexts
from tcpgate.net.tls_server import Pair, Rules, ServerTls, TlsServer
from tcpgate.proxy.plane import Plane
from tcpgate.state.reach import reach_of

HTTP_WORDS = ("h2", "http/1.1")
DEFAULT_ALPN = attrs.fields(ListenerTls).alpn.default


def build(
    config: schema.Config, tickets: TicketKeys, plane: Plane | None, contexts: Contexts | None = None
) -> dict[str, TlsServer]:
    """The TLS of every listener that has any, by name; what is as it is on the `plane` stays.

    What connections to endpoints will need is made as well, and kept in `contexts`. Raises ConfigError for what OpenSSL
    does not take.
    """
    previous = None if plane is None else plane.snapshot.config
    made = {} if plane is None else plane.tls
    found: dict[str, TlsServer] = {}
    problems: list[Problem] = []
    for name, listener in config.listeners.items():
        if listener.tls is None:
            continue
        before = None if previous is None else previous.listeners.get(name)
        if before is not None and name in made and _table(before) == _table(listener):
            found[name] = made[name]
            continue
        try:
            found[name] = TlsServer(server_tls(listener, listener.tls, tickets))
        except ValueError as exc:
            problems.append(Problem("", 0, f"listeners.{name}.tls", str(exc)))
    if contexts is not None:
        problems += _ahead(config, contexts)
    if problems:
        raise ConfigError(problems)
    return found


def _ahead(config: schema.Config, contexts: Contexts) -> list[Problem]:
    """Have ready what the first connection to each upstream would have to wait for; what cannot be made."""
    problems: list[Problem] = []
    for name, upstream in config.upstreams.items():
        reach = reach_of(upstream)
        try:
            for spec in (reach.http, reach.tcp):
                if spec is not None:
                    contexts.get(spec)
        except ValueError as exc:
            problems.append(Problem("", 0, f"upstreams.{name}.tls", str(exc)))
    return problems


def _table(listener: schema.Listener) -> tuple[object, ...]:
    """What decides its TLS."""
    return listener.tls, listener.protocol, tuple(listener.alpn), listener.starttls


def _offered(listener: schema.Listener, alpn: tuple[str, ...]) -> tuple[str, ...]:
    """The protocols that it agrees to, of those that its table, or a host's, has.

    Over http those that are served there. Over tcp the default, which is HTTP's, means those that it knows a way for: a
    client of a database would be refused for HTTP's.
    """
    if listener.protocol == "http":
        return tuple(word for word in alpn if word in HTTP_WORDS)
    if alpn != DEFAULT_ALPN:
        return alpn
    own = (postgres.ALPN,) if listener.starttls == "postgres" and postgres.ALPN not in listener.alpn else ()
    return (*listener.alpn, *own)


def server_tls(listener: schema.Listener, spec: ListenerTls, tickets: TicketKeys) -> ServerTls:
    """A listener's table as plain values."""
    rules = Rules(
        client_auth=spec.client_auth,
        client_ca=_bytes(spec.client_ca_pem),
        client_crl=_bytes(spec.client_crl_pem),
        min_version=spec.min_version,
        alpn=_offered(listener, spec.alpn),
    )
    return ServerTls(
        pairs=tuple(
            Pair(names=one.names, chain=_bytes(one.chain_pem) or b"", key=_bytes(one.key_pem) or b"", label=one.cert)
            for one in spec.certificates
        ),
        rules=rules,
        hosts={name: _rules(listener, own, rules) for name, own in spec.hosts.items()},
        ciphers=spec.ciphers,
        strict_sni=spec.strict_sni,
        tickets=tickets if spec.tickets else None,
    )


def _rules(listener: schema.Listener, own: TlsRules, rules: Rules) -> Rules:
    """A host's rules; what it does not set is the listener's."""
    return Rules(
        client_auth=own.client_auth or rules.client_auth,
        client_ca=_bytes(own.client_ca_pem) or rules.client_ca,
        client_crl=_bytes(own.client_crl_pem) or rules.client_crl,
        min_version=own.min_version or rules.min_version,
        alpn=rules.alpn if own.alpn is None else _offered(listener, own.alpn),
    )


def _bytes(secret: Secret | None) -> bytes | None:
    return None if secret is None else secret.reveal().encode()
