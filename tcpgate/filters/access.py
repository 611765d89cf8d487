"""`kind = "access"`: let client addresses in, or keep them out. Pure.

The client is who trusted proxies say it is, not the peer. `deny` wins over `allow`; with an `allow`, whoever is not
in it is denied, and so is a client without an address (a unix socket), of whom nothing is known.
"""

from __future__ import annotations

from tcpgate.codec.events import ResponseHead
from tcpgate.config import schema
from tcpgate.errors import Reason, Refused
from tcpgate.filters.base import CONTINUE, RequestView, Respond, Verdict


class Access:
    """Lets clients through by address."""

    def __init__(self, spec: schema.AccessFilter) -> None:
        self._allow = spec.allow
        self._deny = spec.deny

    def on_request(self, view: RequestView) -> Verdict:
        """Continues, or responds with `denied`."""
        client = view.client
        if client is not None and client in self._deny:
            return Respond(Refused(Reason.DENIED, "the client's address is denied"))
        if self._allow and (client is None or client not in self._allow):
            return Respond(Refused(Reason.DENIED, "the client's address is not among those allowed"))
        return CONTINUE

    def on_response(self, view: RequestView, response: ResponseHead) -> None:
        """Nothing to change."""
