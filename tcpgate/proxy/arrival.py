"""Arriving, step by step: what lies between the accept and the first byte of a connection's protocol.

    HEADER    the PROXY header, taken out of the kernel's buffer as it is read; from trusted peers only
    ASKING    the client asks for TLS in its protocol's own words (PostgreSQL's SSLRequest), and is answered
    HELLO     the ClientHello, looked at where it lies: it decides the certificate, and a tcp listener's upstream
    SHAKING   the TLS handshake, by OpenSSL on the very socket
    PREFACE   without TLS: whether HTTP/2 begins, looked at where it lies
    LEAVING   it was refused; see arriving.py
    OVER

Then the listener puts the connection proper in its place (`Reception.settle`), which finds in the kernel what was only
looked at. A listener that wants none of this makes no arrival.

PostgreSQL's clients that ask for no TLS are refused in its words where `tls` ends it. Where the bytes pass, they go to
`upstream`, if there is one, as those go that name nobody. GSSAPI encryption is refused ("N"), and the client goes on.
What a client sends before it was answered is read by TLS, never by the protocol (CVE-2021-23222).

A header that is not believed is not taken away: what follows in its place (TLS, HTTP) then refuses it as no such thing.

Source: `codec/proxy_header.py`, `codec/client_hello.py`, `codec/postgres.py`; RFC 6066 3 (unrecognized_name), RFC 9113
3.3 (the preface).
Owner: as arriving.py has it.
"""

from __future__ import annotations

import socket
import ssl

from tcpgate.codec import client_hello, forwarded, postgres, proxy_header
from tcpgate.codec.client_hello import ClientHello
from tcpgate.codec.partial import NeedMore
from tcpgate.codec.proxy_header import ProxyHeader
from tcpgate.codec.tls_facts import TlsFacts
from tcpgate.errors import ClientError, Reason, Side
from tcpgate.net.address import SocketAddress, number_of
from tcpgate.net.lane import READ, WRITE
from tcpgate.net.tls_server import TlsServer, Trust, facts
from tcpgate.net.tls_socket import TlsSocket
from tcpgate.proxy.arrived import Arrived, told_by
from tcpgate.proxy.arriving import ASKING, HEADER, HELLO, HUNG_UP, LEAVING, OVER, PREFACE, SHAKING, Arriving
from tcpgate.proxy.rider import Reception
from tcpgate.state.snapshot import LISTENER_HANDSHAKES, LISTENER_HANDSHAKES_RESUMED, ListenerPlan

PREFACE_BYTES = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LOOK = 66 << 10
"""Bytes looked at in one go: the longest PROXY header, and the longest hello, are a little shorter."""
MIN_MARK = 12
"""Bytes after which what may be a PROXY header is one."""


def needs_arrival(plan: ListenerPlan) -> bool:
    """Whether this listener's connections have to arrive before they are served."""
    spec = plan.spec
    return spec.tls is not None or spec.http2 or spec.proxy_protocol != "off" or bool(spec.sni or spec.alpn)


class Arrival(Arriving):
    """One connection that is arriving."""

    __slots__ = ("_hello_at", "server")

    def __init__(self, host: Reception, sock: socket.SocketType, sockaddr: SocketAddress, port: int | None) -> None:
        super().__init__(host, sock, sockaddr, port)
        self._hello_at = self.began
        self.server: TlsServer | None = None
        """By whose rules the handshake is done; a reload may give the listener another one meanwhile."""

    def begin(self) -> None:
        """Await the first bytes; or refuse at once who may not come without a proxy."""
        self.ride()
        if self.spec.proxy_protocol == "off":
            self._advance()
        elif self._is_trusted():
            self.state = HEADER
        elif self.spec.proxy_protocol == "accept":
            self._advance()
        else:
            self.state = HEADER
            self.refuse(Reason.PROXY_HEADER, "the peer is not in trusted_proxies", "proxy_protocol")

    def _is_trusted(self) -> bool:
        """The peer may say who its client is. Who may open a unix socket is for its permissions to say."""
        address = number_of(self.arrived.sockaddr)
        return address is None or forwarded.plain(address) in self.spec.trusted_proxies

    def _advance(self) -> None:
        """On to what follows a PROXY header, or its absence."""
        spec = self.spec
        self.set_low(1)
        if spec.starttls != "off":
            self.state = ASKING
        elif spec.tls is not None or spec.sni or spec.alpn:
            self.state = HELLO
        elif spec.http2 and spec.protocol == "http":
            self.state = PREFACE
        else:
            self._settle()

    def _settle(
        self, tls: TlsFacts | None = None, trust: Trust | None = None, seconds: float = 0.0, *, http2: bool = False
    ) -> None:
        """It has arrived."""
        self.state = OVER
        self.set_low(1)
        self.lane.remove(self.fd)
        self.lane.timed.discard(self)
        arrived = self.arrived
        if self.hello is not None:
            arrived = Arrived(  # not by attrs.evolve, which takes five times as long
                sockaddr=arrived.sockaddr,
                port=arrived.port,
                local=arrived.local,
                peer=arrived.peer,
                proxy=arrived.proxy,
                hello=self.hello,
                tls=tls,
                trust=trust,
                starttls=self.spec.starttls != "off",
                seconds=seconds,
            )
        self.host.settle(self, self.sock, arrived, http2)

    # -- looking ----------------------------------------------------------------------------------------------------

    def on_ready(self, ready: int) -> None:
        """The client has sent something, or hung up, or reads again."""
        if self.state == LEAVING:
            self.drop()
        elif self.state == SHAKING:
            if self.host.plane.may_shake():
                self._shake()
        else:
            self._look(ready)

    def _look(self, ready: int) -> None:
        try:
            data = self.sock.recv(LOOK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as exc:
            self.left(exc.strerror or str(exc))
            return
        if not data:
            self._closed()
            return
        wanted: int | None = 1
        before = OVER
        while data and self.state not in (before, SHAKING, LEAVING, OVER):
            before = self.state
            try:
                wanted, data = self._step(data)
            except ClientError as exc:
                self._malformed(exc)
        if self.state in (HEADER, ASKING, HELLO, PREFACE) and wanted is not None:
            if ready & HUNG_UP:
                self.seen = len(data)
                self._closed()
            else:
                self.wait_for(wanted, len(data))

    def _step(self, data: bytes) -> tuple[int | None, bytes]:
        """Go on with `data`. How many bytes the kernel must have before the next look (None: it can be now), and what
        of `data` is left there."""
        if self.state == HEADER:
            return self._read_header(data)
        if self.state == ASKING:
            return self._read_asking(data)
        if self.state == PREFACE:
            return self._read_preface(data), data
        if self.spec.tls is not None and not self.host.plane.may_shake():
            return None, data
        return self._read_hello(data), data

    def _closed(self) -> None:
        """The client has closed, and what it said was nothing, or a beginning."""
        if self.state == PREFACE and self.has_spoken:
            self._settle()  # HTTP/1.1 says what is missing
        elif self.state == PREFACE:
            self.gone()  # as one that never began a request
        else:
            self.left("closed before it had arrived")

    def _malformed(self, exc: ClientError) -> None:
        if self.state == HEADER:
            self.refuse(Reason.PROXY_HEADER, exc.detail, "proxy_protocol")
        else:
            self.refuse_tls(Reason.TLS_REFUSED, exc.detail, client_hello.DECODE_ERROR)

    def late(self) -> None:
        """Its time is over."""
        spec = self.spec
        key, span = "timeouts.handshake", f"{spec.timeouts.handshake:g}s"
        if self.state != LEAVING and self.has_spoken and self.lane.clock() < self.whole_time:
            self.deadline = self.whole_time  # it spoke in the moment that a drain had left it
        elif self.state == LEAVING or (self.is_leaving and not self.has_spoken):
            self.gone()
        elif self.state == PREFACE:
            self._closed()
        elif self.state == ASKING:
            self.refuse_tls(Reason.TLS_REFUSED, f"it did not ask for TLS within {span}", None, key)
        elif self.state == HEADER and spec.proxy_protocol == "accept" and not self.has_spoken:
            if spec.protocol == "tcp" and spec.tls is None:
                self._advance()  # a protocol in which the server speaks first
            else:
                self.gone()
        elif self.state == HEADER:
            self.refuse(Reason.PROXY_HEADER, f"no whole header within {span}", key)
        elif self.spec.tls is None:
            self.refuse(Reason.TLS_REFUSED, f"no whole ClientHello within {span}", key)
        else:
            self.refuse_tls(Reason.TLS_REFUSED, f"no handshake within {span}", None, key)

    # -- step by step -----------------------------------------------------------------------------------------------

    def _read_header(self, data: bytes) -> tuple[int | None, bytes]:
        """The PROXY header, or a part of it: bytes that are one's for sure leave the kernel's buffer."""
        held = self.held + data
        found = proxy_header.parse(held)
        if isinstance(found, NeedMore):
            if len(held) < MIN_MARK and not held.startswith(b"PROXY"):
                return found.size, data
            self.sock.recv(len(data))
            self.held, self.seen = held, 0
            return found.size - len(held), b""
        if isinstance(found, ProxyHeader):
            size = found.size - len(self.held)
            self.sock.recv(size)
            self.held, self.seen, data = b"", 0, data[size:]
            self.arrived = told_by(found, self.arrived.sockaddr, self.arrived.port)
        elif self.spec.proxy_protocol == "require":
            self.refuse(Reason.PROXY_HEADER, "it begins with no PROXY header", "proxy_protocol")
            return None, data
        self._advance()
        return 1, data

    def _read_asking(self, data: bytes) -> tuple[int | None, bytes]:
        """What a client of PostgreSQL says before TLS. Our answers are a byte, which fits where nothing was sent."""
        found = postgres.parse(data)
        while found is postgres.First.SSL_REQUEST or found is postgres.First.GSS_REQUEST:
            asks = found is postgres.First.SSL_REQUEST
            if self.has_asked and not asks:  # once is what the server allows, or this could go on for long
                found = postgres.First.OTHER
                break
            try:
                self.sock.recv(postgres.ASKING_SIZE)
                self.sock.send(postgres.YES if asks else postgres.NO)
            except OSError as exc:
                self.left(exc.strerror or str(exc))
                return None, data
            self.has_asked, self.seen, data = True, 0, data[postgres.ASKING_SIZE :]
            found = postgres.First.TLS if asks else postgres.parse(data)
        if isinstance(found, NeedMore):
            return found.size, data
        self.seen = len(data)
        if found is postgres.First.TLS:
            self.state, self.seen = HELLO, 0
            self.set_low(1)
            return 1, data
        what = found.value
        if found is postgres.First.OTHER:
            self.refuse_tls(Reason.TLS_REFUSED, "it speaks neither PostgreSQL nor TLS", None, "starttls")
        elif self.spec.tls is None and self.host.upstream_for("", ()) is not None:
            self._settle()  # it goes where those go that name nobody
        else:
            words = postgres.error(postgres.NOT_AUTHORIZED, "this server is reached by TLS only: set sslmode=require")
            reason = Reason.NO_ROUTE if self.spec.tls is None else Reason.TLS_REFUSED
            self.refuse_in_words(reason, f"{what} without TLS", words, "starttls")
        return None, data

    def _read_preface(self, data: bytes) -> int | None:
        """HTTP/2, or HTTP/1.1, as the first bytes are."""
        if data.startswith(PREFACE_BYTES):
            self._settle(http2=True)
        elif PREFACE_BYTES.startswith(data):
            return len(PREFACE_BYTES)
        else:
            # A line of three words whose last is no version is no request either: HTTP/2 says that it is no preface.
            words = data.partition(b"\n")[0].split()
            self._settle(http2=len(words) > 2 and not words[-1].startswith(b"HTTP/"))
        return None

    def _read_hello(self, data: bytes) -> int | None:
        """What the client asks for, or a part of it."""
        if not self.seen:
            self._hello_at = self.lane.clock()
        found = client_hello.parse(data)
        if isinstance(found, NeedMore):
            return found.size
        self.seen = len(data)
        if isinstance(found, ClientHello):
            self._take_hello(found)
        elif self.spec.tls is not None:
            self.refuse_tls(Reason.TLS_REFUSED, "it does not speak TLS", None)
        elif self.host.upstream_for("", ()) is not None:
            self._settle()  # it goes where those go that name nobody
        else:
            self.refuse(Reason.NO_ROUTE, "it does not speak TLS, so it names nobody", "sni")
        return None

    def _take_hello(self, hello: ClientHello) -> None:
        """Go by what it asks for."""
        self.hello = hello
        if self.spec.protocol == "tcp" and self.host.upstream_for(hello.server_name, hello.alpn) is None:
            what = f"no upstream for {hello.server_name or 'clients that name no server'}"
            self.refuse_tls(Reason.NO_ROUTE, what, client_hello.UNRECOGNIZED_NAME, "sni")
        elif self.spec.tls is None:
            self._settle()
        else:
            self._begin_to_shake(hello)

    # -- the handshake ----------------------------------------------------------------------------------------------

    def _begin_to_shake(self, hello: ClientHello) -> None:
        server = self.host.tls
        if server is None:  # a reload has just taken TLS away
            self.refuse_tls(Reason.TLS_REFUSED, "TLS is spoken here no more", client_hello.INTERNAL_ERROR)
            return
        refusal = server.refusal(hello)
        if refusal is not None:
            self.refuse_tls(Reason.TLS_REFUSED, refusal.text, refusal.alert)
            return
        self.set_low(1)
        self.lane.remove(self.fd)  # if this fails, the socket may be closed
        self.events = 0
        self.server = server
        self.tls = self.sock = server.wrap(self.sock, hello)
        self.fd = self.tls.fileno()
        self.lane.add(self.fd, self.on_ready, READ)
        self.events = READ
        self.state = SHAKING
        self._shake()

    def _shake(self) -> None:
        """Go on with the handshake."""
        tls = self.tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self.watch(READ)
        except ssl.SSLWantWriteError:
            self.watch(WRITE)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self.left("closed during the handshake")
        except ssl.SSLCertVerificationError as exc:
            self.refuse_tls(Reason.TLS_REFUSED, f"its certificate: {exc.verify_message}", None)
        except ssl.SSLError as exc:  # OpenSSL has sent the alert, or got one
            why = exc.reason or str(exc)
            by = Side.CLIENT if "ALERT" in why else Side.GATEWAY
            self.refuse_tls(Reason.TLS_REFUSED, why.replace("_", " ").lower(), None, by=by)
        except OSError as exc:
            self.left(exc.strerror or str(exc))
        else:
            self._shaken(tls)

    def _shaken(self, tls: TlsSocket) -> None:
        """The handshake is done."""
        page, block, told = self.host.plane.page, self.plan.block, facts(tls)
        page[block + LISTENER_HANDSHAKES] += 1
        if told.resumed:
            page[block + LISTENER_HANDSHAKES_RESUMED] += 1
        # It did happen, even if the clock has not moved: 0.0 would say that it did not.
        spent = max(self.lane.clock() - self._hello_at, 1e-6)
        trust = None if self.server is None else self.server.trust(told)
        self._settle(told, trust, spent, http2=self.spec.protocol == "http" and told.alpn == "h2")
