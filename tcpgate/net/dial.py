"""Connecting to an endpoint: one non-blocking connect after the other until an address answers.

A name may have several addresses. They are tried in turn, families alternating, each with its share of the time that
is left, so that one dead address cannot use up the whole connect timeout. Whatever fails here failed before a byte
was sent: every error is Retry.IF_UNSENT, and any request may go to another endpoint.

Source: connect(2), unix(7); RFC 8305 for the order; Go's net.selfConnect for the loopback trap. Owner: the caller's
task.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from socket import AF_UNIX, SocketType

import trio
from trio.lowlevel import wait_readable, wait_writable

from tcpgate.errors import GateError, Reason, Refused, Retry, Side, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.greeting import Greeter, Greeting
from tcpgate.net.lane import WRITE
from tcpgate.net.resolve import Resolver, numeric_target
from tcpgate.net.stream import Stream
from tcpgate.units import EndpointAddress, parse_endpoint

UNIX_RETRY = 0.01
"""Seconds between two knocks at a unix socket whose backlog is full: connect(2) has no queue to wait in."""

CONNECT_REASONS: dict[int, Reason] = {
    errno.ECONNREFUSED: Reason.CONNECT_REFUSED,
    errno.ECONNRESET: Reason.CONNECT_REFUSED,
    errno.ECONNABORTED: Reason.CONNECT_REFUSED,
    errno.ENOENT: Reason.CONNECT_REFUSED,  # no such unix socket: its server does not run
    errno.ENOTDIR: Reason.CONNECT_REFUSED,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    errno.EMFILE: Reason.FILE_LIMIT,
    errno.ENFILE: Reason.FILE_LIMIT,
    errno.ENOBUFS: Reason.FILE_LIMIT,
    errno.ENOMEM: Reason.FILE_LIMIT,
}
"""What a failed connect means; UNREACHABLE (no route, no such host, a firewall, no local port) for any other
errno."""


async def dial(
    address: EndpointAddress | str,
    *,
    deadline: float,
    resolver: Resolver | None = None,
    greeting: Greeting | None = None,
) -> Stream:
    """A stream to `address` (a value, or the text of one), connected before `deadline`, its `greeting` said.

    Without a resolver only numeric addresses and paths will do. Raises UpstreamError (CONNECT_REFUSED, CONNECT_TIMEOUT,
    UNREACHABLE, DNS_FAILED, TLS_HANDSHAKE, TLS_CERTIFICATE) for the last address tried, or Refused(FILE_LIMIT).
    Cancelled: the socket is closed.
    """
    if isinstance(address, str):
        address = parse_endpoint(address)
    targets = await resolver.resolve(address, deadline=deadline) if resolver else (numeric_target(address),)
    failures: list[UpstreamError] = []
    for index, target in enumerate(targets):
        try:
            return await _dial_one(target, _share(deadline, len(targets) - index), greeting)
        except UpstreamError as exc:
            failures.append(exc)
    raise all_failed(failures)


def all_failed(failures: Sequence[UpstreamError]) -> UpstreamError:
    """What the failures of all addresses, at least one, come to: the last one's reason, with everybody's words."""
    last = failures[-1]
    if len(failures) == 1:
        return last
    whole = UpstreamError(last.reason, "; ".join(failure.detail for failure in failures), retry=last.retry)
    whole.__cause__ = last
    return whole


def _share(deadline: float, addresses: int) -> float:
    """Until when the first of so many addresses may be tried."""
    now = trio.current_time()
    return now + (deadline - now) / addresses


async def _dial_one(target: Target, deadline: float, greeting: Greeting | None) -> Stream:
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise connect_failed(exc, target) from exc
    greeter: Greeter | None = None
    try:
        with trio.CancelScope(deadline=deadline) as scope:
            await _connect(sock, target)
            if greeting is not None:
                greeter = Greeter(greeting, sock, target)
                await _greet(greeter)
        if scope.cancelled_caught and greeter is not None:
            raise greeter.late()
        if scope.cancelled_caught:
            raise UpstreamError(Reason.CONNECT_TIMEOUT, f"{target}: no answer", retry=Retry.IF_UNSENT)
    except OSError as exc:
        _close(sock, greeter)
        raise connect_failed(exc, target) from exc
    except BaseException:
        _close(sock, greeter)
        raise
    return Stream(sock if greeter is None else greeter.sock, Side.UPSTREAM, str(target))


def _close(sock: socket.socket, greeter: Greeter | None) -> None:
    """Whichever of the two objects has the descriptor by now."""
    sock.close()
    if greeter is not None:
        greeter.sock.close()


async def _greet(greeter: Greeter) -> None:
    while events := greeter.step():
        await (wait_writable if events == WRITE else wait_readable)(greeter.sock)


async def _connect(sock: socket.socket, target: Target) -> None:
    if target.family == socket.AF_UNIX:
        await _connect_unix(sock, target)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    failure = sock.connect_ex(target.sockaddr)
    if failure == errno.EINPROGRESS:
        await wait_writable(sock)
        failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, errno.errorcode.get(failure, "error"))
    if is_itself(sock, target):
        raise OSError(errno.ECONNREFUSED, "connected to itself")


def is_itself(sock: SocketType, target: Target) -> bool:
    """Whether a socket that is connected to `target` is its own peer.

    A connect to a local port that nobody has can be given that very port as its own, and then TCP connects the socket
    to itself: the endpoint would look alive and answer each request with the request.
    """
    return target.family != AF_UNIX and sock.getsockname()[:2] == target.sockaddr[:2]


async def _connect_unix(sock: socket.socket, target: Target) -> None:
    while failure := sock.connect_ex(target.sockaddr):
        if failure != errno.EAGAIN:
            raise OSError(failure, errno.errorcode.get(failure, "error"))
        await trio.sleep(UNIX_RETRY)


def connect_failed(exc: OSError, target: Target) -> GateError:
    """What a failed connect means. Raise it `from exc`."""
    reason = CONNECT_REASONS.get(exc.errno or 0, Reason.UNREACHABLE)
    detail = f"{target}: {errno.errorcode.get(exc.errno or 0, str(exc))}"
    if reason is Reason.FILE_LIMIT:
        return Refused(reason, detail)
    return UpstreamError(reason, detail, retry=Retry.IF_UNSENT)
