"""Endpoints behind TLS and behind PROXY headers, through the real data plane: with the lane and without it alike."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.codec.proxy_header import ALPN, ProxyHeader, parse
from tcpgate.errors import Reason
from tcpgate.state.runtime import CONNECT_FAILURES, CONNECTS, REUSED
from tcpgate.stats.totals import worker_figures
from tests import tls_origin as origins
from tests.gateway import make_nginx
from tests.plane import TestPlane, serving
from tests.tls_origin import NAME, OK, Shown, Wire, answering, s_server, server_context, tls_origin

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
MIB = 1 << 20

HOSTS = {"web": "127.0.0.1", "flow": "127.0.0.2"}
"""Where the listeners are."""

FreePort = Callable[[], int]


@attrs.define
class Stage:
    """What the rows have in common."""

    folder: Path
    lane: bool

    def config(self, *ports: int, upstream: str = "", tls: str = "") -> str:
        """One http listener, one tcp listener, one upstream over TLS; `tls` is put into its table."""
        (self.folder / "ca.pem").write_text(origins.ca_pem())
        endpoints = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        return f"""
[gateway]
lane = {str(self.lane).lower()}
[listeners.web]
bind = ["127.0.0.1:0"]
[listeners.flow]
protocol = "tcp"
bind = ["127.0.0.2:0"]
upstream = "api"
[routes.all]
upstream = "api"
[upstreams.api]
balance = "first"
endpoints = [{endpoints}]
{upstream}
[upstreams.api.tls]
{tls or f'ca = "ca.pem"{chr(10)}name = "{NAME}"'}
"""


@pytest.fixture(params=[True, False], ids=["lane", "tasks"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    """Each row is played with the lane and without it."""
    return Stage(tmp_path, request.param)


async def ask(plane: TestPlane, *requests: bytes, listener: str = "web") -> bytes:
    """The answers to requests on one connection, each awaited (as far as its Content-Length says)."""
    stream = await trio.open_tcp_stream(HOSTS[listener], plane.port(listener))
    said = b""
    async with stream:
        with trio.fail_after(30):
            for count, request in enumerate(requests or (GET,), 1):
                await stream.send_all(request)
                while not is_whole(said, count):
                    data = await stream.receive_some(65536)
                    if not data:
                        return said
                    said += data
    return said


def is_whole(said: bytes, count: int) -> bool:
    """Whether so many answers are here."""
    for _ in range(count):
        head, found, said = said.partition(b"\r\n\r\n")
        if not found:
            return False
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(said) < length:
            return False
        said = said[length:]
    return True


def laned(plane: TestPlane) -> int:
    """Exchanges that the lane did."""
    return worker_figures(plane.shared, 1)["lane_exchanges"]


# -- it works -------------------------------------------------------------------------------------------------------


async def test_requests_go_over_one_verified_connection(stage: Stage) -> None:
    async with tls_origin() as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        said = await ask(plane, GET, GET, GET)
        record = await plane.record(3)
        counts = plane.counts("endpoint", f"api/127.0.0.1:{origin.port}")
        assert laned(plane) == (3 if stage.lane else 0)
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert (record.reason, record.status) == (Reason.OK, 200)
    assert len(origin.wires) == 1
    assert origin.names == [NAME]
    assert (counts["connects"], counts["reused"], counts["connect_failures"]) == (1, 2, 0)


async def test_a_ticket_that_comes_while_a_connection_is_idle_is_no_end_of_it(stage: Stage) -> None:
    async def late(wire: Wire) -> None:
        # OpenSSL 3's server has sent its tickets with the handshake. An answer longer than one record, a pause, and
        # the next request: whatever comes between must not cost the connection.
        await answering(OK)(wire)

    async with tls_origin(late) as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        await ask(plane)
        await plane.record(1)
        for _ in range(3):
            await trio.sleep(0.02)
            plane.plane.sweep(trio.current_time())
        assert len(plane.endpoint("api", f"127.0.0.1:{origin.port}").idle) == 1
        await ask(plane)
        await plane.record(2)
    assert len(origin.wires) == 1


async def test_a_later_connection_resumes_the_session(stage: Stage) -> None:
    bye = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def once(wire: Wire) -> None:
        await wire.head()
        await wire.say(bye)

    async with tls_origin(once) as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        for count in range(1, 4):
            await ask(plane)
            await plane.record(count)
    assert origin.resumed == [False, True, True]


async def test_long_bodies_come_and_go_whole(stage: Stage) -> None:
    body = hashlib.sha256(b"x").digest() * (MIB // 4)  # 8 MiB
    got = hashlib.sha256()

    async def play(wire: Wire) -> None:
        head = await wire.head()
        if head.startswith(b"POST"):
            rest = head.partition(b"\r\n\r\n")[2]
            got.update(rest)
            left = len(body) - len(rest)
            while left:
                data = await wire.tls.receive_some(65536)
                got.update(data)
                left -= len(data)
            await wire.say(OK)
        else:
            await wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            await wire.say(body)

    async with tls_origin(play) as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        said = await ask(plane)
        assert said.partition(b"\r\n\r\n")[2] == body
        head = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body)
        said = await ask(plane, head + body)
    assert b"200 OK" in said
    assert got.digest() == hashlib.sha256(body).digest()


async def test_an_answer_that_is_cut_is_not_taken_for_a_whole_one(stage: Stage) -> None:
    async def cut(wire: Wire) -> None:
        await wire.head()
        await wire.say(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it")
        await wire.raw.aclose()  # FIN, but no close_notify: an attacker can send one

    async with tls_origin(cut) as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        said = await ask(plane)
        record = await plane.record()
    assert record.reason in (Reason.UPSTREAM_CLOSED, Reason.UPSTREAM_INCOMPLETE)
    assert not said.endswith(b"0\r\n\r\n")


async def test_nginx_is_an_endpoint_by_tls(stage: Stage, tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    nginx = make_nginx(tmp_path / "nginx", port)
    good = origins.good()
    (tmp_path / "nginx/all.pem").write_text(good.both)
    text = (tmp_path / "nginx/nginx.conf").read_text()
    pem = tmp_path / "nginx/all.pem"
    tls = f"listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {pem}; ssl_certificate_key {pem};"
    (tmp_path / "nginx/nginx.conf").write_text(text.replace(f"listen 127.0.0.1:{port} backlog=4096;", tls))
    nginx.start()
    try:
        async with serving(stage.folder, stage.config(port)) as plane:
            said = await ask(plane, GET, GET)
            counts = plane.counts("endpoint", f"api/127.0.0.1:{port}")
    finally:
        nginx.kill()
    assert said.count(b"origin %d" % port) == 2
    assert counts["reused"] == 1


# -- it does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (origins.expired, "certificate has expired"),
        (origins.of_another, f"hostname mismatch: wants {NAME}, certificate has other.internal, 127.0.0.2"),
        (origins.self_signed, "self-signed certificate"),
        (origins.unknown, "unable to get local issuer certificate"),
    ],
)
async def test_an_endpoint_that_proves_nothing_gets_no_request(
    stage: Stage, certificate: Callable[[], Shown], says: str, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), certificate()) as port:
        async with serving(stage.folder, stage.config(port)) as plane:
            said = await ask(plane)
            record = await plane.record()
            counts = plane.counts("endpoint", f"api/127.0.0.1:{port}")
    assert said.startswith(b"HTTP/1.1 502 ")
    assert b"; error=tls_certificate_error" in said
    assert record.reason is Reason.TLS_CERTIFICATE
    assert says in record.detail
    assert [attempt.reason for attempt in record.attempts] == [Reason.TLS_CERTIFICATE]
    assert counts["connect_failures"] == 1
    assert counts["connections"] == 0
    assert plane.observed[0].connect_failures == 1
    assert says in plane.observed[0].cause


async def test_another_endpoint_is_tried_whatever_the_method(stage: Stage, tmp_path: Path, free_port: FreePort) -> None:
    with s_server(tmp_path, free_port(), origins.expired()) as port:
        async with tls_origin() as origin, serving(stage.folder, stage.config(port, origin.port)) as plane:
            said = await ask(plane, b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")
            record = await plane.record()
    assert b"200 OK" in said
    assert [attempt.reason for attempt in record.attempts] == [Reason.TLS_CERTIFICATE, Reason.OK]


async def test_a_handshake_that_hangs_is_late(stage: Stage, nursery: trio.Nursery) -> None:
    async def hang(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, hang, listeners)
    port = listeners[0].socket.getsockname()[1]
    async with serving(stage.folder, stage.config(port, upstream='timeouts.connect = "200ms"')) as plane:
        said = await ask(plane)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 504 ")
    assert record.reason is Reason.CONNECT_TIMEOUT
    assert "the TLS handshake is not over" in record.detail
    nursery.cancel_scope.cancel()


async def test_an_endpoint_that_wants_our_certificate_gets_it(
    stage: Stage, tmp_path: Path, free_port: FreePort
) -> None:
    (tmp_path / "ca.pem").write_text(origins.ca_pem())
    (tmp_path / "ours.pem").write_text(origins.client().chain)
    (tmp_path / "ours.key").write_text(origins.client().key)
    (tmp_path / "ours.key").chmod(0o600)
    wants = ["-Verify", "1", "-verify_return_error", "-CAfile", str(tmp_path / "ca.pem")]
    tls = f'ca = "ca.pem"\nname = "{NAME}"\n'
    shows = tls + 'cert = "ours.pem"\nkey = "ours.key"'
    with s_server(tmp_path, free_port(), origins.good(), *wants) as port:
        async with serving(stage.folder, stage.config(port, tls=shows)) as plane:
            assert b"200 ok" in await ask(plane, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        async with serving(stage.folder, stage.config(port, tls=tls)) as plane:
            said = await ask(plane)
            record = await plane.record()
    # With TLS 1.3 an endpoint says so only when the handshake is over for us.
    assert said.startswith(b"HTTP/1.1 502 ")
    assert record.reason is Reason.TLS_HANDSHAKE
    assert "certificate required" in record.detail


async def test_a_pin_decides_where_nothing_is_verified(stage: Stage, tmp_path: Path, free_port: FreePort) -> None:
    own = origins.self_signed()
    with s_server(tmp_path, free_port(), own) as port:
        for pin, status in ((own.pin, 200), (origins.good().pin, 502)):
            tls = f'verify = false\npin = ["{pin}"]'
            async with serving(stage.folder, stage.config(port, tls=tls)) as plane:
                said = await ask(plane, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert b" %d " % status in said.partition(b"\r\n")[0]


# -- reloads --------------------------------------------------------------------------------------------------------


async def test_a_reload_that_trusts_another_uses_no_old_connection(stage: Stage) -> None:
    async with tls_origin() as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        await ask(plane)
        await plane.record(1)
        endpoint = plane.endpoint("api", f"127.0.0.1:{origin.port}")
        (stage.folder / "other.pem").write_text(origins.stranger().cert_pem.bytes().decode())
        plane.apply(stage.config(origin.port, tls=f'ca = "other.pem"\nname = "{NAME}"'))
        assert plane.endpoint("api", f"127.0.0.1:{origin.port}") is endpoint
        assert not endpoint.idle
        assert (await ask(plane)).startswith(b"HTTP/1.1 502 ")
        plane.apply(stage.config(origin.port))
        assert b"200 OK" in await ask(plane)


# -- flows ----------------------------------------------------------------------------------------------------------


async def test_a_flow_is_encrypted_anew(stage: Stage) -> None:
    async with tls_origin() as origin, serving(stage.folder, stage.config(origin.port)) as plane:
        assert await ask(plane, GET, GET, listener="flow") == OK * 2
        record = await plane.record()
    assert (record.reason, record.proto) == (Reason.OK, "tcp")
    assert record.bytes_out == 2 * len(OK)


async def test_a_flow_whose_endpoint_proves_nothing_is_reset(stage: Stage, tmp_path: Path, free_port: FreePort) -> None:
    with s_server(tmp_path, free_port(), origins.unknown()) as port:
        async with serving(stage.folder, stage.config(port)) as plane:
            with pytest.raises(trio.BrokenResourceError):
                await ask(plane, listener="flow")
            record = await plane.record()
    assert record.reason is Reason.TLS_CERTIFICATE
    assert "unable to get local issuer certificate" in record.detail


# -- PROXY headers --------------------------------------------------------------------------------------------------


async def heard(
    stage: Stage, version: str, listener: str, play: Callable[[TestPlane, int], Awaitable[object]], more: str = ""
) -> list[bytes]:
    """What an endpoint in the clear hears of each connection, up to the end of its first head."""
    said: list[bytes] = []

    async def hear(stream: trio.SocketStream) -> None:
        async with stream:
            got = b""
            while b"\r\n\r\n" not in got.partition(b"GET")[2]:
                data = await stream.receive_some(65536)
                if not data:
                    return
                got += data
            said.append(got)
            await stream.send_all(OK)
            await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hear, listeners)
        port = listeners[0].socket.getsockname()[1]
        text = stage.config(port, upstream=f'proxy_protocol = "{version}"').partition("[upstreams.api.tls]")[0]
        text = text.replace(f"[listeners.{listener}]", f"[listeners.{listener}]\n{more}")
        async with serving(stage.folder, text) as plane:
            await play(plane, plane.port(listener))
        nursery.cancel_scope.cancel()
    return said


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("listener", ["web", "flow"])
async def test_an_endpoint_is_told_who_the_client_is(stage: Stage, version: str, listener: str) -> None:
    clients: list[tuple[str, int]] = []

    async def play(plane: TestPlane, port: int) -> None:
        async with await trio.open_tcp_stream(HOSTS[listener], port) as stream:
            clients.append(stream.socket.getsockname())
            clients.append((HOSTS[listener], port))
            await stream.send_all(GET)
            await stream.receive_some(65536)

    (said,) = await heard(stage, version, listener, play)
    header = parse(said)
    assert isinstance(header, ProxyHeader)
    assert [header.source, header.destination] == clients
    assert said[header.size :].startswith(b"GET / HTTP/1.1\r\n")


async def test_a_connection_that_says_who_its_client_is_serves_one_exchange(stage: Stage) -> None:
    async def play(plane: TestPlane, port: int) -> None:
        await ask(plane, GET, GET)
        await ask(plane, GET)
        await plane.record(3)

    said = await heard(stage, "v2", "web", play)
    assert len(said) == 3
    sources = [header.source for one in said if isinstance(header := parse(one), ProxyHeader)]
    assert sources[0] == sources[1] != sources[2]


async def test_the_header_goes_before_tls(stage: Stage) -> None:
    size = 28 + 7  # v2, IPv4, and the checksum's TLV
    async with (
        tls_origin(header=size) as origin,
        serving(stage.folder, stage.config(origin.port, upstream='proxy_protocol = "v2"')) as plane,
    ):
        assert b"200 OK" in await ask(plane)
        assert await ask(plane, listener="flow") == OK
    for wire in origin.wires:
        header = parse(wire.header)
        assert isinstance(header, ProxyHeader)
        assert header.source is not None
        assert header.size == len(wire.header)


@pytest.mark.parametrize("listener", ["web", "flow"])
async def test_an_endpoint_is_told_of_the_clients_tls(stage: Stage, listener: str) -> None:
    (stage.folder / "own.pem").write_text(origins.ca_pem())
    (stage.folder / "site.crt").write_text(origins.good().chain)
    (stage.folder / "site.key").write_text(origins.good().key)
    (stage.folder / "site.key").chmod(0o600)
    pair = '{ cert = "site.crt", key = "site.key" }'
    table = f'tls = {{ certificates = [{pair}], client_auth = "required", client_ca = "own.pem", alpn = ["http/1.1"] }}'
    context = ssl.create_default_context(cadata=origins.ca_pem())
    context.set_alpn_protocols(["http/1.1"])
    (stage.folder / "ours.pem").write_text(origins.client().both)
    context.load_cert_chain(stage.folder / "ours.pem")

    async def play(plane: TestPlane, port: int) -> None:
        async with await trio.open_tcp_stream(HOSTS[listener], port) as raw:
            stream = trio.SSLStream(raw, context, server_hostname=NAME)
            await stream.send_all(GET)
            assert b"200 OK" in await stream.receive_some(65536)

    (said,) = await heard(stage, "v2", listener, play, table)
    header = parse(said)
    assert isinstance(header, ProxyHeader)
    assert (header.authority, header.value(ALPN)) == (NAME, b"http/1.1")
    assert header.ssl is not None
    assert (header.ssl.over_tls, header.ssl.verified, header.ssl.version) == (True, True, "TLSv1.3")


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_nginx_reads_the_header(stage: Stage, version: str, tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    seen = 'location /seen { return 200 "$proxy_protocol_addr $proxy_protocol_server_port"; }'
    nginx = make_nginx(tmp_path / "nginx", port, seen)
    text = (tmp_path / "nginx/nginx.conf").read_text()
    (tmp_path / "nginx/nginx.conf").write_text(text.replace(f"{port} backlog", f"{port} proxy_protocol backlog"))
    nginx.start()
    config = stage.config(port, upstream=f'proxy_protocol = "{version}"').partition("[upstreams.api.tls]")[0]
    try:
        async with serving(stage.folder, config) as plane:
            asking = GET.replace(b"GET /", b"GET /seen")
            for listener in ("web", "flow"):
                said = await ask(plane, asking, asking, listener=listener)
                assert said.count(b"\r\n\r\n127.0.0.1 %d" % plane.port(listener)) == 2, said
    finally:
        nginx.kill()


# -- unix sockets ---------------------------------------------------------------------------------------------------


async def test_unix_sockets_on_both_sides(stage: Stage) -> None:
    path = stage.folder / "app.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(16)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(65536):
                await stream.send_all(OK)

    text = stage.config(1).partition("[upstreams.api.tls]")[0]
    text = text.replace('"127.0.0.1:1"', f'"unix:{path}"')
    text = text.replace('bind = ["127.0.0.1:0"]', f'bind = ["unix:{stage.folder}/web.sock"]', 1)
    text = text.replace('bind = ["127.0.0.2:0"]', f'bind = ["unix:{stage.folder}/flow.sock"]', 1)
    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        listening.setblocking(False)
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with serving(stage.folder, text) as plane:
            for name in ("web", "flow"):
                async with await trio.open_unix_socket(str(stage.folder / f"{name}.sock")) as stream:
                    with trio.fail_after(20):
                        for _ in range(2):
                            await stream.send_all(GET)
                            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200 OK")
            await plane.record(3)
            endpoint = plane.endpoint("api", f"unix:{path}")
            page, block = plane.plane.page, endpoint.block
            assert (page[block + CONNECTS], page[block + REUSED], page[block + CONNECT_FAILURES]) == (2, 1, 0)
        nursery.cancel_scope.cancel()
    assert {record.client for record in plane.records} == {"unix", "unix:"}


async def test_tls_over_a_unix_socket_needs_a_name(stage: Stage) -> None:
    path = stage.folder / "app.sock"
    context = server_context()

    async def serve(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, context, server_side=True) as tls:
            while await tls.receive_some(65536):
                await tls.send_all(OK)

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen(16)
    text = stage.config(1).replace('"127.0.0.1:1"', f'"unix:{path}"')
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
        async with serving(stage.folder, text) as plane:
            assert b"200 OK" in await ask(plane)
        nursery.cancel_scope.cancel()
