"""A fast reader of plain heads: the same verdict as the grammar and the hop's rules, or none at all.

Theory of operation. Nearly every line of a head has been seen before. So a head is cut into its lines, and each is
looked up: a memo has what it comes to on the other side (`codec/lines.py`), and joined, the findings are the fields
that go on. Heads that come again as a whole are remembered as a whole.
- Whatever is rare, doubtful or wrong is declined: `read` says None, and the readable path takes the head, refuses
  it, or takes more trouble over it. Nothing here answers a client, and nothing here repairs.
- Whatever is taken means exactly what `grammar.parse_request` and `parse_response` find, and its fields are exactly
  those that `hop.upstream_fields` and `hop.downstream_fields` let through. Tests hold that, with h11 as the oracle.

Plain classes with slots, not attrs: a frozen attrs class takes three times as long to make, and a head gets one.

Source: RFC 9112 through `codec/grammar.py`. Pure.
"""

from __future__ import annotations

import re
from typing import Any

from tcpgate.codec.events import RESPONSE_LIMITS, Limits, RequestHead
from tcpgate.codec.forms import MAX_BLANKS, Forms, RequestFields
from tcpgate.codec.grammar import parse_request
from tcpgate.codec.lines import (
    CHUNKED,
    CLOSE,
    DATE,
    HOST,
    LENGTH,
    ONCE,
    VOUCHED,
    Declined,
    Lines,
    Mark,
    rule_of_request,
    rule_of_response,
)
from tcpgate.codec.memo import NEVER, Memo, Shelf
from tcpgate.codec.syntax import OWS, VALUE_CHAR
from tcpgate.codec.target import PATH, QUERY

MAX_HEADS = 1024
"""Whole heads kept in one generation: clients that ask the same again and again."""
MAX_HEADS_WEIGHT = 4 << 20
"""Their weight (bytes, see `_weight_of_head`): two generations are 8 MiB at most."""
MAX_FIELDS_WEIGHT = 2 << 20
"""The same for the field lines of a head, without its request line."""
MAX_HEAD = 4 << 10
"""Longer heads are not kept whole (bytes): few, and seldom twice the same."""
MAX_STATUS_LINES = 256
MAX_STATUS_LINE = 64
"""Longer ones are judged each time (bytes)."""

_END = b"\r\n\r\n"
_request_line = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (" + PATH + rb")(?:\?(" + QUERY + rb"))? HTTP/1\.1\r\n"
).fullmatch
_AROUND_TARGET = len(b"GET  HTTP/1.1\r\n")
"""Bytes of a request line that are not its target, at least."""
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2})(?: ([" + VALUE_CHAR + rb"]*+))?\r\n")


# -- requests -------------------------------------------------------------------------------------------------------


class ExpressRequest:
    """A plain request head. Requests whose heads have the same bytes may share it, so nobody changes it but for `note`.

    host, authority: as in `RequestHead`.
    length: Content-Length; None: there is none, and no body.
    vouched: it had fields that only a trusted proxy may send; `lines` is without them.
    lines: the field lines that go upstream between Host and the forwarding fields, for a peer that is not trusted.
    """

    __slots__ = (
        *(
            "authority",
            "by_form",
            "host",
            "keep_alive",
            "length",
            "lines",
            "method",
            "note",
            "path",
            "query",
            "raw",
            "size",
        ),
        *("vouched", "_head", "_limits"),
    )

    def __init__(
        self, raw: bytes, limits: Limits, method: bytes, path: bytes, query: bytes | None, fields: RequestFields
    ) -> None:
        self.raw = raw
        """The head as it came."""
        self.size = len(raw)
        self.method = method
        self.path = path
        """As sent."""
        self.query = query
        """After the "?", as sent; None: there is no "?"."""
        # One assignment for six: their own descriptions stand in the class's docstring.
        self.host, self.authority, self.length, self.keep_alive, self.vouched, self.lines = fields
        self.note: Any = None
        """The caller's: what it made of this head, for the next one with the same bytes."""
        self.by_form = False
        """Its fields were new, but for their form."""
        self._limits = limits
        self._head: RequestHead | None = None

    def head(self) -> RequestHead:
        """The same request as the readable path knows it."""
        if self._head is None:
            self._head = parse_request(self.raw, self._limits)
        return self._head


class RequestHeads:
    """Reads request heads for one set of limits, and remembers what it has read.

    The larger is asked before the smaller: a client that asks the same again is known by its whole head; one that asks
    for something else, by all its field lines together; one that adds an id, by what stands around the id (forms.py);
    any other, line by line.
    """

    __slots__ = (
        "_fields",
        "_fill",
        "_forms",
        "_fresh",
        "_heads",
        "_known_fields",
        "_limits",
        "_line",
        "_longest",
        "_longest_line",
        "known",
    )

    def __init__(self, limits: Limits, *, kept: int = MAX_HEADS) -> None:
        """`kept`: heads in one generation, and four times as many lines."""
        self._limits = limits
        self._longest = limits.head
        self._longest_line = limits.target + _AROUND_TARGET
        lines = Lines(rule_of_request, 4 * kept)
        self._line = lines.memo.__getitem__
        self._fresh = lines.fresh
        self._forms = Forms()
        self._fields = Memo(self._read_fields, _weight_of_fields, entries=kept, weight=MAX_FIELDS_WEIGHT)
        self._heads: Shelf[ExpressRequest] = Shelf(_weight_of_head, entries=kept, weight=MAX_HEADS_WEIGHT)
        # Bound once: looking a method up costs as much as what it does. `known` is for callers, too: it gives what
        # `read` would give, if that is there already.
        self._known_fields, self.known, self._fill = self._fields.get, self._heads.get, self._forms.fill

    def read(self, raw: bytes, *, by_form: bool = False) -> ExpressRequest | None:
        """The request of a head that ends in an empty line; None: it is not plain, or is wrong.

        `by_form`: as the client's last one was, so most likely nobody has seen it before, nor its fields.
        """
        known = None if by_form else self.known(raw)
        if known is not None:
            return known
        end = raw.find(b"\n") + 1
        match = _request_line(raw, 0, end)
        if match is None or end > self._longest_line or len(raw) > self._longest:
            return None
        method, path, query = match.groups()
        rest = raw[end:]
        fields = None if by_form else self._known_fields(rest)
        if fields is not None:
            # Only a head whose fields came before can have come before as a whole.
            return self._heads.offer(raw, ExpressRequest(raw, self._limits, method, path, query, fields))
        fields = self._fill(rest)
        is_filled = fields is not None
        if fields is None:
            try:
                fields = self._fields[rest]
            except Declined:
                return None
        elif not by_form:
            fields = self._fields.offer(rest, fields)
        request = ExpressRequest(raw, self._limits, method, path, query, fields)
        request.by_form = is_filled
        return request

    def _read_fields(self, rest: bytes) -> RequestFields:
        """`rest`: a head without its request line."""
        if not rest.endswith(_END):
            raise Declined
        lines = rest.splitlines(True)  # at a bare CR or LF too: such a line has no CRLF, and no proof
        del lines[-1]
        if len(lines) > self._limits.headers:
            raise Declined
        fresh = self._fresh
        fresh.clear()
        found = list(map(self._line, lines))
        host, length, signs = None, None, 0
        for mark in found:
            if type(mark) is Mark:
                sign = mark.sign
                if signs & sign and sign <= ONCE:
                    raise Declined
                signs |= sign
                if sign == HOST:
                    host = mark
                elif sign == LENGTH:
                    length = mark.number
        if host is None:
            raise Declined
        joined = b"".join(found)
        fields = (host.host, host.authority, length, not signs & CLOSE, signs & VOUCHED != 0, joined)
        if 0 < len(fresh) <= MAX_BLANKS:
            self._forms.learn(lines, found, fresh, fields)
        return fields


def _weight_of_head(raw: bytes, _head: object) -> int:
    """About what a head holds (bytes): itself, its parts, all its fields once somebody has asked for them, a note."""
    return 2048 + 5 * len(raw) + 512 * raw.count(b"\n") if len(raw) <= MAX_HEAD else NEVER


def _weight_of_fields(rest: bytes, fields: RequestFields) -> int:
    return 512 + len(rest) + len(fields[-1]) if len(rest) <= MAX_HEAD else NEVER


# -- responses ------------------------------------------------------------------------------------------------------


class ExpressResponse:
    """A plain response head. Shared like `ExpressRequest`."""

    __slots__ = (
        *("block", "chunked", "has_date", "keep_alive", "length", "lines", "measured", "note", "raw", "reason"),
        *("size", "status", "version"),
    )

    def __init__(self, raw: bytes, status: int, reason: bytes, lines: bytes, length: int | None, signs: int) -> None:
        self.raw = raw
        """The head as it came."""
        self.size = len(raw)
        self.version = b"1.1"
        self.status = status
        """200 to 599."""
        self.reason = reason
        self.length = length
        """Content-Length, whatever the method: to HEAD, and with 304, no body follows. A 204 has none."""
        self.chunked = signs & CHUNKED != 0
        """If neither: whether a body follows that ends with the connection, the status and the method say."""
        self.measured = -1 if length is None or self.chunked or status in _WITHOUT_BODY else length
        """How many bytes of body follow, but to HEAD; -1: none, or until some other end."""
        self.keep_alive = not signs & CLOSE
        """The endpoint did not say close."""
        self.has_date = signs & DATE != 0
        self.lines = lines
        """The field lines that go to the client, before those that the gateway adds: Date if there is none, Via."""
        self.note: Any = None
        """The caller's, as in `ExpressRequest`."""
        self.block: Any = None
        """The same, of who sends it on over HTTP/2."""


class ResponseHeads:
    """Reads response heads, and remembers what it has read."""

    __slots__ = ("_fresh", "_heads", "_limits", "_line", "_status", "last")

    def __init__(self, limits: Limits = RESPONSE_LIMITS, *, kept: int = MAX_HEADS) -> None:
        """`kept`: as for requests."""
        self._limits = limits
        lines = Lines(rule_of_response, 4 * kept)
        self._line = lines.memo.__getitem__
        self._fresh = lines.fresh
        self._status = Memo(
            _status_line, _weight_of_status, entries=MAX_STATUS_LINES, weight=MAX_STATUS_LINES * MAX_STATUS_LINE
        )
        self._heads = Memo(self._read, _weight_of_head, entries=kept, weight=MAX_HEADS_WEIGHT)
        self.last: ExpressResponse | None = None
        """The last one read that others of the same head may follow."""

    def begin(self, data: bytes) -> ExpressResponse | None:
        """The response that `data` begins with, whose `size` tells where its body begins; None: as of `read`, or its
        head is not all here."""
        last = self.last  # endpoints repeat themselves
        if last is not None and data.startswith(last.raw):
            return last
        end = data.find(_END) + 4
        return self.read(data[:end]) if end > 3 else None

    def read(self, raw: bytes) -> ExpressResponse | None:
        """The response of a head that ends in an empty line; None: it is not plain, or is wrong."""
        try:
            self.last = response = self._heads[raw]
        except Declined:
            return None
        return response

    def _read(self, raw: bytes) -> ExpressResponse:
        if len(raw) > self._limits.head or not raw.endswith(_END):
            raise Declined
        lines = raw.splitlines(keepends=True)
        del lines[-1]
        status, reason = self._status[lines.pop(0)]
        if len(lines) > self._limits.headers:
            raise Declined
        self._fresh.clear()  # no forms of responses: what differs in them is mostly Date and Content-Length
        found = list(map(self._line, lines))
        length, signs = None, 0
        for mark in found:
            if type(mark) is Mark:
                sign = mark.sign
                if signs & sign and sign <= ONCE:
                    raise Declined
                signs |= sign
                if sign == LENGTH:
                    length = mark.number
        if signs & CHUNKED and (length is not None or status in _WITHOUT_BODY):
            raise Declined
        if status == 204:
            length = None
        return ExpressResponse(raw, status, reason, b"".join(found), length, signs)


_WITHOUT_BODY = (204, 304)


def _status_line(line: bytes) -> tuple[int, bytes]:
    """(status, reason phrase). Raises `Declined`."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Declined
    return int(match[1]), (match[2] or b"").strip(OWS)


def _weight_of_status(line: bytes, _found: object) -> int:
    return len(line) if len(line) <= MAX_STATUS_LINE else NEVER
