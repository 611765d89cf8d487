"""Any config at all, and any tree of values as TOML, for tests of properties."""

from __future__ import annotations

import datetime
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import pytest
from hypothesis import strategies as st

from tcpgate.config import schema, schema_tls, validators
from tcpgate.config.fields import FORMS, PEM_FILES
from tcpgate.units import Bytes, Networks, Seconds, parse_network


def value_text(value: Any) -> str:
    """A value as TOML writes it, tables inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's escapes are TOML's, but JSON leaves DEL as it is.
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


# -- any config -----------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c-1", "d.e", "F_2"]
"""Few, so that two configs often have the same ones."""
ADDRESSES = ["10.0.0.1:80", "[::1]:443", "unix:/run/x", "name:8080", "other.example:1"]
FIELDS = {"x-a": "1", "accept": "~text/.*", "x-b": "*"}
SAMPLES: Mapping[tuple[type, str], list[Any]] = {
    (schema.Gateway, "workers"): ["auto", 1, 64],
    (schema.Gateway, "state_dir"): ["/var/lib/tcpgate", "state"],
    (schema.Admin, "bind"): ["unix:/run/admin", "127.0.0.1:9901"],
    (schema.Admin, "token_file"): [None, "a.token", "credential:admin"],
    (schema.Log, "access"): ["stdout", "off", "/var/log/access.json"],
    (schema.Log, "events"): ["stdout", "journal", "/var/log/events.json"],
    (schema.Listener, "bind"): [
        ("0.0.0.0:80",),
        ("[::]:80", "fd:web"),
        ("fd:web", "[::]:80"),
        ("unix:/run/w", "0.0.0.0:80"),
    ],
    (schema.Listener, "upstream"): [None, *NAMES],
    (schema.Listener, "sni"): [{}, {"a.example": "a"}, {"a.example": "b", "*.b.example": "F_2"}],
    (schema.Listener, "alpn"): [{}, {"postgresql": "a"}, {"h2": "b", "dot \u00e9": "c-1"}],
    (schema.Listener, "mode"): ["0660", "777", "0600"],
    (schema_tls.Certificate, "names"): [(), ("a.example", "*.b.example"), ("10.0.0.1", "::1")],
    (schema_tls.ListenerTls, "alpn"): [("h2", "http/1.1"), (), ("imap",)],
    (schema_tls.ListenerTls, "ciphers"): [None, "ECDHE+AESGCM:!aNULL"],
    (schema_tls.TlsRules, "alpn"): [None, (), ("http/1.1",)],
    (schema_tls.UpstreamTls, "name"): [None, "a.example", "::1"],
    (schema_tls.UpstreamTls, "pin"): [(), ("sha256/" + "A" * 43 + "=",)],
    (schema.Listener, "trusted_proxies"): [
        Networks(),
        Networks([parse_network("10.0.0.0/8"), parse_network("::1/128")]),
    ],
    (schema.Respond, "content_type"): ["text/plain", "text/html; charset=utf-8"],
    (schema.Redirect, "to"): ["/x", "https://{host}{path}{query}"],
    (schema.Route, "listeners"): [(), ("a",), ("a", "b")],
    (schema.Route, "hosts"): [(), ("a.example",), ("*.example", "[::1]", "10.0.0.1")],
    (schema.Route, "path"): ["/", "/v1/", "=/x", "~/v[0-9]+/.*"],
    (schema.Route, "methods"): [(), ("GET",), ("GET", "PURGE")],
    (schema.Route, "headers"): [{}, {"x-a": "1"}, FIELDS],
    (schema.Route, "query"): [{}, {"q": "~[0-9]+"}],
    (schema.Route, "filters"): [(), ("a",), ("b", "a")],
    (schema.Route, "upstream"): [None, *NAMES],
    (schema.Route, "split"): [{}, {"a": 1}, {"a": 95, "b": 5}],
    (schema.Route, "split_key"): ["source", "cookie:id"],
    (schema.HeadersFilter, "set"): [{}, {"x-a": "1"}],
    (schema.HeadersFilter, "remove"): [(), ("x-b",)],
    (schema.HeadersFilter, "response_set"): [{}, {"x-a": "1"}],
    (schema.HeadersFilter, "response_remove"): [(), ("server",)],
    (schema.AccessFilter, "allow"): [Networks(), Networks([parse_network("10.0.0.0/8")])],
    (schema.AccessFilter, "deny"): [Networks(), Networks([parse_network("10.1.0.0/16")])],
    (schema.Endpoint, "address"): ADDRESSES,
    (schema.Upstream, "hash_key"): ["source", "path", "header:x"],
    (schema.Health, "host"): [None, "a.example:80"],
    (schema.Health, "method"): ["GET", "HEAD"],
    (schema.Health, "body"): [None, "ok|ready"],
    (schema.Health, "status"): [("200-399",), ("200", "204")],
}
KINDS = ("http", "tcp", "tls", "grpc", "exec", "send", "expect")
SERVERS = ["a.example", "*.a.example", "b"]
FILES = ["a.pem", "b.pem", "credential:c"]
PROBES: list[dict[str, Any]] = [
    {"http": "/healthz"},
    {"tcp": True},
    {"tls": True},
    {"grpc": ""},
    {"grpc": "a.Service"},
    {"exec": ("/bin/true", "-x")},
    {"send": "PING\\r\\n", "expect": "PONG"},
]


def numbers(field: attrs.Attribute[Any]) -> st.SearchStrategy[Any]:
    """What a number's validator allows."""
    bounds = field.validator.inner if isinstance(field.validator, validators.Maybe) else field.validator
    low, high = (bounds.low, bounds.high) if isinstance(bounds, validators.Between) else (0, 1000)
    if field.type in (Seconds, Seconds | None):
        return st.integers(math.ceil(low * 1000), int(high * 1000)).map(
            lambda milliseconds: Seconds(milliseconds / 1000)
        )
    if field.type in (int, Bytes):
        return st.integers(int(low), int(high))
    if field.type is schema.ByteRate:
        return st.integers(int(low), int(high)).map(float)
    return st.floats(low, high)


def field_values(cls: Any, field: attrs.Attribute[Any]) -> st.SearchStrategy[Any]:
    """What a field of the schema may be."""
    type_: Any = field.type
    if (cls, field.name) in SAMPLES:
        return st.sampled_from(SAMPLES[cls, field.name])
    if (cls, field.name) in PEM_FILES:
        files = st.sampled_from(FILES)
        return files if field.default is attrs.NOTHING else st.none() | files
    if type_ == Mapping[str, schema_tls.TlsRules]:
        return st.dictionaries(st.sampled_from(SERVERS), objects(schema_tls.TlsRules), max_size=2)
    if (cls, field.name) in FORMS:
        return st.just(field.default)  # a form that no sample above is known for
    if type_ is str:
        return st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=8)
    if type_ is bool:
        return st.booleans()
    for words in (type_, *typing.get_args(type_)):
        if typing.get_origin(words) is Literal:
            choice = st.sampled_from(typing.get_args(words))
            return choice if words is type_ else st.none() | choice
    if type_ == tuple[schema_tls.Certificate, ...]:
        return st.lists(objects(schema_tls.Certificate), min_size=1, max_size=2).map(tuple)
    if typing.get_origin(type_) is tuple:
        return st.lists(objects(schema.Endpoint), min_size=1, max_size=4, unique_by=lambda one: one.address).map(tuple)
    inner = next((arg for arg in typing.get_args(type_) if attrs.has(arg)), type_)
    if attrs.has(inner):
        return objects(inner) if inner is type_ else st.none() | objects(inner)
    return st.none() | numbers(field) if type(None) in typing.get_args(type_) else numbers(field)


def objects(cls: Any) -> st.SearchStrategy[Any]:
    """Any object of a class of the schema, most keys at their defaults."""
    fields = {
        field.name: field_values(cls, field)
        for field in attrs.fields(attrs.resolve_types(cls))
        if field.type != validators.Secret | None
        and field.name != "kind"
        and not (cls is schema.Health and field.name in KINDS)
    }
    needed = {field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING}
    keys = st.fixed_dictionaries(
        {name: fields[name] for name in needed},
        optional={name: values for name, values in fields.items() if name not in needed},
    )
    if cls is schema.Health:
        return st.builds(lambda some, probe: cls(**some, **probe), keys, st.sampled_from(PROBES))
    return keys.map(lambda some: cls(**some))


def tables(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Named tables."""
    return st.dictionaries(st.sampled_from(NAMES), items, max_size=3)


@pytest.fixture(scope="session")
def configs() -> st.SearchStrategy[schema.Config]:
    """Any config whose values are well-formed; its names need not lead anywhere."""
    return st.builds(
        schema.Config,
        gateway=objects(schema.Gateway),
        admin=objects(schema.Admin),
        log=objects(schema.Log),
        listeners=tables(objects(schema.Listener)),
        routes=tables(objects(schema.Route)),
        filters=tables(st.one_of([objects(spec) for spec in schema.FILTER_SPECS.values()])),
        upstreams=tables(objects(schema.Upstream)),
    )
