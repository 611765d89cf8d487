"""Runs one scenario through the data plane of tests/plane.py and tells what it left behind.

That is: the bytes that each upstream connection got, the bytes that each client got and how its connection ended, the
access records, every counter, the endpoints' states and what the supervisor was told. Two runs of a row must be
equal in all of it. What differs in any two runs, lane or not, is taken out here: request ids, ports that the kernel
gives out, the date, times.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import attrs
import trio

from tcpgate.stats.page import FIELDS, WORKER_FIELDS
from tcpgate.stats.record import AccessRecord
from tcpgate.stats.totals import worker_figures
from tests.plane import serving
from tests.proxy.scripted import settled
from tests.proxy.truth import WITHIN, OriginPlay, Row, Stage, Up

HAS_LANE = "lane_exchanges" in WORKER_FIELDS


@attrs.frozen(kw_only=True)
class Seen:
    """What a run left behind, made comparable."""

    upstream: list[list[bytes]]
    clients: list[tuple[bytes, str]]
    records: list[dict[str, object]]
    counters: dict[str, dict[str, int]]
    states: dict[str, tuple[object, ...]]
    told: list[object]
    notes: list[object]
    lane: dict[str, int]
    """The worker's counters of the lane itself, which of course differ."""


@contextlib.contextmanager
def origin_sockets(count: int) -> Iterator[list[socket.socket]]:
    """Listening sockets for so many origins, and a last one that refuses: the same ports for every run."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count + 1)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        for sock in sockets[:-1]:
            sock.listen(128)
        yield sockets


async def played(folder: Path, row: Row, sockets: Sequence[socket.socket], *, lane: bool) -> Seen:
    """One run of the row."""
    ports = [sock.getsockname()[1] for sock in sockets]
    heard: list[list[Up]] = [[] for _ in row.origins]
    async with trio.open_nursery() as origins:
        async with serving(folder, row.config(ports, lane=lane)) as plane:
            stage = Stage(row, plane, lane, ports, heard)
            async with _open_origins(row, sockets, stage, origins):
                await row.client(stage)
                for client in stage.clients:
                    await client.stream.aclose()
                await settled(plane)
                for endpoint in plane.plane.runtime.endpoints():
                    # One whose endpoint has closed it meanwhile: the lane has seen that, the readable path only looks
                    # when it takes one. So which are left is not compared; that they can be closed is.
                    endpoint.close_idle()
                await settled(plane)
        # Every upstream connection has been closed, so the origins' plays come to their ends.
        origins.cancel_scope.deadline = trio.current_time() + WITHIN
    assert not origins.cancel_scope.cancelled_caught, "an upstream connection was left open"
    return _seen(stage)


@contextlib.asynccontextmanager
async def _open_origins(
    row: Row, sockets: Sequence[socket.socket], stage: Stage, connections: trio.Nursery
) -> AsyncIterator[None]:
    async with trio.open_nursery() as accepting:
        for play, sock, heard in zip(row.origins, sockets, stage.heard, strict=False):
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
            accepting.start_soon(_serve_origin, play, listener, heard, stage, connections)
        yield
        accepting.cancel_scope.cancel()


async def _serve_origin(
    play: OriginPlay, listener: trio.SocketListener, heard: list[Up], stage: Stage, connections: trio.Nursery
) -> None:
    async def one(stream: trio.SocketStream) -> None:
        up = Up(stream)
        up.stage = stage
        heard.append(up)
        async with stream:
            await play(up)

    await trio.serve_listeners(one, [listener], handler_nursery=connections)


# -- what is compared -----------------------------------------------------------------------------------------------


def _seen(stage: Stage) -> Seen:
    plane = stage.plane
    ids = {one.id: f"<id {index}>" for index, one in enumerate(plane.records) if re.fullmatch("[0-9a-f]{32}", one.id)}

    def clean(raw: bytes) -> bytes:
        for one, label in ids.items():
            raw = raw.replace(one.encode(), label.encode())
        # 1994 is what the scripted origins write: a Date of theirs must come through.
        raw = re.sub(rb"\r\nDate: \w{3}, \d\d \w{3} (?!1994)\d{4} [\d:]{8} GMT", b"\r\nDate: <now>", raw)
        raw = re.sub(rb"\r\nX-Forwarded-Port: [345]\d{4}\r\n", b"\r\nX-Forwarded-Port: <port>\r\n", raw)
        return _brief(unchunked(raw))

    figures = {"worker": worker_figures(plane.shared, 1)}
    for key in plane.layout.blocks:
        kind, _, name = key.partition("/")
        if name:
            figures[key] = plane.counts(kind, name)
    return Seen(
        upstream=[[clean(bytes(up.got)) for up in heard] for heard in stage.heard],
        clients=[(clean(bytes(client.got)), client.end) for client in stage.clients],
        records=[_record(one, stage, ids) for one in plane.records],
        counters={key: _counters(key, counts, stage.row) for key, counts in figures.items()},
        states={
            f"{one.upstream}/{one.name}": (one.state, one.weight, one.retired)
            for one in plane.plane.runtime.endpoints()
        },
        told=[*plane.told, *plane.observed],
        notes=[*stage.notes, _bytes_in(stage)],
        lane={name: count for name, count in figures["worker"].items() if name.startswith("lane_")},
    )


def _record(record: AccessRecord, stage: Stage, ids: dict[str, str]) -> dict[str, object]:
    found = attrs.asdict(record, recurse=False)
    del found["ts"]
    found["id"] = ids.get(record.id, record.id)
    found["peer"] = stage.names.get(record.peer, record.peer)
    # A span that was too short for the clock is left out of a line, so only those that take a while are looked at.
    found["t"] = [phase for phase in ("tls", "queue", "connect", "first_byte") if getattr(record.t, phase)]
    found["attempts"] = [(one.endpoint, str(one.reason)) for one in record.attempts]
    found["detail"] = re.sub(r"\d+\.\d+s|\d+ bytes wait", "<some>", record.detail)
    if stage.row.torn:  # which half sees it first is chance
        found["detail"] = re.sub(r"while (sending|receiving)", "while <busy>", str(found["detail"]))
    if stage.row.pieces or stage.row.torn:
        del found["bytes_out"]
    if stage.row.ahead or stage.row.torn or not (stage.row.plain or len(stage.plane.records) == 1):
        # Where an exchange waits for anything, the client's next request may be read before its books are closed.
        del found["bytes_in"]
    return found


def _bytes_in(stage: Stage) -> dict[str, int]:
    """What the records of each client have together."""
    found: dict[str, int] = {}
    for record in stage.plane.records:
        name = stage.names.get(record.peer, record.peer)
        found[name] = found.get(name, 0) + (0 if stage.row.torn else record.bytes_in)
    return found


def _counters(key: str, counts: dict[str, int], row: Row) -> dict[str, int]:
    """Without what time decides; of a histogram only how much it holds."""
    kind = key.partition("/")[0]
    assert set(counts) == set(FIELDS[kind])
    found = {"durations": 0}
    for name, count in counts.items():
        if "_le_" in name:
            found["durations"] += count
        elif not name.endswith("_us") and name not in ("beat_ms", "generation") and not name.startswith("lane_"):
            found[name] = count
    if row.pieces or row.torn:
        found.pop("bytes_out", None)
    if row.torn:
        found.pop("bytes_in", None)
    return found


def unchunked(raw: bytes) -> bytes:
    """`raw` with each chunked body in one piece, its extensions and trailers shown.

    Where a sender cuts a body into chunks means nothing (RFC 9112 7.1), and depends on what came in one read.
    """
    out = b""
    while found := re.search(rb"\r\nTransfer-Encoding: chunked\r\n", raw, re.IGNORECASE):
        end = raw.find(b"\r\n\r\n", found.start()) + 4
        body, raw = _dechunk(raw[end:]) if end > 3 else (b"", b"")
        out, raw = out + (found.string[:end] if end > 3 else found.string) + body, raw
    return out + raw


def _dechunk(raw: bytes) -> tuple[bytes, bytes]:
    """(the body, what follows it)."""
    body = b""
    while line := re.match(rb"([0-9A-Fa-f]+)[ \t]*(;[^\r\n]*)?\r\n", raw):
        size, rest = int(line[1], 16), raw[line.end() :]
        body += b"<%b>" % line[2] if line[2] else b""
        if size == 0:
            trailers, ended, raw = (b"", b"\r\n", rest[2:]) if rest[:2] == b"\r\n" else rest.partition(b"\r\n\r\n")
            return body + (b"<end %b>" % trailers if ended else b"<cut>"), raw
        body, raw = body + rest[:size], rest[size + 2 :]
    return (body + b"<cut>" if body else body), raw


def _brief(raw: bytes) -> bytes:
    """A long one by its ends, its length and its digest: what a failing test shows stays readable."""
    if len(raw) <= 8000:
        return raw
    digest = hashlib.sha256(raw).hexdigest()[:16].encode()
    return b"%b<... %d bytes in all, sha256 %b ...>%b" % (raw[:2000], len(raw), digest, raw[-500:])


def differences(on: Seen, off: Seen) -> list[str]:
    """Where two runs differ, for a person; empty if they tell the same."""
    found: list[str] = []
    for part in attrs.fields(Seen):
        if part.name != "lane":
            found += _differ(part.name, getattr(on, part.name), getattr(off, part.name))
    return found


def _differ(at: str, on: object, off: object) -> list[str]:
    if isinstance(on, dict) and isinstance(off, dict) and on.keys() == off.keys():
        return [line for key in on for line in _differ(f"{at}[{key}]", on[key], off[key])]
    if isinstance(on, list | tuple) and isinstance(off, list | tuple) and len(on) == len(off):
        pairs = enumerate(zip(on, off, strict=True))
        return [line for index, (one, other) in pairs for line in _differ(f"{at}[{index}]", one, other)]
    return [] if on == off else [f"{at}\n  with the lane {on!r}\n  without it    {off!r}"]
