"""Load that wrk does not make, each as a process of its own: `python client.py bulk|idle|paced ...`, one JSON line out.

**paced** is an open loop: request number i is due at start + i / rate whatever happened to those before it, goes out
on any connection that is free, and its latency counts from when it was *due*, so a server that stalls cannot slow the
questions down (coordinated omission). The *longest stall* is the longest time in which not one response came though at
least one request was due and unanswered. `late` tells what the sender itself lost: from due to sent, where a
connection was free. A request whose connection was closed under it before one byte of an answer came is sent again on
another, as RFC 9112 9.3.1 lets a client do with a GET, and counted in `retried`; its latency goes on counting.

Blocking sockets and epoll, nothing else: it must cost less than what it measures.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import gc
import json
import os
import re
import select
import socket
import ssl
import sys
import time

REQUEST = b"GET /%s HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
PR_SET_TIMERSLACK = 29


def say(**figures: float) -> None:
    """One line for whoever started this."""
    print(json.dumps(figures), flush=True)


def request(path: str) -> bytes:
    """A plain GET."""
    return REQUEST % path.encode()


def length_of(head: bytes) -> int:
    """The Content-Length of a 200; ValueError if it is none, or has none."""
    match = LENGTH.search(head)
    if match is None or not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"the answer was {head[:200]!r}")
    return int(match[1])


# -- bulk -----------------------------------------------------------------------------------------------------------


def connected(port: int, tls: ssl.SSLContext | None, session: ssl.SSLSession | None = None) -> socket.socket:
    """A new connection, over TLS with a context."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock if tls is None else tls.wrap_socket(sock, server_hostname="bench.example", session=session)


def unverified() -> ssl.SSLContext:
    """A TLS client that takes any certificate: who answers is no question here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def bulk(port: int, path: str, seconds: float, tls: ssl.SSLContext | None) -> None:
    """Fetch one long response after the other until `seconds` are over, and read all of it, as a client does."""
    began, total, count = time.monotonic(), 0, 0
    buffer = bytearray(1 << 16)
    while count == 0 or time.monotonic() - began < seconds:
        with connected(port, tls) as sock:
            sock.sendall(request(path))
            data = b""
            while b"\r\n\r\n" not in data:
                chunk = sock.recv(4096)
                if not chunk:
                    raise SystemExit("closed before the head's end")
                data += chunk
            head, _, first = data.partition(b"\r\n\r\n")
            left = length_of(head) - len(first)
            total += len(first) + left
            while left:
                got = sock.recv_into(buffer, min(left, len(buffer)))
                if not got:
                    raise SystemExit(f"cut off with {left} bytes to come")
                left -= got
        count += 1
    say(requests=count, bytes=total, seconds=time.monotonic() - began)


# -- handshakes -----------------------------------------------------------------------------------------------------


def handshakes(port: int, path: str, seconds: float, *, resume: bool) -> None:
    """One connection after the other, each with a handshake, one request, its answer and a goodbye.

    `resume`: each begins with the session of the one before, as browsers do.
    """
    context, session = unverified(), None
    resumed = count = failed = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with connected(port, context, session) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            sock.sendall(request(path))
            failed += not sock.recv(65536).startswith(b"HTTP/1.1 200")
            resumed += sock.session_reused is True
            if resume:
                session = sock.session  # TLS 1.3 sends it after the handshake, so it is read with the answer
        count += 1
    wanted = count - 1 if resume else 0
    spent = time.monotonic() - began
    say(requests=count, failed=failed + abs(wanted - resumed), resumed=resumed, seconds=spent, rps=count / spent)


# -- WebSockets -----------------------------------------------------------------------------------------------------

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: bench.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MESSAGE = b"\x81\xe4\x00\x00\x00\x00" + b"m" * 100
"""A text of 100 bytes in one frame, masked with zeros."""


def messages(port: int, seconds: float, count: int) -> None:
    """`count` WebSockets, on each of which a message goes out as soon as the one before has come back whole."""
    poll = select.epoll()
    open_ones: dict[int, socket.socket] = {}
    for _ in range(count):
        sock = connected(port, None)
        sock.sendall(UPGRADE)
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(4096)
            if not data:
                raise SystemExit("closed before the head's end")
            head += data
        if not head.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"no upgrade: {head[:200]!r}")
        poll.register(sock.fileno(), select.EPOLLIN)
        open_ones[sock.fileno()] = sock
    back = dict.fromkeys(open_ones, 0)
    began, done, failed = time.monotonic(), 0, 0
    for sock in open_ones.values():
        sock.sendall(MESSAGE)
    while time.monotonic() - began < seconds and open_ones:
        for fd, _ in poll.poll(0.1):
            sock = open_ones[fd]
            data = sock.recv(65536)
            back[fd] += len(data)
            if not data:
                failed += 1
                poll.unregister(fd)
                open_ones.pop(fd).close()
            elif back[fd] >= len(MESSAGE):
                failed += back[fd] > len(MESSAGE)
                done, back[fd] = done + 1, 0
                sock.sendall(MESSAGE)
    spent = time.monotonic() - began
    say(requests=done, failed=failed, seconds=spent, rps=done / spent)


# -- idle -----------------------------------------------------------------------------------------------------------


def idle(port: int, path: str, count: int) -> None:
    """Open `count` keep-alive connections, one answered request on each, say so, and hold them until stdin ends."""
    open_ones = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        sock.sendall(request(path))
        data = sock.recv(65536)
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        length_of(data)
        open_ones.append(sock)
    say(requests=len(open_ones))
    sys.stdin.read()
    say(closed_early=sum(is_closed(sock) for sock in open_ones))


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side ended it."""
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


# -- paced ----------------------------------------------------------------------------------------------------------


class Paced:
    """An open-loop sender over keep-alive connections."""

    def __init__(self, port: int, path: str, connections: int) -> None:
        self.port = port
        self.request = request(path)
        self.poll = select.epoll()
        self.open: dict[int, socket.socket] = {}
        self.free: list[int] = []
        self.due: dict[int, float] = {}
        """Connection under way -> when its request was due."""
        self.partial: dict[int, bytes] = {}
        self.waiting: collections.deque[float] = collections.deque()
        self.proved: set[int] = set()
        """Connections that answered before: one that a server closes may have been idle to it, and not its fault."""
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.failed = self.reconnected = self.retried = 0
        self.stall = 0.0
        self.quiet_since = 0.0
        """The last response, or when the first of those under way was due if there was none under way before."""
        for _ in range(connections):
            self.connect()

    def connect(self) -> None:
        """One more free connection."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.open[sock.fileno()] = sock
        self.free.append(sock.fileno())
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def drop(self, fd: int) -> None:
        """Another connection for one that the other side closed; what was asked there is lost, or asked again."""
        due = self.due.pop(fd, None)
        self.poll.unregister(fd)
        self.open.pop(fd).close()
        if due is None:
            self.free.remove(fd)
            self.reconnected += 1
        elif self.partial.pop(fd, b"") or fd not in self.proved:
            self.failed += 1
        else:
            self.retried += 1
            self.waiting.appendleft(due)
        self.proved.discard(fd)
        self.connect()
        if self.waiting:
            self.send(self.waiting.popleft())

    def send(self, due: float) -> None:
        """The request that was due at `due`, on a free connection."""
        fd = self.free.pop()
        if not self.due:
            self.quiet_since = max(due, self.quiet_since)
        self.due[fd] = due
        try:
            self.open[fd].send(self.request)
        except OSError:
            self.drop(fd)

    def receive(self, fd: int) -> None:
        """What came on a connection."""
        try:
            data = self.open[fd].recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or fd not in self.due:
            self.drop(fd)
            return
        if fd in self.partial:
            data = self.partial.pop(fd) + data
        end = data.find(b"\r\n\r\n")
        try:
            whole = end >= 0 and len(data) - end - 4 >= length_of(data)
        except ValueError:  # an error page, or a framing that no proxy has for a body of known length
            self.partial[fd] = data
            self.drop(fd)
            return
        if not whole:
            self.partial[fd] = data
            return
        self.proved.add(fd)
        now = time.perf_counter()
        self.latencies.append(now - self.due.pop(fd))
        self.stall = max(self.stall, now - self.quiet_since)
        self.quiet_since = now
        self.free.append(fd)
        if self.waiting:
            self.send(self.waiting.popleft())

    def run(self, rate: float, seconds: float) -> None:
        """Send for `seconds`, then wait up to 5 s for what is under way."""
        total, sent = round(rate * seconds), 0
        start = self.quiet_since = time.perf_counter()
        while len(self.latencies) + self.failed < total:
            now = time.perf_counter()
            while sent < total and start + sent / rate <= now:
                if self.free:
                    self.late.append(time.perf_counter() - start - sent / rate)
                    self.send(start + sent / rate)
                else:
                    self.waiting.append(start + sent / rate)
                sent += 1
            ready = self.poll.poll(0)
            if not ready:
                if now - start > seconds + 5:
                    self.failed += len(self.due) + len(self.waiting)
                    break
                # epoll(7) is a file itself, and select(2) keeps time in microseconds where epoll's are milliseconds.
                pause = start + sent / rate - time.perf_counter() if sent < total else 0.1
                select.select([self.poll], [], [], max(0.0, pause))
                ready = self.poll.poll(0)
            for fd, _ in ready:
                if fd in self.open:
                    self.receive(fd)

    def close(self) -> None:
        """End every connection."""
        self.poll.close()
        for sock in self.open.values():
            sock.close()

    def report(self) -> None:
        """All of it, in microseconds."""
        self.latencies.sort()
        self.late.sort()
        say(
            requests=len(self.latencies),
            failed=self.failed,
            reconnected=self.reconnected,
            retried=self.retried,
            sender_cpu_us=time.process_time() * 1e6 / max(1, len(self.latencies)),
            stall_us=self.stall * 1e6,
            **{f"{name}_us": quantile(self.latencies, q) * 1e6 for name, q in QUANTILES.items()},
            **{f"late_{name}_us": quantile(self.late, q) * 1e6 for name, q in QUANTILES.items()},
        )


QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


def quantile(ordered: list[float], q: float) -> float:
    """The smallest value that at least the share `q` does not exceed; 0.0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["bulk", "handshakes", "idle", "messages", "paced"])
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--count", type=int, default=64, help="connections")
    parser.add_argument("--rate", type=float, default=1000.0, help="paced: requests per second")
    parser.add_argument("--tls", action="store_true", help="bulk: over TLS")
    parser.add_argument("--resume", action="store_true", help="handshakes: with the session of the one before")
    options = parser.parse_args()
    if options.kind == "bulk":
        bulk(options.port, options.path, options.seconds, unverified() if options.tls else None)
    elif options.kind == "handshakes":
        handshakes(options.port, options.path, options.seconds, resume=options.resume)
    elif options.kind == "messages":
        messages(options.port, options.seconds, options.count)
    elif options.kind == "idle":
        idle(options.port, options.path, options.count)
    else:
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        with contextlib.suppress(OSError):  # as root: whatever else runs beside the origin is not the proxy's delay
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        paced = Paced(options.port, options.path, options.count)
        gc.disable()
        paced.run(options.rate, options.seconds)
        paced.report()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # a terminal tells all of its processes; who started this tells of it
        main()
