"""The keys of session tickets: with the same ones in every worker, a client resumes in whichever its next connection
comes to.

Theory of operation. A ticket is the session itself, sealed by the server and kept by the client. Each of OpenSSL's
contexts draws its own key, so without this module a ticket is good only for the context that made it: in a
gateway of four workers, for one connection in four, and for none after a reload. The supervisor draws the keys, every
worker gets them (`state/messages.Tickets`), and a `TicketKeys` gives them to each context that it seals, now and at
each change.

A changed key makes earlier tickets worthless, which costs each client one full handshake; a key that was stolen opens
what was recorded under TLS 1.2 while it was in use, hence the change every 12 hours (RFC 5077 5.5; nginx and Envoy
advise a day). Keys live in memory only.

What may be resumed *where* is a question of trust: a session says that its client was judged by certain authorities,
and resuming skips that judgement. So each context has a name made of its rules, in every ticket, and takes only
tickets with its own (CVE-2025-23419 is what happens otherwise).

Where the ssl module's context cannot be reached (`openssl.py`), keys stay per context, and `shared` says so.

Source: RFC 5077, RFC 8446 4.6.1, SSL_CTX_set_tlsext_ticket_key_cb(3). Called by the worker and `tls_server.py`, which
makes contexts in a thread: hence the lock.
"""

from __future__ import annotations

import os
import ssl
import threading
import weakref

from tcpgate.net.openssl import LIBSSL, TICKET_KEYS_SIZE


def draw() -> bytes:
    """New keys."""
    return os.urandom(TICKET_KEYS_SIZE)


class TicketKeys:
    """The keys that this process seals tickets with, and the contexts that do."""

    def __init__(self, keys: bytes | None = None) -> None:
        """Without `keys`: some of its own, until it is told others."""
        self.keys = keys if keys is not None else draw()
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.shared = LIBSSL is not None
        """Whether contexts do take keys here."""

    def __repr__(self) -> str:
        return f"TicketKeys(contexts={len(self._contexts)})"

    def seal(self, context: ssl.SSLContext, name: bytes) -> None:
        """Have `context` use these keys from now on, for sessions of contexts with the same `name` (at most 32
        bytes)."""
        if LIBSSL is None:
            return
        LIBSSL.keep_no_sessions(context)
        # Without a name of its own no key may be shared: anybody's ticket would be taken.
        if not LIBSSL.set_session_id_context(context, name):
            self.shared = False
            return
        with self._lock:
            self._contexts.add(context)
            self._give(context)

    def renew(self, keys: bytes) -> bool:
        """Use other keys from now on. Whether they are in use, everywhere."""
        with self._lock:
            self.keys = keys
            for context in self._contexts:
                self._give(context)
        return self.shared

    def _give(self, context: ssl.SSLContext) -> None:
        assert LIBSSL is not None
        self.shared = LIBSSL.set_ticket_keys(context, self.keys) and self.shared
