"""Floods: each ends its connection with ENHANCE_YOUR_CALM, within its budget, and honest peers never meet it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tcpgate.codec.http2 import floods
from tcpgate.codec.http2 import frames as f
from tcpgate.codec.http2.events import DataReceived
from tcpgate.codec.http2.settings import Settings
from tests.codec.http2_peer import GET, OK, POST, Peer, block, data, frame, headers, settings

CANCEL = f.CANCEL.to_bytes(4, "big")
ONE = (1).to_bytes(4, "big")


def until_it_ends(peer: Peer, say: Callable[[int], bytes], most: int) -> int:
    """How many times `say(number)` was said before the connection ended."""
    for number in range(most):
        peer.say(say(number))
        if peer.machine.is_failed:
            assert peer.failure() == f.ENHANCE_YOUR_CALM
            return number
        peer.machine.take_out()
    raise AssertionError("the flood was borne")


def stream_of(number: int) -> int:
    return 2 * number + 1


def rapid_reset(number: int) -> bytes:
    stream = stream_of(number)
    return headers(stream) + frame(f.RST_STREAM, 0, stream, CANCEL)


def made_to_reset(number: int) -> bytes:
    """The server is made to reset: no request is malformed, each stream is at fault afterwards (MadeYouReset)."""
    stream = stream_of(number)
    return headers(stream) + frame(f.WINDOW_UPDATE, 0, stream, bytes(4))


def malformed(number: int) -> bytes:
    return headers(stream_of(number), GET[1:])


def too_large(number: int) -> bytes:
    return headers(stream_of(number), (*GET, *[(b"a", b"b")] * 101))


def empty_names(number: int) -> bytes:
    return headers(stream_of(number), (*GET, *[(b"", b"")] * 50))


@pytest.mark.parametrize("say", [rapid_reset, made_to_reset, malformed, too_large, empty_names])
def test_streams_that_come_to_nothing_have_a_fixed_budget(say: Callable[[int], bytes]) -> None:
    peer = Peer(ours=Settings(resets=50, streams=1000))
    assert until_it_ends(peer, say, 60) == 50


def test_streams_above_the_limit_have_the_same_budget() -> None:
    peer = Peer(ours=Settings(resets=50, streams=10))
    assert until_it_ends(peer, lambda number: headers(stream_of(number)), 70) == 60


def test_resets_over_a_long_time_are_no_flood() -> None:
    peer = Peer(ours=Settings(resets=50))
    for number in range(500):
        peer.now += 1.0
        peer.say(rapid_reset(number))
        peer.machine.take_out()
    assert peer.failure() is None


def opened(first: bytes) -> Peer:
    peer = Peer()
    peer.say(headers(1, POST, end=False), first)
    peer.machine.take_out()
    return peer


SMALL: dict[str, Callable[[int], bytes]] = {
    "settings": lambda _: settings(),
    "settings with values": lambda number: settings((f.INITIAL_WINDOW_SIZE, number)),
    "ping": lambda _: frame(f.PING, 0, 0, b"12345678"),
    "answers to no ping": lambda _: frame(f.PING, f.ACK, 0, b"12345678"),
    "priority": lambda _: frame(f.PRIORITY, 0, 99, b"\0\0\0\1\1"),
    "window update": lambda _: frame(f.WINDOW_UPDATE, 0, 0, ONE),
    "window update of a stream": lambda _: frame(f.WINDOW_UPDATE, 0, 1, ONE),
    "empty data": lambda _: data(1, b""),
    "only padding": lambda _: frame(f.DATA, f.PADDED, 1, b"\x01\0"),
    "unknown frames": lambda _: frame(0xEE, 0, 0, b"x"),
    "goaway": lambda _: frame(f.GOAWAY, 0, 0, bytes(8)),
    "acknowledgements": lambda _: f.SETTINGS_ACK,
    "resets of a stream that is over": lambda _: frame(f.RST_STREAM, 0, 3, CANCEL),
    "window updates of a stream that is over": lambda _: frame(f.WINDOW_UPDATE, 0, 3, ONE),
}


@pytest.mark.parametrize("say", SMALL.values(), ids=SMALL)
def test_frames_that_are_of_no_use_are_bounded(say: Callable[[int], bytes]) -> None:
    peer = opened(headers(3) + frame(f.RST_STREAM, 0, 3, CANCEL))
    until_it_ends(peer, say, 5000)


def test_informational_heads_without_end_are_bounded() -> None:
    peer = Peer("client")
    peer.machine.open_stream(GET, True)
    until_it_ends(peer, lambda _: headers(1, ((b":status", b"100"),), end=False), 3000)


def test_a_header_block_without_end_is_bounded_in_frames() -> None:
    peer = Peer()
    peer.say(frame(f.HEADERS, 0, 1, b""))
    assert until_it_ends(peer, lambda _: frame(f.CONTINUATION, 0, 1, b""), 100) < floods.CONTINUATIONS


def test_a_header_block_without_end_is_bounded_in_bytes() -> None:
    peer = Peer()
    peer.say(frame(f.HEADERS, 0, 1, b"\x00" * 16_384))
    assert until_it_ends(peer, lambda _: frame(f.CONTINUATION, 0, 1, b"\x00" * 16_384), 100) == 7


def test_a_peer_that_does_not_read_its_answers_is_gone() -> None:
    peer = Peer()
    for number in range(600):
        peer.say(headers(stream_of(number)), frame(f.PING, 0, 0, b"12345678"))
        peer.machine.reset(stream_of(number), f.CANCEL)
    assert peer.failure() is None
    for number in range(600, 1100):
        peer.say(headers(stream_of(number)), frame(f.PING, 0, 0, b"12345678"))
    assert peer.failure() == f.ENHANCE_YOUR_CALM
    assert "does not read" in repr(peer.events[-1])
    assert len(peer.machine.out) < 64_000


def test_a_peer_that_reads_its_answers_may_go_on() -> None:
    peer = Peer()
    for number in range(3000):
        peer.say(headers(stream_of(number)), frame(f.PING, 0, 0, b"12345678"))
        peer.machine.reset(stream_of(number), f.CANCEL)
        peer.machine.take_out()
    assert peer.failure() is None


def test_a_bomb_costs_one_stream_and_no_memory() -> None:
    peer = Peer()
    peer.say(headers(1, POST, end=False))
    large = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000
    peer.say(frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 3, block(GET) + large))
    peer.say(frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 5, block(GET) + b"\xbe" * 16_000))
    assert peer.requests == [1, 3]
    assert peer.failure() is None
    assert peer.machine.streams == 2


def test_tiny_windows_make_us_hold_nothing() -> None:
    peer = Peer()
    peer.say(settings((f.INITIAL_WINDOW_SIZE, 1)), *[headers(stream_of(number)) for number in range(100)])
    for number in range(100):
        peer.machine.send_headers(stream_of(number), OK)
        assert peer.machine.send_data(stream_of(number), b"x" * 1_000_000, end=True) == 1
    assert len(peer.machine.out) < 100 * 40


def test_many_streams_one_after_another_leave_nothing_behind() -> None:
    peer = Peer()
    sizes: list[int] = []
    for number in range(6000):
        peer.machine.receive(headers(stream_of(number)), 0.0)
        if number % 2:
            peer.machine.send_headers(stream_of(number), OK, end=True)
        else:
            peer.machine.reset(stream_of(number), f.CANCEL)
        peer.machine.take_out()
        if number in (2999, 5999):
            # Whatever the machine holds, in whichever of its tables.
            slots = [name for kind in type(peer.machine).__mro__ for name in getattr(kind, "__slots__", ())]
            held = [getattr(peer.machine, name) for name in slots]
            sizes.append(sum(sys.getsizeof(thing) for thing in held))
    assert sizes[0] == sizes[1]


# -- who is no flood ------------------------------------------------------------------------------------------------


def test_a_download_with_two_updates_for_each_frame_is_none() -> None:
    peer = Peer()
    peer.say(headers(1))
    peer.machine.send_headers(1, OK)
    update = (16_384).to_bytes(4, "big")
    for _ in range(10_000):
        assert peer.machine.send_data(1, b"x" * 16_384) == 16_384
        peer.say(frame(f.WINDOW_UPDATE, 0, 0, update), frame(f.WINDOW_UPDATE, 0, 1, update))
        peer.machine.take_out()
    assert peer.failure() is None


def test_an_upload_with_a_ping_for_each_frame_is_none() -> None:
    peer = Peer()
    peer.say(headers(1, POST, end=False))
    for _ in range(5000):
        event = peer.say(data(1, b"x" * 1000), frame(f.PING, 0, 0, b"12345678"))[0]
        assert isinstance(event, DataReceived)
        peer.machine.acknowledge(1, event.flow)
        peer.machine.take_out()
    assert peer.failure() is None


def test_requests_without_end_are_none() -> None:
    peer = Peer()
    for number in range(5000):
        stream = stream_of(number)
        peer.say(headers(stream), frame(f.PRIORITY, 0, stream, b"\0\0\0\0\1"))
        peer.machine.send_headers(stream, OK)
        peer.machine.send_data(stream, b"x", end=True)
        peer.say(frame(f.WINDOW_UPDATE, 0, 0, ONE))
        peer.machine.take_out()
    assert peer.failure() is None
    assert peer.machine.is_idle
