"""Thirty and more ways for a reload to fail: each says so with its exit code, names the place, and leaves traffic
untouched.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from tests.drills.load import Load
from tests.gateway import Gateway, head_of, make_nginx, running


@attrs.frozen
class Spoiled:
    """A config that cannot serve."""

    name: str
    spoil: Callable[[str, Path], str | bytes | None]
    """From the good config to the bad one; None: the file is taken away or made unusable by the function itself."""
    says: str
    """What the result must contain: the place, or the thing at fault."""


def replaced(old: str, new: str) -> Callable[[str, Path], str]:
    """A config in which one text stands for another."""

    def spoil(text: str, _: Path) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return spoil


def added(lines: str) -> Callable[[str, Path], str]:
    """A config with more lines at its end."""
    return lambda text, _: text + lines


def remove_file(_: str, path: Path) -> None:
    path.unlink()


def make_directory(_: str, path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_loop(text: str, path: Path) -> str:
    (path.parent / "loop.toml").write_text('include = ["gateway.toml"]\n')
    return 'include = ["loop.toml"]\n' + text


def include_twice(text: str, path: Path) -> str:
    (path.parent / "twice.toml").write_text('[upstreams.api]\nendpoints = ["127.0.0.1:1"]\n')
    return 'include = ["twice.toml"]\n' + text


def include_broken(text: str, path: Path) -> str:
    (path.parent / "broken.toml").write_text("[routes.x\n")
    return 'include = ["broken.toml"]\n' + text


def take_port(text: str, path: Path) -> str:
    """A port that somebody else listens on."""
    taken = (path.parent / "taken").read_text()
    return text + f'\n[listeners.more]\nbind = ["127.0.0.1:{taken}"]\n'


SPOILED = [
    Spoiled("the file is gone", remove_file, "gateway.toml"),
    Spoiled("the file is empty", lambda text, path: "", "gateway.toml"),
    Spoiled("the file is a directory", make_directory, "gateway.toml"),
    Spoiled("bad UTF-8", lambda text, path: text.encode() + b"\n# \xff\xfe\n", "UTF-8"),
    Spoiled("a megabyte of garbage", lambda text, path: os.urandom(1 << 20), "gateway.toml"),
    Spoiled("not TOML", added("\n[routes.x\n"), "gateway.toml:"),
    Spoiled("the same key twice", added("\n[gateway]\nworkers = 1\n"), "gateway.toml:"),
    Spoiled("an unknown table", added("\n[upstream.api]\nx = 1\n"), "upstreams"),
    Spoiled("an unknown key", replaced("workers", "worker"), "gateway.worker"),
    Spoiled("a wrong type", replaced("workers = 1", 'workers = "many"'), "gateway.workers"),
    Spoiled("out of range", replaced("workers = 1", "workers = 1000"), "gateway.workers"),
    Spoiled("an unknown balancer", replaced('balance = "round_robin"', 'balance = "round_robbin"'), "round_robin"),
    Spoiled("no endpoints", replaced("endpoints = [", "endpoints = [] #"), "upstreams.api.endpoints"),
    Spoiled(
        "an endpoint without a port", replaced("endpoints = [", 'endpoints = ["10.0.0.1",'), "upstreams.api.endpoints"
    ),
    Spoiled(
        "the same endpoint twice", replaced("endpoints = [", 'endpoints = ["10.0.0.1:1","10.0.0.1:1",'), "10.0.0.1:1"
    ),
    Spoiled("a bad duration", replaced('interval = "500ms"', 'interval = "soon"'), "upstreams.api.health.interval"),
    Spoiled(
        "a duration without a unit", replaced('interval = "500ms"', "interval = 5"), "upstreams.api.health.interval"
    ),
    Spoiled("a zero timeout", replaced('timeout = "2s"', 'timeout = "0s"'), "upstreams.api.health.timeout"),
    Spoiled(
        "two kinds of probe", replaced('http = "/healthz"', 'http = "/healthz"\ntcp = true'), "upstreams.api.health"
    ),
    Spoiled("a bad regular expression", replaced('path = "/"', 'path = "~/(a"'), "routes.all.path"),
    Spoiled("a route to nowhere", replaced('upstream = "api"', 'upstream = "apo"'), "api"),
    Spoiled("a route without a target", replaced('upstream = "api"', ""), "routes.all"),
    Spoiled("a route with two targets", replaced('upstream = "api"', 'upstream = "api"\nrespond = {}'), "routes.all"),
    Spoiled(
        "an unknown filter", replaced('upstream = "api"', 'upstream = "api"\nfilters = ["keys"]'), "routes.all.filters"
    ),
    Spoiled("an unknown kind of filter", added('\n[filters.x]\nkind = "heders"\n'), "headers"),
    Spoiled(
        "a header that ends the line", added('\n[filters.x]\nkind = "headers"\nset = { a = "b\\r\\nc" }\n'), "filters.x"
    ),
    Spoiled("two equal routes", added('\n[routes.twin]\nupstream = "api"\n'), "routes.twin"),
    Spoiled("a port taken by another listener", added('\n[listeners.twin]\nbind = ["PORT"]\n'), "listeners.twin"),
    Spoiled("a port in use", take_port, "listeners.more.bind[0]"),
    Spoiled(
        "an address of another host", added('\n[listeners.far]\nbind = ["192.0.2.1:80"]\n'), "listeners.far.bind[0]"
    ),
    Spoiled("a name to listen on", added('\n[listeners.far]\nbind = ["example.com:80"]\n'), "listeners.far.bind[0]"),
    Spoiled("an fd that nobody passed", added('\n[listeners.fd]\nbind = ["fd:web"]\n'), "fd:web"),
    Spoiled(
        "a unix path that is a file",
        added('\n[listeners.u]\nbind = ["unix:FOLDER/gateway.toml"]\n'),
        "listeners.u.bind[0]",
    ),
    Spoiled(
        "a unix path without its folder", added('\n[listeners.u]\nbind = ["unix:/nowhere/x.sock"]\n'), "/nowhere/x.sock"
    ),
    Spoiled("an include that is not there", lambda text, path: 'include = ["absent.toml"]\n' + text, "absent.toml"),
    Spoiled("an include that is not TOML", include_broken, "broken.toml:1"),
    Spoiled("an include loop", make_loop, "loop.toml"),
    Spoiled("a name in two files", include_twice, "twice.toml"),
    Spoiled(
        "a variable that is not set", replaced('http = "/healthz"', 'http = "${NOT_SET_ANYWHERE}"'), "NOT_SET_ANYWHERE"
    ),
    Spoiled(
        "a token file that is not there",
        replaced("[admin]", '[admin]\ntoken_file = "/nowhere/token"'),
        "/nowhere/token",
    ),
    Spoiled(
        "an API for everybody without a token",
        replaced('bind = "unix:', 'bind = "0.0.0.0:9901" # "unix:'),
        "admin.bind",
    ),
]


def good(folder: Path, port: int, origin: int) -> str:
    """The config that serves."""
    return (
        head_of(folder)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{port}"]
[routes.all]
path = "/"
upstream = "api"
[upstreams.api]
balance = "round_robin"
endpoints = ["127.0.0.1:{origin}"]
[upstreams.api.health]
http = "/healthz"
interval = "500ms"
timeout = "2s"
"""
    )


def tcpgate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tcpgate", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


async def fails_as_told(gateway: Gateway, case: Spoiled, text: str) -> list[str]:
    """What is wrong with how this reload failed; nothing, if it failed well."""
    spoiled = case.spoil(text, gateway.config)
    if isinstance(spoiled, bytes):
        gateway.config.write_bytes(spoiled)
    elif spoiled is not None:
        gateway.config.write_text(spoiled)
    before = await gateway.api("GET", "/api/v1/status")
    done = await trio.to_thread.run_sync(
        tcpgate, "reload", "--wait", "--json", "--admin", f"unix:{gateway.folder}/admin.sock"
    )
    after = await gateway.api("GET", "/api/v1/status")
    if gateway.config.is_dir():
        gateway.config.rmdir()
    gateway.config.write_text(text)
    wrong = []
    if done.returncode != 1:
        wrong.append(f"exit code {done.returncode}")
    problems = "\n".join(json.loads(done.stdout)["problems"]) if done.stdout else done.stderr
    if case.says not in problems:
        wrong.append(f"does not say {case.says!r}: {problems[:400]}")
    if after["generation"] != before["generation"]:
        wrong.append("the generation changed")
    if after["last_reload"]["ok"]:
        wrong.append("the status calls it a success")
    return [f"{case.name}: {one}" for one in wrong]


@pytest.mark.drill
async def test_every_failed_reload_says_so_names_the_place_and_leaves_traffic_alone(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    origin, port, folder = make_nginx(tmp_path / "nginx", free_port()), free_port(), tmp_path / "gate"
    wrong: list[str] = []
    try:
        origin.start()
        text = good(folder, port, origin.port)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            folder.mkdir()
            (folder / "taken").write_text(str(taken.getsockname()[1]))
            async with running(folder, text) as gateway:
                with Load(port, threads=4) as load:
                    for case in SPOILED:
                        spelled = attrs.evolve(case, spoil=spell(case, folder, port))
                        wrong += await fails_as_told(gateway, spelled, text)
                    status, result = await gateway.reload(text)
                failed = len(await gateway.events("reload_failed"))
    finally:
        origin.kill()
    print(f"{len(SPOILED)} kinds of failed reload, {load.total} requests meanwhile")
    assert wrong == []
    assert failed == len(SPOILED)
    assert (status, result["changed"]) == (200, False)  # the good config again is nothing new
    assert load.failures == []
    assert set(load.statuses) == {200}


def spell(case: Spoiled, folder: Path, port: int) -> Callable[[str, Path], str | bytes | None]:
    """Put this run's folder and port into a case."""

    def spoil(text: str, path: Path) -> str | bytes | None:
        made = case.spoil(text, path)
        if isinstance(made, str):
            return made.replace("FOLDER", str(folder)).replace("PORT", f"127.0.0.1:{port}")
        return made

    return spoil
