"""Whether what is asked of TLS, PROXY headers and the newer protocols can be had, and has an effect. Pure.

`pem.py` has judged each file by itself. Here the tables are held against each other and, given the time, against the
ends of their certificates. A certificate that is over is a warning: a gateway that does not start is worse than one
whose clients are told why they should not trust it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from tcpgate.config import certificate, schema
from tcpgate.config.report import KeyPath, Names, Report, dotted, listed
from tcpgate.config.schema_tls import Certificate, ListenerTls, TlsRules, UpstreamTls
from tcpgate.config.validators import Secret
from tcpgate.units import HostPort, UnixPath, parse_bind

HTTP_WORDS = ("h2", "http/1.1")
SOON = 14
"""Days before its end from which on a certificate is warned of: ACME clients renew at 30."""
DAY = 86400.0


def check_tls(config: schema.Config, names: Names, report: Report) -> None:
    """Each listener's and upstream's words of TLS, PROXY, HTTP/2 and WebSocket."""
    for name, listener in config.listeners.items():
        path: KeyPath = ("listeners", name)
        _check_leads(path, listener, names, report)
        _check_starttls(path, listener, config.upstreams, report)
        _check_proxy(path, listener, report)
        _check_idle(path, listener, report)
        if listener.tls is not None:
            _check_listener_tls((*path, "tls"), listener, listener.tls, report)
    served = _served_http(config)
    for name, upstream in config.upstreams.items():
        if upstream.tls is not None:
            _check_upstream_tls(("upstreams", name, "tls"), upstream.tls, report)
            if upstream.health is not None and upstream.health.tls and (upstream.tls.verify or upstream.tls.pin):
                text = "judges no certificate, so an endpoint whose certificate is refused looks healthy; ask by http"
                report.warn(("upstreams", name, "health", "tls"), text)
        if (
            upstream.health is not None
            and upstream.health.grpc is not None
            and upstream.http != "h2"
            and name in served
        ):
            text = 'is asked by HTTP/2, but requests go by HTTP/1.1; calls of gRPC need http = "h2"'
            report.warn(("upstreams", name, "health", "grpc"), text)
        if upstream.http != "http/1.1" and name not in served and any(_leads(config, name)):
            report.warn(("upstreams", name, "http"), "has no effect: only tcp listeners lead here, and they move bytes")
    for name, route in config.routes.items():
        if route.websocket is not None and route.upstream is None and not route.split:
            report.warn(("routes", name, "websocket"), "has no effect: this route leads to no upstream")


def _served_http(config: schema.Config) -> set[str]:
    """Upstreams that take HTTP."""
    routes = config.routes.values()
    return {name for route in routes for name in (route.upstream, *route.split) if name is not None}


def _leads(config: schema.Config, upstream: str) -> Iterator[schema.Listener]:
    """Listeners that lead to it by themselves."""
    for listener in config.listeners.values():
        if upstream in (listener.upstream, *listener.sni.values(), *listener.alpn.values()):
            yield listener


# -- listeners ------------------------------------------------------------------------------------------------------


def _check_leads(path: KeyPath, listener: schema.Listener, names: Names, report: Report) -> None:
    """Where `sni` and `alpn` lead."""
    tables: Mapping[str, Mapping[str, str]] = {"sni": listener.sni, "alpn": listener.alpn}
    for key, table in tables.items():
        if table and listener.protocol == "http":
            cure = "hosts of [routes.*] do that" if key == "sni" else "set alpn in tls"
            report.error((*path, key), f'is for tcp listeners; on an http listener {cure}; or set protocol = "tcp"')
        for word, upstream in table.items() if listener.protocol == "tcp" else ():
            report.judge_name((*path, key, word), "upstreams", upstream, names)


def _check_starttls(
    path: KeyPath, listener: schema.Listener, upstreams: Mapping[str, schema.Upstream], report: Report
) -> None:
    """Whether there is any TLS to be asked for; and that nobody's TLS would be wrapped in another."""
    if listener.starttls == "off":
        return
    at = (*path, "starttls")
    if listener.protocol == "http":
        report.error(at, 'is for tcp listeners; set protocol = "tcp"')
        return
    if not (listener.tls or listener.sni or listener.alpn):
        report.error(at, "needs tls, to end its clients' TLS here, or sni or alpn, to see where it goes")
        return
    for name in dict.fromkeys((listener.upstream or "", *listener.sni.values(), *listener.alpn.values())):
        upstream = upstreams.get(name)
        if upstream is None:
            continue
        if upstream.tls is not None and listener.tls is None:
            text = f"clients' own TLS passes here without tls, but upstreams.{name} has tls; remove one of them"
            report.error(at, text)
        if upstream.health is not None and upstream.health.tls:
            text = "does not ask PostgreSQL for TLS first, so it always fails there; tcp = true does not"
            report.warn(("upstreams", name, "health", "tls"), text)


def _check_proxy(path: KeyPath, listener: schema.Listener, report: Report) -> None:
    """Whose PROXY headers are believed. The peer of a unix socket has no address, and is let in by the file's mode."""
    binds = [parse_bind(text) for text in listener.bind]
    off_host = any(isinstance(bind, HostPort) for bind in binds)
    if listener.proxy_protocol != "off" and off_host and not listener.trusted_proxies:
        text = 'nobody\'s PROXY header would be believed; name the load balancers: trusted_proxies = ["10.0.0.0/8"]'
        report.error((*path, "proxy_protocol"), text)
    if listener.mode != schema.Listener(bind=("fd:x",)).mode and not any(isinstance(bind, UnixPath) for bind in binds):
        report.warn((*path, "mode"), 'has no effect without bind = ["unix:/path"]')


def _check_idle(path: KeyPath, listener: schema.Listener, report: Report) -> None:
    """Keys that this listener never looks at."""
    plain = schema.Listener(bind=("fd:x",))
    greets = listener.tls or listener.sni or listener.alpn or listener.proxy_protocol != "off" or listener.http2
    if listener.timeouts.handshake != plain.timeouts.handshake and not greets:
        text = "has no effect without tls, sni, alpn, proxy_protocol or http2: there is no handshake"
        report.warn((*path, "timeouts", "handshake"), text)
    if listener.http2 and listener.protocol == "tcp":
        report.warn((*path, "http2"), "has no effect: a tcp listener moves bytes, whatever they say")
    elif listener.http2 and listener.tls is not None:
        report.warn((*path, "http2"), "has no effect: with tls, alpn says whether HTTP/2 is served")
    if listener.protocol == "tcp":
        return
    offered = (
        [] if listener.tls is None else [listener.tls.alpn, *(one.alpn or () for one in listener.tls.hosts.values())]
    )
    if not listener.http2 and not any("h2" in words for words in offered):
        for key in ("streams", "resets"):
            if getattr(listener.limits, key) != getattr(plain.limits, key):
                report.warn((*path, "limits", key), "has no effect: HTTP/2 is not served here")


def _check_listener_tls(path: KeyPath, listener: schema.Listener, tls: ListenerTls, report: Report) -> None:
    _check_names(path, tls, report)
    _check_clients(path, tls, report)
    words: list[tuple[KeyPath, Sequence[str] | None]] = [((*path, "alpn"), tls.alpn)]
    words += [((*path, "hosts", name, "alpn"), rules.alpn) for name, rules in tls.hosts.items()]
    for at, offered in words if listener.protocol == "http" else ():
        for index, word in enumerate(offered or ()):
            if word not in HTTP_WORDS:
                text = f"is not served by an http listener, so it is not offered; {listed(HTTP_WORDS, 'and')} are"
                report.warn((*at, index), text)
    if tls.forward_client and listener.protocol == "tcp":
        report.warn((*path, "forward_client"), "has no effect: a tcp listener adds no header fields")
    if tls.ciphers is not None and tls.min_version == "1.3":
        report.warn((*path, "ciphers"), 'has no effect with min_version = "1.3": it is for TLS 1.2')


def _check_names(path: KeyPath, tls: ListenerTls, report: Report) -> None:
    """Which certificate is for which name."""
    first: dict[str, int] = {}
    for index, pair in enumerate(tls.certificates):
        for name in pair.names:
            other = first.setdefault(name, index)
            if other != index and not _side_by_side(tls.certificates[other], pair):
                at = (*path, "certificates", other)
                text = f"{name} has a certificate already, {dotted(at)} ({report.place(at)}); the first one is shown"
                report.warn((*path, "certificates", index), text)
                break
    known = [name for pair in tls.certificates for name in pair.names]
    for name in tls.hosts if known else ():
        below = name.startswith("*.") and any(one.partition(".")[2] == name[2:] for one in known)
        if not certificate.is_for(known, name) and not below:
            text = "no certificate is for this name"
            what = "such a client is refused" if tls.strict_sni else "such a client is shown the first one"
            report.warn((*path, "hosts", name), f"{text}; {what}")


def _side_by_side(one: Certificate, other: Certificate) -> bool:
    """Whether both are used: for the very same names, and with keys of two kinds (RSA, ECDSA), each for its clients."""
    read = [certificate.held(_text(pair.chain_pem)) for pair in (one, other)]
    kinds = {type(chain[0].raw.public_key()) for chain in read if chain}
    return set(one.names) == set(other.names) and len(kinds) == 2


def _check_clients(path: KeyPath, tls: ListenerTls, report: Report) -> None:
    """Who asks for client certificates, and can judge them."""
    asks = tls.client_auth != "none"
    if asks and tls.client_ca is None:
        report.error((*path, "client_auth"), 'needs client_ca = "FILE": whose certificates count?')
    if tls.client_crl is not None and tls.client_ca is None:
        report.error((*path, "client_crl"), "needs client_ca: whose list is it?")
    inheritors = [rules for rules in tls.hosts.values() if rules.client_ca is None and _asks(rules, tls)]
    if tls.client_ca is not None and not asks and not inheritors:
        report.warn((*path, "client_ca"), 'has no effect without client_auth = "optional" or "required"')
    for name, rules in tls.hosts.items():
        _check_host((*path, "hosts", name), rules, tls, report)
    if tls.forward_client and not asks and not any(_asks(rules, tls) for rules in tls.hosts.values()):
        report.warn((*path, "forward_client"), "has no effect without client_auth: there is no certificate to tell of")


def _asks(rules: TlsRules, tls: ListenerTls) -> bool:
    return (rules.client_auth or tls.client_auth) != "none"


def _check_host(path: KeyPath, rules: TlsRules, tls: ListenerTls, report: Report) -> None:
    """The rules for one name; what is not set is the listener's."""
    asks, ca = _asks(rules, tls), rules.client_ca or tls.client_ca
    if asks and ca is None and rules.client_auth is not None:
        report.error((*path, "client_auth"), 'needs client_ca = "FILE", here or in tls: whose certificates count?')
    if rules.client_ca is not None and not asks:
        report.warn((*path, "client_ca"), 'has no effect without client_auth = "optional" or "required"')
    if rules.client_crl is not None and ca is None:
        report.error((*path, "client_crl"), "needs client_ca: whose list is it?")
    if rules.client_ca is not None and rules.client_crl is None and tls.client_crl is not None:
        foreign = rules.client_ca_pem is not None and tls.client_crl_pem is not None
        lists = certificate.list_findings(_text(tls.client_crl_pem), _text(rules.client_ca_pem)) if foreign else ()
        if any(not warning for _, warning in lists):
            text = "has its lists of revoked certificates not in the listener's client_crl; name a client_crl here"
            report.error((*path, "client_ca"), text)
    if rules == TlsRules():
        report.warn(path, "asks for nothing that the listener does not ask for")


def _text(secret: Secret | None) -> str:
    return "" if secret is None else secret.reveal()


# -- upstreams ------------------------------------------------------------------------------------------------------


def _check_upstream_tls(path: KeyPath, tls: UpstreamTls, report: Report) -> None:
    if not tls.verify:
        if not tls.pin:
            text = "whoever stands in between can read along and change what is said; name the endpoint's key in pin"
            report.warn((*path, "verify"), text)
        if tls.ca is not None:
            report.warn((*path, "ca"), "has no effect with verify = false: no authority is asked")
        if tls.name is not None:
            report.warn((*path, "name"), "is asked for, but with verify = false the certificate need not have it")
    for one, other in (("cert", "key"), ("key", "cert")):
        if getattr(tls, one) is not None and getattr(tls, other) is None:
            report.error((*path, one), f"needs {other} as well: one without the other proves nothing")


# -- ends -----------------------------------------------------------------------------------------------------------


def chains(config: schema.Config) -> Iterator[tuple[KeyPath, list[certificate.Certificate]]]:
    """Every certificate that is shown to somebody, with its chain, and where it is named."""
    for name, listener in config.listeners.items():
        for index, pair in enumerate(listener.tls.certificates if listener.tls is not None else ()):
            if chain := certificate.held(_text(pair.chain_pem)):
                yield ("listeners", name, "tls", "certificates", index, "cert"), chain
    for name, upstream in config.upstreams.items():
        if upstream.tls is not None and (chain := certificate.held(_text(upstream.tls.cert_pem))):
            yield ("upstreams", name, "tls", "cert"), chain


def check_ends(config: schema.Config, now: float, report: Report) -> None:
    """Certificates and lists that are over, soon will be, or are not yet valid. `now` is Unix time."""
    for at, chain in chains(config):
        for number, one in enumerate(chain, 1):
            if text := end_of(one, now):
                report.warn(at, text if number == 1 else f"certificate {number} of the chain: {text}")
    for at, authorities in _authorities(config):
        for one in authorities:
            if one.not_after <= now:
                report.warn(at, f"{end_of(one, now)}: nothing that it signed counts any more")
    for at, lists in _lists(config):
        ends = certificate.lists_end(lists.reveal())
        if ends is not None and ends <= now:
            report.warn(
                at, f"a list ended on {_day(ends)}: every client certificate is refused until a newer one comes"
            )


def end_of(one: certificate.Certificate, now: float) -> str:
    """What is to be said of a certificate's time; "" if nothing is."""
    left = (one.not_after - now) / DAY
    if one.not_before > now:
        return f"the certificate for {one.title} is not valid before {_day(one.not_before)}"
    if left <= 0:
        return f"the certificate for {one.title} ended on {_day(one.not_after)}"
    if left <= SOON:
        days = f"{left:.0f} day{'' if round(left) == 1 else 's'}" if left >= 1 else f"{left * 24:.0f} hours"
        return f"the certificate for {one.title} ends in {days}, on {_day(one.not_after)}"
    return ""


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def _authorities(config: schema.Config) -> Iterator[tuple[KeyPath, list[certificate.Certificate]]]:
    for at, rules in _rules(config):
        yield (*at, "client_ca"), certificate.held(_text(rules.client_ca_pem))
    for name, upstream in config.upstreams.items():
        if upstream.tls is not None:
            yield ("upstreams", name, "tls", "ca"), certificate.held(_text(upstream.tls.ca_pem))


def _lists(config: schema.Config) -> Iterator[tuple[KeyPath, Secret]]:
    for at, rules in _rules(config):
        if rules.client_crl_pem is not None:
            yield (*at, "client_crl"), rules.client_crl_pem


def _rules(config: schema.Config) -> Iterator[tuple[KeyPath, ListenerTls | TlsRules]]:
    for name, listener in config.listeners.items():
        if listener.tls is not None:
            yield ("listeners", name, "tls"), listener.tls
            for server, rules in listener.tls.hosts.items():
                yield ("listeners", name, "tls", "hosts", server), rules
