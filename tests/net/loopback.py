"""Connected sockets and streams over loopback, for tests; all closed when the test is over."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import attrs
import trio

from tcpgate.errors import Side
from tcpgate.net.stream import Stream

HELD = (4 << 20) + sum(
    2 * int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem")
)
"""More bytes than the kernel's buffers of two connections and a pipe hold, at their largest; hosts differ tenfold."""


@attrs.define(eq=False)
class Loopback:
    """Makes connected sockets and streams; owns them all."""

    stack: ExitStack

    def own(self, sock: socket.socket) -> socket.socket:
        """Close `sock` at the end of the test."""
        return self.stack.enter_context(sock)

    def listener(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 16) -> socket.socket:
        """A listening TCP socket, non-blocking."""
        sock = self.own(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
        return sock

    def refusing_port(self) -> int:
        """A port that refuses, and that nobody else is given meanwhile: it is bound, but not listened on."""
        sock = self.own(socket.socket())
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

    def pair(self, *, buffer: int = 0) -> tuple[socket.socket, socket.socket]:
        """Two ends of a TCP connection; `buffer` bounds what the kernel holds for either of them."""
        listener = self.own(socket.socket())
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = self.own(socket.socket())
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        ours.connect(listener.getsockname())
        theirs = self.own(listener.accept()[0])
        listener.close()
        return ours, theirs

    def stream(self, side: Side = Side.CLIENT, *, buffer: int = 0) -> tuple[Stream, trio.socket.SocketType]:
        """A stream, and its peer."""
        ours, theirs = self.pair(buffer=buffer)
        theirs.setblocking(False)
        return Stream(ours, side), trio.socket.from_stdlib_socket(theirs)
