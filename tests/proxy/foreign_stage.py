"""The foreign corpus on stage: each case through a gateway, and what is wrong with how it took it.

Owner: the test's nursery.
"""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import trio

from tests.proxy import strict_http
from tests.proxy.foreign import Case, decode
from tests.proxy.foreign_ends import PATIENCE, PAUSE, Client, Origin, connect
from tests.proxy.strict_http import Ambiguous, Message


@attrs.define(eq=False)
class Stage:
    """A gateway on `port`, `origin` behind it; `name`: the gateway's pseudonym in Via."""

    port: int
    origin: Origin
    name: str
    turns: int = 0

    async def play(self, case: Case, step: int = 1 << 20) -> list[str]:
        """What is wrong with how the gateway took the case, sent in pieces of `step` bytes; [] if nothing is."""
        if case.fresh:
            await self.origin.close_idle()
        if case.stale:
            for _ in range(2):  # an idle connection to each endpoint
                await self._ask_next(None)
        self.origin.begin(case)
        client = await connect(self.port)
        async with client.stream:
            await client.send(case.raw, step)
            if case.cut:
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.stream.send_eof()
            try:
                wrong = await self._judge(case, client)
            except (Ambiguous, TimeoutError) as exc:
                wrong = [f"{type(exc).__name__}: {exc}"]
            await self.origin.wait_silent()
            wrong += self._judge_origin()
            if not wrong:
                self.origin.begin(case)
                wrong += [f"afterwards: {fault}" for fault in await self._ask_next(client, case.closes)]
        return wrong

    # -- what the client got ----------------------------------------------------------------------------------------

    async def _judge(self, case: Case, client: Client) -> list[str]:
        if case.cut:
            return await self._judge_cut(case, client)
        if case.client:
            return await self._judge_answer(case, client)
        method, version = _asked(case.raw)
        wrong: list[str] = []
        for index, expected in enumerate(case.forward):
            method = expected["start"].split(" ")[0].encode()
            got, interim = await client.response(method)
            if got is None:
                return [*wrong, f"no answer to {expected['start']}"]
            wrong += _manners([*interim, got], version)
            if not got.all("x-number"):
                if case.either and index == 0 and got.status in case.refuse:
                    return wrong + self._none_forwarded(case)
                return [*wrong, f"{got.start!r} instead of the answer to {expected['start']}: {got.body!r}"]
            wrong += self._is_answer_to(index, got, method)
        wrong += self._judge_forwarded(case)
        if case.refuse and not case.either:
            got, interim = await client.response(method)
            if got is None or got.all("x-number") or got.status not in case.refuse or interim:
                return [*wrong, f"{got and got.start!r} instead of a refusal with {case.refuse}"]
            wrong += strict_http.response_manners(got, version)
            wrong += self._none_forwarded(case)
        return wrong

    async def _judge_cut(self, case: Case, client: Client) -> list[str]:
        """It may answer or not; it must end, and only what was complete may have been forwarded as such."""
        wrong = [] if await client.is_over(PATIENCE) else ["the connection goes on although the client has ended"]
        await trio.sleep(PAUSE)
        if client.raw and not case.forward:
            got, _ = await client.response(_asked(case.raw)[0])
            if got is not None and (got.status not in case.refuse or got.all("x-number")):
                wrong.append(f"{got.start!r} to an incomplete request")
        if len(self.origin.requests) > len(case.forward):
            wrong.append(f"taken for complete: {self.origin.requests}")
        return wrong

    async def _judge_answer(self, case: Case, client: Client) -> list[str]:
        method, version = _asked(case.raw)
        wanted = case.client
        try:
            got, interim = await client.response(method)
        except Ambiguous:
            if not wanted.get("torn"):
                raise
            got, interim = None, []
        wrong = _manners([*interim, got] if got else interim, version)
        if got is not None and case.either and got.status in case.refuse and _is_own(got):
            return wrong
        statuses = [one.status for one in interim]
        if statuses not in wanted.get("interims", [wanted.get("interim", []) * wanted.get("repeated", 1)]):
            wrong.append(f"1xx: {statuses}")
        if self.origin.asked not in case.times:
            wrong.append(f"asked {self.origin.asked} times")
        if wanted.get("torn"):
            if got is not None and not (got.status in case.refuse and _is_own(got)):
                wrong.append(f"a torn answer came as a whole one: {got}")
            return wrong
        if got is None:
            return [*wrong, f"no whole answer; {client.raw[:500]!r}"]
        for one in interim:
            wrong += _differs(one, wanted.get("first", {}))
        return wrong + _differs(got, wanted)

    def _is_answer_to(self, index: int, got: Message, method: bytes) -> list[str]:
        """The answer's number is that of request `index`."""
        if index >= len(self.origin.requests):
            return [f"an answer to a request that the origin never saw: {got}"]
        number, request = self.origin.requests[index]
        wrong = [] if got.all("x-number") == [b"%d" % number] else [f"the answer {got} to request {number}"]
        if method != b"HEAD" and got.body != b"%d %b" % (number, request.start):
            wrong.append(f"the content of the answer: {got.body!r}")
        return wrong

    # -- what the origin got ----------------------------------------------------------------------------------------

    def _judge_origin(self) -> list[str]:
        wrong = list(self.origin.faults)
        for _, request in self.origin.requests:
            wrong += strict_http.request_manners(request, self.name)
            if b"/smuggled" in request.start:
                wrong.append("SMUGGLED")
        return wrong

    def _judge_forwarded(self, case: Case) -> list[str]:
        got = [request for _, request in self.origin.requests]
        if len(got) != len(case.forward):
            return [f"the origin got {len(got)} requests, not {len(case.forward)}: {got}"]
        return [fault for one, expected in zip(got, case.forward, strict=True) for fault in _differs(one, expected)]

    def _none_forwarded(self, case: Case) -> list[str]:
        expected = 0 if case.either else len(case.forward)
        if len(self.origin.requests) > expected:
            return [f"refused, and yet forwarded: {self.origin.requests}"]
        if self.origin.touched and not expected and not case.partial:
            return ["refused, and yet the origin got some of it"]
        return []

    # -- afterwards -------------------------------------------------------------------------------------------------

    async def _ask_next(self, client: Client | None, closes: bool = False) -> list[str]:
        """The next request, on the same connection if it is still open: the answer must be the one to it."""
        self.turns += 1
        target = b"/next/%d" % self.turns
        ask = b"GET %b HTTP/1.1\r\nHost: next\r\n\r\n" % target
        if client is not None and not await client.is_over(PATIENCE if closes else 0):
            if closes:
                return ["the connection is still open"]
            await client.send(ask, 1 << 20)
            with contextlib.suppress(TimeoutError):
                got, _ = await client.response(b"GET")
                if got is not None:
                    return self._is_next(got, target)
            if not client.ended:
                return ["the next request on the connection gets no answer"]
        if client is not None and len(client.raw) > client.at and not client.broken and not self._torn():
            return [f"more than was asked for: {client.raw[client.at :]!r}"]
        async with (fresh := await connect(self.port)).stream:
            await fresh.send(ask, 1 << 20)
            try:
                got, _ = await fresh.response(b"GET")
            except TimeoutError as exc:
                return [str(exc)]
        return self._is_next(got, target)

    def _torn(self) -> bool:
        return self.origin.case is not None and bool(self.origin.case.client.get("torn") or self.origin.case.cut)

    def _is_next(self, got: Message | None, target: bytes) -> list[str]:
        wrong = self._judge_origin()
        starts = [request.start for _, request in self.origin.requests]
        if starts != [b"GET %b HTTP/1.1" % target]:
            wrong.append(f"the origin got {starts}, not just {target!r}")
        if got is None or got.body.split(b" ")[1:3] != [b"GET", target]:
            wrong.append(f"the answer to {target!r}: {got}")
        return wrong


def _asked(raw: bytes) -> tuple[bytes, bytes]:
    """Method and version of the first request, as far as it is one."""
    words = raw.lstrip(b"\r\n").split(b"\r\n")[0].split(b" ")
    return words[0], words[-1]


def _is_own(message: Message) -> bool:
    """The gateway's own answer."""
    return message.all("server") == [b"tcpgate"]


def _manners(messages: list[Message], version: bytes) -> list[str]:
    return [fault for message in messages for fault in strict_http.response_manners(message, version)]


def _differs(got: Message, expected: dict[str, Any]) -> list[str]:
    """In what a message is not the expected one."""
    wrong: list[str] = []
    starts = expected.get("starts", [expected["start"]] if "start" in expected else [])
    if starts and not any(got.start == f"{start} HTTP/1.1".encode() for start in starts):
        wrong.append(f"{got.start!r}, not {starts}")
    if "status" in expected and got.status != expected["status"]:
        wrong.append(f"{got.start!r}, not {expected['status']}")
    if "body" in expected and got.body != decode(expected["body"]):
        wrong.append(f"content {got.body[:300]!r}")
    if "host" in expected and got.all("host") != [expected["host"].encode()]:
        wrong.append(f"Host {got.all('host')}, not {expected['host']}")
    for line in expected.get("has", []):
        name, _, value = line.partition(": ")
        if decode(value) not in got.all(name):
            wrong.append(f"{line!r} is missing: {got.all(name)}")
    wrong += [f"{name} is there: {got.all(name)}" for name in expected.get("lacks", []) if got.all(name)]
    trailers = [f"{name.decode()}: {value.decode('latin-1')}" for name, value in got.trailers]
    if "trailers" in expected and trailers not in (expected["trailers"], []):
        wrong.append(f"trailers {trailers}")
    return wrong
