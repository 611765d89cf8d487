"""A parser of HTTP/1.1 that forgives nothing: the judge of what the gateway sends, in both directions.

It shares no line with the gateway's own codec, and knows one reading of every byte: what two recipients could read in
two ways is `Ambiguous`. `request` and `response` judge the message; `request_manners` and `response_manners` judge what
RFC 9110 7.6 asks of a gateway beyond that (hop-by-hop fields, Via, Date).

Source: RFC 9110, RFC 9112, RFC 3986. Pure.
"""

from __future__ import annotations

import re

import attrs


class Ambiguous(Exception):
    """What was sent breaks the grammar, or has more than one meaning."""


Pair = tuple[bytes, bytes]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"/(?:[0-9A-Za-z._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*(?:\?[!-\"$-~]*)?")
_HOST = re.compile(rb"(?:[0-9A-Za-z._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,18}")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_IN_DISGUISE = re.compile(rb"content[^0-9A-Za-z]length|transfer[^0-9A-Za-z]encoding", re.IGNORECASE)
_ONE_HOP = (b"keep-alive", b"proxy-connection", b"http2-settings")
_NEVER_TRAILERS = (
    b"content-length", b"transfer-encoding", b"host", b"connection", b"te", b"upgrade", b"authorization", b"cookie",
    b"content-type", b"content-encoding", b"content-range", b"trailer", b"max-forwards", b"expect", b"set-cookie",
)  # fmt: skip


@attrs.frozen
class Message:
    """One message, whole."""

    start: bytes
    fields: list[Pair]
    body: bytes = b""
    trailers: list[Pair] = attrs.field(factory=list)
    until_close: bool = False
    """A response whose end only the end of the connection tells."""

    def all(self, name: str) -> list[bytes]:
        """Every value of a field, in order."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    def members(self, name: str) -> list[bytes]:
        """Members of a comma list, lower-case."""
        joined = b",".join(self.all(name))
        return [member.strip(b" \t").lower() for member in joined.split(b",") if member.strip(b" \t")]

    @property
    def status(self) -> int:
        """A response's."""
        return int(self.start[9:12])


def request(raw: bytes) -> tuple[Message, int] | None:
    """The first request in `raw` and where it ends; None if it is not all there."""
    cut = _head(raw)
    if cut is None:
        return None
    start, fields, at = cut
    _judge_request_head(start, fields)
    message = Message(start, fields)
    coded, lengths = _framing(message)
    body = _chunked(raw, at) if coded else _counted(raw, at, int(lengths[0]) if lengths else 0)
    if body is None:
        return None
    content, trailers, end = body
    return attrs.evolve(message, body=content, trailers=trailers), end


def request_head(raw: bytes) -> Message | None:
    """The head alone, once it is there."""
    cut = _head(raw)
    return None if cut is None else Message(cut[0], cut[1])


def response(raw: bytes, method: bytes, *, ended: bool = False) -> tuple[Message, int] | None:
    """The first response in `raw`, to a request of `method`; `ended`: no more will come, and the end was clean."""
    cut = _head(raw)
    if cut is None:
        return None
    start, fields, at = cut
    if not _STATUS.fullmatch(start):
        raise Ambiguous(f"status line {start!r}")
    message = Message(start, fields)
    coded, lengths = _framing(message)
    status = message.status
    if (status < 200 or status == 204) and (coded or lengths):
        raise Ambiguous(f"a framing field in a {status}")
    if status < 200 or status in (204, 304) or method == b"HEAD":
        return message, at
    if coded or lengths:
        body = _chunked(raw, at) if coded else _counted(raw, at, int(lengths[0]))
        return body and (attrs.evolve(message, body=body[0], trailers=body[1]), body[2])
    if not ended:
        return None
    return attrs.evolve(message, body=raw[at:], until_close=True), len(raw)


# -- parts ----------------------------------------------------------------------------------------------------------


def _head(raw: bytes) -> tuple[bytes, list[Pair], int] | None:
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        return None
    start, *lines = raw[:end].split(b"\r\n")
    return start, [_field(line) for line in lines], end + 4


def _field(line: bytes) -> Pair:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Ambiguous(f"field line {line!r}")
    return name, value.strip(b" \t")


def _judge_request_head(start: bytes, fields: list[Pair]) -> None:
    words = start.split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or words[2] != b"HTTP/1.1":
        raise Ambiguous(f"request line {start!r}")
    if not _TARGET.fullmatch(words[1]) and (words[0], words[1]) != (b"OPTIONS", b"*"):
        raise Ambiguous(f"target {words[1]!r}")
    for name, _ in fields:
        if _IN_DISGUISE.fullmatch(name) and name.lower() not in (b"content-length", b"transfer-encoding"):
            raise Ambiguous(f"a framing field to CGI and its heirs: {name!r}")
    hosts = [value for name, value in fields if name.lower() == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise Ambiguous(f"Host {hosts}")


def _framing(message: Message) -> tuple[bool, list[bytes]]:
    """Whether the body is chunked, and its Content-Length; never both, never with a doubt."""
    codings, lengths = message.all("transfer-encoding"), message.all("content-length")
    if codings and lengths:
        raise Ambiguous("Transfer-Encoding and Content-Length")
    if codings and codings != [b"chunked"]:
        raise Ambiguous(f"Transfer-Encoding {codings}")
    if len(lengths) > 1 or not all(map(_NUMBER.fullmatch, lengths)):
        raise Ambiguous(f"Content-Length {lengths}")
    return bool(codings), lengths


def _counted(raw: bytes, at: int, length: int) -> tuple[bytes, list[Pair], int] | None:
    return (raw[at : at + length], [], at + length) if len(raw) >= at + length else None


def _chunked(raw: bytes, at: int) -> tuple[bytes, list[Pair], int] | None:
    content: list[bytes] = []
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return None
        if not _SIZE.fullmatch(raw[at:end]):
            raise Ambiguous(f"chunk size {raw[at:end]!r}")
        size, at = int(raw[at:end], 16), end + 2
        if size == 0:
            return _trailers(raw, at, b"".join(content))
        if len(raw) < at + size + 2:
            return None
        content.append(raw[at : at + size])
        at += size + 2
        if raw[at - 2 : at] != b"\r\n":
            raise Ambiguous("chunk data longer than its size")


def _trailers(raw: bytes, at: int, content: bytes) -> tuple[bytes, list[Pair], int] | None:
    trailers: list[Pair] = []
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return None
        line, at = raw[at:end], end + 2
        if not line:
            return content, trailers, at
        trailers.append(_field(line))
        if trailers[-1][0].lower() in _NEVER_TRAILERS:
            raise Ambiguous(f"trailer {trailers[-1][0]!r}")


# -- manners --------------------------------------------------------------------------------------------------------


def request_manners(message: Message, name: str) -> list[str]:
    """What RFC 9110 7.6 asks of a forwarded request, and this one lacks; `name`: the gateway's pseudonym in Via."""
    options = message.members("connection")
    wrong = [f"{field!r} is for one hop" for field, _ in message.fields if field.lower() in _ONE_HOP]
    wrong += [f"Connection: {option!r}" for option in options if option not in (b"close", b"te", b"upgrade")]
    if message.all("te") and (message.all("te") != [b"trailers"] or b"te" not in options):
        wrong.append(f"TE {message.all('te')}, Connection {options}")
    if bool(message.all("upgrade")) != (b"upgrade" in options):
        wrong.append(f"Upgrade {message.all('upgrade')}, Connection {options}")
    if not message.members("via") or not message.members("via")[-1].endswith(b" " + name.encode()):
        wrong.append(f"Via {message.all('via')}")
    return wrong


def response_manners(message: Message, version: bytes) -> list[str]:
    """What RFC 9110 6.6.1, 7.6 and RFC 9112 6.1 ask of a response to a request of `version`, and this one lacks."""
    options = message.members("connection")
    wrong = [f"{field!r} is for one hop" for field, _ in message.fields if field.lower() in _ONE_HOP]
    wrong += [f"Connection: {option!r}" for option in options if option not in (b"close", b"upgrade", b"keep-alive")]
    if message.status >= 200 and len(message.all("date")) != 1:
        wrong.append(f"Date {message.all('date')}")
    if version == b"HTTP/1.0" and (message.status < 200 or message.all("transfer-encoding")):
        wrong.append("a 1xx or a transfer coding to an HTTP/1.0 client")
    if message.all("upgrade") and b"upgrade" not in options:
        wrong.append("Upgrade without its connection option")
    return wrong
