"""A filter that has somebody asked: the request it makes, what it hears, and what becomes of the client's request."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.codec.events import Fields, ResponseHead
from tcpgate.errors import GateError, Reason, Refused
from tcpgate.filters.base import CONTINUE, Ask, RequestView, Respond, Subrequest, Verdict
from tests.plane import TestPlane, serving
from tests.proxy.scripted import (
    GET,
    OK,
    Play,
    always_ok,
    answering,
    busy,
    client,
    config,
    head,
    in_flight,
    origin,
    rest,
    settled,
    silent,
    until,
)

NO = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno\n"


@attrs.define
class AskFirst:
    """Lets a request through if the upstream "auth" answers 200, and tells it who the client is."""

    timeout: float = 5.0
    method: bytes = b"GET"
    heard: list[ResponseHead | GateError] = attrs.field(factory=list)

    def on_request(self, view: RequestView) -> Verdict:
        """Ask."""

        def then(answer: ResponseHead | GateError) -> Verdict:
            self.heard.append(answer)
            if isinstance(answer, ResponseHead) and answer.status == 200:
                view.request.set(b"X-User", answer.fields.get(b"x-user") or b"?")
                return CONTINUE
            return Respond(Refused(Reason.DENIED, "the service said no"))

        return Ask(
            Subrequest(
                upstream="auth",
                method=self.method,
                target=b"/check",
                fields=Fields([(b"Authorization", view.get(b"authorization") or b"none")]),
                timeout=self.timeout,
            ),
            then,
        )

    def on_response(self, view: RequestView, response: ResponseHead) -> None:
        """Nothing."""


def with_auth(port: int, *auth: int, more: str = "") -> str:
    """One route, and the upstream that is asked."""
    endpoints = ", ".join(f'"127.0.0.1:{one}"' for one in auth)
    return config(port) + f"[upstreams.auth]\nendpoints = [{endpoints}]\n{more}\n"


async def asked(plane: TestPlane, filter_: AskFirst, request: bytes = GET) -> bytes:
    """One exchange of a new connection, through the filter."""
    plane.use_filter("all", filter_)
    async with client(plane) as stream:
        await stream.send_all(request)
        return await until(stream, b"\r\n\r\n")


async def test_a_yes_lets_the_request_through_with_what_the_filter_adds(tmp_path: Path, nursery: trio.Nursery) -> None:
    questions: list[bytes] = []
    requests: list[bytes] = []

    async def auth(stream: trio.SocketStream) -> None:
        while question := await head(stream):
            questions.append(question)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nX-User: ann\r\nContent-Length: 5\r\n\r\nhello")

    async def play(stream: trio.SocketStream) -> None:
        requests.append(await head(stream))
        await stream.send_all(OK)

    port = await origin(nursery, auth)
    async with serving(tmp_path, with_auth(await origin(nursery, play), port)) as plane:
        for _ in range(2):
            said = await asked(plane, AskFirst(), GET[:-2] + b"Authorization: secret\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 200 ")
        await settled(plane)
        counts = plane.counts("endpoint", f"auth/127.0.0.1:{port}")
    assert questions[0].startswith(b"GET /check HTTP/1.1\r\nHost: auth\r\n")
    assert b"Authorization: secret\r\n" in questions[0]
    assert b"X-User: ann\r\n" in requests[0]
    assert (counts["connects"], counts["reused"], counts["answers_good"]) == (1, 1, 2)


async def test_a_no_is_answered_by_the_filter_and_goes_nowhere(tmp_path: Path, nursery: trio.Nursery) -> None:
    requests: list[bytes] = []

    async def play(stream: trio.SocketStream) -> None:
        requests.append(await head(stream))

    text = with_auth(await origin(nursery, play), await origin(nursery, answering(NO)))
    async with serving(tmp_path, text) as plane:
        assert (await asked(plane, AskFirst())).startswith(b"HTTP/1.1 403 ")
        record = await plane.record()
    assert (record.reason, record.rule) == (Reason.DENIED, "filters.test")
    assert requests == []


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (silent, Reason.FIRST_BYTE_TIMEOUT),
        (answering(b""), Reason.UPSTREAM_CLOSED),
        (answering(b"what?\r\n\r\n"), Reason.UPSTREAM_PROTOCOL),
    ],
)
async def test_no_answer_is_one_too(play: Play, reason: Reason, tmp_path: Path, nursery: trio.Nursery) -> None:
    filter_ = AskFirst(timeout=0.1)
    async with serving(tmp_path, with_auth(1, await origin(nursery, play))) as plane:
        assert (await asked(plane, filter_)).startswith(b"HTTP/1.1 403 ")
        await settled(plane)
    (heard,) = filter_.heard
    assert isinstance(heard, GateError)
    assert heard.reason is reason


async def test_a_question_goes_to_another_endpoint_if_the_first_refuses(tmp_path: Path, nursery: trio.Nursery) -> None:
    auth = await origin(nursery, answering(OK))
    text = with_auth(await origin(nursery, always_ok), 1, auth, more='balance = "first"')
    async with serving(tmp_path, text) as plane:
        assert (await asked(plane, AskFirst())).startswith(b"HTTP/1.1 200 ")
        assert [seen.connect_failures for seen in plane.observed] == [1]


async def test_an_upstream_that_is_not_there_is_told_to_the_filter(tmp_path: Path, nursery: trio.Nursery) -> None:
    filter_ = AskFirst()
    async with serving(tmp_path, config(await origin(nursery, always_ok))) as plane:
        assert (await asked(plane, filter_)).startswith(b"HTTP/1.1 403 ")
    (heard,) = filter_.heard
    assert isinstance(heard, Refused)
    assert heard.reason is Reason.NO_ENDPOINT


async def test_a_long_answer_costs_the_connection_and_no_memory(tmp_path: Path, nursery: trio.Nursery) -> None:
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000)
    port = await origin(nursery, answering(long))
    async with serving(tmp_path, with_auth(await origin(nursery, always_ok), port)) as plane:
        assert (await asked(plane, AskFirst())).startswith(b"HTTP/1.1 200 ")
        await settled(plane)
        assert not plane.endpoint("auth", f"127.0.0.1:{port}").idle
        assert plane.counts("endpoint", f"auth/127.0.0.1:{port}")["bytes_in"] < 1_000_000


async def test_a_client_that_leaves_meanwhile_ends_the_question(tmp_path: Path, nursery: trio.Nursery) -> None:
    filter_ = AskFirst()
    async with serving(tmp_path, with_auth(1, await origin(nursery, silent))) as plane:
        plane.use_filter("all", filter_)
        async with client(plane) as stream:
            await stream.send_all(GET)
            await busy(plane)
            assert in_flight(plane) == (1, 1, 1)
        record = await plane.record()
        await settled(plane)
    assert record.reason == Reason.CLIENT_ABORT
    assert filter_.heard == []


async def test_a_cut_in_the_middle_of_a_question_leaves_nothing_behind(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with serving(tmp_path, with_auth(1, await origin(nursery, silent))) as plane:
        plane.use_filter("all", AskFirst())
        async with client(plane) as stream:
            await stream.send_all(GET)
            await busy(plane)
            plane.servers["web"].retire(0)
            assert (await rest(stream)).startswith(b"HTTP/1.1 503 ")
        await settled(plane)
