"""Numbers from bytes, the same on every host, in every run and in every release. Pure.

Two gateways in front of the same endpoints must send one key to the same endpoint, and so must the one that comes after
an upgrade: Python's own `hash()` is salted per process and is changed between releases, so it is not for that.

Source: BLAKE2b (RFC 7693) for bytes; the finalizer of SplitMix64 (Steele, Lea, Flood 2014) for numbers.
"""

from __future__ import annotations

import hashlib

MASK = (1 << 64) - 1


def hash64(data: bytes) -> int:
    """64 well-mixed bits of `data`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def mix64(number: int) -> int:
    """64 well-mixed bits of `number`'s lowest 64; one to one. For deriving an independent number from a key."""
    number &= MASK
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
    return number ^ (number >> 31)


def unit(number: int) -> float:
    """`number` (64 bits) as a fraction, never 0 and never 1, so that its logarithm is below zero."""
    # 52 bits and not 53: then the half at the end is still exact, and the largest does not round to 1.
    return ((number >> 12) + 0.5) * 2.0**-52
