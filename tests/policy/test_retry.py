"""When a request may be sent again: the whole table."""

from __future__ import annotations

from itertools import product

import pytest

from tcpgate.config.schema import RetryPolicy
from tcpgate.errors import ClientError, GateError, Reason, Refused, Retry, UpstreamError
from tcpgate.policy.retry import may_retry

IDEMPOTENT_METHODS = [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"]
OTHER_METHODS = [b"POST", b"PATCH", b"LOCK", b"CONNECT", b"get", b"QUERY", b""]


def retried(
    retry: Retry,
    method: bytes = b"GET",
    *,
    body_replayable: bool = True,
    reused: bool = False,
    response_started: bool = False,
    attempts_made: int = 1,
    attempts: int = 3,
) -> bool:
    return may_retry(
        UpstreamError(Reason.UPSTREAM_CLOSED, retry=retry),
        method=method,
        body_replayable=body_replayable,
        reused=reused,
        response_started=response_started,
        attempts_made=attempts_made,
        policy=RetryPolicy(attempts=attempts),
    )


@pytest.mark.parametrize(
    ("retry", "reused", "idempotent", "other"),
    [
        # what failed          reused  GET..DELETE  POST..
        (Retry.NEVER, False, False, False),
        (Retry.NEVER, True, False, False),
        (Retry.IF_UNSENT, False, True, True),
        (Retry.IF_UNSENT, True, True, True),
        (Retry.SAFE, False, True, False),
        (Retry.SAFE, True, True, False),
        (Retry.IF_REUSED, False, False, False),
        (Retry.IF_REUSED, True, True, False),
    ],
)
def test_what_failed_and_the_method_decide(retry: Retry, reused: bool, idempotent: bool, other: bool) -> None:
    for method in IDEMPOTENT_METHODS:
        assert retried(retry, method, reused=reused) is idempotent, method
    for method in OTHER_METHODS:
        assert retried(retry, method, reused=reused) is other, method


@pytest.mark.parametrize(
    "hindrance", [{"body_replayable": False}, {"response_started": True}, {"attempts_made": 3}, {"attempts_made": 4}]
)
def test_nothing_is_sent_again_once_it_cannot_be_whole_or_has_been_answered_or_is_enough(
    hindrance: dict[str, int],
) -> None:
    for retry, method, reused in product(Retry, [b"GET", b"POST"], [False, True]):
        assert not retried(retry, method, reused=reused, **hindrance)  # type: ignore[arg-type]


def test_attempts_count_the_first_one() -> None:
    assert [retried(Retry.SAFE, attempts_made=made, attempts=3) for made in (1, 2, 3)] == [True, True, False]
    assert not retried(Retry.IF_UNSENT, attempts=1)


@pytest.mark.parametrize("error", [ClientError(Reason.CLIENT_ABORT), Refused(Reason.DRAINED), GateError(Reason.BUG)])
def test_what_is_not_the_endpoint_s_doing_is_not_tried_again(error: GateError) -> None:
    assert not may_retry(
        error,
        method=b"GET",
        body_replayable=True,
        reused=True,
        response_started=False,
        attempts_made=1,
        policy=RetryPolicy(),
    )
