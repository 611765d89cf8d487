"""The sizes of maglev tables."""

from __future__ import annotations

import pytest

from tcpgate.config.prime import next_prime


@pytest.mark.parametrize(("number", "prime"), [(0, 2), (2, 2), (8, 11), (251, 251), (65536, 65537), (1000, 1009)])
def test_the_next_prime(number: int, prime: int) -> None:
    assert next_prime(number) == prime
