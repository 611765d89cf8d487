"""Properties of the HTTP/2 machine: any split of the bytes is the same talk; nothing that is sent makes it raise."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.codec.http2 import frames as f
from tcpgate.codec.http2.events import ConnectionFailed, DataReceived, Event, HeadersReceived, StreamGone
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2.settings import Role
from tests.codec.http2_peer import GET, OK, POST, block, data, frame, headers
from tests.codec.http2_peer import settings as settings_frame

STREAMS = st.sampled_from([0, 1, 1, 3, 3, 5, 2, 7])
WORDS = st.sampled_from([0, 1, 8, 1000, 2**31 - 1, 2**31, 2**32 - 1]).map(lambda number: number.to_bytes(4, "big"))
HEADS = st.sampled_from(
    [
        GET,
        POST,
        (*POST, (b"content-length", b"5")),
        OK,
        ((b"a", b"b"),),
        (*GET, (b"connection", b"close")),
        ((b":method", b"CONNECT"), (b":authority", b"a:1")),
    ]
)
FRAMES = st.one_of(
    st.builds(lambda stream, fields, end: headers(stream, fields, end=end), STREAMS, HEADS, st.booleans()),
    st.builds(
        lambda stream, payload, end: data(stream, payload, end=end), STREAMS, st.binary(max_size=8), st.booleans()
    ),
    st.builds(lambda stream, fields: frame(f.HEADERS, 0, stream, block(fields)), STREAMS, HEADS),
    st.builds(lambda stream: frame(f.CONTINUATION, f.END_HEADERS, stream), STREAMS),
    st.builds(lambda stream, word: frame(f.RST_STREAM, 0, stream, word), STREAMS, WORDS),
    st.builds(lambda stream, word: frame(f.WINDOW_UPDATE, 0, stream, word), STREAMS, WORDS),
    st.builds(lambda number, word: settings_frame((number, int.from_bytes(word, "big"))), st.integers(0, 10), WORDS),
    st.builds(lambda stream, word: frame(f.PRIORITY, 0, stream, word + b"\1"), STREAMS, WORDS),
    st.sampled_from([f.SETTINGS_ACK, frame(f.PING, 0, 0, b"12345678"), frame(f.GOAWAY, 0, 0, bytes(8))]),
    st.builds(frame, st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary(max_size=20)),
)
TALKS = st.lists(FRAMES, max_size=12).map(b"".join)
ROLES: list[Role] = ["server", "client"]


def hear(role: Role, pieces: list[bytes]) -> tuple[list[Event], bytes]:
    """What the machine tells and says when a peer says `pieces`."""
    machine = Http2(role)
    if role == "client":
        machine.open_stream(GET, True)
        machine.open_stream(POST, False)
    events: list[Event] = []
    for piece in pieces:
        events += machine.receive(piece, 0.0)
    return events, bytes(machine.out)


@pytest.mark.parametrize("role", ROLES)
@settings(deadline=None, max_examples=100)
@given(talk=TALKS, cuts=st.lists(st.integers(0, 600), max_size=6), bytewise=st.booleans())
def test_any_split_of_the_bytes_is_the_same_conversation(
    role: Role, talk: bytes, cuts: list[int], bytewise: bool
) -> None:
    whole = (f.PREFACE if role == "server" else b"") + settings_frame() + talk
    places = range(len(whole) + 1) if bytewise else sorted({0, len(whole), *[cut for cut in cuts if cut < len(whole)]})
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    assert hear(role, pieces) == hear(role, [whole])


@pytest.mark.parametrize("role", ROLES)
@settings(deadline=None, max_examples=100)
@given(talk=st.one_of(TALKS, st.binary(max_size=200)), changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255))))
def test_nothing_that_a_peer_sends_makes_it_raise(role: Role, talk: bytes, changes: list[tuple[int, int]]) -> None:
    whole = bytearray((f.PREFACE if role == "server" else b"") + settings_frame() + talk)
    for place, byte in changes:
        whole[place % len(whole)] = byte
    events, _ = hear(role, [bytes(whole)])
    ends = [event for event in events if isinstance(event, ConnectionFailed)]
    assert ends in ([], [events[-1]] if events else [])
    told: dict[int, bool] = {}
    for event in events:
        if isinstance(event, HeadersReceived | DataReceived):
            assert not told.get(event.stream), "told after its end"
            told[event.stream] = event.end


def random_action(machine: Http2, rng: random.Random) -> None:
    """Something that a gateway might do next."""
    stream = rng.choice([1, 3, 5, 7, 9])
    try:
        match rng.randrange(9):
            case 0 if machine.may_send(stream):
                machine.send_headers(stream, OK, end=rng.random() < 0.2)
            case 1 if machine.may_send(stream):
                machine.send_data(stream, b"x" * rng.choice([0, 1, 100, 70_000]), end=rng.random() < 0.3)
            case 2:
                machine.acknowledge(stream, rng.choice([0, 1, 100, 1 << 20]))
            case 3:
                machine.release(stream)
            case 4 if rng.random() < 0.3:
                machine.reset(stream, f.CANCEL)
            case 5 if machine.role == "client" and machine.can_open:
                machine.open_stream(POST, rng.random() < 0.5)
            case 6 if machine.may_send(stream):
                machine.send_trailers(stream, rng.choice([(), ((b"a", b"b"),)]))
            case 7 if rng.random() < 0.1:
                machine.go_away()
            case 8:
                machine.take_out()
    except StreamGone:
        assert not machine.is_open(stream)


@pytest.mark.parametrize("role", ROLES)
@settings(deadline=None, max_examples=100)
@given(talk=st.lists(FRAMES, max_size=25), seed=st.integers(0, 2**32))
def test_the_books_balance_whatever_both_sides_do(role: Role, talk: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    machine = Http2(role)
    machine.receive((f.PREFACE if role == "server" else b"") + settings_frame(), 0.0)
    for said in talk:
        for _ in range(rng.randrange(3)):
            random_action(machine, rng)
        machine.receive(said, 0.0)
        if machine.is_failed:
            assert machine.streams == 0
            assert machine.receive(headers(99), 0.0) == []
            return
        # What the peer may send, what is unread, and what is owed make the window, always.
        unread = sum(stream.unread for stream in machine._streams.values()) + sum(machine._unread.values())
        assert machine._receivable + unread + machine._owed == machine.settings.connection_window
        for stream in machine._streams.values():
            assert stream.may_send or stream.may_receive
            assert stream.unread >= 0
            assert stream.id not in machine._unread
