"""The schema's classes as JSON Schema, so that an editor completes, explains and checks a config while it is typed.
Pure.

Made from the classes themselves: keys, types and defaults from attrs, bounds from the validators, descriptions from the
docstrings below the fields. It is as strict as the loader for names, types, words and forms; what holds between keys is
`tcpgate check`'s.

A string may hold `${NAME}`, of which a schema cannot know what it becomes, so every pattern lets it pass.

Source: JSON Schema draft 2020-12 (and draft 7, whose words taplo and Even Better TOML know: hence `definitions`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import attrs

from tcpgate.config import schema, schema_tls, validators
from tcpgate.config.export import Json, plain
from tcpgate.config.source import NAMED_TABLES
from tcpgate.config.structure import NAME
from tcpgate.units import Bytes, Networks, Seconds

_REFERENCE = r"\$\{"
_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,6})?"
_PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SIZE = rf"{_NUMBER}([KMGT]i?)?B"
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"

PATTERNS: Mapping[tuple[type, str], str] = {
    (schema.Admin, "bind"): rf"unix:/.*[^/]|{_HOST}:{_PORT}",
    (schema.Log, "access"): r"stdout|journal|off|/.*[^/]",
    (schema.Log, "events"): r"stdout|journal|off|/.*[^/]",
    (schema.Listener, "bind"): rf"unix:/.*[^/]|fd:[!-9;-~]+|{_HOST}:{_PORT}",
    (schema.Endpoint, "address"): rf"unix:/.*[^/]|{_HOST}:{_PORT}",
    (schema.Route, "hosts"): r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]",
    (schema.Route, "path"): r"~.*|=?/[^?#\\;]*",
    (schema.Route, "methods"): r"[A-Z0-9!#$%&'*+.^_`|~-]+",
    (schema.Route, "split_key"): rf"source|(header|cookie):{_TOKEN}",
    (schema.Upstream, "hash_key"): rf"source|path|(header|cookie):{_TOKEN}",
    (schema.Health, "http"): r"/[!-\"$-~]*",
    (schema.Health, "status"): r"[1-5][0-9]{2}(-[1-5][0-9]{2})?",
    (schema_tls.UpstreamTls, "pin"): r"sha256/[A-Za-z0-9+/]{43}=",
    (schema.Redirect, "to"): r"/.*|[hH][tT][tT][pP][sS]?://[^/].*",
}
"""The forms of `fields.py`, as far as a regular expression tells them."""


def json_schema() -> Json:
    """The whole config file as a JSON Schema."""
    root = _table(schema.Config)
    for table in NAMED_TABLES:
        root["properties"][table]["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    root["properties"] = {
        "include": {
            "type": "array",
            "items": {"type": "string"},
            "description": 'Files to read as well, such as "conf.d/*.toml"; relative to this one.',
        },
        **root["properties"],
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tcpgate.toml",
        **root,
        "definitions": {cls.__name__: _definition(cls) for cls in _classes()},
    }


@cache
def _classes() -> tuple[type, ...]:
    """Every class of the schema that is a table in TOML, from the whole to its parts."""
    found: list[type] = []
    waiting: list[Any] = [field.type for field in attrs.fields(attrs.resolve_types(schema.Config))]
    while waiting:
        type_ = waiting.pop(0)
        if isinstance(type_, type) and attrs.has(type_) and type_ is not validators.Secret:
            if type_ not in found:
                found.append(type_)
                waiting += [field.type for field in attrs.fields(attrs.resolve_types(type_))]
        else:
            waiting += typing.get_args(type_)
    return tuple(found)


def _definition(cls: type) -> Json:
    if cls is schema.Endpoint:
        address = _text(PATTERNS[schema.Endpoint, "address"])
        return {"if": {"type": "string"}, "then": address, "else": _table(cls), "description": _described(cls)}
    return _table(cls)


def _table(cls: Any) -> Json:
    docs = field_docs(cls)
    fields = [field for field in attrs.fields(attrs.resolve_types(cls)) if field.type != validators.Secret | None]
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    if cls in schema.FILTER_SPECS.values():
        required.append("kind")
    return {
        "type": "object",
        "description": _described(cls),
        "properties": {field.name: _property(cls, field, docs.get(field.name, "")) for field in fields},
        "required": required,
        "additionalProperties": False,
    }


def _described(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _property(cls: type, field: attrs.Attribute[Any], doc: str) -> Json:
    made = _typed(field.type, PATTERNS.get((cls, field.name)), _bounds(field.validator))
    if "$ref" in made:
        return made  # beside a reference draft 7 ignores all other words
    if doc:
        made["description"] = doc
    default = field.default
    if default is not attrs.NOTHING and default is not None and not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        made["default"] = plain(default, field.type)
    return made


def _bounds(validator: Any) -> Json:
    """The bounds of a number; spans and sizes are text in TOML, where no schema can compare them."""
    inner = validator.inner if isinstance(validator, validators.Maybe) else validator
    return {"minimum": inner.low, "maximum": inner.high} if isinstance(inner, validators.Between) else {}


def _text(pattern: str | None) -> Json:
    return {"type": "string", **({"pattern": f"^({pattern})$|{_REFERENCE}"} if pattern else {})}


_UNITS: Mapping[Any, str] = {
    Seconds: rf"({_NUMBER}(ms|s|m|h|d))+",
    Bytes: _SIZE,
    schema.ByteRate: rf"{_SIZE}/s",
}


def _typed(type_: Any, pattern: str | None, bounds: Json) -> Json:
    """What a TOML value of this type may be; `pattern` is for the strings in it."""
    if type_ in _UNITS:
        return _text(_UNITS[type_])
    if type_ == schema.Filter:
        return _filter()
    if attrs.has(type_):
        return {"$ref": f"#/definitions/{type_.__name__}"}
    simple: Mapping[Any, Json] = {
        str: _text(pattern),
        bool: {"type": "boolean"},
        int: {"type": "integer", **bounds},
        float: {"type": "number", **bounds},
        Networks: {"type": "array", "items": {"type": "string"}},
        int | Literal["auto"]: {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 64}, _text("auto")]},
    }
    return simple[type_] if type_ in simple else _composed(type_, pattern, bounds)


def _composed(type_: Any, pattern: str | None, bounds: Json) -> Json:
    """A type made of others: a list, a table of them, a choice of words, or one that may be absent."""
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple:
        return {"type": "array", "items": _typed(args[0], pattern, {})}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _typed(args[1], None, {})}
    if origin is Literal:
        words = all(isinstance(word, str) for word in args)
        return _text("|".join(args)) | {"examples": list(args)} if words else {"enum": list(args)}
    return _typed(args[0], pattern, bounds)  # X | None: TOML has no null


def _filter() -> Json:
    """One of the kinds; `if` per kind, because "is under none of the schemas" would help nobody."""
    kinds = list(schema.FILTER_SPECS)
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": kinds}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}},
                "then": {"$ref": f"#/definitions/{schema.FILTER_SPECS[kind].__name__}"},
            }
            for kind in kinds
        ],
    }


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field. Python drops them, so they are read from the source."""
    node = next(
        node for node in _module(cls.__module__) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    docs: dict[str, str] = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = inspect.cleandoc(doc)
    return docs


@cache
def _module(name: str) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(importlib.import_module(name))).body
