"""A config that is large, or wrong a thousand times, is judged in about the time that it takes to read it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tcpgate.config.load import load
from tcpgate.errors import ConfigError, Problem

START = '[listeners.web]\nbind = ["127.0.0.1:80"]\n[upstreams.a]\nendpoints = ["127.0.0.1:1"]\n'
ENVIRON = {f"VARIABLE_{number}": "x" for number in range(100)}
SECONDS = 6.0
"""Of this process's own time, so that a busy host does not count: three times what the slowest takes. Each took 9 s or
more while its cost was quadratic."""


def judged(folder: Path, text: str, environ: Mapping[str, str]) -> list[Problem]:
    file = folder / "c.toml"
    file.write_text(START + text)
    began = time.process_time()
    try:
        problems = load(file, environ=environ, credentials=None).warnings
    except ConfigError as exc:
        problems = exc.problems
    assert time.process_time() - began < SECONDS
    return problems


def tables(count: int, template: str) -> str:
    return "".join(template.replace("#", str(number)) for number in range(count))


@pytest.mark.parametrize(
    "text",
    [
        tables(30_000, "[upstreams.u#]\nx = 1\n"),
        '[routes.r]\nupstream = "a"\nhosts = [' + tables(20_000, '"${A#}",') + "]\n",
        tables(10_000, '[routes.r#]\nupstream = "nobody#"\n'),
    ],
    ids=["broken tables", "missing variables", "dangling names"],
)
def test_ten_thousand_problems_and_more_are_told_at_once(tmp_path: Path, text: str) -> None:
    problems = judged(tmp_path, text, ENVIRON)
    assert len(problems) > 1000
    assert problems[-1].text.endswith("more problems")


def test_two_thousand_routes_told_apart_by_different_fields_are_told_once_each(tmp_path: Path) -> None:
    problems = judged(tmp_path, tables(2000, '[routes.r#]\nupstream = "a"\nheaders = { "x-#" = "v" }\n'), {})
    assert len(problems) == 1999
    assert all("is as specific as" in problem.text for problem in problems)


def test_redirects_are_followed_past_a_thousand_regular_expressions(tmp_path: Path) -> None:
    text = tables(
        1000,
        '[routes.p#]\nupstream = "a"\npath = "~/a#/.*"\n[routes.s#]\npath = "/b#"\nredirect = { to = "/a#/c" }\n',
    )
    assert judged(tmp_path, text, {}) == []
