"""The demo's origins, spoken to over real sockets by an h11 client, and the config that goes with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import h11
import pytest
import tomli
import trio

from tcpgate import demo
from tcpgate.config.load import load


@attrs.define
class Client:
    """One connection to an origin."""

    stream: trio.SocketStream
    wire: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT))

    async def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[h11.Response, bytes]:
        """The answer's head and whole body; the connection is ready for the next request if it may be."""
        fields = [("host", "demo"), ("content-length", str(len(body)))]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        await self.stream.send_all(self.wire.send(h11.Request(method=method, target=target, headers=fields)) or b"")
        await self.stream.send_all(self.wire.send(h11.Data(data=body)) or b"")
        await self.stream.send_all(self.wire.send(h11.EndOfMessage()) or b"")
        return await self.answer()

    async def answer(self) -> tuple[h11.Response, bytes]:
        """What comes back."""
        head: h11.Response | None = None
        received = bytearray()
        while not isinstance(event := self.wire.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                received += event.data
            elif event is h11.NEED_DATA:
                self.wire.receive_data(await self.stream.receive_some(65536))
            else:
                assert isinstance(event, h11.InformationalResponse), event
        assert head is not None
        if self.wire.our_state is h11.DONE:
            self.wire.start_next_cycle()
        return head, bytes(received)

    async def told(self, target: str, method: str = "GET") -> dict[str, Any]:
        """What the origin says of itself."""
        told: dict[str, Any] = json.loads((await self.ask(method, target))[1])
        return told


@pytest.fixture
async def ports() -> AsyncIterator[list[int]]:
    """Three origins, on ports of the kernel's choice."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(demo.serve_origins, (0, 0, 0))
        nursery.cancel_scope.cancel()


@pytest.fixture
async def client(ports: list[int]) -> AsyncIterator[Client]:
    """A connection to the first of them."""
    async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
        yield Client(stream)


async def test_each_origin_says_who_it_is(ports: list[int]) -> None:
    names = []
    for port in ports:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            names.append((await Client(stream).told("/"))["origin"])
    assert names == ["origin-1", "origin-2", "origin-3"]


async def test_an_origin_counts_and_shows_the_request_as_it_came(client: Client) -> None:
    await client.ask("GET", "/first")
    head, body = await client.ask("PUT", "/any/path?x=1", b"ignored", X_Request_Id="abc")
    told = json.loads(body)
    assert head.status_code == 200
    assert (told["served"], told["method"], told["target"]) == (2, "PUT", "/any/path?x=1")
    assert ["X-Request-Id", "abc"] in told["headers"], "a name keeps its case"


async def test_health_is_what_the_operator_of_the_demo_says(client: Client) -> None:
    async def health() -> int:
        return (await client.ask("GET", "/healthz"))[0].status_code

    assert await health() == 200
    assert (await client.told("/ill", "POST"))["health"] == "ill"
    assert await health() == 503
    await client.ask("GET", "/well")
    assert await health() == 503, "a GET changes nothing"
    await client.ask("POST", "/well")
    assert await health() == 200


async def test_fail_fails(client: Client) -> None:
    assert (await client.ask("GET", "/fail"))[0].status_code == 500


async def test_slow_answers_when_it_was_asked_to(client: Client) -> None:
    before = trio.current_time()
    await client.ask("GET", "/slow?ms=60")
    assert 0.06 <= trio.current_time() - before < 20


@pytest.mark.parametrize(
    ("query", "length"), [("?n=0", 0), ("?n=1", 1), ("?n=65536", 65536), ("?n=200000", 200_000), ("", 1_000_000)]
)
async def test_bytes_are_as_many_as_asked_for(client: Client, query: str, length: int) -> None:
    head, body = await client.ask("GET", f"/bytes{query}")
    assert body == bytes(length)
    assert dict(head.headers)[b"content-length"] == str(length).encode()


@pytest.mark.parametrize("text", ["", "-1", "1e9", "%C2%B2", "9" * 30, "1_0"])
def test_a_number_that_is_none_is_the_default(text: str) -> None:
    head = h11.Request(method="GET", target=f"/bytes?n={text}", headers=[("host", "demo")])
    assert demo.number(head, "n", default=7, most=10) == 7


def test_no_number_asks_for_more_than_there_is() -> None:
    head = h11.Request(method="GET", target="/slow?ms=999999999", headers=[("host", "demo")])
    assert demo.number(head, "ms", 500, demo.MAX_MS) == demo.MAX_MS


async def test_echo_sends_the_body_back(client: Client) -> None:
    body = bytes(range(256)) * 300
    head, echoed = await client.ask("POST", "/echo", body)
    assert echoed == body
    assert dict(head.headers)[b"transfer-encoding"] == b"chunked"


async def test_echo_answers_before_the_body_is_over(client: Client) -> None:
    await client.stream.send_all(
        b"POST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    )
    received = b""
    with trio.fail_after(20):
        while b"first" not in received:
            received += await client.stream.receive_some(4096)
    await client.stream.send_all(b"0\r\n\r\n")
    with trio.fail_after(20):
        while not received.endswith(b"0\r\n\r\n"):
            received += await client.stream.receive_some(4096)


async def test_a_client_that_waits_for_100_continue_gets_it(client: Client) -> None:
    await client.stream.send_all(
        b"POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    received = b""
    with trio.fail_after(20):
        while b"HTTP/1.1 100" not in received:
            received += await client.stream.receive_some(4096)


async def test_head_has_the_length_but_no_body_and_the_connection_goes_on(client: Client) -> None:
    head, body = await client.ask("HEAD", "/bytes?n=5")
    assert (dict(head.headers)[b"content-length"], body) == (b"5", b"")
    assert (await client.told("/"))["served"] == 2


async def test_connection_close_closes(client: Client) -> None:
    await client.ask("GET", "/", connection="close")
    with trio.fail_after(20):
        assert await client.stream.receive_some(1) == b""


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00", b"GET /\r\n\r\n", b"POST / HTTP/1.1\r\n", b""])
async def test_a_client_that_speaks_no_http_or_leaves_harms_no_other(ports: list[int], noise: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
        await stream.send_all(noise)
    async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
        assert (await Client(stream).told("/"))["origin"] == "origin-1"


async def test_a_client_that_resets_in_the_middle_of_a_download_harms_no_other(ports: list[int]) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", ports[0])
    await stream.send_all(b"GET /bytes?n=100000000 HTTP/1.1\r\nHost: demo\r\n\r\n")
    await stream.receive_some(1000)
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    await stream.aclose()
    async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as again:
        assert (await Client(again).told("/"))["served"] == 2


async def test_a_port_in_use_is_an_error_and_leaves_no_socket_open(ports: list[int]) -> None:
    with pytest.raises(OSError, match="in use"):
        await demo.serve_origins((0, ports[0]))


# -- the config -----------------------------------------------------------------------------------------------------


def test_the_quickstart_names_the_ports_of_the_demo() -> None:
    config = tomli.loads(demo.quickstart().read_text())
    endpoints = config["upstreams"]["demo"]["endpoints"]
    addresses = [endpoint if isinstance(endpoint, str) else endpoint["address"] for endpoint in endpoints]
    assert addresses == [f"127.0.0.1:{port}" for port in demo.PORTS]


@pytest.mark.parametrize(("environ", "port"), [({}, 8080), ({"DEMO_PORT": ""}, 8080), ({"DEMO_PORT": "18888"}, 18888)])
def test_what_to_try_names_the_port_that_the_quickstart_listens_on(environ: dict[str, str], port: int) -> None:
    path = demo.quickstart()
    (bind,) = load(path, environ=environ, credentials=None).config.listeners["web"].bind
    assert bind == f"127.0.0.1:{port}"
    assert f"curl -i http://{bind}/ " in demo.what_to_try(path, environ)


def test_the_quickstart_of_a_work_tree_is_its_own() -> None:
    assert demo.quickstart() == Path(__file__).parent.parent / "etc" / "quickstart.toml"
