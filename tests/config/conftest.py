"""Writing TOML, for tests that make configs from values."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest


def value_text(value: Any) -> str:
    """A value as TOML writes it, tables inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but for the surrogates that no TOML can hold, and DEL, which JSON leaves as it is.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case float():
            return "nan" if math.isnan(value) else "inf" if value == math.inf else repr(value)
        case int():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            return "{" + ", ".join(f"{value_text(key)} = {value_text(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(value_text, value)) + "]"


def toml_text(tree: Mapping[str, Any]) -> str:
    """A tree as a TOML file: one line for each key at the top."""
    return "".join(f"{value_text(key)} = {value_text(item)}\n" for key, item in tree.items())


@pytest.fixture(scope="session")
def write_toml() -> Callable[[Mapping[str, Any]], str]:
    """Turns a tree of values into the text of a TOML file."""
    return toml_text
