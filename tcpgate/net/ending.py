"""How a socket ends, and what it then still has to say, for whoever has the socket and no `Stream` around it.

Source: socket(7), SO_LINGER; tcp(7), SIOCOUTQ. Called by the riders of the lane.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from tcpgate.net.stream import unsent

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds


def reset(sock: socket.SocketType) -> None:
    """Close with RST: what is unsent is dropped, and the peer cannot take a torn stream for a whole one."""
    # A unix socket takes the option and ignores it; its peer sees an end of stream.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def still_unsent(sock: socket.SocketType) -> int:
    """Bytes in the kernel's send buffer that the peer has not acknowledged; 0 if it is gone."""
    with suppress(OSError):
        return unsent(sock)
    return 0
