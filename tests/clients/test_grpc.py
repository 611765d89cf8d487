"""gRPC's own client and server with the gateway between: every kind of call, deadlines, cancels, errors, health."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
import trio

from tests.clients.conftest import Pki, next_port
from tests.gateway import head_of, running

pytestmark = pytest.mark.slow


def _bytes(data: bytes) -> bytes:
    return data


@attrs.define(eq=False)
class Service:
    """A gRPC server of bytes in, bytes out."""

    port: int = 0
    cancelled: threading.Event = attrs.field(factory=threading.Event)
    """A call that waited was cancelled by its client."""
    deadline: list[float] = attrs.field(factory=list)
    """Seconds that the last call of `wait` had left."""

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Give it back, with a trailer."""
        context.set_trailing_metadata((("x-trailer", "told"),))
        return request[::-1]

    def many_out(self, request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        """So many messages as the request says."""
        for number in range(int(request)):
            yield b"%d " % number * 100

    def many_in(self, requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        """How many bytes came in how many messages."""
        sizes = [len(request) for request in requests]
        return b"%d %d" % (len(sizes), sum(sizes))

    def both(self, requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        """Each one back as it comes."""
        for request in requests:
            yield request.upper()

    def wait(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        """Never answer."""
        self.deadline.append(context.time_remaining() or 0.0)
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(30)
        self.cancelled.set()
        return b""

    def fail(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        """An error of the service's own, with words that have to be escaped."""
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet: 100 % of ü")
        return b""


def _health(_: bytes, __: grpc.ServicerContext) -> bytes:
    return b"\x08\x01"  # grpc.health.v1.HealthCheckResponse: status SERVING


@pytest.fixture
def service() -> Iterator[Service]:
    """A server that runs, without TLS."""
    made = Service()
    kinds: dict[str, Any] = {
        "unary": grpc.unary_unary_rpc_method_handler(made.unary, _bytes, _bytes),
        "many_out": grpc.unary_stream_rpc_method_handler(made.many_out, _bytes, _bytes),
        "many_in": grpc.stream_unary_rpc_method_handler(made.many_in, _bytes, _bytes),
        "both": grpc.stream_stream_rpc_method_handler(made.both, _bytes, _bytes),
        "wait": grpc.unary_unary_rpc_method_handler(made.wait, _bytes, _bytes),
        "fail": grpc.unary_unary_rpc_method_handler(made.fail, _bytes, _bytes),
    }
    health = {"Check": grpc.unary_unary_rpc_method_handler(_health, _bytes, _bytes)}
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("test.Echo", kinds),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        )
    )
    made.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made
    server.stop(0).wait(10)


def config(folder: Path, pki: Pki, port: int, endpoints: list[int], more: str = "") -> str:
    """A TLS listener in front of gRPC servers without TLS."""
    cert, key = pki.issue("localhost", "127.0.0.1")
    listed = ", ".join(f'"127.0.0.1:{endpoint}"' for endpoint in endpoints)
    return f"""{head_of(folder)}
[listeners.grpc]
bind = ["127.0.0.1:{port}"]
[listeners.grpc.tls]
certificates = [{{ cert = "{cert}", key = "{key}" }}]
[routes.echo]
path = "/test.Echo"
upstream = "echo"
{more}
[upstreams.echo]
http = "h2"
endpoints = [{listed}]
health = {{ grpc = "" }}
"""


def channel(pki: Pki, port: int) -> grpc.Channel:
    """A client's, over TLS."""
    return grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(pki.ca.read_bytes()))


async def test_every_kind_of_call_goes_through(tmp_path: Path, pki: Pki, service: Service) -> None:
    port = next_port()

    def calls() -> None:
        with channel(pki, port) as up:
            unary = up.unary_unary("/test.Echo/unary")
            answer, call = unary.with_call(b"abc", timeout=20)
            assert answer == b"cba"
            assert ("x-trailer", "told") in call.trailing_metadata()
            large = bytes(range(256)) * 8192  # 2 MiB: many frames, and windows that have to open again
            assert unary(large, timeout=60) == large[::-1]
            parts = list(up.unary_stream("/test.Echo/many_out")(b"500", timeout=60))
            assert parts == [b"%d " % number * 100 for number in range(500)]
            many_in = up.stream_unary("/test.Echo/many_in")
            assert many_in(iter([b"x" * 1000] * 300), timeout=60) == b"300 300000"
            both = up.stream_stream("/test.Echo/both")
            assert list(both(iter([b"a", b"b", b"c"]), timeout=20)) == [b"A", b"B", b"C"]

    async with running(tmp_path, config(tmp_path, pki, port, [service.port])) as gateway:
        await trio.to_thread.run_sync(calls)
        await gateway.access_line(lambda line: line["path"] == "/test.Echo/both")  # lines are written in batches
        lines = [line for line in gateway.access_lines() if line["path"].startswith("/test.Echo/")]
        assert {line["reason"] for line in lines} == {"ok"}
        assert {line["proto"] for line in lines} == {"h2"}


async def test_a_deadline_is_obeyed_and_told_as_grpc_says_it(tmp_path: Path, pki: Pki, service: Service) -> None:
    port = next_port()

    def call() -> grpc.StatusCode:
        with channel(pki, port) as up, pytest.raises(grpc.RpcError) as failed:
            up.unary_unary("/test.Echo/wait")(b"", timeout=1.0)
        code: grpc.StatusCode = failed.value.code()
        return code

    async with running(tmp_path, config(tmp_path, pki, port, [service.port])) as gateway:
        assert await trio.to_thread.run_sync(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < service.deadline[0] <= 1.0
        assert await trio.to_thread.run_sync(service.cancelled.wait, 20)
        await gateway.access_line(lambda line: line["path"] == "/test.Echo/wait")


async def test_a_cancelled_call_is_cancelled_at_the_server(tmp_path: Path, pki: Pki, service: Service) -> None:
    port = next_port()

    def call() -> None:
        with channel(pki, port) as up:
            future = up.unary_unary("/test.Echo/wait").future(b"", timeout=60)
            while not service.deadline:
                pass
            future.cancel()
            assert service.cancelled.wait(20)

    async with running(tmp_path, config(tmp_path, pki, port, [service.port])) as gateway:
        await trio.to_thread.run_sync(call)
        line = await gateway.access_line(lambda line: line["path"] == "/test.Echo/wait")
        assert line["reason"] == "client_abort"


async def test_errors_of_the_service_and_of_the_gateway_are_grpc_statuses(
    tmp_path: Path, pki: Pki, service: Service
) -> None:
    port, nobody = next_port(), next_port()
    more = f"""[routes.gone]
path = "/test.Gone"
upstream = "gone"
[upstreams.gone]
http = "h2"
endpoints = ["127.0.0.1:{nobody}"]"""

    def failure(method: str) -> tuple[grpc.StatusCode, str]:
        with channel(pki, port) as up, pytest.raises(grpc.RpcError) as failed:
            up.unary_unary(method)(b"", timeout=20)
        return failed.value.code(), str(failed.value.details())

    async with running(tmp_path, config(tmp_path, pki, port, [service.port], more)):
        said = await trio.to_thread.run_sync(failure, "/test.Echo/fail")
        assert said == (grpc.StatusCode.FAILED_PRECONDITION, "not yet: 100 % of ü")
        code, details = await trio.to_thread.run_sync(failure, "/test.Gone/any")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "refused" in details
        code, _ = await trio.to_thread.run_sync(failure, "/test.Nowhere/any")
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_of_one_connection_are_spread_over_the_endpoints(
    tmp_path: Path, pki: Pki, service: Service
) -> None:
    port, nobody = next_port(), next_port()

    def calls() -> None:
        with channel(pki, port) as up:
            for _ in range(20):
                assert up.unary_unary("/test.Echo/unary")(b"ab", timeout=20) == b"ba"

    # The second endpoint is down: its gRPC probe takes it out, and not one call goes there.
    async with running(tmp_path, config(tmp_path, pki, port, [service.port, nobody])) as gateway:
        await trio.to_thread.run_sync(calls)
        ends = await gateway.endpoints("echo")
        assert ends[f"127.0.0.1:{service.port}"]["state"] == "healthy"
        assert ends[f"127.0.0.1:{nobody}"]["state"] != "healthy"
