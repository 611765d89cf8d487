"""The effective config as data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import hypothesis
import jsonschema  # type: ignore[import-untyped]  # has no stubs here
import pytest
import tomli
from hypothesis import strategies as st

from tcpgate.config import schema, schema_tls, validators
from tcpgate.config.expand import Environment
from tcpgate.config.export import dump, rate_text, size_text, span_text
from tcpgate.config.json_schema import json_schema
from tcpgate.config.report import Report
from tcpgate.config.structure import structure
from tcpgate.units import parse_size, parse_size_rate, parse_span


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_a_dump_written_as_toml_reads_back_as_the_same_config(
    configs: st.SearchStrategy[schema.Config], write_toml: Callable[[Mapping[str, Any]], str], data: st.DataObject
) -> None:
    config = data.draw(configs)
    dumped = dump(config)
    text = write_toml(dumped)
    report = Report(lambda path: ("t.toml", 1))
    again = structure(Environment({}, report).tree(tomli.loads(text)), report).config
    assert report.problems == []
    assert again == config
    assert json.loads(json.dumps(dumped)) == dumped


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.data())
def test_a_dump_is_valid_under_the_json_schema(configs: st.SearchStrategy[schema.Config], data: st.DataObject) -> None:
    jsonschema.Draft7Validator(json_schema()).validate(dump(data.draw(configs)))


def test_a_dump_spells_out_the_defaults() -> None:
    dumped = dump(schema.Config(upstreams={"u": schema.Upstream(endpoints=(schema.Endpoint(address="a:1"),))}))
    assert dumped["gateway"]["drain"] == "30s"
    assert dumped["log"]["buffer"] == "8MiB"
    assert dumped["upstreams"]["u"]["endpoints"] == [{"address": "a:1", "weight": 1, "tier": 0}]
    assert dumped["upstreams"]["u"]["slow_start"] == {"window": "0ms", "aggression": 1.0, "floor": 0.1}
    assert "health" not in dumped["upstreams"]["u"]


def test_a_dump_hides_secrets_but_tells_that_there_is_one() -> None:
    config = schema.Config(admin=schema.Admin(token=validators.Secret("hunter2")))
    assert dump(config)["admin"]["token"] == "***"
    assert "hunter2" not in json.dumps(dump(config)) + repr(config) + str(config.admin.token)
    assert config.admin.token is not None
    assert config.admin.token.reveal() == "hunter2"
    assert "token" not in dump(schema.Config())["admin"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.25, "250ms"), (90.0, "1m30s"), (3600.0, "1h"), (1234.567891, "1234.567891s")]
)
def test_a_span_reads_back_exactly(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
    assert round(parse_span(text), 6) == seconds


@hypothesis.given(st.integers(0, 10**15).map(lambda count: round(count / 10**6, 6)))
def test_any_span_reads_back_exactly(seconds: float) -> None:
    assert round(parse_span(span_text(seconds)), 6) == seconds


@pytest.mark.parametrize(("count", "text"), [(0, "0B"), (1000, "1000B"), (1 << 20, "1MiB"), (3 << 39, "1536GiB")])
def test_a_size_is_written_in_the_largest_unit_that_divides_it(count: int, text: str) -> None:
    assert size_text(count) == text


@hypothesis.given(st.integers(0, 10**15 - 1))
def test_any_size_reads_back_exactly(count: int) -> None:
    assert parse_size(size_text(count)) == count


@pytest.mark.parametrize(("rate", "text"), [(512.0, "512B/s"), (1024.0, "1KiB/s"), (0.5, "0.5B/s")])
def test_a_data_rate_reads_back_exactly(rate: float, text: str) -> None:
    assert rate_text(rate) == text
    assert parse_size_rate(text) == rate


def test_every_field_of_every_class_is_in_a_dump() -> None:
    health = schema.Health(http="/", host="h", body="b", fast_interval=attrs.fields(schema.Health).interval.default)
    tls = schema_tls.UpstreamTls(ca="ca.pem", name="a", cert="c.pem", key="k.pem", key_pem=validators.Secret("hunter2"))
    upstream = schema.Upstream(endpoints=(schema.Endpoint(address="a:1"),), health=health, bounded_load=1.5, tls=tls)
    dumped = dump(schema.Config(upstreams={"u": upstream}))["upstreams"]["u"]
    assert set(dumped) == {field.name for field in attrs.fields(schema.Upstream)}
    assert set(dumped["health"]) == {field.name for field in attrs.fields(schema.Health)} - {"expect", "grpc"}
    assert set(dumped["tls"]) == {
        field.name for field in attrs.fields(schema_tls.UpstreamTls) if not field.name.endswith("_pem")
    }
