"""The whole corpus through the real data plane: over sockets, from a raw client to an origin that records.

The same verdicts as in tests/codec, on what the gateway as a whole does: routes, exchanges, pools and their timing
included. What the origin got and what the client got is read with h11 alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import h11
import pytest
import trio

from tcpgate.proxy import pool
from tests.codec.corpus import PROBE, Forwarded, RequestCase, ResponseCase, load_requests, load_responses
from tests.codec.memory_gateway import Reader, Recorded, answers_200
from tests.codec.test_corpus import asked, forwarded_as, has
from tests.plane import TestPlane, serving

REQUESTS, RESPONSES = load_requests(), load_responses()
PEER, NAME = b"127.0.0.1", b"tcpgate-test"
QUIET = 0.05
"""Seconds without a word after which a gateway that waits for the rest of a message counts as waiting."""


def file_of(case: RequestCase | ResponseCase) -> str:
    """The corpus file that a case stands in."""
    return case.name.partition(":")[0]


def config(port: int) -> str:
    """The gateway of the corpus: one route, to the recording origin."""
    return f"""
[listeners.web]
bind = ["127.0.0.1:0"]
limits = {{ body = "1TiB" }}
[routes.all]
upstream = "origin.test"
[upstreams."origin.test"]
endpoints = ["127.0.0.1:{port}"]
retry = {{ attempts = 1 }}
passive = {{ enabled = false }}
"""


@attrs.define(eq=False)
class Origin:
    """Answers each complete request with what `answer` yields; b"" closes."""

    answer: Callable[[Recorded], Iterable[bytes]] = answers_200
    requests: list[Recorded] = attrs.field(factory=list)

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        """Listen on a free port until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started(listeners[0].socket.getsockname()[1])

    async def _connection(self, stream: trio.SocketStream) -> None:
        reader = Reader(h11.Connection(h11.SERVER))
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                while data := await stream.receive_some(65536):
                    reader.read(data)
                    if reader.messages and reader.messages[-1].complete:
                        self.requests += reader.messages
                        for piece in self.answer(reader.messages[-1]):
                            if not piece:
                                return
                            await stream.send_all(piece)
                        reader = Reader(h11.Connection(h11.SERVER))


def finals(said: bytes, methods: list[bytes]) -> list[Recorded]:
    """The answers in `said`, in order, as far as they are there."""
    answers: list[Recorded] = []
    for method in methods:
        reader = Reader(asked(method))
        reader.read(said)
        answers += reader.messages
        if not reader.messages or not reader.messages[-1].complete:
            break
        said = reader.wire.trailing_data[0]
    return answers


async def hear(stream: trio.SocketStream, methods: list[bytes]) -> list[Recorded]:
    """The answers to requests of `methods`; fewer if nothing more comes."""
    said = b""
    answers: list[Recorded] = []
    with trio.move_on_after(20), contextlib.suppress(trio.BrokenResourceError):
        while len(answers) < len(methods) or not answers[-1].complete:
            chunk = await stream.receive_some(65536)
            if not chunk:
                break
            said += chunk
            answers = finals(said, methods)
    return answers


async def is_closed(stream: trio.SocketStream) -> bool:
    """Whether the gateway ends the connection, and says nothing before."""
    with trio.move_on_after(20):
        try:
            return not await stream.receive_some(1)
        except trio.BrokenResourceError:
            return True
    return False


async def play_request(plane: TestPlane, origin: Origin, case: RequestCase) -> None:
    """One request case; AssertionError where the gateway differs from the verdict."""
    origin.requests.clear()
    methods = [wanted.method for wanted in case.forwarded]
    methods += [b"GET"] * (len(case.answers) - len(methods))
    stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(case.raw)
        if case.eof:
            await stream.send_eof()
        answers = await hear(stream, methods[: len(case.answers)]) if case.answers else []
        statuses = [answer.head.status_code for answer in answers if isinstance(answer.head, h11.Response)]
        assert statuses == list(case.answers)
        assert all(answer.complete for answer in answers)
        assert len(origin.requests) == len(case.forwarded)
        for found, wanted in zip(origin.requests, case.forwarded, strict=True):
            forwarded_as(found, wanted, PEER, NAME)
        await look_after(stream, origin, case)


async def look_after(stream: trio.SocketStream, origin: Origin, case: RequestCase) -> None:
    """The connection is what the case says it is, and a probe on it harms and is harmed by nobody."""
    origin.requests.clear()
    if case.after == "open":
        await stream.send_all(PROBE)
        (answer,) = await hear(stream, [b"GET"])
        assert answer.body == b"ok"
        (probe,) = origin.requests
        forwarded_as(probe, Forwarded(target=b"/probe", host=b"probe.test"), PEER, NAME)
    elif case.after == "closed":
        assert await is_closed(stream)
        assert not origin.requests
    else:
        with trio.move_on_after(QUIET) as quiet:
            await stream.receive_some(1)
        assert quiet.cancelled_caught, "it did not wait"


async def play_response(plane: TestPlane, origin: Origin, case: ResponseCase) -> None:
    """One response case; AssertionError where the gateway differs from the verdict."""
    for endpoint in plane.plane.runtime.endpoints():
        endpoint.close_idle()
    origin.answer = lambda _: [case.raw, b""] if case.eof else [case.raw]
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % case.upgrade if case.upgrade else b""
    stream = await trio.open_tcp_stream("127.0.0.1", plane.port())
    reader, ended = Reader(asked(case.method)), False
    async with stream:
        await stream.send_all(b"%b / HTTP/%b\r\nHost: a.test\r\n%b\r\n" % (case.method, case.version, upgrade))
        with trio.move_on_after(20):
            while not (reader.upgraded or (reader.messages and reader.messages[-1].complete) or ended):
                try:
                    chunk = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    chunk = b""
                ended = not chunk
                reader.read(chunk, eof=ended)
        check_response(reader, case)
    # The exchange ends a moment after its last byte has gone; then its connection is idle, or closed.
    with trio.move_on_after(20):
        while any(endpoint.active() for endpoint in plane.plane.runtime.endpoints()):
            await trio.sleep(0.001)
    if case.eof:
        await trio.sleep(QUIET)  # until the origin's end of stream is here
    if not case.tunnel:
        idle = pool.take_idle(next(iter(plane.plane.runtime.endpoints())))
        assert (idle is not None) is case.reuse, "reuse"
        if idle is not None:
            idle.close()


def check_response(reader: Reader, case: ResponseCase) -> None:
    """What the client got is the response of the case."""
    assert tuple(reader.informational) == case.informational
    if case.tunnel:
        assert reader.upgraded is not None
        upgraded = h11.Response(status_code=200, headers=reader.upgraded.headers.raw_items())
        has(Recorded(upgraded), case, PEER, NAME)
        return
    (answer,) = reader.messages
    assert isinstance(answer.head, h11.Response)
    assert answer.head.status_code == case.status
    assert answer.complete is not case.cut
    if case.status != 502 and not case.cut:
        assert case.reason is None or answer.head.reason == case.reason
        has(answer, case, PEER, NAME)


@pytest.mark.parametrize("file", sorted({*map(file_of, REQUESTS), *map(file_of, RESPONSES)}))
async def test_the_gateway_as_a_whole_has_the_verdicts_of_the_corpus(
    file: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    origin, wrong = Origin(), list[str]()
    port = await nursery.start(origin.serve)
    async with serving(tmp_path, config(port)) as plane:
        for case in REQUESTS:
            if file_of(case) == file and not case.codec_only:
                try:
                    await play_request(plane, origin, case)
                except (AssertionError, ValueError) as exc:
                    wrong.append(f"{case.name}: {exc!s:.300}")
        for response in RESPONSES:
            if file_of(response) == file:
                try:
                    await play_response(plane, origin, response)
                except (AssertionError, ValueError) as exc:
                    wrong.append(f"{response.name}: {exc!s:.300}")
        assert not any(endpoint.active() for endpoint in plane.plane.runtime.endpoints())
    assert wrong == []
    nursery.cancel_scope.cancel()
