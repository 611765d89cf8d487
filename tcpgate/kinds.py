"""Every pluggable kind by the name that the config gives it, on one page.

A kind is one class and its spec in one file, and one line here. Nothing registers itself: these tables are what there
is, they are passed as arguments, and the tests are parametrised over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tcpgate.config import schema
from tcpgate.control.probe import Ask
from tcpgate.control.probe_exec import ask_exec
from tcpgate.control.probe_http2 import ask_grpc
from tcpgate.control.probe_kinds import ask_expect, ask_http, ask_tcp, ask_tls
from tcpgate.filters.access import Access
from tcpgate.filters.base import Filter
from tcpgate.filters.headers import Headers
from tcpgate.policy.balancers.base import Balancer
from tcpgate.policy.balancers.first import First
from tcpgate.policy.balancers.least_connections import LeastConnections
from tcpgate.policy.balancers.maglev import Maglev
from tcpgate.policy.balancers.p2c import PowerOfTwo
from tcpgate.policy.balancers.peak_ewma import LeastLatency
from tcpgate.policy.balancers.random_pick import RandomPick
from tcpgate.policy.balancers.rendezvous import Rendezvous
from tcpgate.policy.balancers.ring_hash import RingHash
from tcpgate.policy.balancers.round_robin import RoundRobin
from tcpgate.policy.balancers.source_hash import SourceHash
from tcpgate.policy.balancers.weighted_round_robin import WeightedRoundRobin

# -- balancers: `balance` of an upstream ------------------------------------------------------------------------------

BALANCERS: Mapping[str, type[Balancer]] = {
    "round_robin": RoundRobin,
    "weighted_round_robin": WeightedRoundRobin,
    "least_connections": LeastConnections,
    "random": RandomPick,
    "p2c": PowerOfTwo,
    "peak_ewma": LeastLatency,
    "source_hash": SourceHash,
    "ring_hash": RingHash,
    "maglev": Maglev,
    "rendezvous": Rendezvous,
    "first": First,
}

# -- filters: `kind` of a filter --------------------------------------------------------------------------------------

FILTERS: Mapping[str, Callable[..., Filter]] = {
    "headers": Headers,
    "access": Access,
}
"""Each is made from the spec of its own kind (`schema.FILTER_SPECS`)."""


def make_filter(spec: schema.Filter) -> Filter:
    """The filter that `spec` describes."""
    return FILTERS[spec.kind](spec)


# -- probes: what a `health` table asks --------------------------------------------------------------------------------

PROBES: Mapping[str, Ask] = {
    "http": ask_http,
    "tcp": ask_tcp,
    "tls": ask_tls,
    "expect": ask_expect,
    "exec": ask_exec,
    "grpc": ask_grpc,
}
