"""SETTINGS, ours and the peer's: what each lets the other do.

Source: RFC 9113 6.5.2, RFC 8441 3 (ENABLE_CONNECT_PROTOCOL), RFC 9218 2.1 (NO_RFC7540_PRIORITIES). Pure.
"""

from __future__ import annotations

from typing import Literal

import attrs

from tcpgate.codec.http2 import frames

Role = Literal["server", "client"]


@attrs.frozen(kw_only=True)
class Settings:
    """What we let the peer do."""

    streams: int = 100
    """Streams at a time (MAX_CONCURRENT_STREAMS); one more is refused. RFC 9113 asks for at least 100."""
    window: int = 64 << 10
    """Bytes of one stream that nobody has taken yet (INITIAL_WINDOW_SIZE); nginx's 64 KiB."""
    connection_window: int = 1 << 20
    """The same of all streams together: what one connection can make us hold. Envoy advises 1 MiB."""
    frame: int = frames.LEAST_FRAME
    """Payload of one frame (MAX_FRAME_SIZE)."""
    header_list: int = 32 << 10
    """One header block, decoded, 32 bytes for each field added (MAX_HEADER_LIST_SIZE); a request above is 431."""
    headers: int = 100
    """Fields in one header block, pseudo-header fields apart; a request with more is 431."""
    resets: int = 200
    """Streams in 30 seconds that a client may reset, or make us reset, before its connection is ended."""

    @property
    def block(self) -> int:
        """Bytes of a header block as it comes. What is just too large should still get its 431: so four times that."""
        return max(4 * self.header_list, 64 << 10)

    def pairs(self, role: Role) -> list[tuple[int, int]]:
        """What SETTINGS says at the start."""
        pairs = [
            (frames.INITIAL_WINDOW_SIZE, self.window),
            (frames.MAX_FRAME_SIZE, self.frame),
            (frames.MAX_HEADER_LIST_SIZE, self.header_list),
        ]
        if role == "client":
            return [(frames.ENABLE_PUSH, 0), *pairs]
        return [
            (frames.MAX_CONCURRENT_STREAMS, self.streams),
            *pairs,
            (frames.ENABLE_CONNECT_PROTOCOL, 1),
            (frames.NO_RFC7540_PRIORITIES, 1),
        ]


class PeerSettings:
    """What the peer lets us do; before its SETTINGS, what the RFC says everyone does."""

    __slots__ = ("connect_protocol", "frame", "header_list", "streams", "table", "window")

    def __init__(self) -> None:
        self.streams = frames.LARGEST
        """Streams at a time that we may open."""
        self.window = frames.DEFAULT_WINDOW
        """What a new stream's window begins with."""
        self.frame = frames.LEAST_FRAME
        self.header_list = frames.LARGEST
        """Advice: a larger header block may be refused."""
        self.table = 4096
        """Bytes of the HPACK table that we do not use."""
        self.connect_protocol = False
        """Takes extended CONNECT."""

    def apply(self, role: Role, number: int, value: int) -> tuple[int, str]:
        """(NO_ERROR, "") once what the peer of our `role` says is so; else the error that it is."""
        match number:
            case frames.HEADER_TABLE_SIZE:
                self.table = value
            case frames.ENABLE_PUSH:
                if value > 1 or (value and role == "client"):
                    return frames.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH: neither 0 nor a client's 1"
            case frames.MAX_CONCURRENT_STREAMS:
                self.streams = value
            case frames.INITIAL_WINDOW_SIZE:
                if value > frames.LARGEST:
                    return frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE: above 2^31-1"
                self.window = value
            case frames.MAX_FRAME_SIZE:
                if not frames.LEAST_FRAME <= value <= frames.MOST_FRAME:
                    return frames.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE: not from 2^14 to 2^24-1"
                self.frame = value
            case frames.MAX_HEADER_LIST_SIZE:
                self.header_list = value
            case frames.ENABLE_CONNECT_PROTOCOL:
                if value > 1 or (self.connect_protocol and not value):
                    return frames.PROTOCOL_ERROR, "SETTINGS_ENABLE_CONNECT_PROTOCOL: not 0 or 1, or taken back"
                self.connect_protocol = value == 1
            case frames.NO_RFC7540_PRIORITIES:
                if value > 1:
                    return frames.PROTOCOL_ERROR, "SETTINGS_NO_RFC7540_PRIORITIES: neither 0 nor 1"
        return frames.NO_ERROR, ""  # 6.5.2: what is unknown is ignored
