"""Both codecs under bent messages: no surprise, no dependence on the reads, nothing ambiguous on either side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcpgate.codec.events import (
    CHUNKED,
    NO_FIELDS,
    Data,
    EndOfBody,
    Fields,
    Limits,
    RequestHead,
    ResponseHead,
    ServerEvent,
    of_length,
)
from tcpgate.codec.grammar import parse_request, parse_response
from tcpgate.codec.http1 import ClientCodec, ServerCodec
from tcpgate.errors import ClientError, GateError, UpstreamError
from tests.codec import messages
from tests.codec.memory_gateway import MemoryGateway, Recorded

WIDE = Limits(head=1 << 20, headers=1000)
"""What a next hop might take, so that only grammar is judged."""


def passed(reads: Sequence[bytes]) -> MemoryGateway:
    """A gateway after a client has sent `reads`."""
    gateway = MemoryGateway()
    for data in reads:
        gateway.receive(data)
    return gateway


def told(request: Recorded) -> tuple[object, ...]:
    """What a recorded request says, whatever chunks it came in."""
    assert isinstance(request.head, h11.Request)
    return request.head.method, request.head.target, request.fields(), request.body, request.trailers


@settings(max_examples=150)
@given(messages.split_of(messages.bent(messages.REQUEST_SEEDS)))
def test_a_bent_request_means_the_same_however_it_is_cut(sample: tuple[bytes, list[bytes]]) -> None:
    whole, cut = passed([sample[0]] if sample[0] else []), passed(sample[1])
    assert whole.out == cut.out
    assert whole.closed == cut.closed
    assert list(map(told, whole.requests)) == list(map(told, cut.requests))


@settings(max_examples=150)
@given(messages.bent(messages.REQUEST_SEEDS))
def test_whatever_goes_upstream_a_strict_next_hop_takes_and_reads_the_same(raw: bytes) -> None:
    gateway = passed([raw] if raw else [])
    heads: list[RequestHead] = []
    for connection in gateway.sent:
        next_hop = ServerCodec(WIDE)
        next_hop.receive(bytes(connection))
        heads += complete_requests(next_hop)
    assert [(head.method, head.target) for head in heads] == [told(request)[:2] for request in gateway.requests]


def complete_requests(codec: ServerCodec) -> list[RequestHead]:
    """The heads of the complete requests that `codec` has received; each is answered."""
    heads: list[RequestHead] = []
    while isinstance(event := codec.next_event(), RequestHead | Data | EndOfBody):
        if isinstance(event, RequestHead):
            heads.append(event)
        elif isinstance(event, EndOfBody):
            codec.send_response(200, NO_FIELDS, of_length(0))
            codec.end()
            codec.next_exchange()
    begun = heads and not codec.idle and codec.request is heads[-1]
    return heads[:-1] if begun else heads


@settings(max_examples=150)
@given(messages.split_of(messages.bent(messages.RESPONSE_SEEDS)), st.sampled_from([b"GET", b"HEAD"]))
def test_a_bent_response_means_the_same_however_it_is_cut(sample: tuple[bytes, list[bytes]], method: bytes) -> None:
    outs = [response_events([sample[0]] if sample[0] else [], method), response_events(sample[1], method)]
    assert outs[0] == outs[1]


def response_events(reads: Sequence[bytes], method: bytes) -> list[object]:
    """What a client codec says of `reads` and the end of file, data joined, the error as its reason and text."""
    codec = ClientCodec()
    codec.send_request(method, b"/", Fields([(b"Host", b"a.test")]), of_length(0))
    codec.end()
    said: list[object] = []
    try:
        for data in [*reads, b""]:
            codec.receive(data)
            while isinstance(event := codec.next_event(), ResponseHead | Data | EndOfBody):
                joins = isinstance(event, Data) and said and isinstance(said[-1], bytes)
                if joins and isinstance(event, Data) and isinstance(said[-1], bytes):
                    said[-1] += event.data
                else:
                    said.append(event.data if isinstance(event, Data) else event)
    except UpstreamError as error:
        said.append((error.reason, error.detail, error.retry))
    return said


@settings(max_examples=150)
@given(messages.bent(messages.REQUEST_SEEDS))
@example(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: , Chunked,\r\n\r\n")
def test_a_head_that_the_grammar_takes_h11_reads_the_same(raw: bytes) -> None:
    head = raw[: raw.find(b"\r\n\r\n") + 4]
    try:
        ours = parse_request(head, WIDE, secure=True)
    except ClientError:
        return
    coding = ours.fields.get(b"transfer-encoding") or b""
    if b"," in coding:  # empty list members, of which h11 does not know: http1.py tells it the meaning as well
        head = head.replace(coding, b"chunked")
    oracle = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    oracle.receive_data(head)
    theirs = oracle.next_event()
    assert isinstance(theirs, h11.Request)
    assert (theirs.method, theirs.target, theirs.http_version) == (ours.method, ours.target, ours.version)
    assert [name for name, _ in theirs.headers.raw_items()] == [name for name, _ in ours.fields]
    for (name, their_value), (_, our_value) in zip(theirs.headers, ours.fields, strict=True):
        assert their_value == (b"chunked" if name == b"transfer-encoding" else our_value)
    assert oracle.trailing_data == (b"", False)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([b"GET", b"HEAD"]))
def test_noise_raises_nothing_but_the_gates_own_errors(noise: bytes, method: bytes) -> None:
    for head in (noise, noise + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + noise + b"\r\n\r\n"):
        with suppress(ClientError):
            parse_request(head, Limits())
    for head in (noise, noise + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n"):
        with suppress(UpstreamError):
            parse_response(head, method)


@given(messages.fields, messages.bodies, st.data())
def test_a_chunked_body_comes_through_whole(pairs: list[tuple[bytes, bytes]], body: bytes, data: st.DataObject) -> None:
    names = [pair for pair in pairs if pair[0].lower() not in messages.SPECIAL]
    head = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"".join(b"%b: %b\r\n" % pair for pair in names)
    raw = head + data.draw(messages.chunkings(body)) + b"0\r\n" + trailers + b"\r\n" + b"GET"
    codec = ServerCodec(Limits())
    got: list[ServerEvent] = []
    for read in data.draw(messages.splits(raw)):
        codec.receive(read)
        while isinstance(event := codec.next_event(), RequestHead | Data | EndOfBody):
            got.append(event)
    assert b"".join(event.data for event in got if isinstance(event, Data)) == body
    assert got[-1] == EndOfBody(Fields(names))
    assert codec.buffered == len(b"GET"), "a byte of the next request was taken for this one's"


@given(messages.fields, messages.bodies, st.booleans(), st.data())
def test_what_one_codec_sends_the_other_understands(
    pairs: list[tuple[bytes, bytes]], body: bytes, chunked: bool, data: st.DataObject
) -> None:
    kept = [pair for pair in pairs if pair[0].lower() not in messages.SPECIAL]
    framing = CHUNKED if chunked else of_length(len(body))
    client, server = ClientCodec(), ServerCodec(Limits())
    fields = Fields([(b"Host", b"a.test"), *kept])
    server.receive(client.send_request(b"POST", b"/x?y", fields, framing))
    head = server.next_event()
    assert isinstance(head, RequestHead)
    assert head.framing == framing
    assert list(head.fields)[: len(fields)] == list(fields)
    assert carried(server, client, body, data) == body
    client.receive(server.send_response(200, Fields(kept), framing))
    answer = client.next_event()
    assert isinstance(answer, ResponseHead)
    assert answer.framing == framing
    assert carried(client, server, body, data) == body
    assert client.can_reuse
    assert server.can_reuse


def carried(
    receiver: ServerCodec | ClientCodec, sender: ServerCodec | ClientCodec, body: bytes, data: st.DataObject
) -> bytes:
    """`body` sent in pieces and received, to its end."""
    wire = b"".join(b"".join(sender.send_data(piece)) for piece in data.draw(messages.splits(body))) + sender.end()
    got = b""
    for read in data.draw(messages.splits(wire)):
        receiver.receive(read)
        while isinstance(event := receiver.next_event(), Data):
            got += event.data
        if isinstance(event, EndOfBody):
            return got
    assert isinstance(receiver.next_event(), EndOfBody)
    return got


@settings(max_examples=150)
@given(messages.bent(messages.REQUEST_SEEDS))
def test_a_fault_is_told_again_and_nothing_after_it_is_understood(raw: bytes) -> None:
    codec = ServerCodec(Limits())
    codec.receive(raw or b"\x00")
    fault = first_fault(codec)
    if fault is None:
        return
    codec.receive(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert codec.buffered == 0
    assert not codec.can_reuse
    assert not codec.wants_data
    assert first_fault(codec) is fault


def first_fault(codec: ServerCodec) -> GateError | None:
    """What goes wrong with the message at hand."""
    try:
        while isinstance(codec.next_event(), RequestHead | Data):
            pass
    except GateError as fault:
        return fault
    return None
