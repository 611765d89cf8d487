"""One HTTP/2 stream to an endpoint as an exchange's codec: what `http1.ClientCodec` is for a connection, for one
request and its answer.

The request goes out as pseudo-header fields and fields, less those that are about an HTTP/1.1 connection. The answer,
whose header block the machine has judged (`codec/http2/responses.py`), is written as the HTTP/1.1 head that says the
same and put before the one strict grammar: so an answer means the same whatever protocol brought it.
- Without END_STREAM and without Content-Length the body's length is unknown: `Transfer-Encoding: chunked`, so that its
  trailers go on to an HTTP/1.1 client.
- With END_STREAM and without Content-Length the body is empty: `Content-Length: 0`.
- A WebSocket is an extended CONNECT (RFC 8441), and its 2xx the 101 that accepts the client's key. Any other protocol
  that the client offers is not offered on: to ignore an offer is always right (RFC 9110 7.8).

Source: RFC 9113 8; RFC 8441 4, 5. Pure.
"""

from __future__ import annotations

from collections import deque

import attrs

from tcpgate.codec import http2_request
from tcpgate.codec.blame import UPSTREAM_HEAD
from tcpgate.codec.events import (
    NEED_DATA,
    NO_FIELDS,
    ClientEvent,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Pair,
    ResponseHead,
)
from tcpgate.codec.grammar import FRAMING_NAMES, parse_response
from tcpgate.codec.http1 import MAX_INFORMATIONAL
from tcpgate.codec.http2.events import FieldPairs
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.codec.http2_stream import END, Block, Inflow, LastBlock
from tcpgate.codec.machine import head_bytes, phrase
from tcpgate.codec.sides import Content
from tcpgate.errors import Bug, GateError, Reason, Refused

WEBSOCKET = b"websocket"
_TUNNEL = b"CONNECT"
_NOT_SENT = FRAMING_NAMES | {b"host"}
"""Told in other ways; what is about an HTTP/1.1 connection, the encoder leaves out."""
_NOT_IN_CONNECT = _NOT_SENT | {b"sec-websocket-key"}
_BODILESS = (b"204", b"304")


class ClientStream:
    """The endpoint's side of one stream: our request, and what comes of it."""

    def __init__(self, hpack: HpackOut, *, secure: bool, tunnels: bool = False) -> None:
        """`secure`: the connection is TLS. `tunnels`: the endpoint's SETTINGS allow extended CONNECT."""
        self.inflow = Inflow()
        self.method = b""
        """What is asked for on the stream; a WebSocket's is CONNECT."""
        self.answered = False
        """The final head has come."""
        self._hpack = hpack
        self._scheme = b"https" if secure else b"http"
        self._tunnels = tunnels
        self._asked = b""
        """The request's method."""
        self._offered: bytes | None = None
        self._key = b""
        """Of a WebSocket: what the client wants to see accepted."""
        self._chunked = False
        self._is_last = False
        """Its head was the end of the request."""
        self._heads: deque[bytes] = deque()
        """Heads that came, written as HTTP/1.1's, and that nobody has asked for."""
        self._informational = 0
        self._taken = b""
        """Bytes that the exchange has received, and has not asked for as an event."""
        self._trailers = NO_FIELDS
        self._over = False
        """The exchange has had the end of the response."""
        self._switched = False
        self._fault: GateError | None = None

    # -- the request ------------------------------------------------------------------------------------------------

    @property
    def can_reuse(self) -> bool:
        """A request may be sent: a stream has one."""
        return not self.method

    def send_request(
        self, method: bytes, target: bytes, fields: Fields, framing: Framing, *, upgrade: bytes | None = None
    ) -> bytes:
        """The header block of the request. Refused: a WebSocket that the endpoint takes none of over HTTP/2."""
        if self.method:
            raise Bug("a second request on one stream")
        self.method = self._asked = method
        pairs = list(fields.without(_NOT_SENT))
        extended: list[Pair] = []
        if upgrade == WEBSOCKET:
            if not self._tunnels:
                # Ours to say, for it is no fault of the endpoint's: its health must not suffer from what clients want.
                raise Refused(
                    Reason.UPGRADE_FAILED, "the endpoint's SETTINGS do not allow extended CONNECT (RFC 8441) over h2"
                )
            self.method, self._offered = _TUNNEL, upgrade
            self._key = fields.get(b"sec-websocket-key") or b""
            pairs = list(fields.without(_NOT_IN_CONNECT))
            extended = [(b":protocol", WEBSOCKET)]
        elif framing.length is not None:
            pairs.append((b"content-length", b"%d" % framing.length))
        self._chunked = framing.kind is Kind.CHUNKED
        self._is_last = not extended and (framing.kind is Kind.NONE or framing.length == 0)
        host = fields.get(b"host")
        block = self._hpack.block(
            [
                (b":method", self.method),
                (b":scheme", self._scheme),
                *([(b":authority", host)] if host else []),
                (b":path", target),
                *extended,
                *pairs,
            ]
        )
        return LastBlock(block) if self._is_last else Block(block)

    def send_data(self, data: bytes) -> list[bytes]:
        """Buffers to send for some of the body."""
        return [Content(data)] if data else []

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the request; b"" where the head was that, or where a tunnel may follow. Trailers go out only
        behind a body of unknown length, as in HTTP/1.1."""
        if self._is_last or self._offered is not None:
            return b""
        self._is_last = True
        return LastBlock(self._hpack.block(trailers)) if trailers and self._chunked else END

    # -- what the connection hears ----------------------------------------------------------------------------------

    def hear_head(self, pairs: FieldPairs, *, end: bool) -> int:
        """A head came, 1xx or final; the size that it has as HTTP/1.1's."""
        status = pairs[0][1]
        lines = list(pairs[1:])
        if status >= b"200":
            self.answered = True
            self.inflow.ended = end
            if self._offered is not None and status < b"300":
                status, lines = b"101", self._accepting(lines)
            else:
                lines += self._framing(status, lines, end=end)
        else:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._fault = UPSTREAM_HEAD.malformed(f"1xx: more than {MAX_INFORMATIONAL}")
                return 0
        head = head_bytes(b"HTTP/1.1 %b %b" % (status, phrase(int(status))), lines)
        self._heads.append(head)
        return len(head)

    def _framing(self, status: bytes, lines: list[Pair], *, end: bool) -> list[Pair]:
        """The framing field that a head lacks in HTTP/1.1."""
        if status in _BODILESS or self._asked == b"HEAD" or any(name == b"content-length" for name, _ in lines):
            return []
        return [(b"content-length", b"0") if end else (b"transfer-encoding", b"chunked")]

    def _accepting(self, lines: list[Pair]) -> list[Pair]:
        """The fields of the 101 that a 2xx is to an extended CONNECT."""
        kept = [pair for pair in lines if pair[0] not in (b"content-length", b"sec-websocket-accept")]
        accept = (b"sec-websocket-accept", http2_request.acceptance(self._key))
        return [*kept, (b"connection", b"upgrade"), (b"upgrade", WEBSOCKET), accept]

    def hear_data(self, data: bytes, *, end: bool) -> None:
        """Some of the body came."""
        self.inflow.put(data)
        self.inflow.ended = end

    def hear_trailers(self, pairs: FieldPairs) -> None:
        """The body is over, and this followed it."""
        self._trailers = http2_request.trailers(pairs)
        self.inflow.ended = True

    # -- the response -----------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that are here and were not given out as an event."""
        return len(self._taken) + self.inflow.size

    def receive(self, data: bytes) -> None:
        """Take what the carrier gave; b"" says nothing: of heads and of the end the codec knows."""
        self._taken += data

    def next_event(self) -> ClientEvent:
        """What the endpoint said next. Raises UpstreamError, and from then on the same one again."""
        if self._fault is not None:
            raise self._fault
        if self._heads:
            try:
                return self._next_head(self._heads.popleft())
            except GateError as fault:
                self._fault = fault
                raise
        if self._switched:
            return NEED_DATA
        if self._taken:
            data, self._taken = self._taken, b""
            return Data(data)
        if self._over or self.inflow.size or not self.inflow.ended:
            return NEED_DATA
        self._over = True
        return EndOfBody(self._trailers)

    def _next_head(self, raw: bytes) -> ResponseHead:
        head = parse_response(raw, self._asked, upgrade=self._offered)
        self._switched = head.status == 101
        return attrs.evolve(head, version=b"2.0")

    def switched(self) -> bytes:
        """Once it is a tunnel: what the exchange has received of what is in it."""
        if not self._switched:
            raise Bug("switched() on a stream that is no tunnel")
        data, self._taken = self._taken, b""
        return data
