"""The kinds of probe that speak over a connection: tcp, tls, expect and http. `probe.py` is the frame around them.

Source: RFC 9112 (http, by h11), RFC 8446 (tls); HAProxy "option httpchk", "tcp-check send/expect", nginx Plus `match`.
"""

from __future__ import annotations

import re

import attrs
import h11

from tcpgate.codec.client_tls import ClientTls
from tcpgate.control import probe_http2
from tcpgate.control.probe import (
    ANSWER_LIMIT,
    Asking,
    Connection,
    Failed,
    Link,
    close_in_order,
    dial,
    excerpt,
    host_of,
    receive,
    send_all,
)
from tcpgate.net.tls_client import EndpointSocket

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([rnt\\]))")
_PLAIN_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}


async def ask_tcp(asking: Asking) -> str:
    """The connect is the whole question."""
    close_in_order(await dial(asking))
    return "connected"


async def ask_tls(asking: Asking) -> str:
    """The handshake completes; whose certificate it is, is not judged."""
    spec = attrs.evolve(asking.reach.http or ClientTls(), verify=False, pins=frozenset(), alpn_required=False)
    with await dial(asking, spec) as sock:
        assert isinstance(sock, Link)
        assert isinstance(sock.sock, EndpointSocket)
        version = sock.sock.version()
        close_in_order(sock)
        return f"{version} handshake"


# -- send and expect ------------------------------------------------------------------------------------------------


def unescape(text: str) -> bytes:
    r"""The bytes that `send` means: \r \n \t \\ and \xNN; any other character as UTF-8."""
    out, last = b"", 0
    for match in _ESCAPE.finditer(text):
        out += text[last : match.start()].encode()
        out += bytes.fromhex(match[1]) if match[1] else _PLAIN_ESCAPES[match[2]]
        last = match.end()
    return out + text[last:].encode()


async def ask_expect(asking: Asking) -> str:
    """After `send` the answer matches `expect`, within its first 64 KiB."""
    pattern = re.compile((asking.spec.expect or "").encode())
    with await dial(asking, asking.reach.tcp) as sock:
        await send_all(asking, sock, unescape(asking.spec.send))
        asking.phase = "answer"
        answer = b""
        while (match := pattern.search(answer)) is None:
            data = await receive(asking, sock)
            if not data or len(answer) >= ANSWER_LIMIT:
                raise Failed(f"answer did not match: {excerpt(answer) or 'nothing came'}")
            answer = (answer + data)[:ANSWER_LIMIT]
        close_in_order(sock)
        return f"answered {excerpt(match[0])}"


# -- http -----------------------------------------------------------------------------------------------------------


async def ask_http(asking: Asking) -> str:
    """The whole answer came (or its first 64 KiB), its status is an accepted one, its body matches.

    A head alone is not enough even where no `body` is asked for: an endpoint that cannot finish its answer is not well.
    """
    if asking.reach.version == "h2":
        return _judge(asking, *await _ask_http2(asking))
    connection = h11.Connection(h11.CLIENT)
    with await dial(asking, asking.reach.http) as sock:
        try:
            await send_all(asking, sock, _request(connection, asking))
            asking.phase = "head"
            status = await _read_status(asking, sock, connection)
            if not accepts(asking.spec.status, status):
                raise Failed(f"status {status}")
            asking.phase = "body"
            body = await _read_body(asking, sock, connection)
        except h11.LocalProtocolError as exc:
            raise Failed(f"cannot ask that: {exc}") from exc
        except h11.RemoteProtocolError as exc:
            what = "closed in" if connection.trailing_data[1] else "not well-formed HTTP in"
            raise Failed(f"{what} {asking.phase}: {exc}"[:200]) from exc
        said = _judge(asking, status, body)
        close_in_order(sock)
        return said


async def _ask_http2(asking: Asking) -> tuple[int, bytes]:
    """The same question in HTTP/2: the status and the body."""
    spec = asking.spec
    fields = probe_http2.request_fields(asking, spec.method, spec.http or "/")
    with await dial(asking, asking.reach.http) as sock:
        answer = await probe_http2.exchange(asking, sock, [*fields, (b"accept", b"*/*")])
        close_in_order(sock)
        return answer.status, answer.body


def _judge(asking: Asking, status: int, body: bytes) -> str:
    """What a whole answer says of the endpoint."""
    spec = asking.spec
    if not accepts(spec.status, status):
        raise Failed(f"status {status}")
    if spec.body is not None and re.search(spec.body.encode(), body) is None:
        raise Failed(f"body did not match: {excerpt(body) or 'empty'}")
    return f"status {status}"


def accepts(ranges: tuple[str, ...], status: int) -> bool:
    """Whether `status` is one of "200" or in one of "200-399"."""
    for text in ranges:
        low, _, high = text.partition("-")
        if int(low) <= status <= int(high or low):
            return True
    return False


def _request(connection: h11.Connection, asking: Asking) -> bytes:
    spec = asking.spec
    headers = [("Host", host_of(asking)), ("User-Agent", "tcpgate-probe"), ("Accept", "*/*"), ("Connection", "close")]
    try:
        request = h11.Request(method=spec.method, target=spec.http or "/", headers=headers)
    except UnicodeError as exc:
        raise h11.LocalProtocolError(f"not ASCII: {exc}") from exc
    return (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")


async def _read_status(asking: Asking, sock: Connection, connection: h11.Connection) -> int:
    while True:
        event = await _next_event(asking, sock, connection)
        if isinstance(event, h11.Response):
            return event.status_code
        if not isinstance(event, h11.InformationalResponse) or asking.size > ANSWER_LIMIT:
            raise Failed("no final answer in head")


async def _read_body(asking: Asking, sock: Connection, connection: h11.Connection) -> bytes:
    body = b""
    while len(body) < ANSWER_LIMIT:
        event = await _next_event(asking, sock, connection)
        if not isinstance(event, h11.Data):
            break
        body += bytes(event.data)
    return body[:ANSWER_LIMIT]


async def _next_event(
    asking: Asking, sock: Connection, connection: h11.Connection
) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await receive(asking, sock))
    return event
