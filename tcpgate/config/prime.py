"""Primes: the sizes that a maglev table may have. Pure.

The check warns of a `table_size` that is none, and the balancer (`policy/balancers/maglev.py`) takes the next one: a
step of any size then visits every slot.
"""

from __future__ import annotations

from math import isqrt


def next_prime(number: int) -> int:
    """The least prime that is not below `number`."""
    while number < 2 or any(number % divisor == 0 for divisor in range(2, isqrt(number) + 1)):
        number += 1
    return number
