"""Whose fault a malformed message is, so that one set of rules can judge both sides of the gateway.

The grammar, the chunk scanner and the inbox are the same for requests and responses. What differs is the error: a bad
request is a `ClientError` (400, 431), a bad response an `UpstreamError` (502). Source: RFC 9112 6.3. Pure.
"""

from __future__ import annotations

import attrs

from tcpgate.errors import ClientError, GateError, Reason, Retry, UpstreamError


@attrs.frozen(kw_only=True)
class Blame:
    """How a broken rule becomes an error. Details name the rule, never the peer's bytes: they end up in answers."""

    error: type[ClientError | UpstreamError]
    bad: Reason
    large: Reason
    gone: Reason
    retry: Retry = Retry.NEVER

    def malformed(self, rule: str) -> GateError:
        """The message breaks `rule`."""
        return self.error(self.bad, rule, retry=self.retry)

    def too_large(self, rule: str) -> GateError:
        """The message is larger than a limit; `rule` names the limit."""
        return self.error(self.large, rule, retry=self.retry)

    def cut_short(self, where: str) -> GateError:
        """The peer closed in the middle of a message."""
        return self.error(self.gone, where, retry=self.retry)


CLIENT = Blame(error=ClientError, bad=Reason.BAD_REQUEST, large=Reason.HEAD_TOO_LARGE, gone=Reason.CLIENT_ABORT)
# Nothing of a response has reached the client while its head is read, so an idempotent request may go elsewhere.
UPSTREAM_HEAD = Blame(
    error=UpstreamError,
    bad=Reason.UPSTREAM_PROTOCOL,
    large=Reason.UPSTREAM_HEAD_TOO_LARGE,
    gone=Reason.UPSTREAM_CLOSED,
    retry=Retry.SAFE,
)
UPSTREAM_BODY = attrs.evolve(UPSTREAM_HEAD, gone=Reason.UPSTREAM_INCOMPLETE, retry=Retry.NEVER)
