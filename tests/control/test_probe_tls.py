"""Probes of endpoints that are reached by TLS, with a PROXY header, or over HTTP/2, and of gRPC's health service."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import attrs
import grpc
import pytest
import trio

from tcpgate.codec.client_tls import ClientTls
from tcpgate.codec.http2.events import DataReceived, HeadersReceived
from tcpgate.codec.http2.machine import Http2
from tcpgate.config.schema import Health, ProxyOut
from tcpgate.control.probe import probe_once
from tcpgate.kinds import PROBES
from tcpgate.policy.health import ProbeResult
from tcpgate.state.reach import PLAIN, Reach
from tests import tls_origin as origins
from tests.tls_origin import NAME, Wire, answering, s_server, server_context, tls_origin

OURS = ClientTls(ca=origins.ca_pem(), name=NAME)
BY_TLS = Reach(http=attrs.evolve(OURS, alpn=("http/1.1",)), tcp=OURS)
BY_H2 = Reach(http=attrs.evolve(OURS, alpn=("h2",), alpn_required=True), tcp=OURS, version="h2")
HTTP = Health(http="/healthz")
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


async def ask(spec: Health, port: int, reach: Reach = PLAIN, timeout: float = 20.0) -> ProbeResult:  # noqa: ASYNC109
    """One probe of a local port."""
    return await probe_once(spec, f"127.0.0.1:{port}", trio.current_time() + timeout, reach, kinds=PROBES)


# -- TLS ------------------------------------------------------------------------------------------------------------


async def test_http_is_asked_over_the_upstreams_tls_and_verified(tmp_path: Path, free_port: Callable[[], int]) -> None:
    async with tls_origin(context=server_context(alpn=("http/1.1",))) as origin:
        result = await ask(HTTP, origin.port, BY_TLS)
    assert (result.ok, result.cause) == (True, "status 200")
    assert origin.heads[0].startswith(b"GET /healthz HTTP/1.1\r\n")
    with s_server(tmp_path, free_port(), origins.expired()) as port:
        result = await ask(HTTP, port, BY_TLS)
    assert (result.ok, result.cause) == (False, "tls: certificate has expired")


async def test_an_answer_that_tls_cuts_is_no_answer() -> None:
    async def cut(wire: Wire) -> None:
        await wire.head()
        await wire.say(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await wire.raw.aclose()

    async with tls_origin(cut) as origin:
        result = await ask(HTTP, origin.port, BY_TLS)
    assert (result.ok, result.cause) == (False, "reset in body")


async def test_send_and_expect_go_over_tls_too() -> None:
    async def pong(wire: Wire) -> None:
        assert await wire.tls.receive_some(100) == b"PING"
        await wire.say(b"+PONG")

    async with tls_origin(pong) as origin:
        assert (await ask(Health(send="PING", expect="PONG"), origin.port, BY_TLS)).ok


async def test_a_tls_probe_does_not_judge_the_certificate(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with s_server(tmp_path, free_port(), origins.expired()) as port:
        result = await ask(Health(tls=True), port, BY_TLS)
    assert (result.ok, result.cause) == (True, "TLSv1.3 handshake")


# -- the PROXY header -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "header"), [("v2", LOCAL), ("v1", b"PROXY UNKNOWN\r\n")])
@pytest.mark.parametrize("spec", [HTTP, Health(tls=True), Health(send="GET / HTTP/1.1\r\n\r\n", expect="200")])
async def test_a_probe_says_that_it_is_nobodys(version: ProxyOut, header: bytes, spec: Health) -> None:
    async with tls_origin(header=len(header)) as origin:
        assert (await ask(spec, origin.port, attrs.evolve(BY_TLS, proxy=version))).ok
    assert origin.wires[0].header == header


async def test_a_connect_alone_says_so_too(nursery: trio.Nursery) -> None:
    said = trio.Event()

    async def hear(stream: trio.SocketStream) -> None:
        async with stream:
            if await stream.receive_some(100) == LOCAL:
                said.set()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, hear, listeners)
    result = await ask(Health(tcp=True), listeners[0].socket.getsockname()[1], Reach(proxy="v2"))
    assert (result.ok, result.cause) == (True, "connected")
    with trio.fail_after(20):
        await said.wait()
    nursery.cancel_scope.cancel()


async def test_a_unix_socket_is_probed_alike(tmp_path: Path, nursery: trio.Nursery) -> None:
    context, path = server_context(), str(tmp_path / "app.sock")
    heads: list[bytes] = []

    async def serve(raw: trio.SocketStream) -> None:
        header = b""
        while len(header) < len(LOCAL):
            header += await raw.receive_some(len(LOCAL) - len(header))
        async with trio.SSLStream(raw, context, server_side=True) as tls:
            heads.append(header + bytes(await tls.receive_some(65536)))
            await tls.send_all(origins.OK)

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(path)
    listening.listen(4)
    nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
    reach = attrs.evolve(BY_TLS, proxy="v2")
    result = await probe_once(HTTP, f"unix:{path}", trio.current_time() + 20, reach, kinds=PROBES)
    assert (result.ok, result.cause) == (True, "status 200")
    assert heads[0].startswith(LOCAL + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    reach = attrs.evolve(reach, http=attrs.evolve(OURS, name=None))
    result = await probe_once(HTTP, f"unix:{path}", trio.current_time() + 20, reach, kinds=PROBES)
    assert result.cause == "tls: there is no name to verify: the upstream's tls.name sets one"
    nursery.cancel_scope.cancel()


# -- HTTP/2 ---------------------------------------------------------------------------------------------------------


def h2_origin(status: bytes, body: bytes, heads: list[dict[bytes, bytes]]) -> Callable[[Wire], object]:
    """A server that answers each request so."""

    async def play(wire: Wire) -> None:
        machine = Http2("server")
        await wire.say(machine.take_out())
        while data := await wire.tls.receive_some(65536):
            for event in machine.receive(bytes(data), 0.0):
                if isinstance(event, HeadersReceived):
                    heads.append(dict(event.fields))
                if isinstance(event, HeadersReceived | DataReceived) and event.end:
                    machine.send_headers(event.stream, [(b":status", status)])
                    machine.send_data(event.stream, body, end=True)
            await wire.say(machine.take_out())

    return play


async def test_an_upstream_of_http2_is_asked_by_it() -> None:
    heads: list[dict[bytes, bytes]] = []
    context = server_context(alpn=("h2",))
    async with tls_origin(h2_origin(b"200", b"fine", heads), context) as origin:  # type: ignore[arg-type]
        result = await ask(Health(http="/healthz", body="^fine$"), origin.port, BY_H2)
        assert (result.ok, result.cause) == (True, "status 200")
        assert (await ask(Health(http="/", body="ill"), origin.port, BY_H2)).cause == "body did not match: fine"
    assert heads[0][b":path"] == b"/healthz"
    assert heads[0][b":scheme"] == b"https"
    async with tls_origin(h2_origin(b"503", b"", []), server_context(alpn=("h2",))) as origin:  # type: ignore[arg-type]
        assert (await ask(HTTP, origin.port, BY_H2)).cause == "status 503"


async def test_an_endpoint_without_http2_is_told_so() -> None:
    async with tls_origin(answering(origins.OK)) as origin:
        result = await ask(HTTP, origin.port, BY_H2)
    assert result.cause == "tls: it does not speak h2: it knows no ALPN, or none of that"


async def test_what_is_no_http2_fails_with_what_it_did(nursery: trio.Nursery) -> None:
    async def other(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, other, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    result = await ask(Health(grpc=""), port)
    assert result.ok is False
    assert result.cause.startswith("not well-formed HTTP/2 in head: ")
    nursery.cancel_scope.cancel()


# -- gRPC -----------------------------------------------------------------------------------------------------------


@attrs.define
class Doctor(grpc.GenericRpcHandler):  # type: ignore[misc]
    """grpc.health.v1.Health on grpcio's own server: what it answers, by service name."""

    states: dict[str, int | grpc.StatusCode]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self.check)

    def check(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        state = self.states.get(request[2:].decode(), grpc.StatusCode.NOT_FOUND)
        if isinstance(state, grpc.StatusCode):
            context.abort(state, "nobody here by that name")
        return bytes((8, state)) if state else b""


@contextlib.contextmanager
def grpc_server(states: dict[str, int | grpc.StatusCode], *, tls: bool) -> Iterator[int]:
    """The port of a grpcio server with a health service."""
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Doctor(states)])
    if tls:
        shown = origins.good()
        credentials = grpc.ssl_server_credentials([(shown.key.encode(), shown.chain.encode())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait(20)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("service", "ok", "cause"),
    [
        ("", True, "grpc: SERVING"),
        ("shop.Cart", True, "grpc: SERVING"),
        ("ill", False, "grpc: NOT_SERVING"),
        ("new", False, "grpc: UNKNOWN"),
        ("odd", False, "grpc: SERVICE_UNKNOWN"),
        ("nobody", False, "grpc-status NOT_FOUND: nobody here by that name"),
        ("busy", False, "grpc-status UNAVAILABLE: nobody here by that name"),
    ],
)
async def test_what_grpcs_health_service_says(tls: bool, service: str, ok: bool, cause: str) -> None:
    states: dict[str, int | grpc.StatusCode] = {
        "": 1, "shop.Cart": 1, "ill": 2, "new": 0, "odd": 3, "busy": grpc.StatusCode.UNAVAILABLE,
    }  # fmt: skip
    with grpc_server(states, tls=tls) as port:
        result = await ask(Health(grpc=service), port, BY_TLS if tls else PLAIN)
    assert (result.ok, result.cause) == (ok, cause)


async def test_a_server_without_the_health_service_is_told() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    result = await ask(Health(grpc=""), port)
    server.stop(None).wait(20)
    assert result.ok is False
    assert result.cause.startswith("grpc-status UNIMPLEMENTED")
