"""Ways to HTTP/2 endpoints beyond plain requests: TLS and ALPN, WebSockets, filters' questions, silence, the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tcpgate.codec.events import Fields, ResponseHead
from tcpgate.errors import GateError, Reason, Refused
from tcpgate.filters.base import CONTINUE, Ask, RequestView, Respond, Subrequest, Verdict
from tcpgate.proxy import http2_upstream
from tests import tls_origin as origins
from tests.plane import TestPlane, serving
from tests.proxy import scripted
from tests.proxy.http2_client import Answer, http2_client
from tests.proxy.http2_origin import TUNNELS, Wire, http2_origin, serve_all
from tests.proxy.scripted import GET, client, rest
from tests.tls_origin import NAME, server_context, tls_origin

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The pair of RFC 6455 1.3."""
WEBSOCKET = (
    b"GET /chat HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)


def config(*ports: int, upstream: str = "", **more: str) -> str:
    """Endpoints of HTTP/2."""
    return scripted.config(*ports, upstream=f'http = "h2"\nbalance = "first"\n{upstream}', **more)


def over_tls(folder: Path, *ports: int, tls: str = "") -> str:
    """Endpoints of HTTP/2 over TLS."""
    (folder / "ca.pem").write_text(origins.ca_pem())
    return config(*ports) + f'[upstreams.api.tls]\nca = "ca.pem"\nname = "{NAME}"\n{tls}'


async def ask(plane: TestPlane, request: bytes = GET) -> bytes:
    """The answer to one request, on a connection of its own."""
    async with client(plane) as stream:
        await stream.send_all(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        return await rest(stream)


# -- TLS ------------------------------------------------------------------------------------------------------------


async def test_over_tls_endpoints_agree_on_h2_by_alpn(tmp_path: Path) -> None:
    context = server_context(alpn=("h2", "http/1.1"))
    async with http2_origin(tls=context) as origin, serving(tmp_path, over_tls(tmp_path, origin.port)) as plane:
        for number in range(1, 4):
            assert (await ask(plane)).endswith(b"\r\n\r\n/")
            await plane.record(number)
        asked = origin.wires[0].asks[1]
    assert asked[b":scheme"] == b"https"
    assert len(origin.wires) == 1


@pytest.mark.parametrize("alpn", [("http/1.1",), ()])
async def test_an_endpoint_that_does_not_agree_on_h2_is_told_of_as_that(tmp_path: Path, alpn: tuple[str, ...]) -> None:
    async with (
        tls_origin(context=server_context(alpn=alpn)) as origin,
        serving(tmp_path, over_tls(tmp_path, origin.port)) as plane,
    ):
        said = await ask(plane)
        record = await plane.record()
    assert said.startswith(b"HTTP/1.1 502")
    assert record.reason == Reason.TLS_HANDSHAKE
    assert "it does not speak h2" in record.detail
    assert origin.heads == []


# -- WebSockets -----------------------------------------------------------------------------------------------------


async def echo(wire: Wire) -> None:
    """A play: takes one tunnel and says back what comes in it, until its end."""
    asked = await wire.ask()
    await wire.head(asked, fields=[(b"sec-websocket-protocol", b"chat")])
    await wire.data(asked, b"welcome")
    while not (asked.ended or asked.reset is not None or wire.ended):
        await wire.until(lambda: asked.body or asked.ended or asked.reset is not None)
        said, asked.body = asked.body, b""
        if said:
            await wire.data(asked, said)
    if asked.reset is None and not wire.ended:
        await wire.data(asked, b"bye", end=True)
    await wire.until(lambda: False)


async def test_a_websocket_is_an_extended_connect(tmp_path: Path) -> None:
    async with (
        http2_origin(echo, settings={TUNNELS: 1}) as origin,
        serving(tmp_path, config(origin.port)) as plane,
        client(plane) as stream,
    ):
        await stream.send_all(WEBSOCKET)
        said = await scripted.until(stream, b"welcome")
        await stream.send_all(b"hello" * 100_000)
        got = b""
        while len(got) < 500_000:
            got += await stream.receive_some(65536)
        await stream.send_eof()
        assert await rest(stream) == b"bye"
        record = await plane.record()
        asked = origin.wires[0].asks[1]
    assert said.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    lines = dict(line.lower().split(b": ", 1) for line in said.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])
    assert lines[b"sec-websocket-accept"] == ACCEPT.lower()
    assert (lines[b"upgrade"], lines[b"sec-websocket-protocol"]) == (b"websocket", b"chat")
    fields = dict(asked.fields)
    assert [pair[0] for pair in asked.fields[:5]] == [b":method", b":scheme", b":authority", b":path", b":protocol"]
    assert (asked[b":method"], asked[b":protocol"], asked.path) == (b"CONNECT", b"websocket", b"/chat")
    assert fields[b"sec-websocket-version"] == b"13"
    assert not fields.keys() & {b"sec-websocket-key", b"upgrade", b"connection", b"content-length"}
    assert got == b"hello" * 100_000
    assert record.reason == Reason.TUNNEL_CLOSED


async def test_a_websocket_goes_from_http_2_to_http_2(tmp_path: Path) -> None:
    async with (
        http2_origin(echo, settings={TUNNELS: 1}) as origin,
        serving(tmp_path, config(origin.port, listener="http2 = true")) as plane,
        http2_client(plane) as up,
    ):
        number = up.h2.get_next_available_stream_id()
        fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http")]
        fields += [(b":authority", b"t"), (b":path", b"/chat"), (b"sec-websocket-version", b"13")]
        up.h2.send_headers(number, fields)
        up.answers[number] = Answer()
        await up.flush()
        assert (await up.head(number)).status == 200
        await up.send(number, b"hello", end=True)
        answer = await up.answer(number)
        await plane.record()
    assert answer.body == b"welcomehellobye"
    assert origin.wires[0].asks[1][b":protocol"] == b"websocket"


async def test_a_websocket_that_is_cut_cancels_its_stream(tmp_path: Path) -> None:
    async with http2_origin(echo, settings={TUNNELS: 1}) as origin, serving(tmp_path, config(origin.port)) as plane:
        async with client(plane) as stream:
            await stream.send_all(WEBSOCKET)
            await scripted.until(stream, b"welcome")
            stream.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER: the close is a reset
        await origin.wires[0].until(lambda: origin.wires[0].asks[1].reset is not None)
        await plane.record()
    assert origin.wires[0].asks[1].reset == 8


async def test_an_endpoint_that_takes_no_websockets_over_h2_is_not_blamed_for_it(tmp_path: Path) -> None:
    async with http2_origin() as origin, serving(tmp_path, config(origin.port)) as plane:
        said = await ask(plane, WEBSOCKET)
        record = await plane.record()
        counts = plane.counts("endpoint", f"api/127.0.0.1:{origin.port}")
    assert said.startswith(b"HTTP/1.1 502")
    assert record.reason == Reason.UPGRADE_FAILED
    assert "RFC 8441" in record.detail
    assert (counts["answers_bad"], counts["active"]) == (0, 0)
    assert origin.wires[0].asks == {}


async def test_an_answer_that_takes_no_websocket_is_the_answer(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.ask()
        await wire.answer(asked, b"no chat", 404)
        await wire.until(lambda: False)

    async with (
        http2_origin(play, settings={TUNNELS: 1}) as origin,
        serving(tmp_path, config(origin.port)) as plane,
        client(plane) as stream,
    ):
        await stream.send_all(WEBSOCKET)
        said = await scripted.until(stream, b"no chat")
        record = await plane.record()
        await origin.wires[0].until(lambda: origin.wires[0].asks[1].reset is not None)
    assert said.startswith(b"HTTP/1.1 404")
    assert record.status == 404


async def test_another_protocol_is_not_offered_on(tmp_path: Path) -> None:
    async with (
        http2_origin(settings={TUNNELS: 1}) as origin,
        serving(tmp_path, config(origin.port)) as plane,
        client(plane) as stream,
    ):
        await stream.send_all(scripted.UPGRADE)
        said = await scripted.until(stream, b"\r\n\r\n/")
        await plane.record()
        asked = origin.wires[0].asks[1]
    assert said.startswith(b"HTTP/1.1 200")
    assert b"upgrade" not in dict(asked.fields)


# -- filters' questions ---------------------------------------------------------------------------------------------


class AskFirst:
    """Lets a request through if the upstream "guard" says so."""

    def on_request(self, view: RequestView) -> Verdict:
        """Ask."""

        def then(answer: ResponseHead | GateError) -> Verdict:
            if isinstance(answer, ResponseHead) and answer.status == 200:
                return CONTINUE
            return Respond(Refused(Reason.DENIED, "the service said no"))

        question = Subrequest(
            upstream="guard", method=b"GET", target=view.head.path, fields=Fields([(b"X-A", b"b")]), timeout=10.0
        )
        return Ask(question, then)

    def on_response(self, view: RequestView, response: ResponseHead) -> None:
        """Nothing."""


async def test_a_filters_question_goes_over_http_2_too(tmp_path: Path) -> None:
    async def play(wire: Wire) -> None:
        while True:
            asked = await wire.whole()
            await wire.answer(asked, b"so", 200 if asked.path == b"/in" else 403)

    async with http2_origin(play) as guard, http2_origin() as origin:
        text = config(origin.port)
        text += f'[upstreams.guard]\nhttp = "h2"\nendpoints = ["127.0.0.1:{guard.port}"]\n'
        async with serving(tmp_path, text) as plane:
            plane.use_filter("all", AskFirst())
            said = [await ask(plane, b"GET %b HTTP/1.1\r\nHost: t\r\n\r\n" % path) for path in (b"/in", b"/no", b"/in")]
            await plane.record(3)
            counts = plane.counts("endpoint", f"guard/127.0.0.1:{guard.port}")
        asked = guard.wires[0].asks[1]
    assert [one[9:12] for one in said] == [b"200", b"403", b"200"]
    assert (asked[b":authority"], asked[b"x-a"]) == (b"guard", b"b")
    assert len(guard.wires) == 1
    assert (counts["active"], counts["connects"]) == (0, 1)


# -- silence --------------------------------------------------------------------------------------------------------

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
IMPATIENT = '[upstreams.api.timeouts]\nfirst_byte = "150ms"'


async def test_a_connection_whose_endpoint_is_gone_without_a_word_is_given_up(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(SETTINGS)
        await scripted.silent(stream)

    monkeypatch.setattr(http2_upstream, "SUSPICIOUS", 0.1)
    monkeypatch.setattr(http2_upstream, "PING_WAIT", 0.1)
    port = await scripted.origin(nursery, play)
    async with serving(tmp_path, config(port, upstream=IMPATIENT)) as plane:
        said = await ask(plane)
        record = await plane.record()
        with trio.fail_after(30):
            while plane.counts("endpoint", f"api/127.0.0.1:{port}")["connections"]:
                await trio.sleep(0.005)
    assert said.startswith(b"HTTP/1.1 504")
    assert record.reason == Reason.FIRST_BYTE_TIMEOUT


async def test_an_endpoint_that_is_slow_but_there_keeps_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.until(lambda: asked.reset is not None and wire.pings)
        await serve_all(wire)

    monkeypatch.setattr(http2_upstream, "SUSPICIOUS", 0.05)
    monkeypatch.setattr(http2_upstream, "PING_WAIT", 0.5)
    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port, upstream=IMPATIENT)) as plane:
        assert (await ask(plane)).startswith(b"HTTP/1.1 504")
        await plane.record()
        await origin.wires[0].until(lambda: origin.wires[0].pings)
        await trio.sleep(0.6)
        assert (await ask(plane)).startswith(b"HTTP/1.1 200")
    assert len(origin.wires) == 1


async def test_silent_streams_are_asked_after_with_a_ping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(wire: Wire) -> None:
        asked = await wire.whole()
        await wire.until(lambda: wire.pings >= 2)
        await wire.answer(asked, b"late")
        await wire.until(lambda: False)

    monkeypatch.setattr(http2_upstream, "PING_AFTER", 0.1)
    async with http2_origin(play) as origin, serving(tmp_path, config(origin.port)) as plane, client(plane) as stream:
        await stream.send_all(GET)
        assert (await scripted.until(stream, b"late")).startswith(b"HTTP/1.1 200")


# -- a worker's end -------------------------------------------------------------------------------------------------


async def test_connections_end_with_a_goaway_when_the_worker_ends(tmp_path: Path) -> None:
    async with http2_origin() as origin:
        async with serving(tmp_path, config(origin.port)) as plane:
            await ask(plane)
            await plane.record()
        await origin.wires[0].until(lambda: False)
    assert origin.wires[0].goaways == [0]
