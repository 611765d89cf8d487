"""The shipped units under a real systemd: start, reload, crash, hang, stop; and what the sandbox lets through.

The machine in the machine (boot.sh) has its own network, so the gateway has port 80 there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.systemd.world import World

pytestmark = [pytest.mark.drill, pytest.mark.timeout(180)]

CONFIG = """
[gateway]
workers = 2
drain = "5s"
[listeners.web]
bind = ["0.0.0.0:80"]
[routes.all]
upstream = "demo"
[routes.version]
path = "=/version"
respond = { body = "first" }
[upstreams.demo]
endpoints = ["127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"]
[upstreams.demo.health]
http = "/healthz"
interval = "500ms"
"""
ORIGINS = """
[Service]
ExecStart=/opt/tcpgate/venv/bin/python -c 'import trio, tcpgate.demo; trio.run(tcpgate.demo.serve_origins)'
"""
PATH = "/etc/tcpgate/tcpgate.toml"
CAP_NET_BIND_SERVICE = 1 << 10


@pytest.fixture(scope="module", autouse=True)
def origins(world: World) -> None:
    """The demo's origins, as a service of their own."""
    world.write("/etc/systemd/system/origins.service", ORIGINS)
    world.run("systemctl", "daemon-reload")
    world.run("systemctl", "start", "origins")
    world.wait(lambda: fetch(world, "http://127.0.0.1:9003/") != "", "the origins")


@pytest.fixture
def gateway(world: World) -> Iterator[World]:
    """tcpgate.service, started with CONFIG and stopped afterwards; drop-ins that a test adds go with it."""
    world.write(PATH, CONFIG)
    world.run("systemctl", "start", "tcpgate")
    yield world
    world.run("systemctl", "kill", "--signal=KILL", "tcpgate.service", check=False)
    world.run("systemctl", "stop", "tcpgate.socket", "tcpgate.service", check=False)
    world.run("rm", "-rf", "/etc/systemd/system/tcpgate.service.d")
    world.run("systemctl", "daemon-reload")
    world.run("systemctl", "reset-failed", check=False)


def fetch(world: World, url: str = "http://127.0.0.1/version") -> str:
    """The body at `url`; "" if it could not be had."""
    return world.run("curl", "--silent", "--fail", "--max-time", "5", url, check=False)


def pids(world: World) -> list[int]:
    """The processes of the service, as they number themselves in there."""
    group = world.fact("ControlGroup")
    return [int(pid) for pid in world.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()]


def in_progress(world: World) -> bool:
    """Whether an exchange is with an origin."""
    api = world.run(
        "curl", "--silent", "--unix-socket", "/run/tcpgate/admin.sock", "http://tcpgate/api/v1/upstreams/demo"
    )
    return any(endpoint["active"] for endpoint in json.loads(api)["endpoints"])


# -- start ----------------------------------------------------------------------------------------------------------


def test_start_returns_when_it_serves(gateway: World) -> None:
    assert fetch(gateway) == "first"
    assert json.loads(fetch(gateway, "http://127.0.0.1/"))["origin"].startswith("origin-")
    assert "3 of 3 endpoints up" in gateway.fact("StatusText")


def test_it_runs_as_a_user_of_its_own_with_one_capability(gateway: World) -> None:
    for pid in pids(gateway):
        status = dict(line.split(":\t", 1) for line in gateway.run("cat", f"/proc/{pid}/status").splitlines())
        assert "0" not in status["Uid"].split(), "no process is root's"
        assert int(status["CapEff"], 16) == CAP_NET_BIND_SERVICE
        assert int(status["CapBnd"], 16) == CAP_NET_BIND_SERVICE
        assert status["Seccomp"] == "2", "system calls are filtered"


def test_the_command_line_of_root_reaches_it(gateway: World) -> None:
    status = json.loads(gateway.run("/usr/local/bin/tcpgate", "status", "--json"))
    assert status["generation"] == 1


def test_a_config_that_cannot_serve_fails_the_start_once_and_says_why(gateway: World) -> None:
    gateway.run("systemctl", "stop", "tcpgate")
    gateway.write(PATH, CONFIG.replace('upstream = "demo"', 'upstream = "demmo"'))
    assert gateway.code("systemctl", "start", "tcpgate") != 0
    assert (gateway.fact("ExecMainStatus"), gateway.fact("NRestarts")) == ("78", "0")
    assert "demmo" in gateway.journal()


def test_a_health_check_by_program_works_inside_the_sandbox(gateway: World) -> None:
    gateway.write(
        PATH, CONFIG.replace('http = "/healthz"', 'exec = ["/usr/bin/curl", "-fs", "http://127.0.0.1:9001/"]')
    )
    gateway.run("systemctl", "reload", "tcpgate")
    gateway.wait(lambda: "3 of 3 endpoints up" in gateway.fact("StatusText"), "healthy endpoints")
    assert gateway.code("/usr/local/bin/tcpgate", "upstreams") == 0
    assert '"down"' not in gateway.run("/usr/local/bin/tcpgate", "upstreams", "--json")


def test_a_secret_of_roots_comes_as_a_credential(gateway: World) -> None:
    gateway.write("/etc/tcpgate/admin.token", "0123456789abcdef0123456789abcdef\n")
    gateway.run("chmod", "0600", "/etc/tcpgate/admin.token")
    gateway.write(
        "/etc/systemd/system/tcpgate.service.d/secret.conf",
        "[Service]\nLoadCredential=admin.token:/etc/tcpgate/admin.token\n",
    )
    gateway.write(PATH, CONFIG + '[admin]\nbind = "127.0.0.1:9901"\ntoken_file = "credential:admin.token"\n')
    gateway.run("systemctl", "daemon-reload")
    gateway.run("systemctl", "restart", "tcpgate")
    url = "http://127.0.0.1:9901/api/v1/status"
    assert fetch(gateway, url) == ""
    header = "Authorization: Bearer 0123456789abcdef0123456789abcdef"
    assert "generation" in gateway.run("curl", "-fs", "-H", header, url)
    assert "0123456789abcdef" not in gateway.journal()


# -- reload ---------------------------------------------------------------------------------------------------------


def test_reload_returns_when_the_new_config_serves(gateway: World) -> None:
    main = gateway.fact("MainPID")
    for body in ("second", "third"):
        gateway.write(PATH, CONFIG.replace("first", body))
        gateway.run("systemctl", "reload", "tcpgate")
        assert fetch(gateway) == body
    assert gateway.fact("MainPID") == main


def test_a_reload_that_fails_is_told_and_the_old_config_serves(gateway: World) -> None:
    gateway.write(PATH, CONFIG.replace("first", "second").replace('upstream = "demo"', 'upstream = "demmo"'))
    assert gateway.code("systemctl", "reload", "tcpgate") != 0
    assert gateway.fact("ActiveState") == "active"
    assert fetch(gateway) == "first"
    gateway.write(PATH, CONFIG.replace("first", "second"))
    gateway.run("systemctl", "reload", "tcpgate")
    assert fetch(gateway) == "second"


def test_a_plain_hangup_reloads_as_well(gateway: World) -> None:
    gateway.write(PATH, CONFIG.replace("first", "second"))
    gateway.run("systemctl", "kill", "--signal=HUP", "--kill-who=main", "tcpgate")
    gateway.wait(lambda: fetch(gateway) == "second", "the new config")
    assert gateway.fact("ActiveState") == "active"


# -- crashes and hangs ----------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_service_goes_on(gateway: World) -> None:
    main = int(gateway.fact("MainPID"))
    before = [pid for pid in pids(gateway) if pid != main]
    assert len(before) == 2
    gateway.run("sh", "-c", f"kill -KILL {before[0]}")
    gateway.wait(lambda: len(pids(gateway)) == 3 and before[0] not in pids(gateway), "a new worker")
    assert fetch(gateway) == "first"
    assert (int(gateway.fact("MainPID")), gateway.fact("NRestarts")) == (main, "0")


def test_a_killed_supervisor_comes_back_at_once_and_leaves_nothing_behind(gateway: World) -> None:
    before = pids(gateway)
    gateway.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "tcpgate")
    gateway.wait(lambda: gateway.fact("NRestarts") == "1" and gateway.fact("ActiveState") == "active", "a restart")
    assert fetch(gateway) == "first"
    gateway.wait(lambda: not set(pids(gateway)) & set(before), "the end of the old processes")


def test_a_supervisor_that_hangs_is_replaced_by_the_watchdog(gateway: World) -> None:
    gateway.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "tcpgate")
    gateway.wait(lambda: gateway.fact("NRestarts") == "1" and gateway.fact("ActiveState") == "active", "a restart", 90)
    assert fetch(gateway) == "first"
    assert "watchdog" in gateway.run("journalctl", "--no-pager", "--output=cat", "_PID=1").lower()


# -- stop -----------------------------------------------------------------------------------------------------------


def test_stop_lets_the_open_exchange_finish_and_is_clean(gateway: World) -> None:
    with gateway.start("curl", "--silent", "--fail", "http://127.0.0.1/slow?ms=4000") as slow:
        gateway.wait(lambda: in_progress(gateway), "the exchange")
        gateway.run("systemctl", "stop", "tcpgate")
        said, _ = slow.communicate(timeout=40)
    assert slow.returncode == 0
    assert json.loads(said)["target"] == "/slow?ms=4000"
    assert (gateway.fact("Result"), gateway.fact("ExecMainStatus")) == ("success", "0")


def test_a_stop_in_the_middle_of_the_start_stops(gateway: World) -> None:
    gateway.run("systemctl", "stop", "tcpgate")
    for _ in range(3):
        # The status lasts as long as a worker takes to start; a busy machine may look too late, and looks again then.
        for _ in range(20):
            gateway.run("systemctl", "start", "--no-block", "tcpgate")
            gateway.wait(lambda: gateway.fact("StatusText").startswith(("starting workers", "generation")), "a status")
            if gateway.fact("StatusText") == "starting workers":
                break
            gateway.run("systemctl", "stop", "tcpgate")
        else:
            pytest.fail("it was never seen in the middle of its start")
        gateway.run("systemctl", "stop", "tcpgate")
        assert gateway.fact("ActiveState") in ("inactive", "failed")
        assert gateway.fact("Result") in ("success", "signal"), "not a timeout"


def test_stop_cuts_what_is_open_after_the_drain(gateway: World) -> None:
    with gateway.start("curl", "--silent", "--fail", "http://127.0.0.1/slow?ms=60000") as slow:
        gateway.wait(lambda: in_progress(gateway), "the exchange")
        before = time.monotonic()
        gateway.run("systemctl", "stop", "tcpgate")
        assert 4 < time.monotonic() - before < 30, "the drain is 5 s"
        slow.communicate(timeout=40)
    assert slow.returncode != 0
    assert gateway.fact("Result") == "success"


# -- sockets --------------------------------------------------------------------------------------------------------


def test_the_socket_unit_hands_over_its_port_and_no_connect_is_refused_over_restarts(gateway: World) -> None:
    gateway.run("systemctl", "stop", "tcpgate")
    gateway.write(PATH, CONFIG.replace('"0.0.0.0:80"', '"fd:web"'))
    gateway.run("systemctl", "start", "tcpgate.socket")
    assert fetch(gateway) == "first", "the first connection starts the service"
    assert fetch(gateway, "http://[::1]/version") == "first"
    gateway.wait(lambda: gateway.fact("ActiveState") == "active", "the service")
    ask = "curl -s -o /dev/null -w '%{http_code} %{exitcode}\\n' http://127.0.0.1/version"
    with gateway.start("sh", "-c", f"rm -f /shared/over; until [ -e /shared/over ]; do {ask}; done") as client:
        for _ in range(2):
            gateway.run("systemctl", "restart", "tcpgate")
        gateway.run("touch", "/shared/over")
        said, _ = client.communicate(timeout=30)
    assert len(said.splitlines()) > 2, "some had to wait, but not all of them"
    assert set(said.splitlines()) == {"200 0"}
