"""The lane holds whatever its riders do, also one that cannot even take the news of its own bug."""

from __future__ import annotations

import logging
import socket

import pytest
import trio

from tcpgate.net.lane import Lane


class Hopeless:
    """A rider whose every method raises."""

    def ready(self, mask: int) -> None:
        """Its callback."""
        raise ValueError("ready")

    def sweep(self, now: float) -> None:
        """Its sweep."""
        raise ValueError("sweep")

    def on_fault(self, exc: Exception) -> None:
        """What must not raise, and does."""
        raise RuntimeError("on_fault")


async def test_a_rider_that_cannot_take_the_news_of_its_bug_is_put_out_of_the_lane(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lane, rider = Lane(trio.current_time), Hopeless()
    near, far = socket.socketpair()
    with near, far, caplog.at_level(logging.CRITICAL):
        lane.add(near.fileno(), rider.ready)
        lane.timed.add(rider)
        far.send(b"x")
        assert lane.turn()
        assert not lane.turn()  # what it left unread is not offered for ever
        assert len(lane) == 0
        await lane.sweep()
        assert not lane.timed
        assert lane.faults == 2
    lane.close()
