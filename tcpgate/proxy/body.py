"""A request's content: read from the client once, as it is wanted, and kept while small so that it can be sent again.

Backpressure is the whole design: a chunk is read only when an attempt asks for it, so at most one read's worth of a body
is in memory, plus what is kept for a replay (`retry.replay`).

Owner: the exchange; one attempt reads at a time. Cancelled while it reads: nothing is lost, the next `read` goes on.
"""

from __future__ import annotations

import math

from tcpgate.codec.events import Closed, Data, EndOfBody, NO_FIELDS, NeedData
from tcpgate.codec.http1 import ServerCodec
from tcpgate.config import schema
from tcpgate.errors import Bug, ClientError, Reason
from tcpgate.net.stream import Stream
from tcpgate.policy.pace import Pace


class RequestBody:
    """The content of one request."""

    def __init__(
        self, stream: Stream, codec: ServerCodec, limit: int, timeouts: schema.ClientTimeouts
    ) -> None:
        self._stream = stream
        self._codec = codec
        self._limit = limit
        self.replay = 0
        """Bytes that may be kept for another attempt; the upstream's, once it is known."""
        self._pace = Pace(min_rate=timeouts.min_rate, grace=timeouts.stall)
        self._kept: list[bytes] = []
        self._kept_size = 0
        self.size = 0
        """Bytes of content read so far, without framing."""
        self.replayable = True
        """Whether everything read so far is still here."""
        self.complete = False
        self.trailers = NO_FIELDS

    async def read(self, index: int) -> bytes | None:
        """Chunk number `index`, from what is kept or from the client; None at the end.

        An attempt asks for 0, 1, 2, ... in order. ClientError if the client is slow, gone, or breaks its framing.
        """
        if index < len(self._kept) and self.replayable:
            return self._kept[index]
        if self.complete:
            return None
        return await self._receive()

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
            # A client that waits for our 100 is not slow: until it has been told to go on, only other deadlines count.
            pace = None if self._codec.waiting_for_continue else self._pace
            self._codec.receive(await self._stream.receive_some(deadline=math.inf, pace=pace))

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
        self._kept_size += len(data)
        if self.replayable and self._kept_size <= self.replay:
            self._kept.append(data)
        elif self.replayable:
            self.replayable = False
            self._kept.clear()
        return data
