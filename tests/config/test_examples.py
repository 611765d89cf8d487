"""The files in etc/: they load without a warning, and the commented one shows every key there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli

from tcpgate.config import schema, schema_tls, validators
from tcpgate.config.load import load
from tcpgate.config.structure import converter
from tests import pki

ETC = Path(__file__).parents[2] / "etc"
TEXT = (ETC / "tcpgate.toml").read_text()
TABLES: dict[str, type] = {
    "gateway": schema.Gateway,
    "admin": schema.Admin,
    "log": schema.Log,
    "listeners.*": schema.Listener,
    "listeners.*.tls": schema_tls.ListenerTls,
    "listeners.*.tls.hosts.*": schema_tls.TlsRules,
    "listeners.*.limits": schema.HttpLimits,
    "listeners.*.timeouts": schema.ClientTimeouts,
    "routes.*": schema.Route,
    "routes.*.respond": schema.Respond,
    "routes.*.redirect": schema.Redirect,
    "routes.*.websocket": schema.WebSocket,
    "filters.*": schema.HeadersFilter,
    "upstreams.*": schema.Upstream,
    "upstreams.*.tls": schema_tls.UpstreamTls,
    "upstreams.*.health": schema.Health,
    "upstreams.*.passive": schema.Passive,
    "upstreams.*.pool": schema.Pool,
    "upstreams.*.timeouts": schema.UpstreamTimeouts,
    "upstreams.*.retry": schema.RetryPolicy,
    "upstreams.*.slow_start": schema.SlowStart,
}


@attrs.frozen
class Shown:
    """One key as the commented file shows it."""

    cls: type
    key: str
    text: str
    mark: str
    """"" set, "#" commented out at its default, "# " an example."""


def class_of(table: str, following: str) -> type:
    """The schema's class of a table; a filter's depends on its kind."""
    parts = re.findall(r'"[^"]+"|[^.]+', table)
    name = ".".join("*" if index % 2 else part for index, part in enumerate(parts[:2])) + "".join(
        ".*" if part.startswith('"') else f".{part}" for part in parts[2:]
    )
    kind = re.search(r'^kind = "(\w+)"', following, re.MULTILINE)
    return schema.FILTER_SPECS[kind[1]] if name == "filters.*" and kind else TABLES[name]


def shown() -> list[Shown]:
    """Every key of the commented file, in order."""
    found = []
    for block in re.split(r"^(?:# )?(?=\[)", TEXT, flags=re.MULTILINE)[1:]:
        header, _, body = block.partition("\n")
        cls = class_of(header[1 : header.index("]")], body)
        matches = re.finditer(r"^(|#|# )([a-z0-9_]+) = ", body, re.MULTILINE)
        found += [Shown(cls, match[2], body[match.end(2) :], match[1]) for match in matches]
    return found


def value_of(one: Shown) -> Any:
    """The value, as the schema means it."""
    lines = one.text.split("\n")
    for count in range(1, len(lines)):
        try:
            value = tomli.loads("key" + "\n".join(lines[:count]))["key"]
        except tomli.TOMLDecodeError:
            continue
        field = attrs.fields_dict(attrs.resolve_types(one.cls))[one.key]
        return converter().structure(value, field.type)  # type: ignore[arg-type]
    raise AssertionError(f"{one.key} has no value")


def default_of(one: Shown) -> Any:
    """The schema's default; a factory's product."""
    default: Any = attrs.fields_dict(one.cls)[one.key].default
    return default.factory() if hasattr(default, "factory") else default


@pytest.mark.parametrize("name", ["tcpgate.toml", "quickstart.toml"])
@pytest.mark.parametrize("environ", [{}, {"TCPGATE_LOG_LEVEL": "debug", "DEMO_PORT": "8888", "USER": "me"}])
def test_the_file_loads_without_a_warning(name: str, environ: dict[str, str]) -> None:
    assert load(ETC / name, environ=environ, credentials=None).warnings == []


def test_every_key_of_every_class_is_shown() -> None:
    keys = {(one.cls, one.key) for one in shown()}
    classes = {*TABLES.values(), *schema.FILTER_SPECS.values()}
    wanted = {(cls, field.name) for cls in classes for field in attrs.fields(cls) if not field.name.endswith("_pem")}
    nested = {
        (cls, name.rpartition(".")[2]) for name in TABLES for cls in (schema.Listener, schema.Route, schema.Upstream)
    } | {(schema_tls.ListenerTls, "hosts")}
    missing = {(cls.__name__, key) for cls, key in wanted - keys - nested - {(schema.Admin, "token")}}
    assert missing == set()
    for cls in (schema.Endpoint, schema_tls.Certificate):
        for key in {field.name for field in attrs.fields(cls)} - {"chain_pem", "key_pem"}:
            assert re.search(rf"\{{.*\b{key} = ", TEXT)
    assert "# include = " in TEXT


@pytest.mark.parametrize(
    "one", [one for one in shown() if one.mark == "#"], ids=lambda one: f"{one.cls.__name__}.{one.key}"
)
def test_a_key_that_is_commented_out_shows_its_default(one: Shown) -> None:
    assert value_of(one) == default_of(one)


@pytest.mark.parametrize("one", [one for one in shown() if one.mark == "# "], ids=lambda one: one.key)
def test_an_example_has_no_default(one: Shown) -> None:
    assert default_of(one) in (None, attrs.NOTHING)


def test_every_class_of_the_schema_has_a_table_in_the_file() -> None:
    named = {**vars(schema), **vars(schema_tls)}
    classes = {cls for cls in named.values() if isinstance(cls, type) and attrs.has(cls)}
    not_tables = {
        schema.Config,
        schema.Endpoint,
        schema_tls.Certificate,
        validators.Secret,
        validators.Between,
        validators.Maybe,
    }
    assert classes - not_tables == {*TABLES.values(), *schema.FILTER_SPECS.values()}


def test_tables_that_are_commented_out_would_load_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ""
    for block in re.split(r"^(?=(?:# )?\[)", TEXT, flags=re.MULTILINE):
        hidden = block.startswith("# [")
        text += re.sub(r"^# (?=\[|[a-z_]+ = )|^#(?=[a-z_]+ = )", "", block, flags=re.MULTILINE) if hidden else block
    assert "\n[upstreams.api.tls]\n" in text
    authority, admins = pki.authority(), pki.authority("Admins")
    pairs = {
        "site": pki.make("site.example.com", "admin.example.com", issuer=authority),
        "b": pki.make("*.example.com", issuer=authority),
        "gateway": pki.make("gateway.example.com", issuer=authority),
    }
    files = {f"{name}.crt": leaf.chain for name, leaf in pairs.items()}
    files |= {f"{name}.key": leaf.private for name, leaf in pairs.items()}
    files |= {"clients.pem": authority.chain, "endpoints.pem": authority.chain, "admins.pem": admins.chain}
    files |= {"clients.crl": pki.revoked(authority), "admins.crl": pki.revoked(admins)}
    for name, content in files.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(content)
    (tmp_path / "gate.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    # Each key is shown with a value, and one of them lies idle beside the others'.
    assert [warning.path for warning in load("gate.toml", environ={}, credentials=None).warnings] == [
        "listeners.web.tls.client_ca"
    ]
