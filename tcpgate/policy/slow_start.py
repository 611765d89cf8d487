"""How an endpoint that comes back gets its share: little by little, in steps. Pure.

A cold process (empty caches, no compiled code, a single connection) that is given its full share at once often falls
over again. So its weight climbs from `floor` to the whole over `window` seconds. In steps, because each new weight is
a message to every worker and a new table for the hashing balancers.

Source: Envoy, slow start mode, weight x max(floor, (t / window) ** (1 / aggression)); HAProxy `slowstart` (20 steps
there too).
"""

from __future__ import annotations

import attrs

from tcpgate.config.schema import SlowStart

STEPS = 20


def factor(elapsed: float, spec: SlowStart) -> float:
    """The share of its weight that an endpoint has `elapsed` seconds after it came back: more than 0, at most 1."""
    elapsed = max(0.0, elapsed)
    if elapsed >= spec.window:
        return 1.0
    climbed: float = (elapsed / spec.window) ** (1 / spec.aggression)
    return max(spec.floor, climbed)


@attrs.define
class Ramp:
    """One endpoint's climb. At rest (not climbing) its factor is 1."""

    spec: SlowStart
    _began: float | None = attrs.field(default=None, init=False)
    _step: int = attrs.field(default=0, init=False)

    @property
    def climbing(self) -> bool:
        """Whether the full weight is still to come."""
        return self._began is not None

    @property
    def factor(self) -> float:
        """The share of its weight that the endpoint has, as of the last `advance`: more than 0, at most 1."""
        if self._began is None:
            return 1.0
        return factor(self._step * self.spec.window / STEPS, self.spec)

    def begin(self, now: float) -> None:
        """Start from the floor; nothing happens if the spec has no slow start."""
        self._began = now if self.spec.window > 0 else None
        self._step = 0

    def end(self) -> None:
        """Stop climbing: the endpoint takes nothing any more, or has it all."""
        self._began = None

    def deadline(self) -> float | None:
        """When the next step is due."""
        return None if self._began is None else self._began + (self._step + 1) * self.spec.window / STEPS

    def advance(self, now: float) -> bool:
        """Take every step that is due; whether the climb ended by that."""
        # The same expression as in `deadline`, so a call at the deadline always gets on, whatever floats round to.
        while (due := self.deadline()) is not None and now >= due:
            self._step += 1
            if self._step == STEPS:
                self.end()
                return True
        return False
