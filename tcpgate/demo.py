"""Three small origins for a gateway to stand in front of, so that `tcpgate demo` needs nothing else to show.

Each says who it is, so that one sees the balancing; each can be told to fall ill and to get well, so that one sees
the health checks:

    GET  /anything          who answered, how often, and the request as it arrived, as JSON
    GET  /slow?ms=500       the same, later
    GET  /bytes?n=1000000   that many bytes, streamed
    POST /echo              the body, as it comes
    GET  /fail              500
    GET  /healthz           200, or 503 while ill
    POST /ill, POST /well   for the probes of this origin only

Source: h11's own server example. Owner: the nursery that `serve_origins` is started in; a task per connection.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import attrs
import h11
import trio

PORTS = (9001, 9002, 9003)
"""Those that etc/quickstart.toml names."""
CHUNK = 64 << 10
MAX_MS = 60_000
MAX_BYTES = 10 << 30
QUICKSTART = "quickstart.toml"
_WHAT_TO_TRY = """\
Three origins on 127.0.0.1:9001 to 9003, and a gateway in front of them from
{config}. In another terminal:

  curl -i http://127.0.0.1:{port}/{pad}           who answered, and what it was sent
  curl -X POST http://127.0.0.1:9002/ill   make one fail its health checks
  .venv/bin/tcpgate upstreams --admin 127.0.0.1:9901   who is up, who is not
  .venv/bin/tcpgate events --admin 127.0.0.1:9901      what happened, and why
  curl -X POST http://127.0.0.1:9002/well  heal it

Ctrl-C stops it. Its log follows, one JSON object a line.
"""


def what_to_try(config: Path, environ: Mapping[str, str]) -> str:
    """What the command line says once all of it runs; the port is the one that etc/quickstart.toml reads too."""
    port = environ.get("DEMO_PORT") or "8080"
    return _WHAT_TO_TRY.format(config=config, port=port, pad=" " * (4 - len(port)))


def quickstart() -> Path:
    """The demo's config: the work tree's, or the one that was installed with the package."""
    in_tree = Path(__file__).parent.parent / "etc" / QUICKSTART
    return in_tree if in_tree.exists() else Path(sys.prefix) / "share" / "tcpgate" / QUICKSTART


async def serve_origins(
    ports: Sequence[int] = PORTS,
    *,
    host: str = "127.0.0.1",
    task_status: trio.TaskStatus[list[int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one origin on each port until cancelled; `started` tells the ports bound (0 asks the kernel for one).

    Raises OSError if one is in use. Cancellation closes every socket and ends every exchange where it is.
    """
    async with AsyncExitStack() as opened:
        # All are bound before any serves: a port in use is then a plain OSError, and no origin has begun.
        listeners = [
            await opened.enter_async_context((await trio.open_tcp_listeners(port, host=host))[0]) for port in ports
        ]
        async with trio.open_nursery() as origins:
            for position, listener in enumerate(listeners, 1):
                origins.start_soon(trio.serve_listeners, Origin(f"origin-{position}").serve, [listener])
            task_status.started([listener.socket.getsockname()[1] for listener in listeners])


@attrs.define
class Origin:
    """One web server: its name and what it has been through."""

    name: str
    served: int = 0
    ill: bool = False

    async def serve(self, stream: trio.SocketStream) -> None:
        """All exchanges of one connection. A client that leaves or speaks no HTTP ends it, no more."""
        async with stream:
            connection = Connection(stream)
            try:
                while (head := await connection.next_request()) is not None:
                    await self._answer(head, connection)
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                return

    async def _answer(self, head: h11.Request, connection: Connection) -> None:
        self.served += 1
        path = urlsplit(head.target.decode()).path
        if path == "/echo":
            await self._echo(connection)
            return
        while await connection.next_chunk():
            pass  # a body that nobody wants is read all the same, so that the connection can be used again
        if path == "/bytes":
            await self._bytes(number(head, "n", 1_000_000, MAX_BYTES), connection)
            return
        if path == "/slow":
            await trio.sleep(number(head, "ms", 500, MAX_MS) / 1000)
        if head.method == b"POST" and path in ("/ill", "/well"):
            self.ill = path == "/ill"
        status = 500 if path == "/fail" else 503 if self.ill and path == "/healthz" else 200
        body = json.dumps(self._told(head), indent=2).encode() + b"\n"
        await connection.send_head(status, "application/json", length=len(body))
        await connection.send_end(body)

    def _told(self, head: h11.Request) -> dict[str, object]:
        return {
            "origin": self.name,
            "served": self.served,
            "health": "ill" if self.ill else "well",
            "method": head.method.decode(),
            "target": head.target.decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in head.headers.raw_items()],
        }

    async def _bytes(self, left: int, connection: Connection) -> None:
        await connection.send_head(200, "application/octet-stream", length=left)
        while left > CHUNK:
            await connection.send_chunk(bytes(CHUNK))
            left -= CHUNK
        await connection.send_end(bytes(left))

    async def _echo(self, connection: Connection) -> None:
        # First a chunk, then the head: to a client that waits for a 100, a head would say that nobody wants its body.
        chunk = await connection.next_chunk()
        # No length: the body goes back as it comes, before its end is known.
        await connection.send_head(200, "application/octet-stream")
        while chunk:
            await connection.send_chunk(chunk)
            chunk = await connection.next_chunk()
        await connection.send_end()


def number(head: h11.Request, name: str, default: int, most: int) -> int:
    """The query parameter `name` as a number from 0 to `most`; `default` if there is none."""
    text = dict(parse_qsl(urlsplit(head.target.decode()).query)).get(name, "")
    return min(int(text), most) if text.isascii() and text.isdecimal() and len(text) < 20 else default


@attrs.define
class Connection:
    """h11 on a stream, from the server's side."""

    stream: trio.SocketStream
    _wire: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.SERVER))
    _bodyless: bool = False
    """The answer to a HEAD: h11 takes its length, but no body."""

    async def next_request(self) -> h11.Request | None:
        """The next request's head; None if the connection is over. Raises RemoteProtocolError if it is no HTTP."""
        if self._wire.our_state is h11.DONE:
            self._wire.start_next_cycle()
        elif self._wire.our_state is not h11.IDLE:
            return None
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        self._bodyless = event.method == b"HEAD"
        return event

    async def next_chunk(self) -> bytes:
        """More of the request's body; empty once it is over."""
        if self._wire.their_state is not h11.SEND_BODY:
            return b""
        if self._wire.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def send_head(self, status: int, content_type: str, length: int | None = None) -> None:
        """The response's head; without a length its end is told by the framing."""
        headers = [("server", "tcpgate-demo"), ("content-type", content_type)]
        if length is not None:
            headers.append(("content-length", str(length)))
        await self._send(h11.Response(status_code=status, headers=headers))

    async def send_chunk(self, data: bytes) -> None:
        """Some of the response's body."""
        if data and not self._bodyless:
            await self._send(h11.Data(data=data))

    async def send_end(self, data: bytes = b"") -> None:
        """The last of the response's body, and its end."""
        await self.send_chunk(data)
        await self._send(h11.EndOfMessage())

    async def _next_event(self) -> h11.Event:
        while True:
            event = self._wire.next_event()
            if isinstance(event, h11.Event):
                return event
            # NEED_DATA; never PAUSED, as a cycle is only begun when the one before is done.
            self._wire.receive_data(await self.stream.receive_some(CHUNK))

    async def _send(self, event: h11.Event) -> None:
        data = self._wire.send(event)
        if data:
            await self.stream.send_all(data)
