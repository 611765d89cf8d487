"""Whatever a file says, loading it gives a config or a ConfigError with places, never another exception."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st

from tcpgate.config import schema
from tcpgate.config.export import dump
from tcpgate.config.load import load
from tcpgate.errors import ConfigError

WORDS = sorted(
    {
        field.name
        for cls in vars(schema).values()
        if isinstance(cls, type) and attrs.has(cls)
        for field in attrs.fields(cls)
    }
    | {"include", "kind", "a", "web", "a b", ""}
)
"""Every key of the schema, and a few names."""
TEXTS = [
    *(
        "a",
        "web",
        "api",
        "10.0.0.1:80",
        "[::1]:80",
        "unix:/x",
        "fd:x",
        "0.0.0.0:80",
        "http",
        "tcp",
        "/",
        "=/x",
        "~/(x",
        "~/x.*",
    ),
    *(
        "5s",
        "0s",
        "64KiB",
        "1KiB/s",
        "10.0.0.0/8",
        "GET",
        "header:x",
        "maglev",
        "headers",
        "access",
        "{path}",
        "http://{host}/a",
    ),
    *("${HOME}", "${X", "$$", "\x00", "é", "200-299", "*.example.com", "\\xZZ", "x" * 500),
]

scalars = st.one_of(
    st.sampled_from(TEXTS),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.booleans(),
    st.integers(-5, 300),
    st.integers(),
    st.floats(),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
)
keys = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5), max_leaves=30
)
tops = st.sampled_from([field.name for field in attrs.fields(schema.Config)] + ["include", "x"])
trees = st.dictionaries(tops, st.dictionaries(keys, values, max_size=4) | values, max_size=7)


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the config of the moment is written."""
    return tmp_path_factory.mktemp("any") / "any.toml"


def load_or_told(path: Path, text: str | bytes) -> schema.Config | None:
    """The config, or None if problems were told, each on a line of the file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    lines = path.read_bytes().count(b"\n") + 1
    try:
        return load(path, environ={"HOME": "/root"}, credentials=None).config
    except ConfigError as exc:
        problems = exc.problems
    assert problems
    for problem in problems:
        assert 0 <= problem.line <= lines
        assert len(str(problem)) < 2000
        assert str(problem).isprintable()
    return None


@hypothesis.settings(max_examples=100)
@hypothesis.given(tree=trees)
def test_any_tree_loads_or_is_told(
    path: Path, write_toml: Callable[[Mapping[str, Any]], str], tree: dict[str, Any]
) -> None:
    load_or_told(path, write_toml(tree))


@hypothesis.given(text=st.text(alphabet="[]{}=.,\"'#\\\n ab1-_:$é\x00", max_size=60))
def test_any_text_loads_or_is_told(path: Path, text: str) -> None:
    load_or_told(path, text)


@hypothesis.given(data=st.binary(max_size=100))
def test_any_bytes_load_or_are_told(path: Path, data: bytes) -> None:
    load_or_told(path, data)


@hypothesis.settings(max_examples=60)
@hypothesis.given(data=st.data())
def test_a_config_with_one_value_replaced_loads_or_is_told(
    path: Path,
    configs: st.SearchStrategy[schema.Config],
    write_toml: Callable[[Mapping[str, Any]], str],
    data: st.DataObject,
) -> None:
    tree = dump(data.draw(configs))
    places = [(table, key) for table, key in _leaves(tree)]
    table, key = data.draw(st.sampled_from(places))
    table[key] = data.draw(values)
    load_or_told(path, write_toml(tree))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    return [(tree, key) for key, _ in items] + [leaf for _, item in items for leaf in _leaves(item)]


def test_the_file_in_etc_with_any_byte_gone_loads_or_is_told(path: Path) -> None:
    whole = (Path(__file__).parents[2] / "etc" / "tcpgate.toml").read_bytes()
    start = whole.index(b"[listeners.redis]")
    for index in range(start, len(whole), 131):
        load_or_told(path, whole[:index] + whole[index + 1 :])


def test_no_file_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for text in ("[gateway]\n", "=", b"\xff", "include = ['*.toml']"):
        load_or_told(path, text)
    assert len(os.listdir("/proc/self/fd")) == before
