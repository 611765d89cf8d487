"""gRPC calls through the gateway, by grpcio's client: what the endpoint says, deadlines, and our own errors."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import grpc
import pytest
import trio

from tests.plane import TestPlane, serving
from tests.proxy.http2_client import http2_client
from tests.proxy.scripted import Play, config, origin, settled, silent, until

H2 = "http2 = true"
CALL = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


def message(data: bytes) -> bytes:
    """A gRPC message: not compressed, its length, itself."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def answered(data: bytes, *trailers: bytes) -> bytes:
    """A call's whole answer as an HTTP/1.1 origin can give it."""
    body = message(data)
    end = b"".join(b"%b\r\n" % line for line in trailers)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, end)


def says(answer: bytes, got: list[bytes] | None = None) -> Play:
    """An origin's play: it reads one unary call, and answers so."""

    async def play(stream: trio.SocketStream) -> None:
        request = await until(stream, b"\r\n0\r\n\r\n")
        if got is not None:
            got.append(request)
        await stream.send_all(answer)
        await stream.receive_some(1)

    return play


async def call(
    plane: TestPlane, request: bytes, *, deadline: float | None = None
) -> tuple[bytes | None, grpc.StatusCode, str]:
    """One unary call, with so many seconds: (response, code, details)."""

    def work() -> tuple[bytes | None, grpc.StatusCode, str]:
        with grpc.insecure_channel(f"127.0.0.1:{plane.port()}") as channel:
            try:
                response, told = channel.unary_unary("/t.Echo/Say").with_call(request, timeout=deadline)
            except grpc.RpcError as error:
                told = cast("grpc.Call", error)
                return None, told.code(), told.details() or ""
            return response, told.code(), told.details() or ""

    with trio.fail_after(30):
        return await trio.to_thread.run_sync(work)


async def test_a_unary_call_and_its_trailers_pass(tmp_path: Path, nursery: trio.Nursery) -> None:
    got: list[bytes] = []
    port = await origin(nursery, says(answered(b"world", b"grpc-status: 0", b"x-note: yes"), got))
    async with serving(tmp_path, config(port, listener=H2)) as plane:
        response, code, _ = await call(plane, b"hello")
        record = await plane.record()
    assert (response, code) == (b"world", grpc.StatusCode.OK)
    assert b"TE: trailers\r\n" in got[0]
    assert b"content-type: application/grpc\r\n" in got[0]
    assert message(b"hello") in got[0]
    assert (record.status, record.reason, record.detail, record.path) == (200, "ok", "", "/t.Echo/Say")


async def test_a_status_of_the_endpoints_passes_and_is_written_down(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, says(answered(b"", b"grpc-status: 5", b"grpc-message: no such thing")))
    async with serving(tmp_path, config(port, listener=H2)) as plane:
        _, code, details = await call(plane, b"hello")
        record = await plane.record()
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert (record.status, record.reason, record.detail) == (200, "ok", "grpc-status 5")


DENIES = """
[filters.no]
kind = "access"
deny = ["127.0.0.0/8"]
"""


@pytest.mark.parametrize(
    ("route", "more", "code", "reason"),
    [
        ("", "", grpc.StatusCode.UNAVAILABLE, "connect_refused"),
        ('path = "/other"', "", grpc.StatusCode.UNIMPLEMENTED, "no_route"),
        ('filters = ["no"]', DENIES, grpc.StatusCode.PERMISSION_DENIED, "denied"),
    ],
)
async def test_an_error_of_the_gateways_own_is_a_grpc_status(
    tmp_path: Path, route: str, more: str, code: grpc.StatusCode, reason: str
) -> None:
    async with serving(tmp_path, config(1, listener=H2, route=route) + more) as plane:
        response, told, details = await call(plane, b"hello")
        record = await plane.record()
    assert (response, told) == (None, code)
    assert f"reason={reason} request={record.id}" in details
    assert (record.status, record.reason) == (200, reason)
    assert record.detail.startswith(f"grpc-status {code.value[0]}")


async def test_an_error_is_one_head_that_is_also_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path, config(1, listener=H2)) as plane, http2_client(plane) as client:
        answer = await client.answer(await client.request("POST", fields=CALL, body=message(b"")))
    assert (answer.status, answer.ended, answer.trailers, answer.body) == (200, True, None, b"")
    assert answer.fields[b"content-type"] == b"application/grpc"
    assert answer.fields[b"grpc-status"] == b"14"
    assert b"content-length" not in answer.fields


async def test_a_call_ends_at_its_own_deadline(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, silent)
    async with serving(tmp_path, config(port, listener=H2)) as plane, http2_client(plane) as client:
        fields = [*CALL, (b"grpc-timeout", b"100m")]
        answer = await client.answer(await client.request("POST", fields=fields, body=message(b"")))
        record = await plane.record()
        await settled(plane, connections=1)
    assert answer.fields[b"grpc-status"] == b"4"
    assert (record.reason, record.status) == ("exchange_timeout", 200)
    assert record.detail == "grpc-status 4: the call's grpc-timeout allows 0.1s"


async def test_the_routes_time_counts_where_it_is_shorter(tmp_path: Path, nursery: trio.Nursery) -> None:
    port = await origin(nursery, silent)
    text = config(port, listener=H2, route='timeout = "100ms"')
    async with serving(tmp_path, text) as plane:
        _, code, _ = await call(plane, b"hello", deadline=60)
        record = await plane.record()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert record.detail == "grpc-status 4: the route allows 0.1s"


async def test_a_call_that_fails_behind_its_head_ends_with_a_status(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n0\r\n\r\n")
        await stream.send_all(answered(b"first")[:-5])  # and then it is lost

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        answer = await client.answer(await client.request("POST", fields=CALL, body=message(b"")))
        record = await plane.record()
    assert (answer.status, answer.body, answer.reset) == (200, message(b"first"), None)
    assert dict(answer.trailers or ())[b"grpc-status"] == b"14"
    assert (record.reason, record.status) == ("upstream_incomplete", 200)


async def test_a_stream_of_messages_flows_both_ways_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    async def play(stream: trio.SocketStream) -> None:
        for index in range(5):
            await until(stream, b"ping%d" % index)
            if index == 0:
                await stream.send_all(answered(b"")[: -len(b"5\r\n\0\0\0\0\0\r\n0\r\n\r\n")])
            await stream.send_all(b"a\r\n%b\r\n" % message(b"pong%d" % index))
        await until(stream, b"0\r\n\r\n")
        await stream.send_all(b"0\r\ngrpc-status: 0\r\n\r\n")

    async with (
        serving(tmp_path, config(await origin(nursery, play), listener=H2)) as plane,
        http2_client(plane) as client,
    ):
        number = await client.request("POST", fields=CALL, end=False)
        for index in range(5):  # each is sent only when the last was answered
            await client.send(number, message(b"ping%d" % index))
            with trio.fail_after(30):
                while b"pong%d" % index not in client.answers[number].body:
                    assert await client.hear()
        client.h2.end_stream(number)
        await client.flush()
        answer = await client.answer(number)
    assert answer.trailers == [(b"grpc-status", b"0")]
    assert answer.body == b"".join(message(b"pong%d" % index) for index in range(5))


async def test_what_is_no_call_gets_an_ordinary_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, config(1, listener=H2)) as plane, http2_client(plane) as client:
        answer = await client.answer(await client.request("POST", fields=[(b"content-type", b"application/grpc-web")]))
    assert answer.status == 502
    assert b"grpc-status" not in answer.fields
