"""The gateway's own answers: a problem document for programs, a short page for people, and Proxy-Status for both.

An answer is a pure function of the reason, the detail, the request id and the client's Accept. The codec leaves the
body out of a response to HEAD, so an answer is the same for every method.

Source: RFC 9457 (problem details), RFC 9209 (Proxy-Status), RFC 8941 3.3 (strings and tokens), RFC 9110 12.5.1
(Accept), 7.6.2 (Max-Forwards). Pure.
"""

from __future__ import annotations

import html
import json
import re

import attrs

from tcpgate.codec.events import NO_FIELDS, Fields, Framing, Pair, RequestHead, of_length
from tcpgate.codec.machine import phrase
from tcpgate.codec.syntax import split_list, split_parameters
from tcpgate.errors import REASONS, Reason

_PROBLEM = b"application/problem+json"
_HTML = b"text/html; charset=utf-8"
_QUALITY = re.compile(rb"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")
_TO_ESCAPE = re.compile(r'["\\]')
_ALLOW = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


@attrs.frozen(kw_only=True)
class Answer:
    """A whole response of the gateway's own. `Connection: close` is the codec's and the driver's to add."""

    status: int
    fields: Fields
    body: bytes = b""

    @property
    def framing(self) -> Framing:
        """The framing to send it with."""
        return of_length(len(self.body))


def answer(
    reason: Reason,
    *,
    status: int = 0,
    detail: str = "",
    request_id: str = "",
    accept: bytes | None = None,
    name: str = "tcpgate",
    extra: Fields = NO_FIELDS,
) -> Answer:
    """The answer that tells `reason`. `status` 0: the reason's own. `extra`: more fields, as Retry-After or Allow."""
    facts = REASONS[reason]
    status = status or facts.status
    title = phrase(status).decode("ascii") or facts.text
    told: dict[str, object] = {
        "type": f"urn:tcpgate:reason:{reason}",
        "title": title,
        "status": status,
        "detail": f"{facts.text} ({detail})" if detail else facts.text,
        "reason": str(reason),
        "request_id": request_id,
    }
    if prefers_html(accept):
        kind, body = _HTML, _page(status, told)
    else:
        kind, body = _PROBLEM, json.dumps(told).encode("ascii") + b"\n"
    pairs: list[Pair] = [(b"Content-Type", kind), (b"Cache-Control", b"no-store")]
    if facts.proxy_error:
        pairs.append((b"Proxy-Status", proxy_status(name, error=facts.proxy_error, details=detail)))
    return Answer(status=status, fields=Fields(pairs).plus(extra), body=body)


def _page(status: int, told: dict[str, object]) -> bytes:
    shown = {key: html.escape(str(value)) for key, value in told.items()}
    request = f"<p>Request {shown['request_id']}</p>" if shown["request_id"] else ""
    heading = f"{status} {shown['title']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        f"<h1>{heading}</h1><p>{shown['detail']}</p><p>Reason {shown['reason']}</p>{request}</html>\n"
    ).encode()


def final_recipient(head: RequestHead) -> Answer:
    """Our answer to OPTIONS or TRACE whose Max-Forwards is 0: it was meant for us (RFC 9110 7.6.2).

    TRACE is refused: it would echo credentials to whoever can make a client send one.
    """
    return Answer(status=204 if head.method == b"OPTIONS" else 405, fields=Fields([(b"Allow", _ALLOW)]))


def proxy_status(name: str, *, error: str = "", details: str = "", received: int | None = None) -> bytes:
    """One member of Proxy-Status. `name`, `error`: tokens. `received`: the status that the upstream answered with."""
    parts = [name]
    if error:
        parts.append(f"error={error}")
    if received is not None:
        parts.append(f"received-status={received}")
    if details:
        parts.append(f"details={sf_string(details)}")
    return "; ".join(parts).encode("ascii")


def sf_string(text: str) -> str:
    """`text` as a structured-field string: printable ASCII (all else becomes "?"), quotes and backslashes escaped."""
    return '"' + _TO_ESCAPE.sub(r"\\\g<0>", _NOT_PRINTABLE.sub("?", text)) + '"'


def prefers_html(accept: bytes | None) -> bool:
    """The client would rather read a page than JSON: it names text/html, and nothing of JSON's with a higher weight."""
    if accept is None:
        return False
    weights = {b"text/html": 0.0, b"application/json": 0.0, _PROBLEM: 0.0}
    for member in split_list(accept):
        kind, *parameters = split_parameters(member) or [b""]
        if kind.lower() in weights:
            weights[kind.lower()] = _quality(parameters)
    page = weights.pop(b"text/html")
    return page > 0 and page >= max(weights.values())


def _quality(parameters: list[bytes]) -> float:
    """The weight among a media range's parameters; 1 without one, 0 for one that is none."""
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.lower() == b"q":
            return float(value) if _QUALITY.fullmatch(value) else 0.0
    return 1.0
