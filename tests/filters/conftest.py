"""A request as filters see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcpgate.codec.events import NO_BODY, Fields, Pair, RequestHead, ResponseHead
from tcpgate.filters.base import RequestView
from tcpgate.units import parse_network

MakeView = Callable[..., RequestView]


@pytest.fixture
def make_view() -> MakeView:
    """A function that makes a view: header fields by position, the client's address by name."""

    def make(*pairs: Pair, client: str | None = "192.0.2.1") -> RequestView:
        head = RequestHead(
            method=b"GET",
            target=b"/",
            form="origin",
            path=b"/",
            query=None,
            scheme=None,
            host=b"h",
            authority=b"h",
            version=b"1.1",
            fields=Fields([(b"Host", b"h"), *pairs]),
            framing=NO_BODY,
            keep_alive=True,
            expect_continue=False,
            upgrade=None,
            max_forwards=None,
            size=30,
        )
        return RequestView(head=head, client=None if client is None else parse_network(client).network_address)

    return make


@pytest.fixture
def response() -> ResponseHead:
    """A plain answer."""
    return ResponseHead(
        status=200,
        reason=b"OK",
        version=b"1.1",
        fields=Fields([(b"Server", b"origin"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]),
        framing=NO_BODY,
        keep_alive=True,
        size=60,
    )
