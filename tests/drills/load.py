"""Load whose every request is accounted for: keep-alive connections that send, check the answer, and note what failed.

wrk is faster, but it does not say which request failed and how; a promise of "0 failed" wants to know.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from typing import Self

import attrs


@attrs.define
class Load:
    """`threads` clients against one port, each over its own keep-alive connection."""

    port: int
    threads: int = 8
    reconnect: bool = True
    """A connection that the other side closes between exchanges is opened again: HTTP allows that close."""
    path: str = "/"
    statuses: Counter[int] = attrs.field(factory=Counter)
    bodies: Counter[str] = attrs.field(factory=Counter)
    failures: list[str] = attrs.field(factory=list)
    """What went wrong inside an exchange, or on connecting."""
    refused: int = 0
    lost: int = 0
    """Connections that broke with a request under way."""
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _running: list[threading.Thread] = attrs.field(factory=list)

    def __enter__(self) -> Self:
        for _ in range(self.threads):
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._running.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join(20)

    @property
    def total(self) -> int:
        """Answers so far."""
        return self.statuses.total()

    def _run(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
            try:
                connection.connect()
            except OSError as exc:
                self.refused += 1
                self.failures.append(f"{time.time():.3f} connect: {exc!r}")
                time.sleep(0.01)
                continue
            with contextlib.closing(connection):
                self._talk(connection)

    def _talk(self, connection: http.client.HTTPConnection) -> None:
        while not self._stop.is_set():
            try:
                connection.request("GET", self.path)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as exc:
                self.lost += 1
                self.failures.append(f"{time.time():.3f} exchange: {exc!r}")
                return
            self.statuses[response.status] += 1
            self.bodies[body.decode("latin-1").strip()] += 1
            if response.will_close:
                return
