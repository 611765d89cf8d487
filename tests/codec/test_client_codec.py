"""The endpoint's side of the codec, as its driver uses it."""

from __future__ import annotations

import pytest

from tcpgate.codec.events import (
    CHUNKED,
    CLOSED,
    NEED_DATA,
    NO_BODY,
    Data,
    EndOfBody,
    Fields,
    Framing,
    ResponseHead,
    of_length,
)
from tcpgate.codec.http1 import MAX_INFORMATIONAL, ClientCodec
from tcpgate.errors import Bug, Reason, Retry, UpstreamError

HOST = Fields([(b"Host", b"a.test")])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def asked(codec: ClientCodec | None = None, method: bytes = b"GET") -> ClientCodec:
    """A codec that has sent a whole request."""
    codec = codec or ClientCodec()
    codec.send_request(method, b"/", HOST, NO_BODY)
    codec.end()
    return codec


def answered(codec: ClientCodec, raw: bytes = OK) -> ClientCodec:
    """`codec` after the endpoint sent `raw`, a whole response."""
    codec.receive(raw)
    read_on(codec)
    return codec


def read_on(codec: ClientCodec) -> None:
    """Events until nothing more is to be read now."""
    while codec.next_event() not in (NEED_DATA, CLOSED):
        pass


def reusable(codec: ClientCodec) -> bool:
    """`can_reuse`, asked anew: to mypy it would stay what it once was."""
    return codec.can_reuse


def test_an_exchange_and_another_on_the_same_connection() -> None:
    codec = ClientCodec()
    assert codec.next_event() is NEED_DATA
    request = codec.send_request(b"POST", b"/x", HOST, of_length(5))
    assert request == b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n"
    assert codec.send_data(b"hello") == [b"hello"]
    assert codec.send_data(b"") == []
    assert codec.end() == b""
    assert codec.next_event() is NEED_DATA
    codec.receive(OK)
    head = codec.next_event()
    assert isinstance(head, ResponseHead)
    assert (head.status, head.reason, head.framing) == (200, b"OK", of_length(2))
    assert codec.next_event() == Data(b"ok")
    assert codec.next_event() == EndOfBody()
    assert reusable(codec)
    answered(asked(codec))
    assert codec.exchanges == 2
    assert reusable(codec)


@pytest.mark.parametrize(
    ("framing", "line"),
    [(NO_BODY, b""), (of_length(0), b"Content-Length: 0\r\n"), (CHUNKED, b"Transfer-Encoding: chunked\r\n")],
)
def test_framing_fields_come_from_the_framing_alone(framing: Framing, line: bytes) -> None:
    lies = HOST.plus([(b"Content-Length", b"99"), (b"Transfer-Encoding", b"gzip")])
    assert ClientCodec().send_request(b"POST", b"/", lies, framing).endswith(b"a.test\r\n" + line + b"\r\n")


def test_trailers_go_out_only_with_chunks() -> None:
    trailers = Fields([(b"X-Sum", b"1")])
    codec = ClientCodec()
    codec.send_request(b"POST", b"/", HOST, CHUNKED)
    assert codec.send_data(b"ab") == [b"2\r\n", b"ab", b"\r\n"]
    assert codec.end(trailers) == b"0\r\nX-Sum: 1\r\n\r\n"
    codec = ClientCodec()
    codec.send_request(b"POST", b"/", HOST, of_length(0))
    assert codec.end(trailers) == b""


def test_a_connection_that_shall_close_is_not_used_again() -> None:
    codec = ClientCodec()
    assert b"Connection: close\r\n" in codec.send_request(b"GET", b"/", HOST, NO_BODY, close=True)
    codec.end()
    assert not answered(codec).can_reuse


@pytest.mark.parametrize("stray", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"x", b""])
def test_an_idle_connection_on_which_something_came_is_useless(stray: bytes) -> None:
    codec = answered(asked())
    assert reusable(codec)
    codec.receive(stray)
    assert not reusable(codec)
    assert codec.next_event() is (NEED_DATA if stray else CLOSED)
    with pytest.raises(UpstreamError) as caught:
        codec.send_request(b"GET", b"/", HOST, NO_BODY)
    assert caught.value.retry is Retry.IF_UNSENT


def test_an_answer_before_the_request_is_complete_ends_the_connections_use() -> None:
    codec = ClientCodec()
    codec.send_request(b"POST", b"/", HOST, of_length(5))
    answered(codec)
    assert not reusable(codec)
    codec.send_data(b"hello")
    codec.end()
    assert reusable(codec), "the request was sent to its end after all"


@pytest.mark.parametrize(
    ("used", "raw", "reason", "retry"),
    [
        (False, b"", Reason.UPSTREAM_CLOSED, Retry.SAFE),
        (True, b"", Reason.UPSTREAM_CLOSED, Retry.IF_REUSED),
        (True, b"HTTP/1.1 100 Continue\r\n\r\n", Reason.UPSTREAM_CLOSED, Retry.SAFE),
        (False, b"HTTP/1.1 2", Reason.UPSTREAM_INCOMPLETE, Retry.SAFE),
        (False, OK[:-1], Reason.UPSTREAM_INCOMPLETE, Retry.NEVER),
        (False, b"nonsense", Reason.UPSTREAM_PROTOCOL, Retry.SAFE),
    ],
)
def test_an_answer_that_breaks_says_whether_to_ask_elsewhere(
    used: bool, raw: bytes, reason: Reason, retry: Retry
) -> None:
    codec = asked(answered(asked())) if used else asked()
    if raw:
        codec.receive(raw)
    codec.receive(b"")
    for _ in range(2):
        with pytest.raises(UpstreamError) as caught:
            read_on(codec)
        assert (caught.value.reason, caught.value.retry) == (reason, retry)
    assert not reusable(codec)
    assert not codec.wants_data


def test_a_body_until_close_ends_with_the_connection() -> None:
    codec = asked()
    codec.receive(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert isinstance(codec.next_event(), ResponseHead)
    assert codec.next_event() == Data(b"abc")
    assert codec.next_event() is NEED_DATA
    codec.receive(b"d")
    codec.receive(b"")
    assert codec.next_event() == Data(b"d")
    assert codec.next_event() == EndOfBody()
    assert codec.next_event() is CLOSED
    assert not reusable(codec)


def test_informational_heads_come_before_the_final_one() -> None:
    codec = asked()
    codec.receive(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
    hint = codec.next_event()
    assert isinstance(hint, ResponseHead)
    assert hint.informational
    final = codec.next_event()
    assert isinstance(final, ResponseHead)
    assert not final.informational


def test_an_endpoint_cannot_hint_for_ever() -> None:
    codec = asked()
    codec.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INFORMATIONAL + 1))
    for _ in range(MAX_INFORMATIONAL):
        assert isinstance(codec.next_event(), ResponseHead)
    with pytest.raises(UpstreamError, match="more than"):
        codec.next_event()


OFFER = HOST.plus([(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")])
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"


def test_a_tunnel_begins_with_what_the_endpoint_sent_into_it() -> None:
    codec = ClientCodec()
    codec.send_request(b"GET", b"/", OFFER, NO_BODY, upgrade=b"websocket")
    codec.end()
    codec.receive(SWITCH + b"\x81\x00")
    head = codec.next_event()
    assert isinstance(head, ResponseHead)
    assert head.upgrade == b"websocket"
    assert codec.switched() == b"\x81\x00"
    assert not reusable(codec)
    assert not codec.wants_data


def test_a_tunnel_cannot_begin_before_the_request_is_complete() -> None:
    codec = ClientCodec()
    codec.send_request(b"POST", b"/", OFFER, of_length(5), upgrade=b"websocket")
    codec.receive(SWITCH)
    with pytest.raises(UpstreamError) as caught:
        codec.next_event()
    assert caught.value.reason is Reason.UPGRADE_FAILED


def test_an_offer_that_was_not_sent_cannot_be_taken() -> None:
    codec = ClientCodec()
    codec.send_request(b"GET", b"/", HOST, NO_BODY, upgrade=b"websocket")
    codec.end()
    codec.receive(SWITCH)
    with pytest.raises(UpstreamError, match="h11 refuses"):
        codec.next_event()


def test_a_request_that_cannot_be_written_spoils_nothing_but_itself() -> None:
    codec = ClientCodec()
    with pytest.raises(Bug):
        codec.send_request(b"GET", b"/", HOST.plus([(b"X", b"a\r\nb")]), NO_BODY)
    with pytest.raises(Bug):
        codec.switched()
    assert codec.exchanges == 0


def test_a_big_body_is_passed_on_in_the_reads_that_it_came_in() -> None:
    codec = asked()
    codec.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    codec.next_event()
    for _ in range(2):
        codec.receive(bytes(100_000))
        assert codec.next_event() == Data(bytes(100_000))
    assert codec.next_event() == EndOfBody()
