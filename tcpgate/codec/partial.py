"""What the parsers of a connection's first bytes say while those are not all there. Pure.

`proxy_header.py` and `client_hello.py` are given everything that has come so far, each time anew, and take nothing:
what they have looked at may still be in the kernel's buffer.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class NeedMore:
    """What came is the beginning of something, and not all of it."""

    size: int
    """Bytes, counted from the first one, without which nothing more can be said: more than were given."""
