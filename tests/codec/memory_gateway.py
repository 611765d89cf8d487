"""A gateway without sockets: both codecs joined as the proxy room joins them, a recording origin, another client.

What the origin got and what the client got is read with h11 alone, so the codec is not its own judge. `MemoryGateway`
answers faults, forwards everything else, and reuses its connection to the origin only where the codec allows it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

import attrs
import h11

from tcpgate.codec.events import (
    NO_FIELDS,
    Closed,
    Data,
    EndOfBody,
    Fields,
    Limits,
    NeedData,
    RequestHead,
    ResponseHead,
)
from tcpgate.codec.forwarded import forwarding_fields
from tcpgate.codec.hop import downstream_fields, upstream_fields
from tcpgate.codec.http1 import ClientCodec, ServerCodec
from tcpgate.codec.reply import Answer, answer, final_recipient
from tcpgate.errors import ClientError, Reason, UpstreamError
from tests.codec.corpus import ORIGIN

PEER = ipaddress.ip_address("192.0.2.7")
NAME = b"gate"
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


@attrs.define
class Recorded:
    """A message as h11 read it."""

    head: h11.Request | h11.Response
    body: bytes = b""
    trailers: dict[bytes, bytes] = attrs.field(factory=dict)
    complete: bool = False

    def fields(self) -> dict[bytes, bytes]:
        """Lower-case name -> value, repeated ones joined."""
        joined: dict[bytes, bytes] = {}
        for name, value in self.head.headers:
            joined[name] = joined[name] + b", " + value if name in joined else value
        return joined


@attrs.define
class Reader:
    """Reads messages with h11, in either role, over a whole connection."""

    wire: h11.Connection
    messages: list[Recorded] = attrs.field(factory=list)
    informational: list[int] = attrs.field(factory=list)
    upgraded: h11.InformationalResponse | None = None

    def read(self, data: bytes, *, eof: bool = False) -> None:
        """Take bytes; nothing malformed is forgiven, an end that comes too early only leaves `complete` false."""
        if data:
            self.wire.receive_data(data)
        if eof:
            self.wire.receive_data(b"")
        while True:
            try:
                event = self.wire.next_event()
            except h11.RemoteProtocolError:
                assert eof, "the gateway said something malformed"
                assert not self.messages[-1].complete
                return
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            self._note(event)

    def _note(self, event: object) -> None:
        match event:
            case h11.InformationalResponse(status_code=101):
                self.upgraded = event
            case h11.InformationalResponse():
                self.informational.append(event.status_code)
            case h11.Request() | h11.Response():
                self.messages.append(Recorded(event))
            case h11.Data():
                self.messages[-1].body += event.data
            case h11.EndOfMessage():
                self.messages[-1].trailers = dict(event.headers)
                self.messages[-1].complete = True


def answers_200(request: Recorded) -> Iterable[bytes]:
    """What a healthy origin says, as the reads that it comes in; b"" would be a close."""
    bodiless = isinstance(request.head, h11.Request) and request.head.method == b"HEAD"
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if bodiless else b"ok")


@attrs.define
class MemoryGateway:
    """One client connection, and the connections to the origin that it led to, one after another."""

    origin: Callable[[Recorded], Iterable[bytes]] = answers_200
    limits: Limits = attrs.field(factory=lambda: Limits(body=1 << 40))
    server: ServerCodec = attrs.field(init=False)
    client: ClientCodec = attrs.field(factory=ClientCodec)
    out: bytearray = attrs.field(factory=bytearray)
    """Bytes to the client."""
    closed: bool = False
    """The gateway has closed the client's connection."""
    tunnel: bool = False
    origin_reads: Reader = attrs.field(factory=lambda: Reader(h11.Connection(h11.SERVER)))
    sent: list[bytearray] = attrs.field(factory=lambda: [bytearray()])
    """Bytes to the origin, by connection."""
    requests: list[Recorded] = attrs.field(factory=list)
    """Complete requests, over all connections to the origin."""

    def __attrs_post_init__(self) -> None:
        self.server = ServerCodec(self.limits)

    def receive(self, data: bytes) -> None:
        """The client sends `data`; b"" ends its sending half."""
        if self._over():
            return
        self.server.receive(data)
        try:
            while not self._over() and self._step():
                pass
        except ClientError as error:
            self._fault(error)

    def _over(self) -> bool:
        return self.closed or self.tunnel

    def _step(self) -> bool:
        event = self.server.next_event()
        match event:
            case RequestHead():
                self._begin(event)
            case Data():
                self._to_origin(b"".join(self.client.send_data(event.data)))
            case EndOfBody():
                self._finish(event.trailers)
            case NeedData():
                return False
            case Closed():
                self.closed = True
        return True

    def _begin(self, head: RequestHead) -> None:
        if not self.client.can_reuse:
            self.client = ClientCodec()
            self.origin_reads = Reader(h11.Connection(h11.SERVER))
            self.sent.append(bytearray())
        forwarding = forwarding_fields(head, peer=PEER, trusted=False, secure=False, port=80, name=NAME)
        fields = upstream_fields(head, forwarding, fallback_host=ORIGIN)
        if head.max_forwards == 0:
            return
        request = self.client.send_request(
            head.method, head.upstream_target, fields, head.framing, upgrade=head.upgrade
        )
        self._to_origin(request)

    def _to_origin(self, data: bytes) -> None:
        self.sent[-1] += data
        self.origin_reads.read(data)

    def _finish(self, trailers: Fields) -> None:
        head = self.server.request
        assert head is not None
        if head.max_forwards == 0:
            self._answer(final_recipient(head))
            return
        self._to_origin(self.client.end(trailers))
        request = self.origin_reads.messages[-1]
        assert request.complete
        self.requests.append(request)
        try:
            for data in self.origin(request):
                self.client.receive(data)
                while not self.tunnel and self._response_step():
                    pass
        except UpstreamError as error:
            self._upstream_fault(error)
            return
        self._origin_answered()
        if not self.tunnel:
            self._next()

    def _origin_answered(self) -> None:
        """Let the origin's h11 know that it has answered, so that it reads the next request."""
        reads = self.origin_reads.wire
        if reads.our_state is h11.SEND_RESPONSE:
            reads.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            reads.send(h11.EndOfMessage())
        if reads.our_state is h11.DONE and reads.their_state is h11.DONE:
            reads.start_next_cycle()

    def _response_step(self) -> bool:
        event = self.client.next_event()
        match event:
            case ResponseHead():
                return self._response_head(event)
            case Data():
                self.out += b"".join(self.server.send_data(event.data))
            case EndOfBody():
                self.out += self.server.end(event.trailers)
            case NeedData() | Closed():
                return False
        return True

    def _response_head(self, head: ResponseHead) -> bool:
        fields = downstream_fields(head, date=DATE)
        if head.informational or head.status == 101:
            self.out += self.server.send_informational(head.status, fields)
            self.tunnel = head.status == 101
            return True
        self.out += self.server.send_response(head.status, fields, head.framing, reason=head.reason)
        return True

    def _next(self) -> None:
        if self.server.can_reuse:
            self.server.next_exchange()
        else:
            self.closed = True

    def _answer(self, answer: Answer, *, close: bool = False) -> None:
        self.out += self.server.send_response(answer.status, answer.fields, answer.framing, close=close)
        self.out += b"".join(self.server.send_data(answer.body)) + self.server.end(NO_FIELDS)
        self._next()

    def _fault(self, error: ClientError) -> None:
        assert "h11" not in error.detail, "h11 refused what the grammar took"
        if error.reason is not Reason.CLIENT_ABORT:
            self._answer(answer(error.reason, status=error.status, detail=error.detail))
        self.closed = True

    def _upstream_fault(self, error: UpstreamError) -> None:
        assert "h11" not in error.detail, "h11 refused what the grammar took"
        if self.server.responding:
            self.closed = True  # the client sees a response that is not complete
        else:
            self._answer(answer(error.reason, status=error.status, detail=error.detail))
