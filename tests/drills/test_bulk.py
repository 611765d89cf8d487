"""What must stay flat: memory under a 10 GB body each way, under idle connections; other clients under a slow-loris
attack.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.drills.load import Load
from tests.gateway import Gateway, head_of, make_nginx, running

GB = 10**9


def config(folder: Path, port: int, origin: int, *, workers: int = 1, listener: str = "") -> str:
    """One origin; limits wide enough for the bodies of these drills."""
    return (
        head_of(folder, workers=workers)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
limits = {{ body = "100GB" }}
{listener}
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{origin}"]
"""
    )


def resident(pid: int) -> int:
    """Resident memory now (bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise LookupError(pid)


def peak(pid: int) -> int:
    """Peak resident memory (bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise LookupError(pid)


async def worker_of(gateway: Gateway) -> int:
    """The pid of the only worker."""
    return (await gateway.workers())[1]


async def curl(*arguments: str) -> str:
    """curl's output; it must succeed."""
    done = await trio.run_process(
        ["curl", "-sS", "--fail", *arguments], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.drill
async def test_ten_gigabytes_each_way_in_flat_memory(
    tmp_path: Path, free_port: Callable[[], int], drill_scale: float
) -> None:
    size = int(10 * GB * drill_scale)
    origin_port, port = free_port(), free_port()
    locations = """location /big { } location /up { client_body_buffer_size 64k; proxy_request_buffering off;
        proxy_http_version 1.1; proxy_pass http://127.0.0.1:SINK; }"""
    async with trio.open_nursery() as nursery:
        sink = await nursery.start(_serve_sink)
        origin = make_nginx(tmp_path / "nginx", origin_port, locations.replace("SINK", str(sink)))
        with (tmp_path / "nginx" / "big").open("wb") as big:
            big.truncate(size)  # sparse: it is read, not stored
        try:
            origin.start()
            async with running(tmp_path / "gate", config(tmp_path / "gate", port, origin_port)) as gateway:
                await curl(f"http://127.0.0.1:{port}/")
                pid = await worker_of(gateway)
                before, began = resident(pid), time.monotonic()
                down = await curl("-o", "/dev/null", "-w", "%{size_download}", f"http://127.0.0.1:{port}/big")
                middle = time.monotonic()
                put = ["-T", str(tmp_path / "nginx" / "big"), f"http://127.0.0.1:{port}/up"]
                up = await curl("-H", "Expect:", *put)
                ended = time.monotonic()
                chunked = await curl("-H", "Transfer-Encoding: chunked", *put)
                grown = peak(pid) - before
        finally:
            origin.kill()
        nursery.cancel_scope.cancel()
    rates = size / 1e6 / (middle - began), size / 1e6 / (ended - middle)
    print(
        f"{size / 1e9:g} GB down at {rates[0]:.0f} MB/s, up at {rates[1]:.0f} MB/s; memory grew by {grown / 1e6:.1f} MB"
    )
    assert {down, up, chunked} == {str(size)}  # the last two as the origin counted them
    assert grown < 16 << 20


async def _serve_sink(task_status: trio.TaskStatus[int]) -> None:
    """Reads whatever comes; answers 200 with the count of body bytes once the request is over."""
    import h11

    async def one(stream: trio.SocketStream) -> None:
        connection, count = h11.Connection(h11.SERVER), 0
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(1 << 18))
                elif isinstance(event, h11.Data):
                    count += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif not isinstance(event, h11.Request):
                    return
            body = str(count).encode()
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process open as many sockets as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.drill
async def test_idle_connections_cost_little_and_say_how_much(
    tmp_path: Path, free_port: Callable[[], int], drill_scale: float
) -> None:
    count = int(5000 * max(drill_scale, 0.2))
    origin, port = make_nginx(tmp_path / "nginx", free_port()), free_port()
    request = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
    try:
        origin.start()
        async with running(tmp_path / "gate", config(tmp_path / "gate", port, origin.port)) as gateway:
            await curl(f"http://127.0.0.1:{port}/")
            pid = await worker_of(gateway)
            with many_files(), contextlib.ExitStack() as stack:
                before = resident(pid)
                for _ in range(count):
                    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    sock.sendall(request)
                    assert b"200 OK" in sock.recv(65536)
                await trio.sleep(1.5)
                each = (resident(pid) - before) / count / 1024
                assert (await gateway.api("GET", "/api/v1/status"))["workers"][0]["connections"] == count
    finally:
        origin.kill()
    print(f"{count} idle keep-alive connections cost {each:.1f} KB each")
    assert each < 60


@pytest.mark.drill
async def test_a_slow_loris_with_two_thousand_sockets_harms_nobody_else(
    tmp_path: Path, free_port: Callable[[], int], drill_scale: float
) -> None:
    sockets = 2000
    origin, port = make_nginx(tmp_path / "nginx", free_port()), free_port()
    listener = 'timeouts = { head = "3s" }'
    try:
        origin.start()
        text = config(tmp_path / "gate", port, origin.port, workers=2, listener=listener)
        async with running(tmp_path / "gate", text) as gateway:
            with Load(port, threads=2) as alone:
                await trio.sleep(2)
            with many_files(), contextlib.ExitStack() as stack, Load(port, threads=2) as load:
                attack = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(sockets)]
                for sock in attack:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n")
                before = load.total
                for _ in range(8):
                    for sock in attack:
                        with contextlib.suppress(OSError):
                            sock.send(b"X")  # one byte at a time, so that the connection never looks idle
                    await trio.sleep(0.5)
                served = (load.total - before) / 4
                closed = sum(_is_closed(sock) for sock in attack)
            timeouts = sum(line["reason"] == "head_timeout" for line in gateway.access_lines())
    finally:
        origin.kill()
    print(
        f"{alone.total / 2:.0f} requests/s alone, {served:.0f} under attack; {closed} of {sockets} attackers closed, "
        f"{timeouts} of them with head_timeout"
    )
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert served > alone.total / 2 / 4  # the attackers' own system calls share the two cores
    assert closed == sockets


def _is_closed(sock: socket.socket) -> bool:
    """Whether the gateway has ended the connection (after its 408)."""
    sock.settimeout(20)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.drill
async def test_over_two_workers_the_shares_are_within_two_per_cent_of_the_weights(
    tmp_path: Path, free_port: Callable[[], int], drill_scale: float
) -> None:
    ports, port = [free_port() for _ in range(3)], free_port()
    origins = [make_nginx(tmp_path / f"nginx{one}", one) for one in ports]
    weights = {ports[0]: 5, ports[1]: 1, ports[2]: 1}
    try:
        for origin in origins:
            origin.start()
        endpoints = ", ".join(f'{{ address = "127.0.0.1:{one}", weight = {weights[one]} }}' for one in ports)
        text = config(tmp_path / "gate", port, 1, workers=2).replace(
            'endpoints = ["127.0.0.1:1"]', f'balance = "weighted_round_robin"\nendpoints = [{endpoints}]'
        )
        async with running(tmp_path / "gate", text) as gateway:
            by_worker = [0]
            for _ in range(10):  # a worker that is quicker to wake may take all connections of a round
                await trio.run_process(["wrk", "-t1", "-c16", "-d4", f"http://127.0.0.1:{port}/"], capture_stdout=True)
                by_worker = [one["exchanges"] for one in (await gateway.api("GET", "/api/v1/status"))["workers"]]
                if min(by_worker) > 0:
                    break
            endpoints_now = await gateway.endpoints("api")
    finally:
        for origin in origins:
            origin.kill()
    attempts = {one: endpoints_now[f"127.0.0.1:{one}"]["attempts"] for one in ports}
    total = sum(attempts.values())
    shares = {one: attempts[one] / total for one in ports}
    print(f"{total} requests over workers {by_worker}: shares {[f'{share:.4f}' for share in shares.values()]}")
    assert min(by_worker) > 0
    for one in ports:
        assert abs(shares[one] - weights[one] / 7) < 0.02
