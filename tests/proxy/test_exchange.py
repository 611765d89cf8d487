"""Exchanges through the real data plane: what goes up, what comes down, what is written."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.gateway import Recorder, plain_answer, talk
from tests.plane import serving


def config(port: int, more: str = "", route: str = "") -> str:
    """One listener, one route, one endpoint."""
    return f"""
[listeners.web]
bind = ["127.0.0.1:0"]
{more}
[routes.all]
upstream = "api"
{route}
[upstreams.api]
endpoints = ["127.0.0.1:{port}"]
"""


async def test_a_request_goes_up_and_its_answer_comes_down(tmp_path: Path, nursery: trio.Nursery) -> None:
    origin = Recorder(lambda head, body: plain_answer(b"hello", b"X-Origin: yes"))
    port = await nursery.start(origin.serve)
    async with serving(tmp_path, config(port)) as plane:
        said = await talk(plane.port(), b"GET /a?b=c HTTP/1.1\r\nHost: t.example\r\nConnection: close\r\n\r\n")
        record = await plane.record()
        counted = plane.counts("endpoint", f"api/127.0.0.1:{port}")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"\r\n\r\nhello")
    assert b"X-Origin: yes" in said
    head, body = origin.requests[0]
    assert (head.method, head.target, body) == (b"GET", b"/a?b=c", b"")
    assert dict(head.headers)[b"host"] == b"t.example"
    assert dict(head.headers)[b"x-forwarded-for"] == b"127.0.0.1"
    assert (record.status, record.reason, record.answered_by, record.route) == (200, "ok", "upstream", "all")
    assert record.endpoint == f"127.0.0.1:{port}"
    assert counted["attempts"] == counted["connects"] == counted["answers_good"] == 1
    assert counted["active"] == 0


async def test_a_body_is_sent_again_to_the_next_endpoint_when_the_first_refuses(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    origin = Recorder(lambda head, body: plain_answer(body))
    port = await nursery.start(origin.serve)
    text = config(port).replace("endpoints = [", 'balance = "first"\nendpoints = ["127.0.0.1:1", ')
    async with serving(tmp_path, text) as plane:
        said = await talk(
            plane.port(), b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        )
        record = await plane.record()
    assert said.endswith(b"hello")
    assert [(one.endpoint, one.reason) for one in record.attempts] == [
        ("127.0.0.1:1", "connect_refused"),
        (f"127.0.0.1:{port}", "ok"),
    ]
    assert [seen.connect_failures for seen in plane.observed] == [1]
