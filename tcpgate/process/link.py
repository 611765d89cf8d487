"""The link between supervisor and worker: whole messages both ways, file descriptors down.

Who may say what. Down, from the privileged side, a body is a pickle: a whole config in one call. Up it is JSON of a
class in the closed table `UP`, checked field by field: a worker touches users' bytes, and one that was taken over
must not be able to make the supervisor unpickle, which is to run, anything; nor to hand it fds, nor to make it hold
more than `UP_LIMIT`.

Neither side waits for a stuck other one: `send_nowait` gives the socket what it takes, and keeps the rest, up to a
bound, for `send_forever`. All messages leave in the order in which they were given, by whichever way. A message of
which a byte has left is finished by whoever sends next, so a send that is cancelled tears nothing.

Owner of `receive` and `send_forever`: the worker's root nursery, and the supervisor's task of that worker.
`frames.py` says how it moves; in tests `memory_link_pair` does without a socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs
import cattrs
import trio
from cattrs.strategies import configure_union_passthrough

from tcpgate.process.frames import Frame, LinkClosed, Pipe, SocketPipe, duplicates, memory_pipes
from tcpgate.state import messages
from tcpgate.state.messages import Down, Up

__all__ = ["Link", "LinkClosed", "SupervisorLink", "WorkerLink", "memory_link_pair", "supervisor_link", "worker_link"]

DOWN_LIMIT = 256 << 20
"""Bytes of one message down: room for a config of a million routes."""
UP_LIMIT = 64 << 10
"""Bytes of one message up."""
QUEUE_LIMIT = 4 << 20
"""Bytes that may wait, with nobody waiting for them, for the other side to read."""

Out = TypeVar("Out")
In = TypeVar("In")


# -- what a body is -------------------------------------------------------------------------------------------------


@attrs.frozen
class Codec(Generic[Out, In]):
    """How one side writes and reads bodies."""

    encode: Callable[[Out], bytes]
    decode: Callable[[bytes], In]
    """Raises ValueError."""
    out_limit: int
    in_limit: int
    takes_fds: bool


UP: dict[str, type[Up]] = {
    kind.__name__: kind for kind in (messages.Prepared, messages.Committed, messages.Observed, messages.Told)
}
"""What a worker can say; nothing else is ever made of its bytes."""


def _strict() -> cattrs.Converter:
    """JSON to attrs without a guess: no key too many, no "3" for 3, no 1 for True."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for scalar in (str, int, float, bool):
        converter.register_structure_hook(scalar, _exactly)
    configure_union_passthrough(str | int | float, converter)
    return converter


def _exactly(value: object, kind: type) -> object:
    if type(value) is not kind:
        raise ValueError(f"not {kind.__name__}")
    return value


_CONVERTER = _strict()


def encode_up(message: Up) -> bytes:
    """`message` as JSON: its class's name and its fields."""
    return json.dumps([type(message).__name__, _CONVERTER.unstructure(message)]).encode()


def decode_up(body: bytes) -> Up:
    """What a worker said; ValueError for anything that no honest one says."""
    try:
        name, fields = json.loads(body)
        if not isinstance(fields, dict):
            raise TypeError("fields are not by name")
        return _CONVERTER.structure(fields, UP[name])
    except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as exc:
        raise ValueError(f"{body[:80]!r} is no message: {type(exc).__name__}") from exc
    except RecursionError:  # "[[[[[[..."; not chained, its traceback is a thousand frames
        raise ValueError(f"{body[:80]!r} is no message: nested without end") from None


def encode_down(message: Down) -> bytes:
    """`message` as a pickle."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def decode_down(body: bytes) -> Down:
    """What the supervisor said. It started this process and can do with it what it likes, so its pickle adds no
    risk."""
    message: Down = pickle.loads(body)
    return message


SUPERVISOR: Codec[Down, Up] = Codec(encode_down, decode_up, DOWN_LIMIT, UP_LIMIT, takes_fds=False)
WORKER: Codec[Up, Down] = Codec(encode_up, decode_down, UP_LIMIT, DOWN_LIMIT, takes_fds=True)


# -- the link -------------------------------------------------------------------------------------------------------


class Link(Generic[Out, In]):
    """One end: says `Out`, hears `In`."""

    def __init__(self, codec: Codec[Out, In], pipe: Pipe) -> None:
        self.closed = False
        """Whether this end was closed, or found out that the other one is."""
        self.dropped = 0
        """Messages that `send_nowait` had no room for."""
        self._codec = codec
        self._pipe = pipe
        self._frames: deque[Frame] = deque()
        self._unattended = 0  # bytes of the frames that nobody waits for
        self._pushing = trio.Lock()
        self._some = trio.Event()

    async def send(self, message: Out, fds: Sequence[int] = ()) -> None:
        """Send, after what waits already; returns once the socket has it. Raises LinkClosed.

        Cancelled, it was sent whole or not at all; not at all unless a byte of it had left.
        """
        frame = self._enqueue(message, fds, patient=True)
        try:
            async with self._pushing:
                await self._push_until(frame)
        finally:
            if not frame.gone and not frame.left:
                self._frames.remove(frame)
                self._let_go(frame)
            self._wake()

    def send_nowait(self, message: Out) -> bool:
        """Send now, or as soon as `send_forever` can; False, and counted, if too much waits already.

        On a closed link it does nothing: whoever must know learns it from `receive`.
        """
        if self.closed:
            return False
        if self._unattended > QUEUE_LIMIT:
            self.dropped += 1
            return False
        self._enqueue(message, (), patient=False)
        if not self._pushing.locked():
            with contextlib.suppress(LinkClosed):
                self._push_nowait()
        self._wake()
        return True

    async def send_forever(self) -> None:
        """Send on what `send_nowait` had to leave; returns when the link is closed."""
        with contextlib.suppress(LinkClosed):
            while not self.closed:
                await self._some.wait()
                self._some = trio.Event()
                async with self._pushing:
                    while self._frames:
                        await self._push_until(self._frames[0])

    async def receive(self) -> tuple[In, list[int]]:
        """The next message and its fds, which are the caller's to close. Raises LinkClosed. Cancelled, it loses
        nothing.

        Only one task may receive.
        """
        try:
            body, fds = await self._pipe.pull()
            return self._decode(body, fds), fds
        except LinkClosed:
            self.close()
            raise

    def close(self) -> None:
        """End it: the other side finds out, and tasks that wait here get LinkClosed."""
        self._give_up()
        self._pipe.close()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _enqueue(self, message: Out, fds: Sequence[int], *, patient: bool) -> Frame:
        if self.closed:
            raise LinkClosed("the link is closed")
        body = self._codec.encode(message)
        if len(body) > self._codec.out_limit:
            kind = type(message).__name__
            raise ValueError(f"a {kind} of {len(body)} bytes is more than the link carries ({self._codec.out_limit})")
        frame = Frame(body, duplicates(fds), patient=patient)
        self._frames.append(frame)
        self._unattended += 0 if patient else len(body)
        return frame

    def _push_nowait(self) -> None:
        """Push frames while the other side takes them. Raises LinkClosed."""
        try:
            while self._frames and self._pipe.push_nowait(self._frames[0]):
                self._let_go(self._frames.popleft())
        except LinkClosed:
            # Not `close`: what the other side said before its end can still be received.
            self._give_up()
            raise

    async def _push_until(self, frame: Frame) -> None:
        """Push frames in their order, until `frame` is gone."""
        await trio.lowlevel.checkpoint()
        while not frame.gone:
            self._push_nowait()
            if not frame.gone:
                await self._pipe.wait_pushable()
        if self.closed:
            raise LinkClosed("the link was closed while the message was on its way")

    def _let_go(self, frame: Frame) -> None:
        frame.gone = True
        frame.close()
        self._unattended -= 0 if frame.patient else len(frame.body)

    def _give_up(self) -> None:
        """Nothing more is sent."""
        self.closed = True
        while self._frames:
            self._let_go(self._frames.popleft())
        self._some.set()

    def _wake(self) -> None:
        if self._frames:
            self._some.set()

    def _decode(self, body: bytes, fds: list[int]) -> In:
        try:
            if fds and not self._codec.takes_fds:
                raise ValueError("it came with fds, which it may not")
            return self._codec.decode(body)
        except ValueError as exc:
            for fd in fds:
                os.close(fd)
            raise LinkClosed(f"the other side cannot be believed: {exc}") from exc


SupervisorLink = Link[Down, Up]
WorkerLink = Link[Up, Down]


def supervisor_link(sock: socket.socket) -> SupervisorLink:
    """The supervisor's end, over its socket of a SOCK_STREAM socketpair."""
    return Link(SUPERVISOR, SocketPipe(sock, limit=UP_LIMIT, takes_fds=False))


def worker_link(sock: socket.socket) -> WorkerLink:
    """The worker's end."""
    return Link(WORKER, SocketPipe(sock, limit=DOWN_LIMIT, takes_fds=True))


def memory_link_pair() -> tuple[SupervisorLink, WorkerLink]:
    """Both ends in one process, through memory."""
    ours, theirs = memory_pipes()
    return Link(SUPERVISOR, ours), Link(WORKER, theirs)
