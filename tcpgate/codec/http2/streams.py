"""One stream: what each side may still send on it, its windows, and what of its body nobody has taken yet.

A stream is in `Core.streams` from its first HEADERS until both sides have ended it or one has reset it (RFC 9113 5.1):
open is `may_receive and may_send`, half closed is one of them. Idle and closed streams have no object.

Source: RFC 9113 5.1, 5.2, 8.1.1. Pure.
"""

from __future__ import annotations

from typing import Final

ENDED: Final = 0
"""Both sides said END_STREAM. So most streams end, and it is not remembered of each."""
RESET_BY_US: Final = 1
"""What still comes for it was sent before the peer knew: ignored."""
RESET_BY_PEER: Final = 2
SKIPPED: Final = 3
"""Never opened, and closed when a higher one was (5.1.1)."""

UNKNOWN_LENGTH: Final = -1


class Stream:
    """The state of one stream that is open or half closed."""

    __slots__ = (
        "headed",
        "id",
        "left",
        "may_receive",
        "may_send",
        "method",
        "owed",
        "receivable",
        "tunnel",
        "unread",
        "window",
    )

    def __init__(self, number: int, window: int, receivable: int) -> None:
        self.id = number
        self.window = window
        """Bytes of DATA that we may send; below 0 when the peer shrank it by SETTINGS."""
        self.receivable = receivable
        """Bytes that the peer may send."""
        self.unread = 0
        """Bytes told by DataReceived and not acknowledged."""
        self.owed = 0
        """Bytes acknowledged and not yet given back by a WINDOW_UPDATE."""
        self.may_send = True
        self.may_receive = True
        self.headed = False
        """The peer's head came: a further header block is trailers."""
        self.left = UNKNOWN_LENGTH
        """What Content-Length says is still to come."""
        self.tunnel = False
        """CONNECT: after the head only DATA (8.5)."""
        self.method = b""
        """Client role: what we asked, since it decides what the answer's length means."""
