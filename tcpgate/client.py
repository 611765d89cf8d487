"""The command line's side of the admin API: one call, one answer, over a unix socket or TCP.

Synchronous on purpose: the command line asks one thing and prints it. Source: http.client; the address forms of `--admin`.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import attrs

DEFAULTS = ("unix:/run/tcpgate/admin.sock", "127.0.0.1:9901")
"""Where a gateway is looked for when neither --admin nor a config says so."""


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

    def call(self, method: str, path: str, document: Any = None, *, timeout: float = 90.0) -> Any:
        """The answer's JSON; AdminError with the gateway's own words if it says no."""
        status, answer = self.ask(method, path, document, timeout=timeout)
        if status >= 400:
            raise AdminError(answer.get("detail", f"status {status}") if isinstance(answer, dict) else f"status {status}")
        return answer

    def ask(self, method: str, path: str, document: Any = None, *, timeout: float = 90.0) -> tuple[int, Any]:
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
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException) as exc:
            raise AdminError(f"no gateway answers at {self.address}: {exc}; is it running? --admin says where") from exc
        except ValueError as exc:
            raise AdminError(f"{self.address} does not answer as a tcpgate admin API does") from exc
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), timeout)
        return http.client.HTTPConnection(self.address, timeout=timeout)


def find(address: str | None, token_file: str | None) -> AdminClient:
    """The client for `--admin`, else for the first default place where something listens."""
    token = Path(token_file).read_text().splitlines()[0].strip() if token_file else None
    if address is None:
        address = next((one for one in DEFAULTS if _listens(one)), DEFAULTS[0])
    return AdminClient(address, token)


def _listens(address: str) -> bool:
    family, target = (
        (socket.AF_UNIX, address.removeprefix("unix:"))
        if address.startswith("unix:")
        else (socket.AF_INET, (address.rpartition(":")[0], int(address.rpartition(":")[2])))
    )
    with socket.socket(family) as sock:
        sock.settimeout(1)
        return sock.connect_ex(target) == 0
