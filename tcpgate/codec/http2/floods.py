"""How much is too much: frames that cost us work and bring nobody anything, counted against what was of use.

Every legal frame can be a weapon if it comes without end. A kind of frame has a base that every peer gets in each
window of 30 seconds, and so many more for each useful thing of that window: a stream opened, a DATA frame either way.
(A client that downloads sends two WINDOW_UPDATEs for a DATA frame; gRPC pings while data comes, to measure.) Streams
reset by a client, or by us for a fault of it, have a fixed budget: no use earns the right to waste requests.

Source: CVE-2023-44487 (rapid reset), CVE-2025-8671 (MadeYouReset), CVE-2024-27316 and others (CONTINUATION),
CVE-2019-9511 to 9518; Envoy's `max_inbound_priority_frames_per_stream` (100),
`max_inbound_window_update_frames_per_data_frame_sent` (10) and `max_outbound_control_frames` (1000). Pure.
"""

from __future__ import annotations

from typing import Final

SPAN: Final = 30.0
"""Seconds of one window."""
REPLIES: Final = 1000
"""Frames that we owe a peer that does not read (answers to PING and SETTINGS, RST_STREAM); then it is a flood."""
CONTINUATIONS: Final = 64
"""Frames of one header block. An honest one of 128 KiB needs eight."""

RESET: Final = 0
SETTINGS: Final = 1
PING: Final = 2
PRIORITY: Final = 3
WINDOW_UPDATE: Final = 4
EMPTY: Final = 5
"""DATA with neither data nor END_STREAM."""
IGNORED: Final = 6
"""Unknown types, GOAWAYs, 1xx heads, answers to no question, and what comes for streams that are over."""

_NAMES: Final = ("streams reset", "SETTINGS", "PING", "PRIORITY", "WINDOW_UPDATE", "empty DATA", "frames to ignore")
_BASES: Final = (0, 100, 1000, 1000, 1000, 100, 2000)
_PER_USE: Final = (0, 0, 4, 100, 20, 0, 10)


class Floods:
    """The counts of one connection."""

    __slots__ = ("_bases", "_counts", "_start", "useful")

    def __init__(self, resets: int) -> None:
        """`resets`: streams that may be reset in one window."""
        self._bases = [resets, *_BASES[1:]]
        self._counts = [0] * len(_BASES)
        self._start = 0.0
        self.useful = 0
        """Streams opened and DATA frames in this window; whoever opens or sends adds one."""

    def count(self, kind: int, now: float) -> str:
        """One more of `kind`: "", or what there is too much of."""
        if not 0.0 <= now - self._start < SPAN:
            self._start = now
            self._counts = [0] * len(_BASES)
            self.useful = 0
        counts = self._counts
        counts[kind] += 1
        if counts[kind] > self._bases[kind] + _PER_USE[kind] * self.useful:
            return f"flood: too many {_NAMES[kind]}"
        return ""
