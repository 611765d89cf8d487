"""Whatever comes instead of an arrival: every connection ends, with a record, and no callback of the lane fails."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest
import trio

from tcpgate.codec.client_hello import ClientHello, parse
from tcpgate.codec.proxy_header import SIGNATURE, render
from tcpgate.errors import Reason
from tcpgate.proxy.arrival import Arrival
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import GET, client_context, greeting_origin, say, telling_origin, write_certificate


def hello(name: str = "a.example") -> bytes:
    """What OpenSSL says first."""
    out = ssl.MemoryBIO()
    tls = client_context("h2", "http/1.1").wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def records(message: bytes, size: int) -> bytes:
    """A handshake message in records of this size."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def padded(name: str, size: int) -> bytes:
    """A hello with a padding extension of this size, in the longest records."""
    whole = hello(name)[5:]
    at = 4 + 2 + 32
    at += 1 + whole[at]
    at += 2 + int.from_bytes(whole[at : at + 2], "big")
    at += 1 + whole[at]
    extensions = whole[at + 2 :] + b"\xff\x77" + size.to_bytes(2, "big") + bytes(size)
    body = whole[4:at] + len(extensions).to_bytes(2, "big") + extensions
    return records(b"\x01" + len(body).to_bytes(3, "big") + body, 1 << 14)


LISTENERS = {
    "plain": 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "accept"',
    "strict": 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "require"\nhttp2 = true',
    "tls": 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "accept"\ntls.certificates = [{pair}]',
    "names": 'protocol = "tcp"\nsni = {{ "a.example" = "tcp" }}\nalpn = {{ x = "tcp" }}',
    "both": 'protocol = "tcp"\nsni = {{ "a.example" = "tcp" }}\ntls = {{ certificates = [{pair}], alpn = [] }}',
}


async def text(folder: Path, nursery: trio.Nursery) -> str:
    """A listener of each kind."""
    pair = write_certificate(folder, "site", "a.example")
    listeners = "".join(
        f'[listeners.{name}]\nbind = ["127.0.0.1:0"]\ntimeouts.handshake = "300ms"\ntimeouts.head = "300ms"\n'
        f"{more.format(pair=pair)}\n"
        for name, more in LISTENERS.items()
    ).replace('bind = ["127.0.0.1:0"]', 'bind = ["127.0.0.1:{}"]')
    for host in range(1, len(LISTENERS) + 1):  # the plane knows its sockets by what is bound
        listeners = listeners.replace("127.0.0.1:{}", f"127.0.0.{host}:0", 1)
    return f"""
[gateway]
drain = "200ms"
{listeners}
[routes.all]
upstream = "http"
[upstreams.http]
endpoints = ["127.0.0.1:{await telling_origin(nursery)}"]
[upstreams.tcp]
endpoints = ["127.0.0.1:{await greeting_origin(nursery, "tcp")}"]
"""


def mutated(rng: random.Random) -> list[bytes]:
    """Something like a beginning, in some pieces."""
    v2 = render("v2", ("192.0.2.7", 4711), ("198.51.100.9", 8443), authority="a.example")
    start = rng.choice([b"", b"", v2, b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", SIGNATURE + b"\x20\0\0\0"])
    data = bytearray(start + rng.choice([hello(), hello("c.example"), GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""]))
    for _ in range(rng.randrange(3)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    del data[rng.randrange(len(data) + 1) if rng.random() < 0.3 else len(data) :]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    return [bytes(data[one:other]) for one, other in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_costs_its_own_connection_only(seed: int, tmp_path: Path, nursery: trio.Nursery) -> None:
    rng = random.Random(seed)
    async with serving(tmp_path, await text(tmp_path, nursery)) as plane:
        with trio.fail_after(60):
            async with trio.open_nursery() as clients:
                for _ in range(20):
                    for name in LISTENERS:
                        clients.start_soon(_speak, plane, name, mutated(rng))
            while any(server.connections for server in plane.servers.values()):
                await trio.sleep(0.01)
        assert plane.plane.lane.faults == 0
        assert not [record for record in plane.records if record.reason == Reason.BUG]
        for name in LISTENERS:
            assert plane.counts("listener", name)["connections"] == 0
    nursery.cancel_scope.cancel()


async def _speak(plane: TestPlane, name: str, pieces: list[bytes]) -> None:
    bind = plane.config.listeners[name].bind[0]
    host, port = plane.sockets[bind].getsockname()
    with trio.move_on_after(10):
        async with await trio.open_tcp_stream(host, port) as stream:
            try:
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.sleep(0.002)
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                return


@pytest.mark.parametrize("size", [2_000, 20_000, 60_000])
async def test_a_long_hello_passes_untouched(size: int, tmp_path: Path, nursery: trio.Nursery) -> None:
    data = padded("a.example", size)
    told = parse(data)
    assert isinstance(told, ClientHello)
    listener = 'protocol = "tcp"\nbind = ["127.0.0.1:0"]\nsni = { "a.example" = "tcp" }\n[upstreams.tcp]\n'
    port = await greeting_origin(nursery, "tcp")
    async with serving(tmp_path, f'[listeners.web]\n{listener}endpoints = ["127.0.0.1:{port}"]\n') as plane:
        with trio.fail_after(30):
            pieces = [data[at : at + 7_000] for at in range(0, len(data), 7_000)]
            assert await say(plane, pieces, pause=0.005) == b"tcp:" + data
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("where", ["_step", "begin", "_settle"])
async def test_a_bug_costs_one_connection_and_is_told(
    where: str, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    port = await telling_origin(nursery)
    config = f"""
[listeners.web]
bind = ["127.0.0.1:0"]
proxy_protocol = "require"
trusted_proxies = ["127.0.0.1"]
[routes.all]
upstream = "http"
[upstreams.http]
endpoints = ["127.0.0.1:{port}"]
"""
    with trio.fail_after(30):
        async with serving(tmp_path, config) as plane:
            header = b"PROXY UNKNOWN\r\n"
            with monkeypatch.context() as patch:
                patch.setattr(Arrival, where, fail)
                assert await say(plane, [header + GET]) == b""
                while plane.servers["web"].connections:
                    await trio.sleep(0.005)
            assert plane.counts("listener", "web")["connections"] == 0
            assert (len(plane.plane.lane), len(plane.plane.lane.timed)) == (1, 0)  # the listening socket
            assert (await say(plane, [header + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]))[:12] == (
                b"HTTP/1.1 200"
            )
    nursery.cancel_scope.cancel()
