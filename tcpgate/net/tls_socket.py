"""A TLS connection that behaves as a plain non-blocking socket does, so that whoever has one need not know.

Theory of operation. OpenSSL works on the descriptor itself. It differs from a socket in six things, hidden here:

- *Not now* has two forms, and neither is a BlockingIOError; here it is one.
- *Bytes inside.* What OpenSSL has read of a record and nobody has asked for is no news to epoll. Without read-ahead
  (we never set it) that is at most the rest of one record, so a `recv` that asks for `RECORD` bytes or more leaves
  none behind. Who asks for less must ask again, or ask `is_quiet`. Where several records are here `recv` takes them
  all; an end or a failure that it meets behind them is kept for the next `recv`, and the socket stays readable.
- *A piece begun must be finished.* OpenSSL seals records, and when one does not fit, wants to be given the same bytes
  again. `send` counts such a piece as not sent, and gives the same length the next time. So bytes that a `send` has
  not taken must be the first ones of the next, as every sender of a stream does.
- *Two ends.* close_notify says that the stream is whole; a FIN without it may be an attacker's. From an endpoint
  that is a reset (`strict_end`). From a client it is an end, as many do not say goodbye, and the answer still goes out.
- *Half-closing.* OpenSSL's goodbye is one way since TLS 1.3, and was in practice before. `shutdown(SHUT_WR)` sends
  close_notify and FIN; what the peer still sends is received.
- *Messages that carry no bytes* (tickets, key updates) make the descriptor readable: `recv` says "not now" then.

A reset, by SO_LINGER and `close`, sends no close_notify: a torn stream must not look whole.

Source: RFC 8446 5, 6.1; SSL_read(3), SSL_write(3), SSL_shutdown(3). Owner: who has the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn, Protocol

from tcpgate.net.openssl import LIBSSL
from tcpgate.net.unsent import Buffer

RECORD = 16384
"""Bytes of the longest record (RFC 8446 5.1)."""
PIECE = 4 * RECORD
"""Bytes of several records that OpenSSL may be given at once, by who can repeat as many (`TlsSocket.piece`)."""
TAKE_MORE = 1024
"""Bytes of a record from which on `recv` looks for another: behind a short one there mostly is none, and looking in
vain costs an exception."""

_IGNORE_CUTS = 0x80
"""ssl.OP_IGNORE_UNEXPECTED_EOF, of OpenSSL 3 (some Pythons do not name it)."""
_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def says_goodbye(sock: socket.SocketType) -> bool:
    """Let `sock` say that its stream ends here, if it has words for that. False: there is no room for them yet."""
    return not isinstance(sock, TlsSocket) or sock.say_goodbye()


class _Connection(Protocol):
    """The ssl module's inner object, as far as it is used here."""

    def read(self, size: int, /) -> bytes: ...
    def write(self, data: Buffer, /) -> int: ...
    def pending(self) -> int: ...
    def shutdown(self) -> object: ...
    def do_handshake(self) -> None: ...


def is_cut(exc: OSError) -> bool:
    """Whether the peer's stream ended without close_notify."""
    # Debian 12's Python, 3.11.2, has no class of its own for what OpenSSL 3 says of it.
    return isinstance(exc, ssl.SSLEOFError) or getattr(exc, "reason", None) == "UNEXPECTED_EOF_WHILE_READING"


def prepare(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have `context` make TlsSockets. Their bytes must be as the module says, so nothing may change that later."""
    context.sslsocket_class = TlsSocket
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        context.options |= _IGNORE_CUTS  # or OpenSSL would refuse to send anything after a client's bare FIN
    else:
        context.options &= ~_IGNORE_CUTS  # or a cut stream would look whole
    # A peer's renegotiation is a CPU drain (CVE-2011-1473), compression an oracle (CRIME).
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if LIBSSL is not None:
        LIBSSL.release_buffers(context)
    return context


class TlsSocket(ssl.SSLSocket):
    """One connection's end. Made by a `prepare`d context's `wrap_socket`, of a connected non-blocking socket, with
    `do_handshake_on_connect=False`; `do_handshake` raises what the ssl module raises."""

    strict_end: bool = True
    """Of an endpoint's: whether an end of stream without close_notify is a reset."""
    asked_for: str = ""
    """Of a client's: the server name that it asked for; set by who has read its hello."""

    piece: int = RECORD
    """Bytes that `send` gives to OpenSSL at once. To be more only while the sender, of whom some were not taken, sends
    all of the same bytes again, and nothing else before they are taken."""

    _sslobj: _Connection | None
    _first: bytes = b""  # received, by `MSG_PEEK`, and not yet given out
    _late: tuple[int, str] | None = None  # why nothing more will be received; no exception, which would hold us
    _ended: bool = False  # nothing more will be received, and all is well
    _begun: int = 0  # length of the piece that OpenSSL has begun to send
    _said_goodbye: bool = False
    _cut_off: bool = False  # FIN has come, so the descriptor says by itself that there is an end
    _closing: bool = False  # nothing that the peer may still send matters
    _torn: bool = False  # to be closed with a reset

    @property
    def is_connected(self) -> bool:
        """Whether there was anybody at the other end when this was made."""
        return self._sslobj is not None

    def do_handshake(self, block: bool = False) -> None:
        """Go on with the handshake. Raises as the ssl module does: SSLWantReadError, SSLWantWriteError, SSLError."""
        if self._sslobj is None:
            self._not_there()
        self._sslobj.do_handshake()

    # -- receiving --------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int = RECORD, flags: int = 0, /) -> bytes:
        """What is here, at most `bufsize` bytes; b"" at the end of the stream. BlockingIOError: nothing yet."""
        tls = self._sslobj
        if tls is None:
            self._not_there()
        if flags or self._first or self._ended or self._late:
            return self._recv_kept(tls, bufsize, flags)
        try:
            data = tls.read(bufsize)
        except _WANTS:
            raise _not_now() from None
        except OSError as exc:
            return self._end(exc)
        if not data:
            return self._over()
        if len(data) < TAKE_MORE or bufsize - len(data) < RECORD:
            return data
        return self._recv_more(tls, data, bufsize)

    def _recv_more(self, tls: _Connection, first: bytes, bufsize: int) -> bytes:
        """`first`, and what is here behind it."""
        pieces, size = [first], len(first)
        while bufsize - size >= RECORD:
            try:
                data = tls.read(RECORD)
            except _WANTS:
                break
            except OSError as exc:
                with suppress(OSError):
                    self._end(exc)
                break
            if not data:
                self._over()
                break
            pieces.append(data)
            size += len(data)
        return b"".join(pieces)

    def _recv_kept(self, tls: _Connection, bufsize: int, flags: int) -> bytes:
        """As `recv`, where something was found before, or is only looked at."""
        if flags & ~socket.MSG_PEEK:
            raise ValueError(f"a TLS stream cannot be received with flags {flags:#x}")
        if not self._first:
            if self._late is not None:
                raise OSError(*self._late)
            if self._ended:
                return b""
            self._first = self.recv(bufsize)
        data = self._first[:bufsize]
        if not flags:
            self._first = self._first[bufsize:]
            if not self._first and (inside := min(bufsize - len(data), tls.pending())) > 0:
                data += tls.read(inside)  # the rest of that record
        return data

    def _end(self, exc: OSError) -> bytes:
        """b"" if `exc` means the end of the stream; raises what it means otherwise, now and for good."""
        if isinstance(exc, ssl.SSLZeroReturnError):  # close_notify, after ours
            return self._over()
        if not isinstance(exc, ssl.SSLError):
            self._late = exc.errno or errno.EIO, exc.strerror or str(exc)
        elif not is_cut(exc):
            self._late = errno.EPROTO, _words(exc)
        elif getattr(exc, "reason", None) is None:  # the kernel's word, which the ssl module of 3.11 forgets
            self._late = errno.ECONNRESET, "the connection was reset"
        elif self.strict_end:
            self._late = errno.ECONNRESET, "the stream ended without close_notify"
        else:
            return self._over()
        self._stay_readable()
        raise OSError(*self._late) from exc

    def _over(self) -> bytes:
        """The stream's good end: b"", now and for good."""
        self._ended = True
        try:
            self._cut_off = not super(ssl.SSLSocket, self).recv(1, socket.MSG_PEEK)
        except OSError:  # close_notify came alone, and the peer may wait for ours
            self._stay_readable()
        return b""

    def _stay_readable(self) -> None:
        """Have the descriptor say what a plain one says of itself: that there is news, an end, however often one
        asks. Of close_notify the kernel knows nothing."""
        with suppress(OSError):
            super(ssl.SSLSocket, self).shutdown(socket.SHUT_RD)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int | None = None, flags: int = 0, /) -> int:  # type: ignore[override]
        """As `recv`."""
        view = memoryview(buffer)
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def is_quiet(self) -> bool:
        """Whether the connection is open and no bytes have come; tickets do not count."""
        tls = self._sslobj
        if tls is None or self._first or self._ended or self._late or tls.pending():
            return False
        try:
            self.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: Buffer, flags: int = 0, /) -> int:  # type: ignore[override]  # no array has ever been sent
        """How many bytes of `data` were taken. BlockingIOError: none. `flags` (MSG_MORE) are advice, not taken."""
        tls = self._sslobj
        if tls is None:
            self._not_there()
        size = len(data)
        if size > RECORD or self._begun:
            return self._send_pieces(tls, memoryview(data), size)
        if not size:
            return 0
        try:
            return tls.write(data)
        except _WANTS:
            self._begun = size
            raise _not_now() from None
        except ssl.SSLError as exc:
            raise _broken(exc) from exc

    def _send_pieces(self, tls: _Connection, data: memoryview, size: int) -> int:
        """As `send`, in pieces, the begun one first."""
        if size < self._begun:
            raise OSError(errno.EPROTO, f"{self._begun} bytes were begun to be sent, and now are {size}")
        sent = 0
        while sent < size:
            length = self._begun or min(self.piece, size - sent)
            try:
                sent += tls.write(data[sent : sent + length])
            except _WANTS:
                self._begun = length
                if not sent:
                    raise _not_now() from None
                break
            except ssl.SSLError as exc:
                raise _broken(exc) from exc
            self._begun = 0
        return sent

    def sendmsg(self, buffers: Iterable[Buffer], *_: object) -> int:  # type: ignore[override]
        """As `send`, for several buffers; small ones share records."""
        sent = 0
        for piece in _joined(buffers):
            try:
                count = self.send(piece)
            except BlockingIOError:
                if not sent:
                    raise
                break
            sent += count
            if count < len(piece):
                break
        return sent

    # -- ending -----------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> bool:
        """Send close_notify, once. False: there is no room for it yet."""
        tls = self._sslobj
        if tls is None or self._said_goodbye or self._late:
            return True
        if self._begun:  # OpenSSL sends nothing else before that piece
            return False
        if LIBSSL is not None:
            self._said_goodbye = LIBSSL.shut(tls)
            return self._said_goodbye
        return self._say_goodbye_without(tls)

    def spare_goodbye(self) -> None:
        """Nothing was sent since the stream's end, or is still to be. A peer that sent FIN, with its close_notify or
        without, has mostly closed: it could answer our close_notify only with a reset, so it gets none."""
        self._said_goodbye = self._said_goodbye or self._cut_off

    def _say_goodbye_without(self, tls: _Connection) -> bool:
        """As `say_goodbye`, by means of the ssl module, which goes on to read the peer's: nothing may be there."""
        if not (self._ended or self._closing or self.is_quiet()):  # better no goodbye than data lost
            return True
        self._said_goodbye = True
        with suppress(OSError, ValueError):
            tls.shutdown()
        return True

    def _force_goodbye(self) -> None:
        """Send close_notify even where the kernel has no room for it, as far as it lets us make some."""
        if self.say_goodbye() or self._begun:
            return
        with suppress(OSError):
            room = self.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)  # the kernel doubles it
            self.say_goodbye()

    def shutdown(self, how: int, /) -> None:
        """End the sending half (SHUT_WR), or both: close_notify, then FIN."""
        if self._sslobj is None:
            self._not_there()
        if how != socket.SHUT_RD:
            self._force_goodbye()
        super(ssl.SSLSocket, self).shutdown(how)

    def setsockopt(self, *args: Any) -> None:
        """As a socket's; an order to reset the connection is remembered."""
        if args[:2] == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._torn = struct.unpack("ii", args[2]) == (1, 0)
        super().setsockopt(*args)

    def close(self) -> None:
        """Close; after close_notify, unless it is to be a reset."""
        # A context closes what it could not make a TlsSocket of: then there is no `_sslobj` yet.
        if getattr(self, "_sslobj", None) is not None and not self._torn:
            self._closing = True
            self._force_goodbye()
        super().close()

    def _not_there(self) -> NoReturn:
        code = errno.EBADF if self.fileno() < 0 else errno.ENOTCONN  # never in plain text
        raise OSError(code, os.strerror(code))


def _not_now() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "not now")


def _broken(exc: ssl.SSLError) -> OSError:
    """Why nothing more can be sent: what the peer did wrong, or said is wrong, as a protocol error."""
    if is_cut(exc) or isinstance(exc, ssl.SSLZeroReturnError) or exc.reason == "PROTOCOL_IS_SHUTDOWN":
        return BrokenPipeError(errno.EPIPE, "the TLS connection has ended")
    return OSError(errno.EPROTO, _words(exc))


def _words(exc: ssl.SSLError) -> str:
    """OpenSSL's reason, readable."""
    return f"TLS: {exc.reason or exc}".replace("_", " ").lower()


def _joined(buffers: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes, in pieces that each fill a record at least, but for the last."""
    waiting: list[Buffer] = []
    size = 0
    for buffer in buffers:
        waiting.append(buffer)
        size += len(buffer)
        if size >= RECORD:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
