"""What a head that the express codec has read comes to at one listener: its route, and the bytes that go upstream.

Made once per head and generation: a client that sends the same head again finds it ready (`ExpressRequest.note`).
What differs from one connection to the next (the forwarding fields) or from one exchange to the next (the request id,
the endpoint) is put between the parts.

None of this decides anything on its own: the route comes from the snapshot's table, the fields from the codec, as on
the readable path. What only that path can do has no `Prepared`.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator

import attrs

from tcpgate.codec import forwarded, grpc, http2_request
from tcpgate.codec.events import NO_FIELDS, Fields, Limits, Version
from tcpgate.codec.express import ExpressRequest, RequestHeads
from tcpgate.codec.http2.events import FieldPairs
from tcpgate.errors import ClientError
from tcpgate.net.address import number_of
from tcpgate.policy.path import NormalPath, is_plain, match_path
from tcpgate.policy.retry import IDEMPOTENT
from tcpgate.policy.route import Found
from tcpgate.proxy.ledger import Ledger
from tcpgate.proxy.plane import Plane
from tcpgate.state.keys import key_of
from tcpgate.state.runtime import EndpointRuntime
from tcpgate.state.snapshot import ListenerPlan, RoutePlan, Snapshot
from tcpgate.stats import plain
from tcpgate.units import Address

MAX_TARGETS = 4096
"""How many are kept of what is found or rendered once: clients; of access lines, a pair of route and endpoint; of
forwarding fields, a client and the host it asks for. Beyond that they are all forgotten."""


MAX_HTTP2, LONGEST_HTTP2 = 512, 2048
"""Requests of HTTP/2 that are known by their fields, and the longest of them (bytes of HTTP/1.1)."""


def _is_call(fields: FieldPairs) -> bool:
    """Whether they are a gRPC call's, which has a time of its own and a status in its trailers."""
    return any(name == b"content-type" and grpc.is_call_type(value) for name, value in fields)


class _HeadFields:
    """A head's fields, read in full only if a route asks for one."""

    __slots__ = ("_request",)

    def __init__(self, request: ExpressRequest) -> None:
        self._request = request

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field by its lower-case name."""
        return self._request.head().fields.all(name)


@attrs.frozen
class _Bare:
    """As much of a request as decides its forwarding fields, where the peer's own do not count."""

    authority: bytes
    fields: Fields = NO_FIELDS
    version: Version = b"1.1"


class Prepared:
    """One head, ready to be sent on. Not an attrs class: one is made per request wherever heads differ."""

    __slots__ = (
        "asked", "end", "generation", "is_head", "length", "line", "plan", "proto", "repeatable", "snapshot", "start",
        "timeout", "upstream",
    )  # fmt: skip

    def __init__(self, request: ExpressRequest, snapshot: Snapshot, plan: RoutePlan, proto: bytes) -> None:
        # Not the request itself, whose note this is: the two would be garbage that only the collector finds.
        self.snapshot = weakref.ref(snapshot)  # kept heads must not keep old generations
        self.plan = plan
        self.upstream = "" if plan.split is not None else plan.spec.upstream or ""
        """Its name; "": the route is split."""
        self.generation = snapshot.generation
        self.timeout = plan.spec.timeout
        self.length = request.length or 0
        """Of the body."""
        raw = request.raw
        first = raw[: raw.find(b"\n") + 1]
        self.start = b"".join((first, b"Host: ", request.authority, b"\r\n", request.lines))
        """Up to the forwarding fields."""
        length = request.length
        self.end = b"\r\n\r\n" if length is None else b"\r\nContent-Length: %d\r\n\r\n" % length
        """From behind the request id to the end of the head."""
        self.is_head = request.method == b"HEAD"
        self.repeatable = request.method in IDEMPOTENT and not length
        """It may be sent again, if the endpoint closes as it comes."""
        self.asked = request.method, request.host, request.path
        """What a record says of it."""
        # No character that the codec lets through in any of them needs an escape in JSON.
        self.proto = proto
        """That it came by, as records name it."""
        self.line = plain.request_of(request.method, request.host, request.path, proto)
        """Its part of access lines."""


def _ids(rng: random.Random) -> Iterator[bytes]:
    """Ids as `Plane.new_id` makes them, many at once: one by one they take twice the time."""
    while True:
        digits = rng.randbytes(16 * 256).hex().encode()
        for at in range(0, len(digits), 32):
            yield digits[at : at + 32]


class HttpListener:
    """What the connections of one http listener share in one worker: what they have learnt of heads and lines."""

    def __init__(self, plane: Plane, plan: ListenerPlan) -> None:
        self.plane = plane
        self.plan = plan
        spec = plan.spec.limits
        limits = Limits(head=spec.head, headers=spec.headers, target=spec.target)
        self.heads = RequestHeads(limits)
        self.known = self.heads.known
        """A head's request, if it came before as a whole."""
        self.ids = _ids(plane.rng)
        """Request ids."""
        self.upstreams = plane.runtime.upstreams
        self._clients: dict[str, tuple[Address | None, str]] = {}
        self.http2_heads = RequestHeads(limits)
        """The same of requests that came by HTTP/2: the head of HTTP/1.1 that says as much may have come, too."""
        self._http2: tuple[dict[FieldPairs, ExpressRequest], ...] = ({}, {})
        """Of connections that are not secure, and of those that are: what may be asked is not the same."""
        self._forwarding: dict[tuple[Address | None, int | None, bytes, bool, Version], bytes] = {}
        self._ledgers: dict[tuple[RoutePlan, EndpointRuntime], Ledger] = {}

    def renew(self, plan: ListenerPlan) -> HttpListener:
        """For connections that come after a reload; the same object if nothing that it has learnt depends on the
        change."""
        return self if plan is self.plan else HttpListener(self.plane, plan)

    def prepare(self, request: ExpressRequest, snapshot: Snapshot, proto: bytes = b"http/1.1") -> Prepared | None:
        """What `request` comes to; None: the readable path has to see to it."""
        path: NormalPath = request.path  # type: ignore[assignment]  # or it goes no further
        plain_path = is_plain(path)
        if not plain_path and match_path(path) != path:
            return None
        if request.length is not None and request.length > self.plan.spec.limits.body:
            return None
        name = None
        if plain_path:
            name = snapshot.table.simply(self.plan.name, request.method, request.host, path)
        if name is None:
            match = snapshot.table.match(
                self.plan.name, request.method, request.host, path, _HeadFields(request), request.query
            )
            if not isinstance(match, Found):
                return None
            name = match.name
        plan = snapshot.routes[name]
        if plan.spec.respond is not None or plan.spec.redirect is not None:
            return None
        prepared = Prepared(request, snapshot, plan, proto)
        request.note = prepared
        return prepared

    def read_http2(self, fields: FieldPairs, secure: bool) -> ExpressRequest | None:
        """The request that a header block of HTTP/2 is, without content; None: the readable path has to judge it.

        `secure`: as for `http2_request.judge`.
        """
        known = self._http2[secure]
        found = known.get(fields)
        if found is None:
            try:
                head, key = http2_request.write(fields, end=True, secure=secure, rng=self.plane.rng)
            except ClientError:
                return None
            found = self.http2_heads.read(head)
            if found is None or key is not None or _is_call(fields):
                return None
            if found.size <= LONGEST_HTTP2:
                if len(known) >= MAX_HTTP2:
                    known.clear()
                known[fields] = found
        return found

    def split(self, plan: RoutePlan, request: ExpressRequest, client: str) -> str:
        """The upstream that a request of a split route goes to, by name."""
        assert plan.split is not None
        return plan.split.choose(self.key(plan.spec.split_key, request, client))

    def key(self, rule: str, request: ExpressRequest, client: str) -> int:
        """What is hashed on."""
        return key_of(rule, client, None if rule == "source" else request.head())

    def client_of(self, host: str) -> tuple[Address | None, str]:
        """A client's address, and its text; `host`: as the kernel tells it, "" for a unix socket.

        Clients that come once come again, and to parse an address is half an accept.
        """
        found = self._clients.get(host)
        if found is None:
            address = number_of((host, 0)) if host else None
            address = None if address is None else forwarded.plain(address)
            found = address, str(address or "unix")
            if len(self._clients) >= MAX_TARGETS:
                self._clients.clear()
            self._clients[host] = found
        return found

    def forwarding(
        self, address: Address | None, port: int | None, authority: bytes, secure: bool, version: Version = b"1.1"
    ) -> bytes:
        """The forwarding fields of a peer that speaks for itself, as lines, with the beginning of X-Request-Id's."""
        key = (address, port, authority, secure, version)
        found = self._forwarding.get(key)
        if found is None:
            fields = forwarded.forwarding_fields(
                _Bare(authority, version=version),
                peer=address,
                trusted=False,
                secure=secure,
                port=port,
                name=self.plane.name,
            )
            found = b"".join([b"%b: %b\r\n" % pair for pair in fields]) + b"X-Request-Id: "
            if len(self._forwarding) >= MAX_TARGETS:
                self._forwarding.clear()
            self._forwarding[key] = found
        return found

    def ledger(self, plan: RoutePlan, endpoint: EndpointRuntime) -> Ledger:
        """Where exchanges of a route with an endpoint are booked."""
        found = self._ledgers.get((plan, endpoint))
        if found is None:
            if len(self._ledgers) >= MAX_TARGETS:
                self._ledgers.clear()
            found = self._ledgers[plan, endpoint] = Ledger(self.plane, self.plan, plan, endpoint)
        return found
