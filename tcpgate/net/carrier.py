"""What an exchange asks of the thing that carries its bytes: a whole connection (`stream.Stream`), or one stream of a
connection that carries many (HTTP/2).

Whoever holds a `Carrier` may not look through it at a socket: only what is `plain` has one of its own.

Source: the interface of `net/stream.py`, less the socket. Owner: the task of the exchange.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from tcpgate.errors import Reason, Side
from tcpgate.net.stream import READ_SIZE, Pacing
from tcpgate.net.unsent import Buffer


class Carrier(Protocol):
    """One direction each way, between us and one peer."""

    side: Side
    """Who is at the other end."""
    peer: str
    """The other end's address, for logs."""
    bytes_in: int
    bytes_out: int

    @property
    def closed(self) -> bool:
        """We have ended it."""
        ...

    @property
    def poisoned(self) -> bool:
        """A send was cut after a part of its data: nothing that is sent now would be understood."""
        ...

    @property
    def plain(self) -> bool:
        """Whether its bytes are exactly those of a socket of its own."""
        ...

    def receive_nowait(self, max_bytes: int = READ_SIZE) -> bytes | None:
        """What is here now: bytes, b"" at the peer's end of stream, None if there is nothing yet."""
        ...

    async def receive_some(
        self,
        max_bytes: int = READ_SIZE,
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> bytes:
        """At least one byte, or b"" at the peer's end of stream; errors as `Stream.receive_some` has them."""
        ...

    async def wait_readable(
        self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT, pace: Pacing | None = None
    ) -> None:
        """Until there may be something to receive."""
        ...

    def send_nowait(self, data: Buffer) -> int:
        """How many bytes of `data` were taken; 0 if there is no room now."""
        ...

    async def send_all(
        self,
        data: Buffer | Sequence[Buffer],
        *,
        deadline: float = math.inf,
        late: Reason = Reason.EXCHANGE_TIMEOUT,
        pace: Pacing | None = None,
    ) -> None:
        """Hand all of `data` on; errors as `Stream.send_all` has them."""
        ...

    async def wait_writable(self, *, deadline: float = math.inf, late: Reason = Reason.EXCHANGE_TIMEOUT) -> None:
        """Until there may be room."""
        ...

    async def wait_flushed(self, deadline: float) -> None:
        """Until the peer has everything, as far as that can be known, or `deadline`."""
        ...

    def charge(self, count: int) -> None:
        """`count` bytes were moved without letting others run."""
        ...

    async def breathe(self) -> None:
        """Let other tasks run if this carrier has had its share."""
        ...

    def shut_write(self) -> None:
        """Send our end of stream; receiving goes on."""
        ...

    def close(self) -> None:
        """End both directions in good order."""
        ...

    def abort(self) -> None:
        """End it so that the peer cannot take a cut stream for a whole one."""
        ...
