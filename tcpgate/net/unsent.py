"""What is still to be sent of a list of buffers, after the kernel took a part of it.

sendmsg(2) may stop in the middle of any buffer. Nothing is copied: the rest is views of the caller's own buffers, which
must not change until all has gone. Pure bookkeeping; used by `stream.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


class Unsent:
    """What is still to be sent of a list of buffers."""

    def __init__(self, buffers: Sequence[Buffer], sent: int) -> None:
        self.buffers = [memoryview(buffer) for buffer in buffers if buffer]
        self.size = sum(map(len, self.buffers))
        self.drop(sent)

    def drop(self, count: int) -> None:
        """`count` bytes have gone."""
        self.size -= count
        whole = 0
        while count and count >= len(self.buffers[whole]):
            count -= len(self.buffers[whole])
            whole += 1
        del self.buffers[:whole]
        if count:
            self.buffers[0] = self.buffers[0][count:]
