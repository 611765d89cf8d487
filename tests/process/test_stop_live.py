"""The end of a real gateway: whatever it cuts is written down, and counted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.conftest import Eventually
from tests.gateway import head_of, running


@pytest.mark.parametrize("twice", [False, True], ids=["the drain is over", "asked twice"])
async def test_what_a_stop_cuts_is_in_the_access_log_and_in_the_last_event(
    tmp_path: Path, free_port: Callable[[], int], nursery: trio.Nursery, eventually: Eventually, twice: bool
) -> None:
    asked = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(65536):
                asked.set()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, silent, listeners)
    origin, port = listeners[0].socket.getsockname()[1], free_port()
    events = tmp_path / "events.log"
    config = (
        head_of(tmp_path, more=f'drain = "{"30s" if twice else "300ms"}"')
        + f"""
events = "{events}"
[listeners.web]
bind = ["127.0.0.1:{port}"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{origin}"]
"""
    )
    async with running(tmp_path, config) as gateway:
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            await asked.wait()
            gateway.signal(signal.SIGTERM)
            if twice:
                await eventually(lambda: '"event":"draining"' in events.read_text(), what="the drain")
                gateway.signal(signal.SIGTERM)
            with trio.fail_after(30):
                assert await gateway.process.wait() == 0
        (line,) = gateway.access_lines()
    assert (line["reason"], line["generation"]) == ("drained", 1)
    told = events.read_text()
    assert '"event":"stopped"' in told
    assert '"cut":1' in told or twice  # asked twice, the event comes before the cut
    nursery.cancel_scope.cancel()
