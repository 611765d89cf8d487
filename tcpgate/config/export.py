"""A config as data for others: the effective one with its defaults, for people and the API; secrets never show. Pure.

`dump` gives what TOML could say: units as text, no `None`, every default spelled out. Read back, it is the same config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from tcpgate.config import schema, validators
from tcpgate.units import Bytes, Networks, Seconds, format_span, parse_span

HIDDEN = "***"
Json = dict[str, Any]


def dump(config: schema.Config) -> Json:
    """The effective config as JSON values, shaped as its TOML; secrets are hidden."""
    dumped = plain(config, schema.Config)
    assert isinstance(dumped, dict)
    return dumped


def plain(value: Any, type_: Any) -> Any:
    """`value` of a schema field of this type, as the TOML would have it."""
    match value:
        case validators.Secret():
            return HIDDEN
        case Networks():
            return [str(network) for network in value.networks]
        case tuple():
            return [plain(item, None) for item in value]
        case Mapping():
            return {name: plain(item, None) for name, item in value.items()}
        case float() if type_ in (Seconds, Seconds | None):
            return span_text(value)
        case int() if type_ is Bytes:
            return size_text(value)
        case float() if type_ is schema.ByteRate:
            return rate_text(value)
    if attrs.has(type(value)):
        attrs.resolve_types(type(value))
        # What a file held is told by the file's name.
        shown = [field for field in attrs.fields(type(value)) if not field.name.endswith("_pem")]
        fields = {field.name: plain(getattr(value, field.name), field.type) for field in shown}
        return {name: item for name, item in fields.items() if item is not None}
    return value


def span_text(seconds: float) -> str:
    """A span that reads back as the same number of seconds, to the microsecond."""
    short = format_span(seconds)
    exact = round(parse_span(short), 6) == seconds
    return short if exact else f"{seconds:.6f}".rstrip("0") + "s"


_SIZES = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def size_text(count: int) -> str:
    """A size in the largest unit that divides it."""
    return next((f"{count // size}{unit}" for unit, size in _SIZES if count and count % size == 0), f"{count}B")


def rate_text(rate: float) -> str:
    """A data rate that reads back as exactly the same."""
    return f"{size_text(int(rate))}/s" if rate == int(rate) else f"{rate:.6f}".rstrip("0") + "B/s"
