"""An endpoint of HTTP/2 by the h2 library: it hears what comes, and says on each connection what a test wants said."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import attrs
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio

Pair = tuple[bytes, bytes]
Settings = dict[h2.settings.SettingCodes, int]
STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
TUNNELS = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL


@attrs.define(eq=False)
class Ask:
    """One request, as far as it has come."""

    number: int
    fields: list[Pair]
    body: bytes = b""
    trailers: list[Pair] | None = None
    ended: bool = False
    reset: int | None = None
    answered: bool = False
    """Its head was sent."""

    def __getitem__(self, name: bytes) -> bytes:
        return dict(self.fields)[name]

    @property
    def path(self) -> bytes:
        """What it is for."""
        return self[b":path"]


@attrs.define(eq=False)
class Wire:
    """One connection. Windows are given back as data comes, unless `holds`."""

    stream: trio.abc.Stream
    h2: h2.connection.H2Connection
    asks: dict[int, Ask] = attrs.field(factory=dict)
    holds: bool = False
    pings: int = 0
    goaways: list[int] = attrs.field(factory=list)
    """Codes."""
    ended: bool = False
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    _news: trio.Event = attrs.field(factory=trio.Event)
    _taken: int = 0

    async def flush(self) -> None:
        """Send what h2 has to say."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._sending:
                await self.stream.send_all(self.h2.data_to_send())

    async def read_forever(self) -> None:
        """Hear the gateway, to the end of the connection."""
        while True:
            try:
                data = await self.stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                for event in self.h2.receive_data(data):
                    self._heard(event)
            self._tell()
            await self.flush()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _heard(self, event: object) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.asks[event.stream_id] = Ask(event.stream_id, [(bytes(n), bytes(v)) for n, v in event.headers])
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(int(event.error_code or 0))
        elif isinstance(event, h2.events.PingReceived):
            self.pings += 1
        ask = self.asks.get(getattr(event, "stream_id", None) or 0)
        if ask is None:
            return
        if isinstance(event, h2.events.DataReceived):
            ask.body += event.data
            if not self.holds and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, ask.number)
        elif isinstance(event, h2.events.TrailersReceived):
            ask.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            ask.ended = True
        elif isinstance(event, h2.events.StreamReset):
            ask.reset = int(event.error_code)

    # -- what a test waits for --------------------------------------------------------------------------------------

    async def until(self, true: Callable[[], object], within: float = 30.0) -> None:
        """Returns once that is so, which only what the gateway says can change; or the connection has ended."""
        with trio.fail_after(within):
            while not true() and not self.ended:
                await self._news.wait()
        assert true() or self.ended

    async def ask(self) -> Ask:
        """The next request's head. BrokenResourceError, which ends a play, if the gateway has ended the connection."""
        await self.until(lambda: len(self.asks) > self._taken)
        if len(self.asks) == self._taken:
            raise trio.BrokenResourceError("the connection has ended")
        self._taken += 1
        return list(self.asks.values())[self._taken - 1]

    async def whole(self) -> Ask:
        """The next request, to its end."""
        ask = await self.ask()
        await self.until(lambda: ask.ended)
        return ask

    # -- what it says -----------------------------------------------------------------------------------------------

    async def head(self, ask: Ask, status: int = 200, fields: Iterable[Pair] = (), *, end: bool = False) -> None:
        """A head."""
        ask.answered = True
        self.h2.send_headers(ask.number, [(b":status", b"%d" % status), *fields], end_stream=end)
        await self.flush()

    async def data(self, ask: Ask, data: bytes, *, end: bool = False) -> None:
        """Some of a body, as the windows allow."""
        while data:
            count = min(len(data), self.h2.local_flow_control_window(ask.number), 16384)
            if count:
                self.h2.send_data(ask.number, data[:count])
                data = data[count:]
                await self.flush()
            else:
                await self.until(lambda: self.h2.local_flow_control_window(ask.number) > 0, 60)
                if self.ended:
                    return
        if end:
            self.h2.end_stream(ask.number)
            await self.flush()

    async def answer(self, ask: Ask, body: bytes = b"ok", status: int = 200, fields: Iterable[Pair] = ()) -> None:
        """A whole answer."""
        await self.head(ask, status, [*fields, (b"content-length", b"%d" % len(body))])
        await self.data(ask, body, end=True)

    async def reset(self, ask: Ask, code: int) -> None:
        """RST_STREAM."""
        self.h2.reset_stream(ask.number, code)
        await self.flush()

    async def raw(self, data: bytes) -> None:
        """Frames that h2 would not say."""
        async with self._sending:
            await self.stream.send_all(data)

    async def goaway(self, last: int, code: int = 0) -> None:
        """GOAWAY, after which h2 goes on."""
        payload = last.to_bytes(4, "big") + code.to_bytes(4, "big")
        await self.raw(len(payload).to_bytes(3, "big") + b"\x07\0" + bytes(4) + payload)


Play = Callable[[Wire], Awaitable[None]]


async def serve_all(wire: Wire) -> None:
    """A play: every request is answered with its path."""
    while True:
        await wire.until(lambda: any(_waits(one) for one in wire.asks.values()))
        if wire.ended:
            return
        for one in list(wire.asks.values()):
            if _waits(one):
                await wire.answer(one, one.path)


def _waits(ask: Ask) -> bool:
    return ask.ended and ask.reset is None and not ask.answered


@attrs.define(eq=False)
class Http2Origin:
    """An endpoint, and its connections."""

    port: int = 0
    wires: list[Wire] = attrs.field(factory=list)
    headers: list[bytes] = attrs.field(factory=list)
    """What came before the preface, where the origin reads a PROXY header."""


@contextlib.asynccontextmanager
async def http2_origin(
    play: Play = serve_all,
    *,
    settings: Settings | None = None,
    tls: ssl.SSLContext | None = None,
    header: bool = False,
    greet: trio.Event | None = None,
) -> AsyncIterator[Http2Origin]:
    """An endpoint whose every connection is played so, and then closed. `header`: a PROXY
    header of version 2 comes first. `greet`: it says its SETTINGS only then."""
    origin = Http2Origin()

    async def one(raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        if header:
            before = await _exactly(raw, 16)
            origin.headers.append(before + await _exactly(raw, int.from_bytes(before[14:], "big")))
        if tls is not None:
            stream = trio.SSLStream(raw, tls, server_side=True)
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        if settings:
            connection.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        connection.initiate_connection()
        wire = Wire(stream, connection)
        origin.wires.append(wire)
        async with trio.open_nursery() as nursery:
            if greet is not None:
                await greet.wait()
            await wire.flush()
            nursery.start_soon(wire.read_forever)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await play(wire)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    origin.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, one, listeners)
        yield origin
        nursery.cancel_scope.cancel()


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await stream.receive_some(size - len(got))
    return got
