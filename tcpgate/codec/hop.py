"""What of a message goes on to the next hop: hop-by-hop fields off, framing and connection fields rebuilt.

Decisions, field by field:
- What Connection names is removed (RFC 9110 7.6.1, a MUST). A client that names Host, Content-Length,
  Transfer-Encoding, X-Forwarded-For, Forwarded or Via gains nothing: those are never forwarded but always written anew.
  Only the client's own fields can be named away, so whoever adds fields (filters, the gateway) adds them to the result.
- Not named away are those of which another MUST says that we leave them alone: Authorization (11.6.2),
  WWW-Authenticate (11.6.1), Authentication-Info (11.6.3), Allow (10.2.1), Cache-Control (RFC 9111 5.2).
- `TE: trailers` is the only TE that means anything to us; it goes on, with its connection option (10.1.4).
- Upgrade goes on only as the one protocol that `parse_request` chose, and from a 101 or 426 response (7.8, 15.5.22).
- Expect goes on while the client waits (10.1.1), and is dropped where it must be ignored (HTTP/1.0, no content).
- Trailer goes on only with a chunked body; Max-Forwards of OPTIONS and TRACE is counted down (7.6.2).
- Proxy-Authorization, Proxy-Authenticate: between a client and a forward proxy, which we are not; dropped, but for the
  Proxy-Authenticate of a 407, which must have one (15.5.8).
- HTTP2-Settings belongs to the h2c upgrade that is never offered; `Proxy` becomes HTTP_PROXY in CGI (httpoxy). Dropped.
- A response without Date gets one (6.6.1, a MUST for a recipient with a clock that forwards).

Source: RFC 9110 7.6, 7.8, 10.1; RFC 9112 9.6; Davison "Abusing HTTP hop-by-hop request headers" (2019). Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tcpgate.codec.events import NO_FIELDS, Fields, Kind, Pair, RequestHead, ResponseHead
from tcpgate.codec.forwarded import believes_proxy

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"upgrade",
        b"http2-settings",
        b"transfer-encoding",
        b"content-length",
    }
)
NOT_UPSTREAM = _HOP_BY_HOP | {b"host", b"expect", b"proxy-authorization", b"proxy-authenticate", b"proxy"}
"""Names (lower-case) that no request takes along; `forwarded.believes_proxy` knows more of them."""
NOT_DOWNSTREAM = _HOP_BY_HOP | {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"}
"""Names (lower-case) that no response takes along, but for what 407 and 426 need."""
_NOT_NAMED_AWAY = frozenset({b"authorization", b"www-authenticate", b"authentication-info", b"allow", b"cache-control"})
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def upstream_fields(
    head: RequestHead, forwarding: Fields = NO_FIELDS, *, trusted: bool = False, fallback_host: bytes = b""
) -> Fields:
    """The fields that go upstream, Host first, framing fields left to the codec.

    `forwarding`: from `forwarding_fields`. `trusted`: the peer may speak for others. `fallback_host`: for a 1.0 request
    that names no host.
    """
    dropped = NOT_UPSTREAM | _named_away(head.fields)
    if head.framing.kind is not Kind.CHUNKED:
        dropped |= {b"trailer"}
    if head.max_forwards is not None:
        dropped |= {b"max-forwards"}
    pairs: list[Pair] = [(b"Host", head.authority or fallback_host)]
    pairs += [
        pair for pair in head.fields if pair[0].lower() not in dropped and not believes_proxy(pair[0], trusted=trusted)
    ]
    return Fields([*pairs, *forwarding, *_rebuilt(head)])


def _named_away(fields: Fields) -> frozenset[bytes]:
    return frozenset(fields.tokens(b"connection")) - _NOT_NAMED_AWAY


def _rebuilt(head: RequestHead) -> list[Pair]:
    """Fields of this hop: what the client's fields of the last hop come to."""
    pairs: list[Pair] = []
    options: list[bytes] = []
    if b"trailers" in head.fields.tokens(b"te"):
        pairs.append((b"TE", b"trailers"))
        options.append(b"TE")
    if head.upgrade is not None:
        pairs.append((b"Upgrade", head.upgrade))
        options.append(b"upgrade")
    if options:
        pairs.append((b"Connection", b", ".join(options)))
    if head.expect_continue:
        pairs.append((b"Expect", b"100-continue"))
    if head.max_forwards is not None:
        pairs.append((b"Max-Forwards", b"%d" % max(0, head.max_forwards - 1)))
    return pairs


def downstream_fields(head: ResponseHead, *, date: bytes, via: bytes = b"") -> Fields:
    """The fields that go to the client, framing fields left to the codec. `via`: our pseudonym, b"" to stay unnamed."""
    dropped = NOT_DOWNSTREAM | _named_away(head.fields)
    if head.framing.kind is not Kind.CHUNKED:
        dropped |= {b"trailer"}
    if head.status == 407:
        dropped -= {b"proxy-authenticate"}
    fields = head.fields.without(dropped)
    pairs: list[Pair] = []
    if head.status >= 200 and (b"date" not in head.fields or b"date" in dropped):
        pairs.append((b"Date", date))
    if via:
        pairs.append((b"Via", b"%b %b" % (head.version, via)))
    offer = head.upgrade or (b", ".join(head.fields.members(b"upgrade")) if head.status == 426 else b"")
    if offer:
        pairs += [(b"Upgrade", offer), (b"Connection", b"upgrade")]
    return fields.plus(pairs)


def http_date(now: float) -> bytes:
    """`now` (seconds since the epoch) as an IMF-fixdate (RFC 9110 5.6.7), in English whatever the locale."""
    at = datetime.fromtimestamp(now, UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year:04} {at:%H:%M:%S} GMT".encode("ascii")
