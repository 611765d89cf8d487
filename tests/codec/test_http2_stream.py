"""One HTTP/2 stream as a codec: events of a request, buffers of an answer."""

from __future__ import annotations

import base64
import hashlib
import random

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec import http2_request
from tcpgate.codec.events import (
    CHUNKED,
    NEED_DATA,
    NO_BODY,
    UNTIL_CLOSE,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Limits,
    Pair,
    of_length,
)
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.codec.http2_stream import END, Block, Inflow, LastBlock, ServerStream
from tcpgate.codec.sides import Content
from tcpgate.errors import Bug, ClientError, Reason, UpstreamError


def stream(method: bytes = b"GET", *more: Pair, end: bool = True, limit: int | None = None) -> ServerStream:
    pairs = ((b":method", method), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"t"), *more)
    judged = http2_request.judge(pairs, end=end, limits=Limits(), secure=False, rng=random.Random(1))
    return ServerStream(judged, HpackOut(), end=end, limit=limit)


def tunnel() -> ServerStream:
    pairs = (
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"t"),
    )
    judged = http2_request.judge(pairs, end=False, limits=Limits(), secure=False, rng=random.Random(1))
    return ServerStream(judged, HpackOut(), end=False)


def told(block: bytes) -> list[Pair]:
    """The fields of a header block, by the hpack library."""
    return [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)]


# -- requests -------------------------------------------------------------------------------------------------------


def test_a_request_without_content_ends_at_once() -> None:
    assert stream().next_event() == EndOfBody()


def test_content_comes_as_it_is_taken_from_the_inflow() -> None:
    codec = stream(b"POST", end=False)
    assert codec.next_event() is NEED_DATA
    codec.hear_data(b"hello", end=False)
    codec.hear_data(b" you", end=True)
    assert (codec.next_event(), codec.buffered) == (NEED_DATA, 9)  # nobody has taken it
    codec.receive(codec.inflow.take(6))
    assert (codec.next_event(), codec.next_event()) == (Data(b"hello "), NEED_DATA)
    codec.receive(codec.inflow.take(100))
    assert (codec.next_event(), codec.next_event(), codec.next_event()) == (Data(b"you"), EndOfBody(), NEED_DATA)


def test_trailers_end_the_content() -> None:
    codec = stream(b"POST", end=False)
    codec.hear_trailers(((b"x-sum", b"7"), (b"content-length", b"9")))
    assert codec.next_event() == EndOfBody(Fields([(b"x-sum", b"7")]))


def test_content_that_says_that_it_is_too_large_is_refused_when_it_is_read() -> None:
    codec = stream(b"POST", (b"content-length", b"11"), end=False, limit=10)
    with pytest.raises(ClientError) as caught:
        codec.next_event()
    assert caught.value.reason is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize("told_first", [True, False])
def test_a_client_waits_for_100_until_it_is_told_or_sends(told_first: bool) -> None:
    codec = stream(b"POST", (b"expect", b"100-continue"), end=False)
    assert codec.waiting_for_continue
    if told_first:
        codec.send_informational(100)
    else:
        codec.hear_data(b"x", end=False)
    assert not codec.waiting_for_continue


@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(1, 30))))
def test_what_goes_into_an_inflow_comes_out_in_order(steps: list[tuple[bytes, int]]) -> None:
    inflow, put, taken = Inflow(), b"", b""
    for data, most in steps:
        inflow.put(data)
        put += data
        piece = inflow.take(most)
        assert len(piece) <= most
        taken += piece
        assert inflow.size == len(put) - len(taken)
    assert taken + inflow.take(1 << 20) == put


# -- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "framing", "length", "last"),
    [
        (b"GET", 200, of_length(5), b"5", False),
        (b"GET", 200, of_length(0), b"0", True),
        (b"GET", 200, CHUNKED, None, False),
        (b"GET", 200, UNTIL_CLOSE, None, False),
        (b"GET", 200, NO_BODY, None, True),
        (b"GET", 204, of_length(0), None, True),
        (b"GET", 304, Framing(Kind.NONE, 7), b"7", True),
        (b"HEAD", 200, Framing(Kind.NONE, 7), b"7", True),
        (b"HEAD", 200, of_length(7), b"7", True),
        (b"HEAD", 200, CHUNKED, None, True),
    ],
)
def test_an_answers_head_has_the_length_that_it_may_and_is_the_end_where_it_must(
    method: bytes, status: int, framing: Framing, length: bytes | None, last: bool
) -> None:
    codec = stream(method)
    fields = Fields(
        [(b"X-A", b"1"), (b"Connection", b"x"), (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"99")]
    )
    block = codec.send_response(status, fields, framing, reason=b"Whatever", close=True)
    found = told(block)
    assert found[0] == (b":status", b"%d" % status)
    assert dict(found).get(b"content-length") == length
    assert {name for name, _ in found} <= {b":status", b"x-a", b"content-length"}
    assert isinstance(block, LastBlock) == last
    assert codec.responding
    assert codec.send_data(b"hello") == ([] if last else [b"hello"])
    assert codec.end() == (b"" if last else END)


def test_body_data_is_content_that_is_still_to_be_framed() -> None:
    codec = stream()
    codec.send_response(200, Fields(), CHUNKED)
    (data,) = codec.send_data(b"x")
    assert isinstance(data, Content)
    assert not codec.send_data(b"")


def test_trailers_are_the_last_block() -> None:
    codec = stream()
    codec.send_response(200, Fields(), CHUNKED)
    end = codec.end(Fields([(b"Grpc-Status", b"0")]))
    assert isinstance(end, LastBlock)
    assert told(end) == [(b"grpc-status", b"0")]
    assert codec.end() == b""  # and there is one end


def test_a_1xx_comes_before_the_answer_and_not_behind_it() -> None:
    codec = stream()
    early = codec.send_informational(103, Fields([(b"Link", b"</a>")]))
    assert isinstance(early, Block)
    assert not isinstance(early, LastBlock)
    assert told(early) == [(b":status", b"103"), (b"link", b"</a>")]
    codec.send_response(200, Fields(), NO_BODY)
    with pytest.raises(Bug):
        codec.send_informational(103)
    with pytest.raises(Bug):
        codec.send_response(200, Fields(), NO_BODY)


# -- tunnels --------------------------------------------------------------------------------------------------------


def accepted(codec: ServerStream) -> Fields:
    """The fields of a 101 that takes what was offered."""
    assert codec.request is not None
    key = codec.request.fields.get(b"sec-websocket-key") or b""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return Fields([(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Accept", base64.b64encode(digest))])


def test_a_101_is_200_and_what_comes_is_in_thetunnel() -> None:
    codec = tunnel()
    assert codec.next_event() == EndOfBody()  # the request has no content, whatever is in the tunnel
    assert told(codec.send_informational(101, accepted(codec))) == [(b":status", b"200")]
    codec.hear_data(b"frame", end=False)
    codec.receive(codec.inflow.take(2))
    assert codec.switched() == b"fr"


def test_a_101_with_another_accept_is_no_acceptance() -> None:
    for codec in (tunnel(), stream()):
        with pytest.raises(UpstreamError) as caught:
            codec.send_informational(101, Fields([(b"Sec-WebSocket-Accept", b"x")]))
        assert caught.value.reason is Reason.UPGRADE_FAILED


def test_a_2xx_that_is_no_101_is_not_passed_off_as_atunnel() -> None:
    codec = tunnel()
    with pytest.raises(UpstreamError):
        codec.send_response(200, Fields(), NO_BODY)
    assert isinstance(codec.send_response(403, Fields(), NO_BODY), LastBlock)


def test_a_stream_that_is_no_tunnel_has_nothing_in_it() -> None:
    with pytest.raises(Bug):
        stream().switched()
