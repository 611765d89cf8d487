"""What can go wrong: the closed list of reasons, and the one tree of exceptions that carries them.

A *reason* says in one word why an exchange or a flow ended as it did. Every access line the gateway answers itself
has one, and nothing outside this list is ever written. A *GateError* is how a reason travels: the class says whose
fault it is and whether another attempt may follow; the reason says the rest.

OSError, ssl and h11 errors become GateErrors once, at the `net/` seam, `from exc`.

Source: RFC 9110 15 (statuses), RFC 9209 2.3 (proxy error tokens), HAProxy manual 8.5 (two-letter end codes: who ended
it, and in which phase). Pure.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs


class Side(enum.StrEnum):
    """Whose doing it was."""

    CLIENT = "client"
    GATEWAY = "gateway"
    UPSTREAM = "upstream"


class Retry(enum.Enum):
    """When another attempt, at another endpoint, is safe."""

    NEVER = "never"
    IF_REUSED = "if_reused"
    """Only if the connection was a reused one and no byte of an answer came: the close raced our request."""
    IF_UNSENT = "if_unsent"
    """Nothing reached the endpoint, so any method may be tried again."""
    ANEW = "anew"
    """The endpoint has looked at nothing of it and is well (it is ending an HTTP/2 connection in good order): any
    method may be tried again, there too, over another connection."""
    SAFE = "safe"
    """The request may have been acted upon: only idempotent methods (RFC 9110 9.2.2) may be tried again."""


class Reason(enum.StrEnum):
    """The closed list. One word each; the table `REASONS` says the rest."""

    # Nothing went wrong
    OK = "ok"
    RESPOND = "respond"
    REDIRECT = "redirect"
    TUNNEL_CLOSED = "tunnel_closed"
    # The client's doing
    BAD_REQUEST = "bad_request"
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    BODY_TOO_LARGE = "body_too_large"
    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    EXPECTATION_UNKNOWN = "expectation_unknown"
    METHOD_UNSUPPORTED = "method_unsupported"
    CODING_UNSUPPORTED = "coding_unsupported"
    VERSION_UNSUPPORTED = "version_unsupported"
    CLIENT_ABORT = "client_abort"
    CLIENT_SLOW = "client_slow"
    BAD_FRAME = "bad_frame"
    PROXY_HEADER = "proxy_header"
    TLS_REFUSED = "tls_refused"
    # The gateway said no
    NO_ROUTE = "no_route"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    DENIED = "denied"
    CONNECTION_LIMIT = "connection_limit"
    ENDPOINT_LIMIT = "endpoint_limit"
    NO_ENDPOINT = "no_endpoint"
    LOOP_DETECTED = "loop_detected"
    EXCHANGE_TIMEOUT = "exchange_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    MESSAGE_TOO_LARGE = "message_too_large"
    DRAINED = "drained"
    FILE_LIMIT = "file_limit"
    BUG = "bug"
    # The upstream's doing
    DNS_FAILED = "dns_failed"
    UNREACHABLE = "unreachable"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_HANDSHAKE = "tls_handshake"
    TLS_CERTIFICATE = "tls_certificate"
    UPSTREAM_CLOSED = "upstream_closed"
    UPSTREAM_INCOMPLETE = "upstream_incomplete"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_HEAD_TOO_LARGE = "upstream_head_too_large"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    UPSTREAM_IDLE = "upstream_idle"
    UPSTREAM_WRITE_TIMEOUT = "upstream_write_timeout"
    UPGRADE_FAILED = "upgrade_failed"


@attrs.frozen
class ReasonFacts:
    """What a reason means on the wire and to a person."""

    side: Side
    status: int
    """The status that the gateway answers with, or logs when it can no longer answer (499: nginx's word for a client
    that left). 0: the reason needs no answer of ours."""
    proxy_error: str
    """RFC 9209 2.3 token for Proxy-Status; "" where none applies."""
    end: str
    """HAProxy-style pair: who ended it (C client, P proxy, S server, - nobody) and the phase (R request, C connect,
    H response head, D data, L last, - none)."""
    text: str
    """One sentence for a person, without secrets or addresses."""


def _facts(side: Side, status: int, proxy_error: str, end: str, text: str) -> ReasonFacts:
    return ReasonFacts(side, status, proxy_error, end, text)


REASONS: dict[Reason, ReasonFacts] = {
    Reason.OK: _facts(Side.UPSTREAM, 0, "", "--", "The upstream answered."),
    Reason.RESPOND: _facts(Side.GATEWAY, 0, "", "LR", "The route answers by itself."),
    Reason.REDIRECT: _facts(Side.GATEWAY, 0, "", "LR", "The route redirects."),
    Reason.TUNNEL_CLOSED: _facts(Side.CLIENT, 0, "", "--", "Both sides ended the tunnel."),
    Reason.BAD_REQUEST: _facts(
        Side.CLIENT,
        400,
        "http_request_error",
        "PR",
        "The request is not well-formed, or not meant for this connection.",
    ),
    Reason.HEAD_TIMEOUT: _facts(
        Side.CLIENT, 408, "http_request_error", "cR", "The request head did not arrive in time."
    ),
    Reason.BODY_TIMEOUT: _facts(Side.CLIENT, 408, "http_request_error", "cD", "The request body arrived too slowly."),
    Reason.BODY_TOO_LARGE: _facts(
        Side.CLIENT, 413, "http_request_error", "PR", "The request body is larger than allowed."
    ),
    Reason.TARGET_TOO_LONG: _facts(
        Side.CLIENT, 414, "http_request_error", "PR", "The request target is longer than allowed."
    ),
    Reason.HEAD_TOO_LARGE: _facts(
        Side.CLIENT, 431, "http_request_error", "PR", "The request head is larger than allowed."
    ),
    Reason.EXPECTATION_UNKNOWN: _facts(
        Side.CLIENT, 417, "http_request_error", "PR", "Only Expect: 100-continue is understood."
    ),
    Reason.METHOD_UNSUPPORTED: _facts(
        Side.CLIENT, 501, "http_request_error", "PR", "CONNECT, or a method of this length, is not served here."
    ),
    Reason.CODING_UNSUPPORTED: _facts(
        Side.CLIENT, 501, "http_request_error", "PR", "Only the chunked transfer coding is understood."
    ),
    Reason.VERSION_UNSUPPORTED: _facts(
        Side.CLIENT, 505, "http_request_error", "PR", "Only HTTP/1.1 and HTTP/1.0 are spoken here."
    ),
    Reason.CLIENT_ABORT: _facts(Side.CLIENT, 499, "", "CD", "The client left before the exchange was over."),
    Reason.CLIENT_SLOW: _facts(Side.CLIENT, 499, "", "cD", "The client read the response too slowly."),
    Reason.BAD_FRAME: _facts(Side.CLIENT, 0, "", "PD", "The client's WebSocket frames are not well-formed."),
    Reason.PROXY_HEADER: _facts(
        Side.CLIENT, 0, "", "PR", "The connection does not begin with the PROXY header that is wanted of this peer."
    ),
    Reason.TLS_REFUSED: _facts(Side.CLIENT, 0, "", "PR", "The TLS handshake with the client failed."),
    Reason.NO_ROUTE: _facts(Side.GATEWAY, 404, "http_request_denied", "PR", "No route matches this request."),
    Reason.METHOD_NOT_ALLOWED: _facts(
        Side.GATEWAY, 405, "http_request_denied", "PR", "A route matches, but not with this method."
    ),
    Reason.DENIED: _facts(Side.GATEWAY, 403, "http_request_denied", "PR", "A filter denied the request."),
    Reason.CONNECTION_LIMIT: _facts(
        Side.GATEWAY, 503, "connection_limit_reached", "PR", "The listener has no room for another connection."
    ),
    Reason.ENDPOINT_LIMIT: _facts(
        Side.GATEWAY, 503, "connection_limit_reached", "PC", "Every endpoint is at its connection limit."
    ),
    Reason.NO_ENDPOINT: _facts(
        Side.GATEWAY, 503, "destination_unavailable", "SC", "No endpoint of the upstream can take traffic."
    ),
    Reason.LOOP_DETECTED: _facts(
        Side.GATEWAY, 508, "proxy_loop_detected", "PR", "The request already came through this gateway."
    ),
    Reason.EXCHANGE_TIMEOUT: _facts(
        Side.GATEWAY, 504, "http_response_timeout", "sD", "The exchange took longer than its route allows."
    ),
    Reason.IDLE_TIMEOUT: _facts(Side.GATEWAY, 0, "", "cD", "Nothing moved for the idle time."),
    Reason.MESSAGE_TOO_LARGE: _facts(Side.GATEWAY, 0, "", "PD", "A WebSocket message is larger than allowed."),
    Reason.DRAINED: _facts(Side.GATEWAY, 503, "destination_unavailable", "PD", "The gateway is stopping or draining."),
    Reason.FILE_LIMIT: _facts(
        Side.GATEWAY, 503, "connection_limit_reached", "PC", "The gateway has no file descriptor left."
    ),
    Reason.BUG: _facts(Side.GATEWAY, 500, "proxy_internal_error", "PI", "The gateway failed; its log says more."),
    Reason.DNS_FAILED: _facts(Side.UPSTREAM, 502, "dns_error", "SC", "The endpoint's name could not be resolved."),
    Reason.UNREACHABLE: _facts(
        Side.UPSTREAM, 502, "destination_ip_unroutable", "SC", "The endpoint cannot be reached."
    ),
    Reason.CONNECT_REFUSED: _facts(
        Side.UPSTREAM, 502, "connection_refused", "SC", "The endpoint refused the connection."
    ),
    Reason.CONNECT_TIMEOUT: _facts(
        Side.UPSTREAM, 504, "connection_timeout", "sC", "The endpoint did not accept the connection in time."
    ),
    Reason.TLS_HANDSHAKE: _facts(
        Side.UPSTREAM, 502, "tls_protocol_error", "SC", "The TLS handshake with the endpoint failed."
    ),
    Reason.TLS_CERTIFICATE: _facts(
        Side.UPSTREAM, 502, "tls_certificate_error", "PC", "The endpoint's certificate does not prove who it is."
    ),
    Reason.UPSTREAM_CLOSED: _facts(
        Side.UPSTREAM, 502, "connection_terminated", "SH", "The endpoint closed the connection without an answer."
    ),
    Reason.UPSTREAM_INCOMPLETE: _facts(
        Side.UPSTREAM, 502, "http_response_incomplete", "SD", "The endpoint's answer ended too early."
    ),
    Reason.UPSTREAM_PROTOCOL: _facts(
        Side.UPSTREAM, 502, "http_protocol_error", "PH", "The endpoint's answer is not the HTTP that it was asked in."
    ),
    Reason.UPSTREAM_HEAD_TOO_LARGE: _facts(
        Side.UPSTREAM, 502, "http_response_header_section_size", "PH", "The endpoint's response head is too large."
    ),
    Reason.FIRST_BYTE_TIMEOUT: _facts(
        Side.UPSTREAM, 504, "http_response_timeout", "sH", "The endpoint did not begin to answer in time."
    ),
    Reason.UPSTREAM_IDLE: _facts(
        Side.UPSTREAM, 504, "connection_read_timeout", "sD", "The endpoint stopped in the middle of its answer."
    ),
    Reason.UPSTREAM_WRITE_TIMEOUT: _facts(
        Side.UPSTREAM, 504, "connection_write_timeout", "sD", "The endpoint stopped reading the request."
    ),
    Reason.UPGRADE_FAILED: _facts(
        Side.UPSTREAM,
        502,
        "http_upgrade_failed",
        "PH",
        "The endpoint answered the upgrade with a protocol nobody asked for.",
    ),
}


class GateError(Exception):
    """An exchange, a flow or an attempt cannot go on. `detail` is for logs and problem documents: no secrets."""

    side: ClassVar[Side] = Side.GATEWAY

    def __init__(self, reason: Reason, detail: str = "", *, retry: Retry = Retry.NEVER, status: int = 0) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
        self.retry = retry
        self._status = status

    @property
    def facts(self) -> ReasonFacts:
        """What the reason means on the wire."""
        return REASONS[self.reason]

    @property
    def status(self) -> int:
        """The status to answer with: the reason's own unless the raiser knew better."""
        return self._status or self.facts.status


class ClientError(GateError):
    """The request, or the way it was sent, is at fault."""

    side = Side.CLIENT


class UpstreamError(GateError):
    """One attempt at an endpoint failed."""

    side = Side.UPSTREAM


class Refused(GateError):
    """The gateway itself says no: no route, no endpoint, a limit, a filter, a drain."""

    side = Side.GATEWAY


class Bug(GateError):
    """A state that cannot be; the connection ends, the gateway goes on."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.BUG, detail)


@attrs.frozen(order=True)
class Problem:
    """One thing wrong with a config: where it stands, what it is, and the nearest right thing."""

    file: str
    line: int
    """1-based; 0 where the TOML gives no line (a missing file, a whole-config check)."""
    path: str
    """Dotted path, as `upstreams.api.endpoints[1].weight`; "" for the file as a whole."""
    text: str
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        what = f"warning: {self.text}" if self.warning else self.text
        return f"{place}: {self.path}: {what}" if self.path else f"{place}: {what}"


class ConfigError(Exception):
    """A config that cannot serve; every problem at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
