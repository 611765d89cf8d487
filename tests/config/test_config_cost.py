"""A config that is large, or wrong a thousand times, costs in step with its size, and not with the square of it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tcpgate.config.load import load
from tcpgate.errors import ConfigError, Problem

START = '[listeners.web]\nbind = ["127.0.0.1:80"]\n[upstreams.a]\nendpoints = ["127.0.0.1:1"]\n'
ENVIRON = {f"VARIABLE_{number}": "x" for number in range(100)}
BOUND = 4
"""Three times the size costs three times as much, give or take; the square would be nine times."""


def judged(folder: Path, text: str) -> tuple[list[Problem], int]:
    """What is said of a config, and how many calls that took: a count, because a time is another one each time."""
    file = folder / "c.toml"
    file.write_text(START + text)
    calls = itertools.count()
    outer = sys.getprofile()
    sys.setprofile(lambda frame, event, _: next(calls) if event in ("call", "c_call") else None)
    try:
        problems = load(file, environ=ENVIRON, credentials=None).warnings
    except ConfigError as exc:
        problems = exc.problems
    finally:
        sys.setprofile(outer)
    return problems, next(calls)


def judged_in_step(folder: Path, template: str, count: int, *, around: tuple[str, str] = ("", "")) -> list[Problem]:
    """What is said of three times `count` repetitions, which cost in step with as many."""

    def config(repeated: int) -> str:
        return "".join((around[0], *(template.replace("#", str(number)) for number in range(repeated)), around[1]))

    judged(folder, config(1))  # what is made once is made now
    _, few = judged(folder, config(count))
    problems, many = judged(folder, config(3 * count))
    assert many < BOUND * few
    return problems


@pytest.mark.parametrize(
    ("template", "around"),
    [
        ("[upstreams.u#]\nx = 1\n", ("", "")),
        ('"${A#}",', ('[routes.r]\nupstream = "a"\nhosts = [', "]\n")),
        ('[routes.r#]\nupstream = "nobody#"\n', ("", "")),
    ],
    ids=["broken tables", "missing variables", "dangling names"],
)
def test_thousands_of_problems_are_told_at_once(tmp_path: Path, template: str, around: tuple[str, str]) -> None:
    problems = judged_in_step(tmp_path, template, 2000, around=around)
    assert len(problems) > 1000
    assert problems[-1].text.endswith("more problems")


def test_routes_told_apart_by_different_fields_are_told_once_each(tmp_path: Path) -> None:
    problems = judged_in_step(tmp_path, '[routes.r#]\nupstream = "a"\nheaders = { "x-#" = "v" }\n', 500)
    assert len(problems) == 1499
    assert all("is as specific as" in problem.text for problem in problems)


def test_redirects_are_followed_past_a_thousand_regular_expressions(tmp_path: Path) -> None:
    template = '[routes.p#]\nupstream = "a"\npath = "~/a#/.*"\n[routes.s#]\npath = "/b#"\nredirect = { to = "/a#/c" }\n'
    assert judged_in_step(tmp_path, template, 400) == []
