"""A route that is wrong in one key still says what is wrong with the names in its others, in the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpgate.config.load import load
from tcpgate.errors import ConfigError

CONFIG = """[listeners.web]
bind = ["127.0.0.1:8080"]
[routes.b]
path = "b"
upstream = "dmeo"
filters = ["x"]
timeout = "soon"
[upstreams.demo]
endpoints = ["10.0.0.1:80"]
"""


def problems(folder: Path, text: str) -> list[str]:
    (folder / "c.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(folder / "c.toml", environ={}, credentials=None)
    return [problem.path for problem in caught.value.problems]


def test_names_in_a_broken_route_are_looked_up_too(tmp_path: Path) -> None:
    wrong = ["routes.b.path", "routes.b.upstream", "routes.b.filters[0]", "routes.b.timeout"]
    assert problems(tmp_path, CONFIG) == wrong


def test_a_name_of_the_wrong_type_is_one_problem_and_not_two(tmp_path: Path) -> None:
    assert problems(tmp_path, CONFIG.replace('"dmeo"', "7")) == [
        "routes.b.path",
        "routes.b.upstream",
        "routes.b.filters[0]",
        "routes.b.timeout",
    ]


def test_what_is_no_table_at_all_has_no_names_to_look_up(tmp_path: Path) -> None:
    assert problems(tmp_path, CONFIG.replace("[routes.b]", "[routes]\nb = 1\n[filters.f]"))[0] == "routes.b"
