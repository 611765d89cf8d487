"""What a listener and a connection ask of one another, wherever the connection lives: in a task or in the lane.

Source: the architecture's "a task that owns, a lane that moves". Owner: `serve.ListenerServer` is the one `Host`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from socket import SocketType
from typing import Protocol

from tcpgate.net.tls_server import TlsServer
from tcpgate.proxy.arrived import Arrived
from tcpgate.proxy.plane import Plane
from tcpgate.state.runtime import UpstreamRuntime
from tcpgate.state.snapshot import ListenerPlan, Snapshot


class Connection(Protocol):
    """What a listener asks of an open connection. All of it may be called after its end, and then does nothing."""

    def begin(self) -> None:
        """Serve it, as a task or in the lane. OSError: the lane has no room."""
        ...

    def leave(self) -> None:
        """End as soon as nothing is under way."""
        ...

    def cut_by(self, deadline: float) -> None:
        """Be over by `deadline` (the worker's clock), whatever is under way; infinity takes it back."""
        ...

    def stop(self) -> None:
        """The worker is being cancelled: be over now, or, where a task has it, as that is cancelled."""
        ...

    @property
    def is_long(self) -> bool:
        """Whether it may last as long as its ends like (a tunnel, a tcp flow), so a drain has to spread the cuts."""
        ...


class Host(Protocol):
    """What a connection in the lane asks of the listener that it came in by."""

    @property
    def plane(self) -> Plane:
        """The worker's data plane."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """The newest generation that has this listener: a retired one still serves who came, by its last one."""
        ...

    @property
    def plan(self) -> ListenerPlan:
        """The listener's newest plan. A connection keeps the one that it began with."""
        ...

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task in the nursery of open connections."""
        ...

    def ended(self, connection: Connection) -> None:
        """The connection is gone. Called exactly once by each."""
        ...


class Leaving(Connection, Protocol):
    """A connection that another one follows, which has to leave when it has to."""

    @property
    def is_leaving(self) -> bool:
        """It was asked to."""
        ...

    @property
    def cut_at(self) -> float:
        """When it has to be over."""
        ...


class Reception(Host, Protocol):
    """What a connection that is arriving asks of its listener besides."""

    @property
    def tls(self) -> TlsServer | None:
        """What the listener shows those who speak TLS to it; None: nobody does, or it is not for us to answer."""
        ...

    def upstream_for(self, name: str, alpn: Sequence[str]) -> UpstreamRuntime | None:
        """Of a tcp listener: where a client goes that asks for the server `name` and offers these protocols."""
        ...

    def settle(self, arrival: Leaving, sock: SocketType, arrived: Arrived, http2: bool) -> None:
        """`arrival` is over and gone from the lane: another connection begins in its place, over `sock`."""
        ...
