"""What a value of the config may be: validators of the schema's fields, and text that never shows.

Each validator raises ValueError with what would be right, in a message that begins with the field's name. None needs
the owner of the field, so that `structure.py` can judge each field by itself. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from tcpgate.units import format_size, format_span

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]
"""Called as attrs does, with the owner, the field and the value."""


@attrs.frozen
class Between:
    """`low` to `high`, both allowed; `show` writes a number as the config would."""

    low: float
    high: float
    show: Callable[[float], str] = "{:.12g}".format

    def __call__(self, _: Any, field: attrs.Attribute[Any], value: float) -> None:
        if not self.low <= value <= self.high:
            bounds = f"from {self.show(self.low)} to {self.show(self.high)}"
            raise ValueError(f"{field.name} must be {bounds}, not {self.show(value)}")


@attrs.frozen
class Maybe:
    """None, or what `inner` accepts."""

    inner: Validator

    def __call__(self, owner: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            self.inner(owner, field, value)


def between(low: float, high: float) -> Between:
    """A number from `low` to `high`."""
    return Between(low, high)


def span(low: float, high: float) -> Between:
    """Seconds from `low` to `high`."""
    return Between(low, high, format_span)


def size(low: int, high: int) -> Between:
    """Bytes from `low` to `high`."""
    return Between(low, high, lambda count: format_size(int(count)))


def rate(low: int, high: int) -> Between:
    """Bytes per second from `low` to `high`."""
    return Between(low, high, lambda count: f"{format_size(int(count))}/s")


some_time = span(0.001, 365 * 86400)
"""No timeout of the gateway can be switched off, neither by a zero nor by an endless one."""


def optional(inner: Validator) -> Maybe:
    """None, or what `inner` accepts."""
    return Maybe(inner)


def regex(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    """A regular expression of Python's `re`, for text and for bytes."""
    try:
        re.compile(value)
        re.compile(value.encode())
    except (re.error, OverflowError, RecursionError, ValueError, Warning) as exc:
        raise ValueError(f"{field.name} is not a regular expression: {exc}") from None


def octal(_: Any, field: attrs.Attribute[Any], value: str) -> None:
    """Permissions as chmod(1) takes them: three or four octal digits."""
    if not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'{field.name} must be octal digits such as "0660", not {value!r}')


# -- secrets --------------------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class Secret:
    """Text that never shows: not in a repr, a log, a dump or the API. Only `reveal()` gives it."""

    _text: str

    def reveal(self) -> str:
        """The text itself, for comparing or sending; never for showing."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__
