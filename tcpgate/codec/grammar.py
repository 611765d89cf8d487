"""THE strict head grammar: what a request or response head may be, and the one thing it then means.

Both paths of the gateway judge heads here. It is stricter than h11 and than RFC 9112's advice to be lenient, because
what we let through another recipient reads again, and may read otherwise (request smuggling). The rules beyond the
RFC's own MUSTs, each with its reason:
- CRLF only. RFC 9112 2.2 lets a recipient take a bare LF; two recipients then see two heads.
- obs-fold is refused in both directions (5.2 allows 400 and 502).
- Content-Length is one field line of at most 19 digits. 6.3 allows to merge equal ones; who merges is ambiguous.
- Transfer-Encoding is one `chunked` in one line, in 1.1, without Content-Length. A final coding that is not chunked is
  a MUST-400 (6.3); an unknown coding before a final chunked is 501 (6.1). Empty list members beside it are ignored,
  a MUST of 9110 5.6.1.2.
- A name that CGI and its heirs (WSGI, FastCGI, PHP) would read as a framing field (Content_Length) is refused.
- HTTP/1.2 to 1.9 do not exist: 505. 9110 2.5 would treat them as 1.1 (a SHOULD); only probes for disagreement send
  them.
- An https target needs a secure connection (9110 7.4, a MUST), else 421.
- A method has at most 32 bytes (9112 3: longer than any known, 501).
- Authorization and Content-Type come once: who judges the first and who obeys the last are not the same.
- websocket is offered on only with GET (RFC 6455 4.1, a MUST).
A response is ours to repair only where the RFC demands it: a space before the colon is taken away (9112 5.1, a MUST).

`head` is always the bytes from the first of the start line to the empty line, both included.

Source: RFC 9110, RFC 9112; the attack classes of Linhart (2005), Kettle (2019, 2021, 2025). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tcpgate.codec.blame import CLIENT, UPSTREAM_HEAD, Blame
from tcpgate.codec.events import (
    CHUNKED,
    NO_BODY,
    RESPONSE_LIMITS,
    UNTIL_CLOSE,
    Fields,
    Framing,
    Kind,
    Limits,
    Pair,
    RequestHead,
    ResponseHead,
    Version,
    of_length,
)
from tcpgate.codec.syntax import OWS, TOKEN, VALUE_CHAR, is_token
from tcpgate.codec.target import Authority, Target, parse_authority, parse_target
from tcpgate.errors import ClientError, Reason, UpstreamError

MAX_METHOD = 32
MAX_LENGTH = 2**63 - 1
_MAX_LENGTH_DIGITS = len(str(MAX_LENGTH))

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]++) HTTP/([0-9]\.[0-9])")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-5][0-9]{2})(?: ([" + VALUE_CHAR + rb"]*+))?")
_FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):([" + VALUE_CHAR + rb"]*+)")
_SPACED_FIELD_LINE = re.compile(rb"(" + TOKEN + rb")[ \t]*+:([" + VALUE_CHAR + rb"]*+)")
_DIGITS = re.compile(rb"[0-9]++")
_PROTOCOL = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?")
_PLAIN_NAME = re.compile(rb"[0-9A-Za-z-]++")
_NOT_ALNUM = re.compile(rb"[^0-9A-Za-z]")
FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding"})
_ONCE = (b"authorization", b"content-type")

VERSIONS: dict[bytes, Version] = {b"1.1": b"1.1", b"1.0": b"1.0"}


# -- lines and fields -----------------------------------------------------------------------------------------------


def split_head(head: bytes, blame: Blame) -> list[bytes]:
    """The lines of a head, start line first. A stray CR or LF is left inside its line, where no pattern allows it."""
    if not head.endswith(b"\r\n\r\n"):
        raise blame.malformed("head: does not end in an empty line")
    return head[:-4].split(b"\r\n")


def parse_field(line: bytes, blame: Blame) -> Pair:
    """One field line as (name as sent, trimmed value). Raises `blame`'s error, naming the rule.

    White space before the colon is removed from responses, as RFC 9112 5.1 tells a proxy; in a request it is an error.
    """
    match = (_FIELD_LINE if blame is CLIENT else _SPACED_FIELD_LINE).fullmatch(line)
    if match is None:
        raise blame.malformed(_wrong_with_field(line))
    return match[1], match[2].strip(OWS)


def _wrong_with_field(line: bytes) -> str:
    name, colon, _ = line.partition(b":")
    if line[0:1] in (b" ", b"\t"):
        return "field line: begins with white space (obs-fold)"
    if not colon:
        return "field line: no colon"
    if name[-1:] in (b" ", b"\t"):
        return "field line: white space before the colon"
    if not is_token(name):
        return "field line: the name is not a token"
    return "field line: a control byte in the value"


def cgi_name(name: bytes) -> bytes:
    """What is left of a field name where only letters and digits survive, as in CGI's HTTP_* variables."""
    return _NOT_ALNUM.sub(b"-", name).lower()


def is_disguised(name: bytes, names: frozenset[bytes]) -> bool:
    """`name` is none of `names` itself, but CGI and its heirs would take it for one."""
    return _PLAIN_NAME.fullmatch(name) is None and cgi_name(name) in names


def parse_fields(lines: Sequence[bytes], limits: Limits, blame: Blame) -> Fields:
    """The fields of a head. Raises `blame`'s error."""
    if len(lines) > limits.headers:
        raise blame.too_large(f"head: more than {limits.headers} fields")
    return Fields([parse_field(line, blame) for line in lines])


# -- framing --------------------------------------------------------------------------------------------------------


def _content_length(fields: Fields, blame: Blame) -> int | None:
    values = fields.all(b"content-length")
    if not values:
        return None
    if len(values) > 1:
        raise blame.malformed("Content-Length: more than one")
    value = values[0]
    # The length of the digits is bounded before int(), which also would take "+5", "5_0" and 4300 digits its own way.
    if not _DIGITS.fullmatch(value):
        raise blame.malformed("Content-Length: not a single decimal number")
    if len(value) > _MAX_LENGTH_DIGITS or int(value) > MAX_LENGTH:
        raise blame.malformed("Content-Length: above 2^63-1")
    return int(value)


def _is_chunked(fields: Fields, version: Version, blame: Blame) -> bool:
    """The message says Transfer-Encoding: chunked. Raises for any other Transfer-Encoding and any doubt."""
    values = fields.all(b"transfer-encoding")
    if not values:
        return False
    if version != b"1.1":
        raise blame.malformed("Transfer-Encoding: in an HTTP/1.0 message")
    if b"content-length" in fields:
        raise blame.malformed("Transfer-Encoding: together with Content-Length")
    codings = fields.tokens(b"transfer-encoding")
    if len(values) == 1 and codings == [b"chunked"]:
        return True
    *before, final = codings or [b""]
    if blame is CLIENT and before and final == b"chunked" and all(map(_is_other_coding, before)):
        raise ClientError(Reason.CODING_UNSUPPORTED, "Transfer-Encoding: a coding other than chunked")
    raise blame.malformed("Transfer-Encoding: not exactly chunked")


def _is_other_coding(coding: bytes) -> bool:
    name = coding.partition(b";")[0].rstrip(OWS)
    return name != b"chunked" and is_token(name) is not None


def _request_framing(fields: Fields, version: Version) -> Framing:
    if _is_chunked(fields, version, CLIENT):
        return CHUNKED
    length = _content_length(fields, CLIENT)
    return NO_BODY if length is None else of_length(length)


def _response_framing(status: int, method: bytes, fields: Fields, version: Version) -> Framing:
    """RFC 9112 6.3 from the client's side. Wrong framing fields are wrong even where no body follows."""
    chunked = _is_chunked(fields, version, UPSTREAM_HEAD)
    length = _content_length(fields, UPSTREAM_HEAD)
    if status < 200 or status == 204:
        return NO_BODY
    if status == 304 or method == b"HEAD":
        return Framing(Kind.NONE, length)
    if chunked:
        return CHUNKED
    return UNTIL_CLOSE if length is None else of_length(length)


# -- requests -------------------------------------------------------------------------------------------------------


def parse_request(head: bytes, limits: Limits, *, secure: bool = False) -> RequestHead:
    """The one meaning of a request head, or a ClientError that says which rule it breaks.

    `secure`: the connection is TLS, or comes from a proxy that is trusted to have taken TLS off.
    """
    if len(head) > limits.head:
        raise CLIENT.too_large(f"head: more than {limits.head} bytes")
    first, *lines = split_head(head, CLIENT)
    method, text, version = _request_line(first, limits)
    fields = parse_fields(lines, limits, CLIENT)
    _check_names(fields)
    target = parse_target(method, text)
    authority = _authority(target, fields, version, secure=secure)
    framing = _request_framing(fields, version)
    if method == b"TRACE" and framing.kind is not Kind.NONE and framing.length != 0:
        raise CLIENT.malformed("TRACE: with content")
    options = _connection_options(fields)
    return RequestHead(
        method=method,
        target=text,
        form=target.form,
        path=target.path,
        query=target.query,
        scheme=target.scheme,
        host=authority.host,
        authority=authority.text,
        version=version,
        fields=fields,
        framing=framing,
        keep_alive=version == b"1.1" and b"close" not in options,
        expect_continue=_expects_continue(fields, version) and framing.kind is not Kind.NONE and framing.length != 0,
        upgrade=_upgrade(method, fields) if version == b"1.1" and b"upgrade" in options else None,
        max_forwards=_max_forwards(method, fields),
        size=len(head),
    )


def _request_line(line: bytes, limits: Limits) -> tuple[bytes, bytes, Version]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise CLIENT.malformed(_wrong_with_request_line(line))
    method, target, version = match.groups()
    if len(method) > MAX_METHOD:
        raise ClientError(Reason.METHOD_UNSUPPORTED, f"method: longer than {MAX_METHOD} bytes")
    if len(target) > limits.target:
        raise ClientError(Reason.TARGET_TOO_LONG, f"request-target: more than {limits.target} bytes")
    if version not in VERSIONS:
        raise ClientError(Reason.VERSION_UNSUPPORTED, "version: neither HTTP/1.1 nor HTTP/1.0")
    if method == b"CONNECT":
        raise ClientError(Reason.METHOD_UNSUPPORTED, "method: CONNECT")
    return method, target, VERSIONS[version]


def _wrong_with_request_line(line: bytes) -> str:
    parts = line.split(b" ")
    if len(parts) != 3 or b"" in parts:
        return "request line: not three words with single spaces between"
    if not is_token(parts[0]):
        return "method: not a token"
    if not parts[1].isascii() or min(parts[1]) <= 0x20 or max(parts[1]) == 0x7F:
        return "request-target: a byte that is not visible ASCII"
    return "version: not HTTP/ digit . digit"


def _check_names(fields: Fields) -> None:
    for name, _ in fields:
        if is_disguised(name, FRAMING_NAMES):
            raise CLIENT.malformed("field line: a name that some read as a framing field")
    for name in _ONCE:
        if len(fields.all(name)) > 1:
            raise CLIENT.malformed(f"{name.decode('ascii').title()}: more than one")


def _authority(target: Target, fields: Fields, version: Version, *, secure: bool) -> Authority:
    """The one authority that the request is for: the target's, else Host's. Raises ClientError."""
    hosts = fields.all(b"host")
    if len(hosts) > 1:
        raise CLIENT.malformed("Host: more than one")
    if not hosts and version == b"1.1":
        raise CLIENT.malformed("Host: missing")
    # An empty Host is refused: an http or https URI never has an empty host (RFC 9110 4.2.1), and which default
    # it should stand for, each recipient decides for itself.
    named = parse_authority(hosts[0]) if hosts else None
    if target.scheme is None or target.authority is None:
        return named or Authority(b"", b"", None)
    if target.scheme == b"https" and not secure:
        raise ClientError(Reason.BAD_REQUEST, "request-target: https over a connection that is not", status=421)
    return target.authority  # RFC 9112 3.2.2: Host, valid or refused above, MUST then be ignored


def _connection_options(fields: Fields) -> list[bytes]:
    options = fields.tokens(b"connection")
    if not all(map(is_token, options)):
        raise CLIENT.malformed("Connection: a member that is not a token")
    return options


def _expects_continue(fields: Fields, version: Version) -> bool:
    if version == b"1.0":
        return False  # RFC 9110 10.1.1: a server MUST ignore the expectation of an HTTP/1.0 request.
    expectations = fields.tokens(b"expect")
    if any(expectation != b"100-continue" for expectation in expectations):
        raise ClientError(Reason.EXPECTATION_UNKNOWN, "Expect: something other than 100-continue")
    return bool(expectations)


def _upgrade(method: bytes, fields: Fields) -> bytes | None:
    """The first protocol offered that is not HTTP itself; ignoring an offer is always right (RFC 9110 7.8).

    A tunnel that speaks HTTP (h2c, HTTP/2.0, TLS with HTTP in it) would carry requests past every route and filter.
    """
    for protocol in fields.tokens(b"upgrade"):
        name = protocol.partition(b"/")[0]
        allowed = name not in _HTTP_PROTOCOLS and (name != b"websocket" or method == b"GET")
        if allowed and _PROTOCOL.fullmatch(protocol):
            return protocol
    return None


_HTTP_PROTOCOLS = frozenset({b"http", b"h2c", b"h2", b"h3", b"tls", b"spdy", b"shttp"})


def _max_forwards(method: bytes, fields: Fields) -> int | None:
    if method not in (b"OPTIONS", b"TRACE"):
        return None
    values = fields.all(b"max-forwards")
    if not values:
        return None
    if len(values) > 1 or not _DIGITS.fullmatch(values[0]) or len(values[0]) > _MAX_LENGTH_DIGITS:
        raise CLIENT.malformed("Max-Forwards: not a single decimal number")
    return int(values[0])


# -- responses ------------------------------------------------------------------------------------------------------


def parse_response(
    head: bytes, method: bytes, limits: Limits = RESPONSE_LIMITS, *, upgrade: bytes | None = None
) -> ResponseHead:
    """The one meaning of a response head to a request of `method`, or an UpstreamError that says which rule it breaks.

    `upgrade`: the protocol that the request offered; a 101 must name it.
    """
    if len(head) > limits.head:
        raise UPSTREAM_HEAD.too_large(f"head: more than {limits.head} bytes")
    first, *lines = split_head(head, UPSTREAM_HEAD)
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise UPSTREAM_HEAD.malformed("status line: not HTTP/1.x, a status from 100 to 599 and a phrase")
    version, status = VERSIONS[match[1]], int(match[2])
    fields = parse_fields(lines, limits, UPSTREAM_HEAD)
    framing = _response_framing(status, method, fields, version)
    options = fields.tokens(b"connection")
    return ResponseHead(
        status=status,
        reason=(match[3] or b"").strip(OWS),
        version=version,
        fields=fields,
        framing=framing,
        keep_alive=version == b"1.1" and framing.kind is not Kind.CLOSE and b"close" not in options,
        upgrade=_switched_to(fields, version, upgrade) if status == 101 else None,
        size=len(head),
    )


def _switched_to(fields: Fields, version: Version, offered: bytes | None) -> bytes:
    if offered is None or version != b"1.1" or fields.tokens(b"upgrade") != [offered]:
        raise UpstreamError(Reason.UPGRADE_FAILED, "101: to a protocol that was not offered")
    return offered
