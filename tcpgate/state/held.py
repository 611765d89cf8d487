"""What an endpoint's runtime holds and cannot know more of, since it is pure: connections, and who works with them.

Pure. Who makes them: `proxy/pool.py`, `proxy/http2_pool.py`, tunnels and tcp flows.
"""

from __future__ import annotations

from typing import Protocol


class Idle(Protocol):
    """An idle upstream connection, as far as the runtime cares."""

    def close(self) -> None:
        """Give the socket back to the kernel."""


class Shared(Protocol):
    """Connections that serve many exchanges at a time (HTTP/2), as far as the runtime cares."""

    @property
    def has_room(self) -> bool:
        """Whether another exchange needs no new connection."""
        ...

    def withdraw(self) -> None:
        """No new exchange goes over those that there are; what runs may finish."""
        ...


class Cuttable(Protocol):
    """Long-lived work on an endpoint (a tunnel, a tcp flow) that a removal may have to end."""

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline` (the worker's clock; infinity takes it back); the record's reason is `drained`."""
