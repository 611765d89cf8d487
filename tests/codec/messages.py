"""Hypothesis strategies for HTTP/1 messages: well-formed ones, and ones that were so until somebody bent them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from tcpgate.codec.chunked import NEVER_TRAILERS
from tests.codec.corpus import load_requests, load_responses

TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE_BYTES = bytes([*range(0x20, 0x7F), *range(0x80, 0x100), 0x09])
SPECIAL = {
    *NEVER_TRAILERS,
    b"content-length",
    b"transfer-encoding",
}


def text_of(alphabet: bytes, low: int, high: int) -> st.SearchStrategy[bytes]:
    """Bytes of `alphabet`."""
    return st.lists(st.sampled_from(list(alphabet)), min_size=low, max_size=high).map(bytes)


tokens = text_of(TOKEN_BYTES, 1, 12)
values = text_of(VALUE_BYTES, 0, 30).map(lambda value: value.strip(b" \t"))
plain_names = text_of(b"abcdefghijklmnopqrstuvwxyzABCXYZ0189-", 1, 12).filter(lambda name: name.lower() not in SPECIAL)
fields = st.lists(st.tuples(plain_names, values), max_size=6)
bodies = st.binary(max_size=200)


@st.composite
def chunkings(draw: st.DrawFn, body: bytes) -> bytes:
    """`body` as chunks of any sizes, without the last chunk."""
    out = b""
    while body:
        count = draw(st.integers(1, len(body)))
        extension = draw(st.sampled_from([b"", b";a", b';a="b;\\"c"', b" ; a = b"]))
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % count
        out += size + extension + b"\r\n" + body[:count] + b"\r\n"
        body = body[count:]
    return out


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` cut into reads, none of them empty."""
    marks = draw(st.lists(st.integers(0, len(data)), max_size=8))
    edges = sorted({0, len(data), *marks})
    return [data[low:high] for low, high in pairwise(edges)]


NASTY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x00",
    b"\x0b",
    b"\x85",
    b"\xa0",
    b"0",
    b"5",
    b"_",
    b'"',
    b"\\",
    b"#",
    b"%",
    b"@",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b.test\r\n",
    b"Connection: close\r\n",
    b"0\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
]
REQUEST_SEEDS = [case.raw for case in load_requests() if len(case.raw) < 1000]
RESPONSE_SEEDS = [case.raw for case in load_responses() if len(case.raw) < 1000]


@st.composite
def bent(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A message of the corpus with bytes put in, taken out, doubled or replaced."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        data = draw(
            st.sampled_from(
                [
                    data[:at] + data[end:],
                    data[:at] + data[at:end] * 2 + data[end:],
                    data[:at] + draw(st.sampled_from(NASTY)) + data[at:],
                    data[:at] + draw(st.sampled_from(NASTY)) + data[end:],
                ]
            )
        )
    return data


def split_of(messages: st.SearchStrategy[bytes]) -> st.SearchStrategy[Any]:
    """(message, the same cut into reads)."""
    return messages.flatmap(lambda message: st.tuples(st.just(message), splits(message)))
