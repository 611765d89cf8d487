"""Probes that speak HTTP/2: one exchange on a connection of its own, and gRPC's health service by it.

SERVING is healthy; what else the service says, or a grpc-status other than 0, is not, and is told by its name. The
messages are a string and a number, so they are written and read here.

Source: grpc/doc/health-checking.md and PROTOCOL-HTTP2.md, protobuf's "Encoding"; RFC 9113 by `codec/http2`.
"""

from __future__ import annotations

import attrs
import trio

from tcpgate.codec.events import Pair
from tcpgate.codec.http2.events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    StreamReset,
)
from tcpgate.codec.http2.machine import Http2
from tcpgate.control.probe import (
    ANSWER_LIMIT,
    Asking,
    Connection,
    Failed,
    close_in_order,
    dial,
    excerpt,
    host_of,
    receive,
    send_all,
)

CHECK = "/grpc.health.v1.Health/Check"
STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
"""HealthCheckResponse.ServingStatus."""
SERVING = 1
# fmt: off
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)
# fmt: on
"""grpc-status by number."""


@attrs.define
class Answer:
    """One response."""

    status: int = 0
    fields: dict[bytes, bytes] = attrs.field(factory=dict)
    """Those of the head and of the trailers."""
    body: bytes = b""
    is_over: bool = False


async def exchange(asking: Asking, sock: Connection, fields: list[Pair], body: bytes = b"") -> Answer:
    """The whole answer to one request, of its body the first 64 KiB. Raises Failed."""
    machine, answer = Http2("client"), Answer()
    stream = machine.open_stream(fields, end=not body)
    if body:
        machine.send_data(stream, body, end=True)  # a probe's body is smaller than any first window
    await send_all(asking, sock, machine.take_out())
    asking.phase = "head"
    while not answer.is_over:
        data = await receive(asking, sock)
        if not data:
            raise Failed(f"closed in {asking.phase}")
        for event in machine.receive(data, trio.current_time()):
            _take(asking, machine, stream, answer, event)
        if out := machine.take_out():
            phase = asking.phase
            await send_all(asking, sock, out)
            asking.phase = phase
    return answer


def _take(asking: Asking, machine: Http2, stream: int, answer: Answer, event: Event) -> None:
    """One event of the machine."""
    match event:
        case HeadersReceived(informational=True):
            pass
        case HeadersReceived(fields=fields, end=end, trailers=trailers):
            if not trailers:
                answer.status = int(dict(fields)[b":status"])
                asking.phase = "body"
            answer.fields.update(fields)
            answer.is_over = end
        case DataReceived(data=data, flow=flow, end=end):
            answer.body += data
            machine.acknowledge(stream, flow)
            answer.is_over = end or len(answer.body) >= ANSWER_LIMIT
            answer.body = answer.body[:ANSWER_LIMIT]
        case StreamReset(code=code, text=text):
            raise Failed(f"reset in {asking.phase}: {text or f'HTTP/2 error {code}'}")
        case ConnectionFailed(text=text):
            raise Failed(f"not well-formed HTTP/2 in {asking.phase}: {text}"[:200])
        case GoAwayReceived(code=code, last=last) if last < stream:
            raise Failed(f"sent away in {asking.phase}: HTTP/2 error {code}")


def request_fields(asking: Asking, method: str, path: str) -> list[Pair]:
    """How a request of ours begins."""
    scheme = b"http" if asking.reach.http is None else b"https"
    return [
        (b":method", method.encode()),
        (b":scheme", scheme),
        (b":authority", host_of(asking).encode()),
        (b":path", path.encode()),
        (b"user-agent", b"tcpgate-probe"),
    ]


# -- gRPC -----------------------------------------------------------------------------------------------------------


async def ask_grpc(asking: Asking) -> str:
    """The health service says SERVING for the service that the config names."""
    tls = asking.reach.http
    spec = None if tls is None else attrs.evolve(tls, alpn=("h2",), alpn_required=True)
    fields = request_fields(asking, "POST", CHECK)
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    with await dial(asking, spec) as sock:
        answer = await exchange(asking, sock, fields, _question(asking.spec.grpc or ""))
        state = _state_of(answer)
        if state != SERVING:
            raise Failed(f"grpc: {STATES.get(state, f'status {state}')}")
        close_in_order(sock)
        return "grpc: SERVING"


def _question(service: str) -> bytes:
    """HealthCheckRequest { string service = 1; }, as one message that is not compressed."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _state_of(answer: Answer) -> int:
    """What the service said. Raises Failed for an answer that is no such thing."""
    if answer.status != 200:
        raise Failed(f"status {answer.status}")
    code = answer.fields.get(b"grpc-status", b"").decode("ascii", "replace")
    if code != "0":
        name = CODES[int(code)] if code.isascii() and code.isdigit() and int(code) < len(CODES) else code or "missing"
        said = excerpt(answer.fields.get(b"grpc-message", b""))
        raise Failed(f"grpc-status {name}" + (f": {said}" if said else ""))
    size = int.from_bytes(answer.body[1:5], "big")
    if len(answer.body) < 5 or answer.body[0] or size > len(answer.body) - 5:
        raise Failed(f"grpc: not a message: {excerpt(answer.body) or 'empty'}")
    try:
        return _status_field(answer.body[5 : 5 + size])
    except IndexError:
        raise Failed("grpc: its message is cut short") from None


def _status_field(message: bytes) -> int:
    """HealthCheckResponse { ServingStatus status = 1; }; what is not there is 0. Other fields are passed over."""
    at, state = 0, 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            if key >> 3 == 1:
                state = value
        elif kind == 2:
            size, at = _read_varint(message, at)
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise Failed("grpc: not a message of protobuf's")
    return state


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number there, and what is behind it. IndexError if it is cut short."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
