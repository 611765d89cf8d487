"""Every call of the admin API through its real server, over a unix socket and over TCP."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tcpgate.client import AdminClient, AdminError, find
from tcpgate.config import schema, validators
from tcpgate.config.load import load
from tcpgate.control.admin import LARGEST_BODY, MOST_CONNECTIONS, AdminServer
from tcpgate.control.api import CALLS, Api
from tcpgate.control.health import HealthBoard
from tcpgate.control.reload import Reloader, ReloadResult
from tcpgate.net.bound import Binder
from tcpgate.policy.health import ProbeResult
from tcpgate.state.reach import Reach
from tcpgate.stats.journal import Journal
from tcpgate.stats.page import OFFSETS, Layout, SharedPage, size_of

CONFIG = """
[listeners.web]
bind = ["127.0.0.1:8080"]
[routes.all]
upstream = "api"
[routes.exact]
path = "=/x"
respond = {}
[upstreams.api]
endpoints = ["127.0.0.1:1", { address = "127.0.0.1:2", weight = 3, tier = 1 }, "unix:/run/app.sock"]
[upstreams."odd.name-2"]
endpoints = ["127.0.0.1:9"]
"""
Json = Any
TOKEN = "0123456789abcdef-correct-horse"


class NoWorkers:
    """Takes every generation."""

    async def prepare(self, number: int, config: schema.Config, sockets: Mapping[str, socket.socket]) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """Holds nothing."""


class NoSockets:
    """Listens nowhere."""

    def bind(self, text: str, backlog: int, mode: int) -> socket.socket:
        return socket.socket()

    def permit(self, text: str, mode: int) -> None:
        """There is no file."""

    def start(self, text: str) -> None:
        """Still nowhere."""

    def release(self, text: str, sock: socket.socket) -> None:
        sock.close()


@attrs.define(eq=False)
class House:
    """The API with a real board, journal and reloader behind it."""

    folder: Path
    nursery: trio.Nursery
    shared: SharedPage
    layout: Layout = attrs.field(factory=Layout)
    journal: Journal = attrs.field(factory=Journal)
    ready: bool = True
    stopping: bool = False
    later: list[int] = attrs.field(factory=list)
    """Reloads that nobody waits for."""
    board: HealthBoard = attrs.field(init=False)
    reloader: Reloader = attrs.field(init=False)
    api: Api = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.write(CONFIG)
        self.board = HealthBoard(publish=lambda changed: None, tell=self.tell, ask=self._ask, rng=random.Random(1))
        self.reloader = Reloader(
            load=lambda: load(self.folder / "gateway.toml", environ={}, credentials=None),
            binder=NoSockets(),
            publisher=NoWorkers(),
            beside=self,
            tell=self.tell,
        )
        self.api = Api(
            reload=self.reloader.reload,
            reload_soon=lambda: self.later.append(1),
            reloader=self.reloader,
            board=self.board,
            journal=self.journal,
            tell=self.tell,
            shared=self.shared,
            layout=self.layout,
            workers=lambda: {1: 4711},
            wanted=lambda: 2,
            processes=lambda: 2,
            deaths=lambda: 5,
            bugs=lambda: 0,
            is_ready=lambda: self.ready,
            is_stopping=lambda: self.stopping,
            uptime=lambda: 12.5,
        )

    def write(self, text: str) -> None:
        (self.folder / "gateway.toml").write_text(text)

    def tell(self, kind: str, level: str, text: str, facts: Mapping[str, str | int | float]) -> None:
        self.journal.tell(kind, level, text, facts, ts=1.0e9)

    async def _ask(self, health: schema.Health, address: str, deadline: float, reach: Reach) -> ProbeResult:
        raise AssertionError("nothing here is probed")

    async def prepare(self, config: schema.Config) -> None:
        await trio.lowlevel.checkpoint()

    def apply(self, config: schema.Config, old: schema.Config | None) -> None:
        self.board.apply(config.upstreams, self.nursery)

    def abandon(self) -> None:
        """Holds nothing."""

    async def serve(self, bind: str | None = None, token: str | None = None) -> AdminClient:
        """Serve; who asks there."""
        bind = bind or f"unix:{self.folder}/admin.sock"
        spec = schema.Admin(bind=bind, token=validators.Secret(token) if token else None)
        await self.nursery.start(AdminServer(spec, self.api, Binder()).serve)
        return AdminClient(bind, token)


@pytest.fixture
async def house(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[House]:
    fd = os.memfd_create("tcpgate-test")
    os.ftruncate(fd, size_of(3))
    shared = SharedPage(fd, 3)
    made = House(tmp_path, nursery, shared)
    result = await made.reloader.start(load(tmp_path / "gateway.toml", environ={}, credentials=None))
    assert result.ok
    yield made
    made.reloader.close()
    shared.close()
    os.close(fd)


async def ask(client: AdminClient, method: str, path: str, document: Json = None) -> tuple[int, Json]:
    """One call, from a thread as the command line makes it."""
    return await trio.to_thread.run_sync(lambda: client.ask(method, path, document, timeout=5))


async def raw(client: AdminClient, request: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    stream = await trio.open_unix_socket(client.address.removeprefix("unix:"))
    said = b""
    async with stream:
        with trio.fail_after(20):
            await stream.send_all(request)
            while chunk := await stream.receive_some(65536):
                said += chunk
    return said


# -- the table of calls ---------------------------------------------------------------------------------------------

GOOD: list[tuple[str, str, Any, Callable[[Any], bool]]] = [
    ("GET", "/api/v1/", None, lambda got: {"method": "GET", "path": "/healthz"}.items() <= got[0].items()),
    ("GET", "/api/v1/status", None, lambda got: got["ready"] and got["generation"] == 1),
    ("GET", "/api/v1/status", None, lambda got: (got["uptime_seconds"], got["workers_wanted"]) == (12.5, 2)),
    ("GET", "/api/v1/status", None, lambda got: got["endpoints"]["total"] == got["endpoints"]["up"] == 4),
    ("GET", "/api/v1/status", None, lambda got: got["workers_died"] == 5 and got["last_reload"] is None),
    ("GET", "/api/v1/status", None, lambda got: [one["name"] for one in got["listeners"]] == ["web"]),
    ("GET", "/api/v1/listeners", None, lambda got: got[0]["bind"] == ["127.0.0.1:8080"]),
    ("GET", "/api/v1/routes", None, lambda got: [one["route"] for one in got] == ["exact", "all"]),
    ("GET", "/api/v1/upstreams", None, lambda got: [one["name"] for one in got] == ["api", "odd.name-2"]),
    ("GET", "/api/v1/upstreams/api", None, lambda got: len(got["endpoints"]) == 3),
    ("GET", "/api/v1/upstreams/odd%2Ename-2", None, lambda got: got["name"] == "odd.name-2"),
    ("GET", "/api/v1/config", None, lambda got: got["upstreams"]["api"]["endpoints"][1]["weight"] == 3),
    ("GET", "/api/v1/events", None, lambda got: isinstance(got, list)),
    ("GET", "/api/v1/events?since=0&limit=1", None, lambda got: len(got) <= 1),
    (
        *("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"state": "drain"}),
        lambda got: got["state"] == "draining",
    ),
    (
        *("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1%3A2", {"state": "maint"}),
        lambda got: got["state"] == "maint",
    ),
    (
        *("PUT", "/api/v1/upstreams/api/endpoints/unix:%2Frun%2Fapp.sock", {"weight": 7}),
        lambda got: (got["weight"], got["operator_weight"]) == (7.0, 7),
    ),
    (
        *("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:2", {"weight": None}),
        lambda got: (got["weight"], got["operator_weight"]) == (3.0, None),
    ),
    (
        *("PUT", "/api/v1/upstreams/odd%2Ename-2/endpoints/127.0.0.1:9", {"state": "ready", "weight": 0}),
        lambda got: (got["state"], got["weight"]) == ("healthy", 0.0),
    ),
    ("POST", "/api/v1/reload", None, lambda got: got["ok"] and not got["changed"]),
]


@pytest.mark.parametrize(("method", "path", "document", "holds"), GOOD)
async def test_a_call_answers(
    house: House, method: str, path: str, document: Json, holds: Callable[[Any], bool]
) -> None:
    status, got = await ask(await house.serve(), method, path, document)
    assert status == 200
    assert holds(got), got


BAD: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/", None, 404, "no such call: GET /; GET /api/v1/ lists them"),
    ("GET", "/api/v1/upstreams/apo", None, 404, 'there is no upstream "apo" (did you mean "api"?)'),
    ("GET", "/api/v1/upstreams/zzz", None, 404, 'there is no upstream "zzz"; there are api, odd.name-2'),
    ("GET", "/api/v1/events?since=x", None, 400, "since and limit are whole numbers"),
    ("POST", "/api/v1/reload?wait=perhaps", None, 400, 'wait is true or false, not "perhaps"'),
    ("POST", "/api/v1/status", None, 405, "allowed here: GET"),
    ("DELETE", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", None, 405, "allowed here: PUT"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:7", {"weight": 1}, 404, "there is no endpoint"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {}, 400, "send {"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"stat": "drain"}, 400, "send {"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"state": "gone"}, 400, 'not "gone"'),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"state": ["drain"]}, 400, "state must be"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"weight": 257}, 400, "from 0 to 256"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"weight": True}, 400, "whole number"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"weight": 1.5}, 400, "whole number"),
    ("PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", [1], 400, "must be a JSON object"),
]


@pytest.mark.parametrize(("method", "path", "document", "status", "says"), BAD)
async def test_a_wrong_call_says_what_would_be_right(
    house: House, method: str, path: str, document: Json, status: int, says: str
) -> None:
    before = house.board.describe()
    got, problem = await ask(await house.serve(), method, path, document)
    assert got == status
    assert says in problem["detail"]
    assert problem["status"] == status
    after = house.board.describe()
    assert [(one.state, one.weight) for one in after] == [(one.state, one.weight) for one in before]


async def test_every_call_of_the_table_is_told_by_the_list(house: House) -> None:
    _, listed = await ask(await house.serve(), "GET", "/api/v1/")
    assert len(listed) == len(CALLS)
    assert all(one["does"] for one in listed)
    assert {"method": "PUT", "path": "/api/v1/upstreams/{name}/endpoints/{address}"}.items() <= listed[8].items()


async def test_health_and_readiness_are_told_apart(house: House) -> None:
    client = await house.serve()
    request = b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert b" 200 " in (await raw(client, request % b"/healthz"))[:20]
    assert b" 200 " in (await raw(client, request % b"/readyz"))[:20]
    house.ready = False
    assert (await raw(client, request % b"/readyz")).endswith(b"\r\n\r\nstarting\n")
    house.stopping = True
    said = await raw(client, request % b"/readyz")
    assert said.startswith(b"HTTP/1.1 503 ")
    assert said.endswith(b"\r\n\r\nstopping\n")
    assert b" 200 " in (await raw(client, request % b"/healthz"))[:20]


async def test_a_reload_tells_the_truth_in_its_status(house: House) -> None:
    client = await house.serve()
    house.write(CONFIG + "[routes.more]\npath = '/more'\nrespond = {}\n")
    status, got = await ask(client, "POST", "/api/v1/reload")
    assert (status, got["ok"], got["generation"], got["changes"]) == (200, True, 2, ["+ route more"])
    house.write("[nonsense")
    status, got = await ask(client, "POST", "/api/v1/reload")
    assert (status, got["ok"], got["generation"]) == (422, False, 2)
    assert "gateway.toml:1" in got["problems"][0]
    _, now = await ask(client, "GET", "/api/v1/status")
    assert now["last_reload"]["summary"] == got["summary"]
    assert now["last_reload"]["ago"] >= 0
    assert now["reloads"] == {"ok": 1, "failed": 1, "noop": 0}


async def test_a_reload_that_nobody_waits_for_is_only_asked_for(house: House) -> None:
    status, got = await ask(await house.serve(), "POST", "/api/v1/reload?wait=false")
    assert (status, got["accepted"]) == (202, True)
    assert house.later == [1]
    assert house.reloader.last is None


async def test_an_operators_word_is_an_event(house: House) -> None:
    client = await house.serve()
    await ask(client, "PUT", "/api/v1/upstreams/api/endpoints/127.0.0.1:1", {"state": "drain"})
    _, events = await ask(client, "GET", "/api/v1/events")
    assert [event["kind"] for event in events] == ["endpoint_draining", "admin_command"]
    assert events[-1]["facts"] == {"upstream": "api", "endpoint": "127.0.0.1:1"}
    _, later = await ask(client, "GET", f"/api/v1/events?since={events[0]['seq']}")
    assert later == events[1:]
    _, last = await ask(client, "GET", "/api/v1/events?limit=1")
    assert last == events[1:]


async def test_counters_are_summed_over_all_pages_that_ever_counted(house: House) -> None:
    block = house.layout.reserve("listener", "web")
    for page, count in ((0, 1), (1, 10), (2, 100)):
        house.shared.pages[page][block + OFFSETS["listener"]["accepted"]] = count
    _, got = await ask(await house.serve(), "GET", "/api/v1/listeners")
    assert got[0]["accepted"] == 111


async def test_how_often_upstream_connections_were_reused_is_told(house: House) -> None:
    client = await house.serve()
    await house.api.reload()

    async def ratios() -> tuple[Json, Json, Json]:
        group = (await ask(client, "GET", "/api/v1/upstreams/api"))[1]
        whole = (await ask(client, "GET", "/api/v1/status"))[1]["reuse_ratio"]
        return whole, group["reuse_ratio"], [one["reuse_ratio"] for one in group["endpoints"]]

    def count(endpoint: str, **fields: int) -> None:
        for field, number in fields.items():
            house.shared.pages[2][house.layout.blocks[f"endpoint/{endpoint}"] + OFFSETS["endpoint"][field]] = number

    for endpoint in ("api/127.0.0.1:1", "api/127.0.0.1:2", "odd.name-2/127.0.0.1:9"):
        house.layout.reserve("endpoint", endpoint)
    assert await ratios() == (None, None, [None, None, None])
    count("api/127.0.0.1:1", reused=9, connects=1)
    assert await ratios() == (0.9, 0.9, [0.9, None, None])
    count("api/127.0.0.1:2", connects=10)
    assert await ratios() == (0.45, 0.45, [0.9, 0.0, None])
    count("odd.name-2/127.0.0.1:9", reused=5)
    assert await ratios() == (0.56, 0.45, [0.9, 0.0, None])


async def test_the_lanes_share_of_the_exchanges_is_told(house: House) -> None:
    client = await house.serve()
    assert (await ask(client, "GET", "/api/v1/status"))[1]["lane_share"] is None
    for index in (1, 2):
        house.shared.pages[index][OFFSETS["worker"]["exchanges"]] = 8 * index
        house.shared.pages[index][OFFSETS["worker"]["lane_exchanges"]] = 9 * (index - 1)
    status = (await ask(client, "GET", "/api/v1/status"))[1]
    assert status["lane_share"] == 0.375
    assert status["totals"]["lane_exchanges"] == 9


async def test_the_config_has_a_tag_that_changes_with_it(house: House) -> None:
    client = await house.serve()
    request = b"GET /api/v1/config HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

    async def tag() -> bytes:
        return next(line for line in (await raw(client, request)).split(b"\r\n") if line.startswith(b"ETag: "))

    first = await tag()
    assert await tag() == first
    house.write(CONFIG.replace("weight = 3", "weight = 4"))
    await ask(client, "POST", "/api/v1/reload")
    assert await tag() != first


# -- who may ask ----------------------------------------------------------------------------------------------------


async def test_without_the_token_nothing_but_health_is_told(house: House) -> None:
    client = await house.serve(token=TOKEN)
    assert (await ask(client, "GET", "/api/v1/status"))[0] == 200
    for wrong in (None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
        status, problem = await ask(AdminClient(client.address, wrong), "GET", "/api/v1/status")
        assert status == 401
        assert TOKEN not in json.dumps(problem)
    with pytest.raises(AdminError, match=r"needs the token .*; --token-file names it"):
        await trio.to_thread.run_sync(lambda: AdminClient(client.address).call("GET", "/api/v1/status"))
    for path in (b"/healthz", b"/readyz"):
        assert b" 200 " in (await raw(client, b"GET %b HTTP/1.0\r\n\r\n" % path))[:20]


async def test_a_basic_login_with_the_token_is_not_a_bearer_token(house: House) -> None:
    client = await house.serve(token=TOKEN)
    request = f"GET /api/v1/status HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {TOKEN}\r\nConnection: close\r\n\r\n"
    said = await raw(client, request.encode())
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b'\r\nWWW-Authenticate: Bearer realm="tcpgate"\r\n' in said


# -- the server -----------------------------------------------------------------------------------------------------


async def test_it_serves_over_tcp_and_keeps_a_connection_for_the_next_call(
    house: House, free_port: Callable[[], int]
) -> None:
    port = free_port()
    await house.serve(f"127.0.0.1:{port}")
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for _ in range(3):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            with trio.fail_after(20):
                said = await stream.receive_some(65536)
            assert said.startswith(b"HTTP/1.1 200 ")


async def test_the_socket_file_goes_with_the_server(house: House) -> None:
    path = house.folder / "own.sock"
    async with trio.open_nursery() as nursery:
        spec = schema.Admin(bind=f"unix:{path}")
        await nursery.start(AdminServer(spec, house.api, Binder()).serve)
        assert path.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_an_address_in_use_is_an_error_at_the_start(house: House) -> None:
    await house.serve()
    with pytest.raises(OSError, match="another process listens there"):
        await house.serve()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no TLS here\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", b"431"),
        (
            b"PUT /api/v1/upstreams/api/endpoints/127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            % (LARGEST_BODY + 1)
            + b"x" * (LARGEST_BODY + 1),
            b"413",
        ),
    ],
)
async def test_what_is_no_call_is_refused_and_the_connection_closed(
    house: House, request_bytes: bytes, status: bytes
) -> None:
    said = await raw(await house.serve(), request_bytes)
    assert said[9:12] == status, said[:200]


async def test_a_bug_in_a_call_is_500_and_the_next_call_works(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.api = attrs.evolve(house.api, uptime=lambda: 1 / 0)
    client = await house.serve()
    with caplog.at_level(logging.ERROR, "tcpgate"):
        status, problem = await ask(client, "GET", "/api/v1/status")
    assert (status, problem["detail"]) == (500, "the call failed; the log says more")
    assert (await ask(client, "GET", "/api/v1/listeners"))[0] == 200


async def test_too_many_connections_are_closed_at_once_and_room_comes_back(house: House) -> None:
    client = await house.serve()
    path = client.address.removeprefix("unix:")
    held = [await trio.open_unix_socket(path) for _ in range(MOST_CONNECTIONS)]
    one_more = await trio.open_unix_socket(path)
    with trio.fail_after(20):
        assert await one_more.receive_some(1) == b""
    await one_more.aclose()
    for stream in held:
        await stream.aclose()
    with trio.fail_after(20):
        while True:
            try:
                assert (await ask(client, "GET", "/api/v1/listeners"))[0] == 200
                break
            except AdminError:  # it has not yet seen all of them go
                await trio.sleep(0.01)


# -- the client's side ----------------------------------------------------------------------------------------------


async def test_nobody_there_is_said_with_every_place_that_was_tried(tmp_path: Path) -> None:
    client = find([f"unix:{tmp_path}/a.sock", f"unix:{tmp_path}/b.sock"], None)
    with pytest.raises(AdminError, match=r"a\.sock or unix:.*b\.sock: no such file or directory; is it running\?"):
        await trio.to_thread.run_sync(lambda: client.call("GET", "/"))


async def test_the_first_place_where_something_listens_is_asked(house: House) -> None:
    served = await house.serve()
    assert find([f"unix:{house.folder}/absent.sock", served.address], None).address == served.address


@pytest.mark.parametrize("address", ["", "nonsense", "host", "host:", "host:x", "unix:relative", "1.2.3.4:99999"])
def test_what_is_no_address_is_said_to_be_none(address: str) -> None:
    with pytest.raises(AdminError, match="--admin: "):
        find([address], None)


async def test_something_else_that_listens_there_is_told(nursery: trio.Nursery) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH\r\n")
        await stream.receive_some()
        await stream.aclose()

    listeners = await nursery.start(trio.serve_tcp, greet, 0)
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(AdminError, match="does not answer as a tcpgate admin API does"):
        await ask(AdminClient(f"127.0.0.1:{port}"), "GET", "/")


def test_a_result_has_the_same_words_everywhere() -> None:
    result = ReloadResult(ok=False, changed=False, generation=3, problems=("a", "b"))
    assert result.summary == "reload failed, generation 3 goes on: a (and 1 more)"
