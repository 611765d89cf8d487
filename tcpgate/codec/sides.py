"""What the rest of the gateway asks of a codec, whatever version of HTTP it speaks.

An exchange holds a `ServerSide` (what its client said, and how to answer) and, per attempt, a `ClientSide` (how to ask
an endpoint, and what that said). HTTP/1.1's are `http1.ServerCodec` and `http1.ClientCodec`, one per connection;
HTTP/2's are one per stream. What they give to be sent are *buffers*: a plain `bytes` goes out as it is, and a
`Content` is body data that the carrier of a multiplexed connection has yet to frame, as flow control allows.

Source: RFC 9110 (the semantics that the versions share). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tcpgate.codec.events import NO_FIELDS, ClientEvent, Fields, Framing, ServerEvent


class Content(bytes):
    """Body data that is not framed yet."""

    __slots__ = ()


class Side(Protocol):
    """What both sides have: what comes in, and how far to read."""

    @property
    def buffered(self) -> int:
        """Bytes received and not yet given out as an event."""
        ...

    def receive(self, data: bytes) -> None:
        """Take what a read gave; b"" means that the peer will send no more."""
        ...

    def switched(self) -> bytes:
        """Once it is a tunnel: what the peer already sent into it."""
        ...


class ServerSide(Side, Protocol):
    """One client's requests and our answers to them, one at a time."""

    @property
    def waiting_for_continue(self) -> bool:
        """The client will not send its body before a 100, or never; no byte of it has come."""
        ...

    @property
    def responding(self) -> bool:
        """The head of a final response has gone out: what goes wrong now can only cut it short."""
        ...

    def next_event(self) -> ServerEvent:
        """What the client said next. Raises ClientError, and from then on the same one again."""
        ...

    def send_informational(self, status: int, fields: Fields = NO_FIELDS) -> bytes:
        """A 1xx. After 101 comes the tunnel."""
        ...

    def send_response(
        self, status: int, fields: Fields, framing: Framing, *, reason: bytes | None = None, close: bool = False
    ) -> bytes:
        """The head of the final response. `close`: no other exchange follows, where the version has a word for it."""
        ...

    def send_data(self, data: bytes) -> Sequence[bytes]:
        """Buffers to send for some of the body; none where the response has no body."""
        ...

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the response."""
        ...


class ClientSide(Side, Protocol):
    """Our requests to one endpoint and its answers, one at a time."""

    @property
    def can_reuse(self) -> bool:
        """A request may be sent: the last exchange is complete on both sides, and nothing unasked for has come."""
        ...

    def send_request(
        self,
        method: bytes,
        target: bytes,
        fields: Fields,
        framing: Framing,
        *,
        upgrade: bytes | None = None,
    ) -> bytes:
        """The head of the next request. Framing fields come from `framing` alone; `fields` has Host.

        `upgrade`: the protocol that `fields` offers; only a 101 to it is taken. UpstreamError if nothing can be sent.
        """
        ...

    def send_data(self, data: bytes) -> Sequence[bytes]:
        """Buffers to send for some of the body."""
        ...

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the request."""
        ...

    def next_event(self) -> ClientEvent:
        """What the endpoint said next. Raises UpstreamError, and from then on the same one again."""
        ...
