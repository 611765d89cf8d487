"""The chunk scanner and the inbox by themselves: exact ends, faults in their place, work in step with the bytes."""

from __future__ import annotations

from typing import SupportsIndex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.blame import CLIENT, UPSTREAM_BODY, UPSTREAM_HEAD
from tcpgate.codec.chunked import ChunkScanner
from tcpgate.codec.events import Fields, Limits
from tcpgate.codec.inbox import Inbox, request_opening, response_opening
from tcpgate.errors import ClientError, GateError, Reason, Retry, UpstreamError
from tests.codec import messages

LIMITS = Limits()


class CountedBuffer(bytearray):
    """Counts the bytes that searches looked at."""

    looked_at = 0

    def find(self, sub: object, start: SupportsIndex | None = 0, end: SupportsIndex | None = None, /) -> int:
        assert isinstance(sub, bytes)
        found = super().find(sub, start, end)
        first = int(start or 0)
        stop = len(self) if end is None else int(end)
        self.looked_at += max(0, (stop if found < 0 else found + 1) - first)
        return found


def test_a_body_that_trickles_in_comes_out_as_it_came() -> None:
    scanner, buffer, got = ChunkScanner(LIMITS, CLIENT), bytearray(), b""
    for byte in b"4;x=y\r\nabcd\r\n2\r\nef\r\n0\r\nX-T: 1\r\n\r\n":
        assert not scanner.done
        buffer.append(byte)
        got += scanner.take(buffer)
    assert scanner.done
    assert got == b"abcdef"
    assert scanner.trailers == Fields([(b"X-T", b"1")])
    assert not buffer


@given(messages.bodies, st.binary(max_size=30), st.data())
def test_not_one_byte_after_the_end_is_eaten(body: bytes, rest: bytes, data: st.DataObject) -> None:
    scanner = ChunkScanner(LIMITS, CLIENT)
    buffer = bytearray(data.draw(messages.chunkings(body)) + b"0\r\n\r\n" + rest)
    assert scanner.take(buffer) == body
    assert scanner.done
    assert buffer == rest
    assert scanner.take(buffer) == b""
    assert buffer == rest


def test_what_came_before_a_fault_is_given_first() -> None:
    scanner, buffer = ChunkScanner(LIMITS, CLIENT), bytearray(b"2\r\nab\r\n2\r\ncdX")
    assert scanner.take(buffer) == b"abcd"
    for _ in range(2):
        with pytest.raises(ClientError, match="longer than its size"):
            scanner.take(buffer)


def test_the_fault_is_that_of_the_side_that_sent_it() -> None:
    with pytest.raises(UpstreamError) as caught:
        ChunkScanner(LIMITS, UPSTREAM_BODY).take(bytearray(b"x\r\n"))
    assert (caught.value.reason, caught.value.retry) == (Reason.UPSTREAM_PROTOCOL, Retry.NEVER)


def test_a_body_is_refused_by_the_size_line_that_makes_it_too_large() -> None:
    scanner = ChunkScanner(Limits(body=5), CLIENT)
    assert scanner.take(bytearray(b"3\r\nabc\r\n2\r\nde\r\n")) == b"abcde"
    with pytest.raises(ClientError) as caught:
        scanner.take(bytearray(b"1\r\n"))
    assert caught.value.reason is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize("size", [b"8000000000000000", b"ffffffffffffffff", b"00000000000000000"])
def test_a_size_that_a_recipient_could_wrap_is_refused(size: bytes) -> None:
    with pytest.raises(ClientError, match=r"2\^63"):
        ChunkScanner(LIMITS, CLIENT).take(bytearray(size + b"\r\n"))


def test_the_largest_size_is_only_a_size() -> None:
    scanner, buffer = ChunkScanner(LIMITS, CLIENT), bytearray(b"7fffffffffffffff\r\nabc")
    assert scanner.take(buffer) == b"abc"
    assert not scanner.done


def test_a_long_line_that_trickles_in_is_searched_once() -> None:
    buffer = CountedBuffer()
    scanner = ChunkScanner(LIMITS, CLIENT)
    scanner.take(buffer)
    line = b"1;" + b"a" * 1000 + b"\r\n"
    for byte in line:
        buffer.append(byte)
        scanner.take(buffer)
    assert buffer.looked_at <= 2 * len(line)


def fed(inbox: Inbox, reads: list[bytes]) -> bytes | None:
    """What the inbox has for a head after the last of `reads`."""
    head = None
    for read in reads:
        inbox.receive(read)
        head = inbox.take_head()
    return head


def test_a_head_that_trickles_in_is_searched_once() -> None:
    buffer = CountedBuffer()
    inbox = Inbox(LIMITS, CLIENT, request_opening(LIMITS), buffer=buffer)
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 30_000 + b"\r\n\r\n"
    assert fed(inbox, [raw[at : at + 1] for at in range(len(raw))]) == raw
    assert buffer.looked_at <= 3 * len(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x16\x03\x01", Reason.BAD_REQUEST),
        (b"A" * 9000, Reason.METHOD_UNSUPPORTED),
        (b"GET /" + b"a" * 9000, Reason.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 33000, Reason.HEAD_TOO_LARGE),
        (b"GET / HTTP/1.1\n", Reason.BAD_REQUEST),
        (b"\r\n\r\n", Reason.BAD_REQUEST),
    ],
)
def test_a_head_that_cannot_become_one_is_refused_before_its_end(raw: bytes, reason: Reason) -> None:
    for reads in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        inbox = Inbox(LIMITS, CLIENT, request_opening(LIMITS), blanks=1)
        with pytest.raises(ClientError) as caught:
            fed(inbox, reads)
        assert caught.value.reason is reason


@pytest.mark.parametrize("limits", [Limits(head=1024, target=64), Limits(head=1024, target=8192)])
@given(length=st.integers(1, 1200), data=st.data())
def test_limits_do_not_depend_on_the_reads(limits: Limits, length: int, data: st.DataObject) -> None:
    raw = b"GET /" + b"a" * length + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    outcomes = set()
    for reads in ([raw], data.draw(messages.splits(raw)), [raw[at : at + 1] for at in range(len(raw))]):
        outcomes.add(_outcome(limits, reads))
    assert len(outcomes) == 1


def _outcome(limits: Limits, reads: list[bytes]) -> object:
    inbox = Inbox(limits, CLIENT, request_opening(limits))
    try:
        return fed(inbox, reads)
    except GateError as fault:
        return fault.reason, fault.detail


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"S", Reason.UPSTREAM_PROTOCOL),
        (b"HTTP/2", Reason.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 " + b"a" * 33000, Reason.UPSTREAM_HEAD_TOO_LARGE),
        (b"\r\n", Reason.UPSTREAM_PROTOCOL),
    ],
)
def test_what_cannot_become_a_response_is_refused_at_once(raw: bytes, reason: Reason) -> None:
    inbox = Inbox(LIMITS, UPSTREAM_HEAD, response_opening(LIMITS))
    inbox.receive(raw)
    with pytest.raises(UpstreamError) as caught:
        inbox.take_head()
    assert caught.value.reason is reason
