"""One generation, compiled: what a worker looks things up in. Frozen; a reload swaps the pointer to it.

Each plan is an object of its own that `build.py` carries over from the previous snapshot when nothing it was built
from has changed, so a reload rebuilds only what its diff names (and a test can say so with `is`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tcpgate.config import schema
from tcpgate.filters.base import Filter
from tcpgate.policy.route import RouteTable
from tcpgate.policy.split import Split
from tcpgate.stats import histogram
from tcpgate.stats.page import LISTENER_FIELDS, ROUTE_FIELDS

LISTENER_CONNECTIONS = LISTENER_FIELDS.index("connections")
LISTENER_ACCEPTED = LISTENER_FIELDS.index("accepted")
LISTENER_REFUSED = LISTENER_FIELDS.index("refused")
LISTENER_EXCHANGES = LISTENER_FIELDS.index("exchanges")
LISTENER_BYTES_IN = LISTENER_FIELDS.index("bytes_in")
LISTENER_BYTES_OUT = LISTENER_FIELDS.index("bytes_out")
LISTENER_BAD_REQUESTS = LISTENER_FIELDS.index("bad_requests")
LISTENER_HANDSHAKES = LISTENER_FIELDS.index("handshakes")
LISTENER_HANDSHAKES_RESUMED = LISTENER_FIELDS.index("handshakes_resumed")
LISTENER_HANDSHAKES_FAILED = LISTENER_FIELDS.index("handshakes_failed")

ROUTE_EXCHANGES = ROUTE_FIELDS.index("exchanges")
ROUTE_STATUS = ROUTE_FIELDS.index("status_1xx") - 1
"""Plus the first digit of a status: the slot of its class."""
ROUTE_BY_GATEWAY = ROUTE_FIELDS.index("by_gateway")
ROUTE_TOTAL = ROUTE_FIELDS.index(histogram.field_names("total")[0])


@attrs.frozen(kw_only=True, eq=False)
class ListenerPlan:
    """One listener as this generation wants it."""

    name: str
    spec: schema.Listener
    block: int
    """First slot of its counters."""


@attrs.frozen(kw_only=True, eq=False)
class RoutePlan:
    """One route with everything it names at hand."""

    name: str
    spec: schema.Route
    filters: tuple[tuple[str, Filter], ...]
    """(name, filter), in the order in which they act."""
    split: Split | None
    block: int


@attrs.frozen(kw_only=True, eq=False)
class Snapshot:
    """Everything that one generation looks up."""

    generation: int
    config: schema.Config
    listeners: Mapping[str, ListenerPlan]
    routes: Mapping[str, RoutePlan]
    table: RouteTable
