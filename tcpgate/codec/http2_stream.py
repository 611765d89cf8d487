"""One HTTP/2 stream as an exchange's codec: what `http1.ServerCodec` is for a connection, for one request and answer.

The machine (`codec/http2`) reads the connection's frames and says what came for which stream; the connection's task
tells the stream (`hear_*`), the exchange asks it (`next_event`). Body bytes wait in an `Inflow`, from which the carrier
(`net/http2_stream.py`) takes them as the exchange wants them; only then does the peer get its window back.

What goes out are buffers: `Block` and `LastBlock` are header blocks, `Content` is body data, `END` is the end of a
stream whose last data had gone when the end was known. The carrier makes frames of them.

Source: RFC 9113 8; RFC 8441 5. Pure.
"""

from __future__ import annotations

from tcpgate.codec import http2_request
from tcpgate.codec.events import (
    NEED_DATA,
    NO_FIELDS,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Pair,
    RequestHead,
    ServerEvent,
)
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.codec.http2_request import Judged
from tcpgate.codec.sides import Content
from tcpgate.errors import Bug, ClientError, Reason, UpstreamError

CONNECTION_FIELDS = frozenset({*http2_request.CONNECTION_SPECIFIC, b"content-length"})
_WEBSOCKET_FIELDS = frozenset({b"sec-websocket-accept", *CONNECTION_FIELDS})


class Block(bytes):
    """A header block; more follows on its stream."""

    __slots__ = ()


class LastBlock(Block):
    """A header block that ends its stream."""

    __slots__ = ()


class End(bytes):
    """The end of a stream by itself. Truthy, as whatever has to be sent."""

    __slots__ = ()


END = End(b"end of stream")


_SMALL = 2 << 10
"""Bytes up to which pieces of a body are kept as one."""


class Inflow:
    """Body bytes that have come and that nobody has taken yet."""

    __slots__ = ("_pieces", "ended", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        self.ended = False
        """Nothing comes behind them."""

    def put(self, data: bytes) -> None:
        """More came."""
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(data) <= _SMALL:
            pieces[-1] += data  # many small ones would take many times their bytes
        elif data:
            pieces.append(data)
        self.size += len(data)

    def take(self, most: int) -> bytes:
        """At most so many bytes of what is here."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if len(data) > most:
            self._pieces.append(data[most:])
            data = data[:most]
        self.size -= len(data)
        return data


class ServerStream:
    """The client's side of one stream: its request, which has been judged, and our answer."""

    def __init__(self, judged: Judged | None, hpack: HpackOut, *, end: bool, limit: int | None = None) -> None:
        """`judged`: None for what was no request and is told so. `end`: no content follows. `limit`: of its size."""
        self.request: RequestHead | None = None if judged is None else judged.head
        self.inflow = Inflow()
        self.inflow.ended = end
        self.waiting_for_continue = judged is not None and judged.head.expect_continue
        """The client will not send its body before a 100, or never; no byte of it has come."""
        self._key = None if judged is None else judged.key
        self._limit = limit
        self._hpack = hpack
        self._taken = b""
        """Bytes that the exchange has received, and has not asked for as an event."""
        self._trailers = NO_FIELDS
        self._over = False
        """The exchange has had the end of the request."""
        self._status = 0
        """Of the final response, once it was made."""
        self._is_last = False
        """Its head was the end of it."""
        self._switched = False

    # -- what the connection hears ----------------------------------------------------------------------------------

    def hear_data(self, data: bytes, *, end: bool) -> None:
        """Some of the body came."""
        self.inflow.put(data)
        self.inflow.ended = end
        self.waiting_for_continue = False

    def hear_trailers(self, pairs: tuple[Pair, ...]) -> None:
        """The body is over, and this followed it."""
        self._trailers = http2_request.trailers(pairs)
        self.inflow.ended = True
        self.waiting_for_continue = False

    # -- the request ------------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that are here and were not given out as an event."""
        return len(self._taken) + self.inflow.size

    def receive(self, data: bytes) -> None:
        """Take what the carrier gave; b"" is the end of the stream, of which the inflow knows."""
        self._taken += data

    def next_event(self) -> ServerEvent:
        """Some of the body, its end, or that more must come. ClientError where Content-Length is beyond the limit."""
        length = None if self.request is None else self.request.framing.length
        if length is not None and self._limit is not None and length > self._limit:
            raise ClientError(Reason.BODY_TOO_LARGE, f"body: more than {self._limit} bytes")
        if self._taken:
            data, self._taken = self._taken, b""
            return Data(data)
        # What follows a CONNECT is in the tunnel, if it comes to one; the request itself has no content.
        if self._over or (self._key is None and (self.inflow.size or not self.inflow.ended)):
            return NEED_DATA
        self._over = True
        return EndOfBody(self._trailers)

    def switched(self) -> bytes:
        """Once it is a tunnel: what the exchange has received of what is in it."""
        if not self._switched:
            raise Bug("switched() on a stream that is no tunnel")
        data, self._taken = self._taken, b""
        return data

    # -- the response -----------------------------------------------------------------------------------------------

    @property
    def responding(self) -> bool:
        """The head of a final response has gone out: what goes wrong now can only cut it short."""
        return bool(self._status)

    def send_informational(self, status: int, fields: Fields = NO_FIELDS) -> bytes:
        """A 1xx. A 101 is 200 here (RFC 8441 5), and what follows it is the tunnel; UpstreamError if it accepts
        what we did not offer."""
        if self._status:
            raise Bug("1xx behind a final response")
        if status == 101:
            if self._key is None or not http2_request.is_accepted(self._key, fields):
                raise UpstreamError(Reason.UPGRADE_FAILED, "101: Sec-WebSocket-Accept is not that of our key")
            self._status, self._switched = 200, True
            return Block(self._block(200, fields.without(_WEBSOCKET_FIELDS)))
        if status == 100:
            self.waiting_for_continue = False
        return Block(self._block(status, fields.without(CONNECTION_FIELDS)))

    def send_response(
        self, status: int, fields: Fields, framing: Framing, *, reason: bytes | None = None, close: bool = False
    ) -> bytes:
        """The head of the final response. HTTP/2 has no phrase for it, and no word about the connection.

        UpstreamError for a 2xx to a CONNECT: the client would take it for its tunnel.
        """
        if self._status:
            raise Bug("a second response to one request")
        if self._key is not None and 200 <= status < 300:
            raise UpstreamError(Reason.UPGRADE_FAILED, f"status {status} instead of 101")
        self._status = status
        self.waiting_for_continue = False
        fields = fields.without(CONNECTION_FIELDS)
        is_head = self.request is not None and self.request.method == b"HEAD"
        if status != 204 and framing.length is not None:
            fields = fields.plus([(b"content-length", b"%d" % framing.length)])
        self._is_last = is_head or status in (204, 304) or framing.kind is Kind.NONE or framing.length == 0
        block = self._block(status, fields)
        return LastBlock(block) if self._is_last else Block(block)

    def send_data(self, data: bytes) -> list[bytes]:
        """Buffers to send for some of the body; none where the response has no body."""
        return [Content(data)] if data and not self._is_last else []

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the response, its trailers in it; b"" where the head was that."""
        if self._is_last:
            return b""
        self._is_last = True
        return LastBlock(self._hpack.block(trailers)) if trailers else END

    def _block(self, status: int, fields: Fields) -> bytes:
        return self._hpack.block([(b":status", b"%d" % status), *fields])
