"""Each named PROXY header gets the verdict that it must get, whole, cut at every byte, and with something behind it."""

from __future__ import annotations

import pytest

from tcpgate.codec.partial import NeedMore
from tcpgate.codec.proxy_header import NotProxy, ProxyHeader, parse
from tcpgate.errors import ClientError
from tests.codec.proxy_vectors import VECTORS, Vector


def verdict(data: bytes) -> str:
    """Of `data`; "more" where it is only a beginning."""
    try:
        found = parse(data)
    except ClientError:
        return "bad"
    if isinstance(found, ProxyHeader):
        # A client at a unix socket has no address to go by, but a name it has.
        return "local" if found.local or not isinstance(found.source, tuple) else "named"
    return "not" if isinstance(found, NotProxy) else "more"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_each_has_its_verdict_whatever_is_behind_it(vector: Vector) -> None:
    assert verdict(vector.data) == vector.verdict
    assert verdict(vector.data + b"GET / HTTP/1.1\r\n\r\n") == vector.verdict


@pytest.mark.parametrize(
    "vector", [one for one in VECTORS if one.verdict in ("named", "local")], ids=lambda one: one.name
)
def test_a_good_one_tells_where_it_ends_and_whom_it_names(vector: Vector) -> None:
    found = parse(vector.data + b"GET")
    assert isinstance(found, ProxyHeader)
    assert found.size == len(vector.data)
    if vector.verdict == "named":
        assert isinstance(found.source, tuple)
        assert found.source[0].removeprefix("::ffff:") == vector.client
    else:
        assert not isinstance(found.source, tuple)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_cut_at_any_byte_it_is_never_a_header_and_asks_for_no_more_than_it_needs(vector: Vector) -> None:
    size = len(vector.data)
    cuts = range(size) if size < 1000 else [*range(300), *range(300, size, 997), size - 1]
    for at in cuts:
        part = vector.data[:at]
        if vector.verdict in ("named", "local"):
            found = parse(part)
            assert isinstance(found, NeedMore)
            assert at < found.size <= size
        else:
            assert verdict(part) in (vector.verdict, "more")


def test_the_names_are_names() -> None:
    assert len({vector.name for vector in VECTORS}) == len(VECTORS) >= 71
