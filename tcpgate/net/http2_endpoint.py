"""One stream that we open on an endpoint's HTTP/2 connection, as an exchange's carrier.

The stream begins when the request's header block is sent, and has no number before: numbers must go out in the order
of the heads (RFC 9113 5.1.1), and an exchange that holds a stream may yet take its time with its head.

What came before the stream was lost is still given, then comes the loss: as on a connection of its own.

Source: RFC 9113 5.1, 8.1. Owner: the exchange's tasks.
"""

from __future__ import annotations

from collections.abc import Callable

from tcpgate.codec.http2.events import StreamGone
from tcpgate.codec.http2_client_stream import ClientStream
from tcpgate.codec.http2_stream import Block, LastBlock
from tcpgate.errors import GateError, Reason, Retry, UpstreamError
from tcpgate.net.http2_link import Http2Link
from tcpgate.net.http2_stream import HEAD_SIZE, StreamCarrier
from tcpgate.net.stream import READ_SIZE

RESET_SIZE = 13
"""Bytes of a RST_STREAM frame."""


class EndpointCarrier(StreamCarrier):
    """One stream to an endpoint; its number is 0 until it has begun."""

    def __init__(self, link: Http2Link, codec: ClientStream, opened: Callable[[int], None]) -> None:
        """`opened`: told the stream's number when it begins."""
        super().__init__(link, 0, codec.inflow)
        self._codec = codec
        self._opened: Callable[[int], None] | None = opened

    # -- what the connection's reader tells -------------------------------------------------------------------------

    def heard_answer(self, size: int) -> None:
        """A head of so many bytes came; the codec has it."""
        self.bytes_in += size
        self.heard_head()

    def fail(self, exc: GateError) -> None:
        """The stream is over before its time: by what happened to the connection, or to it alone."""
        retry = exc.retry if self.number else Retry.ANEW  # else its head has not gone
        super().fail(self._cut(UpstreamError(exc.reason, exc.detail, retry=retry)))

    def _cut(self, exc: GateError) -> GateError:
        """What a loss is called once an answer has begun."""
        if exc.reason is Reason.UPSTREAM_CLOSED and self._codec.answered:
            return UpstreamError(Reason.UPSTREAM_INCOMPLETE, exc.detail)
        return exc

    def fail_by_reset(self, exc: GateError) -> None:
        """The endpoint has ended it, or we did for a fault of the endpoint's: some word of its came, at least."""
        self.bytes_in += RESET_SIZE
        self.fail(exc)

    # -- receiving --------------------------------------------------------------------------------------------------

    def receive_nowait(self, max_bytes: int = READ_SIZE) -> bytes | None:
        """As `Stream.receive_nowait`; also b"" where a head came and nothing else."""
        heard, self._news_of_head = self._news_of_head, False
        inflow = self._inflow
        if inflow.size:
            data = inflow.take(max_bytes)
            self.bytes_in += len(data)
            self._link.machine.acknowledge(self.number, len(data))
            self._link.wake()
            return data
        if heard or inflow.ended:
            return b""
        if self.lost is not None:
            raise self._cut(self.lost)  # the answer may have begun in the last that came
        return None

    def reset(self, code: int) -> None:
        """As `StreamCarrier.reset`."""
        self._opened = None
        super().reset(code)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send_block(self, block: Block) -> None:
        if self.number:
            super()._send_block(block)
            return
        if self.lost is not None:
            raise self.lost
        self.write_ended = isinstance(block, LastBlock)
        try:
            self.number = self._link.machine.open_block(block, self._codec.method, self.write_ended)
        except StreamGone as exc:
            # SETTINGS have taken back what was promised, or the endpoint has just said that the connection ends.
            raise UpstreamError(Reason.UPSTREAM_CLOSED, "it takes no more streams", retry=Retry.ANEW) from exc
        opened, self._opened = self._opened, None
        if opened is not None:
            opened(self.number)  # who it is for knows us: no circle may be left for the collector
        self.bytes_out += HEAD_SIZE + len(block)
        self._link.wake()
