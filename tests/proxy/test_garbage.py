"""What an exchange leaves behind: nothing for the garbage collector, on either path."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.gateway import Recorder, plain_answer, talk
from tests.plane import serving

PLAIN = b"GET / HTTP/1.1\r\nHost: t\r\n%b\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n%b\r\n2\r\nhi\r\n0\r\n\r\n"
"""No plain one: a task serves it."""
COUNT = 20


@pytest.mark.parametrize("request_", [PLAIN, CHUNKED], ids=["plain", "readable"])
async def test_exchanges_and_their_connections_leave_no_circles(
    tmp_path: Path, nursery: trio.Nursery, request_: bytes
) -> None:
    port = await nursery.start(Recorder(lambda head, body: plain_answer(b"hello")).serve)
    text = f"""
[listeners.web]
bind = ["127.0.0.1:0"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{port}"]
"""
    async with serving(tmp_path, text) as plane:

        async def exchanges() -> None:
            wanted = len(plane.records) + COUNT
            for _ in range(COUNT):
                assert (await talk(plane.port(), request_ % b"Connection: close\r\n")).endswith(b"hello")
            await plane.record(wanted)
            await trio.testing.wait_all_tasks_blocked()

        await exchanges()
        gc.collect()
        gc.disable()
        try:
            await exchanges()
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("tcpgate."))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left
