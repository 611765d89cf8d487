"""HTTP/1.1 without I/O: bytes in, events out; intentions in, bytes out. One codec per connection, for its whole life.

`ServerCodec` faces a client, `ClientCodec` an endpoint. Both judge with the strict grammar and keep h11 underneath
(`machine.py`). The driver in `net/` reads while `wants_data`, calls `receive`, and calls `next_event` until `NeedData`.

Theory of operation. An exchange goes HEAD -> BODY -> ENDED, and `next_exchange` leads back to HEAD. Bytes that follow a
message stay in the inbox, unread, until then: a pipelined request is not parsed before the first has been answered.
A GateError breaks the codec for good: `next_event` raises it again, what still comes is thrown away, and one last
response that says `Connection: close` may be sent, without h11, whose idea of the connection no longer counts.

Source: RFC 9112 (6.3 framing, 9.3 persistence and pipelining), RFC 9110 (7.8 Upgrade, 10.1.1 Expect, 15.2 1xx). Pure.
"""

from __future__ import annotations

import enum

import h11

from tcpgate.codec.blame import CLIENT, UPSTREAM_BODY, UPSTREAM_HEAD
from tcpgate.codec.events import (
    CHUNKED,
    CLOSED,
    NEED_DATA,
    NO_BODY,
    NO_FIELDS,
    RESPONSE_LIMITS,
    UNTIL_CLOSE,
    ClientEvent,
    Closed,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Limits,
    NeedData,
    RequestHead,
    ResponseHead,
    ServerEvent,
    of_length,
)
from tcpgate.codec.grammar import parse_request, parse_response
from tcpgate.codec.inbox import Body, Inbox, request_opening, response_opening
from tcpgate.codec.machine import Machine, framed, head_bytes, judged, phrase
from tcpgate.codec.syntax import is_value
from tcpgate.errors import Bug, GateError, Reason, Retry, UpstreamError

READ_AHEAD = 64 << 10
"""Bytes held that nobody has asked for yet (pipelined requests, a body faster than its reader); then reading stops."""
MAX_INFORMATIONAL = 1000
"""1xx heads before a final one; an endpoint that sends more is not going to answer."""


class _Phase(enum.Enum):
    IDLE = "idle"  # ClientCodec only: no request was sent
    HEAD = "head"
    BODY = "body"
    ENDED = "ended"
    SWITCHED = "switched"


class _Codec:
    """What both sides share: the inbox, the body at hand, the fault."""

    def __init__(self, machine: Machine, inbox: Inbox, phase: _Phase) -> None:
        self._machine = machine
        self._inbox = inbox
        self._phase = phase
        self._body: Body | None = None
        self._fault: GateError | None = None

    @property
    def buffered(self) -> int:
        """Bytes received and not yet given out as an event."""
        return len(self._inbox.buffer)

    @property
    def wants_data(self) -> bool:
        """Reading on makes sense: no end of file, no fault, no tunnel, and not too much read ahead."""
        full = self.buffered > max(READ_AHEAD, self._inbox.limits.head)
        return not (full or self._inbox.eof or self._fault or self._phase is _Phase.SWITCHED)

    def receive(self, data: bytes) -> None:
        """Take what a read gave; b"" means that the peer will send no more."""
        if self._fault is None:
            self._inbox.receive(data)

    def switched(self) -> bytes:
        """Once the connection is a tunnel: what the peer already sent into it."""
        if self._phase is not _Phase.SWITCHED:
            raise Bug("switched() on a connection that is no tunnel")
        leftover = bytes(self._inbox.buffer)
        self._inbox.buffer.clear()
        self._body = None
        vars(self).pop("_machine", None)  # nothing is said by HTTP's rules any more, and a tunnel may last for days
        return leftover

    def _start_body(self, body: Body) -> None:
        self._body = body
        self._phase = _Phase.BODY

    def _next_of_body(self) -> Data | EndOfBody | NeedData:
        body = self._body
        if body is None:
            raise Bug("no body at hand")
        data = body.take()
        if data:
            self._machine.hear_data(body.framing, data)
            return Data(data)
        if not body.done:
            return NEED_DATA
        self._machine.hear_end(body.framing)
        self._phase = _Phase.ENDED
        return EndOfBody(body.trailers)

    def _between(self) -> NeedData | Closed:
        """Nothing is being read: the exchange at hand is the other side's to end, or there is none."""
        return CLOSED if self._inbox.eof and not self._inbox.buffer else NEED_DATA


class ServerCodec(_Codec):
    """The client's side of the gateway. `secure`: see `grammar.parse_request`."""

    def __init__(self, limits: Limits, *, secure: bool = False) -> None:
        inbox = Inbox(limits, CLIENT, request_opening(limits), blanks=1)
        super().__init__(Machine(h11.SERVER, CLIENT), inbox, _Phase.HEAD)
        self._secure = secure
        self.request: RequestHead | None = None
        """The head of the exchange at hand."""
        self.waiting_for_continue = False
        """The client will not send its body before a 100, or never; no byte of it has come."""
        self._method = b""
        self._out: Framing | None = None
        """Framing of the response that is being sent."""
        self._last_words = False
        """That response follows a fault, so h11 has no part in it."""

    @property
    def idle(self) -> bool:
        """Between exchanges, and not one byte of a next one has come."""
        return self._phase is _Phase.HEAD and not self._inbox.buffer

    @property
    def responding(self) -> bool:
        """The head of a final response has gone out: what goes wrong now can only cut it short."""
        return self._out is not None

    # -- the request --------------------------------------------------------------------------------------------------

    def next_event(self) -> ServerEvent:
        """What the client said next. Raises ClientError, and from then on the same one again."""
        if self._fault is not None:
            raise self._fault
        try:
            if self._phase is _Phase.HEAD:
                return self._next_head()
            return self._next_of_request_body() if self._phase is _Phase.BODY else self._between()
        except GateError as fault:
            self._fault = fault
            self._inbox.buffer.clear()
            raise

    def _next_head(self) -> RequestHead | NeedData | Closed:
        raw = self._inbox.take_head()
        if raw is None:
            if self._inbox.eof and self._inbox.buffer:
                raise CLIENT.cut_short("head: the connection closed before its end")
            return self._between()
        self._method = raw.partition(b" ")[0]
        head = parse_request(raw, self._inbox.limits, secure=self._secure)
        if head.framing is CHUNKED and b"," in (head.fields.get(b"transfer-encoding") or b""):
            # Empty list members, of which h11 does not know: it hears the meaning, written anew.
            raw = head_bytes(raw.partition(b"\r\n")[0], framed(head.fields, head.framing))
        heard = self._machine.hear_head(raw)
        if not isinstance(heard, h11.Request) or (heard.method, heard.target) != (head.method, head.target):
            raise CLIENT.malformed("head: another request to h11")
        self.request = head
        self.waiting_for_continue = head.expect_continue
        self._start_body(Body(self._inbox, head.framing, CLIENT, head.fields.tokens(b"connection")))
        return head

    def _next_of_request_body(self) -> Data | EndOfBody | NeedData:
        event = self._next_of_body()
        if not isinstance(event, NeedData):
            self.waiting_for_continue = False
        return event

    # -- the response -------------------------------------------------------------------------------------------------

    def send_informational(self, status: int, fields: Fields = NO_FIELDS) -> bytes:
        """A 1xx; b"" for an HTTP/1.0 client, which must not get one (RFC 9110 15.2). After 101 comes the tunnel."""
        if self.request is None or self._fault is not None:
            raise Bug("1xx without a request")
        if self.request.version == b"1.0":
            return b""
        if status == 101 and (self.request.upgrade is None or self._phase is not _Phase.ENDED):
            raise Bug("101 that was not asked for, or before the request is complete")
        pairs = framed(fields, NO_BODY)
        out = self._machine.say_informational(status, phrase(status), pairs)
        if status == 100:
            self.waiting_for_continue = False
        elif status == 101:
            self._phase = _Phase.SWITCHED
        return out

    def send_response(
        self, status: int, fields: Fields, framing: Framing, *, reason: bytes | None = None, close: bool = False
    ) -> bytes:
        """The head of the final response. Framing fields come from `framing` alone.

        `Connection: close` is added if `close`, after a fault, for an HTTP/1.0 client, and if the client still waits
        for a 100: it may now send its body or not, and nobody could tell which (RFC 9110 10.1.1).
        """
        if self._out is not None:
            raise Bug("a second response to one request")
        if reason is None or not is_value(reason):
            reason = phrase(status)
        self._out = framing = self._outgoing(status, framing)
        pairs = framed(fields, framing)
        if self._fault is not None:
            self._last_words = True
            pairs.append((b"Connection", b"close"))
            return self._machine.say_last(status, reason, pairs)
        if close or self.waiting_for_continue:
            pairs.append((b"Connection", b"close"))
        self.waiting_for_continue = False
        return self._machine.say_response(status, reason, pairs)

    def _outgoing(self, status: int, framing: Framing) -> Framing:
        """`framing` as this client can take it for this status."""
        if status == 204:
            return NO_BODY  # RFC 9110 8.6: not even a Content-Length
        if status == 304 or self._method == b"HEAD":
            return Framing(Kind.NONE, framing.length)
        if framing.kind is Kind.NONE:
            return of_length(0)
        if framing.kind is Kind.LENGTH:
            return framing
        speaks_chunked = self._fault is None and self.request is not None and self.request.version == b"1.1"
        return CHUNKED if speaks_chunked else UNTIL_CLOSE

    def send_data(self, data: bytes) -> list[bytes]:
        """Buffers to send for some of the body, `data` itself among them; none where the response has no body."""
        if not data or self._out is None or self._out.kind is Kind.NONE:
            return []
        return [data] if self._last_words else self._machine.say_data(data)

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the response. Trailers go out only where the framing can carry them (RFC 9110 6.5.1)."""
        if self._last_words:
            return b""
        return self._machine.say_end(list(trailers) if self._out == CHUNKED else [])

    # -- the next exchange --------------------------------------------------------------------------------------------

    @property
    def can_reuse(self) -> bool:
        """Request and response are complete and the connection goes on."""
        return self._fault is None and self._phase is _Phase.ENDED and self._machine.both_done

    def hand_back(self) -> bytes | None:
        """Between exchanges: what the client has sent of the next ones, taken out; None if it has ended its stream."""
        if self._inbox.eof or self._phase is not _Phase.HEAD:
            return None
        leftover = bytes(self._inbox.buffer)
        self._inbox.buffer.clear()
        return leftover

    def next_exchange(self) -> None:
        """Turn to what the client sent after the request; only if `can_reuse`."""
        if not self.can_reuse:
            raise Bug("next_exchange() on a connection that cannot be reused")
        self._machine.next_cycle()
        self._phase = _Phase.HEAD
        self._inbox.blanks = 1
        self.request = self._out = self._body = None
        self._method = b""


class ClientCodec(_Codec):
    """The endpoint's side of the gateway."""

    def __init__(self, limits: Limits = RESPONSE_LIMITS) -> None:
        inbox = Inbox(limits, UPSTREAM_HEAD, response_opening(limits))
        super().__init__(Machine(h11.CLIENT, UPSTREAM_BODY), inbox, _Phase.IDLE)
        self.exchanges = 0
        """Requests sent so far, the one at hand included."""
        self._method = b""
        self._offered: bytes | None = None
        self._out = NO_BODY
        self._sent = False
        self._informational = 0

    # -- the request --------------------------------------------------------------------------------------------------

    def send_request(
        self,
        method: bytes,
        target: bytes,
        fields: Fields,
        framing: Framing,
        *,
        upgrade: bytes | None = None,
        close: bool = False,
    ) -> bytes:
        """The head of the next request. Framing fields come from `framing` alone; `fields` has Host.

        `upgrade`: the protocol that `fields` offers; only a 101 to it is taken. Raises UpstreamError, before anything
        is sent, if the connection has become useless while it was idle.
        """
        if not self.can_reuse:
            raise UpstreamError(Reason.UPSTREAM_CLOSED, "no longer usable", retry=Retry.IF_UNSENT)
        if self._phase is _Phase.ENDED:
            self._machine.next_cycle()
        pairs = framed(fields, framing)
        if close:
            pairs.append((b"Connection", b"close"))
        out = self._machine.say_request(method, target, pairs)
        self.exchanges += 1
        self._method, self._offered, self._out = method, upgrade, framing
        self._sent, self._informational = False, 0
        self._phase = _Phase.HEAD
        return out

    def send_data(self, data: bytes) -> list[bytes]:
        """Buffers to send for some of the body, `data` itself among them."""
        return self._machine.say_data(data) if data else []

    def end(self, trailers: Fields = NO_FIELDS) -> bytes:
        """The end of the request; trailers go out only in a chunked one."""
        out = self._machine.say_end(list(trailers) if self._out == CHUNKED else [])
        self._sent = True
        return out

    # -- the response -------------------------------------------------------------------------------------------------

    def next_event(self) -> ClientEvent:
        """What the endpoint said next. Raises UpstreamError, and from then on the same one again."""
        if self._fault is not None:
            raise self._fault
        try:
            if self._phase is _Phase.HEAD:
                return self._next_head()
            return self._next_of_body() if self._phase is _Phase.BODY else self._between()
        except GateError as fault:
            self._fault = fault
            self._inbox.buffer.clear()
            raise

    def _next_head(self) -> ResponseHead | NeedData:
        raw = self._inbox.take_head()
        if raw is None:
            if self._inbox.eof:
                raise self._no_answer()
            return NEED_DATA
        head = parse_response(raw, self._method, self._inbox.limits, upgrade=self._offered)
        if head.status == 101 and not self._sent:
            raise UpstreamError(Reason.UPGRADE_FAILED, "101: before the request was complete")
        self._hear(head)
        if head.status == 101:
            self._phase = _Phase.SWITCHED
        elif head.informational:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise UPSTREAM_HEAD.malformed(f"1xx: more than {MAX_INFORMATIONAL}")
        else:
            self._start_body(Body(self._inbox, head.framing, UPSTREAM_BODY, head.fields.tokens(b"connection")))
        return head

    def _hear(self, head: ResponseHead) -> None:
        """Tell h11 of a response by the meaning that the grammar found, written anew: as much as h11 goes by."""
        line = b"HTTP/%b %d %b" % (head.version, head.status, head.reason)
        heard = self._machine.hear_head(head_bytes(line, framed(Fields(judged(head.fields)), head.framing)))
        if isinstance(heard, h11.Request) or heard.status_code != head.status:
            raise UPSTREAM_HEAD.malformed("head: another response to h11")

    def _no_answer(self) -> UpstreamError:
        if self._inbox.buffer:
            return UpstreamError(Reason.UPSTREAM_INCOMPLETE, "closed in the middle of a head", retry=Retry.SAFE)
        # A reused connection that closes without a word most likely closed before our request came.
        raced = self.exchanges > 1 and not self._informational
        return UpstreamError(
            Reason.UPSTREAM_CLOSED, "closed without an answer", retry=Retry.IF_REUSED if raced else Retry.SAFE
        )

    # -- the next exchange --------------------------------------------------------------------------------------------

    @property
    def can_reuse(self) -> bool:
        """A request may be sent: the last exchange is complete on both sides, and nothing unasked for has come.

        Bytes after a response, or on an idle connection, belong to no request of ours: whoever took them for the next
        response would hand one client's answer to another. The driver must have read the socket dry before it asks.
        """
        if self._fault is not None or self._inbox.buffer or self._inbox.eof:
            return False
        if self._phase is _Phase.IDLE:
            return self._machine.untouched
        return self._phase is _Phase.ENDED and self._machine.both_done
