"""The access line: valid, one line, and short, whatever the client sent."""

from __future__ import annotations

import json
from typing import Any

import attrs
import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcpgate.errors import Reason, Side
from tcpgate.stats.line import LINE_LIMIT
from tcpgate.stats.record import ACCESS_FIELDS, ROOMS, AccessRecord, Attempt, Phases, render

BIG = 2**63 - 1

TYPICAL = AccessRecord(
    ts=1763829123.123456,
    id="0123456789abcdef",
    listener="web",
    route="api",
    upstream="api",
    endpoint="10.0.0.2:80",
    attempts=[Attempt("10.0.0.1:80", Reason.CONNECT_REFUSED, 0.4), Attempt("10.0.0.2:80", Reason.OK, 1.25)],
    client="203.0.113.7",
    peer="10.1.2.3",
    tls="TLSv1.3",
    method="GET",
    host="api.example.com",
    path="/v1/users",
    proto="http/1.1",
    status=200,
    answered_by=Side.UPSTREAM,
    reason=Reason.OK,
    rule="routes.api",
    t=Phases(head=0.00005, first_byte=0.0012, total=0.0014),
    bytes_in=345,
    bytes_out=1234,
    generation=7,
)


def parsed(record: AccessRecord) -> dict[str, Any]:
    """The line as a strict reader sees it, after the checks that every line must pass."""
    line = render(record)
    assert line.isascii()
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert len(line) <= LINE_LIMIT
    facts: dict[str, Any] = json.loads(line)
    # A second decoder, stricter than Python's: it takes no lone surrogate.
    assert msgspec.json.decode(line) == facts
    return facts


def test_a_typical_exchange_reads_as_it_went() -> None:
    assert parsed(TYPICAL) == {
        "v": 1,
        "ts": 1763829123.123456,
        "id": "0123456789abcdef",
        "trace": "",
        "listener": "web",
        "route": "api",
        "upstream": "api",
        "endpoint": "10.0.0.2:80",
        "attempts": [
            {"endpoint": "10.0.0.1:80", "reason": "connect_refused", "ms": 0.4},
            {"endpoint": "10.0.0.2:80", "reason": "ok", "ms": 1.25},
        ],
        "client": "203.0.113.7",
        "peer": "10.1.2.3",
        "tls": "TLSv1.3",
        "method": "GET",
        "host": "api.example.com",
        "path": "/v1/users",
        "proto": "http/1.1",
        "status": 200,
        "answered_by": "upstream",
        "reason": "ok",
        "rule": "routes.api",
        "detail": "",
        "t": {"head": 0.00005, "first_byte": 0.0012, "total": 0.0014},
        "bytes_in": 345,
        "bytes_out": 1234,
        "auth": "",
        "limit": "",
        "generation": 7,
    }


def test_the_documented_fields_are_those_of_the_line_in_their_order() -> None:
    assert [*parsed(TYPICAL), "attempts_cut"] == list(ACCESS_FIELDS)
    assert {field.name for field in attrs.fields(AccessRecord)} == set(ACCESS_FIELDS) - {"v", "attempts_cut"}


def test_every_text_field_has_a_room() -> None:
    texts = {
        field.name for field in attrs.fields(AccessRecord) if field.default == "" and isinstance(field.default, str)
    }
    assert set(ROOMS) == texts


def test_a_path_may_be_long_while_the_line_has_room() -> None:
    path = "/" + "a" * 2500
    assert parsed(attrs.evolve(TYPICAL, path=path))["path"] == path


def test_a_line_too_long_is_cut_where_it_is_long_and_only_there() -> None:
    facts = parsed(attrs.evolve(TYPICAL, path="/" + "a" * 9000))
    assert facts["path"] == "/" + "a" * 1020 + "..."
    assert facts["host"] == "api.example.com"
    assert len(facts["attempts"]) == 2
    assert "attempts_cut" not in facts


def test_bytes_that_are_no_text_stay_legible() -> None:
    assert parsed(attrs.evolve(TYPICAL, path='/\xff\x00\n"'))["path"] == '/\xff\x00\n"'


def test_a_lone_surrogate_becomes_letters() -> None:
    assert parsed(attrs.evolve(TYPICAL, detail="No such file: \udcff"))["detail"] == "No such file: \\udcff"


def test_text_beyond_ascii_comes_back() -> None:
    assert parsed(attrs.evolve(TYPICAL, auth="Zoë \U0001f600"))["auth"] == "Zoë \U0001f600"


def test_the_first_attempts_are_kept_and_the_others_counted() -> None:
    tries = [Attempt(f"{n:03}." + "e" * 500, Reason.UPSTREAM_HEAD_TOO_LARGE, 1e6) for n in range(16)]
    facts = parsed(attrs.evolve(TYPICAL, attempts=tries, path="/" + "a" * 9000))
    kept = facts["attempts"]
    assert [attempt["endpoint"][:3] for attempt in kept] == [f"{n:03}" for n in range(len(kept))]
    assert facts["attempts_cut"] == 16 - len(kept)
    assert 3 < len(kept) < 16


def test_the_worst_of_everything_still_fits() -> None:
    worst = AccessRecord(
        ts=9_999_999_999.999999,
        **dict.fromkeys(ROOMS, "\x01" * 5000),
        attempts=[Attempt("\x01" * 5000, max(Reason, key=len), 1e9)] * 16,
        status=999,
        answered_by=Side.UPSTREAM,
        reason=max(Reason, key=len),
        t=Phases(*[1e9] * 8),
        bytes_in=BIG,
        bytes_out=BIG,
        generation=BIG,
    )
    facts = parsed(worst)
    # The rooms leave an attempt or two even then.
    assert 1 <= len(facts["attempts"]) == 16 - facts["attempts_cut"]


ANY_TEXT = st.one_of(st.text(st.characters(exclude_categories=()), max_size=80), st.binary(max_size=80).map(bytes.hex))
LONG_TEXT = st.builds(lambda text, times: text * times, ANY_TEXT, st.sampled_from([1, 1, 1, 40]))
SPAN = st.floats(0, 1e6)
ATTEMPTS = st.lists(st.builds(Attempt, LONG_TEXT, st.sampled_from(Reason), st.floats(0, 1e9)), max_size=16)
RECORDS = st.builds(
    AccessRecord,
    ts=st.floats(0, 4e9),
    **dict.fromkeys(ROOMS, LONG_TEXT),
    attempts=ATTEMPTS,
    status=st.integers(0, 999),
    answered_by=st.sampled_from(Side),
    reason=st.sampled_from(Reason),
    t=st.builds(Phases, *[SPAN] * 8),
    bytes_in=st.integers(0, BIG),
    bytes_out=st.integers(0, BIG),
    generation=st.integers(0, BIG),
)


@settings(max_examples=50)  # a record is large to draw
@given(record=RECORDS)
@example(record=attrs.evolve(TYPICAL, path="\ud83d" * 700, host="\\ud800" * 700))
def test_any_record_makes_one_short_line_that_says_what_it_holds(record: AccessRecord) -> None:
    facts = parsed(record)
    for name, room in ROOMS.items():
        clean = getattr(record, name).encode("utf-8", "backslashreplace").decode()
        # Either the whole text or, in a line that was full, its beginning; a text within its room is never cut.
        assert facts[name] == clean or (facts[name].endswith("...") and clean.startswith(facts[name][:-3]))
        assert facts[name] == clean or len(json.dumps(clean)) - 2 > room
    for name in ("status", "answered_by", "reason", "bytes_in", "bytes_out", "generation"):
        assert facts[name] == getattr(record, name)
    assert len(facts["attempts"]) + facts.get("attempts_cut", 0) == len(record.attempts)
    for shown, attempt in zip(facts["attempts"], record.attempts, strict=False):
        assert shown["reason"] == attempt.reason
        assert shown["ms"] == round(attempt.ms, 3)
    happened = {field.name for field in attrs.fields(Phases) if getattr(record.t, field.name)}
    assert set(facts["t"]) == happened | {"total"}
