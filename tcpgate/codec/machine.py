"""h11 as the second opinion: its state machine and bodies under our grammar, its errors made ours.

h11 is fed only what the strict layer has judged: whole heads, body bytes of known extent, and chunk framing that we
wrote ourselves. It then keeps who may say what when, counts body bytes again, and writes what we send. So it has no
byte of a next request, ever, and where it disagrees with the grammar the message is refused.

Source: h11 0.16 `_connection.py`, `_state.py`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import attrs
import h11

from tcpgate.codec.blame import Blame
from tcpgate.codec.events import Fields, Framing, Kind, Pair
from tcpgate.codec.grammar import FRAMING_NAMES
from tcpgate.codec.syntax import TOKEN, VALUE_CHAR
from tcpgate.errors import Bug

_NO_LIMIT = 1 << 40
"""h11's own limit on incomplete events is off: it never sees one, and the inbox has judged the size."""


@attrs.define
class Machine:
    """One `h11.Connection`, over all exchanges of its connection."""

    role: Any  # h11.SERVER or h11.CLIENT; h11 types its sentinels privately
    blame: Blame
    _h11: h11.Connection = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._h11 = h11.Connection(self.role, max_incomplete_event_size=_NO_LIMIT)

    @property
    def both_done(self) -> bool:
        """Both messages are complete and nobody asked for the connection to close."""
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    @property
    def untouched(self) -> bool:
        """Nothing has been said or heard, not even something that h11 would not have said."""
        return self._h11.our_state is h11.IDLE and self._h11.their_state is h11.IDLE

    def next_cycle(self) -> None:
        """Ready for the next exchange; only when `both_done`."""
        self._h11.start_next_cycle()

    # -- what the peer says -----------------------------------------------------------------------------------------

    def hear_head(self, head: bytes) -> h11.Request | h11.Response | h11.InformationalResponse:
        """h11's reading of a judged head."""
        event = self._hear(head)
        if not isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
            raise self.blame.malformed("head: not one to h11")
        return event

    def hear_data(self, framing: Framing, data: bytes) -> None:
        """`data`, not empty, belongs to the body at hand."""
        chunked = framing.kind is Kind.CHUNKED
        event = self._hear(b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if chunked else data)
        if not isinstance(event, h11.Data) or len(event.data) != len(data):
            raise self.blame.malformed("body: not of this length to h11")

    def hear_end(self, framing: Framing) -> None:
        """The body at hand is complete. Trailers are ours to keep: h11 hears of none."""
        if framing.kind is Kind.CHUNKED:
            event = self._hear(b"0\r\n\r\n")
        elif framing.kind is Kind.CLOSE:
            event = self._hear(b"")
        else:
            event = self._next()
        if not isinstance(event, h11.EndOfMessage):
            raise self.blame.malformed("body: not complete to h11")

    def _hear(self, data: bytes) -> object:
        self._h11.receive_data(data)
        return self._next()

    def _next(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            # Not exc's own text: it quotes the peer's bytes.
            raise self.blame.malformed("h11 refuses what the grammar took") from exc

    # -- what we say ------------------------------------------------------------------------------------------------
    # Each gives the bytes to send, and raises Bug if h11 will not have it said: out of turn, or not well-formed.

    def say_request(self, method: bytes, target: bytes, pairs: list[Pair]) -> bytes:
        """The head of a request."""
        self._say(h11.Request, method=method, target=target, headers=judged(pairs))
        return request_bytes(method, target, pairs)

    def say_informational(self, status: int, reason: bytes, pairs: list[Pair]) -> bytes:
        """A 1xx."""
        self._say(h11.InformationalResponse, status_code=status, reason=reason, headers=judged(pairs))
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, _written(pairs))

    def say_response(self, status: int, reason: bytes, pairs: list[Pair]) -> bytes:
        """The head of a final response; h11 adds `Connection: close` where it must be."""
        head = b"".join(self._say(h11.Response, status_code=status, reason=reason, headers=judged(pairs)))
        first, _, fields = head.partition(b"\r\n")
        others = [pair for pair in pairs if pair[0].lower() not in JUDGED]
        return b"%b\r\n%b%b" % (first, _written(others), fields)

    def say_last(self, status: int, reason: bytes, pairs: list[Pair]) -> bytes:
        """The head of a response after a fault: h11 looks at its form, but not at whether it is the time for it."""
        try:
            h11.Response(status_code=status, reason=reason, headers=pairs)
        except h11.LocalProtocolError as exc:
            raise Bug(f"h11: {exc}") from exc
        return head_bytes(b"HTTP/1.1 %d %b" % (status, reason), pairs)

    def say_data(self, data: bytes) -> list[bytes]:
        """Some of a body: `data` itself, uncopied, and the chunk framing around it."""
        return self._say(h11.Data, data=data)

    def say_end(self, trailers: list[Pair]) -> bytes:
        """The end of a body."""
        return b"".join(self._say(h11.EndOfMessage, headers=trailers))

    def _say(self, kind: type[h11.Event], **facts: Any) -> list[bytes]:
        try:
            return self._h11.send_with_data_passthrough(kind(**facts)) or []
        except h11.LocalProtocolError as exc:
            raise Bug(f"h11: {exc}") from exc


JUDGED = FRAMING_NAMES | {b"host", b"connection", b"upgrade"}
"""Names of the fields that h11's state machine goes by. The others it would only check and copy, one by one, which is
most of its cost; they are checked here, by one pattern for a whole head."""
_are_fields = re.compile(rb"(?:" + TOKEN + rb": [" + VALUE_CHAR + rb"]*+\r\n)*").fullmatch


def judged(pairs: Iterable[Pair]) -> list[Pair]:
    """Those of `pairs` that h11 has to know."""
    return [pair for pair in pairs if pair[0].lower() in JUDGED]


def _written(pairs: list[Pair]) -> bytes:
    """Field lines; Bug if one of `pairs` is not one line of the right form."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
    if not _are_fields(lines) or lines.count(b"\n") != len(pairs):
        raise Bug("a field that no head may hold")
    return lines


def request_bytes(method: bytes, target: bytes, pairs: list[Pair]) -> bytes:
    """The head of a request, as it goes out."""
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, _written(pairs))


def response_bytes(status: int, reason: bytes, pairs: list[Pair]) -> bytes:
    """The head of a response, as it goes out; of `pairs` those that h11 judges come last, as it writes them."""
    others = [pair for pair in pairs if pair[0].lower() not in JUDGED]
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, reason, _written(others), _written(judged(pairs)))


def framed(fields: Fields, framing: Framing) -> list[Pair]:
    """`fields` with the framing fields that `framing` asks for and none that they may have held."""
    pairs = list(fields.without(FRAMING_NAMES))
    if framing.length is not None:
        pairs.append((b"Content-Length", b"%d" % framing.length))
    elif framing.kind is Kind.CHUNKED:
        pairs.append((b"Transfer-Encoding", b"chunked"))
    return pairs


def head_bytes(first: bytes, pairs: list[Pair]) -> bytes:
    """A head written out: the first line, the fields, the empty line."""
    return b"\r\n".join([first, *(b"%b: %b" % pair for pair in pairs), b"", b""])


def phrase(status: int) -> bytes:
    """The reason phrase that goes with a status, b"" if it has none."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
