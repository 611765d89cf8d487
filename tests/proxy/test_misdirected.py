"""A connection that was made under one name's rules, and asks for the host of another: nobody gets round a client
certificate by naming an open host in the handshake and the closed one in the request."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from tests.plane import TestPlane, serving
from tests.proxy.arrivals import answer, authority, client_context, telling_origin, write_certificate
from tests.proxy.http2_client import greeted
from tests.proxy.test_arrival_tls import connected, refused

OTHERS = trustme.CA()
HOSTS = """
[listeners.web.tls.hosts."admin.b.example"]
client_auth = "required"
client_ca = "ca.pem"
[listeners.web.tls.hosts."other.b.example"]
client_auth = "required"
client_ca = "others.pem"
[listeners.web.tls.hosts."maybe.b.example"]
client_auth = "optional"
client_ca = "ca.pem"
[listeners.web.tls.hosts."new.b.example"]
min_version = "1.3"
[listeners.web.tls.hosts."*.deep.b.example"]
client_auth = "required"
client_ca = "ca.pem"
"""


@asynccontextmanager
async def https(folder: Path, nursery: trio.Nursery, gateway: str = "") -> AsyncIterator[TestPlane]:
    """A plane whose hosts differ in what they ask of clients."""
    (folder / "ca.pem").write_bytes(authority().cert_pem.bytes())
    (folder / "others.pem").write_bytes(OTHERS.cert_pem.bytes())
    text = f"""
[gateway]
drain = "200ms"
{gateway}
[listeners.web]
bind = ["127.0.0.1:0"]
[listeners.web.tls]
certificates = [{write_certificate(folder, "b", "b.example", "*.b.example")}]
{HOSTS}
[routes.all]
upstream = "origin"
[upstreams.origin]
endpoints = ["127.0.0.1:{await telling_origin(nursery)}"]
"""
    (folder / "before.toml").write_text(text)
    with trio.fail_after(50):
        async with serving(folder, text) as plane:
            yield plane
    nursery.cancel_scope.cancel()


def get(host: str) -> bytes:
    return b"GET /there HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode()


def known(by: trustme.CA | None = None, *alpn: str) -> ssl.SSLContext:
    """A client with a certificate of this authority."""
    context = client_context(*alpn)
    (by or authority()).issue_cert("client@example.org").configure_cert(context)
    return context


def old(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same without TLS 1.3."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def status(plane: TestPlane, name: str, host: str, context: ssl.SSLContext | None = None) -> int:
    """What a client hears that names `name` in the handshake, and `host` in the request."""
    async with connected(plane, name, context) as stream:
        await stream.send_all(get(host))
        return int((await answer(stream)).split(b" ")[1])


MISDIRECTED = [
    ("x.b.example", "admin.b.example"),
    ("x.b.example", "ADMIN.b.example.:443"),
    ("b.example", "admin.b.example"),
    ("maybe.b.example", "admin.b.example"),
    ("x.b.example", "a.deep.b.example"),
    ("x.b.example", "one.two.deep.b.example"),
]


@pytest.mark.parametrize("lane", ["true", "false"])
@pytest.mark.parametrize(("name", "host"), MISDIRECTED)
async def test_a_host_that_asks_for_more_is_misdirected(
    name: str, host: str, lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with https(tmp_path, nursery, f"lane = {lane}") as plane:
        assert await status(plane, name, host) == 421
        record = await plane.record()
    assert (record.status, record.reason) == (421, "bad_request")
    assert "TLS handshake" in record.detail


async def test_on_a_connection_that_goes_on_each_request_is_judged(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "x.b.example") as stream:
        for host, wanted in (("x.b.example", 200), ("new.b.example", 200), ("y.b.example", 200)):
            await stream.send_all(get(host))
            assert int((await answer(stream)).split(b" ")[1]) == wanted
        absolute = get("x.b.example").replace(b"/there", b"https://admin.b.example/there")
        await stream.send_all(absolute.replace(b"Host: x.b", b"Host: admin.b"))
        assert int((await answer(stream)).split(b" ")[1]) == 421


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        b"dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"X-Forwarded-Host: x.b.example\r\nForwarded: host=x.b.example\r\n\r\n",
    ],
    ids=["a body", "a body that is announced", "a WebSocket", "another host by a proxy's word"],
)
async def test_whatever_else_is_asked_for(more: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "x.b.example") as stream:
        await stream.send_all(get("admin.b.example").removesuffix(b"\r\n") + more)
        assert (await answer(stream)).startswith(b"HTTP/1.1 421 ")
        record = await plane.record()
    assert record.endpoint == ""


async def test_a_stream_of_http2_is_misdirected_and_the_others_are_not(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "x.b.example", None, b"", "h2") as stream:
        client = await greeted(stream)
        for host, wanted in (("x.b.example", 200), ("admin.b.example", 421), ("y.b.example", 200)) * 3:
            number = await client.request(authority=host, scheme="https")
            assert (await client.answer(number)).status == wanted


async def test_http2_with_a_host_field_only_is_judged_as_well(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "x.b.example", None, b"", "h2") as stream:
        client = await greeted(stream)
        number = client.h2.get_next_available_stream_id()
        await client.request(authority="x.b.example", scheme="https")
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b"host", b"admin.b.example")]
        number = client.h2.get_next_available_stream_id()
        client.h2.send_headers(number, fields, end_stream=True)
        client.answers[number] = type(client.answers[1])()
        await client.flush()
        assert (await client.answer(number)).status == 421


async def test_who_has_proved_enough_may_ask_for_other_hosts(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        shown = known()
        assert await status(plane, "admin.b.example", "x.b.example", shown) == 200
        assert await status(plane, "admin.b.example", "maybe.b.example", shown) == 200
        assert await status(plane, "admin.b.example", "a.deep.b.example", shown) == 200
        assert await status(plane, "maybe.b.example", "admin.b.example", shown) == 200
        assert await status(plane, "x.b.example", "maybe.b.example") == 200  # nobody, who may be nobody there, too


async def test_another_authoritys_word_does_not_count(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        assert await status(plane, "other.b.example", "other.b.example", known(OTHERS)) == 200
        assert await status(plane, "other.b.example", "admin.b.example", known(OTHERS)) == 421
        assert await status(plane, "other.b.example", "maybe.b.example", known(OTHERS)) == 421
        assert await status(plane, "admin.b.example", "other.b.example", known()) == 421


async def test_an_older_version_of_tls_is_not_enough_where_another_is_asked_for(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with https(tmp_path, nursery) as plane:
        assert await status(plane, "x.b.example", "new.b.example") == 200
        assert await status(plane, "x.b.example", "new.b.example", old(client_context())) == 421


async def resumed(plane: TestPlane, context: ssl.SSLContext, session: ssl.SSLSession, name: str) -> bytes:
    """What is answered to who goes on with a session under another name; b"" if nothing is."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        stream = trio.SSLStream(raw, context, server_hostname=name, https_compatible=True)
        stream._ssl_object.session = session
        try:
            await stream.do_handshake()
            await stream.send_all(get(name))
            return bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return b""


async def test_a_session_of_an_open_host_opens_no_closed_one(tmp_path: Path, nursery: trio.Nursery) -> None:
    """CVE-2025-23419: resuming under another name must not carry over what was never asked."""
    async with https(tmp_path, nursery) as plane:
        for context in (client_context(), old(client_context())):
            async with connected(plane, "x.b.example", context) as stream:
                await stream.send_all(get("x.b.example"))
                assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")
                session = stream._ssl_object.session  # trio gives it no other way
            assert session is not None
            assert session.has_ticket
            assert await resumed(plane, context, session, "admin.b.example") == b""
        await plane.record(4)
    assert {record.status for record in plane.records} == {0, 200}


async def test_a_wildcards_rules_hold_at_any_depth_as_routes_do(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane:
        careless = client_context()
        careless.check_hostname = False  # no certificate is for these, which a client may not mind
        for name in ("a.deep.b.example", "one.two.deep.b.example"):
            assert "CERTIFICATE_REQUIRED" in await refused(plane, name, careless)


STRICT = '[listeners.web.tls.hosts."late.b.example"]\nclient_auth = "required"\nclient_ca = "ca.pem"\n'


def reloaded(plane: TestPlane, hosts: str) -> None:
    """A reload after which these hosts have rules of their own."""
    text = (plane.folder / "before.toml").read_text()
    plane.apply(text.replace(HOSTS, hosts))


@pytest.mark.parametrize("alpn", [(), ("h2",)], ids=["http/1.1", "h2"])
async def test_a_connection_from_before_a_reload_is_held_against_what_is_asked_now(
    alpn: tuple[str, ...], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Or whoever kept one open would walk into each host that is added later."""
    async with https(tmp_path, nursery) as plane, connected(plane, "x.b.example", None, b"", *alpn) as stream:
        client = await greeted(stream) if alpn else None

        async def ask(host: str) -> int:
            if client is not None:
                return (await client.answer(await client.request(authority=host, scheme="https"))).status
            await stream.send_all(get(host))
            return int((await answer(stream)).split(b" ")[1])

        assert await ask("late.b.example") == 200
        reloaded(plane, HOSTS + STRICT)
        assert await ask("x.b.example") == 200
        assert await ask("late.b.example") == 421


async def test_who_was_let_in_stays_when_only_whose_certificates_count_changes(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "admin.b.example", known()) as stream:
        for hosts in (HOSTS, HOSTS.replace('"ca.pem"', '"both.pem"'), ""):
            (tmp_path / "both.pem").write_bytes((tmp_path / "ca.pem").read_bytes() + OTHERS.cert_pem.bytes())
            reloaded(plane, hosts)
            await stream.send_all(get("admin.b.example"))
            assert (await answer(stream)).startswith(b"HTTP/1.1 200 ")


async def test_a_strangers_certificate_opens_no_host_that_is_added_later(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with https(tmp_path, nursery) as plane, connected(plane, "other.b.example", known(OTHERS)) as stream:
        reloaded(plane, HOSTS + STRICT)
        await stream.send_all(get("late.b.example"))
        assert (await answer(stream)).startswith(b"HTTP/1.1 421 ")
