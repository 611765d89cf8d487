"""Loading a config: secrets, the host, what is left of it, and how long it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tcpgate.config import schema, validators
from tcpgate.config.check import SPARE_FILES, World, check
from tcpgate.config.host import host, longest_backlog
from tcpgate.config.load import Loaded, load
from tcpgate.config.report import AnyName, quoted
from tcpgate.errors import ConfigError
from tcpgate.units import Seconds

GOOD = '[listeners.web]\nbind = ["127.0.0.1:0"]\n[routes.all]\nrespond = {}\n'
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, world: World | None = None, credentials: Path | None = None) -> Loaded:
    """The config of `text`."""
    Path("gate.toml").write_text(text)
    return load("gate.toml", environ={}, credentials=credentials, world=world)


def problems(text: str, world: World | None = None, credentials: Path | None = None) -> list[str]:
    """What is said of `text`, errors or warnings."""
    try:
        return [str(problem).removeprefix("gate.toml:") for problem in read(text, world, credentials).warnings]
    except ConfigError as exc:
        return [str(problem).removeprefix("gate.toml:") for problem in exc.problems]


# -- what comes out -------------------------------------------------------------------------------------------------


def test_values_are_what_they_mean() -> None:
    config = read(
        '[gateway]\ndrain = "1m30s"\nworkers = 3\n[log]\nbuffer = "64KiB"\n'
        '[listeners.web]\nbind = ["LOCALHOST:80", "[0::1]:080"]\ntrusted_proxies = ["10.0.0.0/8", "::1"]\n'
        'timeouts.min_rate = "1KiB/s"\n'
        '[routes.all]\nupstream = "u"\n'
        "[upstreams.u]\noverprovision = 2\nbounded_load = 1.5\n"
        'endpoints = ["NAME:80", { address = "unix:/x", weight = 0, tier = 1 }]\nhealth = { tcp = true }\n'
    ).config
    assert config.gateway == schema.Gateway(drain=Seconds(90.0), workers=3)
    assert config.log.buffer == 65536
    web, upstream = config.listeners["web"], config.upstreams["u"]
    assert web.bind == ("127.0.0.1:80", "[::1]:80")
    assert str(web.trusted_proxies) == "Networks(10.0.0.0/8, ::1/128)"
    assert web.timeouts.min_rate == 1024.0
    assert (upstream.overprovision, upstream.bounded_load) == (2.0, 1.5)
    assert upstream.endpoints == (
        schema.Endpoint(address="name:80"),
        schema.Endpoint(address="unix:/x", weight=0, tier=1),
    )
    assert upstream.health == schema.Health(tcp=True)


def test_a_filter_is_of_the_class_of_its_kind() -> None:
    config = read(GOOD + '[filters.a]\nkind = "access"\n[filters.h]\nkind = "headers"\nset = { a = "1" }\n').config
    assert config.filters == {"a": schema.AccessFilter(), "h": schema.HeadersFilter(set={"a": "1"})}


def test_the_place_of_anything_can_be_asked_later() -> None:
    sources = read(GOOD).sources
    assert sources.where(("routes", "all", "respond", "status")) == ("gate.toml", 4)
    assert sources.where(("upstreams",)) == ("gate.toml", 0)
    assert [file.path for file in sources.files] == [Path("gate.toml").resolve()]


def test_warnings_come_in_the_order_of_the_file() -> None:
    text = (
        GOOD + '[upstreams.b]\nendpoints = ["b:1"]\n[filters.f]\nkind = "access"\n[upstreams.a]\nendpoints = ["a:1"]\n'
    )
    assert [line.partition(":")[0] for line in problems(text)] == ["5", "7", "7", "9"]


# -- the token ------------------------------------------------------------------------------------------------------


def token_problems(text: str | bytes, mode: int = 0o600) -> list[str]:
    """What is said of a token file."""
    path = Path("admin.token")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return problems('[admin]\ntoken_file = "admin.token"\n' + GOOD)


def test_a_token_is_the_first_line_of_its_file_beside_the_config_that_names_it() -> None:
    Path("conf.d").mkdir()
    Path("conf.d/admin.toml").write_text('[admin]\nbind = "0.0.0.0:9901"\ntoken_file = "admin.token"\n')
    Path("conf.d/admin.token").write_text(f"{TOKEN}  \nsecond line\n")
    Path("conf.d/admin.token").chmod(0o600)
    loaded = read('include = ["conf.d/admin.toml"]\n' + GOOD)
    assert loaded.warnings == []
    assert loaded.config.admin.token == validators.Secret(TOKEN)
    assert TOKEN not in repr(loaded)


def test_a_token_comes_from_a_credential_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "creds").mkdir()
    (tmp_path / "creds" / "admin").write_text(TOKEN)
    (tmp_path / "creds" / "admin").chmod(0o440)
    text = '[admin]\ntoken_file = "credential:admin"\n' + GOOD
    token = read(text, credentials=tmp_path / "creds").config.admin.token
    assert token is not None
    assert token.reveal() == TOKEN
    gone = problems(text.replace(":admin", ":gone"), credentials=tmp_path / "creds")
    assert gone == [f"2: admin.token_file: {tmp_path}/creds/gone: does not exist"]


def test_tokens_that_cannot_be_are_told() -> None:
    alone = "it must hold the token alone"
    assert token_problems("") == [f"2: admin.token_file: admin.token has an empty first line; {alone}"]
    assert token_problems(f"\n{TOKEN}") == [f"2: admin.token_file: admin.token has an empty first line; {alone}"]
    spaces = "has spaces or unprintable characters in its first line"
    assert token_problems("two words") == [f"2: admin.token_file: admin.token {spaces}; {alone}"]
    assert token_problems(b"\xff") == ["2: admin.token_file: admin.token:1: is not UTF-8: byte 0xff at offset 0"]
    assert token_problems("x" * 70000)[0].startswith("2: admin.token_file: admin.token: is larger than 64 KiB")


def test_tokens_that_protect_little_are_told() -> None:
    short = "the token has 7 characters only, so it can be guessed; `openssl rand -hex 32` makes a better one"
    open_to_all = "every user of this host can read admin.token; chmod 600 keeps it secret"
    assert token_problems("hunter2", 0o644) == [
        f"2: admin.token_file: warning: {short}",
        f"2: admin.token_file: warning: {open_to_all}",
    ]
    assert token_problems(TOKEN) == []


def test_a_token_never_shows_in_a_problem() -> None:
    assert "hunter2 x" not in "".join(token_problems("hunter2 x"))


# -- the host -------------------------------------------------------------------------------------------------------


def world(open_files: int = 0, longest_backlog: int = 0) -> World:
    """This host, with programs looked for in ./bin, and these limits."""
    return attrs.evolve(host({"PATH": "./bin:"}, open_files), longest_backlog=longest_backlog)


def test_a_probe_must_be_a_program_that_can_be_run() -> None:
    Path("bin").mkdir()
    for name, mode in (("good", 0o755), ("bad", 0o644)):
        Path("bin", name).touch()
        Path("bin", name).chmod(mode)
    names = ["good", "./bin/good", "bad", "gone", "/gone", "bin", "./" + "b" * 300]
    text = GOOD + "".join(
        f'[upstreams.u{number}]\nendpoints = ["u:1"]\nhealth.exec = ["{name}", "-x"]\n'
        for number, name in enumerate(names)
    )
    long = f"./{'b' * 55}..."
    assert [line for line in problems(text, world()) if "health" in line] == [
        "13: upstreams.u2.health.exec[0]: ./bin/bad is not executable; chmod +x makes it so".replace("./bin", "bin"),
        '16: upstreams.u3.health.exec[0]: there is no program "gone" in ./bin:',
        '19: upstreams.u4.health.exec[0]: there is no program "/gone"',
        '22: upstreams.u5.health.exec[0]: there is no program "bin" in ./bin:',
        f'25: upstreams.u6.health.exec[0]: there is no program "{long}"',
    ]


def test_the_folder_of_the_log_must_be_there(tmp_path: Path) -> None:
    Path("file").touch()
    assert problems(f'[gateway]\nstate_dir = "state"\n[log]\naccess = "{tmp_path}/access.log"\n' + GOOD, world()) == []
    assert problems(f'[gateway]\nstate_dir = "s"\n[log]\naccess = "{tmp_path}/gone/access.log"\n' + GOOD, world()) == [
        f"4: log.access: there is no folder {tmp_path}/gone"
    ]
    assert problems(f'[gateway]\nstate_dir = "s"\n[log]\naccess = "{tmp_path}/file/access.log"\n' + GOOD, world()) == [
        f"4: log.access: {tmp_path}/file is not a folder"
    ]


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    Path("file").touch()
    lost = "what is to outlive a restart will have no place"
    assert problems(f'[gateway]\nstate_dir = "{tmp_path}/file/x/y"\n' + GOOD, world()) == [
        f"2: gateway.state_dir: warning: {tmp_path}/file is not a folder; {lost}"
    ]


def as_another_user(ask: Callable[[], str]) -> str:
    """What `ask` says in a child process that is not root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(writer, ask().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


def test_folders_of_others_are_told(tmp_path: Path) -> None:
    assert as_another_user(lambda: world().writable("/")) == "/ cannot be written to by this user"
    assert as_another_user(lambda: world().makeable("/var/gone/x")) == "/var cannot be written to by this user"
    (tmp_path / "closed").mkdir(mode=0)
    hidden = f"{tmp_path}/closed/x"
    assert (
        as_another_user(lambda: world().makeable(hidden)) == f"{quoted(hidden)} cannot be looked at: Permission denied"
    )
    assert as_another_user(lambda: world().runnable(f"{hidden}/y")) == f"there is no program {quoted(f'{hidden}/y')}"


def test_names_that_no_folder_can_have_are_told() -> None:
    endless = "x" * 300
    assert world().makeable(endless).endswith("File name too long")
    assert world().writable(endless).endswith("File name too long")


def test_the_limit_of_open_files_is_held_against_the_connections() -> None:
    text = '[gateway]\nstate_dir = "state"\n[listeners.b]\nbind = ["fd:b"]\nmax_connections = 5\n' + GOOD
    needed = 2 * (10_000 + 5) + SPARE_FILES
    assert problems(text, world(needed)) == []
    told = f"10005 max_connections need up to {needed} open files, but a worker may have 1024"
    cure = "raise LimitNOFILE= (ulimit -n) or lower max_connections"
    assert problems(text, world(1024)) == [f"3: listeners: warning: {told}; {cure}"]


def test_a_backlog_that_the_kernel_would_cut_is_told() -> None:
    text = '[gateway]\nstate_dir = "state"\n[listeners.b]\nbind = ["127.0.0.1:7"]\nbacklog = 5000\n'
    text += '[listeners.c]\nbind = ["fd:c"]\nbacklog = 6000\n' + GOOD
    assert problems(text, world(longest_backlog=5000)) == []
    cure = "raise net.core.somaxconn (sysctl), or lower it here"
    told = f"listeners.b.backlog: warning: the kernel makes 4999 of 5000; {cure}"
    assert problems(text, world(longest_backlog=4999)) == [f"5: {told}"]


def test_the_kernels_own_longest_backlog_is_read_where_it_tells() -> None:
    Path("somaxconn").write_text("4096\n")
    assert [longest_backlog(Path(name)) for name in ("somaxconn", "nowhere")] == [4096, 0]
    assert host({}, 0).longest_backlog == longest_backlog()


# -- the whole, without files ---------------------------------------------------------------------------------------


def test_check_alone_tells_places_in_no_file() -> None:
    config = schema.Config(routes={"r": schema.Route(upstream="u")})
    assert [str(problem) for problem in check(config)] == [
        'config: listeners: nothing would listen; add [listeners.NAME] with bind = ["0.0.0.0:80"]',
        'config: routes.r.upstream: there is no upstream "u"; there is no [upstreams.*] at all',
        "config: routes: warning: there is no http listener, so no route is ever tried",
    ]


def test_names_of_broken_tables_may_be_referred_to() -> None:
    config = schema.Config(
        listeners={"web": schema.Listener(bind=("fd:web",))}, routes={"r": schema.Route(upstream="u", filters=("f",))}
    )
    assert check(config, broken={"upstreams": {"u"}, "filters": AnyName()}) == []


def test_a_listener_that_no_route_is_for_is_told() -> None:
    listeners = {"a": schema.Listener(bind=("fd:a",)), "b": schema.Listener(bind=("fd:b",))}
    config = schema.Config(listeners=listeners, routes={"r": schema.Route(listeners=("a",), respond=schema.Respond())})
    assert [str(problem) for problem in check(config)] == [
        "config: listeners.b: warning: has no route, so every request gets 404"
    ]


def test_a_broken_table_hides_no_warning_that_would_be_false() -> None:
    text = GOOD + '[routes.r]\nupstrem = "u"\n[upstreams.u]\nendpoints = ["u:1"]\n'
    assert problems(text) == ['6: routes.r.upstrem: unknown key (did you mean "upstream"?)']


def test_a_value_whose_variable_is_missing_is_not_judged_again() -> None:
    text = GOOD + '[routes.r]\npath = "/r"\nupstream = "${UP}"\n'
    (problem,) = problems(text)
    assert "the environment variable UP is not set" in problem


def test_a_flood_of_problems_is_cut_and_counted() -> None:
    text = (
        GOOD + '[upstreams.u]\nendpoints = ["u:1"]\n[gateway]\n' + "".join(f"x{number} = 1\n" for number in range(3000))
    )
    told = problems(text)
    assert len(told) == 1001
    assert told[-1] == " and 2000 more problems"


def test_names_are_guessed_for_the_first_of_many_only() -> None:
    text = GOOD + "".join(f'[routes.r{number}]\npath = "/{number}"\nupstream = "uu"\n' for number in range(200))
    told = problems(text + '[upstreams.u]\nendpoints = ["u:1"]\n')
    assert told[0].endswith('there is no upstream "uu" (did you mean "u"?)')
    assert told[199].endswith('there is no upstream "uu"')


def test_a_thousand_upstreams_and_routes_load_in_a_moment() -> None:
    text = GOOD + "".join(
        f'[routes.r{number}]\nhosts = ["h{number}.example.com"]\npath = "/v{number}"\nupstream = "u{number}"\n'
        f'[upstreams.u{number}]\nendpoints = ["10.0.0.1:80", {{ address = "10.0.0.2:80", weight = 3 }}]\n'
        for number in range(1000)
    )
    began = time.process_time()
    assert len(read(text).config.upstreams) == 1000
    assert time.process_time() - began < 5
