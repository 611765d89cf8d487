"""When an endpoint is asked next. Pure.

Each `interval` as a rule; each `fast_interval` while the state is about to change; while the endpoint is down so that
the `rise`th success in a row comes within one interval of its return (as far as `fast_interval` lets it), because a
user waits for that one. Spans count from the begin of a probe to the begin of the next, so a slow answer does not
stretch them.

Jitter only shortens, by up to a tenth: what the config says is a promise. The phase within the interval comes from a
hash of the endpoint's name, so that a start or a reload does not probe everything in one beat.

Source: HAProxy `inter`, `fastinter`, `downinter`, `spread-checks`; Envoy `interval_jitter`, `unhealthy_edge_interval`.
"""

from __future__ import annotations

import enum
import random

import attrs

from tcpgate.config.schema import Health

JITTER = 0.1
FIRST_PROBES = 0.1
"""The first probes of all endpoints are spread over this span (seconds), or over `fast_interval` if that is shorter."""


class Pace(enum.Enum):
    """What the next probe is for."""

    STEADY = "steady"
    CHANGING = "changing"
    """A few more results will decide something."""
    DOWN = "down"
    """To see the endpoint come back."""


@attrs.define
class Cadence:
    """One endpoint's place in time."""

    phase: float
    """0 to 1, stable for the endpoint."""
    asked_at: float
    """When the last probe began; before the first, when probing started."""
    asks: int = 0
    jitter: float = 1.0

    def restart(self, now: float) -> None:
        """Begin anew, with a first probe soon."""
        self.asked_at, self.asks = now, 0

    def began(self, now: float, rng: random.Random) -> None:
        """A probe begins."""
        self.asked_at = now
        self.asks += 1
        self.jitter = 1.0 - JITTER * rng.random()

    def due(self, health: Health, pace: Pace) -> float:
        """When the next probe should begin; perhaps already past."""
        return self.asked_at + self._pause(health, pace)

    def _pause(self, health: Health, pace: Pace) -> float:
        interval = health.interval
        fast = min(interval, interval / 4 if health.fast_interval is None else health.fast_interval)
        if self.asks == 0:
            return self.phase * min(fast, FIRST_PROBES)
        if pace is Pace.CHANGING:
            return fast * self.jitter
        if pace is Pace.DOWN:
            return max(fast, interval - (health.rise - 1) * fast) * self.jitter
        # The first probes of all endpoints came close together; the second one goes to its place in the interval, and
        # jitter only makes it wander from there.
        return max(fast, interval * self.phase) if self.asks == 1 else interval * self.jitter
