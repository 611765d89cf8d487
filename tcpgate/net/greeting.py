"""What a new connection to an endpoint begins with, before any payload: a PROXY header, PostgreSQL's request for TLS,
then a TLS handshake.

Theory of operation. `Greeter` is a machine over one connected socket. `step` goes as far as it goes now and says what
to wait for; `dial.py` waits in a task, `connect.py` in the lane, and both count the wait as a part of the connect. The
header goes first, in the clear, as HAProxy and nginx send it; only then TLS begins, so the endpoint's TLS never sees
it.

PostgreSQL wants to be asked for TLS, and answers by one byte; no more is read, since what follows it is not ours.

Source: doc/proxy-protocol.txt of HAProxy, `codec/postgres.py`. Owner: whoever connects; `Greeter.sock` is theirs to
close.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import attrs

from tcpgate.codec import postgres
from tcpgate.codec.client_tls import ClientTls
from tcpgate.errors import Reason, Retry, UpstreamError
from tcpgate.net.address import Target
from tcpgate.net.lane import READ, WRITE
from tcpgate.net.tls_client import ClientHandshake, Contexts, Session


@attrs.frozen(kw_only=True)
class TlsGreeting:
    """The TLS of one connection."""

    spec: ClientTls
    host: str
    """In the endpoint's address: the name that is asked for and verified, unless `spec` has another; "" for none."""
    contexts: Contexts
    session: Session | None = None
    """Of an earlier connection to the same endpoint."""
    remember: Callable[[Session], object] | None = None
    """Takes that of this one, later."""


@attrs.frozen(kw_only=True)
class Greeting:
    """What to begin one connection with."""

    header: bytes = b""
    asks: bool = False
    """PostgreSQL's SSLRequest goes first, be it for `tls` or for the client's own, that passes."""
    tls: TlsGreeting | None = None


class Greeter:
    """One connection's beginning."""

    __slots__ = ("_asks", "_handshake", "_header", "_target", "_tls", "sock")

    def __init__(self, greeting: Greeting, sock: socket.SocketType, target: Target) -> None:
        self._header = memoryview(greeting.header + (postgres.ASK_FOR_TLS if greeting.asks else b""))
        self._asks = greeting.asks
        self._tls = greeting.tls
        self._target = target
        self._handshake: ClientHandshake | None = None
        self.sock = sock
        """The connection: from the handshake on a `TlsSocket`, of the same descriptor."""

    def step(self) -> int:
        """Go on: READ or WRITE, what to wait for, or 0 once it is over. Raises UpstreamError."""
        while self._header:
            try:
                self._header = self._header[self.sock.send(self._header) :]
            except BlockingIOError:
                return WRITE
            except OSError as exc:
                raise self._lost(exc) from exc
        if self._asks and not self._heard():
            return READ
        self._asks = False
        if self._tls is None:
            return 0
        if self._handshake is None:
            tls = self._tls
            self._handshake = ClientHandshake(
                self.sock,
                str(self._target),
                tls.spec,
                tls.host,
                contexts=tls.contexts,
                session=tls.session,
                remember=tls.remember,
            )
            self.sock = self._handshake.sock
        return self._handshake.step()

    def late(self) -> UpstreamError:
        """The error for a time that is over."""
        what = "the TLS handshake is not over" if self._handshake is not None else "it does not take the PROXY header"
        if self._asks:
            what = "no answer to SSLRequest"
        return UpstreamError(Reason.CONNECT_TIMEOUT, f"{self._target}: {what}", retry=Retry.IF_UNSENT)

    def _lost(self, exc: OSError) -> UpstreamError:
        return UpstreamError(
            Reason.CONNECT_REFUSED,
            f"{self._target}: {exc.strerror} while sending {'SSLRequest' if self._asks else 'the PROXY header'}",
            retry=Retry.IF_UNSENT,
        )

    def _heard(self) -> bool:
        """Whether the endpoint has answered that TLS may begin."""
        try:
            said = self.sock.recv(1)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise self._lost(exc) from exc
        if said == postgres.YES:
            return True
        what = {postgres.NO: "it does not speak TLS", b"": "closed"}.get(said, "it does not speak PostgreSQL")
        raise UpstreamError(Reason.TLS_HANDSHAKE, f"{self._target}: {what}, said to SSLRequest", retry=Retry.IF_UNSENT)
