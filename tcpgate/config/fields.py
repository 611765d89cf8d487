"""Which form each string of the schema must have: one table, field by field. Pure.

attrs' validators in `schema.py` hold what the gateway relies on; this table holds what only a config can get wrong. It
is asked while a table is being structured, so that a route with a bad host *and* a bad path says both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from tcpgate.config import forms, schema, schema_tls
from tcpgate.config.report import KeyPath, quoted
from tcpgate.units import parse_bind, parse_endpoint

Form = Callable[[str], str]
"""Says what is wrong with a text, or ""."""
Findings = Iterator[tuple[KeyPath, str]]
"""Where below the field, and what is wrong."""
Judge = Callable[[Any], Findings]


@attrs.define
class Misformed(ValueError):
    """A field whose value is of the right type, but not of the right form, perhaps in several places."""

    findings: list[tuple[KeyPath, str]]


def judge(cls: type, name: str, value: Any) -> None:
    """Raises Misformed if `value` is not what the field `name` of `cls` may hold."""
    judges = FORMS.get((cls, name), ())
    findings = [finding for one in judges for finding in one(value) if finding[1]]
    if findings:
        raise Misformed(findings)


# -- from a form to a field -----------------------------------------------------------------------------------------


def _one(form: Form) -> Judge:
    """The field is one text, or none."""

    def judge_one(value: str | None) -> Findings:
        if value is not None:
            yield (), form(value)

    return judge_one


def _each(form: Form) -> Judge:
    """The field is a list of texts."""

    def judge_each(values: Iterable[str]) -> Findings:
        for index, value in enumerate(values):
            yield (index,), form(value)

    return judge_each


def _maybe(judge_value: Judge) -> Judge:
    """The field may be absent."""
    return lambda value: iter(()) if value is None else judge_value(value)


def _fields(name_form: Form, value_form: Form) -> Judge:
    """The field is a table of header fields or query parameters."""

    def judge_fields(fields: Mapping[str, str]) -> Findings:
        for name, value in fields.items():
            yield (name,), name_form(name) or value_form(value)

    return judge_fields


def _names(form: Form) -> Judge:
    """The field is a table by names of servers or protocols."""

    def judge_names(table: Mapping[str, Any]) -> Findings:
        for name in table:
            yield (name,), form(name)

    return judge_names


def _servers(table: Mapping[str, Any]) -> Findings:
    """Names of servers ignore case (RFC 4343)."""
    first: dict[str, str] = {}
    for name in table:
        other = first.setdefault(name.lower(), name)
        if other != name:
            yield (name,), f"is the same server as {quoted(other)}"


def _request_fields(fields: Mapping[str, str]) -> Findings:
    for name, value in fields.items():
        yield (name,), forms.request_field(name, value)


def _once(values: Iterable[str]) -> Findings:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value.lower(), index) != index:
            yield (index,), f"{quoted(value)} is there twice"


def _once_by_name(fields: Mapping[str, str]) -> Findings:
    """Names of header fields ignore case (RFC 9110 5.1)."""
    first: dict[str, str] = {}
    for name in fields:
        other = first.setdefault(name.lower(), name)
        if other != name:
            yield (name,), f"is the same header field as {quoted(other)}"


def _split(split: Mapping[str, int]) -> Findings:
    for name, weight in split.items():
        if not 0 <= weight <= forms.MAX_SPLIT:
            yield (name,), f"must be from 0 to {forms.MAX_SPLIT}, not {weight}"
    if split and not any(split.values()):
        yield (), "every weight is 0, so no request could go anywhere"


def _program(words: tuple[str, ...]) -> Findings:
    if words and not words[0]:
        yield (0,), "is empty; a program comes first"
    for index, word in enumerate(words):
        if "\0" in word:
            yield (index,), "has a NUL character, which no argument can have"


def _statuses(statuses: tuple[str, ...]) -> Findings:
    if not statuses:
        yield (), 'with no status accepted no probe could succeed; the default is ["200-399"]'


PEM_FILES = (
    *((schema_tls.Certificate, key) for key in ("cert", "key")),
    *((schema_tls.ListenerTls, key) for key in ("client_ca", "client_crl")),
    *((schema_tls.TlsRules, key) for key in ("client_ca", "client_crl")),
    *((schema_tls.UpstreamTls, key) for key in ("ca", "cert", "key")),
)
"""Fields that name a PEM file."""

FORMS: Mapping[tuple[type, str], tuple[Judge, ...]] = {
    (schema.Gateway, "state_dir"): (_one(forms.folder),),
    (schema.Admin, "bind"): (_one(forms.admin_bind),),
    (schema.Admin, "token_file"): (_one(forms.secret_file),),
    (schema.Log, "access"): (_one(forms.log_target),),
    (schema.Log, "events"): (_one(forms.log_target),),
    (schema.Listener, "bind"): (_each(forms.bind),),
    (schema.Listener, "sni"): (_names(forms.server_name), _servers),
    (schema.Listener, "alpn"): (_names(forms.alpn),),
    **dict.fromkeys(PEM_FILES, (_one(forms.secret_file),)),
    (schema_tls.Certificate, "names"): (_each(forms.certificate_name), _once),
    (schema_tls.ListenerTls, "alpn"): (_each(forms.alpn), _once),
    (schema_tls.ListenerTls, "ciphers"): (_one(forms.ciphers),),
    (schema_tls.ListenerTls, "hosts"): (_names(forms.server_name), _servers),
    (schema_tls.TlsRules, "alpn"): (_maybe(_each(forms.alpn)), _maybe(_once)),
    (schema_tls.UpstreamTls, "name"): (_one(forms.certificate_name),),
    (schema_tls.UpstreamTls, "pin"): (_each(forms.pin), _once),
    (schema.Respond, "content_type"): (_one(forms.field_value),),
    (schema.Redirect, "to"): (_one(forms.redirect_target),),
    (schema.Route, "listeners"): (_once,),
    (schema.Route, "hosts"): (_each(forms.host), _once),
    (schema.Route, "path"): (_one(forms.route_path),),
    (schema.Route, "methods"): (_each(forms.method), _once),
    (schema.Route, "headers"): (_fields(forms.token, forms.condition), _once_by_name),
    (schema.Route, "query"): (_fields(forms.parameter, forms.condition),),
    (schema.Route, "filters"): (_once,),
    (schema.Route, "split"): (_split,),
    (schema.Route, "split_key"): (_one(forms.split_key),),
    (schema.HeadersFilter, "set"): (_request_fields, _once_by_name),
    (schema.HeadersFilter, "remove"): (_each(forms.removable_field), _once),
    (schema.HeadersFilter, "response_set"): (_fields(forms.settable_field, forms.field_value), _once_by_name),
    (schema.HeadersFilter, "response_remove"): (_each(forms.settable_field), _once),
    (schema.Endpoint, "address"): (_one(forms.endpoint),),
    (schema.Upstream, "hash_key"): (_one(forms.hash_key),),
    (schema.Health, "http"): (_one(forms.request_target),),
    (schema.Health, "method"): (_one(forms.method),),
    (schema.Health, "host"): (_one(forms.authority),),
    (schema.Health, "status"): (_each(forms.statuses), _statuses),
    (schema.Health, "send"): (_one(forms.probe_bytes),),
    (schema.Health, "exec"): (_program,),
}

CANONICAL: Mapping[tuple[type, str], Callable[[Any], Any]] = {
    (schema.Admin, "bind"): lambda text: str(parse_bind(text)),
    (schema.Listener, "bind"): lambda texts: tuple(str(parse_bind(text)) for text in texts),
    (schema.Endpoint, "address"): lambda text: str(parse_endpoint(text)),
    (schema.Listener, "sni"): lambda table: {name.lower(): upstream for name, upstream in table.items()},
    (schema_tls.ListenerTls, "hosts"): lambda table: {name.lower(): rules for name, rules in table.items()},
    (schema_tls.Certificate, "names"): lambda names: tuple(name.lower().strip("[]") for name in names),
    (schema_tls.UpstreamTls, "name"): lambda name: name and name.strip("[]"),
}
"""An address is an identity across reloads, so each has one text: "LOCALHOST:80" and "localhost:80" are the same
endpoint. Names of servers are compared in lower case, addresses without their brackets."""
