"""What is stable for a user: the number that the hashing balancers and the splits hash on. Pure.

A rule is "source", "path", "header:NAME" or "cookie:NAME". Where a request lacks the header or cookie, its source
stands in, so that such requests spread over all endpoints instead of meeting at one.
"""

from __future__ import annotations

from tcpgate.codec.events import RequestHead
from tcpgate.policy.hashing import hash64


def key_of(rule: str, source: str, head: RequestHead | None) -> int:
    """A 64-bit number for `rule`; `source` is the client's address, `head` is None for a tcp flow."""
    if head is not None:
        kind, _, name = rule.partition(":")
        value: bytes | None = None
        if kind == "path":
            value = head.path
        elif kind == "header":
            value = head.fields.get(name.lower().encode())
        elif kind == "cookie":
            value = cookie(head, name.encode())
        if value:
            return hash64(value)
    return hash64(source.encode())


def cookie(head: RequestHead, name: bytes) -> bytes | None:
    """The value of the first cookie of that name (RFC 6265 5.4), or None."""
    for field in head.fields.all(b"cookie"):
        for pair in field.split(b";"):
            found, equals, value = pair.strip(b" \t").partition(b"=")
            if equals and found == name:
                return value
    return None
