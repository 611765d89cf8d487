"""TLS in front of HTTP and of tcp listeners: real clients, the facts that go with them, and each way to be refused."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from tcpgate.codec.proxy_header import render
from tcpgate.config import schema, schema_tls
from tcpgate.config.validators import Secret
from tcpgate.errors import ConfigError, Reason, Side
from tcpgate.filters.base import CONTINUE, RequestView, Verdict
from tcpgate.net.tickets import TicketKeys
from tcpgate.proxy import certificates
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import (
    GET,
    answer,
    authority,
    client_context,
    greeting_origin,
    telling_origin,
    write_certificate,
)

V2 = render("v2", ("192.0.2.7", 4711), ("198.51.100.9", 8443))


@asynccontextmanager
async def https(
    folder: Path, nursery: trio.Nursery, tls: str = "", listener: str = "", gateway: str = "", hosts: str = ""
) -> AsyncIterator[TestPlane]:
    """A plane that speaks TLS, with a certificate for a.example and one for *.b.example."""
    pairs = [write_certificate(folder, "a", "a.example"), write_certificate(folder, "b", "*.b.example")]
    (folder / "ca.pem").write_bytes(authority().cert_pem.bytes())
    text = f"""
[gateway]
drain = "200ms"
{gateway}
[listeners.web]
bind = ["127.0.0.1:0"]
{listener}
[listeners.web.tls]
certificates = [{", ".join(pairs)}]
{tls}
{hosts}
[routes.all]
upstream = "origin"
[upstreams.origin]
endpoints = ["127.0.0.1:{await telling_origin(nursery)}"]
"""
    with trio.fail_after(50):
        async with serving(folder, text) as plane:
            yield plane
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    plane: TestPlane,
    name: str = "a.example",
    context: ssl.SSLContext | None = None,
    before: bytes = b"",
    *alpn: str,
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """A client that has sent `before`, and then shaken hands."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        if before:
            await raw.send_all(before)
        stream = trio.SSLStream(raw, context or client_context(*alpn), server_hostname=name, https_compatible=True)
        await stream.do_handshake()
        yield stream


async def refused(plane: TestPlane, name: str = "a.example", context: ssl.SSLContext | None = None) -> str:
    """What OpenSSL says of the alert that a client gets, at the latest when it reads."""
    try:
        async with connected(plane, name, context) as stream:
            await stream.send_all(GET)
            while await stream.receive_some():
                pass
    except trio.BrokenResourceError as exc:
        return str(exc.__cause__)
    return "it was served"


# -- what goes with a connection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["true", "false"])
async def test_requests_over_tls_are_told_as_such(lane: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, gateway=f"lane = {lane}") as plane:
        async with connected(plane) as stream:
            for _ in range(2):
                await stream.send_all(GET)
                said = await answer(stream)
                assert b"X-Forwarded-Proto: https\r\n" in said
                assert b"proto=https" in said
        await plane.record(2)
    first, second = plane.records
    assert first.tls == second.tls != ""
    assert first.tls.startswith("TLSv1.3 TLS_")
    assert first.t.tls > 0.0
    assert second.t.tls == 0.0
    assert (first.reason, first.client, first.bytes_in) == ("ok", "127.0.0.1", len(GET))
    assert first.t.total < 20.0
    assert plane.counts("listener", "web")["handshakes"] == 1
    assert plane.counts("listener", "web")["handshakes_failed"] == 0


async def test_a_request_that_a_task_serves_is_told_as_such_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane) as stream:
        await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"))
        assert b"X-Forwarded-Proto: https\r\n" in await answer(stream)
        await stream.send_all(GET.replace(b"/there", b"https://a.example/there"))
        assert b"X-Forwarded-Proto: https\r\n" in await answer(stream)  # over plain TCP this is a 421
        await stream.send_all(GET)
        assert b"X-Forwarded-Proto: https\r\n" in await answer(stream)
        await plane.record(3)
    assert [bool(record.t.tls) for record in plane.records] == [True, False, False]
    assert len({record.tls for record in plane.records}) == 1


async def test_a_failed_first_exchange_tells_the_handshake(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane) as stream:
        await stream.send_all(b"GARBAGE\r\n\r\n")
        assert (await answer(stream)).startswith(b"HTTP/1.1 400 ")
        record = await plane.record()
    assert record.tls.startswith("TLSv1.3")
    assert record.t.tls > 0.0


async def test_filters_see_whom_a_certificate_proves(tmp_path: Path, nursery: trio.Nursery) -> None:
    seen = []

    class Looking:
        def on_request(self, view: RequestView) -> Verdict:
            seen.append(view.tls)
            return CONTINUE

        def on_response(self, view: RequestView, response: object) -> None:
            seen.append(view.tls)

    async with https(tmp_path, nursery, 'client_auth = "optional"\nclient_ca = "ca.pem"') as plane:
        plane.use_filter("all", Looking())
        context = client_context()
        authority().issue_cert("client@example.org", common_name="alice").configure_cert(context)
        for ask in (GET, GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n")):
            async with connected(plane, "x.b.example", context) as stream:
                await stream.send_all(ask)
                assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")
        async with connected(plane) as stream:
            await stream.send_all(GET)
            await answer(stream)
    assert len(seen) == 6
    for tls in seen[:4]:
        assert tls is not None
        assert tls.client is not None
        assert (tls.client.common_name, tls.server_name) == ("alice", "x.b.example")
    assert seen[4] is not None
    assert seen[4].client is None


async def test_a_proxys_header_comes_before_tls(tmp_path: Path, nursery: trio.Nursery) -> None:
    listener = 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "require"'
    async with https(tmp_path, nursery, listener=listener) as plane:
        async with connected(plane, "a.example", None, V2) as stream:
            await stream.send_all(GET)
            said = await answer(stream)
        record = await plane.record()
    assert b"X-Forwarded-For: 192.0.2.7\r\n" in said
    assert b"X-Forwarded-Port: 8443\r\n" in said
    assert b"X-Forwarded-Proto: https\r\n" in said
    assert (record.peer, record.tls[:7]) == ("192.0.2.7:4711", "TLSv1.3")


async def test_a_header_that_is_not_believed_is_no_tls(tmp_path: Path, nursery: trio.Nursery) -> None:
    listener = 'trusted_proxies = ["10.0.0.1"]\nproxy_protocol = "accept"'
    async with https(tmp_path, nursery, listener=listener) as plane:
        with pytest.raises(trio.BrokenResourceError):
            async with connected(plane, "a.example", None, V2):
                pass
        record = await plane.record()
    assert (record.reason, record.detail) == (Reason.TLS_REFUSED, "it does not speak TLS")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_hello_may_come_byte_by_byte_and_the_rest_too(
    version: ssl.TLSVersion, tmp_path: Path, nursery: trio.Nursery
) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    async with https(tmp_path, nursery) as plane, await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(came, out, server_hostname="a.example")
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            data = out.read()
            for at in range(len(data)):
                await raw.send_all(data[at : at + 1])
                await trio.sleep(0.0002)
            if not done:
                came.write(await raw.receive_some(65536))
        tls.write(GET)
        await raw.send_all(out.read())
        said = b""
        while b"From: origin" not in said:
            came.write(await raw.receive_some(65536))
            try:
                said += tls.read(65536)
            except ssl.SSLWantReadError:
                continue
    assert said.startswith(b"HTTP/1.1 200 ")


async def test_a_session_is_resumed_and_counted(tmp_path: Path, nursery: trio.Nursery) -> None:
    context = client_context()
    async with https(tmp_path, nursery) as plane:

        def twice() -> list[bool]:
            resumed, session = [], None
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", plane.port())) as raw:
                    tls = context.wrap_socket(raw, server_hostname="a.example", session=session)
                    with tls:
                        tls.sendall(GET)
                        tls.recv(65536)
                        session = tls.session
                        resumed.append(bool(tls.session_reused))
            return resumed

        assert await trio.to_thread.run_sync(twice) == [False, True]
        await plane.record(2)
        counts = plane.counts("listener", "web")
    assert (counts["handshakes"], counts["handshakes_resumed"]) == (2, 1)


# -- refusals -------------------------------------------------------------------------------------------------------


async def test_who_has_no_certificate_gets_an_alert(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, 'client_auth = "required"\nclient_ca = "ca.pem"') as plane:
        said = await refused(plane)
        record = await plane.record()
        assert plane.counts("listener", "web")["handshakes_failed"] == 1
        context = client_context()
        authority().issue_cert("client@example.org").configure_cert(context)
        async with connected(plane, "a.example", context) as stream:
            await stream.send_all(GET)
            assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")
        stranger = client_context()
        trustme.CA().issue_cert("client@example.org").configure_cert(stranger)
        assert "UNKNOWN_CA" in await refused(plane, "a.example", stranger)
        await plane.record(2)
        judged = await plane.record(3)
    assert "CERTIFICATE_REQUIRED" in said
    assert (record.reason, record.detail) == (Reason.TLS_REFUSED, "peer did not return a certificate")
    what = "its certificate: unable to get local issuer certificate"
    assert (judged.reason, judged.detail, judged.answered_by) == (Reason.TLS_REFUSED, what, "gateway")
    assert (record.rule, record.host, record.status) == ("listeners.web.tls", "a.example", 0)


async def test_some_names_may_ask_for_more(tmp_path: Path, nursery: trio.Nursery) -> None:
    hosts = '[listeners.web.tls.hosts."admin.b.example"]\nclient_auth = "required"\nclient_ca = "ca.pem"'
    async with https(tmp_path, nursery, hosts=hosts) as plane:
        async with connected(plane, "x.b.example") as stream:
            await stream.send_all(GET)
            assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")
        assert "CERTIFICATE_REQUIRED" in await refused(plane, "admin.b.example")


async def test_an_unknown_name_gets_an_alert_where_names_are_strict(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, "strict_sni = true") as plane:
        said = await refused(plane, "c.example")
        record = await plane.record()
    assert "UNRECOGNIZED_NAME" in said
    assert (record.reason, record.host) == (Reason.TLS_REFUSED, "c.example")


async def test_a_client_that_does_not_trust_us_is_told_of(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:

        def distrust() -> None:  # Trio's stream does not send the alert
            context = ssl.create_default_context()
            raw = socket.create_connection(("127.0.0.1", plane.port()))
            with raw, pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(raw, server_hostname="a.example")

        await trio.to_thread.run_sync(distrust)
        record = await plane.record()
    assert (record.reason, record.detail) == (Reason.TLS_REFUSED, "tlsv1 alert unknown ca")
    assert record.answered_by is Side.CLIENT


async def test_old_versions_are_refused_with_an_alert(tmp_path: Path, nursery: trio.Nursery) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with https(tmp_path, nursery, 'min_version = "1.3"') as plane:
        assert "PROTOCOL_VERSION" in await refused(plane, "a.example", context)
        record = await plane.record()
    assert (record.reason, record.detail) == (Reason.TLS_REFUSED, "unsupported protocol")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x00\x02"])
async def test_what_is_no_tls_is_closed(data: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
            await raw.send_all(data)
            assert await raw.receive_some() == b""
        record = await plane.record()
    assert (record.reason, record.detail) == (Reason.TLS_REFUSED, "it does not speak TLS")


@pytest.mark.parametrize("part", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_scanner_leaves_a_record(part: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
            if part:
                await raw.send_all(part)
        record = await plane.record()
        assert plane.counts("listener", "web")["handshakes_failed"] == 1
    assert record.reason == Reason.CLIENT_ABORT


@pytest.mark.parametrize("begins", [False, True])
async def test_a_handshake_has_its_time(begins: bool, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, listener='timeouts.handshake = "300ms"') as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
            if begins:  # a whole hello, and then nothing
                out = ssl.MemoryBIO()
                with pytest.raises(ssl.SSLWantReadError):
                    client_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.example").do_handshake()
                await raw.send_all(out.read())
            record = await plane.record()
            while await raw.receive_some():
                pass
        assert plane.counts("listener", "web")["connections"] in (0, 1)
    assert (record.reason, record.rule) == (Reason.TLS_REFUSED, "listeners.web.timeouts.handshake")


async def test_a_drain_lets_a_handshake_end_and_the_request_behind_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
            came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client_context().wrap_bio(came, out, server_hostname="a.example")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await raw.send_all(out.read())
            came.write(await raw.receive_some(65536))
            plane.servers["web"].retire(20)
            tls.do_handshake()
            tls.write(GET)
            await raw.send_all(out.read())
            said = b""
            while b"From: origin" not in said:
                came.write(await raw.receive_some(65536))
                try:
                    said += tls.read(65536)
                except ssl.SSLWantReadError:
                    continue
        await plane.servers["web"].wait_ended()
    assert b"connection: close" in said.lower()


async def test_many_handshakes_at_once_all_end_well(tmp_path: Path, nursery: trio.Nursery) -> None:
    context = client_context()
    async with https(tmp_path, nursery) as plane:

        async def one() -> None:
            async with connected(plane, "a.example", context) as stream:
                await stream.send_all(GET)
                assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")

        async with trio.open_nursery() as clients:
            for _ in range(40):
                clients.start_soon(one)
        assert plane.counts("listener", "web")["handshakes"] == 40
        assert plane.plane.lane.faults == 0


# -- tcp ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["true", "false"])
async def test_a_tcp_listener_ends_tls_and_goes_by_name_and_protocol(
    lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    pair = write_certificate(tmp_path, "a", "a.example", "b.example", "c.example")
    ports = {name: await greeting_origin(nursery, name) for name in ("a", "b", "pg")}
    upstreams = "".join(f'[upstreams.{name}]\nendpoints = ["127.0.0.1:{port}"]\n' for name, port in ports.items())
    text = f"""
[gateway]
lane = {lane}
drain = "200ms"
[listeners.web]
protocol = "tcp"
bind = ["127.0.0.1:0"]
sni = {{ "a.example" = "a", "b.example" = "b" }}
alpn = {{ postgresql = "pg" }}
[listeners.web.tls]
certificates = [{pair}]
alpn = ["postgresql", "other"]
{upstreams}"""
    with trio.fail_after(50):
        async with serving(tmp_path, text) as plane:
            for name, alpn, whom in (
                ("a.example", (), b"a"),
                ("b.example", ("other",), b"b"),
                ("b.example", ("other", "postgresql"), b"pg"),
            ):
                async with connected(plane, name, None, b"", *alpn) as stream:
                    await stream.send_all(b"hi")
                    said = b""
                    while not said.endswith(b"hi"):
                        said += await stream.receive_some(100)
                assert said == whom + b":hi"
            await plane.record(3)
            assert "UNRECOGNIZED_NAME" in await refused(plane, "c.example")
            last = await plane.record(4)
    assert last.reason == Reason.NO_ROUTE
    assert {record.upstream for record in plane.records[:3]} == {"a", "b", "pg"}
    for record in plane.records[:3]:
        assert record.tls.startswith("TLSv1.3")
        assert record.t.tls > 0.0
        assert (record.bytes_in, record.reason) == (2, "ok")
    nursery.cancel_scope.cancel()


# -- what listeners show --------------------------------------------------------------------------------------------


async def test_a_reload_changes_what_later_clients_are_shown(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        text = (tmp_path / "plane.toml").read_text()
        before = plane.plane.tls["web"]
        plane.apply(text.replace('drain = "200ms"', 'drain = "300ms"'))
        assert plane.plane.tls["web"] is before
        async with connected(plane) as open_one:
            write_certificate(tmp_path, "a", "a.example", "new.example")
            plane.apply(text)
            assert plane.plane.tls["web"] is not before
            async with connected(plane, "new.example") as stream:
                await stream.send_all(GET)
                assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")
            await open_one.send_all(GET)
            assert (await answer(open_one)).startswith(b"HTTP/1.1 200 ")


def test_what_openssl_does_not_take_fails_the_generation() -> None:
    table = schema_tls.ListenerTls(certificates=(schema_certificate("not a certificate", "nor a key"),))
    config = schema.Config(listeners={"web": schema.Listener(bind=("127.0.0.1:0",), tls=table)})
    with pytest.raises(ConfigError) as caught:
        certificates.build(config, TicketKeys(), None)
    assert caught.value.problems[0].path == "listeners.web.tls"
    assert "site.crt" in caught.value.problems[0].text


def schema_certificate(chain: str, key: str) -> schema_tls.Certificate:
    return schema_tls.Certificate(cert="site.crt", key="site.key", chain_pem=Secret(chain), key_pem=Secret(key))


# -- curl -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_over_tls(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        port = plane.port()
        done = await trio.run_process(
            [
                *("curl", "-sS", "--http1.1", "--cacert", "ca.pem", "--resolve", f"a.example:{port}:127.0.0.1"),
                *("-w", '\\n{"version": "%{http_version}", "verified": "%{ssl_verify_result}"}'),
                *(f"https://a.example:{port}/one", f"https://a.example:{port}/two"),
            ],
            capture_stdout=True,
            cwd=tmp_path,
        )
        await plane.record(2)
    assert done.stdout.count(b"X-Forwarded-Proto: https") == 2
    assert json.loads(done.stdout.splitlines()[-1]) == {"version": "1.1", "verified": "0"}
    assert plane.counts("listener", "web")["handshakes"] == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("listener", ["", "http2 = true"])
async def test_curl_chooses_http2(listener: str, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, listener=listener) as plane:
        port = plane.port()
        done = await trio.run_process(
            [
                *("curl", "-sS", "--http2", "--cacert", "ca.pem", "--resolve", f"a.example:{port}:127.0.0.1"),
                *("-w", "\\n%{http_version}", f"https://a.example:{port}/one"),
            ],
            capture_stdout=True,
            cwd=tmp_path,
        )
        record = await plane.record()
    assert b"X-Forwarded-Proto: https" in done.stdout
    assert done.stdout.endswith(b"\n2")
    assert (record.tls[:7], record.status) == ("TLSv1.3", 200)


async def test_where_there_is_no_room_a_tls_client_is_only_closed(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery, listener="max_connections = 1") as plane, connected(plane):
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
            assert await raw.receive_some() == b""
        record = await plane.record()
    assert (record.reason, record.status) == (Reason.CONNECTION_LIMIT, 0)


async def test_a_client_that_is_slow_in_a_drain_has_its_whole_time(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context().wrap_bio(came, out, server_hostname="a.example")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        while not plane.counts("listener", "web")["connections"]:
            await trio.sleep(0.002)
        plane.servers["web"].retire(20)
        await trio.sleep(0.1)
        hello = out.read()
        await raw.send_all(hello[:50])
        await trio.sleep(1.5)  # longer than the moment for one that says nothing
        await raw.send_all(hello[50:])
        came.write(await raw.receive_some(65536))
        tls.do_handshake()
    assert tls.version() == "TLSv1.3"


def listener_with(protocol: str, alpn: str, own: str = "") -> schema.Listener:
    """A listener's spec, as far as ALPN goes by it."""
    table = schema_tls.ListenerTls(
        certificates=(schema_certificate("", ""),),
        alpn=tuple(alpn.split()) or ("h2", "http/1.1"),
        hosts={"a.example": schema_tls.TlsRules(alpn=("h2", "imap"))},
    )
    return schema.Listener(
        bind=("127.0.0.1:0",),
        protocol="tcp" if protocol == "tcp" else "http",
        alpn=dict.fromkeys(own.split(), "pg"),
        tls=table,
    )


@pytest.mark.parametrize(
    ("listener", "offered", "host"),
    [
        (listener_with("http", ""), ("h2", "http/1.1"), ("h2",)),
        (listener_with("http", "imap http/1.1"), ("http/1.1",), ("h2",)),
        (listener_with("tcp", ""), (), ("h2", "imap")),
        (listener_with("tcp", "", "postgresql x"), ("postgresql", "x"), ("h2", "imap")),
        (listener_with("tcp", "h2", "postgresql"), ("h2",), ("h2", "imap")),
    ],
)
def test_the_protocols_offered_are_those_that_lead_somewhere(
    listener: schema.Listener, offered: tuple[str, ...], host: tuple[str, ...]
) -> None:
    assert listener.tls is not None
    spec = certificates.server_tls(listener, listener.tls, TicketKeys())
    assert (spec.rules.alpn, spec.hosts["a.example"].alpn) == (offered, host)
