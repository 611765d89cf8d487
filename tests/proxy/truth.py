"""One exchange scenario for the lane and the readable path alike: who plays it, and how it is written down.

A `Row` says what a client and the origins do, byte by byte. How it is run, and what of two runs must be equal, stands
in truth_run.py; the rows themselves in truth_messages.py, truth_rules.py, truth_life.py and truth_faults.py.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from tests.plane import TestPlane
from tests.proxy.scripted import GET, OK, settled
from tests.proxy.scripted import config as simple

WITHIN = 20.0
READ = 1 << 16

# -- who plays ------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Wire:
    """One end of a connection that a scenario plays: what it got, in order, and how it ended."""

    stream: trio.SocketStream
    got: bytearray = attrs.field(factory=bytearray)
    end: str = ""
    """"eof" or "reset", if the play read that far."""
    _at: int = 0

    async def send(self, data: bytes) -> None:
        """All of it; a peer that is gone is no failure of the scenario."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def trickle(self, data: bytes, size: int = 1, pause: float = 0.0) -> None:
        """In pieces, each a packet of its own."""
        for at in range(0, len(data), size):
            await self.send(data[at : at + size])
            await trio.sleep(pause)

    async def read(self) -> bool:
        """Something more; False at the end of the stream."""
        try:
            data = await self.stream.receive_some(READ)
        except trio.BrokenResourceError:
            self.end = "reset"
            return False
        if not data:
            self.end = "eof"
        self.got += data
        return bool(data)

    async def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`, or to the end of the stream."""
        with trio.fail_after(WITHIN):
            while (found := self.got.find(mark, self._at)) < 0:
                if not await self.read():
                    return self._take(len(self.got))
        return self._take(found + len(mark))

    async def exactly(self, count: int) -> bytes:
        """So many bytes, or up to the end of the stream."""
        with trio.fail_after(WITHIN):
            while len(self.got) < self._at + count and await self.read():
                pass
        return self._take(min(self._at + count, len(self.got)))

    async def message(self, *, bodiless: bool = False, to_end: bool = False) -> bytes:
        """The head that comes next, and its body as the framing tells it. b"" at the end of the stream."""
        head = await self.until(b"\r\n\r\n")
        if bodiless or not head.endswith(b"\r\n\r\n"):
            return head
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        if re.search(rb"\r\ntransfer-encoding:", head, re.IGNORECASE):
            return head + await self._chunks()
        if length is not None:
            return head + await self.exactly(int(length[1]))
        return head + (await self.until(b"never") if to_end else b"")

    async def _chunks(self) -> bytes:
        body = b""
        while line := await self.until(b"\r\n"):
            body += line
            size = int(line.partition(b";")[0] or b"0", 16)
            if size == 0:
                while (trailer := await self.until(b"\r\n")) not in (b"\r\n", b""):
                    body += trailer
                return body
            body += await self.exactly(size + 2)
        return body

    async def some(self) -> bytes:
        """What comes next, be it one byte; b"" at the end of the stream."""
        with trio.fail_after(WITHIN):
            if len(self.got) == self._at:
                await self.read()
        return self._take(len(self.got))

    async def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        with trio.fail_after(WITHIN):
            while await self.read():
                pass
        return self._take(len(self.got))

    def reset(self) -> None:
        """Close so that the peer's next read fails."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()

    def _take(self, upto: int) -> bytes:
        taken, self._at = bytes(self.got[self._at : upto]), upto
        return taken


class Up(Wire):
    """An origin's side of a connection."""

    stage: Stage

    async def request(self) -> bytes:
        """The next whole request; b"" when the gateway has closed."""
        return await self.message()


class Client(Wire):
    """A client's side of a connection."""

    async def response(self, method: bytes = b"GET") -> bytes:
        """The next final response, and the informational ones before it."""
        said = b""
        while True:
            head = await self.until(b"\r\n\r\n")
            status = head[9:12]
            said += head
            if status[:1] != b"1" or status == b"101" or not head:
                break
        self._at -= len(head)  # `message` reads it again, with its body
        bodiless = method == b"HEAD" or status in (b"204", b"304", b"101")
        return said[: len(said) - len(head)] + await self.message(bodiless=bodiless, to_end=True)


@attrs.define(eq=False)
class Stage:
    """What a run of a row plays on."""

    row: Row
    plane: TestPlane
    lane: bool
    ports: Sequence[int]
    heard: list[list[Up]]
    """By origin, its connections in the order in which they came."""
    clients: list[Client] = attrs.field(factory=list)
    names: dict[str, str] = attrs.field(factory=dict)
    """A client's address -> what it is called in the comparison."""
    notes: list[object] = attrs.field(factory=list)
    """What the play itself wants compared."""
    _cues: dict[str, trio.Event] = attrs.field(factory=dict)

    async def client(self, listener: str = "web", *, window: int = 0) -> Client:
        """A new connection to the gateway; `window`: bytes that its kernel takes unread."""
        sock = trio.socket.socket()
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        await sock.connect(("127.0.0.1", self.plane.port(listener)))
        name = sock.getsockname()
        self.names[f"{name[0]}:{name[1]}"] = f"client {len(self.clients)}"
        client = Client(trio.SocketStream(sock))
        self.clients.append(client)
        return client

    def cue(self, name: str) -> None:
        """Let whoever waits for `name` go on."""
        self._cues.setdefault(name, trio.Event()).set()

    async def wait(self, name: str) -> None:
        """Until somebody has given the cue."""
        with trio.fail_after(WITHIN):
            await self._cues.setdefault(name, trio.Event()).wait()

    def reload(self, **changes: str) -> None:
        """Serve the row's config with these parts of it changed."""
        row = attrs.evolve(self.row, **changes)  # type: ignore[arg-type]  # the keys are Row's texts
        self.plane.apply(row.config(self.ports, lane=self.lane))

    async def records(self, count: int) -> None:
        """Until so many exchanges are over."""
        await self.plane.record(count)

    async def quiet(self) -> None:
        """Until no exchange is under way."""
        open_now = sum(1 for one in self.clients if not one.end and one.stream.socket.fileno() >= 0)
        await settled(self.plane, connections=open_now)


ClientPlay = Callable[[Stage], Awaitable[None]]
OriginPlay = Callable[[Up], Awaitable[None]]


def always(answer: bytes = OK) -> OriginPlay:
    """An origin's play: the same answer to every request."""

    async def play(up: Up) -> None:
        while await up.request():
            await up.send(answer)

    return play


def each(*answers: bytes) -> OriginPlay:
    """An origin's play: one answer for each request of a connection, then the close."""

    async def play(up: Up) -> None:
        for answer in answers:
            if await up.request():
                await up.send(answer)

    return play


def ask(*requests: bytes) -> ClientPlay:
    """A client's play: request and response, one after the other, on one connection; to its end if that is told."""

    async def play(stage: Stage) -> None:
        client = await stage.client()
        for request in requests:
            await client.send(request)
            said = await client.response(request.partition(b" ")[0])
            if b"\r\nconnection: close\r\n" in said.lower():
                await client.rest()

    return play


SMALL_GET = ask(GET)
ALWAYS_OK = (always(),)

# -- the row --------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Row:
    """One scenario. In its texts "$a", "$b", "$c" are the origins' ports, "$dead" one that refuses connections."""

    name: str
    says: tuple[str, ...]
    """Status and reason of each record, in the order in which they are written."""
    client: ClientPlay = SMALL_GET
    origins: tuple[OriginPlay, ...] = ALWAYS_OK
    listener: str = ""
    route: str = ""
    upstream: str = ""
    gateway: str = ""
    more: str = ""
    """Tables behind the others."""
    text: str = ""
    """The whole config but for `[gateway]`, instead of one listener, one route and one upstream."""
    plain: bool = False
    """Every exchange of it must be moved by the lane."""
    ahead: bool = False
    """Requests are sent before their turn. Whose record has their bytes follows the reads, their sum does not."""
    torn: bool = False
    """A limit ends it in the middle of a stream: how much had been read by then is not compared."""
    pieces: bool = False
    """A chunked message is passed on. In what chunks is nobody's promise: it follows the reads, so bytes_out does."""

    def config(self, ports: Sequence[int], *, lane: bool) -> str:
        """The TOML."""
        *live, dead = ports
        gateway = f"lane = {str(lane).lower()}\n{self.gateway}"
        text = f"[gateway]\n{gateway}\n{self.text}"
        if not self.text:
            text = simple(*live, listener=self.listener, route=self.route, upstream=self.upstream, gateway=gateway)
        text += self.more
        for name, port in zip("abcdefgh", live, strict=False):
            text = re.sub(rf"\${name}\b", str(port), text)
        return text.replace("$dead", str(dead))
