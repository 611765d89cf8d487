"""How slow a peer may be: a minimum rate over the time that we wait for it, and nothing else.

Theory of operation. A peer has an allowance of waiting, in seconds: `grace` at the start. Waiting spends it; each
byte that the peer moves earns 1 / min_rate seconds. When none is left, its average over the waited time has fallen
below `min_rate` after the grace. Time in which we do something else (wait for the other side, for the CPU) is not
counted, so a slow endpoint never makes its client look slow. What a burst can earn is bounded by `ceiling`: without
it 100 MB sent at once would buy two days of silence at 512 bytes a second, and a slow-loris attack would be cheap
again.

Source: Apache httpd mod_reqtimeout (`body=10,MinRate=500`), whose formula this is below the ceiling; nginx
`client_body_timeout` and `send_timeout` (60 s between two reads or writes) for the ceiling. Pure.
"""

from __future__ import annotations

import attrs

CEILING = 60.0
"""Seconds of silence that even the fastest peer may keep: nginx's default between two reads or two writes."""


@attrs.define
class Pace:
    """One direction of one body. The caller measures; this says how long it may go on waiting."""

    min_rate: float
    """Bytes per second."""
    grace: float
    """Seconds of waiting that are free at the start."""
    ceiling: float = CEILING
    """Seconds of waiting that can be saved up; `grace` where that is more."""
    _left: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._left = self.grace

    def budget(self) -> float:
        """Seconds that we may wait for the next bytes; 0.0 once the peer is too slow."""
        return max(0.0, self._left)

    def waited(self, seconds: float, moved: int) -> None:
        """We waited `seconds` for the peer, and it moved `moved` bytes. Call with 0 seconds for bytes that were
        there."""
        self._left += moved / self.min_rate - seconds
        self._left = min(self._left, max(self.ceiling, self.grace))

    @property
    def late(self) -> bool:
        """Whether the peer has used up what it had."""
        return self._left <= 0.0
