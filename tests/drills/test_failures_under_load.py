"""What dies under load: an origin, all origins, a worker. Nobody's request fails that could have been served."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.conftest import Eventually
from tests.drills.load import Load
from tests.gateway import Gateway, head_of, make_nginx, running


def config(folder: Path, port: int, origins: list[int], *, workers: int = 2) -> str:
    """Round robin over `origins`, probed twice a second."""
    endpoints = ", ".join(f'"127.0.0.1:{origin}"' for origin in origins)
    return (
        head_of(folder, workers=workers)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = [{endpoints}]
[upstreams.api.health]
http = "/healthz"
interval = "500ms"
timeout = "2s"
fall = 3
rise = 2
"""
    )


@pytest.mark.drill
async def test_an_origin_that_is_killed_fails_no_request_and_comes_back(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    ports = [free_port() for _ in range(3)]
    origins = [make_nginx(tmp_path / f"nginx{port}", port) for port in ports]
    port, victim = free_port(), origins[0]
    address = f"127.0.0.1:{victim.port}"
    try:
        for origin in origins:
            origin.start()
        async with running(tmp_path / "gate", config(tmp_path / "gate", port, ports)) as gateway:
            with Load(port) as load:
                await trio.sleep(1)
                killed = trio.current_time()
                victim.kill()

                async def is_out() -> bool:
                    return (await gateway.endpoints("api"))[address]["state"] in ("down", "ejected")

                await eventually(is_out, what="the killed origin taken out")
                out_after = trio.current_time() - killed
                await trio.sleep(1)
                victim.start()
                returned = trio.current_time()

                async def is_back() -> bool:
                    return bool((await gateway.endpoints("api"))[address]["state"] == "healthy")

                await eventually(is_back, what="the origin restored")
                back_after = trio.current_time() - returned
                before = load.bodies[f"origin {victim.port}"]
                await eventually(lambda: load.bodies[f"origin {victim.port}"] > before, what="its share of the load")
            kinds = [(event["kind"], event["facts"].get("endpoint")) for event in await gateway.events()]
    finally:
        for origin in origins:
            origin.kill()
    print(f"{load.total} requests; out after {out_after:.2f} s, back after {back_after:.2f} s; {load.failures[:3]}")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert out_after < 3 * 0.5 + 1.5  # one fall window, fall x interval, and what a busy machine adds
    assert {kind for kind, endpoint in kinds if endpoint == address} & {"endpoint_down", "endpoint_ejected"}
    assert ("endpoint_up", address) in kinds or ("endpoint_restored", address) in kinds


@pytest.mark.drill
async def test_with_all_origins_down_it_says_why_and_serves_within_a_probe_of_the_first_return(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    ports = [free_port(), free_port()]
    origins = [make_nginx(tmp_path / f"nginx{port}", port) for port in ports]
    port = free_port()
    try:
        for origin in origins:
            origin.start()
        text = config(tmp_path / "gate", port, ports).replace('interval = "500ms"', 'interval = "2s"')
        async with running(tmp_path / "gate", text) as gateway:
            for origin in origins:
                origin.kill()

            async def all_out() -> bool:
                return all(one["state"] in ("down", "ejected") for one in (await gateway.endpoints("api")).values())

            await eventually(all_out, what="both origins taken out")
            with Load(port, threads=2) as load:
                await eventually(lambda: load.total, what="an answer")
                assert set(load.statuses) == {503}
                origins[0].start()
                returned = trio.current_time()
                await eventually(lambda: load.statuses[200] > 0, what="service after the first return")
                served_after = trio.current_time() - returned
            line = await gateway.access_line(lambda line: line["status"] == 503)
            kinds = [event["kind"] for event in await gateway.events() if event["kind"].startswith("upstream_")]
    finally:
        for origin in origins:
            origin.kill()
    print(f"served {served_after:.2f} s after the first return; 503 said: {line['reason']}, {line['detail']}")
    assert kinds == ["upstream_down", "upstream_up"]
    assert line["reason"] == "no_endpoint"
    assert f"127.0.0.1:{ports[0]}" in line["detail"]
    assert line["answered_by"] == "gateway"
    assert served_after < 2 + 1.5  # one probe interval, and what a busy machine adds
    assert load.failures == []


async def is_replaced(gateway: Gateway, dead: int) -> bool:
    """Whether worker 1 is another process than the `dead` one."""
    workers: dict[int, int] = await gateway.workers()
    return workers.get(1, dead) != dead


@pytest.mark.drill
async def test_a_worker_that_is_killed_costs_its_own_connections_only(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    origin = make_nginx(tmp_path / "nginx", free_port())
    port = free_port()
    seen: list[int] = []
    try:
        origin.start()
        async with running(tmp_path / "gate", config(tmp_path / "gate", port, [origin.port])) as gateway:
            with Load(port, threads=16) as load:
                for _ in range(5):
                    await trio.sleep(1)
                    workers = await gateway.workers()
                    seen.append((await gateway.api("GET", "/api/v1/status"))["totals"]["exchanges"])
                    os.kill(workers[1], signal.SIGKILL)

                    await eventually(partial(is_replaced, gateway, workers[1]), what="another worker")
                await trio.sleep(1)
                seen.append((await gateway.api("GET", "/api/v1/status"))["totals"]["exchanges"])
            status = await gateway.api("GET", "/api/v1/status")
            died = await gateway.events("worker_died")

            async def at_rest() -> bool:  # what the dead had in flight is forgotten, the living close their books
                endpoint = (await gateway.endpoints("api"))[f"127.0.0.1:{origin.port}"]
                return bool(endpoint["active"] == 0)

            await eventually(at_rest, what="nothing in flight")
    finally:
        origin.kill()
    print(f"{load.total} requests, {load.lost} lost, {load.refused} refused, totals {seen}")
    assert load.refused == 0
    assert set(load.statuses) == {200}
    assert load.lost <= 5 * 16  # at most what was open on the worker that died, each time
    assert seen == sorted(seen)
    assert status["totals"]["exchanges"] >= load.total - 5 * 16  # answered, but the worker died before it counted
    assert len(died) == 5


@pytest.mark.drill
async def test_a_worker_that_hangs_is_noticed_and_replaced_while_the_other_serves(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    origin, port = make_nginx(tmp_path / "nginx", free_port()), free_port()
    text = config(tmp_path / "gate", port, [origin.port]).replace("workers = 2", 'workers = 2\nworker_silence = "3s"')
    try:
        origin.start()
        async with running(tmp_path / "gate", text) as gateway:
            hung = (await gateway.workers())[1]
            os.kill(hung, signal.SIGSTOP)  # its loop no longer turns, and no signal but SIGKILL reaches it
            with Load(port, threads=4) as load:
                began = trio.current_time()
                await eventually(partial(is_replaced, gateway, hung), what="another worker")
                replaced_after = trio.current_time() - began
            told = await gateway.events("worker_hung")
    finally:
        origin.kill()
    print(f"replaced after {replaced_after:.1f} s; {load.total} requests, {load.lost} lost, {load.refused} refused")
    assert [event["facts"]["pid"] for event in told] == [hung]
    assert load.refused == 0
    assert load.lost <= 4  # connections that the kernel had given to the one that hung
    assert load.total > 0
