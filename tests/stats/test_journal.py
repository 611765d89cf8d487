"""The event journal: a ring with a cursor, a closed list, and subscribers."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tcpgate
from tcpgate.stats.journal import KINDS, LEVELS, Event, EventKind, Journal, render
from tcpgate.stats.line import LINE_LIMIT


def a_journal(told: int, size: int = 10) -> Journal:
    journal = Journal(size)
    for n in range(told):
        journal.tell(EventKind.READY, ts=float(n))
    return journal


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_has_a_level_and_one_sentence(kind: EventKind) -> None:
    facts = KINDS[kind]
    assert facts.level in LEVELS
    assert facts.text.endswith(".")
    assert "\n" not in facts.text
    assert str(kind) == kind.name.lower()


def test_the_table_holds_nothing_else() -> None:
    assert list(KINDS) == list(EventKind)


def test_every_kind_is_told_somewhere() -> None:
    package = Path(tcpgate.__file__).parent
    said: set[str] = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Constant(value=str(text)) if file != package / "stats" / "journal.py":
                    said.add(text)  # "ready", or the "reload_" of f"reload_{word}"
                case ast.Attribute(value=ast.Name(id="EventKind"), attr=name) if file.parent.name != "stats":
                    said.add(EventKind[name])
    # OTHER is the journal's own, for words that it does not know; elsewhere "other" is an everyday word.
    kinds = [kind for kind in EventKind if kind != EventKind.OTHER]
    assert [kind for kind in kinds if kind not in said and f"{kind.partition('_')[0]}_" not in said] == []


def test_an_event_says_what_its_kind_says_unless_told_better() -> None:
    journal = Journal()
    plain = journal.tell("ready", ts=1.0)
    assert (plain.text, plain.level, plain.facts) == (KINDS[EventKind.READY].text, "info", {})
    own = journal.tell("worker_died", "warning", "worker 2 got SIGKILL", {"worker": 2}, ts=2.0, generation=5)
    assert own == Event(
        ts=2.0,
        seq=2,
        kind=EventKind.WORKER_DIED,
        level="warning",
        text="worker 2 got SIGKILL",
        facts={"worker": 2},
        generation=5,
    )


def test_words_that_nobody_knows_still_make_an_event() -> None:
    event = Journal().tell("moon_rose", "splendid", "in the east", {"worker": 1}, ts=0.0)
    assert (event.kind, event.level, event.text) == (EventKind.OTHER, "warning", "in the east")
    assert event.facts == {"worker": 1, "kind": "moon_rose"}


def test_a_fact_changed_afterwards_does_not_change_history() -> None:
    facts: dict[str, str | int | float] = {"worker": 1}
    event = Journal().tell("worker_died", facts=facts, ts=0.0)
    facts["worker"] = 2
    assert event.facts == {"worker": 1}


@pytest.mark.parametrize(
    ("told", "since", "expected"),
    [
        (0, 0, []),
        (3, 0, [1, 2, 3]),
        (3, 2, [3]),
        (3, 3, []),
        (10, 0, list(range(1, 11))),
        (25, 0, list(range(16, 26))),
        (25, 10, list(range(16, 26))),
        (25, 15, list(range(16, 26))),
        (25, 16, list(range(17, 26))),
        (3, 900, [1, 2, 3]),
    ],
    ids=str,
)
def test_since_gives_what_came_after(told: int, since: int, expected: list[int]) -> None:
    assert seqs(a_journal(told).since(since)) == expected


@given(told=st.integers(0, 40), size=st.integers(1, 15), reads=st.lists(st.integers(0, 12), max_size=8))
def test_a_reader_that_keeps_up_misses_nothing_and_sees_nothing_twice(told: int, size: int, reads: list[int]) -> None:
    journal, seen, cursor = Journal(size), [], 0
    for burst in reads:
        for _ in range(burst):
            journal.tell("ready", ts=0.0)
        new = seqs(journal.since(cursor))
        # Only what the ring had to forget may be missing.
        assert new == list(range(max(cursor, journal.last_seq - size) + 1, journal.last_seq + 1))
        seen += new
        cursor = journal.last_seq
    assert seen == sorted(set(seen))


def test_subscribers_hear_each_event_in_order_until_they_leave() -> None:
    journal = Journal()
    first: list[Event] = []
    second: list[Event] = []
    leave = journal.subscribe(first.append)
    journal.subscribe(second.append)
    one = journal.tell("started", ts=1.0)
    leave()
    leave()  # twice is once
    two = journal.tell("ready", ts=2.0)
    assert first == [one]
    assert second == [one, two]


def test_a_subscriber_may_leave_while_it_hears() -> None:
    journal, heard = Journal(), []

    def once(event: Event) -> None:
        heard.append(event.seq)
        leave()

    leave = journal.subscribe(once)
    later: list[Event] = []
    journal.subscribe(later.append)
    journal.tell("started", ts=1.0)
    journal.tell("ready", ts=2.0)
    assert heard == [1]
    assert seqs(later) == [1, 2]


def test_a_subscriber_finds_the_event_already_in_the_journal() -> None:
    journal = Journal()
    found: list[list[int]] = []
    journal.subscribe(lambda event: found.append(seqs(journal.since(event.seq - 1))))
    journal.tell("started", ts=1.0)
    assert found == [[1]]


def test_an_event_is_one_json_line() -> None:
    event = Journal().tell(
        "endpoint_down",
        "error",
        "10.0.0.1:80 is down: connect refused (3 of 3)",
        {"upstream": "api", "endpoint": "10.0.0.1:80", "fails": 3, "rtt": 0.25},
        ts=1763829123.5,
        generation=2,
    )
    assert json.loads(render(event)) == {"v": 1, **event.document()}
    assert event.document() == {
        "ts": 1763829123.5,
        "level": "error",
        "event": "endpoint_down",
        "seq": 1,
        "generation": 2,
        "text": "10.0.0.1:80 is down: connect refused (3 of 3)",
        "facts": {"upstream": "api", "endpoint": "10.0.0.1:80", "fails": 3, "rtt": 0.25},
    }


ANY_TEXT = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(exclude_categories=()), max_size=50),
    st.sampled_from([1, 1, 100]),
)
FACTS = st.dictionaries(ANY_TEXT, st.one_of(ANY_TEXT, st.integers(), st.floats()), max_size=30)


@given(kind=st.sampled_from(EventKind), text=ANY_TEXT, facts=FACTS)
def test_any_event_makes_one_short_line(kind: EventKind, text: str, facts: dict[str, str | int | float]) -> None:
    line = render(Journal().tell(kind, "warning", text, facts, ts=4e9, generation=2**63))
    assert line.isascii()
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert len(line) <= LINE_LIMIT
    assert msgspec.json.decode(line)["event"] == kind


def test_facts_that_do_not_fit_are_left_out_and_smaller_ones_kept() -> None:
    facts: dict[str, str | int | float] = {f"fact{n}": "x" * 2000 for n in range(10)}
    facts["worker"] = 3
    shown = json.loads(render(Journal().tell("bug", facts=facts, ts=0.0)))["facts"]
    assert shown == {"fact0": "x" * 1497 + "...", "worker": 3}
