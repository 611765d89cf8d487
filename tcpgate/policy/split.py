"""Which upstream of a route's `split` a request goes to. Pure.

Stable by key: the same key goes to the same side as long as the weights stand, and when they change, as few keys move
as the new shares ask for: from 95/5 to 90/10 exactly 5 % of them, all from the one side to the other. Rendezvous lots
have that with any number of sides; cumulative intervals (nginx's `split_clients`) have it with two only. And a lot
depends on the side's name, so that the users of a 5 % side are not the same 5 % of the hash space that the hashing
balancer behind it would then put on one endpoint.

Source: see `hrw.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcpgate.policy.hrw import Lots


class Split:
    """A weighted choice between upstreams by key."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        """At least one weight must be above zero, none below; ValueError if not so."""
        if min(weights.values(), default=0) < 0 or not any(weights.values()):
            raise ValueError("split needs a weight above zero, and none below")
        # In the order of names: that of the config must not matter even where two lots are equal.
        shares = {name: float(weights[name]) for name in sorted(weights) if weights[name]}
        self._names = tuple(shares)
        self._lots = Lots(self._names, tuple(shares.values()))

    def choose(self, key: int) -> str:
        """The upstream that `key` (64 bits of a hash) goes to."""
        return self._names[self._lots.winner(key)]
