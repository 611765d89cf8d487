"""What is said of TLS, PROXY, HTTP/2 and WebSocket words that cannot be had together, or do nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tcpgate.config.host import host
from tcpgate.config.load import load
from tcpgate.errors import ConfigError
from tests import pki

CA = pki.authority()
PAIRS = {
    "a": pki.make("a.example", "www.a.example", issuer=CA),
    "b": pki.make("b.example", "www.a.example", issuer=CA),
    "rsa": pki.make("a.example", "www.a.example", issuer=CA, key=pki.rsa_key()),
    "wild": pki.make("*.w.example", issuer=CA),
}
PIN = "sha256/" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the tables name."""
    monkeypatch.chdir(tmp_path)
    for name, leaf in PAIRS.items():
        Path(f"{name}.crt").write_text(leaf.chain)
        Path(f"{name}.key").touch(mode=0o600)
        Path(f"{name}.key").write_text(leaf.private)
    Path("ca.pem").write_text(CA.chain)
    Path("ca.crl").write_text(pki.revoked(CA))
    other = pki.authority("Other CA")
    Path("other.pem").write_text(other.chain)


def told(text: str) -> list[str]:
    """What is said of a config with `text`, an http listener, a route and two upstreams."""
    base = '[listeners.base]\nbind = ["127.0.0.1:9999"]\n[routes.base]\nupstream = "base"\n[upstreams.base]\n'
    more = 'endpoints = ["10.0.0.1:80"]\n[routes.redis]\npath = "/redis"\nupstream = "redis"\n[upstreams.redis]\n'
    Path("t.toml").write_text(f'{text}\n{base}{more}endpoints = ["10.0.0.2:80"]\n')
    try:
        problems = load("t.toml", environ={}, credentials=None).warnings
    except ConfigError as exc:
        problems = exc.problems
    return [f"{one.path}: {'warning: ' if one.warning else ''}{one.text}" for one in problems]


def tls(more: str = "", *, pairs: str = "a", listener: str = "") -> str:
    """A listener that speaks TLS."""
    files = ", ".join(f'{{ cert = "{name}.crt", key = "{name}.key" }}' for name in pairs.split())
    return f'[listeners.l]\nbind = ["127.0.0.1:443"]\n{listener}\n[listeners.l.tls]\ncertificates = [{files}]\n{more}'


def tcp(more: str) -> str:
    """A tcp listener."""
    return f'[listeners.l]\nbind = ["127.0.0.1:5432"]\nprotocol = "tcp"\n{more}'


def upstream(more: str) -> str:
    """Another upstream, used by a route, that speaks TLS."""
    return f'[routes.u]\npath = "/u"\nupstream = "u"\n[upstreams.u]\nendpoints = ["u:1"]\n[upstreams.u.tls]\n{more}'


HOST = '[listeners.l.tls.hosts."{}"]\n'
ASKS = 'client_auth = "required"\nclient_ca = "ca.pem"\n'

CASES: dict[str, tuple[str, list[str]]] = {
    "all is well": (tls(), []),
    # -- names ------------------------------------------------------------------------------------------------------
    "two certificates for one name": (
        tls(pairs="a b"),
        [
            "listeners.l.tls.certificates[1]: warning: www.a.example has a certificate already, "
            "listeners.l.tls.certificates[0] (t.toml:5); the first one is shown"
        ],
    ),
    "two keys for the same names": (tls(pairs="a rsa"), []),
    "the same certificate twice": (
        tls(pairs="a a"),
        [
            "listeners.l.tls.certificates[1]: warning: a.example has a certificate already, "
            "listeners.l.tls.certificates[0] (t.toml:5); the first one is shown"
        ],
    ),
    "rules for a name that has a certificate": (
        tls(HOST.format("x.w.example") + 'min_version = "1.3"\n', pairs="a wild"),
        [],
    ),
    "rules for names below one that has": (tls(HOST.format("*.w.example") + 'min_version = "1.3"\n', pairs="wild"), []),
    "rules for names among which one has": (tls(HOST.format("*.a.example") + 'min_version = "1.3"\n'), []),
    "rules for a name without": (
        tls(HOST.format("C.example") + 'min_version = "1.3"\n'),
        [
            'listeners.l.tls.hosts."c.example": warning: no certificate is for this name; '
            "such a client is shown the first one"
        ],
    ),
    "rules for a name without, strictly": (
        tls("strict_sni = true\n" + HOST.format("c.example") + 'min_version = "1.3"\n'),
        ['listeners.l.tls.hosts."c.example": warning: no certificate is for this name; such a client is refused'],
    ),
    "rules that say nothing": (
        tls(HOST.format("a.example")),
        ['listeners.l.tls.hosts."a.example": warning: asks for nothing that the listener does not ask for'],
    ),
    "a host that is none": (
        tls(HOST.format("10.0.0.1") + 'min_version = "1.3"\n'),
        ['listeners.l.tls.hosts."10.0.0.1": "10.0.0.1" is an address, and a client names none (RFC 6066 3)'],
    ),
    "the same host in two spellings": (
        tls(HOST.format("A.example") + ASKS + HOST.format("a.example") + ASKS),
        ['listeners.l.tls.hosts."a.example": is the same server as "A.example"'],
    ),
    # -- clients ----------------------------------------------------------------------------------------------------
    "who asks without authorities": (
        tls('client_auth = "required"'),
        ['listeners.l.tls.client_auth: needs client_ca = "FILE": whose certificates count?'],
    ),
    "authorities without asking": (
        tls('client_ca = "ca.pem"'),
        ['listeners.l.tls.client_ca: warning: has no effect without client_auth = "optional" or "required"'],
    ),
    "authorities for one name only": (
        tls('client_ca = "ca.pem"\n' + HOST.format("a.example") + 'client_auth = "required"\n'),
        [],
    ),
    "a name that asks without authorities": (
        tls(HOST.format("a.example") + 'client_auth = "required"\n'),
        [
            'listeners.l.tls.hosts."a.example".client_auth: '
            'needs client_ca = "FILE", here or in tls: whose certificates count?'
        ],
    ),
    "a name's authorities without asking": (
        tls(HOST.format("a.example") + 'client_ca = "ca.pem"\n'),
        [
            'listeners.l.tls.hosts."a.example".client_ca: warning: '
            'has no effect without client_auth = "optional" or "required"'
        ],
    ),
    "a list without authorities": (
        tls('client_crl = "ca.crl"'),
        ["listeners.l.tls.client_crl: needs client_ca: whose list is it?"],
    ),
    "a name's list without authorities": (
        tls(HOST.format("a.example") + 'client_crl = "ca.crl"\n'),
        ['listeners.l.tls.hosts."a.example".client_crl: needs client_ca: whose list is it?'],
    ),
    "a name's authorities under the listener's lists": (
        tls(ASKS + 'client_crl = "ca.crl"\n' + HOST.format("a.example") + 'client_ca = "other.pem"\n'),
        [
            'listeners.l.tls.hosts."a.example".client_ca: has its lists of revoked certificates not in '
            "the listener's client_crl; name a client_crl here"
        ],
    ),
    "telling of clients that are not asked": (
        tls("forward_client = true"),
        [
            "listeners.l.tls.forward_client: warning: has no effect without client_auth: "
            "there is no certificate to tell of"
        ],
    ),
    "telling of clients that are asked": (tls("forward_client = true\n" + ASKS), []),
    # -- protocols --------------------------------------------------------------------------------------------------
    "a protocol that is not served": (
        tls('alpn = ["h3", "http/1.1"]\n' + HOST.format("a.example") + 'alpn = ["spdy/3"]\n'),
        [
            'listeners.l.tls.alpn[0]: warning: is not served by an http listener, so it is not offered; "h2" and '
            '"http/1.1" are',
            'listeners.l.tls.hosts."a.example".alpn[0]: warning: is not served by an http listener, so it is not '
            'offered; "h2" and "http/1.1" are',
        ],
    ),
    "a protocol of no length": (
        tls('alpn = [""]'),
        [
            'listeners.l.tls.alpn[0]: "" is not a protocol; it has 1 to 255 bytes, '
            'such as "h2", "http/1.1", "postgresql"'
        ],
    ),
    "any protocol over tcp": (tls('alpn = ["imap"]', listener='protocol = "tcp"\nupstream = "redis"'), []),
    "ciphers for no version": (
        tls('min_version = "1.3"\nciphers = "ECDHE+AESGCM"'),
        ['listeners.l.tls.ciphers: warning: has no effect with min_version = "1.3": it is for TLS 1.2'],
    ),
    "http2 beside tls": (
        tls(listener="http2 = true"),
        ["listeners.l.http2: warning: has no effect: with tls, alpn says whether HTTP/2 is served"],
    ),
    "http2 over tcp": (
        tcp('upstream = "redis"\nhttp2 = true'),
        ["listeners.l.http2: warning: has no effect: a tcp listener moves bytes, whatever they say"],
    ),
    "limits of HTTP/2 without it": (
        '[listeners.l]\nbind = ["127.0.0.1:80"]\nlimits = { streams = 5, resets = 6 }',
        [
            "listeners.l.limits.streams: warning: has no effect: HTTP/2 is not served here",
            "listeners.l.limits.resets: warning: has no effect: HTTP/2 is not served here",
        ],
    ),
    "limits of HTTP/2 with it": (
        '[listeners.l]\nbind = ["127.0.0.1:80"]\nhttp2 = true\nlimits = { streams = 5, resets = 6 }',
        [],
    ),
    "a handshake that there is not": (
        '[listeners.l]\nbind = ["127.0.0.1:80"]\ntimeouts = { handshake = "1s" }',
        [
            "listeners.l.timeouts.handshake: warning: has no effect without tls, sni, alpn, proxy_protocol or http2: "
            "there is no handshake"
        ],
    ),
    "h2 to an upstream of flows": (
        tcp('upstream = "u"\n[upstreams.u]\nendpoints = ["u:1"]\nhttp = "h2"'),
        ["upstreams.u.http: warning: has no effect: only tcp listeners lead here, and they move bytes"],
    ),
    "frames of a route that answers by itself": (
        '[routes.r]\npath = "/r"\nrespond = {}\nwebsocket = {}',
        ["routes.r.websocket: warning: has no effect: this route leads to no upstream"],
    ),
    "frames of a split route": ('[routes.r]\npath = "/r"\nsplit = { base = 1, redis = 2 }\nwebsocket = {}', []),
    # -- where names lead -------------------------------------------------------------------------------------------
    "by name and protocol": (
        tcp('sni = { "a.example" = "base", "*.b.example" = "redis" }\nalpn = { imap = "redis" }'),
        [],
    ),
    "neither upstream nor names": (
        tcp(""),
        ['listeners.l: a tcp listener needs upstream = "NAME", which takes every flow; or sni, or alpn'],
    ),
    "names that lead nowhere": (
        tcp('sni = { "a.example" = "redsi" }\nalpn = { imap = "bas" }'),
        [
            'listeners.l.sni."a.example": there is no upstream "redsi" (did you mean "redis"?)',
            'listeners.l.alpn.imap: there is no upstream "bas" (did you mean "base"?)',
        ],
    ),
    "a name that is a URL": (
        tcp('sni = { "https://a.example" = "redis" }'),
        [
            'listeners.l.sni."https://a.example": "https://a.example" is not a host alone; '
            "leave out scheme, port and path"
        ],
    ),
    "names on an http listener": (
        '[listeners.l]\nbind = ["127.0.0.1:80"]\nsni = { "a.example" = "base" }\nalpn = { h2 = "base" }',
        [
            "listeners.l.sni: is for tcp listeners; on an http listener hosts of [routes.*] do that; "
            'or set protocol = "tcp"',
            'listeners.l.alpn: is for tcp listeners; on an http listener set alpn in tls; or set protocol = "tcp"',
        ],
    ),
    "an upstream that only a name leads to": (
        tcp('sni = { "a.example" = "u" }\n[upstreams.u]\nendpoints = ["u:1"]'),
        [],
    ),
    # -- PROXY ------------------------------------------------------------------------------------------------------
    "headers of nobody": (
        tcp('upstream = "redis"\nproxy_protocol = "require"'),
        [
            "listeners.l.proxy_protocol: nobody's PROXY header would be believed; "
            'name the load balancers: trusted_proxies = ["10.0.0.0/8"]'
        ],
    ),
    "headers of some": (
        tcp(
            'upstream = "redis"\nproxy_protocol = "accept"\ntrusted_proxies = ["10.0.0.0/8"]\ntimeouts.handshake = "1s"'
        ),
        [],
    ),
    "headers over a unix socket": (
        '[listeners.l]\nbind = ["unix:/run/x"]\nproxy_protocol = "require"\nmode = "0600"',
        [],
    ),
    "trust of no use": (
        tcp('upstream = "redis"\ntrusted_proxies = ["10.0.0.0/8"]'),
        ["listeners.l.trusted_proxies: warning: has no effect: a tcp listener reads no request, and no PROXY header"],
    ),
    "a mode of no file": (
        '[listeners.l]\nbind = ["127.0.0.1:80"]\nmode = "0600"',
        ['listeners.l.mode: warning: has no effect without bind = ["unix:/path"]'],
    ),
    "a mode that is none": (
        '[listeners.l]\nbind = ["unix:/run/x"]\nmode = "rw-"',
        ["listeners.l.mode: must be octal digits such as \"0660\", not 'rw-'"],
    ),
    "a header for an upstream of requests": (
        '[routes.u]\npath = "/u"\nupstream = "u"\n[upstreams.u]\nendpoints = ["u:1"]\nproxy_protocol = "v2"',
        [],
    ),
    "calls of gRPC that would go by HTTP/1.1": (
        '[routes.u]\npath = "/u"\nupstream = "u"\n[upstreams.u]\nendpoints = ["u:1"]\nhealth.grpc = ""',
        [
            "upstreams.u.health.grpc: warning: is asked by HTTP/2, but requests go by HTTP/1.1; "
            'calls of gRPC need http = "h2"'
        ],
    ),
    # -- upstreams --------------------------------------------------------------------------------------------------
    "proof by authorities": (upstream('ca = "ca.pem"\nname = "a.example"\ncert = "a.crt"\nkey = "a.key"'), []),
    "proof by nothing": (
        upstream('verify = false\nca = "ca.pem"\nname = "a.example"'),
        [
            "upstreams.u.tls.ca: warning: has no effect with verify = false: no authority is asked",
            "upstreams.u.tls.name: warning: is asked for, but with verify = false the certificate need not have it",
            "upstreams.u.tls.verify: warning: whoever stands in between can read along and change what is said; "
            "name the endpoint's key in pin",
        ],
    ),
    "proof by the key": (upstream(f'verify = false\npin = ["{PIN}"]'), []),
    "a pin that is none": (
        upstream(f'pin = ["{PIN[7:]}", "sha256/{"A" * 42}B="]'),
        [
            f'upstreams.u.tls.pin[0]: "{PIN[7:]}" is not a pin; write it as "sha256/BASE64", the base64 of 32 bytes',
            f'upstreams.u.tls.pin[1]: "sha256/{"A" * 42}B=" is not a pin; '
            'write it as "sha256/BASE64", the base64 of 32 bytes',
        ],
    ),
    "a certificate without its key": (
        upstream('cert = "a.crt"'),
        ["upstreams.u.tls.cert: needs key as well: one without the other proves nothing"],
    ),
    "a key without its certificate": (
        upstream('key = "a.key"'),
        ["upstreams.u.tls.key: needs cert as well: one without the other proves nothing"],
    ),
    "a probe that judges less": (
        upstream('ca = "ca.pem"\n[upstreams.u.health]\ntls = true'),
        [
            "upstreams.u.health.tls: warning: judges no certificate, so an endpoint whose certificate is refused "
            "looks healthy; ask by http"
        ],
    ),
    "a probe of the server as a whole": (
        upstream('ca = "ca.pem"\n[upstreams.u.health]\ngrpc = ""').replace("endpoints", 'http = "h2"\nendpoints'),
        [],
    ),
}


@pytest.mark.parametrize(("text", "expected"), list(CASES.values()), ids=list(CASES))
def test_what_is_said(text: str, expected: list[str]) -> None:
    assert sorted(told(text)) == sorted(expected)


@pytest.mark.parametrize("words", ["NONSENSE", "TLS_AES_128_GCM_SHA256"])
def test_a_cipher_list_of_which_this_hosts_openssl_knows_nothing_is_wrong(words: str) -> None:
    text = '\n[routes.r]\nupstream = "u"\n[upstreams.u]\nendpoints = ["10.0.0.1:80"]'
    Path("t.toml").write_text(tls('ciphers = "ECDHE+AESGCM"') + text)
    load("t.toml", environ={}, credentials=None, world=host({}, 0))
    Path("t.toml").write_text(tls(f'ciphers = "{words}"') + text)
    with pytest.raises(ConfigError) as caught:
        load("t.toml", environ={}, credentials=None, world=host({}, 0))
    wrong = [problem for problem in caught.value.problems if not problem.warning]
    assert [(problem.path, problem.line) for problem in wrong] == [("listeners.l.tls.ciphers", 6)]
    assert wrong[0].text.startswith(f'OpenSSL knows none of "{words}" for TLS 1.2; `openssl ciphers')


NEEDS_TLS = "needs tls, to end its clients' TLS here, or sni or alpn, to see where it goes"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (tcp('upstream = "redis"\nstarttls = "postgres"'), [f"listeners.l.starttls: {NEEDS_TLS}"]),
        (tcp('starttls = "postgres"\nsni = { "a.example" = "redis" }'), []),
        (tls(listener='protocol = "tcp"\nupstream = "redis"\nstarttls = "postgres"'), []),
        (
            tls(listener='starttls = "postgres"'),
            ['listeners.l.starttls: is for tcp listeners; set protocol = "tcp"'],
        ),
        (
            tcp('starttls = "postgres"\nsni = { "a.example" = "db" }\nalpn = { x = "db" }')
            + '\n[upstreams.db]\nendpoints = ["10.0.0.1:5432"]\n[upstreams.db.tls]\nname = "db.example"',
            [
                "listeners.l.starttls: clients' own TLS passes here without tls, but upstreams.db has tls; remove one "
                "of them"
            ],
        ),
    ],
)
def test_who_asks_for_tls_gets_one_and_only_one(text: str, said: list[str]) -> None:
    assert told(text) == said


def test_a_probe_by_tls_does_not_ask_postgresql_first() -> None:
    text = tls(listener='protocol = "tcp"\nupstream = "db"\nstarttls = "postgres"')
    text += '\n[upstreams.db]\nendpoints = ["10.0.0.1:5432"]\n[upstreams.db.tls]\n[upstreams.db.health]\n'
    said = told(f"{text}tls = true")
    wanted = "does not ask PostgreSQL for TLS first, so it always fails there; tcp = true does not"
    assert f"upstreams.db.health.tls: warning: {wanted}" in said
    assert wanted not in "".join(told(f"{text}tcp = true"))
