"""Whether an attempt that failed may be followed by another one, at another endpoint. Pure.

The rule of RFC 9110 9.2.2 for proxies is hard: a request whose method is not idempotent is not sent again on our own
account, unless we know that the first was not acted upon. We know that only if nothing of it reached the endpoint
(`Retry.IF_UNSENT`), or if it says itself that it has not looked at it (`Retry.ANEW`). A reused connection that the
endpoint closes just as we send is no such case: from here it looks the same as an endpoint that did the work and died
before it answered. So a POST is not repeated then either; the pool keeps that rare by not reusing connections whose end
has already been announced.

Precedents: nginx's proxy_next_upstream (without `non_idempotent`), Go's net/http Transport (`shouldRetryRequest`),
HAProxy's retry-on conn-failure.
"""

from __future__ import annotations

from tcpgate.config.schema import RetryPolicy
from tcpgate.errors import GateError, Retry

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 9.2.2. Methods that we do not know are taken not to be."""


def may_retry(
    error: GateError,
    *,
    method: bytes,
    body_replayable: bool,
    reused: bool,
    response_started: bool,
    attempts_made: int,
    policy: RetryPolicy,
) -> bool:
    """True if the request may be sent again after `error`.

    `body_replayable`: all of the body that was taken from the client can be sent again (there is none, or it is kept).
    `reused`: the attempt went over a connection that had carried an exchange before.
    `response_started`: some of a response has come, be it a 1xx that was passed on.
    `attempts_made`: with the one that failed.
    """
    if response_started or not body_replayable or attempts_made >= policy.attempts:
        return False
    match error.retry:
        case Retry.IF_UNSENT | Retry.ANEW:
            return True
        case Retry.IF_REUSED:
            return reused and method in IDEMPOTENT
        case Retry.SAFE:
            return method in IDEMPOTENT
        case Retry.NEVER:
            return False
