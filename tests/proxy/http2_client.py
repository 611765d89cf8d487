"""A client of HTTP/2 by the h2 library, over a real socket: it says what a test wants said, and keeps what it hears."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable

import attrs
import h2.config
import h2.connection
import h2.events
import h2.settings
import trio

from tests.plane import TestPlane

Pairs = Iterable[tuple[bytes, bytes]]
Settings = dict[h2.settings.SettingCodes, int]


@attrs.define(eq=False)
class Answer:
    """What came on one stream."""

    heads: list[list[tuple[bytes, bytes]]] = attrs.field(factory=list)
    """Informational ones, then the final one."""
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] | None = None
    ended: bool = False
    reset: int | None = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Of the final head."""
        return dict(self.heads[-1])

    @property
    def status(self) -> int:
        """Of the newest head."""
        return int(self.fields[b":status"])


@attrs.define(eq=False)
class Http2Client:
    """One connection. Windows are given back as data comes, unless `holds`."""

    stream: trio.abc.Stream
    h2: h2.connection.H2Connection
    answers: dict[int, Answer] = attrs.field(factory=dict)
    goaways: list[tuple[int, int]] = attrs.field(factory=list)
    """(last stream, code)."""
    holds: bool = False
    ended: bool = False
    """The gateway ended the connection."""
    _data: bytes = b""

    async def flush(self) -> None:
        """Send what h2 has to say."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(self.h2.data_to_send())

    async def request(
        self,
        method: str = "GET",
        path: str = "/",
        fields: Pairs = (),
        body: bytes | None = None,
        *,
        authority: str = "t.example",
        scheme: str = "http",
        end: bool = True,
    ) -> int:
        """Begin a request; the number of its stream. `body`: sent if it fits the window."""
        number = self.h2.get_next_available_stream_id()
        pseudo = [(b":method", method.encode()), (b":scheme", scheme.encode())]
        pseudo += [(b":authority", authority.encode()), (b":path", path.encode())]
        self.h2.send_headers(number, [*pseudo, *fields], end_stream=body is None and end)
        if body is not None:
            for start in range(0, len(body), 16384):
                self.h2.send_data(number, body[start : start + 16384])
            if end:
                self.h2.end_stream(number)
        self.answers[number] = Answer()
        await self.flush()
        return number

    async def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Some of a body, as the windows allow."""
        while data:
            count = min(len(data), self.h2.local_flow_control_window(number), 16384)
            if not count:
                if not await self.hear():
                    return
                continue
            self.h2.send_data(number, data[:count])
            data = data[count:]
            await self.flush()
        if end:
            self.h2.end_stream(number)
            await self.flush()

    async def hear(self) -> bool:
        """The next that the gateway says; False once it has ended the connection."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.ended = True
            return False
        self._data += data
        while len(self._data) >= 9 and len(self._data) >= (size := 9 + int.from_bytes(self._data[:3], "big")):
            frame, self._data = self._data[:size], self._data[size:]
            for event in self.h2.receive_data(frame):
                self._heard(event)
        await self.flush()
        return True

    def _heard(self, event: object) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append((event.last_stream_id or 0, int(event.error_code or 0)))
            if not event.error_code:  # h2 takes the first one for the end, and there is more to come
                self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            return
        number = getattr(event, "stream_id", None)
        if not number:
            return
        answer = self.answers.setdefault(number, Answer())
        if isinstance(event, h2.events.ResponseReceived | h2.events.InformationalResponseReceived):
            answer.heads.append([(bytes(name), bytes(value)) for name, value in event.headers])
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            if not self.holds and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code)

    async def answer(self, number: int, *, within: float = 30.0) -> Answer:
        """The answer on a stream, once it is whole or was reset."""
        answer = self.answers[number]
        with trio.fail_after(within):
            while not (answer.ended or answer.reset is not None) and await self.hear():
                pass
        return answer

    async def head(self, number: int, *, within: float = 30.0) -> Answer:
        """The answer on a stream, once its (newest) head is here."""
        answer = self.answers[number]
        with trio.fail_after(within):
            while not answer.heads and answer.reset is None and await self.hear():
                pass
        return answer

    async def rest(self, *, within: float = 30.0) -> None:
        """Hear everything up to the end of the connection."""
        with trio.fail_after(within):
            while await self.hear():
                pass


@contextlib.asynccontextmanager
async def http2_client(
    plane: TestPlane, listener: str = "web", settings: Settings | None = None
) -> AsyncIterator[Http2Client]:
    """A connection to the gateway, greeted."""
    async with await trio.open_tcp_stream("127.0.0.1", plane.port(listener)) as stream:
        yield await greeted(stream, settings)


async def greeted(stream: trio.abc.Stream, settings: Settings | None = None) -> Http2Client:
    """A client over `stream` that has said its preface."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    if settings:
        connection.local_settings = h2.settings.Settings(client=True, initial_values=settings)
    connection.initiate_connection()
    client = Http2Client(stream, connection)
    await client.flush()
    return client
