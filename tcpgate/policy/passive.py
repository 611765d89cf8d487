"""What a worker counts of live traffic at one endpoint, and when it tells the supervisor. Pure.

Two runs, told apart: connects in a row that failed, and answers in a row that were bad (5xx, broken or late).
Whatever the endpoint answers ends the run of failed connects; only a good answer ends the run of bad ones. The
supervisor's machine (`health.py`) decides what a run means, so a worker needs no thresholds and a reload of them no
message.

What is sent: failures at once, from the first of a run on, since the one that takes the endpoint out must not wait; a
success only if it ends a run that was told. A bucket bounds that, for an endpoint that fails now and then under heavy
traffic would otherwise cost two messages per failure: `BURST` at once, then `RATE` per second. A failure that found
the bucket empty is in the count of the next one told, so an endpoint that goes on failing is found out 1 / RATE later
at worst.

Source: nginx `max_fails` and Envoy `consecutive_5xx` and `consecutive_local_origin_failure` for the two runs; token
bucket as in RFC 2697.
"""

from __future__ import annotations

import attrs

BURST = 10.0
"""Twice the default `bad_answers`, so that a run from nothing to the ejection is told failure by failure."""
RATE = 10.0


@attrs.frozen(kw_only=True)
class Observation:
    """What the supervisor should know: both runs as they are now, and the last failure's cause ("" after a success)."""

    connect_failures: int
    bad_answers: int
    cause: str


@attrs.define
class LiveCounts:
    """One worker's runs at one endpoint. Each method returns what to send, mostly nothing."""

    connect_failures: int = 0
    bad_answers: int = 0
    _told: bool = False
    """Whether the supervisor has heard of the run that goes on."""
    _tokens: float = BURST
    _stamp: float = 0.0
    """When `_tokens` was true."""

    def connect_failed(self, cause: str, now: float) -> Observation | None:
        """A connect was refused, found no way or took too long."""
        self.connect_failures += 1
        return self._tell(cause, now)

    def bad(self, cause: str, now: float) -> Observation | None:
        """The endpoint answered, but with a 5xx, not well-formed, or not in time."""
        self.connect_failures = 0
        self.bad_answers += 1
        return self._tell(cause, now)

    def good(self, now: float) -> Observation | None:
        """A good answer, or for a flow a connect. The usual case, so the first line is all that it costs."""
        if not (self.connect_failures or self.bad_answers):
            return None
        told = self._told
        self.reset()
        return Observation(connect_failures=0, bad_answers=0, cause="") if told else None

    def reset(self) -> None:
        """Forget both runs: the endpoint comes back, and what it did before its absence no longer counts."""
        self.connect_failures = self.bad_answers = 0
        self._told = False

    def _tell(self, cause: str, now: float) -> Observation | None:
        # A clock that steps back must not mint tokens.
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._stamp) * RATE)
        self._stamp = max(self._stamp, now)
        if self._tokens < 1.0:
            return None
        self._tokens -= 1.0
        self._told = True
        return Observation(connect_failures=self.connect_failures, bad_answers=self.bad_answers, cause=cause)
