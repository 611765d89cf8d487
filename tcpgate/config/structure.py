"""From a tree of TOML values to the schema's classes, strictly, with every problem at once. Pure.

cattrs walks the classes and collects what fails, with its path. The hooks here say what each type may be written as:
nothing is coerced (`"80"` is no number, `true` is no 1), units become plain numbers, and each message says what was
found, what is right, and the nearest known word.

attrs runs validators only once all fields of a class are there; so here each field's validator runs right after the
field itself, and a class with a bad weight *and* a bad tier says both.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import attrs
import cattrs
from cattrs.cols import homogenous_tuple_structure_factory, mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
)
from cattrs.gen import make_dict_structure_fn, override

from tcpgate.config import forms, schema, validators
from tcpgate.config.fields import CANONICAL, Misformed, judge
from tcpgate.config.report import AnyName, Key, KeyPath, Report, found, listed, nearest, quoted
from tcpgate.config.source import NAMED_TABLES, SINGLE_TABLES, Table
from tcpgate.units import (
    Bytes,
    Network,
    Networks,
    PerSecond,
    Seconds,
    parse_network,
    parse_rate,
    parse_size,
    parse_size_rate,
    parse_span,
)

Hook = Callable[[Any, Any], Any]

MAX_UNIT_TEXT = 64
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""What a table may be called."""


@attrs.frozen
class Structured:
    """What became of a tree: the config of all tables that are right, and the names of those that are not."""

    config: schema.Config
    broken: Mapping[str, Collection[str]]
    """Table -> names that the TOML has, but that `config` does not. To refer to one is no second problem."""
    salvaged: Mapping[str, schema.Route]
    """Broken routes without the keys that are wrong: a name in them that leads nowhere can be told as well."""


def structure(tree: Table, report: Report) -> Structured:
    """The config that `tree` means; every problem goes to `report`."""
    parts: dict[str, Any] = {}
    broken: dict[str, Collection[str]] = dict.fromkeys(NAMED_TABLES, ())
    salvaged: dict[str, schema.Route] = {}
    types = {field.name: field.type for field in attrs.fields(_resolved(schema.Config))}
    for table, value in tree.items():
        if table in SINGLE_TABLES:
            _put(parts, (table,), value, types[table], report)
        elif table not in NAMED_TABLES:
            report.error((table,), _unknown(table, ["include", *types]))
        elif not isinstance(value, dict):
            report.error((table,), f"expected tables with a name, as [{table}.NAME], found {found(value)}")
            broken[table] = AnyName()
        else:
            item_type = typing.get_args(types[table])[1]
            parts[table] = {}
            wrong = broken[table] = set()
            for name, item in value.items():
                named = _named(name, (table, name), report)
                faults = _put(parts[table], (table, name), item, item_type, report)
                if faults or not named:
                    wrong.add(name)
                if faults and table == "routes" and isinstance(item, dict):
                    # A route has no key that it must have, so without the wrong ones it is one.
                    good = item.keys() - {place[2] for place in faults if len(place) > 2}
                    _put(
                        salvaged, (table, name), {key: item[key] for key in good}, item_type, Report(lambda _: ("", 0))
                    )
    return Structured(schema.Config(**parts), broken, salvaged)


def _put(into: dict[str, Any], path: KeyPath, value: Any, type_: Any, report: Report) -> list[KeyPath]:
    """Structure `value` into `into` under the last key of `path`; else the places of what is wrong, all reported."""
    try:
        into[str(path[-1])] = converter().structure(value, type_)
    except (cattrs.BaseValidationError, ValueError) as exc:
        problems = list(_problems(exc, path))
        for place, text in problems:
            report.error(place, text)
        return [place for place, _ in problems]
    return []


def _named(name: str, path: KeyPath, report: Report) -> bool:
    if not NAME.fullmatch(name):
        report.error(path, "a name may have letters, digits and _ . -, 64 at most: it is used in URLs and metrics")
    return bool(NAME.fullmatch(name))


def _problems(exc: BaseException, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Each problem in what cattrs raised, with its key path."""
    match exc:
        case ClassValidationError() | IterableValidationError():
            with_notes, others = exc.group_exceptions()
            for inner, note in with_notes:
                key: Key = note.name if isinstance(note, AttributeValidationNote) else note.index
                yield from _problems(inner, (*path, key))
            for inner in others:
                yield from _problems(inner, path)
        case Misformed():
            yield from ((path + below, text) for below, text in exc.findings)
        case ForbiddenExtraKeysError():
            for key in sorted(exc.extra_fields):
                yield (*path, key), _unknown_in(exc.cl, key)
        case KeyError(args=(key,)) if key == path[-1]:
            yield path[:-1], f"{key} is missing, and has no default"
        case ValueError():
            # A validator begins with the field's name, which the path has said already.
            yield path, str(exc).removeprefix(f"{path[-1]} ")
        case _:
            raise exc


def _unknown_in(cls: type, key: str) -> str:
    fields = {field.name: field for field in attrs.fields(cls)}
    if key in fields and _is_secret(fields[key]):
        return f"a secret does not belong in the config; set {key}_file to the path of a file that holds it"
    return _unknown(key, [name for name, field in fields.items() if not _is_secret(field)])


def _unknown(key: str, known: list[str]) -> str:
    return "unknown key" + (nearest(key, known) or f"; known here: {', '.join(known)}")


# -- how each type may be written -----------------------------------------------------------------------------------


@cache
def converter() -> cattrs.Converter:
    """The one converter; it never changes once it is made."""
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for type_, hook in _SCALARS.items():
        made.register_structure_hook(type_, hook)
    made.register_structure_hook(Networks, _networks(made))
    made.register_structure_hook_func(_origin(Literal), _literal)
    made.register_structure_hook_func(lambda type_: type_ == int | Literal["auto"], _int_or_auto)
    made.register_structure_hook_factory(_origin(tuple))(_list_hook)
    made.register_structure_hook_factory(_origin(Mapping))(_table_hook)
    made.register_structure_hook_factory(attrs.has)(_class_hook)
    made.register_structure_hook(schema.Endpoint, _endpoint_hook(made))
    made.register_structure_hook_func(lambda type_: type_ == schema.Filter, _filter_hook(made))
    return made


def _origin(wanted: Any) -> Callable[[Any], bool]:
    """Whether a type is `wanted[...]`."""
    return lambda type_: typing.get_origin(type_) is wanted


def _resolved(cls: Any) -> Any:
    """`cls`, its fields' types no longer text."""
    return attrs.resolve_types(cls)


def _is_secret(field: attrs.Attribute[Any]) -> bool:
    return field.type == validators.Secret | None


def _class_hook(cls: Any, made: cattrs.Converter) -> Hook:
    _resolved(cls)
    keys: dict[str, Any] = {
        field.name: override(omit=True) if _is_secret(field) else override(struct_hook=_field(cls, field, made))
        for field in attrs.fields(cls)
    }
    inner = make_dict_structure_fn(cls, made, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **keys)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a table, found {found(value)}")
        return inner(value, cls)

    return hook


def _field(cls: type, field: attrs.Attribute[Any], made: cattrs.Converter) -> Hook:
    """A field's value, judged by the field's own validator and form at once."""
    inner = made.get_structure_hook(field.type)
    canonical = CANONICAL.get((cls, field.name))

    def hook(value: Any, type_: Any) -> Any:
        structured = inner(value, type_)
        if field.validator is not None:
            field.validator(None, field, structured)
        judge(cls, field.name, structured)
        return canonical(structured) if canonical else structured

    return hook


def _list_hook(type_: Any, made: cattrs.Converter) -> Hook:
    inner = homogenous_tuple_structure_factory(type_, made)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            cure = f"; write [{quoted(value)}]" if isinstance(value, str) else ""
            raise ValueError(f"expected a list, found {found(value)}{cure}")
        return inner(value, type_)

    return hook


def _table_hook(type_: Any, made: cattrs.Converter) -> Hook:
    inner = mapping_structure_factory(type_, made)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a table, found {found(value)}")
        return inner(value, type_)

    return hook


def _endpoint_hook(made: cattrs.Converter) -> Hook:
    inner = _class_hook(schema.Endpoint, made)

    def hook(value: Any, type_: Any) -> Any:
        if isinstance(value, str):
            if problem := forms.endpoint(value):
                raise ValueError(problem)
            return inner({"address": value}, type_)
        if not isinstance(value, dict):
            raise ValueError(f"expected an address or a table, found {found(value)}")
        return inner(value, type_)

    return hook


def _filter_hook(made: cattrs.Converter) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a table, found {found(value)}")
        kinds = list(schema.FILTER_SPECS)
        if "kind" not in value:
            raise ValueError(f"kind is missing; write one of {listed(kinds)}")
        made.structure({"kind": value["kind"]}, _Kind)
        return made.structure(value, schema.FILTER_SPECS[value["kind"]])

    return hook


@attrs.frozen
class _Kind:
    """Only the kind of a filter, so that a wrong one is told at its place."""

    kind: str = attrs.field()

    @kind.validator
    def _check_kind(self, _: attrs.Attribute[Any], value: str) -> None:
        if value not in schema.FILTER_SPECS:
            raise ValueError(f"{quoted(value)} {_not_one_of(value, list(schema.FILTER_SPECS))}")


def _not_one_of(word: str, known: Sequence[str]) -> str:
    return f"is not one of {listed(known)}{nearest(word, known)}"


def _literal(value: Any, type_: Any) -> Any:
    allowed = typing.get_args(type_)
    # 301.0 == 301 and True == 1, so the type counts too.
    if any(type(value) is type(word) and value == word for word in allowed):
        return value
    if all(isinstance(word, str) for word in allowed):
        if isinstance(value, str):
            raise ValueError(f"{quoted(value)} {_not_one_of(value, allowed)}")
        raise ValueError(f"expected one of {listed(allowed)}, found {found(value)}")
    raise ValueError(f"expected one of {', '.join(map(str, allowed))}, found {found(value)}{_unquote(value)}")


def _unquote(value: Any) -> str:
    """The cure where a number or a boolean stands in quotes."""
    bare = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?|true|false", value)
    return "; write it without quotes" if bare else ""


def _string(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        cure = "" if isinstance(value, list | dict) else "; write it in quotes"
        raise ValueError(f"expected a string, found {found(value)}{cure}")
    return value


def _boolean(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {found(value)}{_unquote(value)}")
    return value


def _integer(value: Any, _: Any, expected: str = "an integer") -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected {expected}, found {found(value)}{_unquote(value)}")
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("is beyond the 64 bits that an integer of TOML may have")
    return value


def _number(value: Any, _: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, found {found(value)}{_unquote(value)}")
    if isinstance(value, int):
        return float(_integer(value, int))
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return value


def _int_or_auto(value: Any, _: Any) -> int | str:
    return value if value == "auto" else _integer(value, int, '"auto" or an integer')


def _unit(parse: Callable[[str], Any], what: str, example: str) -> Hook:
    """A string that `parse` understands; a bare number is told which unit it lacks."""

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            bare = isinstance(value, int | float) and not isinstance(value, bool)
            cure = f'; a number needs its unit, as "{example}"' if bare else f'; write it as "{example}"'
            raise ValueError(f"expected {what}, found {found(value)}{cure}")
        if len(value) > MAX_UNIT_TEXT:
            raise ValueError(f"expected {what}, found {found(value)}")
        return parse(value)

    return hook


def _networks(made: cattrs.Converter) -> Hook:
    return lambda value, _: Networks(made.structure(value, tuple[Network, ...]))


_SCALARS: Mapping[Any, Hook] = {
    str: _string,
    bool: _boolean,
    int: _integer,
    float: _number,
    # To the microsecond: "0.1s0.2s" is 300 ms, whatever floats make of the sum.
    Seconds: _unit(lambda text: round(parse_span(text), 6), "a duration", "30s"),
    Bytes: _unit(parse_size, "a size", "64KiB"),
    PerSecond: _unit(parse_rate, "a rate", "100/s"),
    schema.ByteRate: _unit(parse_size_rate, "a data rate", "1KiB/s"),
    Network: _unit(parse_network, "a network", "10.0.0.0/8"),
}
