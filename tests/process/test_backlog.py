"""Who waits in the backlog of a listener that a reload removes is served by what that listener was, not dropped."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tcpgate.state import messages
from tcpgate.stats.page import SharedPage
from tests.process.test_worker import page, seated

__all__ = ["page"]  # the fixture

KEEP = '[listeners.keep]\nbind = ["127.0.0.1:0"]\n[routes.r]\nlisteners = ["keep"]\nrespond = {}\n'
TCP = """[listeners.gone]
protocol = "tcp"
bind = ["127.0.0.2:0"]
upstream = "pg"
[upstreams.pg]
endpoints = ["127.0.0.1:1"]
"""
HTTP = """[listeners.gone]
bind = ["127.0.0.2:0"]
[routes.w]
listeners = ["gone"]
respond = { body = "hello" }
"""


@pytest.mark.parametrize(("gone", "said"), [(TCP, b""), (HTTP, b"HTTP/1.1 200 OK")], ids=["tcp", "http"])
async def test_a_listener_removed_with_all_it_names_still_serves_who_waits(
    gone: str,
    said: bytes,
    tmp_path: Path,
    page: SharedPage,  # pytest's way to name a fixture
) -> None:
    async with seated(tmp_path, page) as seat:
        await seat.serve(1, KEEP + gone)
        await seat.prepare(2, seat.config(KEEP))
        assert await seat.answer(messages.Prepared, 2) is None
        with socket.create_connection(seat.sockets["127.0.0.2:0"].getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            seat.worker._obey(messages.Commit(generation=2), [])  # before any accept loop has had a turn
            await seat.answer(messages.Committed, 2)
            client.settimeout(5)
            try:
                answer = await trio.to_thread.run_sync(client.recv, 4096)
            except ConnectionResetError:  # the flow's endpoint refuses, which the client sees as a reset
                answer = b""
        assert answer.startswith(said)
