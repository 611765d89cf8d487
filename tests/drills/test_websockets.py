"""WebSockets stay open through a hundred reloads, and through a new certificate; a stop says goodbye to them.

Half of them pass as they are, in the lane; the other half's frames are read (`[routes.NAME.websocket]`).
"""

from __future__ import annotations

import contextlib
import signal
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, open_websocket_url, serve_websocket

from tests.conftest import Certificates
from tests.gateway import Gateway, head_of, running, write

SOCKETS, RELOADS = 1000, 100
AT_ONCE = 50
"""Handshakes at once: a burst of a thousand would measure the listen queue of the drill's own server."""
PAUSE = 2.5
"""Seconds between two messages on a socket."""

Transport = Literal["plain", "tls"]


def config(folder: Path, port: int, origin: int, number: int, transport: Transport, drain: int) -> str:
    """Config number `number`: a route and an upstream come and go, a limit and a weight change each time."""
    tls = ""
    if transport == "tls":
        tls = f'tls = {{ certificates = [{{ cert = "{folder}/site.crt", key = "{folder}/site.key" }}] }}'
    return (
        head_of(folder, workers=2, more=f'drain = "{drain}s"')
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
max_connections = {20_000 + number}
{tls}
[routes.inspected]
path = "/inspected"
upstream = "sockets"
websocket = {{ max_message = "{64 + number}KiB", ping = "5s" }}
[routes.passed]
path = "/passed"
upstream = "sockets"
timeout = "{1000 + number}s"
[routes.extra{number}]
path = "/extra/{number}"
upstream = "extra{number % 3}"
[upstreams.sockets]
endpoints = [{{ address = "127.0.0.1:{origin}", weight = {1 + number % 5} }}]
pool = {{ max_connections = 10000 }}
[upstreams.extra{number % 3}]
endpoints = ["127.0.0.1:{origin}"]
"""
    )


async def echo(request: WebSocketRequest) -> None:
    """The endpoint's play: every message goes back."""
    socket = await request.accept()
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.send_message(await socket.get_message())


@attrs.define(eq=False)
class Sockets:
    """All the clients, and what has become of them."""

    url: str
    trust: ssl.SSLContext | None
    handshakes: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(AT_ONCE))
    open: set[str] = attrs.field(factory=set)
    echoes: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)
    ends: dict[str, int] = attrs.field(factory=dict)
    """By name, the code of the Close that it got; 1006: none."""

    async def keep_talking(self, name: str, path: str) -> None:
        """One WebSocket: each message must come back, until it is closed."""
        await self.handshakes.acquire()
        async with open_websocket_url(self.url + path, self.trust) as socket:
            self.handshakes.release()
            self.open.add(name)
            try:
                while True:
                    said = f"{name} {self.echoes[name]} " + "x" * (self.echoes[name] % 200)
                    await socket.send_message(said)
                    heard = await socket.get_message()
                    if heard != said:
                        self.wrong.append(f"{said!r} came back as {heard!r}")
                    self.echoes[name] += 1
                    await trio.sleep(PAUSE)
            except ConnectionClosed as exc:
                self.ends[name] = exc.reason.code if exc.reason is not None else 1006
            finally:
                self.open.discard(name)
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await socket._stream.aclose()  # the library leaves that to the server

    async def wait_echoes(self, count: int, within: float) -> None:
        """Until each open one has heard so many more."""
        wanted = {name: self.echoes[name] + count for name in self.open}
        with trio.move_on_after(within):
            while any(self.echoes[name] < least for name, least in wanted.items()):
                await trio.sleep(0.1)
        silent = [name for name, least in wanted.items() if self.echoes[name] < least]
        assert not silent, f"{len(silent)} of {len(wanted)} hear nothing any more, as {silent[:3]}"


async def _generation(gateway: Gateway) -> int:
    return int((await gateway.api("GET", "/api/v1/status"))["generation"])


async def shown(port: int, trust: ssl.SSLContext) -> int:
    """The serial number of the certificate that the gateway shows to who comes now."""
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, trust, server_hostname="localhost", https_compatible=True)
    async with stream:
        await stream.do_handshake()
        certificate = stream.getpeercert()
        return int(certificate["serialNumber"], 16)


def put_certificate(folder: Path, certificates: Certificates) -> None:
    """A new certificate and key for the same name, in the same files."""
    leaf = certificates.authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    for name, blob in (("site.key", leaf.private_key_pem.bytes()), ("site.crt", chain)):
        (folder / f"{name}.new").write_bytes(blob)
        (folder / f"{name}.new").rename(folder / name)


@pytest.mark.drill
@pytest.mark.parametrize("transport", ["plain", "tls"])
async def test_a_thousand_websockets_outlive_every_reload_and_hear_a_goodbye(
    transport: Transport,
    tmp_path: Path,
    free_port: Callable[[], int],
    nursery: trio.Nursery,
    drill_scale: float,
    certificates: Certificates,
) -> None:
    count, reloads = int(SOCKETS * drill_scale), max(5, int(RELOADS * drill_scale))
    port, folder, drain = free_port(), tmp_path / "gate", 5 + round(15 * drill_scale)
    folder.mkdir()
    trust = None
    if transport == "tls":
        put_certificate(folder, certificates)
        trust = ssl.create_default_context(cafile=str(certificates.ca))
    server = await nursery.start(serve_websocket, echo, "127.0.0.1", 0, None)
    origin: int = server.port

    def text(number: int) -> str:
        return config(folder, port, origin, number, transport, drain)

    async with running(folder, text(0)) as gateway, trio.open_nursery() as clients:
        sockets = Sockets(f"{'wss' if trust else 'ws'}://localhost:{port}", trust)
        for number in range(count):
            path = ("inspected", "passed")[number % 2]
            clients.start_soon(sockets.keep_talking, f"{path} {number}", f"/{path}")
        with trio.fail_after(120):
            while len(sockets.open) < count:
                await trio.sleep(0.05)
        before = await shown(port, trust) if trust else 0
        for number in range(1, reloads + 1):
            if trust and number == reloads // 2:
                put_certificate(folder, certificates)
            await _reload(gateway, text(number), sockets)
        await sockets.wait_echoes(2, 120)
        if trust:
            assert await shown(port, trust) != before
        status = await gateway.api("GET", "/api/v1/status")
        echoes = sockets.echoes.total()
        assert (await gateway.stop()) == 0
        with trio.fail_after(60):
            while len(sockets.ends) < count:
                await trio.sleep(0.05)
        lines = gateway.access_lines()
    nursery.cancel_scope.cancel()
    codes = {path: Counter(code for name, code in sockets.ends.items() if name.startswith(path)) for path in PATHS}
    print(f"{count} WebSockets over {transport}, {reloads} reloads, {echoes} echoes; ends {codes}; {status['reloads']}")
    assert sockets.wrong == []
    assert status["reloads"]["failed"] == 0
    drained = Counter((line["route"], line["reason"], line["detail"]) for line in lines if line["status"] == 101)
    assert codes["inspected"] == {1012: count // 2}, drained
    assert drained[("inspected", "drained", "closed with 1012")] == count // 2
    assert {(route, reason) for route, reason, _ in drained} == {("inspected", "drained"), ("passed", "drained")}


PATHS = ("inspected", "passed")


async def _reload(gateway: Gateway, text: str, sockets: Sockets) -> None:
    """One SIGHUP, and the generation that comes of it; nobody was lost."""
    was = await _generation(gateway)
    write(gateway.config, text)
    gateway.signal(signal.SIGHUP)
    with trio.fail_after(60):
        while await _generation(gateway) == was:
            await trio.sleep(0.02)
    assert not sockets.ends, f"lost after generation {was}: {sockets.ends}"
