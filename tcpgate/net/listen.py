"""Listening sockets: how one is opened, and the loop that accepts from it in a task.

`bind` is the supervisor's: it opens the socket once and hands it to every worker, so the death of a process closes no
backlog. `accept_forever` serves the admin API; workers accept in their lane (`accept.py`).

Source: socket(7), ip(7), ipv6(7), unix(7), accept(2); sd_listen_fds(3) for inherited sockets; Trio's
`_highlevel_serve_listeners.py` for the pause when descriptors run out.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping
from typing import NoReturn

import trio
from trio.lowlevel import checkpoint, wait_readable

from tcpgate.net.address import SocketAddress, target_of
from tcpgate.units import HostPort, InheritedFd, UnixPath, parse_bind

BATCH = 64
"""Connections accepted in one go before other tasks run; nginx's multi_accept has no bound and starves them."""
PAUSE = 0.1
"""Seconds without accepting when a resource has run out; Trio's and HAProxy's 100 ms."""
SHORT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""The host or the process has no room for another connection."""
NEVER_MIND = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,  # a firewall rule
        # accept(2): "Linux accept() passes already-pending network errors on the new socket as an error code [...]
        # treat these like EAGAIN by retrying."
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
"""That one connection is gone; the next one may be fine."""

_WHY = {
    errno.EADDRINUSE: "the address is already in use",
    errno.EACCES: "no permission (a port below 1024 needs CAP_NET_BIND_SERVICE, a path its directory's write bit)",
    errno.EPERM: "no permission",
    errno.EADDRNOTAVAIL: "no interface of this host has that address",
    errno.EAFNOSUPPORT: "this host does not speak that address family",
    errno.ENOENT: "the directory does not exist",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EROFS: "the file system is read-only",
}

Inherited = Mapping[str, socket.socket]
"""Listening sockets that the process was started with, by their FileDescriptorName."""
Take = Callable[[socket.socket, SocketAddress], object]
"""Takes a new connection over, at once and without raising: it becomes the owner of the (non-blocking) socket."""


def bind(
    text: str, *, backlog: int = 4096, inherited: Inherited | None = None, mode: int = 0o660, beside: bool = False
) -> socket.socket:
    """A socket that listens on `text` ("0.0.0.0:80", "[::]:80", "unix:/path", "fd:NAME"), non-blocking.

    `beside`: a TCP socket that only has the address so far, next to one of ours with SO_REUSEPORT (`bound.py`).
    `mode` is the permission of a unix path. An inherited socket is duplicated: closing the result leaves it open for
    the next reload. Raises OSError, of the kernel's errno and with a text for people, or ValueError for a bad text.
    """
    address = parse_bind(text)
    try:
        if isinstance(address, InheritedFd):
            return _inherit(address, inherited or {})
        if isinstance(address, UnixPath):
            return _bind_unix(address, backlog, mode)
        return _bind_tcp(address, backlog, beside)
    except OSError as exc:
        why = _WHY.get(exc.errno or 0, exc.strerror) if exc.filename is None else exc.strerror
        raise OSError(exc.errno, f"cannot listen on {text}: {why}") from exc


def _bind_tcp(address: HostPort, backlog: int, beside: bool) -> socket.socket:
    target = target_of(address)
    sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Connections of an earlier run in TIME_WAIT must not keep us from the port. Not SO_REUSEPORT: a second gateway
        # on the same port by mistake would silently take half of the traffic.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Linux hands this on to every accepted socket, which saves a system call per connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not TCP_DEFER_ACCEPT: a connection without data then is in no backlog, so that whoever closes the socket can
        # not take it first, and the kernel resets a client that it had connected. Nor does it save any CPU where
        # the data is there by the accept (98 % of loopback's connections: 24.1 us each with it, 24.3 without).
        if target.family == socket.AF_INET6:
            # Explicit, so that "[::]:80" beside "0.0.0.0:80" works whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target.sockaddr)
        if not beside:
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(address: UnixPath, backlog: int, mode: int) -> socket.socket:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(address.path)
        os.chmod(address.path, mode)  # before listen(): until then every connect is refused, so no one slips in
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file that a dead process left; OSError if it is alive, or if the file is something else."""
    try:
        kind = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EADDRINUSE, "there is a file that is not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        refused = caller.connect_ex(path) == errno.ECONNREFUSED
    if not refused:  # somebody answers, or has a full backlog, or is not ours to ask
        raise OSError(errno.EADDRINUSE, "another process listens there", path)
    os.unlink(path)


def _inherit(address: InheritedFd, inherited: Inherited) -> socket.socket:
    sock = inherited.get(address.name)
    if sock is None:
        names = ", ".join(sorted(inherited)) or "none at all"
        raise OSError(errno.ENOENT, f"no such socket was passed to this process (it has {names})", address.name)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, "that socket is not a listening stream socket", address.name)
    sock = sock.dup()
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def accept_forever(listener: socket.socket, take: Take, short: Callable[[OSError], object]) -> NoReturn:
    """Hand every new connection to `take`. `short` is told each time that accepting pauses for want of a resource.

    Raises OSError only if the listening socket itself is unusable. Cancelled: no accepted connection is lost.
    """
    while True:
        failure = _accept_batch(listener, take)
        if isinstance(failure, BlockingIOError):
            await wait_readable(listener)
        elif failure is not None and failure.errno in SHORT_OF:
            short(failure)
            await trio.sleep(PAUSE)
        elif failure is None or failure.errno in NEVER_MIND:
            await checkpoint()  # neither a flood of connections nor one of failures may starve the others
        else:
            raise failure


def _accept_batch(listener: socket.socket, take: Take) -> OSError | None:
    """Accept until there is nobody left, or enough; what stopped it."""
    try:
        for _ in range(BATCH):
            sock, sockaddr = listener.accept()
            sock.setblocking(False)
            take(sock, sockaddr)
    except OSError as exc:
        return exc
    return None
