"""What the ssl module does not offer of the OpenSSL that it stands on: a few calls, by ctypes.

The ssl module keeps a pointer to OpenSSL's object in each of its own: right behind the object's head. `open_library`
finds the very library that `_ssl` is linked with, and proves the layout on a context and a connection of its own
before anybody relies on it: OpenSSL must say of the connection found that it belongs to the context found. On an
interpreter where that fails everything still works, but for what `LibSsl` is for; callers say what they do without.

Errors stay in OpenSSL's queue, where the ssl module would take them for its own next failure, so the queue is emptied
after each call.

Source: SSL_shutdown(3), SSL_CTX_set_session_id_context(3), SSL_CTX_set_tlsext_ticket_key_cb(3),
SSL_CTX_set_session_cache_mode(3), SSL_CTX_set1_groups_list(3), SSL_load_client_CA_file(3), ssl.h of OpenSSL 3;
Modules/_ssl.c of CPython 3.11 to 3.14.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
from typing import Final

import attrs

_GET_TICKET_KEYS = 58
_SET_TICKET_KEYS = 59
_SET_CACHE_MODE = 44
_SET_GROUPS = 92
_MODE = 33
_UPDATE_BOTH = 1
_WANT_WRITE = 3
_CACHE_NOTHING = 0x0002 | 0x0300  # SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL
_RELEASE_BUFFERS = 0x10
_HEAD: Final = object.__basicsize__
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)
TICKET_KEYS_SIZE = 80
"""Bytes: 16 of the name, 32 of the HMAC's key, 32 of the cipher's."""


@attrs.frozen
class LibSsl:
    """The library, and the knowledge that the layout is the one expected."""

    _lib: ctypes.CDLL

    def shut(self, connection: object) -> bool:
        """Send close_notify, and read nothing. `connection`: what an SSLSocket has as its `_sslobj`.

        False: there is no room for it yet, so this is to be called again, and not after it was True.

        The ssl module's own `shutdown` goes on to read what the peer says; data that is still on its way from there
        would be thrown away, and the connection with it.
        """
        found = _word(connection, _HEAD + _WORD)
        self._lib.ERR_clear_error()  # an older error would be taken for this one's
        done = self._lib.SSL_shutdown(found)
        waits: bool = done < 0 and self._lib.SSL_get_error(found, done) == _WANT_WRITE
        self._lib.ERR_clear_error()
        return not waits

    def update_key(self, connection: object) -> bool:
        """Change the keys of a TLS 1.3 connection, with its next record, and ask the peer for the same. Whether it
        will be."""
        done: int = self._lib.SSL_key_update(_word(connection, _HEAD + _WORD), _UPDATE_BOTH)
        self._lib.ERR_clear_error()
        return done == 1

    def set_ticket_keys(self, context: ssl.SSLContext, keys: bytes) -> bool:
        """Seal and open session tickets with these `keys` from now on. Whether they are in use."""
        kept = ctypes.create_string_buffer(len(keys))
        found = _word(context, _HEAD)
        done = (
            self._lib.SSL_CTX_ctrl(found, _SET_TICKET_KEYS, len(keys), keys) == 1
            and self._lib.SSL_CTX_ctrl(found, _GET_TICKET_KEYS, len(keys), kept) == 1
            and kept.raw == keys
        )
        self._lib.ERR_clear_error()
        return done

    def set_session_id_context(self, context: ssl.SSLContext, name: bytes) -> bool:
        """Let no session be resumed here but those of contexts with the same `name` (at most 32 bytes). Whether it
        is so."""
        done: int = self._lib.SSL_CTX_set_session_id_context(_word(context, _HEAD), name, len(name))
        self._lib.ERR_clear_error()
        return done == 1

    def keep_no_sessions(self, context: ssl.SSLContext) -> None:
        """Sessions live in tickets only, not in this process's memory (by default up to 20,480 of each context)."""
        self._lib.SSL_CTX_ctrl(_word(context, _HEAD), _SET_CACHE_MODE, _CACHE_NOTHING, None)

    def set_groups(self, context: ssl.SSLContext, names: str) -> bool:
        """Exchange keys by these groups only ("X25519:P-256"), best first. Whether the library knows them all."""
        done: int = self._lib.SSL_CTX_ctrl(_word(context, _HEAD), _SET_GROUPS, 0, names.encode())
        self._lib.ERR_clear_error()
        return done == 1

    def ask_for_authorities(self, context: ssl.SSLContext, path: str) -> bool:
        """Name the authorities in the file to clients that are asked for a certificate. Whether it could be read."""
        names = self._lib.SSL_load_client_CA_file(path.encode())
        self._lib.ERR_clear_error()
        if names is not None:
            self._lib.SSL_CTX_set_client_CA_list(_word(context, _HEAD), names)  # which owns them now
        return names is not None

    def release_buffers(self, context: ssl.SSLContext) -> bool:
        """Give a connection's buffers (34 KiB) back while it is idle. Whether it is so; CPython asks for it, too."""
        mode: int = self._lib.SSL_CTX_ctrl(_word(context, _HEAD), _MODE, _RELEASE_BUFFERS, None)
        return bool(mode & _RELEASE_BUFFERS)


def open_library() -> LibSsl | None:
    """The OpenSSL under the ssl module, or None where it cannot be had."""
    try:
        lib = ctypes.PyDLL(_ssl.__file__)  # holds the GIL: none of these calls waits
        for name, result, arguments in (
            ("SSL_shutdown", ctypes.c_int, (ctypes.c_void_p,)),
            ("SSL_get_error", ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
            ("SSL_key_update", ctypes.c_int, (ctypes.c_void_p, ctypes.c_int)),
            ("SSL_get_SSL_CTX", ctypes.c_void_p, (ctypes.c_void_p,)),
            ("SSL_CTX_ctrl", ctypes.c_long, (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)),
            ("SSL_CTX_set_session_id_context", ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint)),
            ("SSL_load_client_CA_file", ctypes.c_void_p, (ctypes.c_char_p,)),
            ("SSL_CTX_set_client_CA_list", None, (ctypes.c_void_p, ctypes.c_void_p)),
            ("ERR_clear_error", None, ()),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (AttributeError, OSError):  # linked into the interpreter, or a library with other names
        return None
    return LibSsl(lib) if _layout_is_known(lib) else None


def _layout_is_known(lib: ctypes.PyDLL) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    connection = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)._sslobj  # type: ignore[attr-defined]
    # The word behind the connection's pointer is that to its context's object; only then is it safe to ask OpenSSL.
    if _word(connection, _HEAD + 2 * _WORD) != id(context):
        return False
    found: int | None = lib.SSL_get_SSL_CTX(_word(connection, _HEAD + _WORD))
    return found is not None and found == _word(context, _HEAD)


def _word(owner: object, offset: int) -> int | None:
    """The pointer that is kept `offset` bytes into `owner`."""
    return ctypes.c_void_p.from_address(id(owner) + offset).value


LIBSSL: Final = open_library()
"""As this process has it."""
