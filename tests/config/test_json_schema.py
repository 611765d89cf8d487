"""The JSON Schema: what editors and taplo make of a config."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jsonschema  # type: ignore[import-untyped]  # has no stubs here
import pytest

from tcpgate.config import schema, schema_tls
from tcpgate.config.fields import FORMS
from tcpgate.config.json_schema import PATTERNS, field_docs, json_schema

ROOT = Path(__file__).parents[2]
TAPLO = Path(sys.executable).parent / "taplo"

Taplo = Callable[[Path], tuple[int, str]]


@pytest.fixture
def taplo(tmp_path: Path) -> Taplo:
    """Checks a file against our schema: exit code and what it prints."""
    assert shutil.which(TAPLO), "taplo is one of the dev tools"
    (tmp_path / "schema.json").write_text(json.dumps(json_schema()))

    def run(path: Path) -> tuple[int, str]:
        command: list[str | Path] = [
            TAPLO,
            "check",
            "--no-auto-config",
            "--schema",
            f"file://{tmp_path}/schema.json",
            path,
        ]
        environ = {**os.environ, "RUST_LOG": "error"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=environ)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("name", ["tcpgate.toml", "quickstart.toml"])
def test_taplo_accepts_the_files_in_etc(name: str, taplo: Taplo) -> None:
    assert taplo(ROOT / "etc" / name) == (0, "")


@pytest.mark.parametrize(
    ("line", "column", "text", "problem"),
    [
        (2, 9, '[listeners.a]\nbind = ["0.0.0.0:65536"]', "does not match"),
        (2, 9, '[listeners.a]\nbind = ["0.0.0.0"]', "does not match"),
        (3, 12, '[listeners.a]\nbind = ["[::]:80"]\nprotocol = "htpp"', "does not match"),
        (3, 1, '[listeners.a]\nbind = ["fd:a"]\nbakclog = 1', "'bakclog' was unexpected"),
        (3, 11, '[listeners.a]\nbind = ["fd:a"]\nbacklog = 0', "less than the minimum"),
        (1, 1, "[listeners.a]\nbacklog = 1", '"bind" is a required property'),
        (2, 9, "[gateway]\ndrain = 30", 'not of type "string"'),
        (2, 9, '[gateway]\ndrain = "30"', "does not match"),
        (2, 11, '[gateway]\nworkers = "8"', "anyOf"),
        (1, 1, "gatway = 1", "'gatway' was unexpected"),
        (2, 8, '[filters.a]\nkind = "header"', "is not one of"),
        (3, 1, '[filters.a]\nkind = "headers"\nallow = []', "'allow' was unexpected"),
        (2, 14, '[upstreams.a]\nendpoints = ["a"]', "does not match"),
        (2, 42, '[upstreams.a]\nendpoints = [{ address = "a:0", weight = 257 }]', "greater than the maximum"),
        (1, 1, '[upstreams."a b"]\nendpoints = []', "does not match"),
        (2, 1, '[admin]\ntoken = "x"', "'token' was unexpected"),
        (3, 33, '[routes.a]\npath = "/"\nredirect = { to = "/", status = 200 }', "is not one of"),
    ],
)
def test_taplo_shows_line_and_column_of_what_is_wrong(
    line: int, column: int, text: str, problem: str, taplo: Taplo, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text + "\n")
    code, printed = taplo(path)
    assert code != 0
    assert problem in printed
    assert f"{path}:{line}:{column}\n" in printed


def test_a_reference_to_the_environment_passes_wherever_a_string_may_stand(taplo: Taplo, tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text(
        '[gateway]\ndrain = "${D:-1s}"\nworkers = "auto"\n[log]\nlevel = "${L}"\naccess = "${A}"\n'
        '[listeners.a]\nbind = ["127.0.0.1:${PORT:-80}"]\n[upstreams.u]\nendpoints = ["${U}", { address = "${V}" }]\n'
    )
    assert taplo(path) == (0, "")


def test_the_schema_is_one_under_both_drafts_that_editors_know() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema())) == json_schema()


def tables(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The definition of each class; a table, even where text may stand for it."""
    return {name: found.get("else", found) for name, found in document["definitions"].items()}


def test_every_key_is_described_as_below_its_field() -> None:
    found = tables(json_schema())
    assert found["Gateway"]["properties"]["drain"] == {
        "type": "string",
        "pattern": found["Gateway"]["properties"]["lame_duck"]["pattern"],
        "description": "How long open work may finish on stop, upgrade or removal (seconds). "
        "nginx waits forever, Envoy 600 s.",
        "default": "30s",
    }
    for name, table in found.items():
        cls = getattr(schema, name, None) or getattr(schema_tls, name)
        keys = {field.name for field in attrs.fields(cls) if field.name != "token" and not field.name.endswith("_pem")}
        assert set(table["properties"]) == keys
        assert table["additionalProperties"] is False
        docs = field_docs(cls)
        for key, value in table["properties"].items():
            assert "$ref" in value or value.get("description") == docs.get(key)


def test_every_reference_leads_to_a_definition() -> None:
    text = json.dumps(json_schema())
    names = set(re.findall(r'"\$ref": "#/definitions/(\w+)"', text))
    assert names == set(json_schema()["definitions"])


def test_every_pattern_belongs_to_a_form_that_the_loader_asks_for_too() -> None:
    assert set(PATTERNS) <= set(FORMS)
