"""The admin API's server: HTTP/1.1 on loopback or a unix socket, for the command line, probes of load balancers, and
people with curl.

Small on purpose: one request at a time per connection, bodies of at most 1 MiB, no streaming. It reads with the same
strict codec as the data plane. A bearer token, where one is set, is asked for everything but the two health calls,
and compared in constant time.

Owner: the supervisor's root nursery (`serve`), one task per connection below it.
"""

from __future__ import annotations

import hmac
import logging
import socket

import trio

from tcpgate.codec.events import Closed, Data, EndOfBody, Fields, Limits, NeedData, RequestHead, of_length
from tcpgate.codec.http1 import ServerCodec
from tcpgate.config import schema
from tcpgate.control.api import Answer, Api, Request, answer_problem
from tcpgate.errors import ClientError, GateError, Reason, Side
from tcpgate.net import listen
from tcpgate.net.address import SocketAddress, describe
from tcpgate.net.bound import Binder
from tcpgate.net.stream import Stream

LIMITS = Limits(head=16 << 10, headers=64, target=4 << 10)
LARGEST_BODY = 1 << 20
"""Bytes; the largest call is a few hundred."""
MOST_CONNECTIONS = 256
"""Beyond this an accepted connection is closed at once: the API must not eat the gateway's descriptors."""
BACKLOG = 128
AFTER_BUG = 1.0
"""Pause (seconds) after a failure that should not be."""
IDLE, REQUEST = 60.0, 10.0
"""Seconds for which a connection may be silent, and that one request may take to arrive."""
OPEN_CALLS = frozenset({"/healthz", "/readyz"})

log = logging.getLogger("tcpgate.control.admin")


class AdminServer:
    """Serves the API on one address."""

    def __init__(self, spec: schema.Admin, api: Api, binder: Binder) -> None:
        self._spec = spec
        self._api = api
        self._binder = binder
        self._open = 0

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, say so, and serve until cancelled. OSError if the address cannot be had."""
        sock = self._binder.bind(self._spec.bind, BACKLOG)
        try:
            async with trio.open_nursery() as connections:
                task_status.started()
                await self._accept_forever(sock, connections)
        finally:
            self._binder.release(self._spec.bind, sock)

    async def _accept_forever(self, sock: socket.socket, connections: trio.Nursery) -> None:
        def take(accepted: socket.socket, address: SocketAddress) -> None:
            if self._open >= MOST_CONNECTIONS:
                accepted.close()
                return
            self._open += 1
            connections.start_soon(self._serve, Stream(sock=accepted, side=Side.CLIENT, peer=describe(address)))

        def short(exc: OSError) -> None:
            log.error("cannot accept on the admin API: error=%s", exc)

        while True:
            try:
                await listen.accept_forever(sock, take, short=short)
            except Exception:
                # The API must not take the gateway with it.
                log.exception("the admin API cannot accept; it tries again")
                await trio.sleep(AFTER_BUG)

    async def _serve(self, stream: Stream) -> None:
        """One connection, to its end."""
        codec = ServerCodec(LIMITS)
        try:
            while await self._exchange(stream, codec) and codec.can_reuse:
                codec.next_exchange()
        except GateError as exc:
            log.debug("admin connection ended: peer=%s reason=%s", stream.peer, exc)
        except Exception:
            log.exception("admin connection failed: peer=%s", stream.peer)
        finally:
            self._open -= 1
            stream.close()

    async def _exchange(self, stream: Stream, codec: ServerCodec) -> bool:
        """One request and its answer; False if the client is done."""
        head: RequestHead | None = None
        try:
            head = await self._read_head(stream, codec)
            if head is None:
                return False
            with trio.fail_after(REQUEST):
                body = await self._read_body(stream, codec, head)
            answer = await self._answer(head, body)
        except ClientError as exc:
            answer = answer_problem(exc.status, exc.detail)
            await self._send(stream, codec, head, answer, close=True)
            return False
        except trio.TooSlowError:
            return False
        await self._send(stream, codec, head, answer, close=not head.keep_alive)
        return head.keep_alive

    async def _read_head(self, stream: Stream, codec: ServerCodec) -> RequestHead | None:
        deadline = trio.current_time() + IDLE
        while True:
            event = codec.next_event()
            if isinstance(event, RequestHead):
                return event
            if isinstance(event, Closed):
                return None
            with trio.move_on_at(deadline) as scope:
                data = await stream.receive_some()
            if scope.cancelled_caught:
                return None
            codec.receive(data)
            deadline = min(deadline, trio.current_time() + REQUEST)

    async def _read_body(self, stream: Stream, codec: ServerCodec, head: RequestHead) -> bytes:
        if head.expect_continue:
            await stream.send_all(codec.send_informational(100, Fields()))
        pieces: list[bytes] = []
        size = 0
        while True:
            event = codec.next_event()
            if isinstance(event, EndOfBody):
                return b"".join(pieces)
            if isinstance(event, Data):
                size += len(event.data)
                if size > LARGEST_BODY:
                    raise ClientError(Reason.BODY_TOO_LARGE, f"the body passes {LARGEST_BODY} bytes")
                pieces.append(event.data)
            elif isinstance(event, NeedData):
                codec.receive(await stream.receive_some())

    async def _answer(self, head: RequestHead, body: bytes) -> Answer:
        request = Request.parse(head.method.decode(), head.upstream_target.decode("latin-1"), body)
        if request.path not in OPEN_CALLS and not self._may(head):
            challenge = (("WWW-Authenticate", 'Bearer realm="tcpgate"'),)
            return answer_problem(401, "this API needs the token of admin.token_file as a bearer token", challenge)
        try:
            return await self._api.handle(request)
        except Exception:
            log.exception("admin call failed: call=%s %s", request.method, request.path)
            return answer_problem(500, "the call failed; the log says more")

    def _may(self, head: RequestHead) -> bool:
        token = self._spec.token
        if token is None:
            return True
        given = head.fields.get(b"authorization") or b""
        return hmac.compare_digest(given, b"Bearer " + token.reveal().encode())

    async def _send(
        self, stream: Stream, codec: ServerCodec, head: RequestHead | None, answer: Answer, *, close: bool
    ) -> None:
        fields = [
            (b"Content-Type", answer.content_type.encode()),
            (b"Cache-Control", b"no-store"),
            (b"Server", b"tcpgate-admin"),  # by which the command line knows whom it talks to
            *((name.encode(), value.encode()) for name, value in answer.fields),
        ]
        out = [codec.send_response(answer.status, Fields(fields), of_length(len(answer.body)), close=close)]
        out += codec.send_data(answer.body)
        out.append(codec.end())
        with trio.move_on_after(REQUEST):
            await stream.send_all(out)
