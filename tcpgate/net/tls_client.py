"""TLS to endpoints: contexts by value, and the handshake as a machine that a task or the lane drives.

An endpoint has to prove who it is: OpenSSL judges its chain by the authorities that count, and its name, or its
address, by what the certificate is for (`X509_check_host`, `X509_check_ip`; never the subject's common name). A pin is
looked at once the handshake is over and before anything is sent. Whatever is wrong is told in one of two reasons:
TLS_CERTIFICATE if it is the certificate, TLS_HANDSHAKE for all else; nothing was sent, so another endpoint may be
tried.

To make a context costs 20 ms where the host's authorities have to be read, so `Contexts` keeps those that were made.
Keys reach OpenSSL through a memfd, since it takes private keys by a path only: no key ever touches a disk.

Source: RFC 8446, RFC 6066 3 (no address is a server name), RFC 9525 (whose certificate it is), RFC 7469 2.4 (pins);
memfd_create(2). Owner: whoever connects, see `greeting.py`.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tcpgate.codec.client_tls import ClientTls, pin_of, text_of
from tcpgate.errors import GateError, Reason, Retry, UpstreamError
from tcpgate.net.lane import READ, WRITE
from tcpgate.net.tls_socket import TlsSocket, is_cut, prepare

MAX_CONTEXTS = 256
"""Kept at most; beyond that the oldest goes. One is about 1 MB with the host's authorities in it."""
SHOWN_NAMES = 5
"""Names of a wrong certificate that are told."""
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_OTHER_NAME, _OTHER_ADDRESS = 62, 64
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG"})
"""What OpenSSL says when the first bytes are no TLS record."""

Session = tuple[ssl.SSLContext, ssl.SSLSession]
"""One to go on with, and the only context that can."""


# -- contexts -------------------------------------------------------------------------------------------------------


class Contexts:
    """What was made of each way to speak TLS, by value; bounded."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ssl.SSLContext] = {}

    def get(self, spec: ClientTls) -> ssl.SSLContext:
        """The context for `spec`. ValueError says which of its PEM files cannot be used, and why."""
        key = spec.context_key
        context = self._made.get(key)
        if context is None:
            context = make_context(spec)
            if len(self._made) >= MAX_CONTEXTS:
                self._made.pop(next(iter(self._made)), None)
            self._made[key] = context
        return context


def make_context(spec: ClientTls) -> ssl.SSLContext:
    """A new context; `Contexts.get` is the way to one. ValueError as there."""
    context = prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.sslsocket_class = EndpointSocket
    context.minimum_version = VERSIONS[spec.min_version]
    context.hostname_checks_common_name = False
    if not spec.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif spec.ca is None:
        context.load_default_certs()
    else:
        # Who names an intermediate authority, or the endpoint's own certificate, means just that one.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _load("ca", lambda pem: context.load_verify_locations(cadata=pem), spec.ca)
    if spec.cert is not None:
        _load("cert and key", lambda pem: load_pair(context, pem.encode()), f"{spec.cert}\n{spec.key or ''}")
    if spec.alpn:
        context.set_alpn_protocols(list(spec.alpn))
    return context


def _load(what: str, load: Callable[[str], object], pem: str) -> None:
    try:
        load(pem)
    except (ssl.SSLError, OSError) as exc:
        reason = getattr(exc, "reason", None) or exc.strerror or str(exc)
        raise ValueError(f"{what}: {reason.replace('_', ' ').lower()}") from exc


def load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """Have `context` show a certificate, its chain and its key, all of them in `pem`. ssl.SSLError or OSError."""
    with as_path(pem) as path:
        context.load_cert_chain(path, password=_no_password)


def _no_password() -> str:
    """For a key that is encrypted, which would otherwise be asked for on the terminal."""
    raise OSError("the key is encrypted")


@contextmanager
def as_path(data: bytes) -> Iterator[str]:
    """A path at which OpenSSL finds `data`, while the block lasts."""
    fd = os.memfd_create("tcpgate-pem", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# -- the connection -------------------------------------------------------------------------------------------------


class EndpointSocket(TlsSocket):
    """A connection to an endpoint. When it ends, or earlier, it leaves behind what a later one can go on with."""

    strict_end = True
    remember: Callable[[Session], object] | None = None
    """Who takes that; called once at most."""

    def keep_session(self) -> None:
        """Leave the session behind now, not only at the end. With TLS 1.3 it comes after the handshake, so it is here
        once an answer is. Idempotent: to copy a session costs as much as a small request."""
        remember, self.remember = self.remember, None
        if remember is None:
            return
        session = self.session
        if session is not None and (session.has_ticket or (session.id and self.version() == "TLSv1.2")):
            remember((self.context, session))

    @property
    def names_shown(self) -> list[str]:
        """Whom the certificate is for that the endpoint has shown, be it refused; empty where that cannot be told."""
        # Public as SSLSocket.get_unverified_chain from Python 3.13 on; `getpeercert` waits for the handshake's end.
        inner: Any = self._sslobj
        try:
            info = inner.get_unverified_chain()[0].get_info()
        except (AttributeError, IndexError, TypeError, ValueError, OSError):
            return []
        return [value for kind, value in info.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]

    def close(self) -> None:
        """As `TlsSocket.close`."""
        if self.remember is not None:
            self.keep_session()
        super().close()


# -- the handshake --------------------------------------------------------------------------------------------------


class ClientHandshake:
    """One handshake, over a socket that is connected and non-blocking.

    Whoever drives it calls `step` until that gives 0, and closes `sock` if it raises or is no longer wanted.
    """

    __slots__ = ("_name", "_peer", "_remember", "_spec", "sock")

    def __init__(
        self,
        sock: socket.SocketType,
        peer: str,
        spec: ClientTls,
        host: str,
        *,
        contexts: Contexts,
        session: Session | None = None,
        remember: Callable[[Session], object] | None = None,
    ) -> None:
        """`peer`: for words. `host`: in the endpoint's address, "" for none. `sock` lives on as `self.sock`.
        `session`: to go on with; `remember`: takes the one that comes of this connection.

        Raises UpstreamError if it cannot even begin; `sock` may then be closed, and has to be.
        """
        self._peer = peer
        self._spec = spec
        self._remember = remember
        # An absolute name is one of DNS; in certificates and on the wire (RFC 6066 3) it has no dot at its end.
        self._name = name = (spec.name or host).removesuffix(".")
        if spec.verify and not name:
            raise self._wrong(Reason.TLS_CERTIFICATE, "there is no name to verify: the upstream's tls.name sets one")
        try:
            context = contexts.get(spec)
            name.encode("idna")  # as the ssl module does, when it has taken the socket
            known = session[1] if session is not None and session[0] is context else None
            tls = context.wrap_socket(
                sock,  # type: ignore[arg-type]  # any socket object will do
                server_hostname=name or None,
                do_handshake_on_connect=False,
                session=known,
            )
        except (ValueError, OSError) as exc:  # UnicodeError, for a name that is none, is a ValueError
            raise self._wrong(Reason.TLS_HANDSHAKE, str(exc)) from exc
        assert isinstance(tls, EndpointSocket)
        self.sock = tls

    def step(self) -> int:
        """Go on as far as it goes now: READ or WRITE, what to wait for, or 0 once the endpoint has proved itself.

        Raises UpstreamError(TLS_CERTIFICATE or TLS_HANDSHAKE).
        """
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        except OSError as exc:
            raise self._failed(exc) from exc
        self._check()
        self.sock.remember = self._remember
        return 0

    def _check(self) -> None:
        """What OpenSSL does not look at."""
        spec = self._spec
        agreed = self.sock.selected_alpn_protocol()
        if spec.alpn_required and agreed not in spec.alpn:
            what = f"it agrees on {agreed}" if agreed else "it knows no ALPN, or none of that"
            raise self._wrong(Reason.TLS_HANDSHAKE, f"it does not speak {' or '.join(spec.alpn)}: {what}")
        if spec.pins:
            pin = pin_of(self.sock.getpeercert(binary_form=True) or b"")
            if pin not in spec.pins:
                raise self._wrong(Reason.TLS_CERTIFICATE, f"its public key is not pinned: {text_of(pin)}")

    def _failed(self, exc: OSError) -> GateError:
        """What the handshake failed of."""
        if isinstance(exc, ssl.SSLCertVerificationError):
            return self._wrong(Reason.TLS_CERTIFICATE, self._verdict(exc))
        if is_cut(exc) or isinstance(exc, ssl.SSLZeroReturnError) or not isinstance(exc, ssl.SSLError):
            how = "reset" if isinstance(exc, ConnectionResetError) else "closed"
            return self._wrong(Reason.TLS_HANDSHAKE, f"{how} in the handshake")
        reason = exc.reason or ""
        if reason in _NOT_TLS:
            return self._wrong(Reason.TLS_HANDSHAKE, "it does not speak TLS there")
        text = reason_text(exc)
        if "application protocol" in text and self._spec.alpn_required:
            text = f"it does not speak {' or '.join(self._spec.alpn)}: {text}"
        return self._wrong(Reason.TLS_HANDSHAKE, text)

    def _verdict(self, exc: ssl.SSLCertVerificationError) -> str:
        """OpenSSL's word on the certificate."""
        if exc.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
            what = "hostname" if exc.verify_code == _OTHER_NAME else "address"
            names = self.sock.names_shown
            has = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
            return f"{what} mismatch: wants {self._name}, certificate has {has or 'no such name'}"[:300]
        return str(exc.verify_message)

    def _wrong(self, reason: Reason, what: str) -> UpstreamError:
        return UpstreamError(reason, f"{self._peer}: {what}", retry=Retry.IF_UNSENT)


def reason_text(exc: ssl.SSLError) -> str:
    """OpenSSL's name of what went wrong, as words: "tlsv1 alert unknown ca"."""
    # ssl has no name for some alerts: "[SSL] tlsv1 alert no application protocol (_ssl.c:992)".
    text = exc.reason or re.sub(r"^\[SSL[^\]]*\] | \(_ssl\.c:\d+\)$", "", str(exc))
    return text.replace("_", " ").lower()
