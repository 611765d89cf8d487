"""What a filter is: it looks at a request, may change its header fields, and says Continue, Respond or Ask. Pure.

A route's filters act in the order of its config, the request once past each; on the way back those that change
responses act in reverse. All of it is synchronous, so that it can run where no task switch may happen. A filter that
has to ask somebody else (an authorisation service) returns `Ask`; the exchange does the I/O and hands the answer to
`then`.

What a filter may change is the header fields of either message, by `Edits`, and what the access record tells of the
client. Not the route, not the path, not the choice of the endpoint, not the framing. The head itself is never
touched: edits are kept beside it and are applied once, when the head is sent.

Precedents: Envoy's HttpFilter (Continue, StopIteration, sendLocalReply), pingora's request_filter,
ngx_http_auth_request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from tcpgate.codec.events import Fields, Pair, RequestHead, ResponseHead
from tcpgate.codec.tls_facts import TlsFacts
from tcpgate.errors import GateError
from tcpgate.units import Address

# -- verdicts -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Continue:
    """On to the next filter, and after the last to the upstream."""


@attrs.frozen
class Respond:
    """The gateway answers the request itself; no further filter sees it."""

    error: GateError
    """The answer: a Refused, mostly. Made anew for each request, because it is raised."""


@attrs.frozen(kw_only=True)
class Subrequest:
    """A bodyless request that the gateway makes on its own account."""

    upstream: str
    method: bytes
    target: bytes
    """Origin form: path and query."""
    fields: Fields
    timeout: float
    """Seconds for all of it."""


@attrs.frozen
class Ask:
    """Make this request, then let `then` judge its response, or the error that came instead of one."""

    subrequest: Subrequest
    then: Callable[[ResponseHead | GateError], Verdict]


Verdict = Continue | Respond | Ask
CONTINUE = Continue()

# -- what a filter sees ---------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Edits:
    """Changes to the header fields of one message. Later ones win over earlier ones."""

    _removed: set[bytes] = attrs.field(factory=set)
    """Lower-case names, of fields that were there before the edits."""
    _added: list[Pair] = attrs.field(factory=list)

    def remove(self, name: bytes) -> None:
        """Take every line of a field away, whoever put it there."""
        key = name.lower()
        self._removed.add(key)
        self._added = [pair for pair in self._added if pair[0].lower() != key]

    def set(self, name: bytes, value: bytes) -> None:
        """Replace every line of a field by one."""
        self.remove(name)
        self._added.append((name, value))

    def add(self, name: bytes, value: bytes) -> None:
        """One more line; what is there stays."""
        self._added.append((name, value))

    def get(self, fields: Fields, name: bytes) -> bytes | None:
        """The first value of a field (lower-case name) of `fields` after the edits, or None."""
        if name not in self._removed and (value := fields.get(name)) is not None:
            return value
        return next((value for added, value in self._added if added.lower() == name), None)

    def apply(self, fields: Fields) -> Fields:
        """`fields` after the edits; the same object if there are none."""
        if self._removed:
            fields = fields.without(self._removed)
        return fields.plus(self._added) if self._added else fields

    def __bool__(self) -> bool:
        return bool(self._removed or self._added)


@attrs.define(eq=False)
class RequestView:
    """A request as its filters see it, and what they have to say about it. One per exchange."""

    head: RequestHead
    """As the client sent it; its path in the form in which it was routed."""
    client: Address | None
    """Who asks, as trusted proxies tell it; None on a unix socket."""
    request: Edits = attrs.field(factory=Edits)
    """For the request that goes upstream."""
    response: Edits = attrs.field(factory=Edits)
    """For the response that goes to the client, be it the upstream's or the gateway's own."""
    auth: str = ""
    """Who the client is: by its certificate, until a filter has proved more; for the access record."""
    limit: str = ""
    """Name of the limit that applied; for the access record."""
    tls: TlsFacts | None = None
    """Of the client's TLS with us; with its certificate, if it has proved one."""

    def get(self, name: bytes) -> bytes | None:
        """The first value of a request field (lower-case name), as the filters before have left it."""
        return self.request.get(self.head.fields, name)

    @property
    def client_text(self) -> str:
        """The client's address as text; "unix" for one that has none."""
        return "unix" if self.client is None else str(self.client)


class Filter(Protocol):
    """One `[filters.NAME]`, made from its spec. It serves many exchanges at a time, so nothing of one stays in it."""

    def on_request(self, view: RequestView) -> Verdict:
        """What is to become of the request."""
        ...

    def on_response(self, view: RequestView, response: ResponseHead) -> None:
        """Note in `view.response` what to change in a response. Also called for the gateway's own answers."""
        ...
