"""HPACK both ways, with the `hpack` library as the other end and as the judge of what a block means."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as library_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.codec.events import Pair
from tcpgate.codec.http2.headers import CompressionError, HpackIn, HpackOut, encode_line
from tcpgate.codec.http2.huffman import decode_huffman
from tests.codec.http2_peer import GET, block

NAMES = st.sampled_from(
    [b":path", b":status", b":method", b"cookie", b"a", b"x-id", b"content-type", b"n" * 130, b"accept-encoding"]
)
VALUES = st.one_of(
    st.sampled_from([b"", b"/", b"GET", b"200", b"gzip, deflate", b"v" * 200, b"w" * 3000]), st.binary(max_size=40)
)
PAIRS = st.tuples(NAMES, VALUES)
HEADS = st.lists(PAIRS, max_size=12)


def decoder() -> HpackIn:
    return HpackIn(1 << 20, 1000)


def reference() -> Decoder:
    return Decoder(max_header_list_size=1 << 20)


def meaning(one: Decoder, data: bytes) -> list[Pair] | None:
    try:
        return [(bytes(field[0]), bytes(field[1])) for field in one.decode(data, raw=True)]
    except HPACKError:
        return None


@settings(deadline=None)
@given(st.lists(st.tuples(HEADS, st.booleans(), st.integers(0, 3), st.sampled_from([None, 0, 100, 4096])), max_size=8))
def test_every_block_of_an_encoder_means_what_it_was_made_of(
    heads: list[tuple[list[Pair], bool, int, int | None]],
) -> None:
    encoder, ours = Encoder(), decoder()
    for fields, huffman, again, size in heads:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(again + 1):
            assert list(ours.decode(encoder.encode(fields, huffman=huffman)).fields) == fields


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.binary(max_size=30), HEADS.map(lambda fields: Encoder().encode(fields))), max_size=6))
def test_any_bytes_mean_the_same_to_the_library_or_nothing_to_both(blocks: list[bytes]) -> None:
    ours, theirs = decoder(), reference()
    for data in blocks:
        expected = meaning(theirs, data)
        try:
            found = list(ours.decode(data).fields)
        except CompressionError:
            assert expected is None
            return
        assert found == expected


@settings(deadline=None)
@given(HEADS, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_block_with_wrong_bytes_means_the_same_to_the_library_or_nothing_to_both(
    fields: list[Pair], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(Encoder().encode([*GET, *fields]))
    for place, byte in changes:
        data[place % len(data)] = byte
    expected = meaning(reference(), bytes(data))
    try:
        assert list(decoder().decode(bytes(data)).fields) == expected
    except CompressionError:
        assert expected is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=3, max_size=30))
def test_a_block_that_came_before_means_what_it_means_now(choices: list[tuple[int, bool]]) -> None:
    # Indexed 62 is whatever was inserted last: the same block, another meaning.
    blocks = [b"\xbe", b"\x82\xbe", b"\x82\x84", b"\xbf\xbe"]
    ours, theirs = decoder(), reference()
    for data in (b"\x40\x01a\x01a", b"\x40\x01b\x01b"):
        ours.decode(data)
        theirs.decode(data, raw=True)
    for number, (which, inserts) in enumerate(choices):
        if inserts:
            data = b"\x40\x01k\x02" + b"%02d" % number
            ours.decode(data)
            theirs.decode(data, raw=True)
        assert list(ours.decode(blocks[which]).fields) == meaning(theirs, blocks[which])


def test_a_block_that_comes_again_is_not_decoded_again() -> None:
    ours, data = decoder(), block(GET)
    ours.decode(data)
    assert ours.decode(data) is ours.decode(data)
    ours.decode(b"\x40\x01a\x01b")
    assert ours.decode(data).fields == GET


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "no table has"),
        (b"\x7e\x00", "no table has"),
        (b"\x0f\x2f\x00", "no table has"),
        (b"\xff", "truncated"),
        (b"\x40", "truncated"),
        (b"\x40\x01", "longer than its block"),
        (b"\x40\x01a", "truncated"),
        (b"\x00\x05abc", "longer than its block"),
        (b"\xff\xff\xff\xff\xff\xff\xff", "too many octets"),
        (b"\x82\x20", "after a field"),
        (b"\x3f\xe2\x1f", "HEADER_TABLE_SIZE"),
        (b"\x00\x01a\x81\x00", "Huffman"),
        (b"\x00\x01a\x82\xff\xff", "Huffman"),
        (b"\x00\x01a\x84\xff\xff\xff\xff", "Huffman"),
    ],
)
def test_what_is_no_hpack_ends_the_connection(data: bytes, rule: str) -> None:
    with pytest.raises(CompressionError, match=rule):
        decoder().decode(data)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=30), st.binary(max_size=4), st.booleans())
def test_huffman_strings_mean_what_they_mean_to_the_library(text: bytes, tail: bytes, coded: bool) -> None:
    data = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text) + tail if coded else text
    try:
        expected = library_huffman(data)
    except HPACKError:
        with pytest.raises(ValueError, match="Huffman"):
            decode_huffman(data)
    else:
        assert decode_huffman(data) == expected


def test_two_table_sizes_may_stand_at_the_start() -> None:
    assert decoder().decode(b"\x20\x3f\xe1\x1f\x82").fields == ((b":method", b"GET"),)


def test_an_entry_larger_than_the_table_empties_it() -> None:
    ours = decoder()
    ours.decode(b"\x40\x01a\x01b")
    large = b"\x40\x01a\x7f\x81\x1f" + b"x" * 4096
    assert ours.decode(large).fields == ((b"a", b"x" * 4096),)
    with pytest.raises(CompressionError):
        ours.decode(b"\xbe")


def test_an_entry_as_large_as_the_table_fits() -> None:
    ours = decoder()
    ours.decode(b"\x40\x01a\x7f\xe0\x1e" + b"x" * 4063)
    assert ours.decode(b"\xbe").fields == ((b"a", b"x" * 4063),)


@pytest.mark.parametrize("update", [b"\x20", b"\x20\x3f\xe1\x1f", b"\x3f\x02"])
def test_a_smaller_table_forgets_what_it_has_no_room_for(update: bytes) -> None:
    ours = decoder()
    ours.decode(b"\x40\x01a\x01b")
    assert ours.decode(b"\xbe").fields == ((b"a", b"b"),)
    with pytest.raises(CompressionError):
        ours.decode(update + b"\xbe")


def test_a_bomb_is_decoded_to_nothing_and_the_table_is_still_right() -> None:
    ours = HpackIn(32 << 10, 100)
    ours.decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000)
    bomb = ours.decode(b"\xbe" * 16_000)
    assert bomb.too_large
    assert bomb.fields == ()
    assert ours.decode(b"\xbe").fields == ((b"a", b"x" * 4000),)


def test_the_limits_of_a_block_are_exact() -> None:
    fields = [(b"a", b"b")] * 4
    assert not HpackIn(4 * 34, 4).decode(block(fields)).too_large
    assert HpackIn(4 * 34 - 1, 4).decode(block(fields)).too_large
    assert HpackIn(4 * 34, 3).decode(block(fields)).too_large
    assert not HpackIn(4 * 34 + 43, 4).decode(block([(b":path", b"/index"), *fields])).too_large


# -- out ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(HEADS, max_size=5))
def test_what_we_encode_the_library_decodes_in_any_order(heads: list[list[Pair]]) -> None:
    lines = HpackOut()
    blocks = [(lines.block(fields), fields) for fields in heads]
    theirs = reference()
    for data, fields in reversed(blocks + blocks):
        assert meaning(theirs, data) == fields
    assert len(theirs.header_table.dynamic_entries) == 0


def test_names_go_out_in_lower_case_and_without_what_is_about_http_1() -> None:
    fields = [
        (b"Content-Type", b"A/B"),
        (b"Connection", b"close"),
        (b"Keep-Alive", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"proxy-connection", b"x"),
        (b"TE", b"gzip"),
        (b"te", b"trailers"),
    ]
    assert meaning(reference(), HpackOut().block(fields)) == [(b"content-type", b"A/B"), (b"te", b"trailers")]


def test_credentials_are_marked_never_to_be_indexed_and_not_kept() -> None:
    lines = HpackOut()
    for name in (b"authorization", b"cookie", b"Set-Cookie", b"x-api-key"):
        data = lines.block([(name, b"secret")])
        assert data[0] & 0xF0 == 0x10
    assert len(lines) == 0
    assert "secret" not in repr(lines)
    lines.block([(b"a", b"b")])
    assert len(lines) == 1


def test_the_static_table_is_used() -> None:
    assert encode_line(b":status", b"200", False) == b"\x88"
    assert encode_line(b":status", b"418", False) == b"\x08\x03418"
    assert encode_line(b"date", b"x", False) == b"\x0f\x12\x01x"


def test_the_memo_of_lines_is_bounded() -> None:
    lines = HpackOut()
    for number in range(5000):
        lines.block([(b"a", b"%d" % number)])
    lines.block([(b"b", b"x" * 1000)])
    assert len(lines) <= 2048
    assert (b"b", b"x" * 1000) not in lines
