"""Python's logging in the shape of our own lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tcpgate.process.logs import Diagnostics, configure_diagnostics
from tcpgate.stats.line import LINE_LIMIT

pool = logging.getLogger("tcpgate.proxy.pool")


def parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    """What the lines say, after the checks that each of them must pass."""
    assert all(line.isascii() and line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
    assert all(len(line) <= LINE_LIMIT for line in lines)
    return [json.loads(line) for line in lines]


def discard(line: bytes) -> None:
    raise AssertionError(f"{line!r} went to the sink")


async def said(say: Callable[[], object], level: str = "info") -> list[dict[str, Any]]:
    """What a sink got when `say` was called in the loop."""
    lines: list[bytes] = []
    configure_diagnostics(level, lines.append)
    await trio.lowlevel.checkpoint()
    say()
    return parsed(lines)


async def test_a_message_is_a_line_of_the_sinks() -> None:
    (fact,) = await said(lambda: pool.warning("endpoint=%s is full", "10.0.0.1:80\n"))
    assert fact.pop("ts") > 1.7e9
    assert fact.pop("pid") > 0
    assert fact == {
        "v": 1,
        "level": "warning",
        "logger": "tcpgate.proxy.pool",
        "text": "endpoint=10.0.0.1:80\n is full",
    }


async def test_only_what_is_severe_enough_and_ours_is_written() -> None:
    def say() -> None:
        pool.info("no")
        logging.getLogger("somebody.else").error("no")
        pool.warning("yes")
        pool.critical("yes")

    assert [fact["level"] for fact in await said(say, "warning")] == ["warning", "error"]


async def test_configured_again_the_new_way_takes_the_place_of_the_old() -> None:
    first: list[bytes] = []
    configure_diagnostics("info", first.append)
    assert len(await said(lambda: pool.debug("x"), "debug")) == 1
    assert first == []
    assert sum(isinstance(handler, Diagnostics) for handler in logging.getLogger("tcpgate").handlers) == 1


async def test_an_exception_is_told_by_the_end_of_its_traceback() -> None:
    def say() -> None:
        try:
            raise ValueError("y" * 5000 + "\udcff the end")
        except ValueError:
            pool.exception("bug in %s", "x" * 5000)

    (fact,) = await said(say)
    assert fact["traceback"].startswith("...yyy")
    assert fact["traceback"].endswith(" the end\n")
    assert len(fact["traceback"]) > 2000
    assert fact["text"].endswith("xxx...")


async def test_an_exception_that_is_none_has_no_traceback() -> None:
    (fact,) = await said(lambda: pool.error("x", exc_info=True))
    assert "traceback" not in fact


async def test_another_thread_goes_to_stderr_because_the_sink_is_the_loops(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[bytes] = []
    configure_diagnostics("info", lines.append)
    await trio.to_thread.run_sync(pool.warning, "from a thread")
    assert lines == []
    assert json.loads(capfd.readouterr().err)["text"] == "from a thread"


def test_before_the_loop_runs_it_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    configure_diagnostics("info")
    pool.warning("early")
    configure_diagnostics("info", discard)
    pool.warning("early too")
    assert [json.loads(line)["text"] for line in capfd.readouterr().err.splitlines()] == ["early", "early too"]


async def test_a_log_call_with_a_bug_does_not_hurt_its_caller(capsys: pytest.CaptureFixture[str]) -> None:
    assert await said(lambda: pool.warning("%d things", "seven")) == []
    assert "Logging error" in capsys.readouterr().err
