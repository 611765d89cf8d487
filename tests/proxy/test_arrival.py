"""Connections that arrive by a PROXY header, by a ClientHello that only decides the way, or by HTTP/2's preface."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tcpgate.codec.proxy_header import SIGNATURE, render
from tcpgate.errors import Reason, Side
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import (
    GET,
    answer,
    ask,
    authority,
    client_context,
    greeting_origin,
    say,
    telling_origin,
    tls_origin,
)

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.9 4711 8443\r\n"
V2 = render("v2", ("192.0.2.7", 4711), ("198.51.100.9", 8443), authority="a.example")
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


def http_text(port: int, listener: str, gateway: str = "") -> str:
    return f"""
[gateway]
drain = "200ms"
{gateway}
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[routes.all]
upstream = "origin"
[upstreams.origin]
endpoints = ["127.0.0.1:{port}"]
"""


def tcp_text(listener: str, **ports: int) -> str:
    upstreams = "".join(f'[upstreams.{name}]\nendpoints = ["127.0.0.1:{port}"]\n' for name, port in ports.items())
    return f"""
[gateway]
drain = "200ms"
[listeners.web]
protocol = "tcp"
bind = ["127.0.0.1:0"]
{listener}
{upstreams}"""


TRUSTED = 'trusted_proxies = ["127.0.0.1"]\n'


@asynccontextmanager
async def http(folder: Path, nursery: trio.Nursery, listener: str, gateway: str = "") -> AsyncIterator[TestPlane]:
    """A plane whose web listener is like this, before an origin that tells what it is sent."""
    port = await telling_origin(nursery)
    with trio.fail_after(50):
        async with serving(folder, http_text(port, listener, gateway)) as plane:
            yield plane
    nursery.cancel_scope.cancel()


# -- PROXY headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["true", "false"])
@pytest.mark.parametrize("mode", ["accept", "require"])
@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_the_client_is_whom_a_trusted_proxy_names(
    header: bytes, mode: str, lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "{mode}"', f"lane = {lane}") as plane:
        said = await ask(plane, header + GET)
        record = await plane.record()
    assert b"X-Forwarded-For: 192.0.2.7\r\n" in said
    assert b"X-Forwarded-Port: 8443\r\n" in said
    assert b"X-Forwarded-Proto: http\r\n" in said
    assert (record.client, record.peer, record.reason, record.status) == ("192.0.2.7", "192.0.2.7:4711", "ok", 200)
    assert record.bytes_in == len(GET)


@pytest.mark.parametrize(
    "header", [V1, V2, LOCAL, b"PROXY UNKNOWN\r\n", b""], ids=["v1", "v2", "local", "unknown", "no"]
)
async def test_a_header_may_come_byte_by_byte(header: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    named = header in (V1, V2)
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "accept"') as plane:
        pieces = [header[at : at + 1] for at in range(len(header))] + [GET[:1], GET[1:3], GET[3:]]
        said = await ask(plane, *pieces, pause=0.001)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert record.client == ("192.0.2.7" if named else "127.0.0.1")


async def test_a_long_header_is_taken_as_it_comes(tmp_path: Path, nursery: trio.Nursery) -> None:
    block = V2[16:28] + b"\x04\xff\x00" + bytes(0xFF00)
    header = V2[:14] + len(block).to_bytes(2, "big") + block
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        said = await ask(plane, header[:30_000], header[30_000:60_000], header[60_000:] + GET, pause=0.01)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert record.client == "192.0.2.7"


async def test_requests_behind_a_header_are_answered_one_by_one(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream:
            await stream.send_all(V2 + GET)
            first = await answer(stream)
            await stream.send_all(GET)
            second = await answer(stream)
        await plane.record(2)
    assert first.count(b"192.0.2.7") == second.count(b"192.0.2.7") == 2  # X-Forwarded-For and Forwarded
    assert [record.peer for record in plane.records] == ["192.0.2.7:4711"] * 2


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_who_is_not_trusted_is_not_believed(header: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with http(tmp_path, nursery, 'trusted_proxies = ["10.0.0.0/8"]\nproxy_protocol = "accept"') as plane:
        said = await ask(plane, header + GET)
        record = await plane.record()
        other = await ask(plane, GET)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert (record.client, record.reason) == ("127.0.0.1", Reason.BAD_REQUEST)
    assert b"192.0.2.7" not in said
    assert b"X-Forwarded-For: 127.0.0.1\r\n" in other


async def test_where_a_header_is_required_nobody_else_comes_in(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with http(tmp_path, nursery, 'trusted_proxies = ["10.0.0.0/8"]\nproxy_protocol = "require"') as plane:
        assert await say(plane, [V1 + GET]) == b""
        record = await plane.record()
        assert plane.counts("listener", "web")["refused"] == 1
        assert plane.counts("listener", "web")["connections"] == 0
    assert (record.reason, record.rule) == (Reason.PROXY_HEADER, "listeners.web.proxy_protocol")
    assert (record.detail, record.status, record.peer.split(":")[0]) == (
        "the peer is not in trusted_proxies",
        0,
        "127.0.0.1",
    )


BAD = [
    (GET, "it begins with no PROXY header"),
    (b"PROX\r\n", "it begins with no PROXY header"),
    (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", "PROXY header: b'01' is no port"),
    (V2[:-1] + b"!", "PROXY header: its checksum is wrong"),
    (SIGNATURE + b"\x11", "PROXY header: version 1"),
]


@pytest.mark.parametrize(("data", "detail"), BAD)
async def test_a_trusted_peer_has_to_send_a_good_one(
    data: bytes, detail: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        assert await say(plane, [data]) == b""
        record = await plane.record()
    assert (record.reason, record.detail, record.answered_by) == (Reason.PROXY_HEADER, detail, Side.GATEWAY)


@pytest.mark.parametrize("part", [b"", V1[:20], V2[:5], V2[:30], b"PRO"])
async def test_who_leaves_in_the_middle_of_a_header_is_told_of(
    part: bytes, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        assert await say(plane, [part]) == b""
        record = await plane.record()
    assert (record.reason, record.answered_by) == (Reason.CLIENT_ABORT, Side.CLIENT)


@pytest.mark.parametrize("part", [V1[:20], V2[:5], V2[:30]])
async def test_a_header_has_its_time(part: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    more = 'proxy_protocol = "accept"\ntimeouts.handshake = "300ms"'
    async with (
        http(tmp_path, nursery, TRUSTED + more) as plane,
        await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream,
    ):
        await stream.send_all(part)
        record = await plane.record()
    assert (record.reason, record.rule) == (Reason.PROXY_HEADER, "listeners.web.timeouts.handshake")


async def test_a_tcp_client_that_waits_for_the_server_gets_its_turn(tmp_path: Path, nursery: trio.Nursery) -> None:
    listener = f'upstream = "a"\n{TRUSTED}proxy_protocol = "accept"\ntimeouts.handshake = "300ms"'
    port = await greeting_origin(nursery, "smtp")
    async with (
        serving(tmp_path, tcp_text(listener, a=port)) as plane,
        await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream,
    ):
        with trio.fail_after(30):
            assert await stream.receive_some() == b"smtp:"
    nursery.cancel_scope.cancel()


async def test_a_flow_is_the_named_clients_and_its_bytes_are_untouched(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await greeting_origin(nursery, "a")
    async with serving(tmp_path, tcp_text(f'upstream = "a"\n{TRUSTED}proxy_protocol = "require"', a=port)) as plane:
        with trio.fail_after(30):
            assert await say(plane, [V2 + b"bytes"]) == b"a:bytes"
        record = await plane.record()
    assert (record.client, record.peer, record.bytes_in) == ("192.0.2.7", "192.0.2.7:4711", 5)
    nursery.cancel_scope.cancel()


async def test_a_proxy_says_by_its_header_that_the_client_came_by_tls(tmp_path: Path, nursery: trio.Nursery) -> None:
    ssl_tlv = b"\x20\x00\x05\x01\0\0\0\x01"
    block = V2[16:28] + ssl_tlv
    header = V2[:14] + len(block).to_bytes(2, "big") + block
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        said = await ask(plane, header + GET)
    assert b"X-Forwarded-Proto: https\r\n" in said


async def test_over_a_unix_socket_headers_are_believed_and_nothing_spins(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "web.sock"
    port = await telling_origin(nursery)
    text = http_text(port, 'proxy_protocol = "require"').replace("127.0.0.1:0", f"unix:{path}")
    async with serving(tmp_path, text) as plane:
        with trio.fail_after(30):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(V2[:7])
                await trio.sleep(0.1)
                turns = plane.plane.lane.turns
                await trio.sleep(0.2)
                assert plane.plane.lane.turns - turns < 20
                await stream.send_all(V2[7:] + GET)
                said = await answer(stream)
    assert b"X-Forwarded-For: 192.0.2.7\r\n" in said
    nursery.cancel_scope.cancel()


async def test_half_a_header_does_not_spin_the_lane(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with (
        http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "accept"') as plane,
        await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream,
    ):
        await stream.send_all(V2[:7])
        await trio.sleep(0.05)
        turns = plane.plane.lane.turns
        await trio.sleep(0.2)
        assert plane.plane.lane.turns - turns < 20
        await stream.send_all(V2[7:] + GET)
        assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")


async def test_the_source_hash_goes_by_the_named_client(tmp_path: Path, nursery: trio.Nursery) -> None:
    ports = [await greeting_origin(nursery, name) for name in "abcd"]
    addresses = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    listener = f'upstream = "a"\n{TRUSTED}proxy_protocol = "require"'
    text = tcp_text(listener, a=1).replace('["127.0.0.1:1"]', f'[{addresses}]\nbalance = "source_hash"')
    async with serving(tmp_path, text) as plane:
        with trio.fail_after(40):
            seen: dict[int, set[bytes]] = {}
            for number in range(24):
                header = b"PROXY TCP4 192.0.2.%d 198.51.100.9 1 2\r\n" % (number % 12)
                seen.setdefault(number % 12, set()).add(await say(plane, [header]))
    assert all(len(answers) == 1 for answers in seen.values())
    assert len(set.union(*seen.values())) > 1
    nursery.cancel_scope.cancel()


# -- drain and stop -------------------------------------------------------------------------------------------------


async def test_a_drain_gives_a_silent_one_a_moment_and_cuts_one_that_has_begun(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"') as plane:
        silent = await trio.open_tcp_stream("127.0.0.1", plane.port())
        begun = await trio.open_tcp_stream("127.0.0.1", plane.port())
        await begun.send_all(V1[:9])
        while plane.counts("listener", "web")["connections"] < 2:
            await trio.sleep(0.002)
        await trio.sleep(0.05)
        server = plane.servers["web"]
        server.retire(0.3)
        await server.wait_ended()
        record = await plane.record()
        assert plane.counts("listener", "web")["connections"] == 0
        assert await silent.receive_some() == b""
        await silent.aclose()
        await begun.aclose()
    assert {record.reason for record in plane.records} == {Reason.DRAINED}
    assert record.detail == "cut while it arrived"


async def test_one_that_arrives_in_a_drain_is_served(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with (
        http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"', "") as plane,
        await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream,
    ):
        await stream.send_all(V1[:9])
        while not plane.counts("listener", "web")["connections"]:
            await trio.sleep(0.002)
        await trio.sleep(0.05)
        plane.servers["web"].retire(20)
        await stream.send_all(V1[9:] + GET)
        said = await answer(stream)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in said.lower()


async def test_there_is_no_room_for_one_more_before_anything_is_read(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with (
        http(tmp_path, nursery, f'{TRUSTED}proxy_protocol = "require"\nmax_connections = 1') as plane,
        await trio.open_tcp_stream("127.0.0.1", plane.port()),
    ):
        while not plane.counts("listener", "web")["connections"]:
            await trio.sleep(0.002)
        said = await say(plane, [])
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert record.reason == Reason.CONNECTION_LIMIT


# -- the way by SNI and ALPN, bytes untouched -----------------------------------------------------------------------


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "postgresql", "http/1.1"])
    return context


ROUTES = 'sni = { "a.example" = "a", "*.b.example" = "b" }\nalpn = { postgresql = "pg" }'


@asynccontextmanager
async def passing(folder: Path, nursery: trio.Nursery, more: str = "") -> AsyncIterator[TestPlane]:
    """A plane that leads TLS clients to three servers."""
    context = server_context("a.example", "x.b.example", "y.x.b.example", "c.example")
    ports = {name: await tls_origin(nursery, context, name) for name in ("a", "b", "pg", "other")}
    with trio.fail_after(50):
        async with serving(folder, tcp_text(f"{ROUTES}\n{more}", **ports)) as plane:
            yield plane
    nursery.cancel_scope.cancel()


async def greet(plane: TestPlane, name: str, *alpn: str, piece: int = 1 << 16) -> bytes:
    """What the server behind says, who is really asked for `name`."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = trio.SSLStream(_Slow(raw, piece), client_context(*alpn), server_hostname=name)
        await stream.send_all(b"hi")
        said = b""
        while not said.endswith(b"hi"):
            said += await stream.receive_some(100)
    return said


class _Slow(trio.abc.HalfCloseableStream):
    """A stream that sends in small pieces."""

    def __init__(self, stream: trio.SocketStream, piece: int) -> None:
        self.stream = stream
        self.piece = piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for at in range(0, len(data), self.piece):
            await self.stream.send_all(bytes(data[at : at + self.piece]))
            if self.piece < 100:
                await trio.sleep(0.0005)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize(
    ("name", "alpn", "whom"),
    [
        ("a.example", (), b"a"),
        ("A.EXAMPLE", (), b"a"),
        ("x.b.example", ("h2",), b"b"),
        ("y.x.b.example", (), b"b"),
        ("a.example", ("postgresql",), b"pg"),
        ("c.example", ("http/1.1", "postgresql"), b"pg"),
    ],
)
async def test_the_name_and_the_protocols_of_a_hello_lead_the_way(
    name: str, alpn: tuple[str, ...], whom: bytes, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with passing(tmp_path, nursery) as plane:
        assert await greet(plane, name, *alpn) == whom + b":hi"
        record = await plane.record()
    assert (record.upstream, record.tls, record.reason) == (whom.decode(), "", "ok")
    assert record.host.lower() == name.lower()


async def test_a_hello_byte_by_byte_leads_the_same_way(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with passing(tmp_path, nursery) as plane:
        assert await greet(plane, "x.b.example", piece=1) == b"b:hi"


async def test_an_unknown_name_gets_an_alert_and_a_record(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with passing(tmp_path, nursery) as plane:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await greet(plane, "c.example")
        record = await plane.record()
        assert plane.counts("listener", "web")["refused"] == 1
    assert "UNRECOGNIZED_NAME" in str(caught.value.__cause__)
    assert (record.reason, record.host, record.rule) == (Reason.NO_ROUTE, "c.example", "listeners.web.sni")
    assert plane.counts("listener", "web")["connections"] == 0


async def test_an_unknown_name_goes_where_the_rest_goes(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with passing(tmp_path, nursery, 'upstream = "other"') as plane:
        assert await greet(plane, "c.example") == b"other:hi"


async def test_what_speaks_no_tls_goes_where_the_rest_goes_or_nowhere(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await greeting_origin(nursery, "rest")
    text = tcp_text(f'{ROUTES}\nupstream = "other"', a=1, b=1, pg=1, other=port)
    with trio.fail_after(30):
        async with serving(tmp_path, text) as plane:
            assert await say(plane, [b"GET / HTTP/1.0\r\n\r\n"]) == b"rest:GET / HTTP/1.0\r\n\r\n"
        async with serving(tmp_path, tcp_text(ROUTES, a=1, b=1, pg=1)) as plane:
            assert await say(plane, [b"GET / HTTP/1.0\r\n\r\n"]) == b""
            record = await plane.record()
    assert record.reason == Reason.NO_ROUTE
    nursery.cancel_scope.cancel()


async def test_a_malformed_hello_goes_nowhere(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with passing(tmp_path, nursery, 'upstream = "other"') as plane:
        assert await say(plane, [b"\x16\x03\x01\x00\x05\x01\x00\x00\x01!"]) == b"\x15\x03\x03\x00\x02\x02\x32"
        record = await plane.record()
    assert (record.reason, record.detail) == (
        Reason.TLS_REFUSED,
        "ClientHello: a length points beyond its end",
    )


# -- HTTP/2 by prior knowledge --------------------------------------------------------------------------------------


async def test_without_the_preface_http1_is_spoken(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with http(tmp_path, nursery, "http2 = true") as plane:
        assert (await ask(plane, GET)).startswith(b"HTTP/1.1 200 ")
        slow = await ask(plane, *[GET[at : at + 1] for at in range(len(GET))], pause=0.001)
        assert slow.startswith(b"HTTP/1.1 200 ")
        # As much of it as PRI and HTTP/1.1 have in common, and then something else.
        assert (await ask(plane, b"PR", b"OPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", pause=0.01)).startswith(
            b"HTTP/1.1 200 "
        )
        assert await say(plane, []) == b""
        await plane.record(3)
    assert len(plane.records) == 3
