"""`source_hash`: a client stays with one member, and keeps it when others come and go. Pure.

This is weighted rendezvous hashing over the client's address, and not "hash modulo sum of the weights". A modulo is
what HAProxy's `balance source` does, and there one endpoint's failure sends nearly every client elsewhere. nginx's
`ip_hash` avoids that for a failure (it hashes again until it finds a live peer), but not when a peer is added or
removed, and it looks at three octets of an IPv4 address only, so a whole office is one client. Here the whole address
counts, exactly the lost endpoint's clients move, and the shares are exactly the weights'.

So it picks as `rendezvous` does; the name is there because it is the one that people look for.
"""

from __future__ import annotations

from tcpgate.policy.balancers.rendezvous import Rendezvous


class SourceHash(Rendezvous):
    """The member with the highest lot for the client."""

    __slots__ = ()
