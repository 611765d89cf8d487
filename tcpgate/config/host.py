"""What `check` asks of the host it runs on: may this program be run, may files be made there. Looks, never changes."""

from __future__ import annotations

import os
import pwd
import ssl
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tcpgate.config.check import World
from tcpgate.config.report import quoted


def host(environ: Mapping[str, str], open_files: int, now: float = 0.0) -> World:
    """This host, as this user sees it. `open_files`: the RLIMIT_NOFILE that a worker will have; `now`: Unix time. 0 if
    unknown."""
    search = environ.get("PATH", os.defpath)
    return World(
        runnable=partial(runnable, search),
        writable=writable,
        makeable=makeable,
        speakable=speakable,
        open_files=open_files,
        longest_backlog=longest_backlog(),
        now=now,
        user=user(),
    )


def user() -> str:
    """Who we are; the number, where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def longest_backlog(file: Path = Path("/proc/sys/net/core/somaxconn")) -> int:
    """How many connections may wait at a listening socket here; 0 if the kernel does not say."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def speakable(ciphers: str) -> str:
    """Why OpenSSL can make nothing of this cipher list; "" if it can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(ciphers)
    except ssl.SSLError:
        text = f"OpenSSL knows none of {quoted(ciphers)} for TLS 1.2"
        return (
            f'{text}; `openssl ciphers -v "ECDHE+AESGCM"` shows what a list stands for; those of TLS 1.3 are always on'
        )
    return ""


def runnable(search: str, program: str) -> str:
    """Why `program` cannot be run; "" if it can. Without a slash it is looked for in the folders of `search`."""
    folders = [""] if "/" in program else [f"{folder}/" for folder in search.split(":") if folder]
    paths = [Path(folder + program) for folder in folders]
    files = [path for path in paths if _is_file(path)]
    if not files:
        return f"there is no program {quoted(program)}" + ("" if "/" in program else f" in {search}")
    if not any(os.access(path, os.X_OK) for path in files):
        return f"{files[0]} is not executable; chmod +x makes it so"
    return ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not allowed to look; a NUL byte in the name
        return False


def writable(name: str) -> str:
    """Why files cannot be made in this folder; "" if they can."""
    path = Path(name)
    try:
        if not path.is_dir():
            return f"{name} is not a folder" if path.exists() else f"there is no folder {name}"
    except OSError as exc:
        return f"{quoted(name)} cannot be looked at: {exc.strerror}"
    return "" if os.access(path, os.W_OK | os.X_OK) else f"{name} cannot be written to by this user"


def makeable(name: str) -> str:
    """Why neither this folder nor one above it would let it be made and written to; "" if it can be."""
    path = Path(name)
    try:
        while not path.exists() and path != path.parent:
            path = path.parent
    except OSError as exc:
        return f"{quoted(name)} cannot be looked at: {exc.strerror}"
    return writable(str(path))
