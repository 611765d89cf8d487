"""A connection that is arriving, whatever step it is at: how it waits, what the listener asks of it, how it ends badly.

The steps are told by `arrival.py`, which is the one subclass.

Looking at bytes without taking them leaves the socket readable, and the lane is level-triggered. So SO_RCVLOWAT is set
to as much as is needed to say more, and where that does not help (a unix socket) the next look is the sweep's.

A connection that is refused with an alert leaves slowly: a close with unread bytes resets the connection, and the
client's kernel would throw the alert away.

Owner: the listener. Nothing here awaits; the one time limit, `timeouts.handshake`, is looked at by the sweep.

Source: RFC 8446 6.2 (a fatal alert ends the connection); tcp(7), socket(7) for SO_RCVLOWAT.
"""

from __future__ import annotations

import math
import os
import select
import socket
from abc import ABC, abstractmethod
from contextlib import suppress

from tcpgate.codec import forwarded
from tcpgate.codec.client_hello import ClientHello, alert
from tcpgate.errors import Reason, Side
from tcpgate.net.address import SocketAddress, describe, number_of
from tcpgate.net.lane import READ, WRITE
from tcpgate.net.tls_socket import TlsSocket
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.http import FRESH_GRACE
from tcpgate.proxy.rider import Reception
from tcpgate.state.snapshot import LISTENER_HANDSHAKES_FAILED, LISTENER_REFUSED
from tcpgate.stats.record import AccessRecord, Phases

HEADER, ASKING, HELLO, SHAKING, PREFACE, LEAVING, OVER = range(7)

LINGER = 1.0
"""Seconds that a refused client has to read its alert and to close."""
HUNG_UP = select.EPOLLRDHUP
"""The client will send no more; what it has sent may still be all that is needed."""
DROP_SIZE = 64 << 10


class Arriving(ABC):
    """One connection between its accept and its protocol."""

    __slots__ = (
        "arrived",
        "began",
        "cut_at",
        "deadline",
        "events",
        "fd",
        "has_asked",
        "held",
        "hello",
        "host",
        "is_leaving",
        "lane",
        "low",
        "plan",
        "seen",
        "sock",
        "spec",
        "state",
        "tls",
        "whole_time",
    )  # fmt: skip

    is_long = False

    def __init__(self, host: Reception, sock: socket.SocketType, sockaddr: SocketAddress, port: int | None) -> None:
        """`sock`: accepted, non-blocking, in no lane; the arrival's from now on."""
        self.host = host
        self.plan = host.plan
        self.spec = host.plan.spec
        self.lane = host.plane.lane
        self.sock = sock
        self.fd = sock.fileno()
        self.arrived = Arrived(sockaddr=sockaddr, port=port)
        self.state = OVER
        self.events = 0
        """Of its socket, that the lane tells."""
        self.low = 1
        """SO_RCVLOWAT."""
        self.seen = 0
        """Bytes that were with the kernel at the last look; one that finds no more must not be repeated at once."""
        self.held = b""
        """Of a PROXY header, taken from the kernel."""
        self.has_asked = False
        """For TLS, in the words of a protocol of its own; they were answered."""
        self.hello: ClientHello | None = None
        self.tls: TlsSocket | None = None
        self.began = self.lane.clock()
        self.whole_time = self.deadline = self.began + self.spec.timeouts.handshake
        self.cut_at = math.inf
        self.is_leaving = False

    # -- what the listener asks -------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Await the first bytes. OSError: the lane has no room."""

    def leave(self) -> None:
        """A client that has said nothing yet has a moment; one that has, its whole time."""
        self.is_leaving = True
        if not self.has_spoken:
            self.deadline = min(self.deadline, self.lane.clock() + FRESH_GRACE)

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline`; infinity takes it back."""
        self.cut_at = deadline

    def stop(self) -> None:
        """The worker is being cancelled."""
        if self.state == LEAVING:
            self.gone()
        else:
            self.end(Side.GATEWAY, Reason.DRAINED, "cut while it arrived")

    @property
    def has_spoken(self) -> bool:
        """Some byte of the client's has come."""
        return self.seen > 0 or bool(self.held) or self.has_asked or self.state == SHAKING

    # -- what the lane calls ----------------------------------------------------------------------------------------

    @abstractmethod
    def on_ready(self, ready: int) -> None:
        """The client has sent something, or hung up, or reads again."""

    @abstractmethod
    def late(self) -> None:
        """Its time is over."""

    def sweep(self, now: float) -> None:
        """Look whether a time is over; and let bytes be looked at that could not be waited for."""
        if now >= self.cut_at:
            self.stop()
        elif now >= self.deadline:
            self.late()
        elif not self.events & (READ | WRITE):
            self.watch(READ | HUNG_UP)

    def on_fault(self, exc: Exception) -> None:
        """A bug: whoever caught it has logged it."""
        if self.state == LEAVING:
            self.gone()
        else:
            self.end(Side.GATEWAY, Reason.BUG, "")

    # -- waiting ----------------------------------------------------------------------------------------------------

    def ride(self) -> None:
        """Enter the lane."""
        self.events = READ | HUNG_UP
        self.lane.add(self.fd, self.on_ready, self.events)
        self.lane.timed.add(self)

    def wait_for(self, wanted: int, seen: int) -> None:
        """Be called again once `wanted` bytes are with the kernel, of which there are `seen`."""
        self.set_low(wanted)
        if seen and seen == self.seen:  # the kernel did not wait for them
            self.watch(HUNG_UP)
        self.seen = seen

    def set_low(self, count: int) -> None:
        """Readable means so many bytes from now on."""
        if count != self.low:
            self.low = count
            with suppress(OSError):  # it is gone already, which the next look finds out
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def watch(self, events: int) -> None:
        """Be told these events of the socket."""
        if events != self.events:
            self.events = events
            self.lane.change(self.fd, events)

    # -- bad ends ---------------------------------------------------------------------------------------------------

    def left(self, detail: str) -> None:
        """The client has gone."""
        if self.state in (ASKING, HELLO, SHAKING):
            self._count_failure()
        self.end(Side.CLIENT, Reason.CLIENT_ABORT, detail)

    def refuse(self, reason: Reason, detail: str, key: str) -> None:
        """Say no, to somebody whose language is not known. `key`: of the listener, that decided."""
        self.host.plane.page[self.plan.block + LISTENER_REFUSED] += 1
        self.end(Side.GATEWAY, reason, detail, key)

    def refuse_tls(
        self, reason: Reason, detail: str, description: int | None, key: str = "tls", by: Side = Side.GATEWAY
    ) -> None:
        """Say no by an alert. None: OpenSSL has sent it, or nobody would understand it."""
        self.refuse_in_words(reason, detail, None if description is None else alert(description), key, by)

    def refuse_in_words(
        self, reason: Reason, detail: str, words: bytes | None, key: str = "tls", by: Side = Side.GATEWAY
    ) -> None:
        """Say no by these words of the client's protocol, and let it read them."""
        self._count_failure(LISTENER_REFUSED)
        if words is not None:
            with suppress(OSError):
                self.sock.send(words)
        self._write(by, reason, detail, key)
        self._linger()

    def end(self, ended_by: Side, reason: Reason, detail: str, key: str = "") -> None:
        """Close, and tell why."""
        if self.state != OVER:
            self._write(ended_by, reason, detail, key)
            self.gone()

    def gone(self) -> None:
        """Close. Idempotent."""
        if self.state == OVER:
            return
        self.state = OVER
        self.lane.remove(self.fd)
        self.lane.timed.discard(self)
        if self.tls is None:
            self.sock.close()
        elif (fd := self.tls.detach()) >= 0:  # no goodbye: what is over was never a stream
            os.close(fd)
        self.host.ended(self)

    def _count_failure(self, else_at: int | None = None) -> None:
        """A handshake that failed; where there is none of ours, in the field `else_at`."""
        at = LISTENER_HANDSHAKES_FAILED if self.spec.tls is not None else else_at
        if at is not None:
            self.host.plane.page[self.plan.block + at] += 1

    def _write(self, ended_by: Side, reason: Reason, detail: str, key: str) -> None:
        """The record of a connection that never came to its protocol."""
        plane, arrived, plan = self.host.plane, self.arrived, self.plan
        if arrived.peer is not None:
            detail = f"{detail} (by {describe(arrived.peer)})"
        address = number_of(arrived.sockaddr)
        plane.close_books(
            plan.block,
            AccessRecord(
                ts=plane.wall(),
                id=plane.new_id(),
                listener=plan.name,
                client="unix" if address is None else str(forwarded.plain(address)),
                peer=describe(arrived.sockaddr),
                host="" if self.hello is None else self.hello.server_name,
                proto=plan.spec.protocol,
                answered_by=ended_by,
                reason=reason,
                rule=f"listeners.{plan.name}.{key}" if key else "",
                detail=detail,
                t=Phases(total=self.lane.clock() - self.began),
                bytes_in=len(self.held) + self.seen,
                generation=plane.snapshot.generation,
            ),
        )

    def _linger(self) -> None:
        """Our end of stream; what still comes is dropped."""
        self.state = LEAVING
        self.deadline = self.lane.clock() + LINGER
        self.set_low(1)
        try:
            # The plain socket's, in a TlsSocket too: OpenSSL has nothing more to say, or never began.
            socket.SocketType.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            self.gone()
            return
        self.watch(READ)
        self.drop()

    def drop(self) -> None:
        """Read what still comes, for nothing."""
        try:
            if not socket.SocketType.recv(self.sock, DROP_SIZE):
                self.gone()
        except BlockingIOError:
            return
        except OSError:
            self.gone()
