"""Header blocks of the peer: put together, decoded, judged, and told as what they are: request, response, trailers.

A block is decoded whatever becomes of it, since the next one builds upon its table (4.3). What is malformed is an error
of its stream; only what leaves the table unknown, or costs too much, ends the connection.

Source: RFC 9113 4.3, 5.1, 6.2, 6.10, 8.1 and 10.5.1. Pure.
"""

from __future__ import annotations

from tcpgate.codec.http2 import floods, frames
from tcpgate.codec.http2.core import Core, Fatal
from tcpgate.codec.http2.events import HeadersReceived, StreamReset
from tcpgate.codec.http2.fields import NO_LENGTH, judge_trailers
from tcpgate.codec.http2.headers import Block, encode_line
from tcpgate.codec.http2.requests import judge_request
from tcpgate.codec.http2.responses import judge_response
from tcpgate.codec.http2.streams import ENDED, RESET_BY_PEER, RESET_BY_US, SKIPPED, Stream

_MOST_SKIPPED = 20
"""Twice the streams left out in one step that are remembered; older ones count as ended, which is as fatal."""
_TOO_LARGE = encode_line(b":status", b"431", False)


class Blocks(Core):
    """What a connection does with HEADERS and CONTINUATION."""

    __slots__ = ()

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if number == 0 or (number % 2 == 0 if self.role == "server" else self._is_idle(number)):
            raise Fatal(frames.PROTOCOL_ERROR, "HEADERS: on a stream that the peer cannot open")
        depends = False
        if flags & (frames.PADDED | frames.PRIORITY_FLAG):
            start, end = 0, len(payload)
            if flags & frames.PADDED:
                if not payload:
                    raise Fatal(frames.FRAME_SIZE_ERROR, "HEADERS: no room for the pad length")
                start, end = 1, end - payload[0]
            if flags & frames.PRIORITY_FLAG:
                start += 5
                if start > len(payload):
                    raise Fatal(frames.FRAME_SIZE_ERROR, "HEADERS: no room for the priority")
                depends = frames.read_word(payload, start - 5)[0] & frames.LARGEST == number
            if end < start:
                raise Fatal(frames.PROTOCOL_ERROR, "HEADERS: more padding than payload")
            payload = payload[start:end]
        if flags & frames.END_HEADERS:
            self._on_block(number, flags & frames.END_STREAM != 0, depends, payload)
        else:
            self._block = (flags, depends, [payload])
            self._only = (frames.CONTINUATION, number)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise Fatal(frames.PROTOCOL_ERROR, "CONTINUATION: outside a header block")
        first, depends, pieces = self._block
        pieces.append(payload)
        if len(pieces) > floods.CONTINUATIONS or sum(map(len, pieces)) > self.settings.block:
            raise Fatal(frames.ENHANCE_YOUR_CALM, "flood: a header block of too many bytes or frames")
        if flags & frames.END_HEADERS:
            self._block = self._only = None
            self._on_block(number, first & frames.END_STREAM != 0, depends, b"".join(pieces))

    def _on_block(self, number: int, end: bool, depends: bool, data: bytes) -> None:
        """A whole header block. It is decoded whatever becomes of it: the next one builds upon its table (4.3)."""
        block = self._hpack.decode(data)
        stream = self._streams.get(number)
        if stream is None:
            if self.role == "server" and number > self._highest:
                self._on_request(number, end, depends, block)
            else:
                self._on_late_block(number)
        elif not stream.may_receive:
            self._fault(number, frames.STREAM_CLOSED, "HEADERS: after END_STREAM")
        elif depends:
            self._fault(number, frames.PROTOCOL_ERROR, "HEADERS: depends on itself")
        elif stream.headed:
            self._on_trailers(stream, end, block)
        else:
            self._on_response(stream, end, block)

    def _on_late_block(self, number: int) -> None:
        """For a stream that is over (5.1)."""
        how = self._over.get(number, ENDED)
        if how == RESET_BY_US:
            self._count(floods.IGNORED)
        elif how == RESET_BY_PEER:
            self._refuse(number, frames.STREAM_CLOSED)
        elif how == SKIPPED:
            raise Fatal(frames.PROTOCOL_ERROR, "HEADERS: on a stream below the highest")
        else:
            raise Fatal(frames.STREAM_CLOSED, "HEADERS: on a closed stream")

    def _on_request(self, number: int, end: bool, depends: bool, block: Block) -> None:
        for skipped in range(max((self._highest + 1) | 1, number - _MOST_SKIPPED), number, 2):
            self._remember(skipped, SKIPPED)
        self._highest = number
        if number > self._last_taken:  # 6.8: said to be ignored, so not even refused
            self._remember(number, RESET_BY_US)
            self._count(floods.IGNORED)
            return
        if len(self._streams) >= self.settings.streams:
            self._fault(number, frames.REFUSED_STREAM, "HEADERS: more streams than SETTINGS_MAX_CONCURRENT_STREAMS")
            return
        if depends:
            self._fault(number, frames.PROTOCOL_ERROR, "HEADERS: depends on itself")
            return
        if block.too_large:
            self._refuse_large(number, end)
            return
        head = block.head
        if head is None:
            head = block.head = judge_request(block.fields)
        problem = head.problem or ("Content-Length: without content" if end and head.length > 0 else "")
        if problem:
            self._fault(number, frames.PROTOCOL_ERROR, problem)
            return
        stream = self._open(number)
        stream.headed = True
        stream.tunnel = head.tunnel
        stream.left = NO_LENGTH if head.tunnel else head.length
        if end:
            stream.may_receive = False
        self._events.append(HeadersReceived(number, block.fields, end))

    def _refuse_large(self, number: int, end: bool) -> None:
        """431 (RFC 6585 5), and an end of the rest of the request that says nothing is wrong with it (8.1)."""
        self._reply(frames.headers(number, _TOO_LARGE, True, self.peer.frame))
        if not end:
            self._reply(frames.rst_stream(number, frames.NO_ERROR))
        self._remember(number, RESET_BY_US)
        self._events.append(
            StreamReset(number, frames.NO_ERROR, True, "head: larger than SETTINGS_MAX_HEADER_LIST_SIZE")
        )
        self._count(floods.RESET)

    def _on_response(self, stream: Stream, end: bool, block: Block) -> None:
        head = block.head
        if head is None:
            head = block.head = judge_response(block.fields)
        problem = "head: larger than SETTINGS_MAX_HEADER_LIST_SIZE" if block.too_large else head.problem
        if not problem and head.status < 200:
            if not end:
                self._count(floods.IGNORED)
                self._events.append(HeadersReceived(stream.id, block.fields, False, informational=True))
                return
            problem = "HEADERS: an informational response that ends its stream"
        left = head.length
        if stream.method == b"HEAD" or head.status in (204, 304):
            left = 0
        elif stream.method == b"CONNECT" and head.status < 300:
            stream.tunnel, left = True, NO_LENGTH
        if not problem and end and left > 0:
            problem = "Content-Length: without content"
        if problem:
            self._fault(stream.id, frames.PROTOCOL_ERROR, problem)
            return
        stream.headed, stream.left = True, left
        self._events.append(HeadersReceived(stream.id, block.fields, end))
        if end:
            self._ended_by_peer(stream)

    def _on_trailers(self, stream: Stream, end: bool, block: Block) -> None:
        if block.trailers is None:
            block.trailers = judge_trailers(block.fields)
        problem = block.trailers.problem
        if not end:
            problem = "HEADERS: trailers without END_STREAM"
        elif block.too_large:
            problem = "trailers: larger than SETTINGS_MAX_HEADER_LIST_SIZE"
        elif stream.tunnel:
            problem = "HEADERS: in a tunnel"
        elif stream.left > 0:
            problem = "DATA: not as long as Content-Length says"
        if problem:
            self._fault(stream.id, frames.PROTOCOL_ERROR, problem)
            return
        self._events.append(HeadersReceived(stream.id, block.fields, True, trailers=True))
        self._ended_by_peer(stream)
