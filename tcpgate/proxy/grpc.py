"""What is different about an exchange that is a gRPC call: its deadline, how its failures are told, what is written.

A call ends with a status in trailers, and its HTTP status is 200 whatever came of it. So the gateway's own errors are
*trailers-only* answers (one head, which is also the end), and where the head of an answer has gone out already, the
failure goes into trailers. The access record keeps what was sent (200), and tells the code in its detail.

Source: as `codec/grpc.py`. Owner: the exchange. Synchronous.
"""

from __future__ import annotations

import math

import attrs

from tcpgate.codec import grpc
from tcpgate.codec.events import Fields, RequestHead
from tcpgate.codec.reply import Answer
from tcpgate.errors import GateError, Reason, Side


@attrs.define(eq=False)
class Call:
    """One call, and how it went."""

    timeout: float
    """Seconds that the caller waits; infinity if it did not say."""
    code: int | None = None
    """The status that the caller was told, by the endpoint or by us."""

    def heard(self, fields: Fields) -> None:
        """The endpoint said this with the head of its answer, or at the end."""
        code = grpc.status_in(fields)
        if code is not None:
            self.code = code

    def failure(self, exc: GateError, made: Answer, request_id: str) -> Answer:
        """The trailers-only answer that tells what `made` would tell another client."""
        fields = [(b"Content-Type", grpc.CONTENT_TYPE), *self.ending(exc, request_id)]
        fields += [pair for pair in made.fields if pair[0] == b"Proxy-Status"]
        return Answer(status=200, fields=Fields(fields))

    def ending(self, exc: GateError, request_id: str) -> Fields:
        """The trailers that tell a failure."""
        expired = exc.reason is Reason.EXCHANGE_TIMEOUT
        self.code = grpc.DEADLINE_EXCEEDED if expired else grpc.code_of(exc.status)
        detail = f" ({exc.detail})" if exc.detail and exc.facts.side is Side.CLIENT else ""
        return Fields(
            grpc.status_fields(self.code, f"{exc.facts.text}{detail} reason={exc.reason} request={request_id}")
        )

    def told(self, detail: str) -> str:
        """`detail` of the record, with the code."""
        if not self.code:
            return detail
        return f"grpc-status {self.code}: {detail}" if detail else f"grpc-status {self.code}"


def call_of(head: RequestHead) -> Call | None:
    """The call that a request is; None if it is none."""
    if not grpc.is_grpc(head):
        return None
    timeout = grpc.timeout_of(head.fields)
    return Call(math.inf if timeout is None else timeout)
