"""One scenario for each reason of the closed list, through the real data plane: what is answered, what is recorded."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.errors import REASONS, Reason
from tcpgate.state.runtime import UpstreamRuntime
from tests.gateway import Recorder, plain_answer, talk
from tests.plane import serving
from tests.proxy.arrivals import write_certificate
from tests.proxy.scripted import busy, settled
from tests.proxy.sockets import TEXT, frame, hand_over, raw
from tests.tls_origin import ca_pem, tls_origin

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n"


@attrs.define
class Stage:
    """What a scenario plays on: an origin whose every connection is handed to `origin`, and the config around it."""

    folder: Path
    nursery: trio.Nursery

    async def origin(self, play: Callable[[trio.SocketStream], Awaitable[None]]) -> int:
        """The port of an origin that plays each connection so."""

        async def one(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await play(stream)
            await stream.aclose()

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.nursery.start_soon(trio.serve_listeners, one, listeners)
        port: int = listeners[0].socket.getsockname()[1]
        return port

    async def good(self) -> int:
        """The port of an origin that answers everything with 200."""
        origin = Recorder(lambda head, body: plain_answer())
        port: int = await self.nursery.start(origin.serve)
        return port


def config(
    port: int,
    *,
    listener: str = "",
    route: str = "",
    upstream: str = "",
    endpoint: str = "",
    target: str = 'upstream = "api"',
) -> str:
    """One listener, one route, one endpoint, with what a scenario adds to each."""
    return f"""
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[routes.all]
{target}
{route}
[upstreams.api]
endpoints = ["{endpoint or f"127.0.0.1:{port}"}"]
{upstream}
"""


async def read_request(stream: trio.SocketStream) -> bytes:
    """Up to the end of a request head."""
    said = b""
    while b"\r\n\r\n" not in said:
        chunk = await stream.receive_some(65536)
        if not chunk:
            break
        said += chunk
    return said


def answering(raw: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """An origin that reads a head, says `raw`, and closes."""

    async def play(stream: trio.SocketStream) -> None:
        await read_request(stream)
        if raw:
            await stream.send_all(raw)

    return play


async def sleeping(stream: trio.SocketStream) -> None:
    """An origin that reads a head and never says a word."""
    await read_request(stream)
    await trio.sleep(60)


async def said_to(stage: Stage, text: str, raw: bytes, expect: Reason, status: int) -> None:
    """Send `raw`; the client must get `status`, the record must say `expect`."""
    async with serving(stage.folder, text) as plane:
        said = await talk(plane.port(), raw, until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert (record.reason, record.status) == (expect, status), record
    if status not in (0, 499):
        assert said.startswith(b"HTTP/1.1 %d " % status), said
        assert record.id.encode() in said
    stage.nursery.cancel_scope.cancel()


async def refused_by(stage: Stage, raw: bytes, expect: Reason, listener: str = "") -> None:
    """A request that the gateway refuses without asking anybody."""
    port = await stage.good()
    await said_to(stage, config(port, listener=listener), raw, expect, REASONS[expect].status)


# -- nothing went wrong ---------------------------------------------------------------------------------------------


async def play_ok(stage: Stage) -> None:
    await said_to(stage, config(await stage.good()), GET, Reason.OK, 200)


async def play_respond(stage: Stage) -> None:
    text = config(await stage.good(), target='respond = { status = 418, body = "short" }')
    await said_to(stage, text, GET, Reason.RESPOND, 418)


async def play_redirect(stage: Stage) -> None:
    text = config(await stage.good(), target='redirect = { to = "https://{host}{path}{query}" }')
    async with serving(stage.folder, text) as plane:
        said = await talk(plane.port(), GET.replace(b"/ ", b"/a?b ", 1), until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert b"Location: https://t/a?b\r\n" in said
    assert (record.reason, record.status) == (Reason.REDIRECT, 308)
    stage.nursery.cancel_scope.cancel()


async def play_tunnel_closed(stage: Stage) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        while data := await stream.receive_some(4096):
            await stream.send_all(data)

    port = await stage.origin(echo)
    async with serving(stage.folder, config(port)) as plane:
        stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with stream:
            await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n"))
            assert (await read_request(stream)).startswith(b"HTTP/1.1 101 ")
            await stream.send_all(b"ping")
            assert await stream.receive_some(4) == b"ping"
            await stream.send_eof()
            assert await stream.receive_some(4) == b""
        record = await plane.record()
    assert (record.reason, record.status, record.answered_by) == (Reason.TUNNEL_CLOSED, 101, "upstream")
    stage.nursery.cancel_scope.cancel()


# -- the client's doing ---------------------------------------------------------------------------------------------


async def play_bad_request(stage: Stage) -> None:
    await refused_by(stage, b"GET / HTTP/1.1\r\nHost: t\r\nBad Field: x\r\n\r\n", Reason.BAD_REQUEST)


async def play_head_timeout(stage: Stage) -> None:
    await refused_by(stage, b"GET / HTT", Reason.HEAD_TIMEOUT, 'timeouts = { head = "200ms" }')


async def play_body_timeout(stage: Stage) -> None:
    slow = 'timeouts = { stall = "200ms", min_rate = "1KiB/s" }'
    await said_to(stage, config(await stage.origin(sleeping), listener=slow), POST + b"x", Reason.BODY_TIMEOUT, 408)


async def play_body_too_large(stage: Stage) -> None:
    await refused_by(stage, POST, Reason.BODY_TOO_LARGE, 'limits = { body = "1KiB" }')


async def play_target_too_long(stage: Stage) -> None:
    await refused_by(stage, b"GET /%b HTTP/1.1\r\nHost: t\r\n\r\n" % (b"a" * 9000), Reason.TARGET_TOO_LONG)


async def play_head_too_large(stage: Stage) -> None:
    await refused_by(stage, GET[:-2] + b"X: %b\r\n\r\n" % (b"a" * 40_000), Reason.HEAD_TOO_LARGE)


async def play_expectation_unknown(stage: Stage) -> None:
    await refused_by(stage, GET[:-2] + b"Expect: 200-ok\r\n\r\n", Reason.EXPECTATION_UNKNOWN)


async def play_method_unsupported(stage: Stage) -> None:
    await refused_by(stage, b"CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n", Reason.METHOD_UNSUPPORTED)


async def play_coding_unsupported(stage: Stage) -> None:
    await refused_by(stage, GET[:-2] + b"Transfer-Encoding: gzip, chunked\r\n\r\n", Reason.CODING_UNSUPPORTED)


async def play_version_unsupported(stage: Stage) -> None:
    await refused_by(stage, GET.replace(b"1.1", b"2.0"), Reason.VERSION_UNSUPPORTED)


async def play_client_abort(stage: Stage) -> None:
    gone = trio.Event()

    async def wait(stream: trio.SocketStream) -> None:
        await read_request(stream)
        assert await stream.receive_some(1) == b""
        gone.set()

    async with serving(stage.folder, config(await stage.origin(wait))) as plane:
        stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
        await stream.send_all(GET)
        await busy(plane)
        await stream.aclose()
        record = await plane.record()
        with trio.fail_after(20):
            await gone.wait()  # the endpoint hears of it too
    assert (record.reason, record.status, record.answered_by) == (Reason.CLIENT_ABORT, 499, "client")
    stage.nursery.cancel_scope.cancel()


async def play_client_slow(stage: Stage) -> None:
    async def pour(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        while True:
            await stream.send_all(bytes(1 << 20))

    slow = 'timeouts = { stall = "200ms", min_rate = "1MiB/s" }'
    async with serving(stage.folder, config(await stage.origin(pour), listener=slow)) as plane:
        stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with stream:
            await stream.send_all(GET)
            record = await plane.record()
    assert (record.reason, record.endpoint != "") == (Reason.CLIENT_SLOW, True)
    stage.nursery.cancel_scope.cancel()


# -- the gateway said no --------------------------------------------------------------------------------------------


async def play_no_route(stage: Stage) -> None:
    text = config(await stage.good(), route='path = "/only"')
    await said_to(stage, text, GET, Reason.NO_ROUTE, 404)


async def play_method_not_allowed(stage: Stage) -> None:
    text = config(await stage.good(), route='methods = ["POST", "PUT"]')
    async with serving(stage.folder, text) as plane:
        said = await talk(plane.port(), GET, until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert b"\r\nAllow: POST, PUT\r\n" in said
    assert (record.reason, record.status) == (Reason.METHOD_NOT_ALLOWED, 405)
    stage.nursery.cancel_scope.cancel()


async def play_denied(stage: Stage) -> None:
    text = config(await stage.good(), route='filters = ["inside"]')
    text += '[filters.inside]\nkind = "access"\nallow = ["192.0.2.0/24"]\n'
    async with serving(stage.folder, text) as plane:
        said = await talk(plane.port(), GET, until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 403 ")
    assert (record.reason, record.rule) == (Reason.DENIED, "filters.inside")
    stage.nursery.cancel_scope.cancel()


async def play_connection_limit(stage: Stage) -> None:
    async with serving(stage.folder, config(await stage.good(), listener="max_connections = 1")) as plane:
        first = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with first:
            await first.send_all(GET)
            await read_request(first)
            said = await talk(plane.port(), GET)
        refused = plane.counts("listener", "web")["refused"]
        record = next(record for record in plane.records if record.reason == Reason.CONNECTION_LIMIT)
    assert said.startswith(b"HTTP/1.1 503 ")
    assert (refused, record.status) == (1, 503)
    stage.nursery.cancel_scope.cancel()


async def play_endpoint_limit(stage: Stage) -> None:
    port = await stage.origin(sleeping)
    async with serving(stage.folder, config(port, upstream="pool = { max_connections = 1 }")) as plane:
        first = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with first:
            await first.send_all(GET)
            await busy(plane)
            said = await talk(plane.port(), GET, until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert record.reason in (Reason.ENDPOINT_LIMIT, Reason.CLIENT_ABORT)
    assert Reason.ENDPOINT_LIMIT in {record.reason for record in plane.records}
    stage.nursery.cancel_scope.cancel()


async def play_no_endpoint(stage: Stage) -> None:
    port = await stage.good()
    async with serving(stage.folder, config(port)) as plane:
        plane.set_status("api", f"127.0.0.1:{port}", "down", cause="probe: status 500 (3 of 3)")
        said = await talk(plane.port(), GET, until=lambda said: b"\r\n\r\n" in said)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in said
    assert b"127.0.0.1:%d" % port not in said  # the client never learns the endpoints' addresses
    assert (record.reason, record.detail) == (
        Reason.NO_ENDPOINT,
        f"127.0.0.1:{port} down (probe: status 500 (3 of 3))",
    )
    stage.nursery.cancel_scope.cancel()


async def play_loop_detected(stage: Stage) -> None:
    await refused_by(stage, GET[:-2] + b"Via: 1.1 tcpgate-test\r\n\r\n", Reason.LOOP_DETECTED)


async def play_exchange_timeout(stage: Stage) -> None:
    text = config(await stage.origin(sleeping), route='timeout = "200ms"')
    await said_to(stage, text, GET, Reason.EXCHANGE_TIMEOUT, 504)


async def play_idle_timeout(stage: Stage) -> None:
    port = await stage.origin(sleeping)
    text = (
        config(port)
        + '[listeners.db]\nbind = ["127.0.0.2:0"]\nprotocol = "tcp"\nupstream = "api"\ntimeouts.idle = "200ms"\n'
    )
    async with serving(stage.folder, text) as plane:
        stream = await trio.open_tcp_stream("127.0.0.2", plane.port("db"))
        async with stream:
            assert await stream.receive_some(1) == b""
        record = await plane.record()
    assert (record.reason, record.proto) == (Reason.IDLE_TIMEOUT, "tcp")
    stage.nursery.cancel_scope.cancel()


async def play_bad_frame(stage: Stage) -> None:
    await websocket(stage, frame(3, b"no such opcode", masked=True), Reason.BAD_FRAME)


async def play_message_too_large(stage: Stage) -> None:
    await websocket(stage, frame(TEXT, b"x" * 101, masked=True), Reason.MESSAGE_TOO_LARGE)


async def websocket(stage: Stage, said: bytes, reason: Reason) -> None:
    """What the client says after the 101 ends it, for this reason."""
    port, accepted = await hand_over(stage.nursery)
    text = config(port, route='websocket.max_message = "100B"')
    async with serving(stage.folder, text) as plane, raw(plane, accepted) as both:
        await both.client.send_all(said)
        await both.client.receive_some(100)
        await both.client.aclose()
        await both.server.aclose()
        record = await plane.record()
    assert (record.status, record.reason) == (101, reason)
    stage.nursery.cancel_scope.cancel()


async def play_drained(stage: Stage) -> None:
    async with serving(stage.folder, config(await stage.origin(sleeping))) as plane:
        stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with stream:
            await stream.send_all(GET)
            await busy(plane)
            plane.servers["web"].retire(0.2)
            record = await plane.record()
    assert record.reason == Reason.DRAINED
    stage.nursery.cancel_scope.cancel()


async def play_file_limit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    port = await stage.good()
    for lane, maker in ("true", "tcpgate.net.connect.socket.SocketType"), ("false", "tcpgate.net.dial.socket.socket"):
        async with serving(stage.folder, f"[gateway]\nlane = {lane}\n{config(port)}") as plane:
            stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
            async with stream:
                await settled(plane, connections=1)  # accepted, before there are no descriptors left
                with monkeypatch.context() as patched:
                    patched.setattr(maker, none_left)
                    await stream.send_all(GET)
                    said = await read_request(stream)
                    record = await plane.record()
        assert said.startswith(b"HTTP/1.1 503 "), lane
        assert record.reason == Reason.FILE_LIMIT, lane
    stage.nursery.cancel_scope.cancel()


async def play_bug(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(UpstreamRuntime, "pick", broken)
    async with serving(stage.folder, config(await stage.good())) as plane:
        said = await talk(plane.port(), GET)
        record = await plane.record()
        monkeypatch.undo()
        assert (await talk(plane.port(), GET, until=lambda said: b"hello" in said)).startswith(b"HTTP/1.1 200 ")
    assert said.startswith(b"HTTP/1.1 500 ")
    assert (record.reason, record.status) == (Reason.BUG, 500)
    assert "planted" in record.detail
    assert b"planted" not in said
    stage.nursery.cancel_scope.cancel()


# -- the upstream's doing -------------------------------------------------------------------------------------------


async def play_dns_failed(stage: Stage) -> None:
    await said_to(stage, config(0, endpoint="no-such-host.invalid:80"), GET, Reason.DNS_FAILED, 502)


async def play_unreachable(stage: Stage) -> None:
    # A multicast address is no place to connect to: the kernel says ENETUNREACH without asking the network.
    await said_to(stage, config(0, endpoint="224.0.0.1:80"), GET, Reason.UNREACHABLE, 502)


async def play_connect_refused(stage: Stage) -> None:
    await said_to(stage, config(1), GET, Reason.CONNECT_REFUSED, 502)


async def play_connect_timeout(stage: Stage) -> None:
    # A listener with a full backlog lets the next SYN wait.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        text = config(full.getsockname()[1], upstream='timeouts = { connect = "200ms" }')
        await said_to(stage, text, GET, Reason.CONNECT_TIMEOUT, 504)
        for caller in callers:
            caller.close()


async def play_upstream_closed(stage: Stage) -> None:
    await said_to(stage, config(await stage.origin(answering(b""))), GET, Reason.UPSTREAM_CLOSED, 502)


async def play_upstream_incomplete(stage: Stage) -> None:
    port = await stage.origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
    async with serving(stage.folder, config(port)) as plane:
        said = await talk(plane.port(), GET)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert (record.reason, record.status) == (Reason.UPSTREAM_INCOMPLETE, 200)
    stage.nursery.cancel_scope.cancel()


async def play_upstream_protocol(stage: Stage) -> None:
    await said_to(stage, config(await stage.origin(answering(b"hello\r\n\r\n"))), GET, Reason.UPSTREAM_PROTOCOL, 502)


async def play_upstream_head_too_large(stage: Stage) -> None:
    port = await stage.origin(answering(b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"a" * 100_000)))
    await said_to(stage, config(port), GET, Reason.UPSTREAM_HEAD_TOO_LARGE, 502)


async def play_first_byte_timeout(stage: Stage) -> None:
    text = config(await stage.origin(sleeping), upstream='timeouts = { first_byte = "200ms" }')
    await said_to(stage, text, GET, Reason.FIRST_BYTE_TIMEOUT, 504)


async def play_upstream_idle(stage: Stage) -> None:
    async def half(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await trio.sleep(60)

    text = config(await stage.origin(half), upstream='timeouts = { read = "200ms" }')
    async with serving(stage.folder, text) as plane:
        await talk(plane.port(), GET)
        record = await plane.record()
    assert (record.reason, record.status) == (Reason.UPSTREAM_IDLE, 200)
    stage.nursery.cancel_scope.cancel()


async def play_upstream_write_timeout(stage: Stage) -> None:
    async def deaf(stream: trio.SocketStream) -> None:
        await trio.sleep(60)

    text = config(await stage.origin(deaf), upstream='timeouts = { write = "300ms" }\nretry = { attempts = 1 }')
    async with serving(stage.folder, text) as plane:
        stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
        async with stream:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 50000000\r\n\r\n")
            with trio.move_on_after(40):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pour, stream)
                    said = await read_request(stream)
                    nursery.cancel_scope.cancel()
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 504 ")
    assert record.reason == Reason.UPSTREAM_WRITE_TIMEOUT
    stage.nursery.cancel_scope.cancel()


async def _pour(stream: trio.SocketStream) -> None:
    try:
        while True:
            await stream.send_all(bytes(1 << 16))
    except trio.BrokenResourceError:
        pass


async def play_upgrade_failed(stage: Stage) -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: upgrade\r\n\r\n"
    asking = GET.replace(b"\r\n\r\n", b"\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
    await said_to(stage, config(await stage.origin(answering(raw))), asking, Reason.UPGRADE_FAILED, 502)


async def play_proxy_header(stage: Stage) -> None:
    listener = 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "require"'
    async with serving(stage.folder, config(await stage.good(), listener=listener)) as plane:
        assert await talk(plane.port(), GET) == b""
        record = await plane.record()
    assert (record.reason, record.status) == (Reason.PROXY_HEADER, 0)
    stage.nursery.cancel_scope.cancel()


async def play_tls_refused(stage: Stage) -> None:
    pair = write_certificate(stage.folder, "site", "a.example")
    text = config(await stage.good(), listener=f"[listeners.web.tls]\ncertificates = [{pair}]")
    async with serving(stage.folder, text) as plane:
        assert await talk(plane.port(), GET) == b""
        record = await plane.record()
    assert (record.reason, record.status) == (Reason.TLS_REFUSED, 0)
    stage.nursery.cancel_scope.cancel()


async def play_tls_handshake(stage: Stage) -> None:
    async def no_tls(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    text = config(await stage.origin(no_tls), upstream="tls.verify = false")
    await said_to(stage, text, GET, Reason.TLS_HANDSHAKE, 502)


async def play_tls_certificate(stage: Stage) -> None:
    async with tls_origin() as origin:
        text = config(origin.port, upstream='tls = { name = "another.internal", ca = "ca.pem" }')
        (stage.folder / "ca.pem").write_text(ca_pem())
        await said_to(stage, text, GET, Reason.TLS_CERTIFICATE, 502)


PLAYS: dict[Reason, Callable[..., Awaitable[None]]] = {
    Reason(name.removeprefix("play_")): play for name, play in list(globals().items()) if name.startswith("play_")
}


@pytest.mark.parametrize("reason", Reason)
async def test_each_reason_comes_about_and_is_told(
    reason: Reason, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = PLAYS[reason]
    stage = Stage(tmp_path, nursery)
    with trio.fail_after(50):
        if reason in (Reason.FILE_LIMIT, Reason.BUG):
            await play(stage, monkeypatch)
        else:
            await play(stage)


def test_every_reason_has_its_facts() -> None:
    assert set(REASONS) == set(Reason) == set(PLAYS)
