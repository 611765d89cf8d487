"""WebSocket frames as they pass: what may go on, where frames and messages end, and what breaks the rules.

A `FrameReader` reads one direction. It changes nothing: what it lets pass are the sender's own bytes, masks, fragments
and control frames included. Held back are only the beginning of a header and a control frame that is not all here (139
bytes at most), so that no byte of what is forbidden gets through; and a Pong that answers our own Ping is kept.

Frames are taken apart by wsproto's `FrameDecoder` (headers, lengths, masks), whose hook for extensions is where the
rules of messages stand here: sizes, fragments, UTF-8. The decoder above it, `FrameProtocol`, gives out whole frames
without their place in the bytes, and so is of no use to somebody who passes them on.

- permessage-deflate (RFC 7692) is between the two sides: a compressed message is opaque, its size that of its
  compressed form, and nobody looks whether its text is UTF-8. Of extensions that are not known here, all messages are
  opaque and all reserved bits are allowed.
- A message's size is known by its frames' headers, so one that is too large is refused before its last frame begins.

Source: RFC 6455 5 (frames), 7.4 (close codes) and 8.1 (UTF-8), RFC 7692 6, the IANA registry of close codes. Pure, but
that wsproto draws the masks of our own frames.
"""

from __future__ import annotations

import codecs
import struct

import attrs
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Frame, FrameDecoder, FrameProtocol, Opcode, ParseFailed, RsvBits

NORMAL, GOING_AWAY, PROTOCOL_ERROR, BAD_DATA, TOO_BIG, FAILED, RESTART = 1000, 1001, 1002, 1007, 1009, 1011, 1012
NO_STATUS = 1005
"""What a Close without a code is told as; never on the wire."""
DEFLATE = "permessage-deflate"
_SENDABLE = frozenset({*range(1000, 1004), *range(1007, 1015)})
"""Codes below 3000 that a Close may carry: RFC 6455 7.4.1, and what IANA has registered since."""
_NO_BITS, _ALL_BITS = RsvBits(False, False, False), RsvBits(True, True, True)
_DEFLATE_BIT = RsvBits(True, False, False)


@attrs.frozen
class Fault:
    """Why the sender's connection has to be failed."""

    code: int
    """For the Close that it gets: PROTOCOL_ERROR, BAD_DATA or TOO_BIG."""
    text: str


@attrs.frozen
class Passage:
    """What goes on of the bytes that have come."""

    data: bytes
    """The sender's own bytes."""
    frame_end: int = -1
    """Where in `data` its last frame ends, so that one of ours may stand there; -1: none does."""
    message_end: int = -1
    """The same, where no message is under way either."""
    close: int | None = None
    """The code, if the last frame is a Close; nothing follows it."""
    fault: Fault | None = None
    """Nothing that comes after `data` will be read."""


NOTHING = Passage(b"")


def extensions_of(values: list[bytes]) -> frozenset[str]:
    """The names in the Sec-WebSocket-Extensions fields of a 101 (RFC 6455 9.1)."""
    offers = (offer for value in values for offer in value.decode("latin-1").split(","))
    names = (offer.partition(";")[0].strip().lower() for offer in offers)
    return frozenset(name for name in names if name)


def close_frame(code: int, *, masked: bool) -> bytes:
    """A Close of our own. `masked`: to the server, as a client's has to be."""
    return bytes(FrameProtocol(masked, []).close(code))


def ping_frame(payload: bytes) -> bytes:
    """A Ping of our own, to a client."""
    return bytes(FrameProtocol(False, []).ping(payload))


class FrameReader:
    """One direction of a WebSocket."""

    def __init__(self, *, from_client: bool, max_message: int, extensions: frozenset[str] = frozenset()) -> None:
        self.mid_frame = False
        """The last of what has passed is a part of a frame: nothing of ours may follow it."""
        self.answer = b""
        """The payload of our own Ping: the Pong that has it goes no further."""
        self._rules = _Rules(max_message, extensions)
        self._decoder = FrameDecoder(client=not from_client, extensions=[self._rules])
        self._held = b""
        self._over = False

    @property
    def in_message(self) -> bool:
        """Between two fragments of a message."""
        return self._rules.in_message

    def receive(self, data: bytes) -> Passage:
        """What of `data`, and of what was held back before it, may go on. Never raises."""
        if self._over:
            return NOTHING
        self._decoder.receive_bytes(data)
        raw = self._held + data if self._held else data
        found = _Passing(raw)
        try:
            while self._step(found):
                pass
        except ParseFailed as exc:
            found.fault = Fault(int(exc.code), self._rules.fault or str(exc))
        self._over = found.fault is not None or found.close is not None
        self._held = b"" if self._over else raw[found.at :]
        return found.passage()

    def _step(self, found: _Passing) -> bool:
        """Read on, up to the end of a frame or of what is here; whether there may be more."""
        decoder = self._decoder
        frame = decoder.process_buffer()
        at = len(found.raw) - len(decoder.buffer)
        if frame is None:
            header = decoder.header
            if header is not None and not header.opcode.iscontrol():
                found.at, self.mid_frame = at, True
            return False
        if frame.opcode is Opcode.CLOSE:
            found.close = _close_code(frame)
        elif frame.opcode is Opcode.PONG and self.answer and frame.payload == self.answer:
            found.leave_out(at)
        found.at, self.mid_frame = at, not frame.frame_finished
        if frame.frame_finished:
            found.ends(message=not self._rules.in_message)
        return found.close is None


class _Passing:
    """A passage in the making."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        """How far it has been read."""
        self.close: int | None = None
        self.fault: Fault | None = None
        self._pieces: list[bytes] = []
        self._from = 0
        self._left_out = 0
        self._frame_end = self._message_end = -1

    def leave_out(self, end: int) -> None:
        """What stands between `at` and `end` does not go on."""
        self._pieces.append(self.raw[self._from : self.at])
        self._left_out += end - self.at
        self._from = end

    def ends(self, *, message: bool) -> None:
        """A frame ends at `at`, and perhaps a message."""
        self._frame_end = self.at - self._left_out
        if message:
            self._message_end = self._frame_end

    def passage(self) -> Passage:
        """What has come of it."""
        data = self.raw[self._from : self.at]
        if self._pieces:
            data = b"".join((*self._pieces, data))
        return Passage(data, self._frame_end, self._message_end, self.close, self.fault)


class _Rules(Extension):
    """What frames together have to be; wsproto asks at each header, at each piece of payload, at each end.

    It may ask twice at one header, if the mask has not come yet, so nothing is counted before the frame's end.
    """

    name = "rules"

    def __init__(self, max_message: int, extensions: frozenset[str]) -> None:
        self.in_message = False
        self.fault = ""
        """What was wrong, in words: all that wsproto tells is a code."""
        self._max = max_message
        self._deflates = DEFLATE in extensions
        self._foreign = bool(extensions - {DEFLATE})
        self._size = 0
        """Of the message's fragments that are over."""
        self._utf8: codecs.IncrementalDecoder | None = None
        """Of a text message that can be read."""

    def offer(self) -> bool:
        """It is none that is offered to anybody."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """The reserved bits that it may have, or why it may not be at all."""
        if opcode.iscontrol():
            return _NO_BITS
        if opcode is Opcode.CONTINUATION:
            if not self.in_message:
                return self._broken("a continuation of nothing")
        elif self.in_message:
            return self._broken("a message begins inside another")
        size = self._size + payload_length
        if size > self._max:
            self.fault = f"a message of at least {size} bytes, {self._max} are allowed"
            return CloseReason.MESSAGE_TOO_BIG
        if opcode is not Opcode.CONTINUATION:
            is_text = opcode is Opcode.TEXT and not self._foreign and not any(rsv)
            self._utf8 = codecs.getincrementaldecoder("utf-8")() if is_text else None
        if self._foreign:
            return _ALL_BITS
        return _DEFLATE_BIT if self._deflates and opcode is not Opcode.CONTINUATION else _NO_BITS

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Look at a piece of payload."""
        if self._utf8 is None or _is_control(proto):
            return data
        return data if self._is_utf8(data, final=False) else CloseReason.INVALID_FRAME_PAYLOAD_DATA

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> CloseReason | None:
        """A frame is over; `fin`: and its message, if it is one of a message."""
        if _is_control(proto):
            return None
        assert isinstance(proto, FrameDecoder)
        assert proto.header is not None
        self.in_message = not fin
        self._size = 0 if fin else self._size + proto.header.payload_len
        if fin and self._utf8 is not None and not self._is_utf8(b"", final=True):
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        return None

    def _is_utf8(self, data: bytes, *, final: bool) -> bool:
        assert self._utf8 is not None
        try:
            self._utf8.decode(data, final)
        except UnicodeDecodeError:
            self.fault = "text that is not UTF-8"
            return False
        return True

    def _broken(self, what: str) -> CloseReason:
        self.fault = what
        return CloseReason.PROTOCOL_ERROR


def _is_control(proto: FrameDecoder | FrameProtocol) -> bool:
    """Whether the frame at hand is a control frame; these stand between a message's fragments and are none of it."""
    assert isinstance(proto, FrameDecoder)
    assert proto.header is not None
    return proto.header.opcode.iscontrol()


def _close_code(frame: Frame) -> int:
    """The code of a Close (RFC 6455 5.5.1, 7.4)."""
    payload = frame.payload
    assert isinstance(payload, bytes)
    if not payload:
        return NO_STATUS
    if len(payload) == 1:
        raise ParseFailed("a Close with half a code")
    code: int = struct.unpack_from("!H", payload)[0]
    if code not in _SENDABLE and not 3000 <= code <= 4999:
        raise ParseFailed(f"a Close with the code {code}")
    try:
        payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise ParseFailed("a Close whose reason is not UTF-8", CloseReason.INVALID_FRAME_PAYLOAD_DATA) from None
    return code
