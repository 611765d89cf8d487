"""What the gateway tells its service manager, and what it gets from it: readiness, reload, status, watchdog, sockets.

Theory of operation. systemd reads datagrams of `NAME=value` lines from the socket that NOTIFY_SOCKET names. A send here
never blocks and never raises: a service manager that is slow or gone must not cost a request. But a READY=1 that is
lost fails the start, so what could not be sent is owed, and goes out with the next message (the watchdog's, at the
latest).

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.exec(5) "Credentials". The protocol is
stable and small, so no binding is needed. Owner: the supervisor; no task.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import attrs

FIRST_FD = 3
"""SD_LISTEN_FDS_START: inherited sockets begin after standard error."""
UNNAMED = "unknown"
"""The name that sd_listen_fds_with_names(3) gives to a socket that has none."""


@attrs.define
class Notifier:
    """Tells systemd how the service is. Without a service manager every method does nothing and returns False."""

    address: str | None
    """Path, or "@name" in the abstract namespace; None: nobody listens."""
    sent: int = 0
    """Messages that the service manager took."""
    failures: int = 0
    """Messages that it did not take: its queue was full, or its socket is gone."""
    _owed: dict[str, str] = attrs.field(factory=dict, repr=False)
    """Assignments that still have to reach it."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """For NOTIFY_SOCKET, which is taken out of `environ`, so that no worker or probe speaks in our name."""
        address = environ.pop("NOTIFY_SOCKET", "")
        # "vsock:" (systemd 253, virtual machines) names no AF_UNIX socket.
        return cls(address if address[:1] in ("/", "@") and len(address) > 1 else None)

    def ready(self, status: str) -> bool:
        """The gateway serves: after the start, and after every reload, whatever came of it."""
        # A READY that overtakes an unsent RELOADING has made it untrue.
        self._owed.pop("RELOADING", None)
        self._owed.pop("MONOTONIC_USEC", None)
        return self._tell(READY="1", STATUS=_one_line(status))

    def reloading(self) -> bool:
        """A reload begins; `ready` must follow. systemd 257 waits forever for a RELOADING without its time."""
        self._owed.pop("READY", None)
        # Not trio.current_time(): its clock has an offset of its own.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._tell(RELOADING="1", MONOTONIC_USEC=str(now))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._tell(STATUS=_one_line(text))

    def stopping(self) -> bool:
        """The drain has begun."""
        return self._tell(STOPPING="1")

    def watchdog(self) -> bool:
        """The gateway makes progress; the caller has seen that it does."""
        # Never owed: a late ping would vouch for a time that nobody looked at.
        return self._send(self._lines({"WATCHDOG": "1"}))

    def extend_timeout(self, usec: int) -> bool:
        """Start, reload or stop goes on: do not give up on us for another `usec` microseconds."""
        return self._send(self._lines({"EXTEND_TIMEOUT_USEC": str(usec)}))

    def fdstore(self, name: str, fds: Sequence[int], *, poll: bool = True) -> bool:
        """Have `fds` kept under `name`, to come back as LISTEN_FDS after a crash or restart.

        `poll=False` keeps those that systemd would see as hung up, such as one end of a pipe. A name is at most 255
        ASCII characters, none of them ":" or a control character: systemd silently calls it "stored" otherwise.
        """
        facts = {"FDSTORE": "1", "FDNAME": name}
        return self._send(self._lines(facts if poll else facts | {"FDPOLL": "0"}), fds)

    def fdstore_remove(self, name: str) -> bool:
        """Forget, and close, what is kept under `name`."""
        return self._send(self._lines({"FDSTOREREMOVE": "1", "FDNAME": name}))

    def _tell(self, **facts: str) -> bool:
        """Send what must arrive, now or with the next message."""
        if self.address is None:
            return False
        self._owed.update(facts)
        return self._send(b"")

    @staticmethod
    def _lines(facts: dict[str, str]) -> bytes:
        return "".join(f"{name}={value}\n" for name, value in facts.items()).encode()

    def _send(self, lines: bytes, fds: Sequence[int] = ()) -> bool:
        if self.address is None:
            return False
        if self._owed:
            lines = self._lines(self._owed) + lines
        # The abstract namespace is written with "@" for people and with a NUL for the kernel.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(address)
                socket.send_fds(sock, [lines], list(fds), socket.MSG_NOSIGNAL)
        except OSError:
            self.failures += 1
            return False
        self._owed.clear()
        self.sent += 1
        return True


def _one_line(text: str) -> str:
    """`text` without line ends: a line of its own would be an assignment of its own."""
    return " ".join(text.split())


def listen_fds(environ: MutableMapping[str, str], pid: int) -> dict[str, list[int]]:
    """The sockets that systemd opened for us, by FileDescriptorName; one unit may have several under one name.

    Marks them close-on-exec and takes LISTEN_* out of `environ`: they are ours alone. Empty if they are meant for
    another process or if the variables make no sense.
    """
    meant_for = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if meant_for != str(pid) or not (count.isascii() and count.isdecimal()):
        return {}
    found: dict[str, list[int]] = {}
    for index in range(int(count)):
        fd = FIRST_FD + index
        try:
            os.set_inheritable(fd, False)
        except OSError:
            break  # fewer were opened than said: what is there is still good
        name = names[index] if index < len(names) else ""
        found.setdefault(name or UNNAMED, []).append(fd)
    return found


def watchdog_interval(environ: MutableMapping[str, str], pid: int) -> float | None:
    """Seconds from one ping to the next: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises. None: no watchdog.

    Takes WATCHDOG_* out of `environ`.
    """
    usec = environ.pop("WATCHDOG_USEC", "")
    meant_for = environ.pop("WATCHDOG_PID", str(pid))
    if meant_for != str(pid) or not (usec.isascii() and usec.isdecimal()) or int(usec) == 0:
        return None
    return int(usec) / 1e6 / 2


def credentials_directory(environ: Mapping[str, str]) -> Path | None:
    """Where LoadCredential= put this service's secrets; readable by it alone, gone with it. None: it has none."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(directory) if directory.startswith("/") else None
