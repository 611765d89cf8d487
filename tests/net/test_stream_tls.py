"""A `Stream` over TLS: what is different from a plain one, and what must not be."""

from __future__ import annotations

import socket
import ssl
import struct

import pytest
import trio

from tcpgate.errors import ClientError, Reason, Side, UpstreamError
from tcpgate.net.stream import Stream
from tests.net.loopback import Loopback
from tests.net.tls_rig import tls_pair, wait


async def test_it_is_not_plain_so_nobody_splices(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    assert not Stream(server, Side.CLIENT).plain
    assert not Stream(client, Side.UPSTREAM).plain
    assert Stream(loopback.pair()[0], Side.CLIENT).plain


async def test_tickets_do_not_disturb_its_quiet_and_bytes_do(loopback: Loopback) -> None:
    server, client = tls_pair(loopback, ssl.TLSVersion.TLSv1_3)
    stream = Stream(client, Side.UPSTREAM)
    assert wait(client)  # the tickets
    assert stream.is_quiet()
    server.send(b"unasked")
    assert wait(client)
    assert not stream.is_quiet()
    assert await stream.receive_some() == b"unasked"
    server.close()
    assert wait(client)
    assert not stream.is_quiet()


async def test_small_receives_lose_nothing_of_a_record(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    stream = Stream(client, Side.UPSTREAM)
    server.send(bytes(range(256)) * 40)
    got = b""
    with trio.fail_after(20):
        while len(got) < 10_240:
            got += await stream.receive_some(7)
    assert got == bytes(range(256)) * 40


async def test_a_cut_endpoint_and_a_reset_client_are_told_as_on_a_plain_one(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    socket.socket.shutdown(server, socket.SHUT_WR)
    with pytest.raises(UpstreamError, match="ECONNRESET") as upstream:
        await Stream(client, Side.UPSTREAM).receive_some()
    assert upstream.value.reason is Reason.UPSTREAM_CLOSED

    server, client = tls_pair(loopback)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with pytest.raises(ClientError, match="ECONNRESET") as downstream:
        await Stream(server, Side.CLIENT).receive_some()
    assert downstream.value.reason is Reason.CLIENT_ABORT


async def test_an_aborted_one_is_no_good_end_for_the_peer(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    stream = Stream(server, Side.CLIENT)
    await stream.send_all(b"half")
    stream.abort()
    with pytest.raises(UpstreamError, match="ECONNRESET"):  # noqa: PT012 - the bytes may come before it, or not
        while True:
            await Stream(client, Side.UPSTREAM).receive_some()


async def test_a_send_that_is_cut_in_a_record_poisons_it(loopback: Loopback) -> None:
    server, _client = tls_pair(loopback, buffer=4096)
    stream = Stream(server, Side.CLIENT)
    with pytest.raises(ClientError):
        await stream.send_all(bytes(3_000_000), deadline=trio.current_time() + 0.05, late=Reason.CLIENT_SLOW)
    assert stream.poisoned
    stream.close()
