"""Frames of the peer, one after another: which may come when, what they change, and what is told of them.

One pass: a frame's nine bytes are unpacked where they lie, its payload is sliced once, and its type picks the method.
Only what has not come whole yet is kept, less than one frame. An error of the connection is a `Fatal`, which `receive`
turns into a GOAWAY; an error of a stream is a `_fault`. Which of both a broken rule is, the RFC says with the rule.

Source: RFC 9113 3.4, 4, 5, 6 and 8.1. Pure.
"""

from __future__ import annotations

from tcpgate.codec.http2 import floods, frames
from tcpgate.codec.http2.blocks import Blocks
from tcpgate.codec.http2.core import Fatal
from tcpgate.codec.http2.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcked,
    SettingsAcked,
    SettingsReceived,
    WindowOpened,
)
from tcpgate.codec.http2.headers import CompressionError
from tcpgate.codec.http2.streams import RESET_BY_US, Stream

_STREAM = frames.LARGEST  # all bits of a stream identifier but the reserved one, which is ignored (4.1)


class Reading(Blocks):
    """The receiving half of a connection."""

    __slots__ = ()

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What the peer's next bytes say, in order. They may be split anywhere. Never raises for what a peer sends.

        `now`: seconds on any clock that does not step back; floods are counted over it.
        """
        if self._failed is not None:
            return []
        self._now = now
        events: list[Event] = []
        self._events = events
        try:
            self._frames(self._rest + data if self._rest else data)
        except Fatal as fatal:
            self._fail(fatal)
        except CompressionError as error:
            self._fail(Fatal(frames.COMPRESSION_ERROR, str(error)))
        self._events = []
        return events

    def _frames(self, data: bytes) -> None:
        at, size, most = 0, len(data), self.settings.frame
        if self._preface:
            at = len(self._preface)
            if data[:at] != self._preface[:size]:
                raise Fatal(frames.PROTOCOL_ERROR, "preface: not a client's")
            if size < at:
                self._rest = data
                return
            self._preface = b""
        while at + 9 <= size:
            word, flags, stream = frames.read_head(data, at)
            length, kind = word >> 8, word & 0xFF
            if length > most:
                raise Fatal(frames.FRAME_SIZE_ERROR, "frame: larger than SETTINGS_MAX_FRAME_SIZE")
            stream &= _STREAM
            if self._only is not None and self._only != (kind, stream):
                raise Fatal(frames.PROTOCOL_ERROR, "frame: not the one that must come next")
            start = at + 9
            end = start + length
            if end > size:
                break
            if kind == frames.DATA:
                self._on_data(flags, stream, data, start, end)
            elif kind < len(_HANDLERS):
                _HANDLERS[kind](self, flags, stream, data[start:end])
            else:
                self._count(floods.IGNORED)  # 5.5: what is unknown is ignored
            at = end
        self._rest = data[at:]

    # -- DATA -------------------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, number: int, data: bytes, start: int, end: int) -> None:
        flow = end - start
        stream = self._streams.get(number)
        self._receivable -= flow
        if self._receivable < 0:
            raise Fatal(frames.FLOW_CONTROL_ERROR, "DATA: beyond the connection's window")
        if flags & frames.PADDED:
            if start == end:
                raise Fatal(frames.FRAME_SIZE_ERROR, "DATA: no room for the pad length")
            end -= data[start]
            start += 1
            if end < start:
                raise Fatal(frames.PROTOCOL_ERROR, "DATA: more padding than payload")
        if stream is None or not stream.may_receive or not stream.headed:
            self._on_stray_data(number, stream, flow)
            return
        length = end - start
        ends = flags & frames.END_STREAM != 0
        if flow > stream.receivable:
            self._drop(number, flow, frames.FLOW_CONTROL_ERROR, "DATA: beyond the stream's window")
            return
        if stream.left >= 0:
            stream.left -= length
            if stream.left < 0 or (ends and stream.left):
                self._drop(number, flow, frames.PROTOCOL_ERROR, "DATA: not as long as Content-Length says")
                return
        stream.receivable -= flow
        stream.unread += flow
        if length:
            self._floods.useful += 1
        elif not ends:
            self._count(floods.EMPTY)
        self._events.append(DataReceived(number, data[start:end], flow, ends))
        if ends:
            self._ended_by_peer(stream)

    def _on_stray_data(self, number: int, stream: Stream | None, flow: int) -> None:
        """DATA on a stream that is in no state for it (5.1)."""
        if stream is not None and stream.may_receive:
            self._drop(number, flow, frames.PROTOCOL_ERROR, "DATA: before the head")
        elif stream is not None:
            self._drop(number, flow, frames.STREAM_CLOSED, "DATA: after END_STREAM")
        elif self._is_idle(number):
            raise Fatal(frames.PROTOCOL_ERROR, "DATA: on an idle stream")
        elif self._over.get(number) == RESET_BY_US:
            self._give_back(flow)
            self._count(floods.IGNORED)
        else:
            self._give_back(flow)
            self._refuse(number, frames.STREAM_CLOSED)

    def _drop(self, number: int, flow: int, code: int, text: str) -> None:
        """DATA that nobody will see, and whose stream is over for it."""
        self._give_back(flow)
        self._fault(number, code, text)

    # -- small frames -----------------------------------------------------------------------------------------------

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:
        """Parsed and ignored (5.3.2)."""
        if number == 0:
            raise Fatal(frames.PROTOCOL_ERROR, "PRIORITY: on stream 0")
        problem, code = "", frames.PROTOCOL_ERROR
        if len(payload) != 5:
            problem, code = "PRIORITY: not 5 bytes", frames.FRAME_SIZE_ERROR
        elif frames.read_word(payload)[0] & _STREAM == number:
            problem = "PRIORITY: depends on itself"
        if problem and number in self._streams:
            self._fault(number, code, problem)
        elif problem and self._is_idle(number):
            raise Fatal(code, problem)  # an idle stream has no RST_STREAM (6.4)
        elif problem:
            self._refuse(number, code)
        self._count(floods.PRIORITY)

    def _on_rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fatal(frames.FRAME_SIZE_ERROR, "RST_STREAM: not 4 bytes")
        stream = self._streams.get(number)
        if stream is not None:
            self._reset_by_peer(stream, frames.read_word(payload)[0])
            if self.role == "server":
                self._count(floods.RESET)
        elif self._is_idle(number):
            raise Fatal(frames.PROTOCOL_ERROR, "RST_STREAM: on an idle stream, or 0")
        else:
            self._count(floods.IGNORED)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Fatal(frames.PROTOCOL_ERROR, "SETTINGS: not on stream 0")
        if flags & frames.ACK:
            self._on_settings_ack(payload)
            return
        if len(payload) % 6:
            raise Fatal(frames.FRAME_SIZE_ERROR, "SETTINGS: not a multiple of 6 bytes")
        self._only = None
        self._count(floods.SETTINGS)
        peer = self.peer
        window = peer.window
        for name, value in frames.read_settings(payload):
            code, problem = peer.apply(self.role, name, value)
            if problem:
                raise Fatal(code, problem)
        if peer.window != window:
            for stream in self._streams.values():
                if not self._widen(stream, peer.window - window):
                    raise Fatal(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE: a window above 2^31-1")
        if peer.table < 4096 and not self._table_told:
            self._tell_table = True
        self._reply(frames.SETTINGS_ACK)
        self._events.append(SettingsReceived())

    def _on_settings_ack(self, payload: bytes) -> None:
        if payload:
            raise Fatal(frames.FRAME_SIZE_ERROR, "SETTINGS: an acknowledgement with a payload")
        if self._only is not None:
            raise Fatal(frames.PROTOCOL_ERROR, "SETTINGS: an acknowledgement first of all")
        if not self._unacked:
            self._count(floods.IGNORED)
            return
        self._unacked = 0
        change = self.settings.window - self._stream_receivable
        self._stream_receivable += change
        for stream in self._streams.values():
            stream.receivable += change
        self._events.append(SettingsAcked())

    def _on_push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise Fatal(frames.PROTOCOL_ERROR, "PUSH_PROMISE: from a client, or not asked for")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Fatal(frames.PROTOCOL_ERROR, "PING: not on stream 0")
        if len(payload) != 8:
            raise Fatal(frames.FRAME_SIZE_ERROR, "PING: not 8 bytes")
        self._count(floods.PING)
        if flags & frames.ACK:
            self._events.append(PingAcked(payload))
        else:
            self._reply(frames.ping(payload, True))

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Fatal(frames.PROTOCOL_ERROR, "GOAWAY: not on stream 0")
        if len(payload) < 8:
            raise Fatal(frames.FRAME_SIZE_ERROR, "GOAWAY: less than 8 bytes")
        self._count(floods.IGNORED)
        last = frames.read_word(payload)[0] & _STREAM
        self._gone_away = True
        self._events.append(GoAwayReceived(last, frames.read_word(payload, 4)[0], payload[8:]))
        if self.role == "client":
            for stream in [stream for stream in self._streams.values() if stream.id > last]:
                self._reset_by_peer(stream, frames.REFUSED_STREAM, "GOAWAY: not looked at")

    def _on_window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fatal(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE: not 4 bytes")
        self._count(floods.WINDOW_UPDATE)
        increment = frames.read_word(payload)[0] & _STREAM
        if number == 0:
            before = self._window
            self._window += increment
            if not increment:
                raise Fatal(frames.PROTOCOL_ERROR, "WINDOW_UPDATE: by 0")
            if self._window > frames.LARGEST:
                raise Fatal(frames.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: a window above 2^31-1")
            if before <= 0:
                self._events.append(WindowOpened(0))
            return
        stream = self._streams.get(number)
        if stream is None:
            if self._is_idle(number):
                raise Fatal(frames.PROTOCOL_ERROR, "WINDOW_UPDATE: on an idle stream")
        elif not increment:
            self._fault(number, frames.PROTOCOL_ERROR, "WINDOW_UPDATE: by 0")
        elif not self._widen(stream, increment):
            self._fault(number, frames.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: a window above 2^31-1")


_HANDLERS = (
    Reading._on_priority,  # DATA, which has a path of its own
    Reading._on_headers,
    Reading._on_priority,
    Reading._on_rst_stream,
    Reading._on_settings,
    Reading._on_push_promise,
    Reading._on_ping,
    Reading._on_goaway,
    Reading._on_window_update,
    Reading._on_continuation,
)
