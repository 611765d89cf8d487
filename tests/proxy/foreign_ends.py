"""Both ends of the foreign corpus: an origin that keeps and judges every byte it gets, and a raw client.

Owner: the test's nursery.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.proxy import strict_http
from tests.proxy.foreign import Case, decode
from tests.proxy.strict_http import Ambiguous, Message

PATIENCE = 20.0
"""Seconds for an answer, on a machine however busy; the gateway says 100 Continue by itself after one."""
PAUSE = 0.03

_STAGE_MARK = re.compile(rb"\\\{(wait|close|reset|read)\}")


# -- the origin -----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Seen:
    """One connection to the origin: its raw bytes, and what they say."""

    raw: bytearray = attrs.field(factory=bytearray)
    at: int = 0
    """Where the request at hand begins."""
    requests: list[Message] = attrs.field(factory=list)


@attrs.define(eq=False)
class Origin:
    """Keeps every byte it gets, judges it, answers with a number or as the case says."""

    port: int = 0
    connections: list[Seen] = attrs.field(factory=list)
    open: set[trio.SocketStream] = attrs.field(factory=set)
    requests: list[tuple[int, Message]] = attrs.field(factory=list)
    """Number, request; since the case began."""
    faults: list[str] = attrs.field(factory=list)
    touched: bool = False
    """Anything came since the case began."""
    case: Case | None = None
    asked: int = 0
    """How often for /case."""
    number: int = 0
    playing: int = 0
    """Answers under way."""

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        """Listen on a free port of 127.0.0.1 and .2, so that the gateway may take it for two, until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        listeners += await trio.open_tcp_listeners(self.port, host="127.0.0.2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started(self.port)

    def begin(self, case: Case | None) -> None:
        """Forget the case before."""
        self.case, self.asked, self.touched = case, 0, False
        self.requests, self.faults = [], []

    async def _connection(self, stream: trio.SocketStream) -> None:
        seen = Seen()
        self.connections.append(seen)
        self.open.add(stream)
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await self._exchange(stream, seen):
                    pass
        except Ambiguous as exc:
            self.faults.append(f"ambiguous to the origin: {exc}; it got {bytes(seen.raw[seen.at :])[:2000]!r}")
        finally:
            self.open.discard(stream)
            await trio.aclose_forcefully(stream)

    async def _more(self, stream: trio.SocketStream, seen: Seen) -> bool:
        data = await stream.receive_some(65536)
        seen.raw += data
        self.touched |= bool(data)
        return bool(data)

    async def _exchange(self, stream: trio.SocketStream, seen: Seen) -> bool:
        """One request and its answer; False at the end of the connection."""
        said_continue = False
        while (found := strict_http.request(bytes(seen.raw[seen.at :]))) is None:
            head = strict_http.request_head(bytes(seen.raw[seen.at :]))
            if head is not None and self._is_scripted(head) and self._script() and not self._waits_for_content():
                return await self._play(stream, seen, head)
            if head is not None and head.all("expect") and not said_continue:
                said_continue = True
                await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not await self._more(stream, seen):
                return False
        message, used = found
        seen.at += used
        return await self._play(stream, seen, message, whole=True)

    def _script(self) -> list[str]:
        return self.case.answer if self.case is not None else []

    def _waits_for_content(self) -> bool:
        script = self._script()
        return r"\{read}" in script[min(self.asked, len(script) - 1)]

    def _is_scripted(self, message: Message) -> bool:
        return bool(self._script()) and message.start.split(b" ")[1].startswith(b"/case")

    def _note(self, seen: Seen, message: Message) -> int:
        self.number += 1
        seen.requests.append(message)
        self.requests.append((self.number, message))
        return self.number

    async def _play(self, stream: trio.SocketStream, seen: Seen, message: Message, *, whole: bool = False) -> bool:
        self.playing += 1
        try:
            if not await self._answer(stream, seen, message):
                return False
        finally:
            self.playing -= 1
        while not whole:  # it answered early, and still reads what comes
            if not await self._more(stream, seen):
                return False
            found = strict_http.request(bytes(seen.raw[seen.at :]))
            if found is not None:
                seen.at += found[1]
                whole = True
        return True

    async def _answer(self, stream: trio.SocketStream, seen: Seen, message: Message) -> bool:
        """False if the connection ends with it."""
        number = self._note(seen, message)
        if not self._is_scripted(message):
            await stream.send_all(_numbered(number, message))
            return b"close" not in message.members("connection")
        script = self._script()
        text = script[min(self.asked, len(script) - 1)]
        self.asked += 1
        if self.case is not None and self.case.stale and self.asked == 1:
            assert len(seen.requests) > 1, "the gateway took no idle connection"
            return False
        for index, part in enumerate(_STAGE_MARK.split(decode(text))):
            if index % 2 == 0:
                await stream.send_all(part)
            elif part == b"wait":
                await trio.sleep(PAUSE)
            elif part == b"close":
                return False
            elif part == b"reset":
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        return True

    async def wait_silent(self) -> None:
        """Until every answer is said; what is unasked for in it then waits in the gateway's socket."""
        with trio.move_on_after(20):
            while self.playing:
                await trio.sleep(0.002)

    async def close_idle(self) -> None:
        """End every connection, as an origin that restarts."""
        for stream in list(self.open):
            await trio.aclose_forcefully(stream)
        await trio.sleep(0.002)


def _numbered(number: int, message: Message) -> bytes:
    body = b"%d %b" % (number, message.start)
    head = b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(body))
    return head if message.start.startswith(b"HEAD ") else head + body


# -- the client -----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Client:
    """One connection to the gateway, and what came over it."""

    stream: trio.SocketStream
    raw: bytes = b""
    at: int = 0
    ended: bool = False
    broken: bool = False
    """It ended by a reset, so nothing without a length of its own is whole."""

    async def send(self, raw: bytes, step: int) -> None:
        """All of it, in pieces of `step` bytes."""
        with contextlib.suppress(trio.BrokenResourceError):
            for index, part in enumerate(_STAGE_MARK.split(raw)):
                if index % 2:
                    await trio.sleep(PAUSE)
                    await wait_all_tasks_blocked()  # after a pause however short, all has been said to what was sent
                    continue
                for start in range(0, len(part), step):
                    await self.stream.send_all(part[start : start + step])

    async def response(self, method: bytes) -> tuple[Message | None, list[Message]]:
        """The next final response (None: none came, or not all of it) and the informational ones before it."""
        interim: list[Message] = []
        while True:
            found = strict_http.response(self.raw[self.at :], method, ended=self.ended and not self.broken)
            if found is not None:
                self.at += found[1]
                if found[0].status >= 200 or found[0].status == 101:
                    return found[0], interim
                interim.append(found[0])
            elif self.ended:
                return None, interim
            else:
                await self._more()

    async def _more(self) -> None:
        with trio.move_on_after(PATIENCE) as patience:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data, self.broken = b"", True
            self.raw += data
            self.ended = not data
        if patience.cancelled_caught:
            raise TimeoutError(f"no answer within {PATIENCE} s; so far {self.raw[:500]!r}")

    async def is_over(self, within: float) -> bool:
        """Whether the gateway ends the connection by itself."""
        with trio.move_on_after(within), contextlib.suppress(TimeoutError):
            while not self.ended:
                await self._more()
        return self.ended


async def connect(port: int) -> Client:
    """A new connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Client(stream)
