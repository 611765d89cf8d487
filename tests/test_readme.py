"""The README against the program: what it lists is what there is, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import attrs
import pytest

from tcpgate import cli, glance
from tcpgate.cli import main
from tcpgate.config import schema
from tcpgate.config.load import load
from tcpgate.errors import REASONS
from tcpgate.stats.journal import EventKind
from tcpgate.stats.record import ACCESS_FIELDS
from tests import pki
from tests.bench.__main__ import chosen, parser
from tests.bench.peers import rivals
from tests.bench.rows import ROWS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """The text under one of the headings."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_reasons_of_the_log_are_the_closed_list_with_its_statuses() -> None:
    table = section("Logs").split("| whose doing |")[1].split("\n\n")[0]
    told = {word: int(status or 0) for word, status in re.findall(r"`(\w+)`(?: \((\d+)\))?", table)}
    assert told == {str(reason): facts.status for reason, facts in REASONS.items()}


def test_the_fields_of_an_access_line_are_all_there() -> None:
    cells = re.findall(r"^\| ((?:`\w+` ?)+)\|", section("Logs").split("| whose doing |")[0], re.MULTILINE)
    told = {word for cell in cells for word in re.findall(r"\w+", cell)}
    assert told == set(ACCESS_FIELDS) - {"attempts_cut"}


def test_every_event_is_told_once() -> None:
    table = section("Logs").split("| events of |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(EventKind)


def test_every_command_is_told_and_every_one_told_exists() -> None:
    table = section("Operating").split("Endpoints are named")[0]
    told = {word for cell in re.findall(r"^\| (`tcpgate .*?) \|", table, re.MULTILINE) for word in words(cell)}
    assert told == set(main.commands)
    anywhere = set(re.findall(r"^    (?:\$ |\.venv/bin/)?tcpgate ([a-z]\w*)", README, re.MULTILINE))
    assert anywhere <= set(main.commands)


def words(cell: str) -> list[str]:
    """The commands in a cell such as "`tcpgate status` · `routes`"."""
    return [span.removeprefix("tcpgate ").split()[0] for span in re.findall(r"`([^`]+)`", cell)]


def test_every_make_target_that_is_told_exists() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"(?:^    |`|; |=\d+ )make ([a-z-]+)", README, re.MULTILINE))
    assert told >= {"run", "test", "install", "drills-quick"}
    assert told <= there


def test_what_the_benchmark_is_asked_for_it_can_do() -> None:
    asked = [parser().parse_args(shlex.split(text)) for text in re.findall(r'make bench BENCH="(.*?)"', README)]
    assert any(options.markdown for options in asked)
    peers = {"tcpgate": None, **{peer.name: peer for peer in rivals()}}
    for options in asked:
        assert chosen(options.rows, {row.name: row for row in ROWS}, "row")
        assert chosen(options.peers, peers, "peer")
    assert "\n#### The table\n" in section("What a request costs")


def test_every_key_of_the_process_that_is_told_exists() -> None:
    told = set(re.findall(r"`(gateway|admin|log)\.(?!toml)(\w+)`", README))
    assert len(told) >= 5
    tables = {"gateway": schema.Gateway, "admin": schema.Admin, "log": schema.Log}
    keys = {(table, field.name) for table, cls in tables.items() for field in attrs.fields(cls)}
    assert told <= keys
    assert "`lane = false` under `[gateway]`" in README
    assert ("gateway", "lane") in keys


def test_the_tables_that_commands_print_have_these_columns() -> None:
    headers = re.findall(r"^    ([A-Z][A-Z ]+)$", section("What a request costs"), re.MULTILINE)
    assert len(headers) == 3
    rooms = [str(room.__file__) for room in (cli, glance)]
    there = {word for room in rooms for word in re.findall(r'"(\w+)"', Path(room).read_text())}
    assert {name.lower().replace(" ", "_") for line in headers for name in re.split(r" {2,}", line)} <= there


def test_every_file_and_every_heading_that_is_told_exists() -> None:
    files = set(re.findall(r"`((?:etc|systemd|tests|tcpgate)/[\w./]+)`", README))
    assert len(files) > 5
    assert [name for name in files if not (ROOT / name).exists()] == []
    headings = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in re.findall(r"^## (.*)", README, re.M)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) == headings


def test_every_drill_has_one_row_among_the_promises() -> None:
    names = re.findall(r"\| `(\w+)` \|", section("What it promises, and how that was seen"))
    drills = [
        name
        for path in (ROOT / "tests" / "drills").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    assert len(drills) > 5
    assert {drill: [name for name in names if name in drill] for drill in drills if _rows(drill, names) != 1} == {}


def _rows(drill: str, names: list[str]) -> int:
    return sum(name in drill for name in names)


def test_the_example_is_a_config_that_can_serve(tmp_path: Path) -> None:
    found = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert found
    path = tmp_path / "gateway.toml"
    path.write_text(found[1])
    config = load(path, environ={}, credentials=None).config
    assert list(config.upstreams) == ["api"]


def test_the_other_examples_are_parts_of_configs_that_can_serve_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    authority = pki.authority()
    texts = {"clients.pem": authority.chain, "internal.pem": authority.chain, "clients.crl": pki.revoked(authority)}
    for name, server in (("shop", "admin"), ("api", "api"), ("gateway", "gateway")):
        leaf = pki.make(f"{server}.example.com", issuer=authority)
        texts |= {f"{name}.crt": leaf.chain, "api" if name == "api" else f"{name}.key": leaf.private}
    for name, text in texts.items():
        Path(name).touch(mode=0o600)
        Path(name).write_text(text)
    base = '[listeners.base]\nbind = ["127.0.0.1:9"]\n[routes.base]\nhosts = ["base.example"]\nrespond = {}\n'
    examples = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)[1:]
    assert len(examples) >= 5
    for example in examples:
        named = re.findall(r"^\[upstreams\.(\w+)\]", example, re.MULTILINE)
        routes = "".join(f'[routes.x{name}]\npath = "/x{name}"\nupstream = "{name}"\n' for name in named)
        Path("gate.toml").write_text(base + example + routes)
        assert load("gate.toml", environ={}, credentials=tmp_path).warnings == []
