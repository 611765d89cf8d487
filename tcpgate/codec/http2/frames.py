"""HTTP/2 frames: their numbers, and how each is written.

Writers give whole frames as bytes; who sends them, and whether they may be sent, is `machine`'s matter. There is no
reader here: `reading` unpacks frame headers in place, since an object for each frame would cost more than its meaning.

Source: RFC 9113 4.1, 6, 7 and 11; RFC 8441 3; RFC 9218 2.1. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (3.4), before its SETTINGS."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
CONNECT_ERROR: Final = 10
ENHANCE_YOUR_CALM: Final = 11
INADEQUATE_SECURITY: Final = 12
HTTP_1_1_REQUIRED: Final = 13
ERROR_NAMES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6
ENABLE_CONNECT_PROTOCOL: Final = 8
NO_RFC7540_PRIORITIES: Final = 9

LARGEST: Final = 2**31 - 1
"""The largest stream id, window and increment."""
DEFAULT_WINDOW: Final = 65_535
"""Both windows before anyone says otherwise (6.9.2)."""
LEAST_FRAME: Final = 16_384
"""What every peer takes in one frame (4.2), and the most that a DATA frame of ours holds: other streams wait."""
MOST_FRAME: Final = 2**24 - 1

frame_head = struct.Struct(">IBI").pack
"""(length << 8 | type, flags, stream): the nine bytes before a payload."""
read_head = struct.Struct(">IBI").unpack_from
read_word = struct.Struct(">I").unpack_from
read_settings = struct.Struct(">HI").iter_unpack
_pack_setting = struct.Struct(">HI").pack
_pack_word = struct.Struct(">IBII").pack
_pack_goaway = struct.Struct(">IBIII").pack


def error_name(code: int) -> str:
    """How people call an error code: "PROTOCOL_ERROR", or the number of one that no RFC names."""
    return ERROR_NAMES[code] if code < len(ERROR_NAMES) else f"0x{code:x}"


def headers(stream: int, block: bytes, end: bool, room: int) -> bytes:
    """HEADERS of a whole header block, and the CONTINUATIONs that it takes where a frame has `room` bytes."""
    ended = END_STREAM if end else 0
    if len(block) <= room:
        return frame_head(len(block) << 8 | HEADERS, END_HEADERS | ended, stream) + block
    parts = [frame_head(room << 8 | HEADERS, ended, stream), block[:room]]
    for start in range(room, len(block), room):
        piece = block[start : start + room]
        last = END_HEADERS if start + room >= len(block) else 0
        parts += (frame_head(len(piece) << 8 | CONTINUATION, last, stream), piece)
    return b"".join(parts)


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS that say `pairs`, in this order."""
    payload = b"".join(_pack_setting(number, value) for number, value in pairs)
    return frame_head(len(payload) << 8 | SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = frame_head(SETTINGS, ACK, 0)


def rst_stream(stream: int, code: int) -> bytes:
    """RST_STREAM: this stream is over."""
    return _pack_word(4 << 8 | RST_STREAM, 0, stream, code)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE: `increment` more bytes may come, on one stream or (0) on all together."""
    return _pack_word(4 << 8 | WINDOW_UPDATE, 0, stream, increment)


def ping(payload: bytes, ack: bool) -> bytes:
    """PING, or the answer to one. `payload` is 8 bytes."""
    return frame_head(8 << 8 | PING, ACK if ack else 0, 0) + payload


def goaway(last: int, code: int, text: bytes) -> bytes:
    """GOAWAY: no stream above `last` was or will be looked at."""
    return _pack_goaway((8 + len(text)) << 8 | GOAWAY, 0, 0, last, code) + text
