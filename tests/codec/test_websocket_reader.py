"""The reader of WebSocket frames: what passes, where frames end, what breaks the rules; however the bytes are cut."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from tcpgate.codec.websocket import (
    BAD_DATA,
    DEFLATE,
    GOING_AWAY,
    NO_STATUS,
    NORMAL,
    PROTOCOL_ERROR,
    TOO_BIG,
    Fault,
    FrameReader,
    close_frame,
    extensions_of,
    ping_frame,
)

LIMIT = 1000
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\xa1\x02\x83\x44"
DEFLATED = frozenset({DEFLATE})
FOREIGN = frozenset({"x-colour"})


def frame(
    opcode: int, payload: bytes = b"", *, masked: bool = True, fin: bool = True, bits: int = 0, form: int = 0
) -> bytes:
    """One frame; `form`: how many bytes its length takes behind the first (0: as few as can be)."""
    size, mask_bit = len(payload), 0x80 if masked else 0
    start = bytes([(0x80 if fin else 0) | bits << 4 | opcode])
    form = form or (0 if size < 126 else 2 if size < 1 << 16 else 8)
    start += {
        0: lambda: bytes([mask_bit | size]),
        2: lambda: struct.pack("!BH", mask_bit | 126, size),
        8: lambda: struct.pack("!BQ", mask_bit | 127, size),
    }[form]()
    if masked:
        return start + MASK + bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return start + payload


def close(code: int, text: bytes = b"", *, masked: bool = True) -> bytes:
    """A Close."""
    return frame(CLOSE, struct.pack("!H", code) + text, masked=masked)


def reader(*, limit: int = LIMIT, extensions: frozenset[str] = frozenset(), client: bool = True) -> FrameReader:
    """A new one."""
    return FrameReader(from_client=client, max_message=limit, extensions=extensions)


WELL: dict[str, tuple[bytes, frozenset[str]]] = {
    "an empty text": (frame(TEXT), frozenset()),
    "a text": (frame(TEXT, b"hello"), frozenset()),
    "a text of 125 bytes": (frame(TEXT, b"x" * 125), frozenset()),
    "a text of 126 bytes": (frame(TEXT, b"x" * 126), frozenset()),
    "a message of just the limit": (frame(BINARY, b"\xff" * LIMIT), frozenset()),
    "a binary that is no UTF-8": (frame(BINARY, b"\xff\xfe"), frozenset()),
    "a text cut inside a character": (
        frame(TEXT, "ä".encode()[:1], fin=False) + frame(CONTINUATION, "ä".encode()[1:]),
        frozenset(),
    ),
    "a message in five pieces": (
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) * 3 + frame(CONTINUATION, b"c"),
        frozenset(),
    ),
    "an empty message in pieces": (frame(TEXT, fin=False) + frame(CONTINUATION), frozenset()),
    "a ping between fragments": (
        frame(TEXT, "ä".encode()[:1], fin=False) + frame(PING, b"\xff") + frame(CONTINUATION, "ä".encode()[1:]),
        frozenset(),
    ),
    "a ping of 125 bytes": (frame(PING, b"\xff" * 125), frozenset()),
    "an empty ping": (frame(PING), frozenset()),
    "a pong that nobody asked for": (frame(PONG, b"hi"), frozenset()),
    "many messages": (frame(TEXT, b"a") * 50, frozenset()),
    "messages of the limit, one after the other": (frame(BINARY, b"x" * LIMIT) * 3, frozenset()),
    "a compressed message": (frame(TEXT, b"\xff\x00", bits=4), DEFLATED),
    "a compressed message in pieces": (
        frame(TEXT, b"\xff", bits=4, fin=False) + frame(CONTINUATION, b"\xff"),
        DEFLATED,
    ),
    "a plain message where others are compressed": (frame(TEXT, b"plain"), DEFLATED),
    "any bits, of an extension that is not known": (frame(TEXT, b"\xff", bits=7), FOREIGN),
    "text of an extension that is not known": (frame(TEXT, b"\xff"), FOREIGN),
}
ILL: dict[str, tuple[bytes, int, frozenset[str]]] = {
    "a frame without a mask": (frame(TEXT, b"hello", masked=False), PROTOCOL_ERROR, frozenset()),
    "opcode 3": (frame(3), PROTOCOL_ERROR, frozenset()),
    "opcode 7": (frame(7, b"x"), PROTOCOL_ERROR, frozenset()),
    "opcode 11": (frame(11), PROTOCOL_ERROR, frozenset()),
    "opcode 15": (frame(15, b"x"), PROTOCOL_ERROR, frozenset()),
    "a reserved bit": (frame(TEXT, b"x", bits=4), PROTOCOL_ERROR, frozenset()),
    "the second reserved bit, deflate or not": (frame(TEXT, b"x", bits=2), PROTOCOL_ERROR, DEFLATED),
    "a compressed bit on a continuation": (
        frame(TEXT, b"x", bits=4, fin=False) + frame(CONTINUATION, bits=4),
        PROTOCOL_ERROR,
        DEFLATED,
    ),
    "a compressed bit on a ping": (frame(PING, bits=4), PROTOCOL_ERROR, DEFLATED),
    "a fragmented ping": (frame(PING, b"x", fin=False), PROTOCOL_ERROR, frozenset()),
    "a fragmented close": (frame(CLOSE, fin=False), PROTOCOL_ERROR, frozenset()),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), PROTOCOL_ERROR, frozenset()),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), PROTOCOL_ERROR, frozenset()),
    "a continuation of what is over": (frame(TEXT, b"x") + frame(CONTINUATION, b"x"), PROTOCOL_ERROR, frozenset()),
    "a message inside another": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), PROTOCOL_ERROR, frozenset()),
    "a length in more bytes than it needs": (frame(TEXT, b"x", form=2), PROTOCOL_ERROR, frozenset()),
    "a length in eight bytes for nothing": (frame(TEXT, b"x" * 200, form=8), PROTOCOL_ERROR, frozenset()),
    "a length with the highest bit": (b"\x82\xff" + b"\xff" * 8 + MASK, PROTOCOL_ERROR, frozenset()),
    "a close with half a code": (frame(CLOSE, b"\x03"), PROTOCOL_ERROR, frozenset()),
    "a close with the code 999": (close(999), PROTOCOL_ERROR, frozenset()),
    "a close with the code 1004": (close(1004), PROTOCOL_ERROR, frozenset()),
    "a close with the code 1005": (close(1005), PROTOCOL_ERROR, frozenset()),
    "a close with the code 1006": (close(1006), PROTOCOL_ERROR, frozenset()),
    "a close with the code 1015": (close(1015), PROTOCOL_ERROR, frozenset()),
    "a close with the code 2999": (close(2999), PROTOCOL_ERROR, frozenset()),
    "a close with the code 5000": (close(5000), PROTOCOL_ERROR, frozenset()),
    "a close whose reason is no UTF-8": (close(NORMAL, b"\xff"), BAD_DATA, frozenset()),
    "a text that is no UTF-8": (frame(TEXT, b"\xff"), BAD_DATA, frozenset()),
    "a text with a surrogate": (frame(TEXT, b"\xed\xa0\x80"), BAD_DATA, frozenset()),
    "a text that ends inside a character": (frame(TEXT, "ä".encode()[:1]), BAD_DATA, frozenset()),
    "a fragment that is no UTF-8": (
        frame(TEXT, b"fine", fin=False) + frame(CONTINUATION, b"\xc0\xaf"),
        BAD_DATA,
        frozenset(),
    ),
    "a message above the limit": (frame(BINARY, b"x" * (LIMIT + 1)), TOO_BIG, frozenset()),
    "fragments above the limit": (
        frame(BINARY, b"x" * LIMIT, fin=False) + frame(CONTINUATION, b"x"),
        TOO_BIG,
        frozenset(),
    ),
    "a message that says that it is huge": (b"\x82\xff" + struct.pack("!Q", 1 << 40), TOO_BIG, frozenset()),
}


@pytest.mark.parametrize("name", WELL)
def test_what_is_well_formed_passes_as_it_is(name: str) -> None:
    data, extensions = WELL[name]
    one = reader(extensions=extensions)
    passage = one.receive(data)
    assert (passage.data, passage.fault, passage.close) == (data, None, None)
    assert passage.frame_end == passage.message_end == len(data)
    assert not one.mid_frame
    assert not one.in_message


@pytest.mark.parametrize("apart", [1, 3, 1 << 20])
@pytest.mark.parametrize("name", ILL)
def test_what_is_ill_formed_is_told_by_its_code(name: str, apart: int) -> None:
    data, code, extensions = ILL[name]
    _, _, fault = fed(reader(extensions=extensions), data, [apart] * len(data))
    assert fault is not None
    assert fault.code == code
    assert fault.text


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
def test_a_close_is_told_with_its_code_and_nothing_passes_behind_it(code: int) -> None:
    one = reader()
    passage = one.receive(close(code, "grüß".encode()) + frame(TEXT, b"more"))
    assert passage.close == code
    assert passage.data == close(code, "grüß".encode())
    assert one.receive(frame(TEXT, b"more")).data == b""


def test_a_close_without_a_code_is_one_too() -> None:
    assert reader().receive(frame(CLOSE)).close == NO_STATUS


def test_no_byte_of_what_is_too_large_passes() -> None:
    fine = frame(BINARY, b"x" * LIMIT, fin=False)
    one = reader()
    passage = one.receive(fine + frame(CONTINUATION, b"y" * 200))
    assert passage.data == fine
    assert not one.mid_frame
    assert one.in_message


def test_of_compressed_messages_the_compressed_size_counts() -> None:
    assert reader(extensions=DEFLATED).receive(frame(TEXT, b"\xff" * LIMIT, bits=4)).fault is None
    fault = reader(extensions=DEFLATED).receive(frame(TEXT, b"\xff" * (LIMIT + 1), bits=4)).fault
    assert fault is not None
    assert fault.code == TOO_BIG


def test_a_server_must_not_mask_and_a_client_must() -> None:
    bare = frame(TEXT, b"hello", masked=False)
    assert reader(client=False).receive(bare).data == bare
    assert reader(client=False).receive(frame(TEXT, b"hello")).fault is not None


def test_the_answer_to_our_own_ping_goes_no_further() -> None:
    one = reader()
    one.answer = b"ours"
    before, after = frame(PONG, b"theirs") + frame(TEXT, b"a"), frame(TEXT, b"b", fin=False)
    passage = one.receive(before + frame(PONG, b"ours") + after + frame(PONG, b"ours"))
    assert passage.data == before + after
    assert (passage.frame_end, passage.message_end) == (len(before + after), len(before))
    data = before + frame(PONG, b"ours") + after
    for cut in range(len(data)):
        one = reader()
        one.answer = b"ours"
        assert one.receive(data[:cut]).data + one.receive(data[cut:]).data == before + after


def test_a_frame_that_has_begun_is_told_until_its_end() -> None:
    data, one = frame(BINARY, b"x" * 300), reader()
    seen = []
    for piece in (data[:7], data[7:100], data[100:] + data[:50]):
        passage = one.receive(piece)
        seen.append((passage.data, passage.frame_end, one.mid_frame))
    assert seen == [
        (b"", -1, False),
        (data[:100], -1, True),
        (data[100:] + data[:50], len(data) - 100, True),
    ]


def test_our_own_frames_are_what_the_other_side_can_read() -> None:
    assert reader().receive(close_frame(GOING_AWAY, masked=True)).close == GOING_AWAY
    assert reader(client=False).receive(close_frame(GOING_AWAY, masked=False)).close == GOING_AWAY
    assert reader(client=False).receive(ping_frame(b"x")).data == frame(PING, b"x", masked=False)


def test_names_of_extensions_are_read_from_all_fields() -> None:
    assert extensions_of([]) == frozenset()
    assert extensions_of([b"Permessage-Deflate; client_max_window_bits=10", b"a;b, c , "]) == {DEFLATE, "a", "c"}


# -- however the bytes are cut --------------------------------------------------------------------------------------


def fed(one: FrameReader, data: bytes, cuts: list[int]) -> tuple[bytes, int | None, Fault | None]:
    """What all of `data` comes to, in pieces of these sizes and a last one: (what passed, close, fault)."""
    passed, close_code, fault, at = b"", None, None, 0
    for size in itertools.chain(cuts, [len(data)]):
        passage = one.receive(data[at : at + size])
        at += size
        assert passage.frame_end <= len(passage.data)
        assert passage.message_end <= passage.frame_end
        passed += passage.data
        close_code = close_code if passage.close is None else passage.close
        fault = fault or passage.fault
        if at >= len(data):
            break
    return passed, close_code, fault


def some_frame() -> st.SearchStrategy[bytes]:
    """A frame, mostly a good one."""
    ordinary = st.builds(
        frame,
        st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG, CLOSE, 3, 11]),
        st.binary(max_size=200) | st.text(max_size=60).map(str.encode),
        masked=st.sampled_from([True] * 9 + [False]),
        fin=st.sampled_from([True, True, False]),
        bits=st.sampled_from([0] * 9 + [4, 1]),
    )
    return ordinary | st.builds(
        close, st.sampled_from([999, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 5000])
    )


streams = st.lists(some_frame(), max_size=12).map(b"".join)
cuttings = st.lists(st.integers(1, 40), max_size=60)


@given(streams, cuttings, st.sampled_from([frozenset(), DEFLATED, FOREIGN]))
def test_any_cut_comes_to_the_same(data: bytes, cuts: list[int], extensions: frozenset[str]) -> None:
    whole, cut = reader(extensions=extensions), reader(extensions=extensions)
    passed, close_code, fault = fed(whole, data, [])
    passed_cut, close_cut, fault_cut = fed(cut, data, cuts)
    assert (close_cut, fault_cut) == (close_code, fault)
    assert data.startswith(passed)
    if fault is None:
        assert passed_cut == passed
        assert (cut.mid_frame, cut.in_message) == (whole.mid_frame, whole.in_message)
    else:  # a frame that turns out to be bad in its middle may have begun to pass
        assert data.startswith(passed_cut)
        assert len(passed_cut) >= len(passed)


@given(st.binary(max_size=400), cuttings, st.booleans(), st.sampled_from([frozenset(), DEFLATED, FOREIGN]))
def test_no_bytes_make_it_raise_or_hold_back_more_than_a_control_frame(
    data: bytes, cuts: list[int], client: bool, extensions: frozenset[str]
) -> None:
    one = reader(client=client, extensions=extensions)
    passed, close_code, fault = fed(one, data, cuts)
    assert data.startswith(passed)
    if close_code is None and fault is None:
        assert len(data) - len(passed) < 14 + 125


@given(streams)
def test_it_judges_as_wsprotos_own_reader_of_messages_does(data: bytes) -> None:
    oracle, verdict = FrameProtocol(client=False, extensions=[]), "open"
    oracle.receive_bytes(data)
    try:
        for one in oracle.received_frames():
            if one.opcode is Opcode.CLOSE:
                verdict = "closed"
    except ParseFailed as exc:
        verdict = f"failed {int(exc.code)}"
    _, close_code, fault = fed(reader(limit=1 << 40), data, [])
    mine = "open" if close_code is None else "closed"
    assert (mine if fault is None else f"failed {fault.code}") == verdict
