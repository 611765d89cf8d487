"""The command line: what it prints, where, and with which exit code; against files and against a real gateway."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tcpgate import cli, table
from tests.gateway import Gateway, head_of, running

GOOD = """
[listeners.web]
bind = ["127.0.0.1:8080"]
max_connections = 100
[routes.all]
upstream = "api"
[routes.exact]
hosts = ["a.example"]
path = "=/x"
respond = {}
[upstreams.api]
endpoints = ["127.0.0.1:1"]
"""


def tcpgate(*arguments: object, environ: dict[str, str] | None = None) -> Result:
    """One call, in this process."""
    return CliRunner().invoke(cli.main, [str(one) for one in arguments], env=environ)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(GOOD + f'[gateway]\nstate_dir = "{tmp_path}"\n')
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace('upstream = "api"', 'upstream = "apo"').replace("max_conn", "max_con"))
    return path


# -- files ----------------------------------------------------------------------------------------------------------


def test_check_counts_what_is_good(good: Path) -> None:
    done = tcpgate("check", good)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"{good}: good: 1 listener, 2 routes, 1 upstream"
    assert done.stderr == ""


def test_check_says_every_problem_on_a_line_of_its_own_and_exits_78(bad: Path) -> None:
    done = tcpgate("check", bad)
    assert (done.exit_code, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        f'{bad}:4: listeners.web.max_conections: unknown key (did you mean "max_connections"?)',
        f'{bad}:6: routes.all.upstream: there is no upstream "apo" (did you mean "api"?)',
        f"{bad}: 2 problems; it cannot serve",
    ]


def test_check_json_has_the_config_or_the_problems(good: Path, bad: Path) -> None:
    done = tcpgate("check", good, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["config"]["upstreams"]["api"]["endpoints"][0]["address"] == "127.0.0.1:1"
    done = tcpgate("check", bad, "--json")
    assert done.exit_code == 78
    found = json.loads(done.stdout)
    assert (found["ok"], len(found["problems"])) == (False, 2)


@pytest.mark.parametrize("command", [["check"], ["routes"], ["diff", "GOOD"], ["run"]])
def test_a_file_that_is_not_there_is_a_bad_config(good: Path, command: list[str], tmp_path: Path) -> None:
    words = [str(good) if word == "GOOD" else word for word in command]
    done = tcpgate(*words, tmp_path / "absent.toml")
    assert done.exit_code == 78
    assert "absent.toml: does not exist" in done.stderr


def test_diff_says_what_a_reload_would_touch(good: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    new.write_text(good.read_text().replace('"127.0.0.1:1"', '"127.0.0.1:1", "127.0.0.1:2"'))
    done = tcpgate("diff", good, new)
    assert done.exit_code == 0
    assert done.stdout == "+ upstream api: endpoint 127.0.0.1:2\n"
    found = json.loads(tcpgate("diff", good, new, "--json").stdout)
    assert found["upstreams"]["changed"][0]["added"] == ["127.0.0.1:2"]
    assert found["text"] == ["+ upstream api: endpoint 127.0.0.1:2"]
    assert tcpgate("diff", good, good).stdout == "nothing would change\n"


def test_routes_of_a_file_stand_in_the_order_in_which_they_are_tried(good: Path) -> None:
    lines = tcpgate("routes", good).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ROUTE", "exact", "all"]
    assert "EXCHANGES" not in lines[0]
    rows = json.loads(tcpgate("routes", good, "--json").stdout)
    assert [row["route"] for row in rows] == ["exact", "all"]


def test_the_schema_is_json_and_tells_of_every_table() -> None:
    found = json.loads(tcpgate("schema").stdout)
    assert {"gateway", "admin", "log", "listeners", "routes", "filters", "upstreams"} <= found["properties"].keys()


def test_help_tells_of_every_command_within_eighty_columns() -> None:
    done = tcpgate("--help")
    for command in cli.main.commands:
        assert f"\n  {command} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert max(map(len, done.stdout.splitlines())) <= 80


# -- nobody to ask, and wrong words ---------------------------------------------------------------------------------

ASKING = [
    ["status"],
    ["routes"],
    ["upstreams"],
    ["events"],
    ["reload"],
    ["reload", "--no-wait"],
    ["drain", "api/127.0.0.1:1"],
    ["ready", "api/127.0.0.1:1"],
    ["maint", "api/127.0.0.1:1"],
    ["weight", "api/127.0.0.1:1", "3"],
]


@pytest.mark.parametrize("command", ASKING, ids=lambda command: " ".join(command))
def test_without_a_gateway_a_command_says_where_it_asked_and_exits_1(command: list[str], tmp_path: Path) -> None:
    done = tcpgate(*command, "--admin", f"unix:{tmp_path}/admin.sock")
    assert (done.exit_code, done.stdout) == (1, "")
    where = f"unix:{tmp_path}/admin.sock: no such file or directory"
    assert done.stderr == f"tcpgate: no gateway answers at {where}; is it running? --admin says where it is\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["status", "--admin", "nonsense"], 1, "tcpgate: --admin: 'nonsense' is not an address"),
        (["status", "--token-file", "/nowhere/token"], 1, "cannot read the token in /nowhere/token: No such file"),
        (["drain", "api"], 1, "'api' names no endpoint; write it as UPSTREAM/ENDPOINT"),
        (["weight", "api/a:1", "257"], 2, "'257' is no weight: write a number from 0 to 256"),
        (["weight", "api/a:1", "many"], 2, "'many' is no weight"),
        (["events", "--limit", "0"], 2, "0 is not in the range"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["check"], 2, "Missing argument 'CONFIG'"),
    ],
)
def test_wrong_words_are_told_with_the_right_ones(words: list[str], code: int, says: str) -> None:
    done = tcpgate(*words)
    assert done.exit_code == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_config_says_where_to_ask_even_while_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, token = tmp_path / "tcpgate.toml", tmp_path / "token"
    token.write_text("0123456789abcdef-secret\n")
    token.chmod(0o600)
    text = f'[admin]\nbind = "unix:{tmp_path}/own.sock"\ntoken_file = "{token}"\n'
    monkeypatch.setattr(cli, "INSTALLED", installed)
    assert cli.installed_admin() == (None, None)
    for body in (GOOD, GOOD.replace('upstream = "api"', 'upstream = "nowhere"')):
        installed.write_text(text + body)
        assert cli.installed_admin() == (f"unix:{tmp_path}/own.sock", "0123456789abcdef-secret")
    done = tcpgate("status")
    assert f"no gateway answers at unix:{tmp_path}/own.sock or unix:/run/tcpgate/admin.sock or " in done.stderr
    installed.write_text("[nonsense")
    assert cli.installed_admin() == (None, None)


# -- a real gateway -------------------------------------------------------------------------------------------------

Json = Any


@attrs.define
class Terminal:
    """Commands as an operator types them, each a process."""

    gateway: Gateway

    async def __call__(self, *words: str, code: int = 0) -> str:
        """What stands on stdout, and on stderr after it."""
        done = await trio.to_thread.run_sync(self._run, words)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    async def json(self, *words: str) -> Json:
        """The same as JSON."""
        return json.loads(await self(*words, "--json"))

    def _run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tcpgate", *words, "--admin", f"unix:{self.gateway.folder}/admin.sock"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.slow
async def test_an_operators_day(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as origin:
        endpoint = f"127.0.0.1:{origin.getsockname()[1]}"
        text = head_of(tmp_path) + GOOD.replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}")
        text = text.replace('"127.0.0.1:1"', f'"{endpoint}", {{ address = "127.0.0.1:2", weight = 3, tier = 1 }}')
        async with running(tmp_path, text) as gateway:
            type_ = Terminal(gateway)

            said = await type_("status")
            assert "is ready: generation 1, up " in said
            assert "\nreload     none yet\nendpoints  2 of 2 up\nworkers    1 of 1\n" in said
            assert (await type_.json("status"))["ready"] is True

            said = await type_("upstreams")
            assert said.splitlines()[0].split()[:4] == ["UPSTREAM", "ENDPOINT", "STATE", "FOR"]
            assert endpoint in said
            assert (await type_.json("upstreams", "api"))["endpoints"][1]["tier"] == 1
            assert 'there is no upstream "apu" (did you mean "api"?)' in await type_("upstreams", "apu", code=1)

            assert await type_("drain", f"api/{endpoint}") == f"api/{endpoint}: draining, weight 1\n"
            assert f"endpoints  1 of 2 up; out: api/{endpoint} draining" in await type_("status")
            assert await type_("maint", f"api/{endpoint}") == f"api/{endpoint}: maint, weight 1\n"
            assert await type_("ready", f"api/{endpoint}") == f"api/{endpoint}: healthy, weight 1\n"
            assert await type_("weight", f"api/{endpoint}", "7") == f"api/{endpoint}: healthy, weight 7\n"
            assert await type_("weight", f"api/{endpoint}", "config") == f"api/{endpoint}: healthy, weight 1\n"
            assert "there is no endpoint" in await type_("drain", "api/127.0.0.1:3", code=1)

            assert "reload: nothing changed, generation 1 goes on" in await type_("reload", "--wait")
            gateway.config.write_text(text.replace('body = "x"', "").replace('"=/x"', '"=/y"'))
            said = await type_("reload")
            assert "~ route exact: path =/x -> =/y, for new requests\nreload: generation 2 serves, 1 change in" in said
            gateway.config.write_text(text.replace("[routes.all]", "[route.all]"))
            said = await type_("reload", code=1)
            assert "gateway.toml" in said
            assert said.endswith("reload failed, generation 2 goes on\n")
            assert "ago: reload failed, generation 2 goes on: " in await type_("status")
            gateway.config.write_text(text)
            assert "asked for" in await type_("reload", "--no-wait")

            lines = (await type_("events", "--limit", "200")).splitlines()
            assert lines[0].split() == ["SEQ", "TIME", "LEVEL", "TEXT"]
            assert any("operator: weight 7" in line for line in lines)
            newest = (await type_.json("events", "--limit", "1"))[0]["seq"]
            assert await type_("events", "--since", str(newest)) == "no events\n"
            rows = await type_.json("routes")
            assert [row["route"] for row in rows] == ["exact", "all"]


# -- tables ---------------------------------------------------------------------------------------------------------

ROWS = [
    {"name": "a", "state": "up", "cause": "probe: status 200 (first)"},
    {"name": "a-longer-name", "state": "down", "cause": "probe: connect refused (3 of 3), and more to say of it"},
]


def test_a_table_is_as_wide_as_its_cells_into_a_pipe() -> None:
    assert table.render(ROWS, ("name", "state", "cause")).splitlines() == [
        "NAME           STATE  CAUSE",
        "a              up     probe: status 200 (first)",
        "a-longer-name  down   probe: connect refused (3 of 3), and more to say of it",
    ]


def test_on_a_terminal_the_last_column_is_cut_first() -> None:
    lines = table.render(ROWS, ("name", "state", "cause"), width=40).splitlines()
    assert lines[2] == "a-longer-name  down   probe: connect re…"
    assert max(map(len, lines)) == 40


def test_columns_that_nobody_fills_can_be_left_out() -> None:
    rows = [{"a": 1, "b": None, "c": ""}]
    assert table.render(rows, ("a", "b", "c"), may_hide=("b",)) == "A  C\n1  -"
    assert table.render([], ("a",), empty="nothing") == "nothing"


@given(
    st.lists(st.fixed_dictionaries({name: st.text(max_size=60) for name in "abc"}), min_size=1, max_size=5),
    st.integers(1, 120),
)
def test_a_table_fits_where_it_can_and_a_cell_is_one_line(rows: list[dict[str, str]], width: int) -> None:
    lines = table.render(rows, "abc", width=width).splitlines() or [""]
    if all("\n" not in cell and cell.isprintable() for row in rows for cell in row.values()):
        assert len(lines) == len(rows) + 1
    assert max(map(len, lines)) <= max(width, 3 * table.LEAST + 4)


def test_shares_and_short_times_are_short() -> None:
    assert [table.percent(share) for share in (None, 0.0, 0.9999, 1.0)] == [None, "0.00%", "99.99%", "100.00%"]
    assert [table.ms(us) for us in (0, 260, 12_345)] == ["0.0ms", "0.3ms", "12.3ms"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.25, "0.2s"), (3.14, "3.1s"), (12.7, "13s"), (59.4, "59s"), (60, "1m")),
        *((185, "3m"), (7200, "2h"), (86400 * 12 + 5, "12d")),
    ],
)
def test_a_span_is_said_as_a_person_says_it(seconds: float, text: str) -> None:
    assert table.span(seconds) == text
