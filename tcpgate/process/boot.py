"""From a config file's path to a gateway that runs: what `tcpgate run` and `tcpgate demo` call.

Raises the limit of open files before the config is read, because the config is held against it; the same reading
serves the first start, every reload and `tcpgate check`, so they cannot disagree.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path

import trio

from tcpgate.config import load
from tcpgate.config.host import host
from tcpgate.net.bound import Binder
from tcpgate.process import limits, systemd
from tcpgate.process.logs import configure_diagnostics
from tcpgate.process.supervisor import Supervisor
from tcpgate.stats.page import SharedPage, size_of


def load_config(path: Path, environ: Mapping[str, str]) -> load.Loaded:
    """The file, its includes, its secrets, checked, also against this host. Raises ConfigError with every problem."""
    world = host(environ, limits.FileLimits.now().hard, time.time())
    return load.load(path, environ=environ, credentials=systemd.credentials_directory(environ), world=world)


def run_gateway(
    path: Path, environ: MutableMapping[str, str], beside: Callable[[trio.Nursery], Awaitable[None]] | None = None
) -> int:
    """Load, serve, and return the exit code; why it could not start stands on stderr then. Raises ConfigError.

    `beside` starts what lives and ends with the gateway (the demo's origins); it returns when that is ready. Its
    OSError is passed on.
    """
    configure_diagnostics("info")
    limits.raise_open_files()
    loaded = load_config(path, environ)
    shared, binder = _make_page(), Binder(_inherited_sockets(environ))
    given = dict(environ)  # what the reloads read: systemd's own variables are taken out below

    async def serve() -> int:
        supervisor = Supervisor(
            path, environ, loaded, shared=shared, binder=binder, reread=lambda: load_config(path, given)
        )
        code, failure = 1, None
        async with trio.open_nursery() as nursery:
            try:
                if beside is not None:
                    await beside(nursery)
            except OSError as exc:
                failure = exc  # raised below: in here the nursery would wrap it in a group
            else:
                code = await supervisor.run()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        for problem in supervisor.problems if code else ():
            print(problem, file=sys.stderr, flush=True)
        return code

    return trio.run(serve)


def _inherited_sockets(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Listening sockets that systemd passed, by name. Of several with one name the first: `bind = "fd:NAME"` means
    one."""
    passed = systemd.listen_fds(environ, os.getpid())
    return {name: socket.socket(fileno=fds[0]) for name, fds in passed.items()}


def _make_page() -> SharedPage:
    fd = os.memfd_create("tcpgate", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_of())
    return SharedPage(fd)
