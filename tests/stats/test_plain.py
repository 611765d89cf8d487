"""The plain access line: the same bytes as the record's own, for every text and time there may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgate.errors import Reason, Side
from tcpgate.stats import plain, record
from tcpgate.stats.line import LINE_LIMIT, quote
from tcpgate.stats.record import AccessRecord, Attempt, Phases


def a_record(**changes: Any) -> AccessRecord:
    """An exchange that went well."""
    facts: dict[str, Any] = {
        "ts": 1763829123.123456,
        "id": "0123456789abcdef",
        "listener": "web",
        "route": "api",
        "upstream": "pool",
        "endpoint": "10.0.0.2:80",
        "client": "203.0.113.7",
        "peer": "203.0.113.7:41222",
        "method": "GET",
        "host": "api.example.com",
        "path": "/v1/users",
        "status": 200,
        "rule": "routes.api",
        "t": Phases(first_byte=0.0012, body=0.00002, total=0.0014),
        "bytes_in": 345,
        "bytes_out": 1234,
        "generation": 7,
    }
    ms = changes.pop("ms", 1.25)
    made = AccessRecord(**{**facts, **changes}, proto="http/1.1", answered_by=Side.UPSTREAM, reason=Reason.OK)
    made.attempts = [Attempt(made.endpoint, Reason.OK, ms)]
    return made


def plainly(r: AccessRecord) -> bytes | None:
    """The same exchange's plain line."""
    return plain.render(
        plain.stamp_of(r.ts),
        quote(r.id)[1:-1].encode("ascii"),
        plain.target_of(r.listener, r.route, r.upstream, r.endpoint, r.rule),
        plain.connection_of(r.client, r.peer, r.tls),
        plain.request_of(*(quote(text)[1:-1].encode("ascii") for text in (r.method, r.host, r.path))),
        r.status,
        r.t.head,
        r.t.connect,
        r.t.first_byte,
        r.t.body,
        r.t.total,
        r.attempts[0].ms,
        r.bytes_in,
        r.bytes_out,
        r.generation,
        r.t.tls,
    )


TEXTS = (
    *("id", "listener", "route", "upstream", "endpoint", "client", "peer", "tls", "method", "host", "path", "rule"),
)
ANY_TEXT = st.text(st.characters(), max_size=40)  # surrogates and control characters too
# With which no reader has trouble. But for the quote it needs no escape.
TAME_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=40)
SECONDS = st.one_of(st.just(0.0), st.floats(0, 1e6))
COUNTS = st.integers(0, 2**63 - 1)


def records(texts: st.SearchStrategy[str] = ANY_TEXT) -> st.SearchStrategy[AccessRecord]:
    """Exchanges that went well, whatever their texts and figures."""
    long = st.builds(lambda text, times: text * times, texts, st.integers(1, 200))
    names = ("tls", "head", "connect", "first_byte", "body", "total")
    phases = st.builds(Phases, **dict.fromkeys(names, SECONDS))
    make: Callable[..., AccessRecord] = a_record
    return st.builds(
        make,
        **{name: long if name in ("path", "host") else texts for name in TEXTS},
        ts=st.floats(0, 1e10),
        status=st.integers(100, 999),
        t=phases,
        ms=st.floats(0, 1e9),
        bytes_in=COUNTS,
        bytes_out=COUNTS,
        generation=COUNTS,
    )


@given(r=records())
@example(r=a_record(path="/a\\ud"))  # looks like half of a surrogate once it is quoted
@example(r=a_record(path="/\udcff"))
@example(r=a_record(path="/\x00\x1f\x7f\xff\u2028\U0001f600"))
def test_the_plain_line_is_the_records_own_or_none(r: AccessRecord) -> None:
    assert plainly(r) in (record.render(r), None)


@given(r=records(TAME_TEXT))
@example(r=a_record(host='"quoted"'))
def test_only_what_has_to_be_cut_is_left_to_the_record(r: AccessRecord) -> None:
    uncut = len(record.render(attrs.evolve(r, path="", host=""))) + len(r.path) + len(r.host)
    assert (plainly(r) is None) == (uncut + r.path.count('"') + r.host.count('"') > LINE_LIMIT)


@pytest.mark.parametrize("phase", ["head", "connect", "first_byte", "body"])
def test_a_phase_that_did_not_happen_is_left_out(phase: str) -> None:
    phases = {"head": 0.1, "connect": 0.2, "first_byte": 0.3, "body": 0.4, "total": 1.0, phase: 0.0}
    r = a_record(t=Phases(**phases))
    line = plainly(r)
    assert line == record.render(r)
    assert line is not None
    assert json.loads(line)["t"] == {name: seconds for name, seconds in phases.items() if name != phase}


def test_the_longest_line_that_fits_is_plain_and_one_more_byte_is_not() -> None:
    room = LINE_LIMIT - len(record.render(a_record(path="")))
    assert plainly(a_record(path="a" * room)) == record.render(a_record(path="a" * room))
    assert plainly(a_record(path="a" * (room + 1))) is None


def test_every_field_of_the_record_is_in_the_plain_line_in_its_order() -> None:
    line = plainly(a_record())
    assert line is not None
    assert [*json.loads(line), "attempts_cut"] == list(record.ACCESS_FIELDS)


@given(
    text=st.text(max_size=30),
    client=st.text(max_size=3000),
    side=st.sampled_from(Side),
    connect=st.sampled_from([0.0, 1e-7, 0.000102, 3.5]),
    total=st.floats(0, 1e6),
    moved=st.integers(0, 1 << 60),
)
@example(text="db", client="10.0.0.1", side=Side.CLIENT, connect=0.0001, total=0.5, moved=7)
@example(text='q"\\\ud800', client="unix:", side=Side.UPSTREAM, connect=0.0, total=0.0, moved=0)
def test_the_plain_line_of_a_flow_is_its_records(
    text: str, client: str, side: Side, connect: float, total: float, moved: int
) -> None:
    made = AccessRecord(
        ts=1763829123.123456,
        id="0123456789abcdef",
        listener=text,
        upstream=text + "u",
        endpoint=text + ":1",
        attempts=[Attempt(text + ":1", Reason.OK, connect * 1000)],
        client=client,
        peer=client + ":9",
        proto="tcp",
        answered_by=side,
        rule=f"listeners.{text}",
        t=Phases(connect=connect, total=total),
        bytes_in=moved,
        bytes_out=moved + 1,
        generation=3,
    )
    line = plain.render_flow(
        plain.stamp_of(made.ts),
        made.id,
        made.listener,
        made.upstream,
        made.endpoint,
        made.client,
        made.peer,
        side,
        connect,
        total,
        moved,
        moved + 1,
        3,
    )
    whole = record.render(made)
    if line is None:
        assert len(whole) <= LINE_LIMIT
        assert len(record._line(made, "")) > LINE_LIMIT - 300 or "\\ud" in record._line(made, "")
    else:
        assert line == whole
