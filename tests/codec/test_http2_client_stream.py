"""One stream to an endpoint as a codec: what a request becomes, and what an answer means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import (
    CHUNKED,
    NEED_DATA,
    NO_BODY,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Pair,
    ResponseHead,
    of_length,
)
from tcpgate.codec.grammar import parse_response
from tcpgate.codec.http1 import MAX_INFORMATIONAL
from tcpgate.codec.http2.headers import HpackOut
from tcpgate.codec.http2.responses import judge_response
from tcpgate.codec.http2_client_stream import ClientStream
from tcpgate.codec.http2_stream import END, Block, LastBlock
from tcpgate.codec.sides import Content
from tcpgate.errors import Bug, GateError, Reason, Refused, UpstreamError

HOST: Pair = (b"Host", b"t.example")
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def stream(*, secure: bool = False, tunnels: bool = False) -> ClientStream:
    """A new one."""
    return ClientStream(HpackOut(), secure=secure, tunnels=tunnels)


def asked(method: bytes = b"GET", framing: Framing = NO_BODY, **more: bool) -> ClientStream:
    """One whose request has gone."""
    made = stream(**more)
    made.send_request(method, b"/", Fields([HOST]), framing)
    made.end()
    return made


def said(block: bytes) -> list[Pair]:
    """The fields of a header block."""
    return [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)]


def events(codec: ClientStream) -> list[object]:
    """All that it has to say now, the carrier's part being done as it would be."""
    found: list[object] = []
    while True:
        if codec.inflow.size:
            codec.receive(codec.inflow.take(1 << 20))
        event = codec.next_event()
        if event is NEED_DATA:
            return found
        found.append(event)
        if isinstance(event, EndOfBody):
            return found


# -- requests -------------------------------------------------------------------------------------------------------


def test_a_request_has_its_pseudo_header_fields_first_and_nothing_of_a_connection() -> None:
    fields = Fields(
        [
            HOST,
            (b"X-A", b"1"),
            (b"Connection", b"TE, upgrade"),
            (b"TE", b"trailers"),
            (b"Keep-Alive", b"5"),
            (b"Upgrade", b"echo"),
            (b"Content-Length", b"77"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Expect", b"100-continue"),
        ]
    )
    block = stream().send_request(b"PUT", b"/a?b", fields, of_length(3), upgrade=b"echo")
    assert type(block) is Block
    assert said(block) == [
        (b":method", b"PUT"),
        (b":scheme", b"http"),
        (b":authority", b"t.example"),
        (b":path", b"/a?b"),
        (b"x-a", b"1"),
        (b"te", b"trailers"),
        (b"expect", b"100-continue"),
        (b"content-length", b"3"),
    ]


def test_the_scheme_is_that_of_the_connection() -> None:
    assert (b":scheme", b"https") in said(stream(secure=True).send_request(b"GET", b"/", Fields([HOST]), NO_BODY))


@pytest.mark.parametrize("framing", [NO_BODY, of_length(0)])
def test_a_request_without_content_ends_with_its_head(framing: Framing) -> None:
    codec = stream()
    assert isinstance(codec.send_request(b"GET", b"*", Fields([HOST]), framing), LastBlock)
    assert codec.end(Fields([(b"x-a", b"1")])) == b""


def test_content_is_framed_by_the_carrier_and_trailers_follow_only_an_unknown_length() -> None:
    codec = stream()
    codec.send_request(b"POST", b"/", Fields([HOST]), CHUNKED)
    assert codec.send_data(b"") == []
    (piece,) = codec.send_data(b"abc")
    assert isinstance(piece, Content)
    end = codec.end(Fields([(b"X-Sum", b"1")]))
    assert isinstance(end, LastBlock)
    assert said(end) == [(b"x-sum", b"1")]

    codec = stream()
    codec.send_request(b"POST", b"/", Fields([HOST]), of_length(3))
    assert codec.end(Fields([(b"X-Sum", b"1")])) is END


def test_a_stream_has_one_request() -> None:
    assert stream().can_reuse
    codec = asked()
    assert not codec.can_reuse
    with pytest.raises(Bug):
        codec.send_request(b"GET", b"/", Fields([HOST]), NO_BODY)


# -- responses ------------------------------------------------------------------------------------------------------


def test_a_response_is_a_head_some_data_and_an_end_with_trailers() -> None:
    codec = asked()
    assert codec.next_event() is NEED_DATA
    codec.hear_head(((b":status", b"200"), (b"x-a", b"1")), end=False)
    codec.hear_data(b"abc", end=False)
    head, data = events(codec)
    assert isinstance(head, ResponseHead)
    assert (head.status, head.reason, head.version, head.framing) == (200, b"OK", b"2.0", CHUNKED)
    assert head.fields.get(b"x-a") == b"1"
    assert data == Data(b"abc")
    codec.hear_data(b"d", end=False)
    codec.hear_trailers(((b"x-sum", b"2"), (b"content-length", b"3")))
    assert events(codec) == [Data(b"d"), EndOfBody(Fields([(b"x-sum", b"2")]))]


@pytest.mark.parametrize(
    ("method", "status", "length", "end", "framing"),
    [
        (b"GET", b"200", b"5", False, of_length(5)),
        (b"GET", b"200", None, False, CHUNKED),
        (b"GET", b"200", None, True, of_length(0)),
        (b"GET", b"200", b"0", True, of_length(0)),
        (b"GET", b"204", None, True, NO_BODY),
        (b"GET", b"204", None, False, NO_BODY),
        (b"GET", b"304", b"9", True, Framing(Kind.NONE, 9)),
        (b"HEAD", b"200", b"9", True, Framing(Kind.NONE, 9)),
        (b"HEAD", b"200", None, True, NO_BODY),
        (b"POST", b"500", None, True, of_length(0)),
    ],
)
def test_the_framing_of_a_response_is_what_the_stream_says(
    method: bytes, status: bytes, length: bytes | None, end: bool, framing: Framing
) -> None:
    codec = asked(method)
    fields = ((b":status", status), *(() if length is None else ((b"content-length", length),)))
    codec.hear_head(fields, end=end)
    head = codec.next_event()
    assert isinstance(head, ResponseHead)
    assert head.framing == framing
    assert codec.next_event() == (EndOfBody() if end else NEED_DATA)


def test_informational_heads_come_before_the_final_one_and_are_bounded() -> None:
    codec = asked()
    codec.hear_head(((b":status", b"100"),), end=False)
    codec.hear_head(((b":status", b"103"), (b"link", b"</a>")), end=False)
    before = codec.answered
    codec.hear_head(((b":status", b"200"),), end=True)
    assert (before, codec.answered) == (False, True)
    statuses = [event.status for event in events(codec) if isinstance(event, ResponseHead)]
    assert statuses == [100, 103, 200]

    codec = asked()
    for _ in range(MAX_INFORMATIONAL + 1):
        codec.hear_head(((b":status", b"103"),), end=False)
    for _ in range(2):
        with pytest.raises(UpstreamError, match="1xx"):
            codec.next_event()


def test_what_the_grammar_refuses_is_refused_again_and_again() -> None:
    codec = asked()
    codec.hear_head(((b":status", b"200"), (b"a", b"x" * (65 << 10))), end=True)
    for _ in range(2):
        with pytest.raises(UpstreamError) as failed:
            codec.next_event()
        assert failed.value.reason is Reason.UPSTREAM_HEAD_TOO_LARGE


# -- WebSockets -----------------------------------------------------------------------------------------------------

UPGRADE = Fields([HOST, (b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Sec-WebSocket-Key", KEY)])


def test_a_websocket_is_an_extended_connect_and_its_2xx_the_101() -> None:
    codec = stream(tunnels=True)
    block = codec.send_request(b"GET", b"/chat", UPGRADE, NO_BODY, upgrade=b"websocket")
    assert type(block) is Block
    assert codec.method == b"CONNECT"
    assert said(block) == [
        (b":method", b"CONNECT"),
        (b":scheme", b"http"),
        (b":authority", b"t.example"),
        (b":path", b"/chat"),
        (b":protocol", b"websocket"),
    ]
    assert codec.end() == b""
    codec.hear_head(((b":status", b"200"), (b"content-length", b"5"), (b"sec-websocket-accept", b"mine")), end=False)
    codec.hear_data(b"early", end=False)
    codec.receive(codec.inflow.take(100))
    head = codec.next_event()
    assert isinstance(head, ResponseHead)
    assert (head.status, head.upgrade) == (101, b"websocket")
    assert head.fields.all(b"sec-websocket-accept") == [ACCEPT]
    assert codec.next_event() is NEED_DATA
    assert codec.switched() == b"early"


def test_an_answer_to_a_websocket_that_is_none_is_an_answer() -> None:
    codec = stream(tunnels=True)
    codec.send_request(b"GET", b"/chat", UPGRADE, NO_BODY, upgrade=b"websocket")
    codec.hear_head(((b":status", b"403"),), end=True)
    head, end = events(codec)
    assert isinstance(head, ResponseHead)
    assert (head.status, head.framing, end) == (403, of_length(0), EndOfBody())
    with pytest.raises(Bug):
        codec.switched()


def test_a_websocket_that_the_endpoint_does_not_take_is_refused_by_us() -> None:
    with pytest.raises(Refused) as failed:
        stream().send_request(b"GET", b"/chat", UPGRADE, NO_BODY, upgrade=b"websocket")
    assert failed.value.reason is Reason.UPGRADE_FAILED


# -- both protocols mean the same -----------------------------------------------------------------------------------

_names = st.sampled_from(
    [b"x-a", b"set-cookie", b"content-type", b"content-length", b"via", b"date", b"connection", b"X"]
)
_values = st.sampled_from([b"", b"0", b"3", b"03", b"a b", b"close", b"\x00", b"\xff", b"a\r\nb: c", b" a"])


@given(
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.sampled_from([b"200", b"204", b"304", b"404", b"599"]),
    st.lists(st.tuples(_names, _values), max_size=4),
)
def test_what_the_machine_lets_through_means_what_it_would_in_http_1(
    method: bytes, status: bytes, pairs: list[Pair]
) -> None:
    fields = ((b":status", status), *pairs)
    if judge_response(fields).problem:
        return
    codec = asked(method)
    codec.hear_head(fields, end=False)
    lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    if b"content-length" not in dict(pairs) and status not in (b"204", b"304") and method != b"HEAD":
        lines += b"transfer-encoding: chunked\r\n"
    head = b"HTTP/1.1 %b \r\n%b\r\n" % (status, lines)
    assert meaning(codec.next_event) == meaning(lambda: parse_response(head, method))


def meaning(tell: Callable[[], object]) -> object:
    """What a head says that is not about its protocol, or why it is none."""
    try:
        head = tell()
    except GateError as exc:
        return exc.reason
    assert isinstance(head, ResponseHead)
    return head.status, head.framing, head.fields


@given(st.lists(st.binary(max_size=20), max_size=8), st.booleans())
def test_content_comes_out_as_it_went_in_however_it_is_cut(pieces: list[bytes], trailers: bool) -> None:
    codec = asked()
    codec.hear_head(((b":status", b"200"),), end=False)
    found: list[object] = events(codec)
    for piece in pieces:
        codec.hear_data(piece, end=False)
        found += events(codec)
    if trailers:
        codec.hear_trailers(((b"a", b"b"),))
    else:
        codec.hear_data(b"", end=True)
    found += events(codec)
    assert b"".join(event.data for event in found if isinstance(event, Data)) == b"".join(pieces)
    assert found[-1] == EndOfBody(Fields([(b"a", b"b")] if trailers else []))
