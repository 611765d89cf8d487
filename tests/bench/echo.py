"""An endpoint of WebSockets for the benchmark: `python echo.py PORT`. It agrees to every upgrade, then gives back every
byte as it comes. A proxy that moves WebSockets as they are cannot tell it from one that reads the frames."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import select
import socket
import sys

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = re.compile(rb"\r\nsec-websocket-key: *(\S+)", re.IGNORECASE)


def agree(head: bytes) -> bytes:
    """The 101 to an upgrade (RFC 6455 4.2.2); to anything else, such as a health check, a 200."""
    match = KEY.search(head)
    if match is None:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    accept = base64.b64encode(hashlib.sha1(match[1] + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def main(port: int) -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    open_ones: dict[int, socket.socket] = {}
    upgraded: set[int] = set()
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                with contextlib.suppress(OSError):
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    open_ones[sock.fileno()] = sock
                    poll.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = open_ones[fd]
            try:
                data = sock.recv(65536)
                if data:
                    sock.sendall(data if fd in upgraded else agree(data))
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                upgraded.discard(fd)
                open_ones.pop(fd).close()
            elif fd not in upgraded and KEY.search(data):
                upgraded.add(fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
