"""What `Http2.receive` tells of a peer. Plain values with slots: some of them are made for every frame.

Nothing that is malformed comes up: a bad head gives no `HeadersReceived` but one `StreamReset(by_us=True)` with the
rule that it broke, and what ends the connection gives one `ConnectionFailed`, the last event there is.

Source: RFC 9113. Pure.
"""

from __future__ import annotations

import attrs

from tcpgate.codec.events import Pair

FieldPairs = tuple[Pair, ...]
"""Pseudo-header fields first; names in lower case, no white space around values."""


@attrs.define
class HeadersReceived:
    """A whole, well-formed header block: a request, a response, or the trailers of either."""

    stream: int
    fields: FieldPairs = attrs.field(repr=lambda fields: f"<{len(fields)} fields>")
    end: bool
    """Nothing more comes on this stream."""
    trailers: bool = False
    informational: bool = False
    """A 1xx response, which another head follows (client role)."""


@attrs.define
class DataReceived:
    """Some of a body. `data` may be empty where `end` is true, or where only padding came."""

    stream: int
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    flow: int
    """What it took of the windows: `data` and the padding. To be given back by `acknowledge(stream, flow)`."""
    end: bool


@attrs.define
class StreamReset:
    """The stream is over, whatever was still to come. Also told of streams that never gave a `HeadersReceived`."""

    stream: int
    code: int
    """The error code; REFUSED_STREAM: nothing of it was looked at, so it may be asked again elsewhere."""
    by_us: bool
    """We sent the RST_STREAM, for a fault of the peer's."""
    text: str = ""
    """The rule that was broken, for a log."""


@attrs.define
class WindowOpened:
    """Where nothing could be sent, something can: on one stream, or (0) on all that have a window of their own."""

    stream: int


@attrs.define
class SettingsReceived:
    """The peer's settings changed: `peer` tells them."""


@attrs.define
class SettingsAcked:
    """The peer knows our settings."""


@attrs.define
class PingAcked:
    """The answer to a `ping`."""

    payload: bytes


@attrs.define
class GoAwayReceived:
    """The peer takes no new streams. Those of ours above `last` are told as `StreamReset(REFUSED_STREAM)` beside it."""

    last: int
    code: int
    text: bytes


@attrs.define
class ConnectionFailed:
    """The peer broke a rule that ends the connection. A GOAWAY with this code is in `out`: send that, then close."""

    code: int
    text: str


Event = (
    HeadersReceived
    | DataReceived
    | StreamReset
    | WindowOpened
    | SettingsReceived
    | SettingsAcked
    | PingAcked
    | GoAwayReceived
    | ConnectionFailed
)


class StreamGone(Exception):
    """What was to be sent has no stream any more: either side reset it, or the connection failed."""

    def __init__(self, stream: int, code: int) -> None:
        super().__init__(f"stream {stream} is over")
        self.stream = stream
        self.code = code
        """The error code that ended it; NO_ERROR if that is no longer known."""
