"""What a head that the express codec has read comes to at one listener: its route, and the bytes that go upstream.

Made once per head and generation: a client that sends the same head again finds it ready (`ExpressRequest.note`).
What differs from one connection to the next (the forwarding fields) or from one exchange to the next (the request id,
the endpoint) is put between the parts.

None of this decides anything on its own: the route comes from the snapshot's table, the fields from the codec, as on
the readable path. What only that path can do has no `Prepared`.
"""

from __future__ import annotations

import weakref

import attrs

from tcpgate.codec import forwarded
from tcpgate.codec.events import NO_FIELDS, Fields, Limits, Version
from tcpgate.codec.express import ExpressRequest, RequestHeads
from tcpgate.net.address import number_of
from tcpgate.policy.path import NormalPath, is_plain, match_path
from tcpgate.policy.route import Found
from tcpgate.proxy.plane import Plane
from tcpgate.state.keys import key_of
from tcpgate.state.runtime import EndpointRuntime, UpstreamRuntime
from tcpgate.state.snapshot import ListenerPlan, RoutePlan, Snapshot
from tcpgate.stats import plain
from tcpgate.units import Address

MAX_TARGETS = 4096
"""How many are kept of what is found or rendered once: clients; of access lines, a pair of route and endpoint; of
forwarding fields, a client and the host it asks for. Beyond that they are all forgotten."""


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
        "block", "end", "host", "is_head", "length", "line", "method", "path", "plan", "snapshot", "start", "timeout",
    )  # fmt: skip

    def __init__(self, request: ExpressRequest, snapshot: Snapshot, plan: RoutePlan) -> None:
        # Not the request itself, whose note this is: the two would be garbage that only the collector finds.
        self.snapshot = weakref.ref(snapshot)  # kept heads must not keep old generations
        self.plan = plan
        self.block = plan.block
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
        self.method = request.method.decode("latin-1")
        self.is_head = self.method == "HEAD"
        self.host = request.host.decode("latin-1")
        self.path = request.path.decode("latin-1")
        self.line = plain.request_of(self.method, self.host, self.path)
        """Its part of access lines."""


class HttpListener:
    """What the connections of one http listener share in one worker: what they have learnt of heads and lines."""

    def __init__(self, plane: Plane, plan: ListenerPlan) -> None:
        self.plane = plane
        self.plan = plan
        limits = plan.spec.limits
        self.heads = RequestHeads(Limits(head=limits.head, headers=limits.headers, target=limits.target))
        self._clients: dict[str, tuple[Address | None, str]] = {}
        self._forwarding: dict[tuple[Address | None, int | None, bytes, bool], bytes] = {}
        self._targets: dict[tuple[RoutePlan, EndpointRuntime], plain.Target] = {}

    def renew(self, plan: ListenerPlan) -> HttpListener:
        """For connections that come after a reload; the same object if nothing that it has learnt depends on the
        change."""
        return self if plan is self.plan else HttpListener(self.plane, plan)

    def prepare(self, request: ExpressRequest, snapshot: Snapshot) -> Prepared | None:
        """What `request` comes to; None: the readable path has to see to it."""
        path = NormalPath(request.path)
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
        prepared = Prepared(request, snapshot, plan)
        request.note = prepared
        return prepared

    def upstream(self, plan: RoutePlan, request: ExpressRequest, client: str) -> UpstreamRuntime | None:
        """Where it goes; None: a reload has just removed that."""
        name = plan.spec.upstream
        if plan.split is not None:
            name = plan.split.choose(self.key(plan.spec.split_key, request, client))
        return self.plane.runtime.upstreams.get(name or "")

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

    def forwarding(self, address: Address | None, port: int | None, authority: bytes, secure: bool) -> bytes:
        """The forwarding fields of a peer that speaks for itself, as lines, with the beginning of X-Request-Id's."""
        key = (address, port, authority, secure)
        found = self._forwarding.get(key)
        if found is None:
            fields = forwarded.forwarding_fields(
                _Bare(authority), peer=address, trusted=False, secure=secure, port=port, name=self.plane.name
            )
            found = b"".join([b"%b: %b\r\n" % pair for pair in fields]) + b"X-Request-Id: "
            if len(self._forwarding) >= MAX_TARGETS:
                self._forwarding.clear()
            self._forwarding[key] = found
        return found

    def target(self, plan: RoutePlan, endpoint: EndpointRuntime) -> plain.Target:
        """The part of an access line that is the same for a route and an endpoint."""
        found = self._targets.get((plan, endpoint))
        if found is None:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            found = self._targets[plan, endpoint] = plain.target_of(
                self.plan.name, plan.name, endpoint.upstream, endpoint.name, f"routes.{plan.name}"
            )
        return found
