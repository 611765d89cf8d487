"""Each MUST of RFC 9113 that a proxy's server side meets, over raw frames: which error, of the stream or of all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcpgate.codec.http2 import frames as f
from tcpgate.codec.http2.events import (
    DataReceived,
    GoAwayReceived,
    HeadersReceived,
    PingAcked,
    SettingsReceived,
    StreamGone,
)
from tcpgate.codec.http2.settings import Settings
from tests.codec.http2_peer import GET, POST, Peer, block, data, frame, headers, settings

H, E, P, Q = f.END_HEADERS, f.END_STREAM, f.PADDED, f.PRIORITY_FLAG
B = block(GET)
LENGTH_3 = (*POST, (b"content-length", b"3"))


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


OPEN = headers(1, POST, end=False)
DONE = headers(1)

# What ends the connection: sentence -> (frames after the greeting, error).
FATAL: dict[str, tuple[bytes, int]] = {
    "4.2 a frame larger than SETTINGS_MAX_FRAME_SIZE": (frame(f.DATA, 0, 1, b"x" * 16385)[:9], f.FRAME_SIZE_ERROR),
    "4.3 a block that is no HPACK": (frame(f.HEADERS, H | E, 1, b"\x80"), f.COMPRESSION_ERROR),
    "4.3 a block that is no HPACK on a stream that is over": (
        DONE + frame(f.HEADERS, H | E, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        f.COMPRESSION_ERROR,
    ),
    "4.3 another frame inside a header block": (frame(f.HEADERS, E, 1, B) + settings(), f.PROTOCOL_ERROR),
    "4.3 a frame of another stream inside a header block": (
        frame(f.HEADERS, E, 1, B) + frame(f.CONTINUATION, H, 3),
        f.PROTOCOL_ERROR,
    ),
    "5.5 an unknown frame inside a header block": (
        frame(f.HEADERS, E, 1, B) + frame(0x16, 0, 0, b"x"),
        f.PROTOCOL_ERROR,
    ),
    "5.1 idle: DATA": (data(1, b"x"), f.PROTOCOL_ERROR),
    "5.1 idle: RST_STREAM": (frame(f.RST_STREAM, 0, 1, word(8)), f.PROTOCOL_ERROR),
    "5.1 idle: WINDOW_UPDATE": (frame(f.WINDOW_UPDATE, 0, 1, word(8)), f.PROTOCOL_ERROR),
    "5.1 idle: CONTINUATION": (frame(f.CONTINUATION, H, 1, B), f.PROTOCOL_ERROR),
    "5.1.1 a stream of an even number": (headers(2), f.PROTOCOL_ERROR),
    "5.1.1 a stream below one that was opened": (headers(5) + headers(3), f.PROTOCOL_ERROR),
    "6.1 DATA on stream 0": (data(0, b"x"), f.PROTOCOL_ERROR),
    "6.1 DATA padded beyond its end": (OPEN + frame(f.DATA, P, 1, b"\x02x"), f.PROTOCOL_ERROR),
    "6.1 DATA without the pad length": (OPEN + frame(f.DATA, P, 1), f.FRAME_SIZE_ERROR),
    "6.2 HEADERS on stream 0": (headers(0), f.PROTOCOL_ERROR),
    "6.2 HEADERS padded beyond its end": (frame(f.HEADERS, H | E | P, 1, b"\x80" + B), f.PROTOCOL_ERROR),
    "6.2 HEADERS without the pad length": (frame(f.HEADERS, H | E | P, 1), f.FRAME_SIZE_ERROR),
    "6.2 HEADERS without the priority": (frame(f.HEADERS, H | E | Q, 1, b"\0\0\0"), f.FRAME_SIZE_ERROR),
    "6.3 PRIORITY on stream 0": (frame(f.PRIORITY, 0, 0, b"\0\0\0\1\1"), f.PROTOCOL_ERROR),
    "6.4 RST_STREAM on stream 0": (frame(f.RST_STREAM, 0, 0, word(8)), f.PROTOCOL_ERROR),
    "6.4 RST_STREAM that is not 4 bytes": (OPEN + frame(f.RST_STREAM, 0, 1, b"abc"), f.FRAME_SIZE_ERROR),
    "6.5 SETTINGS on a stream": (frame(f.SETTINGS, 0, 1), f.PROTOCOL_ERROR),
    "6.5 SETTINGS of 5 bytes": (frame(f.SETTINGS, 0, 0, b"12345"), f.FRAME_SIZE_ERROR),
    "6.5 an acknowledgement with a payload": (frame(f.SETTINGS, f.ACK, 0, b"123456"), f.FRAME_SIZE_ERROR),
    "6.5.2 ENABLE_PUSH 2": (settings((f.ENABLE_PUSH, 2)), f.PROTOCOL_ERROR),
    "6.5.2 INITIAL_WINDOW_SIZE 2^31": (settings((f.INITIAL_WINDOW_SIZE, 2**31)), f.FLOW_CONTROL_ERROR),
    "6.5.2 MAX_FRAME_SIZE 16383": (settings((f.MAX_FRAME_SIZE, 16383)), f.PROTOCOL_ERROR),
    "6.5.2 MAX_FRAME_SIZE 2^24": (settings((f.MAX_FRAME_SIZE, 2**24)), f.PROTOCOL_ERROR),
    "8441 ENABLE_CONNECT_PROTOCOL 2": (settings((f.ENABLE_CONNECT_PROTOCOL, 2)), f.PROTOCOL_ERROR),
    "8441 ENABLE_CONNECT_PROTOCOL taken back": (
        settings((f.ENABLE_CONNECT_PROTOCOL, 1), (f.ENABLE_CONNECT_PROTOCOL, 0)),
        f.PROTOCOL_ERROR,
    ),
    "9218 NO_RFC7540_PRIORITIES 2": (settings((f.NO_RFC7540_PRIORITIES, 2)), f.PROTOCOL_ERROR),
    "6.6 PUSH_PROMISE from a client": (OPEN + frame(f.PUSH_PROMISE, H, 1, word(2) + B), f.PROTOCOL_ERROR),
    "6.7 PING on a stream": (frame(f.PING, 0, 1, b"12345678"), f.PROTOCOL_ERROR),
    "6.7 PING of 6 bytes": (frame(f.PING, 0, 0, b"123456"), f.FRAME_SIZE_ERROR),
    "6.8 GOAWAY on a stream": (frame(f.GOAWAY, 0, 1, word(0) + word(0)), f.PROTOCOL_ERROR),
    "6.8 GOAWAY of 4 bytes": (frame(f.GOAWAY, 0, 0, word(0)), f.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE by 0 on the connection": (frame(f.WINDOW_UPDATE, 0, 0, word(0)), f.PROTOCOL_ERROR),
    "6.9 WINDOW_UPDATE of 3 bytes": (frame(f.WINDOW_UPDATE, 0, 0, b"abc"), f.FRAME_SIZE_ERROR),
    "6.9.1 the connection's window above 2^31-1": (
        frame(f.WINDOW_UPDATE, 0, 0, word(2**31 - 1)),
        f.FLOW_CONTROL_ERROR,
    ),
    "6.9.2 a stream's window above 2^31-1 by SETTINGS": (
        OPEN + frame(f.WINDOW_UPDATE, 0, 1, word(2**31 - 1 - 65535)) + settings((f.INITIAL_WINDOW_SIZE, 65536)),
        f.FLOW_CONTROL_ERROR,
    ),
    "6.10 CONTINUATION after END_HEADERS": (DONE + frame(f.CONTINUATION, H, 1, B), f.PROTOCOL_ERROR),
    "6.10 CONTINUATION on stream 0": (frame(f.HEADERS, E, 1, B) + frame(f.CONTINUATION, H, 0), f.PROTOCOL_ERROR),
    "6.10 DATA inside a header block": (OPEN + frame(f.HEADERS, E, 1, B) + data(1, b"x"), f.PROTOCOL_ERROR),
    "5.3.1 an idle stream that depends on itself": (frame(f.PRIORITY, 0, 1, b"\0\0\0\1\1"), f.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("bytes_", "code"), FATAL.values(), ids=FATAL)
def test_the_connection_ends(bytes_: bytes, code: int) -> None:
    peer = Peer()
    peer.say(bytes_)
    assert peer.failure() == code
    assert peer.machine.is_failed
    assert peer.machine.streams == 0
    assert peer.say(headers(9)) == []


# What ends the stream alone: sentence -> (frames after the greeting, error). The stream is 1.
RESET: dict[str, tuple[bytes, int]] = {
    "5.1 half closed: DATA": (DONE + data(1, b"x"), f.STREAM_CLOSED),
    "5.1 half closed: HEADERS": (DONE + headers(1), f.STREAM_CLOSED),
    "5.1 reset by the peer: DATA": (OPEN + frame(f.RST_STREAM, 0, 1, word(8)) + data(1, b"x"), f.STREAM_CLOSED),
    "5.1 reset by the peer: HEADERS": (OPEN + frame(f.RST_STREAM, 0, 1, word(8)) + headers(1), f.STREAM_CLOSED),
    "5.3.1 HEADERS that depend on themselves": (
        frame(f.HEADERS, H | E | Q, 1, b"\x80\0\0\1\1" + B),
        f.PROTOCOL_ERROR,
    ),
    "5.3.1 PRIORITY that depends on itself": (OPEN + frame(f.PRIORITY, 0, 1, b"\0\0\0\1\1"), f.PROTOCOL_ERROR),
    "6.3 PRIORITY of 4 bytes": (OPEN + frame(f.PRIORITY, 0, 1, b"\0\0\0\0"), f.FRAME_SIZE_ERROR),
    "6.9 WINDOW_UPDATE by 0": (OPEN + frame(f.WINDOW_UPDATE, 0, 1, word(0)), f.PROTOCOL_ERROR),
    "6.9.1 a window above 2^31-1": (OPEN + frame(f.WINDOW_UPDATE, 0, 1, word(2**31 - 1)), f.FLOW_CONTROL_ERROR),
    "8.1 trailers without END_STREAM": (OPEN + headers(1, ((b"a", b"b"),), end=False), f.PROTOCOL_ERROR),
    "8.1 trailers with a pseudo-header field": (OPEN + headers(1, ((b":path", b"/"),)), f.PROTOCOL_ERROR),
    "8.1.1 less than Content-Length": (headers(1, LENGTH_3, end=False) + data(1, b"ab", end=True), f.PROTOCOL_ERROR),
    "8.1.1 more than Content-Length": (headers(1, LENGTH_3, end=False) + data(1, b"abcd"), f.PROTOCOL_ERROR),
    "8.1.1 more than Content-Length in two frames": (
        headers(1, LENGTH_3, end=False) + data(1, b"abc") + data(1, b"d", end=True),
        f.PROTOCOL_ERROR,
    ),
    "8.1.1 Content-Length without content": (headers(1, (*POST, (b"content-length", b"1"))), f.PROTOCOL_ERROR),
    "8.1.1 less than Content-Length before trailers": (
        headers(1, LENGTH_3, end=False) + data(1, b"ab") + headers(1, ((b"a", b"b"),)),
        f.PROTOCOL_ERROR,
    ),
    "8.3.1 a request without a path": (headers(1, (GET[0], GET[1], GET[3])), f.PROTOCOL_ERROR),
    "8.5 trailers in a tunnel": (
        headers(1, ((b":method", b"CONNECT"), (b":authority", b"a.b:443")), end=False) + headers(1, ((b"a", b"b"),)),
        f.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize(("bytes_", "code"), RESET.values(), ids=RESET)
def test_the_stream_ends_and_the_others_go_on(bytes_: bytes, code: int) -> None:
    peer = Peer()
    peer.say(bytes_)
    assert peer.reset(1) == code
    assert peer.machine.streams == 0
    peer.say(headers(3))
    assert 3 in peer.requests


# What must be borne: sentence -> frames after which another request goes through and nothing was reset.
BORNE: dict[str, bytes] = {
    "4.1 the reserved bit": frame(f.HEADERS, H | E, 0x80000001, B),
    "4.1 flags that a type does not have": frame(f.PING, 0xFE, 0, b"12345678"),
    "5.5 an unknown frame": frame(0x16, 0xFF, 0, b"x" * 100) + frame(0xFF, 0, 7),
    "5.5 an unknown frame on a stream": OPEN + frame(0x10, 0, 1, b"u=1"),
    "6.5.2 an unknown setting": settings((0xFF, 7)),
    "6.3 PRIORITY on an idle stream": frame(f.PRIORITY, 0, 9, b"\0\0\0\1\1"),
    "6.3 PRIORITY on a closed stream": OPEN
    + frame(f.RST_STREAM, 0, 1, word(8))
    + frame(f.PRIORITY, 0, 1, b"\0\0\0\0\1"),
    "6.4 RST_STREAM twice": OPEN + frame(f.RST_STREAM, 0, 1, word(8)) * 2,
    "6.9 WINDOW_UPDATE on a stream that was reset": (
        OPEN + frame(f.RST_STREAM, 0, 1, word(8)) + frame(f.WINDOW_UPDATE, 0, 1, word(8))
    ),
    "6.8 GOAWAY": frame(f.GOAWAY, 0, 0, word(0) + word(0) + b"bye"),
    "6.5.3 an acknowledgement that nobody waits for": frame(f.SETTINGS, f.ACK, 0),
    "6.7 an answer to a PING that nobody sent": frame(f.PING, f.ACK, 0, b"12345678"),
}


@pytest.mark.parametrize("bytes_", BORNE.values(), ids=BORNE)
def test_it_is_borne(bytes_: bytes) -> None:
    peer = Peer()
    peer.say(bytes_, headers(11))
    assert 11 in peer.requests
    assert not [code for _, code, by_us in peer.resets if by_us]
    assert peer.failure() is None


# -- the beginning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"X", f.PREFACE[:-1] + b"X", b"PRI * HTTP/2.0\r\n\r\nSN"])
def test_what_does_not_begin_with_the_preface_is_refused_at_once(first: bytes) -> None:
    peer = Peer(greeted=False)
    peer.say(first)
    assert peer.failure() == f.PROTOCOL_ERROR


@pytest.mark.parametrize("first", [headers(1), frame(f.PING, 0, 0, b"12345678"), f.SETTINGS_ACK, frame(0x16, 0, 0)])
def test_settings_come_first_of_all(first: bytes) -> None:
    peer = Peer(greeted=False)
    peer.say(f.PREFACE + first)
    assert peer.failure() == f.PROTOCOL_ERROR


def test_our_settings_are_the_first_that_we_say() -> None:
    peer = Peer(greeted=False, ours=Settings(streams=7, window=70_000, header_list=5000))
    [(kind, flags, stream, payload), update] = peer.heard()
    assert (kind, flags, stream) == (f.SETTINGS, 0, 0)
    told = dict(f.read_settings(payload))
    assert told[f.MAX_CONCURRENT_STREAMS] == 7
    assert told[f.INITIAL_WINDOW_SIZE] == 70_000
    assert told[f.MAX_HEADER_LIST_SIZE] == 5000
    assert told[f.ENABLE_CONNECT_PROTOCOL] == told[f.NO_RFC7540_PRIORITIES] == 1
    assert update == (f.WINDOW_UPDATE, 0, 0, word((1 << 20) - 65535))


def test_a_client_begins_with_the_preface_and_wants_no_pushes() -> None:
    peer = Peer("client", greeted=False)
    assert bytes(peer.machine.out).startswith(f.PREFACE)
    told = dict(f.read_settings(peer.heard()[0][3]))
    assert told[f.ENABLE_PUSH] == 0
    assert f.MAX_CONCURRENT_STREAMS not in told


def test_a_head_that_has_begun_and_not_ended_can_be_seen() -> None:
    peer = Peer()
    seen = [peer.machine.is_within_head]
    for piece in (
        DONE[:12],
        DONE[12:],
        frame(f.HEADERS, E, 3, B),
        frame(f.CONTINUATION, H, 3),
        frame(f.PING, 0, 0, b""),
    ):
        peer.say(piece)
        seen.append(peer.machine.is_within_head)
    assert seen == [False, True, False, True, False, False]


# -- answers --------------------------------------------------------------------------------------------------------


def test_settings_and_pings_are_answered_in_order() -> None:
    peer = Peer()
    assert peer.say(settings((1, 0)), frame(f.PING, 0, 0, b"12345678")) == [SettingsReceived()]
    assert peer.heard() == [(f.SETTINGS, f.ACK, 0, b""), (f.PING, f.ACK, 0, b"12345678")]


def test_a_ping_of_ours_comes_back() -> None:
    peer = Peer()
    peer.machine.ping(b"abcdefgh")
    assert peer.heard() == [(f.PING, 0, 0, b"abcdefgh")]
    assert peer.say(frame(f.PING, f.ACK, 0, b"abcdefgh")) == [PingAcked(b"abcdefgh")]


def test_a_stream_above_the_limit_is_refused_and_its_table_entries_count() -> None:
    peer = Peer(ours=Settings(streams=1))
    inserted = b"\x40\x01a\x01b"
    peer.say(OPEN, frame(f.HEADERS, H | E, 3, B + inserted))
    assert peer.reset(3) == f.REFUSED_STREAM
    peer.say(data(1, b"", end=True))
    peer.machine.send_headers(1, ((b":status", b"204"),), end=True)
    [head] = peer.say(frame(f.HEADERS, H | E, 5, B + b"\xbe"))
    assert isinstance(head, HeadersReceived)
    assert head.fields == (*GET, (b"a", b"b"))


def test_what_comes_after_our_reset_is_ignored_but_decoded_and_its_window_given_back() -> None:
    peer = Peer(ours=Settings(connection_window=65535))
    peer.say(OPEN)
    peer.machine.reset(1, f.CANCEL)
    peer.heard()
    assert peer.say(data(1, b"x" * 16384), data(1, b"x" * 16384), headers(1, ((b"a", b"b"),))) == []
    assert peer.heard() == [(f.WINDOW_UPDATE, 0, 0, word(32768))]
    assert peer.failure() is None


def test_a_block_on_a_stream_that_both_sides_ended_ends_the_connection() -> None:
    peer = Peer()
    peer.say(DONE)
    peer.machine.send_headers(1, ((b":status", b"204"),), end=True)
    peer.heard()
    peer.say(headers(1))
    assert peer.failure() == f.STREAM_CLOSED


def test_data_on_a_stream_that_both_sides_ended_is_reset_once_and_told_to_nobody() -> None:
    peer = Peer()
    peer.say(DONE)
    peer.machine.send_headers(1, ((b":status", b"204"),), end=True)
    peer.heard()
    peer.say(data(1, b"x"), data(1, b"x"))
    assert peer.heard() == [(f.RST_STREAM, 0, 1, word(f.STREAM_CLOSED))]
    assert peer.resets == []


@pytest.mark.parametrize(("payload", "code"), [(b"\0\0\0\0", f.FRAME_SIZE_ERROR), (b"\0\0\0\1\1", f.PROTOCOL_ERROR)])
def test_a_wrong_priority_is_an_error_of_a_stream_that_has_ended_too(payload: bytes, code: int) -> None:
    peer = Peer()
    peer.say(DONE)
    peer.machine.send_headers(1, ((b":status", b"204"),), end=True)
    peer.heard()
    peer.say(frame(f.PRIORITY, 0, 1, payload))
    assert peer.reset(1) == code
    assert peer.resets == []


def test_connection_credit_is_not_lost_with_data_for_a_stream_that_has_ended() -> None:
    peer = Peer(ours=Settings(connection_window=65535))
    for stream in (1, 3, 5):
        peer.say(headers(stream))
        peer.machine.send_headers(stream, ((b":status", b"204"),), end=True)
        peer.say(data(stream, b"x" * 16_000))
    assert (f.WINDOW_UPDATE, 0, 0, word(48_000)) in peer.heard()


def test_a_head_in_many_frames_is_one_head() -> None:
    peer = Peer()
    half = len(B) // 2
    peer.say(frame(f.HEADERS, E, 1, B[:half]), frame(f.CONTINUATION, 0, 1), frame(f.CONTINUATION, H, 1, B[half:]))
    assert peer.events == [HeadersReceived(1, GET, True)]


def test_padding_is_taken_off_and_counts_for_the_window() -> None:
    peer = Peer()
    padded = frame(f.HEADERS, H | P | Q, 1, b"\x03" + b"\0\0\0\0\0" + block(POST) + b"\0\0\0")
    found = peer.say(padded, frame(f.DATA, P | E, 1, b"\x02ab\0\0"))
    assert found == [HeadersReceived(1, POST, False), DataReceived(1, b"ab", 5, True)]


def test_trailers_end_a_request() -> None:
    peer = Peer()
    found = peer.say(OPEN, data(1, b"a"), headers(1, ((b"a", b"b"),)))
    assert found[-1] == HeadersReceived(1, ((b"a", b"b"),), True, trailers=True)


def test_a_request_with_too_large_a_head_is_told_431_and_the_next_one_is_served() -> None:
    peer = Peer(ours=Settings(header_list=1024, headers=10))
    large = (*GET, (b"a", b"x" * 1024))
    many = (*GET, *[(b"a", b"b")] * 11)
    for number, fields in ((1, large), (3, many)):
        peer.say(headers(number, fields, end=False))
        assert peer.heard() == [
            (f.HEADERS, H | E, number, bytes((0x08, 3)) + b"431"),
            (f.RST_STREAM, 0, number, word(f.NO_ERROR)),
        ]
    peer.say(headers(5))
    assert peer.requests == [5]


# -- going away -----------------------------------------------------------------------------------------------------


def test_after_our_goaway_new_streams_are_ignored_and_old_ones_served() -> None:
    peer = Peer()
    peer.say(OPEN)
    peer.machine.go_away(last=f.LARGEST)
    before = peer.machine.is_closing
    peer.say(headers(3))
    peer.machine.go_away()
    assert (before, peer.machine.is_closing) == (False, True)
    assert [frame[3][:4] for frame in peer.heard()] == [word(f.LARGEST), word(3)]
    peer.say(headers(5, POST, end=False), data(5, b"x"), data(1, b"x", end=True))
    assert peer.requests == [1, 3]
    assert peer.heard() == []
    assert isinstance(peer.events[-1], DataReceived)


def test_a_later_goaway_never_takes_back_what_an_earlier_one_said() -> None:
    peer = Peer()
    peer.say(OPEN)
    peer.machine.go_away()
    peer.machine.go_away(last=f.LARGEST)
    assert [frame[3][:4] for frame in peer.heard()] == [word(1), word(1)]


def test_a_goaway_of_the_peer_is_told() -> None:
    peer = Peer()
    assert peer.say(frame(f.GOAWAY, 0, 0, word(0) + word(2) + b"bye")) == [GoAwayReceived(0, 2, b"bye")]
    assert peer.machine.is_closing


MISUSE: list[Callable[[Peer], object]] = [
    lambda peer: peer.machine.send_headers(1, ((b":status", b"200"),)),
    lambda peer: peer.machine.send_data(1, b"x"),
    lambda peer: peer.machine.send_trailers(1, ()),
]


@pytest.mark.parametrize("send", MISUSE)
def test_to_send_on_a_stream_that_is_over_says_so(send: Callable[[Peer], object]) -> None:
    peer = Peer()
    peer.say(OPEN, frame(f.RST_STREAM, 0, 1, word(8)))
    with pytest.raises(StreamGone):
        send(peer)
    peer.machine.reset(1, f.CANCEL)
    assert peer.heard() == []
