"""Signals to this process become calls in the loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import trio

from tcpgate.process.signals import signals_forever

Eventually = Callable[..., Awaitable[object]]


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def test_each_signal_calls_its_own_handler(nursery: trio.Nursery, eventually: Eventually) -> None:
    heard: list[str] = []
    await nursery.start(
        signals_forever,
        {signal.SIGHUP: lambda: heard.append("reload"), signal.SIGUSR1: lambda: heard.append("reopen")},
    )
    for number, word in ((signal.SIGHUP, "reload"), (signal.SIGUSR1, "reopen"), (signal.SIGHUP, "reload")):
        send(number)
        before = len(heard)
        await eventually(lambda before=before: len(heard) > before)
        assert heard[-1] == word
    assert len(heard) == 3
    nursery.cancel_scope.cancel()


async def test_a_burst_is_heard_at_least_once_and_the_last_one_is_not_missed(
    nursery: trio.Nursery, eventually: Eventually
) -> None:
    heard: list[int] = []
    await nursery.start(signals_forever, {signal.SIGHUP: lambda: heard.append(1)})
    for _ in range(20):
        send(signal.SIGHUP)
    await eventually(lambda: heard)
    first = len(heard)
    send(signal.SIGHUP)
    await eventually(lambda: len(heard) > first)
    assert len(heard) <= 21
    nursery.cancel_scope.cancel()


async def test_once_started_no_signal_is_lost_and_none_kills(nursery: trio.Nursery, eventually: Eventually) -> None:
    stop = trio.Event()
    await nursery.start(signals_forever, {signal.SIGTERM: stop.set})
    send(signal.SIGTERM)  # would end this process
    with trio.fail_after(5):
        await stop.wait()
    nursery.cancel_scope.cancel()


async def test_cancelled_the_signals_do_again_what_they_did() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    async with trio.open_nursery() as nursery:
        await nursery.start(signals_forever, {signal.SIGUSR1: lambda: None})
        assert signal.getsignal(signal.SIGUSR1) != before
        nursery.cancel_scope.cancel()
    assert signal.getsignal(signal.SIGUSR1) == before
