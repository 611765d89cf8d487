"""What PostgreSQL's clients begin with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec import postgres
from tcpgate.codec.partial import NeedMore
from tcpgate.codec.postgres import ASK_FOR_TLS, MAX_STARTUP, First, error, parse


def message(code: int, body: bytes = b"", length: int | None = None) -> bytes:
    size = 8 + len(body) if length is None else length
    return size.to_bytes(4, "big") + code.to_bytes(4, "big") + body


V3 = 3 << 16
CANCEL = 80877102
WORDS: list[tuple[bytes, First]] = [
    (ASK_FOR_TLS, First.SSL_REQUEST),
    (ASK_FOR_TLS + b"\x16\x03\x01", First.SSL_REQUEST),
    (message(80877103), First.SSL_REQUEST),
    (message(80877104), First.GSS_REQUEST),
    (message(CANCEL, b"pid_" + b"key_"), First.CANCEL),
    (message(CANCEL, b"pid_" + b"k" * 32), First.CANCEL),  # protocol 3.2
    (message(V3, b"user\0ada\0\0"), First.STARTUP),
    (message(V3 + 2, b"user\0ada\0\0"), First.STARTUP),
    (message(V3 + 9999, b"\0"), First.STARTUP),
    (message(2 << 16, b"\0" * 280), First.STARTUP),  # a relic, for the server to refuse
    (message(V3, length=MAX_STARTUP), First.STARTUP),  # the rest is still on its way
    (b"\x16\x03\x01\x02\x00", First.TLS),
    (b"\x16", First.TLS),
    (message(V3, length=MAX_STARTUP + 1), First.OTHER),
    (message(V3, length=7), First.OTHER),
    (message(0), First.OTHER),
    (message(1 << 16), First.OTHER),
    (message(80877103, b"more"), First.OTHER),
    (message(80877103, length=7), First.OTHER),
    (message(80877104, b"x"), First.OTHER),
    (message(CANCEL, b"pid_"), First.OTHER),
    (message(CANCEL, length=MAX_STARTUP + 1), First.OTHER),
    (message(80877105), First.OTHER),  # a code that is not given out
    (b"GET / HTTP/1.1\r\n", First.OTHER),
    (b"\0\x01\0\0", First.OTHER),
    (b"\xff" * 8, First.OTHER),
]


@pytest.mark.parametrize(("data", "first"), WORDS)
def test_each_beginning_is_told(data: bytes, first: First) -> None:
    assert parse(data) is first


@pytest.mark.parametrize(("data", "first"), WORDS)
def test_a_part_of_it_is_never_taken_for_something_else(data: bytes, first: First) -> None:
    for size in range(min(len(data), 8)):
        found = parse(data[:size])
        assert found is first or found == NeedMore(8)


@given(st.binary(max_size=64))
def test_whatever_comes_is_something_and_what_comes_behind_changes_nothing(data: bytes) -> None:
    found = parse(data)
    if isinstance(found, NeedMore):
        assert len(data) < found.size
    else:
        assert parse(data + b"more") is found


@given(st.integers(0, 1 << 32 - 1), st.integers(0, (1 << 32) - 1))
def test_a_request_for_tls_is_eight_bytes_and_no_others(length: int, code: int) -> None:
    data = message(code, length=length)
    assert (parse(data) is First.SSL_REQUEST) == (data == ASK_FOR_TLS)


def test_a_refusal_is_an_error_response_that_ends_the_connection() -> None:
    said = error(postgres.NOT_AUTHORIZED, "by TLS only")
    assert said[:1] == b"E"
    assert int.from_bytes(said[1:5], "big") == len(said) - 1
    fields = said[5:].split(b"\0")
    assert fields == [b"SFATAL", b"VFATAL", b"C28000", b"Mby TLS only", b"", b""]
