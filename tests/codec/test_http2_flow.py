"""Flow control both ways: what may be sent, what is given back, and who waits for whom. RFC 9113 5.2, 6.9."""

from __future__ import annotations

import pytest

from tcpgate.codec.http2 import frames as f
from tcpgate.codec.http2.events import DataReceived, HeadersReceived, StreamReset, WindowOpened
from tcpgate.codec.http2.settings import Settings
from tests.codec.http2_peer import GET, OK, POST, Peer, block, data, frame, headers, settings


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


def update(stream: int, increment: int) -> bytes:
    return frame(f.WINDOW_UPDATE, 0, stream, word(increment))


def sizes(peer: Peer) -> list[tuple[int, int, bool]]:
    """(stream, bytes, ends) of the DATA frames that were heard."""
    return [
        (number, len(payload), bool(flags & f.END_STREAM))
        for kind, flags, number, payload in peer.heard()
        if kind == f.DATA
    ]


# -- out ------------------------------------------------------------------------------------------------------------


def test_data_is_cut_into_frames_that_every_peer_takes() -> None:
    peer = Peer()
    peer.say(headers(1))
    assert peer.machine.send_data(1, b"x" * 40_000, end=True) == 40_000
    assert sizes(peer) == [(1, 16384, False), (1, 16384, False), (1, 7232, True)]
    assert peer.machine.is_idle


def test_no_more_is_sent_than_the_streams_window_holds() -> None:
    peer = Peer()
    peer.say(settings((f.INITIAL_WINDOW_SIZE, 10)), headers(1))
    assert peer.machine.window(1) == 10
    assert peer.machine.send_data(1, b"x" * 15, end=True) == 10
    assert peer.machine.send_data(1, b"x" * 5, end=True) == 0
    assert sizes(peer) == [(1, 10, False)]
    assert peer.say(update(1, 3)) == [WindowOpened(1)]
    assert peer.say(update(1, 1)) == []
    assert peer.machine.send_data(1, b"x" * 5, end=True) == 4
    assert peer.say(update(1, 100)) == [WindowOpened(1)]
    assert peer.machine.send_data(1, b"x", end=True) == 1
    assert sizes(peer) == [(1, 4, False), (1, 1, True)]


def test_no_more_is_sent_than_the_connections_window_holds() -> None:
    peer = Peer()
    peer.say(settings((f.INITIAL_WINDOW_SIZE, 100_000)), headers(1), headers(3))
    assert peer.machine.send_data(1, b"x" * 100_000) == 65_535
    assert peer.machine.send_data(3, b"x") == 0
    assert peer.machine.window(3) == 0
    assert peer.say(update(0, 7)) == [WindowOpened(0)]
    assert peer.machine.send_data(3, b"x" * 9) == 7


def test_an_empty_end_needs_no_window() -> None:
    peer = Peer()
    peer.say(settings((f.INITIAL_WINDOW_SIZE, 0)), headers(1))
    assert peer.machine.send_data(1, b"") == 0
    assert sizes(peer) == []
    peer.machine.send_data(1, b"", end=True)
    assert sizes(peer) == [(1, 0, True)]
    assert peer.machine.is_idle


def test_a_smaller_initial_window_can_make_windows_negative() -> None:
    peer = Peer()
    peer.say(headers(1), headers(3))
    assert peer.machine.send_data(1, b"x" * 1000) == 1000
    assert peer.say(settings((f.INITIAL_WINDOW_SIZE, 400)))[:-1] == []
    assert peer.machine.window(1) == 0
    assert peer.machine.window(3) == 400
    assert peer.say(update(1, 600)) == []
    assert peer.machine.send_data(1, b"x") == 0
    assert peer.say(update(1, 1)) == [WindowOpened(1)]
    assert peer.say(settings((f.INITIAL_WINDOW_SIZE, 405)))[:-1] == []
    assert peer.machine.window(1) == 6


def test_a_larger_initial_window_opens_streams_that_wait() -> None:
    peer = Peer()
    peer.say(settings((f.INITIAL_WINDOW_SIZE, 0)), headers(1), headers(3))
    assert peer.say(settings((f.INITIAL_WINDOW_SIZE, 5)))[:-1] == [WindowOpened(1), WindowOpened(3)]


@pytest.mark.parametrize("size", [16_384, 20_000])
def test_a_large_head_is_cut_where_the_peer_wants_it_cut(size: int) -> None:
    peer = Peer()
    peer.say(settings((f.MAX_FRAME_SIZE, size)), headers(1))
    peer.heard()
    fields = (*OK, *[(b"a%d" % number, b"x" * 8000) for number in range(6)])
    peer.machine.send_headers(1, fields, end=True)
    heard = peer.heard()
    assert [kind for kind, *_ in heard] == [f.HEADERS] + [f.CONTINUATION] * (len(heard) - 1)
    assert [flags for _, flags, *_ in heard] == [f.END_STREAM, *[0] * (len(heard) - 2), f.END_HEADERS]
    assert {len(payload) for *_, payload in heard[:-1]} == {size}
    client = Peer("client", Settings(frame=size, header_list=100_000))
    client.machine.open_stream(GET, True)
    assert client.say(*[frame(*said) for said in heard]) == [HeadersReceived(1, fields, True)]


def test_a_peer_without_a_table_is_told_once_that_we_use_none() -> None:
    peer = Peer()
    peer.say(settings((f.HEADER_TABLE_SIZE, 0)), headers(1), headers(3))
    peer.heard()
    peer.machine.send_headers(1, OK, end=True)
    peer.say(settings((f.HEADER_TABLE_SIZE, 0)))
    peer.machine.send_headers(3, OK, end=True)
    assert [payload for kind, *_, payload in peer.heard() if kind == f.HEADERS] == [b"\x20\x88", b"\x88"]


# -- in -------------------------------------------------------------------------------------------------------------

NARROW = Settings(window=70_000, connection_window=100_000)


def test_credit_goes_out_only_for_what_was_acknowledged() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 4)
    assert peer.heard() == []
    peer.machine.acknowledge(1, 34_000)
    assert peer.heard() == []
    peer.machine.acknowledge(1, 16_000)
    assert peer.heard() == [(f.WINDOW_UPDATE, 0, 1, word(50_000)), (f.WINDOW_UPDATE, 0, 0, word(50_000))]


def test_no_more_credit_goes_out_than_there_was_data() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 4)
    peer.machine.acknowledge(1, 1_000_000)
    peer.machine.acknowledge(1, 1_000_000)
    assert peer.heard() == [(f.WINDOW_UPDATE, 0, 1, word(64_000)), (f.WINDOW_UPDATE, 0, 0, word(64_000))]


def test_the_stream_that_goes_beyond_its_window_is_reset_and_its_credit_not_lost() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 4)
    found = peer.say(data(1, b"x" * 6001))
    assert found == [StreamReset(1, f.FLOW_CONTROL_ERROR, True, "DATA: beyond the stream's window")]
    assert (f.WINDOW_UPDATE, 0, 0, word(70_001)) in peer.heard()


def test_padding_takes_its_part_of_the_window() -> None:
    peer = Peer(ours=Settings(window=65_535))
    padded = frame(f.DATA, f.PADDED, 1, bytes((255,)) + b"x" * 15_744 + bytes(255))
    peer.say(headers(1, POST, end=False), *[padded] * 4)
    assert peer.resets == []
    peer.say(data(1, b"x" * 1536))
    assert peer.resets == [(1, f.FLOW_CONTROL_ERROR, True)]


def test_the_peer_that_goes_beyond_the_connections_window_is_gone() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), headers(3, POST, end=False))
    peer.say(*[data(1, b"x" * 16_000)] * 4, *[data(3, b"x" * 12_000)] * 3)
    assert peer.failure() is None
    peer.say(data(3, b"x"))
    assert peer.failure() == f.FLOW_CONTROL_ERROR


def test_until_our_settings_are_acknowledged_the_default_window_is_borne() -> None:
    peer = Peer(ours=Settings(window=20_000), greeted=False)
    peer.say(f.PREFACE + settings(), headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 2)
    assert peer.resets == []
    peer.say(f.SETTINGS_ACK, data(1, b"x"))
    assert peer.resets == [(1, f.FLOW_CONTROL_ERROR, True)]


def test_what_is_unread_of_a_stream_that_ended_still_holds_its_room() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 3, data(1, b"x" * 8000, end=True))
    peer.machine.send_headers(1, OK, end=True)
    assert peer.machine.is_idle
    peer.heard()
    peer.machine.acknowledge(1, 30_000)
    assert peer.heard() == []
    peer.machine.acknowledge(1, 26_000)
    assert peer.heard() == [(f.WINDOW_UPDATE, 0, 0, word(56_000))]
    peer.machine.acknowledge(1, 50_000)
    assert peer.heard() == []


@pytest.mark.parametrize("how", ["release", "reset", "peer"])
def test_what_nobody_will_read_is_given_back_to_the_connection(how: str) -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 4)
    if how == "release":
        peer.say(data(1, b"", end=True))
        peer.machine.send_headers(1, OK, end=True)
        peer.machine.release(1)
    elif how == "reset":
        peer.machine.reset(1, f.NO_ERROR)
    else:
        peer.say(frame(f.RST_STREAM, 0, 1, word(f.CANCEL)))
    assert (f.WINDOW_UPDATE, 0, 0, word(64_000)) in peer.heard()
    peer.machine.acknowledge(1, 64_000)
    peer.machine.release(1)
    assert peer.heard() == []


def test_a_stream_that_ended_gets_no_credit_of_its_own() -> None:
    peer = Peer(ours=NARROW)
    peer.say(headers(1, POST, end=False), *[data(1, b"x" * 16_000)] * 3, data(1, b"x" * 9000, end=True))
    peer.machine.acknowledge(1, 57_000)
    assert peer.heard() == [(f.WINDOW_UPDATE, 0, 0, word(57_000))]


def test_an_upload_of_any_length_goes_through() -> None:
    peer = Peer()
    peer.say(headers(1, POST, end=False))
    room = {0: (1 << 20), 1: 64 << 10}
    total = 0
    while total < 3 << 20:
        count = min(16_000, *room.values())
        assert count, "the peer would wait for ever"
        [event] = peer.say(data(1, b"x" * count))
        assert isinstance(event, DataReceived)
        peer.machine.acknowledge(1, event.flow)
        total += count
        room = {number: left - count for number, left in room.items()}
        for _, _, number, payload in peer.heard():
            room[number] += int.from_bytes(payload, "big")
    assert peer.failure() is None


# -- the client's side ----------------------------------------------------------------------------------------------


def test_streams_of_ours_are_counted_and_bounded_by_the_peers_word() -> None:
    peer = Peer("client")
    peer.say(settings((f.MAX_CONCURRENT_STREAMS, 2)))
    assert [peer.machine.open_stream(GET, True) for _ in range(2)] == [1, 3]
    before = peer.machine.can_open
    peer.say(frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, block(OK)))
    assert (before, peer.machine.can_open) == (False, True)
    assert peer.machine.open_stream(GET, True) == 5


def test_a_goaway_gives_back_the_streams_that_were_not_looked_at() -> None:
    peer = Peer("client")
    for _ in range(3):
        peer.machine.open_stream(GET, True)
    peer.say(frame(f.GOAWAY, 0, 0, word(1) + word(0)))
    assert peer.resets == [(3, f.REFUSED_STREAM, False), (5, f.REFUSED_STREAM, False)]
    assert not peer.machine.can_open
    assert peer.machine.streams == 1


@pytest.mark.parametrize(
    ("method", "status", "body", "code"),
    [
        (b"GET", b"200", b"abc", None),
        (b"GET", b"200", b"ab", f.PROTOCOL_ERROR),
        (b"GET", b"200", b"", f.PROTOCOL_ERROR),
        (b"HEAD", b"200", b"", None),
        (b"HEAD", b"200", b"abc", f.PROTOCOL_ERROR),
        (b"GET", b"304", b"", None),
        (b"GET", b"204", b"", None),
        (b"GET", b"304", b"abc", f.PROTOCOL_ERROR),
    ],
)
def test_a_response_is_as_long_as_it_says(method: bytes, status: bytes, body: bytes, code: int | None) -> None:
    peer = Peer("client")
    peer.machine.open_stream(((b":method", method), *GET[1:]), True)
    peer.heard()
    head = ((b":status", status), (b"content-length", b"3"))
    peer.say(headers(1, head, end=not body), *([data(1, body, end=True)] if body else []))
    assert peer.reset(1) == code


def test_informational_heads_come_before_the_response() -> None:
    peer = Peer("client")
    peer.machine.open_stream(GET, True)
    early = ((b":status", b"103"), (b"link", b"</a>"))
    found = peer.say(headers(1, early, end=False), headers(1, OK, end=False), data(1, b"", end=True))
    assert found == [
        HeadersReceived(1, early, False, informational=True),
        HeadersReceived(1, OK, False),
        DataReceived(1, b"", 0, True),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        data(1, b"x"),
        headers(1, (*OK, (b"content-length", b"1"))),
        headers(1, ((b":status", b"100"),)),
        headers(1, ((b":status", b"101"),), end=False),
        headers(1, ((b"a", b"b"),), end=False),
        headers(1, OK, end=False) + headers(1, OK),
    ],
)
def test_a_malformed_response_ends_its_stream_alone(wrong: bytes) -> None:
    peer = Peer("client")
    peer.machine.open_stream(GET, True)
    peer.heard()
    peer.say(wrong)
    assert peer.reset(1) == f.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "wrong",
    [
        headers(1, OK),
        headers(2, OK),
        data(2, b"x"),
        frame(f.PUSH_PROMISE, f.END_HEADERS, 1, word(2) + block(GET)),
        settings((f.ENABLE_PUSH, 1)),
    ],
)
def test_a_server_that_opens_streams_ends_the_connection(wrong: bytes) -> None:
    peer = Peer("client")
    peer.say(wrong)
    assert peer.failure() == f.PROTOCOL_ERROR


def test_a_tunnel_has_no_length() -> None:
    peer = Peer("client")
    connect = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:])
    peer.machine.open_stream(connect, False)
    peer.say(headers(1, (*OK, (b"content-length", b"1")), end=False), data(1, b"abc"))
    assert isinstance(peer.events[-1], DataReceived)
    assert peer.machine.send_data(1, b"def") == 3
