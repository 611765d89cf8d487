"""Signals as plain calls in the loop.

Owner: the root nursery. Source: signal(7), trio's `open_signal_receiver`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

import trio


async def signals_forever(
    handlers: Mapping[signal.Signals, Callable[[], None]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call a signal's handler each time that it came; started once all of them are caught.

    Signals of one kind that come before the loop turns again count as one, so a handler asks for something ("reload")
    and does not count. It must not block or raise. When this is cancelled the signals do again what they did before.
    """
    with trio.open_signal_receiver(*handlers) as received:
        task_status.started()
        async for number in received:
            handlers[signal.Signals(number)]()
