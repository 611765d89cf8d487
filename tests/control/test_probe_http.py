"""The http probe: which answers pass, which fail, and that the cause names the phase."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tcpgate.config.schema import Health
from tcpgate.control.probe import ANSWER_LIMIT, probe_once
from tcpgate.control.probe_kinds import accepts
from tcpgate.kinds import PROBES
from tcpgate.policy.health import ProbeResult

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready"


class Origin:
    """A server that reads one request, answers with these bytes, then hangs or closes; it keeps what it saw."""

    def __init__(self, answer: bytes, *, then_hang: bool = False) -> None:
        self.answer = answer
        self.then_hang = then_hang
        self.heard = b""
        self.end = ""
        self.ended = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        try:
            while not self.heard.endswith(b"\r\n\r\n"):
                self.heard += await stream.receive_some()
            await stream.send_all(self.answer)
            if not self.then_hang:
                await stream.send_eof()
            self.end = "FIN" if await stream.receive_some() == b"" else "more"
        except trio.BrokenResourceError:
            self.end = "RST"
        self.ended.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, self.handle, listeners)
            yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


async def ask(spec: Health, address: str, timeout: float = 5.0) -> ProbeResult:  # noqa: ASYNC109 - a test's shorthand
    return await probe_once(spec, address, trio.current_time() + timeout, kinds=PROBES)


async def outcome(answer: bytes, *, then_hang: bool = False, **spec: Any) -> tuple[bool | None, str]:
    async with Origin(answer, then_hang=then_hang).serving() as address:
        result = await ask(Health(http="/healthz", **spec), address, timeout=0.6 if then_hang else 5.0)
    return result.ok, result.cause


async def test_the_request_is_a_plain_get_that_closes() -> None:
    origin = Origin(OK)
    async with origin.serving() as address:
        assert (await ask(Health(http="/healthz?full=1"), address)).ok
    assert origin.heard.split(b"\r\n") == [
        b"GET /healthz?full=1 HTTP/1.1",
        b"Host: " + address.encode(),
        b"User-Agent: tcpgate-probe",
        b"Accept: */*",
        b"Connection: close",
        b"",
        b"",
    ]


async def test_method_and_host_are_as_configured() -> None:
    origin = Origin(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    async with origin.serving() as address:
        result = await ask(Health(http="/", method="HEAD", host="app.example"), address)
    assert result.ok, "the answer to HEAD has no body, whatever its length says"
    assert origin.heard.startswith(b"HEAD / HTTP/1.1\r\nHost: app.example\r\n")


async def test_over_a_unix_socket_the_host_is_localhost(tmp_path: Path) -> None:
    origin = Origin(OK)
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(str(tmp_path / "app.sock"))
        sock.listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, origin.handle, [trio.SocketListener(sock)])
            assert (await ask(Health(http="/"), f"unix:{tmp_path}/app.sock")).ok
            nursery.cancel_scope.cancel()
    assert b"\r\nHost: localhost\r\n" in origin.heard


@pytest.mark.parametrize(
    ("answer", "spec"),
    [
        (OK, {}),
        (OK, {"body": "^ready$"}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", {}),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", {}),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", {"status": ("200", "400-404")}),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, {"body": "ready"}),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n", {"body": "ready"}),
        (b"HTTP/1.0 200 OK\r\n\r\nready, until the close", {"body": "close$"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x00\xff\xfe", {"body": r"\xff\xfe"}),
    ],
)
async def test_a_whole_answer_that_fits_passes(answer: bytes, spec: dict[str, Any]) -> None:
    assert await outcome(answer, **spec) == (
        True,
        f"status {answer.split()[1 if b'103' not in answer else 5].decode()}",
    )


@pytest.mark.parametrize(
    ("answer", "spec", "cause"),
    [
        (b"HTTP/1.1 500 Oh no\r\nContent-Length: 0\r\n\r\n", {}, "status 500"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", {}, "status 404"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", {"status": ("200",)}, "status 204"),
        (OK, {"body": "steady"}, "body did not match: ready"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", {"body": "ready"}, "body did not match: empty"),
        (b"HTTP/1.1 102 Wait\r\n\r\n" * 4000, {}, "no final answer in head"),
    ],
)
async def test_an_answer_that_does_not_fit_fails(answer: bytes, spec: dict[str, Any], cause: str) -> None:
    assert await outcome(answer, **spec) == (False, cause)


@pytest.mark.parametrize(
    ("answer", "begin"),
    [
        (b"", "closed in head: "),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed in head: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "closed in body: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n", "closed in body: "),
        (b"SSH-2.0-OpenSSH_9.2\r\n" + b"x" * 100, "closed in head: "),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not well-formed HTTP in head: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not well-formed HTTP in body: "),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not well-formed HTTP in head: "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "not well-formed HTTP in head: "),
    ],
)
async def test_a_broken_answer_fails_with_the_phase_that_broke(answer: bytes, begin: str) -> None:
    ok, cause = await outcome(answer)
    assert ok is False
    assert cause.startswith(begin), cause
    assert len(cause) <= 200


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"", "timed out in head"),
        (b"HTTP/1.1 200 OK\r\n", "timed out in head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "timed out in head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "timed out in body"),
    ],
)
async def test_an_answer_that_stops_fails_with_the_phase_it_stopped_in(answer: bytes, cause: str) -> None:
    assert await outcome(answer, then_hang=True) == (False, cause)


async def test_only_the_first_64_kib_of_a_body_are_looked_at() -> None:
    body = b"." * ANSWER_LIMIT + b"late"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + body
    assert await outcome(answer, then_hang=True) == (True, "status 200")
    ok, cause = await outcome(answer, then_hang=True, body="late")
    assert (ok, cause) == (False, "body did not match: " + "." * 80 + "...")


async def test_a_request_that_cannot_be_written_fails_and_says_why() -> None:
    for spec in (Health(http="/a b"), Health(http="/", host="a\nb"), Health(http="/é")):
        async with Origin(OK).serving() as address:
            result = await ask(spec, address)
        assert result.ok is False
        assert result.cause.startswith("cannot ask that: "), result.cause


async def test_after_a_whole_answer_the_probe_closes_in_order_and_after_a_wrong_one_by_reset() -> None:
    good, bad = Origin(OK, then_hang=True), Origin(b"HTTP/1.1 500 Oh no\r\n\r\n", then_hang=True)
    for origin, end in ((good, "FIN"), (bad, "RST")):
        async with origin.serving() as address:
            await ask(Health(http="/"), address)
            with trio.fail_after(5):
                await origin.ended.wait()
        assert origin.end == end


def test_statuses_are_single_or_ranges() -> None:
    assert [n for n in range(195, 410) if accepts(("200", "399-401"), n)] == [200, 399, 400, 401]
