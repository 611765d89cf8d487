"""`Http2`: one HTTP/2 connection without its socket. What a peer sends goes into `receive`, what we say is in `out`.

Whoever drives it: reads some bytes, calls `receive(data, now)` and does what the events say; sends with the methods
below; and after either sends what `take_out()` gives. The parts of the contract that are easily got wrong:
- `take_out()` only once everything that it gave before is with the kernel. What lies in `out` is what the peer has not
  read, and a peer that makes us answer more and more without reading is told so by a GOAWAY.
- Every `DataReceived` is acknowledged with its `flow` when its data has gone on, or else `release(stream)` says that
  nobody will take the rest. Credit goes out for nothing else, so that a slow upstream slows its client down.
- `send_data` sends what the windows hold and says how much that was; the rest waits for `WindowOpened`, of this stream
  or of 0. Nothing is buffered here.
- A stream that is over raises `StreamGone` where something is to be sent on it. To reset it again is nothing.
- After `ConnectionFailed`, or a fault of the socket, every stream is gone, and nothing more is said about each.

Source: RFC 9113, RFC 8441. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcpgate.codec.events import Pair
from tcpgate.codec.http2 import frames
from tcpgate.codec.http2.events import StreamGone
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.codec.http2.reading import Reading
from tcpgate.codec.http2.settings import Role, Settings
from tcpgate.codec.http2.streams import RESET_BY_US, Stream
from tcpgate.errors import Bug

_END_HEADERS = frames.END_HEADERS
_BOTH_ENDS = frames.END_HEADERS | frames.END_STREAM
_HEADERS = bytes((frames.HEADERS,))
_NO_TABLE = b"\x20"
"""HPACK: the table has 0 bytes from here on."""


class Http2(Reading):
    """One connection in either role."""

    __slots__ = ("_lines",)

    def __init__(self, role: Role, settings: Settings | None = None, lines: HpackOut | None = None) -> None:
        """`lines`: the encoder's memo, one for all connections of a worker. `out` holds our first words at once."""
        super().__init__(role, settings or Settings())
        self._lines = HpackOut() if lines is None else lines

    # -- what there is ----------------------------------------------------------------------------------------------

    def take_out(self) -> bytes:
        """All that must go to the peer; the caller sends it whole, and in order."""
        data = bytes(self.out)
        self.out.clear()
        self._replies = 0
        return data

    @property
    def streams(self) -> int:
        """How many streams are open or half closed."""
        return len(self._streams)

    @property
    def is_idle(self) -> bool:
        """There is no stream: the connection may be closed without anyone's loss (after a GOAWAY)."""
        return not self._streams

    @property
    def is_failed(self) -> bool:
        """The peer broke a rule that ends the connection."""
        return self._failed is not None

    @property
    def is_acknowledged(self) -> bool:
        """The peer has said that it goes by our SETTINGS."""
        return not self._unacked

    @property
    def is_closing(self) -> bool:
        """No new stream will be taken, by the peer or by us."""
        return self._gone_away or self._failed is not None or self._last_taken != frames.LARGEST

    @property
    def is_within_head(self) -> bool:
        """A header block has begun to come, and its end has not."""
        return self._block is not None or self._rest[3:4] == _HEADERS

    @property
    def can_open(self) -> bool:
        """`open_stream` would work now (client role)."""
        return not self.is_closing and len(self._streams) < self.peer.streams and self._next < frames.LARGEST

    def is_open(self, stream: int) -> bool:
        """The stream is not over."""
        return stream in self._streams

    def may_send(self, stream: int) -> bool:
        """We have not ended the stream, and nobody has reset it."""
        state = self._streams.get(stream)
        return state is not None and state.may_send

    def window(self, stream: int) -> int:
        """How much `send_data` would send at once (bytes); 0 also for a stream that is over."""
        state = self._streams.get(stream)
        return max(0, min(state.window, self._window)) if state is not None else 0

    # -- streams ----------------------------------------------------------------------------------------------------

    def open_stream(self, fields: Iterable[Pair], end: bool) -> int:
        """The number of a new stream, begun with the request `fields` (client role). Raises StreamGone: not `can_open`.

        The number is given where the head is sent, since they must go out in the same order (5.1.1).
        """
        fields = tuple(fields)
        return self.open_block(self._lines.block(fields), dict(fields[:4]).get(b":method", b""), end)

    def open_block(self, block: bytes, method: bytes, end: bool) -> int:
        """`open_stream` with what `encode` gave; its `method` is told besides."""
        if self.role != "client":
            raise Bug("a server opens no streams")
        if not self.can_open:
            raise StreamGone(0, frames.REFUSED_STREAM)
        number = self._next
        self._next += 2
        stream = self._open(number)
        stream.method = method
        self._send_block(stream, block, end)
        return number

    def send_headers(self, stream: int, fields: Iterable[Pair], end: bool = False) -> None:
        """A head, after which (`end`) nothing more comes. Pseudo-header fields are among `fields`, before the others.

        Names may be in any case. Fields about an HTTP/1 connection are left out.
        """
        self._send_block(self._sender(stream), self._lines.block(fields), end)

    def send_informational(self, stream: int, fields: Iterable[Pair]) -> None:
        """A 1xx head, which another follows."""
        self._send_block(self._sender(stream), self._lines.block(fields), False)

    def send_trailers(self, stream: int, fields: Iterable[Pair]) -> None:
        """The last that comes on the stream. Without fields: an empty DATA frame that ends it, as some peers choke on
        an empty block."""
        block = self._lines.block(fields)
        if block:
            self._send_block(self._sender(stream), block, True)
        else:
            self.send_data(stream, b"", True)

    def encode(self, fields: Iterable[Pair]) -> bytes:
        """The header block of `fields`, for `send_block`: it means the same at any time, on any stream."""
        return self._lines.block(fields)

    def send_block(self, stream: int, block: bytes, end: bool) -> None:
        """`send_headers` with what `encode` gave."""
        self._send_block(self._sender(stream), block, end)

    def _send_block(self, stream: Stream, block: bytes, end: bool) -> None:
        if self._tell_table:
            block = _NO_TABLE + block
            self._tell_table, self._table_told = False, True
        if len(block) <= frames.LEAST_FRAME:
            flags = _BOTH_ENDS if end else _END_HEADERS
            self.out += frames.frame_head(len(block) << 8 | frames.HEADERS, flags, stream.id) + block
        else:
            self.out += frames.headers(stream.id, block, end, self.peer.frame)
        if end:
            self._ended_by_us(stream)

    def send_data(self, stream: int, data: bytes, end: bool = False) -> int:
        """How many bytes of `data` the windows held; these are sent. `end` goes with the last byte, if that is sent."""
        state = self._sender(stream)
        size = len(data)
        count = min(size, state.window, self._window)
        if count <= 0:
            if size == 0 and end:
                self.out += frames.frame_head(frames.DATA, frames.END_STREAM, stream)
                self._ended_by_us(state)
            return 0
        ends = end and count == size
        self._send_frames(stream, data, count, ends)
        state.window -= count
        self._window -= count
        if ends:
            self._ended_by_us(state)
        return count

    def _send_frames(self, stream: int, data: bytes, count: int, ends: bool) -> None:
        out = self.out
        room = frames.LEAST_FRAME
        for start in range(0, count, room):
            stop = min(start + room, count)
            flags = frames.END_STREAM if ends and stop == count else 0
            out += frames.frame_head((stop - start) << 8 | frames.DATA, flags, stream)
            out += data if stop - start == len(data) else data[start:stop]
            self._floods.useful += 1

    def reset(self, stream: int, code: int) -> None:
        """RST_STREAM: we want no more of this stream, nor say more on it. Nothing, if it is over."""
        state = self._streams.get(stream)
        if state is not None:
            self.out += frames.rst_stream(stream, code)
            self._close(state, RESET_BY_US)
        self.release(stream)

    def _sender(self, stream: int) -> Stream:
        state = self._streams.get(stream)
        if state is None:
            raise StreamGone(stream, frames.NO_ERROR)
        if not state.may_send:
            raise Bug("sent on an HTTP/2 stream after its end")
        return state

    # -- flow control -----------------------------------------------------------------------------------------------

    def acknowledge(self, stream: int, count: int) -> None:
        """`count` bytes of what `DataReceived.flow` told have gone on: the peer may send as many more."""
        state = self._streams.get(stream)
        if state is not None:
            count = min(count, state.unread)
            state.unread -= count
            self._give_back_to(state, count)
        else:
            unread = self._unread.pop(stream, 0)
            count = min(count, unread)
            if unread > count:
                self._unread[stream] = unread - count
        self._give_back(count)

    def release(self, stream: int) -> None:
        """Nobody will take what is still unread of this stream: the other streams get its room."""
        state = self._streams.get(stream)
        if state is not None:
            self.acknowledge(stream, state.unread)
        else:
            self.acknowledge(stream, self._unread.get(stream, 0))

    # -- the connection ---------------------------------------------------------------------------------------------

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life: 8 bytes that come back in a PingAcked."""
        self.out += frames.ping(payload, False)

    def go_away(self, code: int = frames.NO_ERROR, text: str = "", last: int | None = None) -> None:
        """GOAWAY: no stream above `last` is taken any more; None: none above those that have begun.

        To drain without a loss (6.8), say `last=LARGEST` first, which lets streams come that are on their way, and a
        round trip (a `ping`) later say it without `last`.
        """
        last = self._highest if last is None else last
        # 6.8: never more than was said before.
        self._last_taken = min(self._last_taken, last)
        self.out += frames.goaway(self._last_taken, code, text.encode("ascii", "replace"))
