"""h11 as the second opinion: where it would not agree with the grammar, the message is refused."""

from __future__ import annotations

import h11
import pytest

from tcpgate.codec.blame import CLIENT
from tcpgate.codec.events import CHUNKED, NO_BODY, Fields, of_length
from tcpgate.codec.machine import Machine, framed, head_bytes
from tcpgate.errors import ClientError

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


def heard(head: bytes = POST) -> Machine:
    machine = Machine(h11.SERVER, CLIENT)
    machine.hear_head(head)
    return machine


def fresh(machine: Machine) -> bool:
    return machine.untouched


def done(machine: Machine) -> bool:
    return machine.both_done


def test_a_head_that_is_none_to_h11_is_refused() -> None:
    for head in (b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(ClientError) as caught:
            Machine(h11.SERVER, CLIENT).hear_head(head)
        assert "GET" not in caught.value.detail


def test_a_body_that_h11_counts_otherwise_is_refused() -> None:
    with pytest.raises(ClientError, match="length"):
        heard().hear_data(of_length(3), b"abc")
    with pytest.raises(ClientError, match="complete"):
        heard().hear_end(of_length(0))


def test_h11_keeps_up_over_a_whole_exchange() -> None:
    machine = heard(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert not fresh(machine)
    machine.hear_data(CHUNKED, b"abc")
    machine.hear_data(CHUNKED, b"d")
    machine.hear_end(CHUNKED)
    assert machine.say_response(204, b"", []) == b"HTTP/1.1 204 \r\n\r\n"
    assert machine.say_end([]) == b""
    assert done(machine)
    machine.next_cycle()
    assert not done(machine)
    assert fresh(machine)


def test_a_head_is_written_with_the_framing_that_it_has() -> None:
    pairs = framed(Fields([(b"X", b"y"), (b"CONTENT-LENGTH", b"9")]), of_length(2))
    assert head_bytes(b"GET / HTTP/1.1", pairs) == b"GET / HTTP/1.1\r\nX: y\r\nContent-Length: 2\r\n\r\n"
    assert framed(Fields([(b"Transfer-Encoding", b"x")]), NO_BODY) == []
