"""The rest of a list of buffers is always exactly what has not gone, wherever the kernel stopped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tcpgate.net.unsent import Unsent


@given(st.lists(st.binary(max_size=20)), st.data())
def test_the_rest_is_what_has_not_gone(buffers: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(buffers)
    sent = data.draw(st.integers(0, len(whole)))
    rest = Unsent(buffers, sent)
    while rest.size:
        assert b"".join(rest.buffers) == whole[sent:]
        assert all(rest.buffers), "an empty buffer would be a wasted one"
        more = data.draw(st.integers(1, rest.size))
        rest.drop(more)
        sent += more
        assert rest.size == len(whole) - sent
    assert sent == len(whole)
