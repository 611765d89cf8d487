"""A certificate's public key is found where it stands, and bytes that are no certificate are refused."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.client_tls import pin_of, public_key_of, text_of
from tests import tls_origin as origins


def der(pem: str) -> bytes:
    """The first certificate of a chain."""
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(pem.partition(end)[0] + end + "\n")


GOOD = der(origins.good().chain)


@pytest.mark.parametrize("shown", [origins.good, origins.self_signed, origins.expired])
def test_a_pin_is_what_openssls_reading_of_the_key_gives(shown: object) -> None:
    certificate = shown()  # type: ignore[operator]
    assert text_of(pin_of(der(certificate.chain))) == certificate.pin


@given(st.integers(0, len(GOOD) - 1))
def test_a_certificate_that_is_cut_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="not a certificate in DER"):
        public_key_of(GOOD[:size])


@given(st.binary(max_size=600))
def test_any_bytes_give_a_key_or_a_value_error(data: bytes) -> None:
    try:
        key = public_key_of(data)
    except ValueError:
        return
    assert key in data


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_any_damage_gives_a_key_or_a_value_error(at: int, byte: int) -> None:
    data = GOOD[:at] + bytes((byte,)) + GOOD[at + 1 :]
    with contextlib.suppress(ValueError):
        assert public_key_of(data) in data
