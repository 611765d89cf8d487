"""A request's content: read from the client once, as it is wanted, and kept while small so that it can be sent again.

Backpressure is the whole design: a chunk is read only when an attempt asks for it, so at most one read's worth of a
body is in memory, plus what is kept for a replay (`retry.replay`).

Owner: the exchange; one attempt reads at a time. Cancelled while it reads: nothing is lost, the next `read` goes on.
"""

from __future__ import annotations

import trio

from tcpgate.codec.events import NO_FIELDS, Closed, Data, EndOfBody, Framing, Kind, NeedData
from tcpgate.codec.sides import ServerSide
from tcpgate.config import schema
from tcpgate.errors import Bug, ClientError, Reason
from tcpgate.net.carrier import Carrier
from tcpgate.policy.pace import Pace


class RequestBody:
    """The content of one request."""

    def __init__(
        self, stream: Carrier, codec: ServerSide, framing: Framing, limit: int, timeouts: schema.ClientTimeouts
    ) -> None:
        self._stream = stream
        self._codec = codec
        self._framing = framing
        self._limit = limit
        self._timeouts = timeouts
        self._pace: Pace | None = None
        self.replay = 0
        """Bytes that may be kept for another attempt; the upstream's, once it is known."""
        self._kept: list[bytes] = []
        self.size = 0
        """Bytes of content read so far, without framing."""
        self.replayable = True
        """Whether everything read so far is still here."""
        self.complete = False
        self.trailers = NO_FIELDS
        self._waiting_to_go_on: trio.CancelScope | None = None
        """Around the wait of a read for a client that waits for our 100."""

    @property
    def is_here(self) -> bool:
        """Whether reading to the end needs nothing more of the client: there is no body, or all of it has come."""
        kind = self._framing.kind
        return (
            kind is Kind.NONE
            or self.complete
            or (kind is Kind.LENGTH and (self._framing.length or 0) <= self.size + self._codec.buffered)
        )

    async def read(self, index: int) -> bytes | None:
        """Chunk number `index`, from what is kept or from the client; None at the end.

        An attempt asks for 0, 1, 2, ... in order. ClientError if the client is slow, gone, or breaks its framing.
        """
        if index < len(self._kept):
            return self._kept[index]
        if self.complete:
            return None
        return await self._receive()

    def go_on(self) -> None:
        """The client has been told 100: from now on its pace counts, for a read that waits already too."""
        if self._waiting_to_go_on is not None:
            self._waiting_to_go_on.cancel()

    async def _receive(self) -> bytes | None:
        while True:
            event = self._codec.next_event()
            if isinstance(event, Data):
                return self._keep(event.data)
            if isinstance(event, EndOfBody):
                self.complete = True
                self.trailers = event.trailers
                return None
            if isinstance(event, Closed):
                raise ClientError(Reason.CLIENT_ABORT, "closed in the middle of the request body")
            if not isinstance(event, NeedData):
                raise Bug(f"the codec gave {event!r} inside a request body")
            await self._receive_more()

    async def _receive_more(self) -> None:
        # A client that waits for our 100 is not slow: until it has been told to go on, only other deadlines count.
        if self._codec.waiting_for_continue:
            with trio.CancelScope() as self._waiting_to_go_on:
                self._codec.receive(await self._stream.receive_some())
            self._waiting_to_go_on = None
            return
        if self._pace is None:
            self._pace = Pace(min_rate=self._timeouts.min_rate, grace=self._timeouts.stall)
        self._codec.receive(await self._stream.receive_some(pace=self._pace))

    def discard(self) -> bool:
        """Throw away what is here of the rest, without waiting; whether that was all of it."""
        try:
            while not self.complete:
                event = self._codec.next_event()
                self.complete = isinstance(event, EndOfBody)
                if not isinstance(event, Data):
                    break
        except ClientError:
            pass  # it is about to be answered and closed anyhow
        return self.complete

    def _keep(self, data: bytes) -> bytes:
        self.size += len(data)
        if self.size > self._limit:
            raise ClientError(Reason.BODY_TOO_LARGE, f"the body passes the limit of {self._limit} bytes")
        if self.replayable and self.size <= self.replay:
            self._kept.append(data)
        elif self.replayable:
            self.replayable = False
            self._kept.clear()
        return data
