"""The command line's side of the admin API: one call, one answer, over a unix socket or TCP.

Synchronous on purpose: the command line asks one thing and prints it. Source: http.client; the address forms of
`--admin`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from tcpgate.units import UnixPath, parse_endpoint

DEFAULTS = ("unix:/run/tcpgate/admin.sock", "127.0.0.1:9901")
"""Where a gateway is looked for when neither --admin nor a config says so."""
SERVER = "tcpgate-admin"
"""What the API calls itself in its Server field: whoever answers without it is somebody else."""
PATIENCE = 120.0
"""Seconds that an answer may take: a reload waits for a worker that builds for 30 s and for one that commits as
long."""


SOON = 1.0
"""Seconds after which a command that still waits says so."""


class AdminError(Exception):
    """The gateway could not be asked, or said no; the text is for a person."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@attrs.frozen
class AdminClient:
    """Where a running gateway's API is."""

    address: str
    token: str | None = attrs.field(default=None, repr=False)
    also_tried: tuple[str, ...] = ()
    """Other places where nobody listens, for the error."""

    def call(self, method: str, path: str, document: Any = None, *, timeout: float = PATIENCE) -> Any:
        """The answer's JSON; AdminError with the gateway's own words if it says no."""
        status, answer = self.ask(method, path, document, timeout=timeout)
        if status >= 400:
            raise AdminError(refusal(status, answer))
        return answer

    def ask(self, method: str, path: str, document: Any = None, *, timeout: float = PATIENCE) -> tuple[int, Any]:
        """(status, JSON) of one call; AdminError if nobody answers."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(document)
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if response.getheader("Server") != SERVER:
                raise ValueError("another server")
            return response.status, json.loads(response.read() or b"null")
        except TimeoutError as exc:
            raise AdminError(f"the gateway at {self.address} did not answer within {timeout:g} s") from exc
        except http.client.HTTPException as exc:
            raise AdminError(f"{self.address} does not answer as a tcpgate admin API does") from exc
        except OSError as exc:
            raise AdminError(self._nobody(exc)) from exc
        except ValueError as exc:
            raise AdminError(f"{self.address} does not answer as a tcpgate admin API does") from exc
        finally:
            connection.close()

    def _nobody(self, exc: OSError) -> str:
        places = " or ".join((self.address, *self.also_tried))
        why = (exc.strerror or str(exc)).lower()
        if isinstance(exc, PermissionError):
            return f"this user may not talk to the gateway at {self.address}: {why}"
        return f"no gateway answers at {places}: {why}; is it running? --admin says where it is"

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        target = parse_endpoint(self.address)
        if isinstance(target, UnixPath):
            return _UnixConnection(target.path, timeout)
        return http.client.HTTPConnection(target.host, target.port, timeout=timeout)


def refusal(status: int, answer: Any) -> str:
    """The gateway's own words for saying no."""
    said = str(answer["detail"]) if isinstance(answer, dict) and "detail" in answer else f"it answered {status}"
    return f"{said}; --token-file names it" if status == 401 else said


def find(addresses: Sequence[str], token: str | None) -> AdminClient:
    """The client for the first of `addresses` where something listens, or for the first. AdminError for a bad one."""
    for address in addresses:
        try:
            parse_endpoint(address)
        except ValueError as exc:
            raise AdminError(f"--admin: {exc}") from exc
    if len(addresses) > 1:
        addresses = [one for one in addresses if _listens(one)] or addresses
    return AdminClient(addresses[0], token, tuple(addresses[1:]))


def read_token(path: str) -> str:
    """The first line of a token file. Raises AdminError."""
    try:
        token = Path(path).read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise AdminError(f"cannot read the token in {path}: {why}") from exc
    if not token:
        raise AdminError(f"there is no token in the first line of {path}")
    return token


def _listens(address: str) -> bool:
    target = parse_endpoint(address)
    try:
        if not isinstance(target, UnixPath):
            socket.create_connection((target.host, target.port), timeout=1).close()
            return True
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            sock.connect(target.path)
            return True
    except PermissionError:
        return True  # something is there; the call itself will say what it is
    except OSError:
        return False


@contextlib.contextmanager
def patience(text: str) -> Iterator[None]:
    """If what happens inside takes a while, say `text` and count the seconds, on a terminal."""
    over = threading.Event()

    def tick() -> None:
        waited = 0.0
        while not over.wait(SOON):
            waited += SOON
            print(f"\r{text} ... {waited:.0f}s", end="", file=sys.stderr, flush=True)
        if waited:
            print(file=sys.stderr)

    if not sys.stderr.isatty():
        yield
        return
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
