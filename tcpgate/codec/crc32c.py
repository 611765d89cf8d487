"""CRC32c, the checksum of PROXY headers. Pure. Source: RFC 4960 appendix B (Castagnoli's polynomial, reflected)."""

from __future__ import annotations


def _table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The CRC of `data`."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
