"""The relay in the lane: what `relay.py` promises of a flow, by callbacks instead of tasks.

Theory of operation. An *end* is one of the two sockets, with the way of the bytes that come from it. While all is well
both are registered for reading; readable means one recv and one send (and a shutdown, where the end of stream has come
too: both then leave in one packet), and nothing of the registration changes. What the other side has no room for is
*held* (at most one read, or one pipe): then the end is not read on, and the other one is watched until it has room. A
direction that proves bulky moves by splice(2), and holds its pipe only while the sink is full.

An end that nothing is wanted of leaves the epoll set altogether: a hang-up is reported whatever one asks for, and would
come again and again. So an end that is held back, or has ended, is found broken when it is next used, as in `relay.py`.

- *End of stream* goes on as a half-close; when both sides have ended, both are closed.
- *Broken* (a reset, a failed write): what the broken side had said goes to the other one, for at most `GOODBYE`
  seconds, then that one is reset. Where a write was what failed, what the broken side had said is still in our receive
  buffer, so it is read first.
- *Idle* ends both sides in good order, the *total* time and cuts with a reset. The owner's sweep brings the clock, so
  these are exact to 250 ms.

Source: `relay.py`, which says why; epoll(7), RFC 9293 3.6, splice(2). Owner: the rider that made it (`Owner`).
"""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from typing import Protocol

from tcpgate.errors import Reason, Side
from tcpgate.net.ending import reset, still_unsent
from tcpgate.net.lane import NOTHING, READ, WRITE, Lane, Rider
from tcpgate.net.pipes import NOT_SUPPORTED, Pipe, PipePool
from tcpgate.net.relay import BULKY_AFTER, BULKY_READ, GOODBYE, MEAGRE, which_time
from tcpgate.net.stream import READ_SIZE
from tcpgate.net.tls_socket import TlsSocket, says_goodbye

_ENDED = select.EPOLLRDHUP
"""Told with READ: the end of stream is here, right behind what there is to read."""


class Owner(Rider, Protocol):
    """The rider whose relay it is. `on_fault` of what happens in the relay comes to it."""

    def relayed(self, reason: Reason, ended_by: Side, detail: str) -> None:
        """It is over, and both sockets are closed. Called once; as a `RelayOutcome`, but the ends have the counts."""
        ...


class LaneRelay:
    """Bytes both ways between two sockets, until both have ended or one of them is gone."""

    __slots__ = (
        "_deadline", "_goodbye", "_idle", "_verdict", "client", "due", "endpoint", "first_eof", "lane",
        "last", "over", "owner", "pipes",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        pipes: PipePool,
        client: socket.SocketType,
        endpoint: socket.SocketType,
        owner: Owner,
        *,
        idle: float,
        deadline: float,
    ) -> None:
        """`idle` in seconds, `deadline` by the lane's clock. The sockets are the relay's from now on."""
        self.lane = lane
        self.pipes = pipes
        self.client = _End(self, client, Side.CLIENT)
        self.endpoint = _End(self, endpoint, Side.UPSTREAM)
        self.client.other, self.endpoint.other = self.endpoint, self.client
        self.client.splices = self.endpoint.splices = not any(isinstance(s, TlsSocket) for s in (client, endpoint))
        self.first_eof: Side | None = None
        self.last = lane.clock()
        """When bytes last moved."""
        self.due = 0.0
        """Before then there is nothing to sweep: an idle relay costs its owner's sweep two comparisons."""
        self.over = False
        self.owner = owner
        self._idle = idle
        self._deadline = deadline
        self._verdict: tuple[Reason, Side, str] | None = None
        """Why it ends before both sides have ended."""
        self._goodbye = 0.0
        """Until when the side that is left may take what the broken one had said; 0.0: all is well."""

    def start(self, to_endpoint: bytes = b"", to_client: bytes = b"") -> None:
        """Begin to move. OSError: the epoll set has no room; `cut` it then.

        `to_endpoint` and `to_client` were read from the other side already, and go first.
        """
        self.client.want(READ)
        self.endpoint.want(READ)
        self.client.hold(to_endpoint)
        self.endpoint.hold(to_client)

    def cut(self, reason: Reason, detail: str = "") -> None:
        """End it with a reset of both sides, now."""
        self._finish(reason, Side.GATEWAY, detail)

    def sweep(self, now: float) -> None:
        """Look whether a time is over."""
        if self._goodbye:
            self._take_leave(now)
            return
        self.due = min(self.last + self._idle, self._deadline)
        if now >= self.due:
            reason, detail = which_time(now, self._idle, self._deadline)
            self._finish(reason, Side.GATEWAY, detail)

    # -- what the ends report ---------------------------------------------------------------------------------------

    def ended(self, end: _End) -> None:
        """`end` has sent its end of stream, and all before it was handed on."""
        if not says_goodbye(end.other.sock):
            end.hold(b"", ends=True)
            return
        if self.first_eof is not None:
            self._finish(None, self.first_eof)
            return
        self.first_eof = end.side
        end.want(end.events & ~READ)
        try:
            end.other.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # already gone: the next read of it will tell
                self.broke(end.other, exc, "ending")

    def broke(self, end: _End, exc: OSError, doing: str) -> None:
        """`end` is lost."""
        if self._verdict is not None:  # the other one, too: there is nobody to say goodbye to
            self._finish(*self._verdict)
            return
        reason = Reason.CLIENT_ABORT if end.side is Side.CLIENT else Reason.UPSTREAM_CLOSED
        self._verdict = reason, end.side, f"{errno.errorcode.get(exc.errno or 0, 'error')} while {doing}"
        end.other.drop_held()
        end.want(NOTHING)
        self._goodbye, self.due = self.lane.clock() + GOODBYE, 0.0
        self._hand_on_rest(end)

    def handed_on(self, end: _End) -> None:
        """What `end` held has gone."""
        if self._verdict is None:
            end.want(end.events | READ)
        elif end.side is self._verdict[1]:
            self._hand_on_rest(end)

    def _hand_on_rest(self, broken: _End) -> None:
        """What the broken side had said and was not read yet goes on, too."""
        broken.hand_on_rest()
        broken.other.want(WRITE if broken.holds else NOTHING)
        self._take_leave(self.lane.clock())

    def _take_leave(self, now: float) -> None:
        """End it, unless the side that is left still has to take what the broken one had said, and has time for it."""
        assert self._verdict is not None
        broken = self.client if self._verdict[1] is Side.CLIENT else self.endpoint
        if now >= self._goodbye or not (broken.holds or still_unsent(broken.other.sock)):
            self._finish(*self._verdict)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _finish(self, reason: Reason | None, ended_by: Side, detail: str = "") -> None:
        """It is over. No reason: both sides have ended, and all is well."""
        if self.over:
            return
        self.over = True
        good = reason is None or reason is Reason.IDLE_TIMEOUT
        self.client.close(good)
        self.endpoint.close(good)
        self.owner.relayed(reason or Reason.OK, ended_by, detail)
        # No circle may be left for the collector: there are as many of them as connections.
        self.client.let_go()
        self.endpoint.let_go()


class _End:
    """One of the two sockets, and the way of the bytes that come from it to the other one."""

    __slots__ = (
        "_held", "_pipe", "_recv", "_relay", "_send", "_streak", "events", "fd", "moved", "other", "side",
        "sock", "splices",
    )  # fmt: skip

    other: _End

    def __init__(self, relay: LaneRelay, sock: socket.SocketType, side: Side) -> None:
        self._relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.side = side
        self.events = NOTHING
        """What the lane is asked for; `NOTHING`: it does not know this end."""
        self.moved = 0
        """Bytes from here that were handed on."""
        self._recv = sock.recv
        self._send = sock.send
        self._streak = 0
        """Bytes in bulky reads since the last smaller one."""
        self.splices = True
        self._held: memoryview | None = None
        """Bytes from here that the other side has no room for."""
        self._pipe: Pipe | None = None
        """The same, if they came by splice."""

    @property
    def holds(self) -> bool:
        """Whether bytes from here wait for room at the other side."""
        return self._held is not None or self._pipe is not None

    # -- what the lane calls ----------------------------------------------------------------------------------------

    def on_ready(self, ready: int) -> None:
        """There is something to read, or room to write, or both have come to an end."""
        if ready != READ:
            if self.events & WRITE:
                self.other.hand_on()
            if ready == WRITE or not self.events & READ:
                return
        if self._streak >= BULKY_AFTER:
            self._move()
        else:
            self._copy(ends=bool(ready & _ENDED))

    def on_fault(self, exc: Exception) -> None:
        """A bug in `on_ready`."""
        self._relay.owner.on_fault(exc)

    def want(self, events: int) -> None:
        """Have the lane tell of these events from now on."""
        if events == self.events:
            return
        lane, told = self._relay.lane, events | _ENDED if events & READ else events
        if not events:
            lane.remove(self.fd)
        elif self.events:
            lane.change(self.fd, told)
        else:
            lane.add(self.fd, self.on_ready, told)
        self.events = events

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _copy(self, *, ends: bool = False) -> None:
        """Move what is here, up to one read. `ends`: its end of stream is here, too, and goes on in the same packet."""
        relay = self._relay
        try:
            data = self._recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            relay.broke(self, exc, "receiving")
            return
        size = len(data)
        if not size:
            relay.ended(self)
            return
        more = socket.MSG_MORE if ends and size < READ_SIZE else 0
        try:
            sent = self.other._send(data, more)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            relay.broke(self.other, exc, "sending")
            return
        relay.last = relay.lane.clock()
        self.moved += sent
        if sent != size:
            self._held = memoryview(data)[sent:]
            self._hold()
        elif more:
            self._copy()
        if size >= BULKY_READ:
            self._streak += size if self.splices else 0
        elif self._streak:
            self._streak = 0

    def _move(self) -> None:
        """Move what is here by splice, up to one pipe."""
        pipe = self._relay.pipes.borrow()
        if pipe is None:  # every pipe is in use: copy, and ask again after as many bytes
            self._streak = 0
            return
        self._pipe = pipe
        try:
            count = pipe.fill(self.fd)
        except OSError as exc:
            self._give_back()
            if exc.errno in NOT_SUPPORTED:
                self._copy_only()
            else:
                self._relay.broke(self, exc, "receiving")
            return
        if not count:
            self._give_back()
            if count == 0:
                self._relay.ended(self)
            return
        if count < MEAGRE:
            self._streak = 0
        self._drain(pipe)
        if self.holds:
            self._hold()

    def hand_on(self) -> None:
        """There may be room at the other side: go on with what is held, and read on when it is gone."""
        relay = self._relay
        if self._pipe is not None:
            self._drain(self._pipe)
        if self._held is not None:
            self._send_held(self._held)
        if not self.holds and not relay.over:
            self.other.want(self.other.events & ~WRITE)
            relay.handed_on(self)

    def _send_held(self, held: memoryview) -> None:
        try:
            sent = self.other._send(held)
        except BlockingIOError:
            return
        except OSError as exc:
            self._relay.broke(self.other, exc, "sending")
            return
        self._relay.last = self._relay.lane.clock()
        self.moved += sent
        self._held = held[sent:] if sent < len(held) else None

    def _drain(self, pipe: Pipe) -> None:
        """Hand on what is in the pipe, as far as there is room; an empty pipe goes back."""
        sink = self.other
        try:
            moved = pipe.drain(sink.fd)
        except OSError as exc:
            if exc.errno not in NOT_SUPPORTED:
                self._relay.broke(sink, exc, "sending")
                return
            self._held = memoryview(b"".join(iter(pipe.take_back, b"")))
            self._copy_only()
            self._give_back()
            return
        if moved:
            self._relay.last = self._relay.lane.clock()
            self.moved += moved
        if not pipe.held:
            self._give_back()

    def hold(self, data: bytes, *, ends: bool = False) -> None:
        """`data`, if any, came from here before the relay began: nothing is read before it has gone. `ends`: the end
        did, and the other side has no room for the news; it is read again once there is some."""
        if data or ends:
            self._held = memoryview(data)
            self._hold()

    def _hold(self) -> None:
        """The other side has no room: read nothing until it has."""
        self.want(self.events & ~READ)
        self.other.want(self.other.events | WRITE)

    def hand_on_rest(self) -> None:
        """What came from here and was not read yet goes to the other side, as far as there is room: this end broke."""
        with suppress(OSError):
            while not self.holds and (data := self._recv(READ_SIZE)):
                self._held = memoryview(data)
                sent = self.other._send(data)
                self.moved += sent
                self._held = self._held[sent:] if sent < len(data) else None

    # -- the end ----------------------------------------------------------------------------------------------------

    def drop_held(self) -> None:
        """Nobody is left who wants the bytes that came from here."""
        self._held = None
        self._give_back()

    def close(self, good: bool) -> None:
        """Close in good order, or with a reset."""
        self.drop_held()
        self.events = NOTHING
        self._relay.lane.forget(self.fd)
        if good:
            self.sock.close()
        else:
            reset(self.sock)

    def let_go(self) -> None:
        """It is over: forget who was there. Nobody calls this end any more."""
        del self._relay, self.other

    def _give_back(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._relay.pipes.give_back(pipe)

    def _copy_only(self) -> None:
        """This pair of sockets cannot splice."""
        self.splices = False
        self._streak = 0
