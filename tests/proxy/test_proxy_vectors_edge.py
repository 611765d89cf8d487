"""Each named PROXY header at a listener's edge: in each mode, from peers that are trusted and from others, before plain
HTTP, before TLS, and before HTTP/2 in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tcpgate.errors import Reason
from tests.codec.proxy_vectors import VECTORS, Vector
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import GET, ask, client_context, write_certificate
from tests.proxy.http2_client import greeted

TRUSTED, OTHERS = 'trusted_proxies = ["127.0.0.1"]', 'trusted_proxies = ["203.0.113.1"]'
ANSWER = '[routes.all.respond]\nbody = "here"\n'


@asynccontextmanager
async def listening(folder: Path, listener: str, tls: bool = False) -> AsyncIterator[TestPlane]:
    """A plane with such a listener, and one answer."""
    shown = write_certificate(folder, "a", "a.example")
    more = f"[listeners.web.tls]\ncertificates = [{shown}]" if tls else ""
    text = f'[listeners.web]\nbind = ["127.0.0.1:0"]\n{listener}\n{more}\n{ANSWER}'
    with trio.fail_after(100):
        async with serving(folder, text) as plane:
            yield plane


def client_of(vector: Vector) -> str:
    return vector.client if vector.verdict == "named" else "unix" if "AF_UNIX" in vector.name else "127.0.0.1"


@pytest.mark.parametrize("mode", ["accept", "require"])
async def test_a_trusted_peers_header_counts_or_ends_the_connection(mode: str, tmp_path: Path) -> None:
    async with listening(tmp_path, f'{TRUSTED}\nproxy_protocol = "{mode}"') as plane:
        for count, vector in enumerate(VECTORS, 1):
            said = await ask(plane, vector.data + GET)
            record = await plane.record(count)
            if vector.verdict in ("named", "local"):
                assert said.startswith(b"HTTP/1.1 200 "), vector
                assert record.client == client_of(vector), vector
            elif vector.verdict == "bad" or mode == "require":
                assert said == b"", vector
                assert (record.reason, record.client) == (Reason.PROXY_HEADER, "127.0.0.1"), vector
            else:
                assert said.startswith(b"HTTP/1.1 400 "), vector
                assert (record.reason, record.client) == (Reason.BAD_REQUEST, "127.0.0.1"), vector


@pytest.mark.parametrize("mode", ["off", "accept", "require"])
async def test_nobody_else_is_believed_and_no_header_is_taken_away(mode: str, tmp_path: Path) -> None:
    trusted = TRUSTED if mode == "off" else OTHERS
    async with listening(tmp_path, f'{trusted}\nproxy_protocol = "{mode}"') as plane:
        for count, vector in enumerate(VECTORS, 1):
            said = await ask(plane, vector.data + GET)
            record = await plane.record(count)
            assert record.client == "127.0.0.1", vector
            if mode == "require":
                assert (said, record.reason) == (b"", Reason.PROXY_HEADER), vector
            else:  # HTTP refuses it as no such thing, or waits for what would make it a request
                assert said.startswith(b"HTTP/1.1 4"), vector
                assert record.status in (400, 414, 431), vector


async def over_tls(plane: TestPlane, data: bytes, *alpn: str) -> int:
    """The status that a request over TLS gets behind `data`; 0: there is no handshake."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        stream = trio.SSLStream(raw, client_context(*alpn), server_hostname="a.example", https_compatible=True)
        try:
            await raw.send_all(data)
            await stream.do_handshake()
            if not alpn:
                await stream.send_all(GET)
                return int((await stream.receive_some()).split(b" ")[1])
            client = await greeted(stream)
            number = await client.request(authority="a.example", scheme="https")
            return (await client.answer(number)).status
        except trio.BrokenResourceError:
            return 0


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("alpn", [(), ("h2",)], ids=["http/1.1", "h2"])
async def test_before_tls_it_is_the_same(alpn: tuple[str, ...], trusted: bool, tmp_path: Path) -> None:
    listener = f'{TRUSTED if trusted else OTHERS}\nproxy_protocol = "accept"'
    async with listening(tmp_path, listener, tls=True) as plane:
        for count, vector in enumerate(VECTORS, 1):
            status = await over_tls(plane, vector.data, *alpn)
            record = await plane.record(count)
            good = trusted and vector.verdict in ("named", "local")
            assert status == (200 if good else 0), vector
            assert record.client == (client_of(vector) if good else "127.0.0.1"), vector
            if not good:
                believed = trusted and vector.verdict == "bad"
                assert record.reason == (Reason.PROXY_HEADER if believed else Reason.TLS_REFUSED), vector


async def test_a_header_behind_a_header_is_none(tmp_path: Path) -> None:
    first, second = VECTORS[0].data, b"PROXY TCP4 203.0.113.9 198.51.100.9 1 2\r\n"
    async with listening(tmp_path, f'{TRUSTED}\nproxy_protocol = "accept"') as plane:
        assert (await ask(plane, first + second + GET)).startswith(b"HTTP/1.1 400 ")
        assert (await plane.record()).client == "192.0.2.7"
