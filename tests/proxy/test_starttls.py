"""PostgreSQL's clients, who ask for TLS in words of their own: where it is ended, or passes."""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.codec.postgres import ASK_FOR_TLS, error
from tcpgate.codec.proxy_header import render
from tcpgate.errors import Reason, Side
from tests.plane import TestPlane, serving
from tests.proxy.arrivals import authority, client_context, say, write_certificate

GSS = b"\0\0\0\x08\x04\xd2\x16\x30"
STARTUP = b"\0\0\0\x12\0\x03\0\0user\0ada\0\0"
CANCEL = b"\0\0\0\x10\x04\xd2\x16\x2epid_key_"
TLS_ONLY = error("28000", "this server is reached by TLS only: set sslmode=require")
V2 = render("v2", ("192.0.2.7", 4711), ("198.51.100.9", 5432))


@attrs.define
class Database:
    """A server that says its name and what it was told: enough of PostgreSQL."""

    name: str
    context: ssl.SSLContext | None = None
    answer: bytes = b"S"
    port: int = 0
    begun: list[bytes] = attrs.field(factory=list)
    """The first 8 bytes of each connection."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        async with stream:
            first = await stream.receive_some(8)
            self.begun.append(bytes(first))
            if first == ASK_FOR_TLS:
                await stream.send_all(self.answer)
                if self.context is None or self.answer != b"S":
                    return
                over = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
                try:
                    await self._echo(over, b"tls")
                except trio.BrokenResourceError:
                    await trio.aclose_forcefully(over)
            else:
                await self._echo(stream, b"plain", bytes(first + await stream.receive_some()))

    async def _echo(
        self, stream: trio.abc.HalfCloseableStream | trio.abc.Stream, how: bytes, first: bytes = b""
    ) -> None:
        said = first or await stream.receive_some()
        while said:
            await stream.send_all(b"%b/%b:%b;" % (self.name.encode(), how, bytes(said)))
            said = await stream.receive_some()

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        nursery.start_soon(partial(trio.serve_listeners, self.serve, [listener]))


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert(*names).configure_cert(context)
    return context


@asynccontextmanager
async def databases(
    folder: Path, nursery: trio.Nursery, listener: str, one: Database, two: Database | None = None, more: str = ""
) -> AsyncIterator[TestPlane]:
    """A plane before two servers; `listener`: its table but for the bind."""
    two = two or Database("two")
    for server in (one, two):
        await server.start(nursery)
    (folder / "ca.pem").write_bytes(authority().cert_pem.bytes())
    text = f"""
[gateway]
drain = "200ms"
LANE
[listeners.web]
protocol = "tcp"
bind = ["127.0.0.1:0"]
starttls = "postgres"
{listener}
[upstreams.one]
endpoints = ["127.0.0.1:{one.port}"]
{more}
[upstreams.two]
endpoints = ["127.0.0.1:{two.port}"]
"""
    lane = "" if "# no lane" not in listener else "lane = false"
    with trio.fail_after(40):
        async with serving(folder, text.replace("LANE", lane)) as plane:
            yield plane
    nursery.cancel_scope.cancel()


def ending(folder: Path, more: str = "") -> str:
    return (
        f'upstream = "one"\n[listeners.web.tls]\ncertificates = [{write_certificate(folder, "a", "a.example")}]\n{more}'
    )


PASSING = 'sni = { "a.example" = "one", "b.example" = "two" }'
TO_TLS = '[upstreams.one.tls]\nca = "ca.pem"\nname = "a.example"'


@asynccontextmanager
async def asked(
    plane: TestPlane, *pieces: bytes, name: str = "a.example", context: ssl.SSLContext | None = None
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """A client that has sent these pieces, each of which is answered by a byte, then shaken hands."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as raw:
        for piece in pieces:
            await raw.send_all(piece)
            if piece == ASK_FOR_TLS[:3]:
                await trio.sleep(0.02)
            if piece in (ASK_FOR_TLS, ASK_FOR_TLS[3:], GSS):
                assert await raw.receive_some(1) == (b"N" if piece == GSS else b"S")
        stream = trio.SSLStream(raw, context or client_context(), server_hostname=name, https_compatible=True)
        await stream.do_handshake()
        yield stream


async def told(stream: trio.abc.Stream, words: bytes = STARTUP) -> bytes:
    await stream.send_all(words)
    said = b""
    while not said.endswith(b";"):
        more = await stream.receive_some()
        assert more, said
        said += more
    return said


@pytest.mark.parametrize("lane", ["", "# no lane"])
@pytest.mark.parametrize(
    "before",
    [(ASK_FOR_TLS,), (GSS, ASK_FOR_TLS), (), (ASK_FOR_TLS[:3], ASK_FOR_TLS[3:])],
    ids=["asked", "gss first", "direct", "in two"],
)
async def test_tls_is_ended_for_who_asks(
    before: tuple[bytes, ...], lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one = Database("one")
    async with databases(tmp_path, nursery, f"{lane}\n{ending(tmp_path)}", one) as plane:
        async with asked(plane, *before) as stream:
            assert (await told(stream)).startswith(b"one/plain:" + STARTUP[:8])
        record = await plane.record()
    assert one.begun == [STARTUP[:8]]
    assert (record.upstream, record.reason) == ("one", Reason.OK)
    assert record.tls.startswith("TLSv1.3")
    assert record.t.tls > 0


@pytest.mark.parametrize("lane", ["", "# no lane"])
@pytest.mark.parametrize("before", [(ASK_FOR_TLS,), ()], ids=["asked", "direct"])
async def test_tls_is_ended_and_begun_anew(
    before: tuple[bytes, ...], lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one = Database("one", server_context("a.example"))
    async with databases(tmp_path, nursery, f"{lane}\n{ending(tmp_path)}", one, more=TO_TLS) as plane:
        async with asked(plane, *before) as stream:
            assert await told(stream) == b"one/tls:" + STARTUP + b";"
        await plane.record()
    assert one.begun == [ASK_FOR_TLS]


@pytest.mark.parametrize("lane", ["", "# no lane"])
@pytest.mark.parametrize("before", [(ASK_FOR_TLS,), (GSS, ASK_FOR_TLS), ()], ids=["asked", "gss first", "direct"])
@pytest.mark.parametrize(("name", "server"), [("a.example", b"one"), ("b.example", b"two")])
async def test_tls_passes_to_whom_the_name_says(
    name: str, server: bytes, before: tuple[bytes, ...], lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one, two = Database("one", server_context("a.example")), Database("two", server_context("b.example"))
    async with databases(tmp_path, nursery, f"{lane}\n{PASSING}", one, two) as plane:
        async with asked(plane, *before, name=name) as stream:
            assert await told(stream) == server + b"/tls:" + STARTUP + b";"
        record = await plane.record()
    assert [*one.begun, *two.begun] == [ASK_FOR_TLS]
    assert (record.upstream, record.tls, record.reason) == (server.decode(), "", Reason.OK)


@pytest.mark.parametrize("words", [STARTUP, CANCEL, GSS + STARTUP], ids=["startup", "cancel", "gss"])
async def test_who_does_not_ask_is_refused_in_words_where_tls_is_ended(
    words: bytes, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one = Database("one")
    async with databases(tmp_path, nursery, ending(tmp_path), one) as plane:
        assert (await say(plane, [words])).removeprefix(b"N") == TLS_ONLY
        record = await plane.record()
        assert plane.counts("listener", "web")["handshakes_failed"] == 1
    assert one.begun == []
    assert (record.reason, record.rule) == (Reason.TLS_REFUSED, "listeners.web.starttls")
    assert record.detail.endswith(" without TLS")


@pytest.mark.parametrize("words", [STARTUP, CANCEL], ids=["startup", "cancel"])
async def test_who_does_not_ask_goes_where_those_go_that_name_nobody(
    words: bytes, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one, two = Database("one"), Database("two")
    listener = 'upstream = "two"\nsni = { "a.example" = "one" }'
    async with databases(tmp_path, nursery, listener, one, two) as plane:
        assert (await say(plane, [words])).startswith(b"two/plain:" + words[:8])
    assert (one.begun, two.begun) == ([], [words[:8]])


async def test_who_does_not_ask_is_refused_where_nobody_is_for_him(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with databases(tmp_path, nursery, PASSING, Database("one")) as plane:
        assert await say(plane, [STARTUP]) == TLS_ONLY
        record = await plane.record()
    assert record.reason == Reason.NO_ROUTE


async def test_an_unknown_name_is_refused_by_an_alert(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with databases(tmp_path, nursery, PASSING, Database("one")) as plane:
        with pytest.raises(trio.BrokenResourceError) as caught:
            async with asked(plane, ASK_FOR_TLS, name="c.example"):
                pass
    assert "UNRECOGNIZED_NAME" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x09\x04\xd2\x16\x2f", b"\0" * 8, ASK_FOR_TLS + STARTUP, GSS * 1000],
)
async def test_what_is_neither_is_closed(words: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    """A StartupMessage behind SSLRequest is what an attacker in between would put there (CVE-2021-23222)."""
    one = Database("one")
    async with databases(tmp_path, nursery, ending(tmp_path), one) as plane:
        assert (await say(plane, [words])) in (b"", b"S", b"N")
        record = await plane.record()
    assert record.reason == Reason.TLS_REFUSED
    assert one.begun == []


@pytest.mark.parametrize("pieces", [[ASK_FOR_TLS[:5]], [ASK_FOR_TLS], [GSS], []])
async def test_a_client_that_leaves_on_the_way_leaves_nothing(
    pieces: list[bytes], tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with databases(tmp_path, nursery, ending(tmp_path), Database("one")) as plane:
        await say(plane, pieces)
        record = await plane.record()
        assert not plane.servers["web"].connections
    assert (record.reason, record.answered_by) == (Reason.CLIENT_ABORT, Side.CLIENT)


@pytest.mark.parametrize("words", [b"", ASK_FOR_TLS[:4], ASK_FOR_TLS, GSS])
async def test_asking_has_its_time_too(words: bytes, tmp_path: Path, nursery: trio.Nursery) -> None:
    listener = f'timeouts = {{ handshake = "300ms" }}\n{ending(tmp_path)}'
    async with databases(tmp_path, nursery, listener, Database("one")) as plane:
        async with await trio.open_tcp_stream("127.0.0.1", plane.port()) as stream:
            if words:
                await stream.send_all(words)
            said = b""
            while more := await stream.receive_some():
                said += more
        record = await plane.record()
    assert said in (b"", b"S", b"N")
    assert (record.reason, record.rule) == (Reason.TLS_REFUSED, "listeners.web.timeouts.handshake")


async def test_a_proxys_header_comes_first_on_either_side(tmp_path: Path, nursery: trio.Nursery) -> None:
    one = Database("one")
    listener = f'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "require"\n{ending(tmp_path)}'
    async with databases(tmp_path, nursery, listener, one) as plane:
        async with asked(plane, V2, ASK_FOR_TLS) as stream:
            assert (await told(stream)).startswith(b"one/plain:")
        record = await plane.record()
    assert record.client == "192.0.2.7"


@pytest.mark.parametrize(
    ("answer", "what"),
    [(b"N", "does not speak TLS"), (b"E", "does not speak PostgreSQL"), (b"", "closed")],
)
@pytest.mark.parametrize("lane", ["", "# no lane"])
async def test_a_server_that_will_not_is_told_of(
    answer: bytes, what: str, lane: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    one = Database("one", answer=answer)
    async with databases(tmp_path, nursery, f"{lane}\n{PASSING}", one) as plane:
        with pytest.raises(trio.BrokenResourceError):
            async with asked(plane, ASK_FOR_TLS):
                pass
        record = await plane.record()
    assert record.reason == Reason.TLS_HANDSHAKE
    assert what in record.detail


async def test_a_server_that_says_nothing_has_the_time_of_a_connect(tmp_path: Path, nursery: trio.Nursery) -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent.socket.getsockname()[1]
    more = f'[upstreams.mute]\nendpoints = ["127.0.0.1:{port}"]'
    more += '\ntimeouts = { connect = "200ms" }'
    listener = 'sni = { "a.example" = "mute" }'
    async with databases(tmp_path, nursery, listener, Database("one"), more=more) as plane:
        with pytest.raises(trio.BrokenResourceError):
            async with asked(plane, ASK_FOR_TLS):
                pass
        record = await plane.record()
    await silent.aclose()
    assert (record.reason, "SSLRequest" in record.detail) == (Reason.CONNECT_TIMEOUT, True)


async def test_clients_that_insist_on_the_protocols_name_get_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    """psql 17 with sslnegotiation=direct."""
    context = client_context("postgresql")
    async with (
        databases(tmp_path, nursery, ending(tmp_path), Database("one")) as plane,
        asked(plane, context=context) as stream,
    ):
        await told(stream)
        assert stream.selected_alpn_protocol() == "postgresql"


def test_the_messages_are_those_of_the_manual() -> None:
    assert struct.unpack("!II", ASK_FOR_TLS) == (8, 80877103)
    assert struct.unpack("!II", GSS) == (8, 80877104)
    assert struct.unpack("!II", CANCEL[:8]) == (16, 80877102)
