"""The client's side of the codec, as its driver uses it."""

from __future__ import annotations

import pytest

from tcpgate.codec.events import (
    CHUNKED,
    CLOSED,
    NEED_DATA,
    NO_BODY,
    NO_FIELDS,
    UNTIL_CLOSE,
    Data,
    EndOfBody,
    Fields,
    Framing,
    Kind,
    Limits,
    RequestHead,
    of_length,
)
from tcpgate.codec.http1 import READ_AHEAD, ServerCodec
from tcpgate.codec.machine import phrase
from tcpgate.errors import Bug, ClientError, Reason

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
PLAIN = Fields([(b"Content-Type", b"text/plain")])


def asked(raw: bytes = GET, limits: Limits | None = None) -> ServerCodec:
    """A codec whose client has sent `raw`, a request read to its end if it is all there."""
    codec = ServerCodec(limits or Limits())
    codec.receive(raw)
    assert isinstance(codec.next_event(), RequestHead)
    while isinstance(codec.next_event(), Data):
        pass
    return codec


def flag(codec: ServerCodec, name: str) -> bool:
    """A property asked anew: to mypy it would stay what it once was."""
    value = getattr(codec, name)
    assert isinstance(value, bool)
    return value


def read_on(codec: ServerCodec) -> None:
    """Events until nothing more is to be read now."""
    while codec.next_event() not in (NEED_DATA, CLOSED):
        pass


def head_of(method: bytes, version: bytes = b"1.1", *fields: bytes) -> bytes:
    return b"\r\n".join([b"%b / HTTP/%b" % (method, version), b"Host: a.test", *fields, b"", b""])


def test_an_exchange_from_head_to_head() -> None:
    codec = ServerCodec(Limits())
    assert flag(codec, "idle")
    assert codec.next_event() is NEED_DATA
    codec.receive(b"POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhel")
    assert not flag(codec, "idle")
    head = codec.next_event()
    assert isinstance(head, RequestHead)
    assert codec.request == head
    assert codec.next_event() == Data(b"hel")
    assert codec.next_event() is NEED_DATA
    codec.receive(b"lo" + GET)
    assert codec.next_event() == Data(b"lo")
    assert codec.next_event() == EndOfBody()
    assert codec.next_event() is NEED_DATA, "the next request waits for the end of this exchange"
    assert codec.buffered == len(GET)
    assert not flag(codec, "responding")
    assert codec.send_response(200, PLAIN, of_length(2)).endswith(b"Content-Length: 2\r\n\r\n")
    assert flag(codec, "responding")
    assert codec.send_data(b"ok") == [b"ok"]
    assert codec.end() == b""
    codec.next_exchange()
    assert vars(codec)["request"] is None
    assert not flag(codec, "responding")
    assert isinstance(codec.next_event(), RequestHead)


def test_body_data_is_sent_without_a_copy() -> None:
    big = bytes(100_000)
    for framing in (CHUNKED, of_length(len(big))):
        codec = asked()
        codec.send_response(200, PLAIN, framing)
        assert any(buffer is big for buffer in codec.send_data(big))
        assert codec.send_data(b"") == []


@pytest.mark.parametrize(
    ("method", "version", "status", "framing", "wanted"),
    [
        (b"GET", b"1.1", 200, of_length(3), b"Content-Length: 3"),
        (b"GET", b"1.1", 200, NO_BODY, b"Content-Length: 0"),
        (b"GET", b"1.1", 200, CHUNKED, b"Transfer-Encoding: chunked"),
        (b"GET", b"1.1", 200, UNTIL_CLOSE, b"Transfer-Encoding: chunked"),
        (b"GET", b"1.0", 200, CHUNKED, b""),
        (b"GET", b"1.0", 200, UNTIL_CLOSE, b""),
        (b"GET", b"1.1", 204, of_length(3), b""),
        (b"GET", b"1.1", 304, Framing(Kind.NONE, 3), b"Content-Length: 3"),
        (b"GET", b"1.1", 304, NO_BODY, b""),
        (b"HEAD", b"1.1", 200, of_length(3), b"Content-Length: 3"),
        (b"HEAD", b"1.1", 200, Framing(Kind.NONE, 3), b"Content-Length: 3"),
    ],
)
def test_the_framing_fields_are_those_that_this_client_can_take(
    method: bytes, version: bytes, status: int, framing: Framing, wanted: bytes
) -> None:
    codec = asked(head_of(method, version))
    lies = Fields([(b"Content-Length", b"99"), (b"transfer-encoding", b"gzip")])
    lines = codec.send_response(status, lies, framing).split(b"\r\n")
    found = [line for line in lines if line.lower().startswith((b"content-length", b"transfer-encoding"))]
    assert found == ([wanted] if wanted else [])


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_a_response_without_a_body_sends_none(method: bytes, status: int) -> None:
    codec = asked(head_of(method))
    codec.send_response(status, PLAIN, of_length(5))
    assert codec.send_data(b"hello") == []
    assert codec.end(Fields([(b"X-Sum", b"1")])) == b""
    assert flag(codec, "can_reuse")


def test_trailers_go_where_they_can() -> None:
    trailers = Fields([(b"X-Sum", b"1")])
    codec = asked()
    codec.send_response(200, PLAIN, CHUNKED)
    assert codec.end(trailers) == b"0\r\nX-Sum: 1\r\n\r\n"
    codec = asked(head_of(b"GET", b"1.0"))
    codec.send_response(200, PLAIN, CHUNKED)
    assert codec.send_data(b"x") == [b"x"]
    assert codec.end(trailers) == b""
    codec = asked()
    codec.send_response(200, PLAIN, of_length(0))
    assert codec.end(trailers) == b""


@pytest.mark.parametrize(
    ("raw", "close", "again"),
    [
        (GET, False, True),
        (GET, True, False),
        (head_of(b"GET", b"1.0"), False, False),
        (head_of(b"GET", b"1.0", b"Connection: keep-alive"), False, False),
        (head_of(b"GET", b"1.1", b"Connection: close"), False, False),
    ],
)
def test_close_is_said_where_the_connection_ends(raw: bytes, close: bool, again: bool) -> None:
    codec = asked(raw)
    out = codec.send_response(200, PLAIN, of_length(0), close=close)
    assert (b"Connection: close" in out) is not again
    codec.end()
    assert codec.can_reuse is again
    if not again:
        with pytest.raises(Bug):
            codec.next_exchange()


def test_an_answer_before_the_body_is_read_waits_for_the_body_to_reuse() -> None:
    codec = ServerCodec(Limits())
    codec.receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n")
    codec.next_event()
    codec.send_response(403, PLAIN, of_length(0))
    codec.end()
    assert not flag(codec, "can_reuse")
    codec.receive(b"hello" + GET)
    assert codec.next_event() == Data(b"hello")
    assert codec.next_event() == EndOfBody()
    assert flag(codec, "can_reuse")
    codec.next_exchange()
    assert isinstance(codec.next_event(), RequestHead)


EXPECTING = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def expecting() -> ServerCodec:
    codec = ServerCodec(Limits())
    codec.receive(EXPECTING)
    assert isinstance(codec.next_event(), RequestHead)
    assert codec.next_event() is NEED_DATA
    assert flag(codec, "waiting_for_continue")
    return codec


def test_a_client_waits_until_it_is_told_to_go_on() -> None:
    codec = expecting()
    assert codec.send_informational(103).startswith(b"HTTP/1.1 103 Early Hints\r\n")
    assert flag(codec, "waiting_for_continue")
    assert codec.send_informational(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not flag(codec, "waiting_for_continue")
    codec.receive(b"hello")
    codec.next_event()
    codec.next_event()
    assert b"close" not in codec.send_response(200, PLAIN, of_length(0))


def test_a_client_that_does_not_wait_is_not_waited_for() -> None:
    codec = expecting()
    codec.receive(b"h")
    assert codec.next_event() == Data(b"h")
    assert not flag(codec, "waiting_for_continue")


def test_a_client_that_waits_and_is_refused_cannot_be_heard_again() -> None:
    codec = expecting()
    assert b"Connection: close\r\n" in codec.send_response(413, PLAIN, of_length(0))
    codec.end()
    codec.receive(b"hello" + GET)
    while codec.next_event() != EndOfBody():
        pass
    assert not flag(codec, "can_reuse")


def test_no_1xx_for_a_1_0_client() -> None:
    codec = asked(head_of(b"GET", b"1.0"))
    assert codec.send_informational(103) == b""


UPGRADE = head_of(b"GET", b"1.1", b"Connection: upgrade", b"Upgrade: websocket")
SWITCH = Fields([(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")])


def test_a_tunnel_begins_with_what_the_client_sent_into_it() -> None:
    codec = asked(UPGRADE + b"\x81\x00")
    assert codec.send_informational(101, SWITCH).startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert not codec.wants_data
    assert codec.switched() == b"\x81\x00"
    assert codec.switched() == b""
    assert not flag(codec, "can_reuse")


def test_a_declined_upgrade_leaves_an_http_connection() -> None:
    codec = asked(UPGRADE + GET)
    codec.send_response(200, PLAIN, of_length(0))
    codec.end()
    codec.next_exchange()
    assert isinstance(codec.next_event(), RequestHead)


def test_a_101_is_said_only_to_a_complete_request_that_asked() -> None:
    with pytest.raises(Bug):
        asked().send_informational(101, SWITCH)
    codec = ServerCodec(Limits())
    codec.receive(head_of(b"GET", b"1.1", b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 5"))
    codec.next_event()
    with pytest.raises(Bug):
        codec.send_informational(101, SWITCH)
    with pytest.raises(Bug):
        codec.switched()
    with pytest.raises(Bug):
        ServerCodec(Limits()).send_informational(100)


def test_reading_stops_when_enough_is_held() -> None:
    codec = asked(GET)
    assert flag(codec, "wants_data")
    codec.receive(bytes(READ_AHEAD + 1))
    assert not flag(codec, "wants_data")
    codec = asked(GET, Limits(head=1 << 20))
    codec.receive(bytes(READ_AHEAD + 1))
    assert codec.wants_data, "a head may be as long as the limit says"


def test_an_end_between_requests_is_no_fault() -> None:
    codec = ServerCodec(Limits())
    codec.receive(b"\r\n")
    codec.receive(b"")
    assert codec.next_event() is CLOSED
    assert not codec.wants_data
    codec = asked()
    codec.receive(b"")
    assert codec.next_event() is CLOSED


@pytest.mark.parametrize("raw", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhell"])
def test_an_end_within_a_request_is_the_clients_abort(raw: bytes) -> None:
    codec = ServerCodec(Limits())
    codec.receive(raw)
    codec.receive(b"")
    with pytest.raises(ClientError) as caught:
        read_on(codec)
    assert caught.value.reason is Reason.CLIENT_ABORT


@pytest.mark.parametrize("before", [b"", GET])
def test_a_fault_is_answered_once_and_closes(before: bytes) -> None:
    codec = ServerCodec(Limits())
    if before:
        codec = asked(before)
        codec.send_response(200, PLAIN, of_length(0))
        codec.end()
        codec.next_exchange()
    codec.receive(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ClientError):
        codec.next_event()
    out = codec.send_response(400, PLAIN, of_length(4))
    assert out.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Content-Length: 4\r\nConnection: close\r\n\r\n" in out
    assert codec.send_data(b"nope") == [b"nope"]
    assert codec.end() == b""
    assert not flag(codec, "can_reuse")
    with pytest.raises(Bug):
        codec.send_response(400, PLAIN, of_length(0))
    with pytest.raises(Bug):
        codec.send_informational(100)


def test_a_fault_of_a_head_request_is_answered_without_a_body() -> None:
    codec = ServerCodec(Limits())
    codec.receive(b"HEAD / HTTP/1.1\r\n\r\n")
    with pytest.raises(ClientError):
        codec.next_event()
    assert b"Content-Length: 4\r\n" in codec.send_response(400, PLAIN, of_length(4))
    assert codec.send_data(b"nope") == []


def test_a_fault_while_a_response_goes_out_does_not_spoil_its_framing() -> None:
    codec = ServerCodec(Limits())
    codec.receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
    codec.next_event()
    codec.send_response(200, PLAIN, CHUNKED)
    codec.receive(b"x\r\n")
    with pytest.raises(ClientError):
        codec.next_event()
    assert b"".join(codec.send_data(b"ab")) == b"2\r\nab\r\n"
    assert codec.end() == b"0\r\n\r\n"
    assert not flag(codec, "can_reuse")


def test_a_body_above_the_limit_is_refused_with_the_limit() -> None:
    codec = ServerCodec(Limits(body=4))
    codec.receive(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
    assert isinstance(codec.next_event(), RequestHead)
    with pytest.raises(ClientError, match="more than 4 bytes") as caught:
        codec.next_event()
    assert caught.value.status == 413


def test_what_may_not_be_said_is_a_bug() -> None:
    codec = asked()
    with pytest.raises(Bug):
        codec.send_response(200, Fields([(b"X", b"a\r\nSet-Cookie: b")]), of_length(0))
    codec = asked()
    codec.send_response(200, PLAIN, of_length(1))
    with pytest.raises(Bug):
        codec.send_data(b"too much")
    codec = asked()
    codec.send_response(200, PLAIN, of_length(1))
    with pytest.raises(Bug):
        codec.end()


def test_after_a_fault_too_no_field_may_split_the_response() -> None:
    codec = ServerCodec(Limits())
    codec.receive(b"\x00")
    with pytest.raises(ClientError):
        codec.next_event()
    with pytest.raises(Bug):
        codec.send_response(400, Fields([(b"X", b"a\r\nSet-Cookie: b")]), of_length(0))


def test_a_phrase_is_passed_on_unless_it_would_split_the_response() -> None:
    assert asked().send_response(200, NO_FIELDS, NO_BODY, reason=b"All well").startswith(b"HTTP/1.1 200 All well\r\n")
    assert asked().send_response(200, NO_FIELDS, NO_BODY, reason=b"a\r\nb").startswith(b"HTTP/1.1 200 OK\r\n")
    assert asked().send_response(299, NO_FIELDS, NO_BODY).startswith(b"HTTP/1.1 299 \r\n")
    assert phrase(418) == b"I'm a Teapot"
