"""What supervisor and workers say to each other. Pure.

Down (supervisor to worker) and up (worker to supervisor). `process/link.py` carries them: over a socketpair between
processes, over memory channels in tests. No message holds an absolute Trio time: each run's clock has its own offset,
so spans travel.

A generation arrives in two steps, so that it is all or nothing over every worker: `Prepare` (build it, hold it), then
`Commit` (swap to it) once every worker has said `Prepared` without a problem, else `Abandon`.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tcpgate.config.schema import Config
from tcpgate.policy.health import EndpointState


@attrs.frozen(kw_only=True)
class EndpointStatus:
    """What every worker must know of an endpoint. Weight 0 or a state that takes nothing: not picked."""

    upstream: str
    endpoint: str
    state: EndpointState
    weight: float
    """Effective: the config's or the operator's, times slow start."""
    cause: str = ""
    """Why, for a person: "probe: connect refused (3 of 3)"."""
    unproved: bool = False
    """Not yet probed: taken only while no endpoint of the upstream is known to be good."""


# -- down -----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Prepare:
    """Build this generation and hold it. Travels with one fd per entry of `sockets`, in that order."""

    generation: int
    config: Config
    sockets: tuple[str, ...]
    """Bind text of each listening socket that this worker does not have yet. A socket's identity is its bind text, so
    a listener that is renamed, or that takes another's address over, goes on with the same socket and the same
    backlog."""
    slots: Mapping[str, int]
    """Series key -> first slot on the shared page (`stats/page.py`); the whole map, it never shrinks in a run."""
    statuses: tuple[EndpointStatus, ...]
    name: str
    """The gateway's pseudonym in Via, the same in every worker, another for each gateway."""
    workers: int
    """How many workers there are, so how many pages to sum over."""


@attrs.frozen(kw_only=True)
class Commit:
    """Swap to the prepared generation."""

    generation: int


@attrs.frozen(kw_only=True)
class Abandon:
    """Forget the prepared generation; the old one goes on."""

    generation: int


@attrs.frozen(kw_only=True)
class Statuses:
    """Endpoint states and weights that changed."""

    changed: tuple[EndpointStatus, ...]


@attrs.frozen(kw_only=True)
class Drain:
    """Stop accepting, let open work end within `seconds`, then leave."""

    seconds: float


@attrs.frozen(kw_only=True)
class Stop:
    """Leave now."""


@attrs.frozen(kw_only=True)
class ReopenLogs:
    """The log file was rotated."""


@attrs.frozen(kw_only=True)
class Tickets:
    """Seal session tickets with these keys from now on. The first message of all, and another one every 12 hours."""

    keys: bytes = attrs.field(repr=False)
    """As `net/tickets.py` draws them."""


Down = Prepare | Commit | Abandon | Statuses | Drain | Stop | ReopenLogs | Tickets

# -- up -------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Prepared:
    """The worker holds the generation, or says why it cannot."""

    generation: int
    problem: str | None = None


@attrs.frozen(kw_only=True)
class Committed:
    """The worker serves the generation."""

    generation: int


@attrs.frozen(kw_only=True)
class Observed:
    """Live traffic's word on one endpoint since the last one: only what can change a state is sent.

    A run of failures is sent at once; a success is sent only if it ends a run that was reported.
    """

    upstream: str
    endpoint: str
    connect_failures: int = 0
    """Connects in a row that failed, 0 after a success."""
    bad_answers: int = 0
    """5xx, broken or late answers in a row, 0 after a good one."""
    cause: str = ""


@attrs.frozen(kw_only=True)
class Told:
    """Something a person would want to know, for the event journal."""

    kind: str
    level: str
    text: str
    facts: Mapping[str, str | int | float] = attrs.field(factory=dict)


Up = Prepared | Committed | Observed | Told
