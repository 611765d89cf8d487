"""gRPC's small grammars: content types, timeouts, codes, messages."""

from __future__ import annotations

from urllib.parse import unquote

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec import grpc
from tcpgate.codec.events import Fields, Limits, Version
from tcpgate.codec.grammar import parse_request


def is_grpc(kind: bytes, *, version: Version = b"2.0") -> bool:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Type: %b\r\n\r\n" % kind, Limits())
    return grpc.is_grpc(attrs.evolve(head, version=version))


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"Application/gRPC;charset=x"])
def test_a_call_is_known_by_its_content_type(kind: bytes) -> None:
    assert is_grpc(kind)
    assert not is_grpc(kind, version=b"1.1")


@pytest.mark.parametrize("kind", [b"application/grpc-web", b"application/grpcx", b"application/json", b"text/grpc"])
def test_what_only_looks_like_a_call_is_none(kind: bytes) -> None:
    assert not is_grpc(kind)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"100m", 0.1), (b"5u", 5e-6), (b"99999999n", 0.099999999), (b"0S", 0)],
)
def test_a_timeout_is_read(text: bytes, seconds: float) -> None:
    assert grpc.timeout_of(Fields([(b"grpc-timeout", text)])) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"123456789S", b"1s", b"1.5S", b"1 S", b"+1S", b"\xd9\xa1S"])
def test_a_timeout_of_another_form_is_none(text: bytes) -> None:
    assert grpc.timeout_of(Fields([(b"grpc-timeout", text)])) is None


def test_two_timeouts_are_none() -> None:
    assert grpc.timeout_of(Fields([(b"grpc-timeout", b"1S"), (b"grpc-timeout", b"2S")])) is None


@pytest.mark.parametrize(
    ("status", "code"), [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (418, 2)]
)
def test_a_status_becomes_the_code_that_a_caller_would_make_of_it(status: int, code: int) -> None:
    assert grpc.code_of(status) == code


@given(st.text())
def test_a_message_is_printable_ascii_and_can_be_read_back(text: str) -> None:
    escaped = grpc.escape(text)
    assert all(0x20 <= byte <= 0x7E for byte in escaped)
    assert unquote(escaped.decode("ascii")) == text.encode("utf-8", "replace").decode()


def test_a_status_is_read_only_in_its_form() -> None:
    assert grpc.status_in(Fields([(b"Grpc-Status", b"5")])) == 5
    assert grpc.status_in(Fields([(b"grpc-status", b"x")])) is None
    assert grpc.status_in(Fields()) is None
