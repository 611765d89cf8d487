"""The configuration as classes: one per TOML table, every key with its unit and the reason for its default.

Every object is a named table; the name is its identity across reloads, and `Config` holds each kind in a dict by name.
Values here are already meant: seconds, bytes, units per second, `Networks`. `load.py` gets them from TOML, `check.py`
looks across tables, `diff.py` compares two of them. Objects are frozen and compare by value: equal means "a reload does
not touch it".

Pure. Source of the defaults: the manuals of HAProxy, Envoy and nginx; each field says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NewType

import attrs

from tcpgate.config.schema_tls import ListenerTls, UpstreamTls
from tcpgate.config.validators import (
    Secret,
    between,
    octal,
    optional,
    rate,
    regex,
    size,
    some_time,
    span,
)
from tcpgate.units import Bytes, Networks, Seconds

ByteRate = NewType("ByteRate", float)
"""Bytes per second, written "1KiB/s"."""

Balance = Literal[
    "round_robin",
    "weighted_round_robin",
    "least_connections",
    "random",
    "p2c",
    "peak_ewma",
    "source_hash",
    "ring_hash",
    "maglev",
    "rendezvous",
    "first",
]
Panic = Literal["all", "fail"]
ProxyIn = Literal["off", "accept", "require"]
ProxyOut = Literal["off", "v1", "v2"]
HttpVersion = Literal["http/1.1", "h2"]

MAX_WEIGHT = 256
"""HAProxy's ceiling; enough steps for a canary of 0.4 %."""

# -- the process ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Gateway:
    """`[gateway]`: the process as a whole."""

    workers: int | Literal["auto"] = attrs.field(default="auto")
    """Worker processes; "auto" is one per core that this process may use. 1 to 64."""
    state_dir: str = "/var/lib/tcpgate"
    """Where what must outlive the process is kept; created if missing."""
    drain: Seconds = attrs.field(default=Seconds(30.0), validator=some_time)
    """How long open work may finish on stop, upgrade or removal (seconds). nginx waits forever, Envoy 600 s."""
    lame_duck: Seconds = attrs.field(default=Seconds(0.0), validator=span(0, 600))
    """On SIGTERM, how long to go on accepting with readiness off, so that load balancers in front look away."""
    health_deadline: Seconds = attrs.field(default=Seconds(5.0), validator=some_time)
    """READY waits for the first round of health checks, but no longer than this (seconds)."""
    worker_silence: Seconds = attrs.field(default=Seconds(15.0), validator=span(1, 3600))
    """A worker whose loop has not turned for this long (seconds) is taken as hung and is replaced."""
    lane: bool = True
    """Move plain exchanges in the fast lane. False: every exchange takes the readable path, to compare or in doubt."""

    @workers.validator
    def _check_workers(self, _: attrs.Attribute[Any], value: int | str) -> None:
        if value != "auto" and not (isinstance(value, int) and 1 <= value <= 64):
            raise ValueError('workers must be "auto" or from 1 to 64')


@attrs.frozen(kw_only=True)
class Admin:
    """`[admin]`: where the API for operators listens."""

    bind: str = "unix:/run/tcpgate/admin.sock"
    """"unix:/path" or "host:port"; an address that is not loopback needs a token."""
    token: Secret | None = attrs.field(default=None, repr=False)
    """Bearer token; set through `token_file` only, so that it is never in the TOML."""
    token_file: str | None = None
    """File whose first line is the token; "credential:NAME" reads systemd's $CREDENTIALS_DIRECTORY."""


@attrs.frozen(kw_only=True)
class Log:
    """`[log]`: access lines and the control plane's events, as JSON lines."""

    access: str = "stdout"
    """Where access lines go: "stdout", "journal", "off" or a file path (reopened on SIGUSR1)."""
    events: str = "stdout"
    """Where events and diagnostics go, wherever access lines do; the same words."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe event and diagnostic that is written."""
    buffer: Bytes = attrs.field(default=Bytes(8 << 20), validator=size(4096, 1 << 30))
    """Lines waiting for a slow disk, per worker (bytes); beyond it lines are dropped and counted."""


# -- listeners ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HttpLimits:
    """`[listeners.NAME.limits]`: how large a request may be."""

    head: Bytes = attrs.field(default=Bytes(32 << 10), validator=size(1024, 1 << 20))
    """Request line and header fields together (bytes); 431 beyond. nginx 32 KiB, Envoy 60 KiB, HAProxy 16 KiB."""
    headers: int = attrs.field(default=100, validator=between(1, 10_000))
    """Header fields in one head; 431 beyond. Envoy and HAProxy about 100."""
    target: Bytes = attrs.field(default=Bytes(8 << 10), validator=size(64, 1 << 20))
    """Request target (bytes); 414 beyond. RFC 9112 3 asks for at least 8000."""
    body: Bytes = attrs.field(default=Bytes(1 << 30), validator=size(1, 1 << 48))
    """Request body (bytes); 413 beyond. Bodies stream in flat memory, so this protects the upstream, not us."""
    streams: int = attrs.field(default=100, validator=between(1, 10_000))
    """HTTP/2 exchanges at a time on one connection (SETTINGS_MAX_CONCURRENT_STREAMS); nginx 128, RFC 9113 asks for at
    least 100."""
    resets: int = attrs.field(default=200, validator=between(1, 1_000_000))
    """HTTP/2 streams that a client may have reset in 30 seconds before its connection is ended (rapid reset)."""


@attrs.frozen(kw_only=True)
class ClientTimeouts:
    """`[listeners.NAME.timeouts]`: how slow a client may be. None can be switched off."""

    handshake: Seconds = attrs.field(default=Seconds(10.0), validator=some_time)
    """From the accept to the end of the PROXY header and of the TLS handshake (seconds). Of HTTP/2, as long again until
    our SETTINGS are acknowledged."""
    head: Seconds = attrs.field(default=Seconds(10.0), validator=some_time)
    """From the first byte of a head to its last (seconds), however many bytes trickle in; 408 after."""
    idle: Seconds = attrs.field(default=Seconds(75.0), validator=some_time)
    """A keep-alive connection with no exchange (seconds); nginx's 75 s. For tcp: nothing moved either way."""
    stall: Seconds = attrs.field(default=Seconds(10.0), validator=some_time)
    """Grace before the minimum rate counts (seconds): one hiccup of a phone is no attack."""
    min_rate: ByteRate = attrs.field(default=ByteRate(512.0), validator=rate(1, 1 << 40))
    """Slowest body either way (bytes per second), over the time that we wait for the client; Apache's 500."""
    tunnel: Seconds = attrs.field(default=Seconds(3600.0), validator=some_time)
    """An upgraded connection (WebSocket) in which nothing moved (seconds)."""
    total: Seconds = attrs.field(default=Seconds(7 * 86400.0), validator=some_time)
    """The life of one tcp flow (seconds)."""


@attrs.frozen(kw_only=True)
class Listener:
    """`[listeners.NAME]`: where the gateway accepts."""

    bind: tuple[str, ...] = attrs.field()
    """"0.0.0.0:80", "[::]:80", "unix:/path", "fd:NAME" (a systemd socket's FileDescriptorName)."""
    protocol: Literal["http", "tcp"] = "http"
    """"http" parses and routes; "tcp" relays bytes to `upstream`."""
    upstream: str | None = None
    """For tcp: the upstream that takes every flow that `sni` and `alpn` lead nowhere else."""
    sni: Mapping[str, str] = attrs.field(factory=dict)
    """For tcp: server name -> upstream ("a.db.example", "*.db.example"). Without `tls` the bytes pass untouched."""
    alpn: Mapping[str, str] = attrs.field(factory=dict)
    """For tcp: protocol that the client offers -> upstream; looked at before `sni`."""
    tls: ListenerTls | None = None
    starttls: Literal["off", "postgres"] = "off"
    """For tcp: clients ask for TLS in a protocol of their own first. "postgres": its SSLRequest is answered for them,
    before `tls` ends their TLS, or `sni` and `alpn` see where it goes; endpoints are asked in turn. Who does not ask is
    refused where `tls` ends it, and goes to `upstream` otherwise."""
    trusted_proxies: Networks = Networks()
    """Whose X-Forwarded-*, Forwarded and X-Request-Id are believed, and whose PROXY headers."""
    proxy_protocol: ProxyIn = "off"
    """A PROXY header before all else, v1 or v2: "accept" one from `trusted_proxies` if there is one, or "require" it
    and refuse everybody else."""
    http2: bool = False
    """Without TLS: take HTTP/2 from clients that begin with its preface (prior knowledge). With TLS, ALPN decides."""
    mode: str = attrs.field(default="0660", validator=octal)
    """Permissions of a unix socket."""
    max_connections: int = attrs.field(default=10_000, validator=between(1, 1_000_000))
    """Open connections over all workers; beyond it a new one is answered 503 (http) or closed, and counted."""
    backlog: int = attrs.field(default=4096, validator=between(1, 65535))
    """The kernel's queue of connections not yet accepted (net.core.somaxconn caps it)."""
    limits: HttpLimits = HttpLimits()
    timeouts: ClientTimeouts = ClientTimeouts()

    @bind.validator
    def _check_bind(self, _: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
        if not value:
            raise ValueError('bind needs at least one address, such as "0.0.0.0:80"')


# -- routes ---------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Respond:
    """`respond = { ... }`: a fixed answer of the gateway's own."""

    status: int = attrs.field(default=200, validator=between(200, 599))
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"


@attrs.frozen(kw_only=True)
class Redirect:
    """`redirect = { ... }`: send the client elsewhere."""

    to: str = attrs.field()
    """Absolute URI or path; {host}, {path} and {query} ("?..." or nothing) are filled in from the request."""
    status: Literal[301, 302, 303, 307, 308] = 308


@attrs.frozen(kw_only=True)
class WebSocket:
    """`[routes.NAME.websocket]`: present means that the gateway reads the frames of this route's WebSockets."""

    max_message: Bytes = attrs.field(default=Bytes(1 << 20), validator=size(1, 1 << 40))
    """One message, either way (bytes); a larger one ends the connection with 1009."""
    ping: Seconds = attrs.field(default=Seconds(30.0), validator=some_time)
    """Seconds of silence after which a client is pinged; twice as long, and it is taken for gone."""


@attrs.frozen(kw_only=True)
class Route:
    """`[routes.NAME]`: which requests, and what becomes of them. Exactly one of upstream, split, respond, redirect."""

    listeners: tuple[str, ...] = ()
    """Names of http listeners; none named means every one."""
    hosts: tuple[str, ...] = ()
    """"api.example.com", or "*.example.com" for any depth below it; none named means any."""
    path: str = "/"
    """"/v1" is a prefix by whole segments, "=/exact" exactly that, "~regex" a full match, tried last."""
    methods: tuple[str, ...] = ()
    """None named means any. GET does not imply HEAD."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Header name -> exact value, "~regex" (full match), or "*" for present; all must hold."""
    query: Mapping[str, str] = attrs.field(factory=dict)
    """Query parameter -> exact value, "~regex" (full match), or "*" for present; all must hold."""
    filters: tuple[str, ...] = ()
    """Filters by name, in the order in which they act."""
    upstream: str | None = None
    split: Mapping[str, int] = attrs.field(factory=dict)
    """Upstream -> weight; the same key stays on the same side while the weights stand."""
    split_key: str = "source"
    """What is stable for a user: "source", "header:NAME" or "cookie:NAME" (source where the request has none)."""
    respond: Respond | None = None
    redirect: Redirect | None = None
    timeout: Seconds = attrs.field(default=Seconds(3600.0), validator=some_time)
    """The whole exchange, retries and body included (seconds)."""
    websocket: WebSocket | None = None
    """Look into WebSockets; without it their bytes pass as they are."""


# -- filters --------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HeadersFilter:
    """`kind = "headers"`: change header fields on the way in and out."""

    kind: Literal["headers"] = "headers"
    set: Mapping[str, str] = attrs.field(factory=dict)
    """Request fields to set, replacing any the client sent."""
    remove: tuple[str, ...] = ()
    """Request fields to remove."""
    response_set: Mapping[str, str] = attrs.field(factory=dict)
    response_remove: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class AccessFilter:
    """`kind = "access"`: let client addresses in, or keep them out. `deny` wins over `allow`."""

    kind: Literal["access"] = "access"
    allow: Networks = Networks()
    """If any are named, every other address is denied."""
    deny: Networks = Networks()


Filter = HeadersFilter | AccessFilter
FILTER_SPECS: dict[str, type[HeadersFilter | AccessFilter]] = {"headers": HeadersFilter, "access": AccessFilter}


# -- upstreams ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Endpoint:
    """One address of an upstream: "10.0.0.1:8080" alone, or a table with a weight and a tier."""

    address: str = attrs.field()
    """"host:port", "[v6]:port" or "unix:/path". Its text is its identity across reloads."""
    weight: int = attrs.field(default=1, validator=between(0, MAX_WEIGHT))
    """Share of the traffic; 0 takes no new work."""
    tier: int = attrs.field(default=0, validator=between(0, 15))
    """0 is the first choice; a higher tier is a backup, used as the lower ones lose health."""


@attrs.frozen(kw_only=True)
class Health:
    """`[upstreams.NAME.health]`: how an endpoint is asked whether it can work. Exactly one kind of probe."""

    http: str | None = None
    """Path to GET, such as "/healthz"."""
    tcp: bool = False
    """A connect is enough."""
    tls: bool = False
    """A TLS handshake must complete (the certificate is not judged)."""
    grpc: str | None = None
    """The gRPC health service (v1) must say SERVING for this service; "" asks for the server as a whole."""
    exec: tuple[str, ...] = ()
    """Program and arguments, no shell; exit 0 is healthy. TCPGATE_ADDRESS, _HOST and _PORT are in its environment."""
    send: str = ""
    """With `expect`: bytes to send after connecting; \\r \\n \\t \\xNN escapes."""
    expect: str | None = attrs.field(default=None, validator=optional(regex))
    """Regular expression that the answer must contain."""
    method: str = "GET"
    host: str | None = None
    """Host header; default: the endpoint's address."""
    status: tuple[str, ...] = ("200-399",)
    """Accepted statuses: "200", "200-299"."""
    body: str | None = attrs.field(default=None, validator=optional(regex))
    """Regular expression that the first 64 KiB of the body must contain."""
    interval: Seconds = attrs.field(default=Seconds(2.0), validator=span(0.05, 3600))
    fast_interval: Seconds | None = attrs.field(default=None, validator=optional(span(0.05, 3600)))
    """While the state is about to change (seconds); default: interval / 4."""
    timeout: Seconds = attrs.field(default=Seconds(1.0), validator=span(0.01, 3600))
    rise: int = attrs.field(default=2, validator=between(1, 100))
    """Successes in a row that bring an endpoint back."""
    fall: int = attrs.field(default=3, validator=between(1, 100))
    """Failures in a row that take an endpoint out."""

    def __attrs_post_init__(self) -> None:
        kinds = {
            "http": self.http,
            "tcp": self.tcp,
            "tls": self.tls,
            "grpc": self.grpc,
            "exec": self.exec,
            "expect": self.expect,
        }
        chosen = [name for name, value in kinds.items() if value or isinstance(value, str)]
        if len(chosen) != 1:
            count = f"these: {', '.join(chosen)}" if chosen else "none of them"
            raise ValueError(f"needs exactly one of http, tcp, tls, grpc, exec, expect; it has {count}")
        if self.send and self.expect is None:
            raise ValueError("send needs expect: what must the endpoint answer?")


@attrs.frozen(kw_only=True)
class Passive:
    """`[upstreams.NAME.passive]`: what live traffic says of an endpoint. On by default, for every upstream."""

    enabled: bool = True
    connect_failures: int = attrs.field(default=3, validator=between(1, 1000))
    """Connects in a row that failed (refused, unreachable, timed out): eject."""
    bad_answers: int = attrs.field(default=5, validator=between(1, 1000))
    """Answers in a row that were 5xx, broken or too late: eject. Envoy's consecutive_5xx is 5."""
    eject_for: Seconds = attrs.field(default=Seconds(10.0), validator=span(0.1, 3600))
    """First ejection (seconds); doubles with each one that follows soon after."""
    eject_for_max: Seconds = attrs.field(default=Seconds(300.0), validator=span(0.1, 86400))
    max_ejected: int = attrs.field(default=50, validator=between(0, 100))
    """Per cent of the upstream's endpoints that live traffic may take out; an active probe is not bound by it."""


@attrs.frozen(kw_only=True)
class Pool:
    """`[upstreams.NAME.pool]`: idle connections kept for reuse, per worker and endpoint."""

    idle: int = attrs.field(default=64, validator=between(0, 100_000))
    """Idle connections kept; 0 closes each after its exchange."""
    idle_timeout: Seconds = attrs.field(default=Seconds(50.0), validator=some_time)
    """How long one may idle (seconds); below the 60 to 75 s after which common servers close."""
    max_connections: int = attrs.field(default=1024, validator=between(1, 1_000_000))
    """Open connections to one endpoint over all workers; at the limit the endpoint is not picked. Envoy's 1024."""
    max_exchanges: int = attrs.field(default=10_000, validator=between(1, 1_000_000_000))
    """Exchanges over one connection before it is closed."""


@attrs.frozen(kw_only=True)
class UpstreamTimeouts:
    """`[upstreams.NAME.timeouts]`: how slow an endpoint may be. None can be switched off."""

    connect: Seconds = attrs.field(default=Seconds(3.0), validator=some_time)
    first_byte: Seconds = attrs.field(default=Seconds(60.0), validator=some_time)
    """From the request's end to the response head (seconds); nginx's 60 s."""
    read: Seconds = attrs.field(default=Seconds(300.0), validator=some_time)
    """Between two reads of a response body (seconds); long, because event streams are silent."""
    write: Seconds = attrs.field(default=Seconds(60.0), validator=some_time)
    """Between two writes of a request body (seconds)."""


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """`[upstreams.NAME.retry]`: attempts after a failure, never at an endpoint that was already tried."""

    attempts: int = attrs.field(default=3, validator=between(1, 16))
    """Attempts in all; 1 means no retry. HAProxy's 3 retries."""
    replay: Bytes = attrs.field(default=Bytes(64 << 10), validator=size(0, 16 << 20))
    """Request body kept so that it can be sent again (bytes); a longer one is sent once."""


@attrs.frozen(kw_only=True)
class SlowStart:
    """`[upstreams.NAME.slow_start]`: an endpoint that comes back gets its share little by little."""

    window: Seconds = attrs.field(default=Seconds(0.0), validator=span(0, 3600))
    """Seconds until the full weight; 0 means at once."""
    aggression: float = attrs.field(default=1.0, validator=between(0.1, 10))
    """1 is linear; weight x max(floor, (t / window) ** (1 / aggression)). Envoy's formula."""
    floor: float = attrs.field(default=0.1, validator=between(0.01, 1))
    """The least share of the weight that it starts with."""


@attrs.frozen(kw_only=True)
class Upstream:
    """`[upstreams.NAME]`: a named group of endpoints that can do the same work."""

    balance: Balance = "round_robin"
    endpoints: tuple[Endpoint, ...] = attrs.field()
    hash_key: str = "source"
    """For the hashing balancers: "source", "header:NAME", "cookie:NAME", "path"."""
    bounded_load: float | None = attrs.field(default=None, validator=optional(between(1.0, 10.0)))
    """For the hashing balancers: no endpoint gets more than this times the mean load; the key then moves on."""
    table_size: int = attrs.field(default=65537, validator=between(251, 5_000_011))
    """maglev: the table's size, a prime well above 100 x endpoints."""
    ring_points: int = attrs.field(default=160, validator=between(1, 4096))
    """ring_hash: points per unit of weight; nginx and Ketama have 160."""
    decay: Seconds = attrs.field(default=Seconds(10.0), validator=some_time)
    """peak_ewma: how fast an old latency is forgotten (seconds); Finagle's 10 s."""
    panic: Panic = "all"
    """When too few endpoints are healthy: "all" spreads over every one, "fail" answers 503."""
    panic_below: int = attrs.field(default=0, validator=between(0, 100))
    """Per cent of healthy endpoints in all tiers below which panic begins; 0: never. Envoy's default is 50."""
    overprovision: float = attrs.field(default=1.4, validator=between(1.0, 100.0))
    """A tier takes all traffic while healthy% x this is at least 100, then spills by degrees. Envoy's 1.4."""
    tls: UpstreamTls | None = None
    http: HttpVersion = "http/1.1"
    """What endpoints speak: "h2" by ALPN over TLS, by prior knowledge without."""
    proxy_protocol: ProxyOut = "off"
    """Begin each connection with a PROXY header that tells who the client is; such a connection serves one client."""
    health: Health | None = None
    passive: Passive = Passive()
    pool: Pool = Pool()
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    retry: RetryPolicy = RetryPolicy()
    slow_start: SlowStart = SlowStart()

    @endpoints.validator
    def _check_endpoints(self, _: attrs.Attribute[Any], value: tuple[Endpoint, ...]) -> None:
        if not value:
            raise ValueError('endpoints needs at least one address, such as "10.0.0.1:8080"')


@attrs.frozen(kw_only=True)
class Config:
    """The whole file, includes merged."""

    gateway: Gateway = Gateway()
    admin: Admin = Admin()
    log: Log = Log()
    listeners: Mapping[str, Listener] = attrs.field(factory=dict)
    routes: Mapping[str, Route] = attrs.field(factory=dict)
    filters: Mapping[str, Filter] = attrs.field(factory=dict)
    upstreams: Mapping[str, Upstream] = attrs.field(factory=dict)
