"""The shared page: counters and gauges of every process in one memfd, without a lock.

Theory of operation. The supervisor makes the memfd: `pages` equal pages of 64-bit signed slots. Page 0 is the
supervisor's, page n is worker n's. A process writes only its own page and may read all of them, so a sum over pages
is the host's truth, a metric needs no message, and least-connections sees every worker. A slot is one aligned 8-byte
word, which the CPU writes whole; there is no torn read and nothing to lock. A page outlives its worker: the worker
that takes its place goes on counting where it stopped, so a counter never goes back. What must not outlive it (gauges
such as exchanges in flight) the supervisor zeroes when the worker is gone (`zero_gauges`), before the next one
starts.

What stands where is the supervisor's to decide (`Layout`) and travels with each generation: a series key
("endpoint/api/10.0.0.1:80") has a block of consecutive slots, one per field of its kind. A key keeps its block for
the whole run, so a reload that removes and brings back an endpoint goes on counting. The memfd is sparse: a slot that
nobody touched costs no memory. Reading is touching (the kernel fills what is read through a mapping), so sum over the
pages of the workers that there were, not over all.

Pure but for the mapping itself. Source: single-writer counters as in HAProxy's shm-stats-file and Linux per-CPU
counters.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

from tcpgate.stats import histogram

SLOT_BYTES = 8
SLOTS_PER_PAGE = 1 << 20
"""8 MiB of address space a page; sparse, so only what is used is paid for. 10,000 routes take 250,000."""
MAX_PAGES = 65
"""The supervisor and 64 workers."""

WORKER_FIELDS = (
    "beat_ms",  # CLOCK_MONOTONIC in ms when the loop last turned
    "lag_us",  # how late the loop was then
    "generation",
    "connections",  # gauge: open downstream connections
    "accepted",
    "exchanges",
    "cut",  # exchanges and flows that a drain or a removal ended
    "log_dropped",
    "bytes_in",
    "bytes_out",
    "lane_exchanges",  # that the lane moved from the head to the last byte, and flows; a part of `exchanges`
    "lane_handed",  # that the lane began to look at, and a task finished
    "lane_faults",  # bugs in the lane, each of which cost one connection
    "gc_pauses_us",  # garbage collector, all its pauses together
    "gc_longest_us",  # the longest one since the worker began to serve; no sum of workers means anything
)
LISTENER_FIELDS = (
    "connections",  # gauge: open connections
    "accepted",
    "refused",
    "exchanges",
    "bytes_in",
    "bytes_out",
    "bad_requests",
    "handshakes",  # TLS handshakes that were completed, resumed ones too
    "handshakes_resumed",
    "handshakes_failed",
)
ROUTE_FIELDS = (
    "exchanges",
    "status_1xx",
    "status_2xx",
    "status_3xx",
    "status_4xx",
    "status_5xx",
    "by_gateway",
    *histogram.field_names("total"),  # from an exchange's first byte to its last
)
ENDPOINT_FIELDS = (
    "active",  # gauge: exchanges (L7) or flows (L4) in flight
    "connections",  # gauge: open connections, idle ones too
    "attempts",
    "answers_good",
    "answers_bad",
    "connect_failures",
    "connects",
    "reused",
    "bytes_in",  # from the endpoint
    "bytes_out",  # to the endpoint
    *histogram.field_names("first_byte"),  # from the request's end to the response head; the connect of a flow (L4)
)
FIELDS: Mapping[str, tuple[str, ...]] = {
    "worker": WORKER_FIELDS,
    "listener": LISTENER_FIELDS,
    "route": ROUTE_FIELDS,
    "endpoint": ENDPOINT_FIELDS,
}
OFFSETS: Mapping[str, Mapping[str, int]] = {
    kind: {field: offset for offset, field in enumerate(fields)} for kind, fields in FIELDS.items()
}
"""Kind -> field -> its slot, counted from the block's first. A histogram is given by its first field."""
GAUGES: Mapping[str, tuple[str, ...]] = {
    "worker": ("connections",),
    "listener": ("connections",),
    "endpoint": ("active", "connections"),
}


class Layout:
    """Which block of slots each series key has. The supervisor's; workers get `blocks` with each generation."""

    def __init__(self) -> None:
        self.blocks: dict[str, int] = {"worker": 0}
        self._next = len(WORKER_FIELDS)

    def reserve(self, kind: str, name: str) -> int:
        """The first slot of `kind/name`, the same for the whole run; MemoryError if the page is full."""
        key = f"{kind}/{name}"
        block = self.blocks.get(key)
        if block is None:
            block = self._next
            if block + len(FIELDS[kind]) > SLOTS_PER_PAGE:
                raise MemoryError(
                    f"the shared page has no room for {key}: {SLOTS_PER_PAGE} slots are in use, with those of names "
                    "that reloads have removed; a restart forgets these"
                )
            self.blocks[key] = block
            self._next += len(FIELDS[kind])
        return block


class SharedPage:
    """All pages of the memfd, mapped. `fd` stays open for handing on; the caller closes it."""

    def __init__(self, fd: int, pages: int = MAX_PAGES) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, pages * SLOTS_PER_PAGE * SLOT_BYTES)
        view = memoryview(self._map).cast("q")
        self.pages = [view[i * SLOTS_PER_PAGE : (i + 1) * SLOTS_PER_PAGE] for i in range(pages)]
        self._view = view

    def total(self, slot: int, processes: int) -> int:
        """The sum of `slot` over the supervisor's page and the first `processes` workers' pages."""
        total = 0
        for page in self.pages[: processes + 1]:
            total += page[slot]
        return total

    def zero_gauges(self, index: int, blocks: Mapping[str, int]) -> None:
        """Forget what the worker of page `index` had in flight: it is gone, and its connections with it."""
        page = self.pages[index]
        for key, block in blocks.items():
            kind = key.partition("/")[0]
            for field in GAUGES.get(kind, ()):
                page[block + OFFSETS[kind][field]] = 0

    def close(self) -> None:
        """Unmap. Views handed out must no longer be used."""
        for page in self.pages:
            page.release()
        self._view.release()
        self._map.close()


def size_of(pages: int = MAX_PAGES) -> int:
    """Bytes that the memfd must be truncated to."""
    return pages * SLOTS_PER_PAGE * SLOT_BYTES
