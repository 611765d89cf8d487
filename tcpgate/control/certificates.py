"""Certificates while they serve: taken up when their files change, told of before they end.

Theory of operation. Whoever renews a certificate (certbot, cert-manager, a person) writes several files, or swaps a
link to a folder of them, and tells nobody. So every two seconds all files are looked at, through their links; what
differs is waited for until it has been still for a second, and read. Only certificates are read again: an edit of the
TOML that nobody has asked to be loaded stays unread. A pair with anything wrong about it stays what it was, and that is
said once for each content that it has; the others go their way. What changed becomes a generation of its own, through
the one reloader, so everything that holds of a reload holds of it.

Owner: the supervisor's root nursery runs both loops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from tcpgate.config import certificate, schema
from tcpgate.config.check_tls import DAY, chains
from tcpgate.config.pem import Kept
from tcpgate.config.schema_tls import ListenerTls
from tcpgate.control.reload import Reloader, ReloadResult

EVERY = 2.0
"""Seconds between two looks; a look costs a stat(2) of each file."""
STILL = 1.0
"""Seconds without a change after which whoever writes is taken to be done."""
RETRY = 60.0
"""Seconds after which good certificates that could not be published (a worker was just dying) are tried again."""
REMIND_EVERY = 3600.0
STEPS = (0, 1, 3, 7, 14)
"""Days before its end at which a certificate is told of, each once."""
URGENT = 3
"""Days from which on that is an error: a human must act."""

Tell = Callable[[str, str, str, Mapping[str, str | int | float]], None]
Stamps = dict[Path, tuple[int, ...] | None]
"""What tells one content of a file from another; None: there is no file that we can see."""


class CertificateKeeper:
    """Watches the files that the running config names."""

    def __init__(self, *, reloader: Reloader, tell: Tell, clock: Callable[[], float]) -> None:
        """`clock` gives Unix time."""
        self._reloader = reloader
        self._tell = tell
        self._clock = clock
        self._kept: tuple[Kept, ...] = ()
        self._reminded: dict[str, int] = {}
        """Fingerprint -> the last step that was told."""

    # -- changes ----------------------------------------------------------------------------------------------------

    async def watch_forever(self) -> None:
        """Take up what changes. The first look reads all: something may have changed since the config was loaded."""
        seen: Stamps = {}
        while True:
            found = await self._look()
            if found != seen:
                seen = await self._wait_still(found)
                if not await self.renew():
                    await trio.sleep(RETRY)
                    seen = {}
            await trio.sleep(EVERY)

    async def _look(self) -> Stamps:
        """In a thread: a folder may be on a server that does not answer."""
        loaded = self._reloader.loaded
        paths = loaded.files.paths() if loaded is not None and loaded.files is not None else []
        return await trio.to_thread.run_sync(stamps, paths, abandon_on_cancel=True) if paths else {}

    async def _wait_still(self, found: Stamps) -> Stamps:
        """The stamps that no longer change."""
        while True:
            await trio.sleep(STILL)
            again = await self._look()
            if again == found:
                return found
            found = again

    async def renew(self) -> bool:
        """Read and publish what there is now; whether there is nothing left to try again."""
        before = {chain[0].fingerprint for chain in _shown(self._reloader.config)}
        result, kept = await self._reloader.renew(self._clock())
        if result is None:
            return True
        fresh = [one for one in kept if one not in self._kept]
        self._kept = kept
        for one in fresh:
            # A renewal that was to be and is not: it failed, whatever else was published.
            self._reloader.counts["failed"] += 1
            files = ", ".join(one.files)
            self._tell(
                "certificate_kept",
                "warning",
                one.told,
                {"path": one.path, "files": files},
            )
        if result.changed:
            self._tell_renewed(result, before)
        return result.ok

    def _tell_renewed(self, result: ReloadResult, before: Iterable[str]) -> None:
        fresh = [chain for chain in _shown(self._reloader.config) if chain[0].fingerprint not in before]
        ends = [f"{chain[0].title} until {_when(_end(chain))}" for chain in fresh]
        text = f"certificates taken up: {', '.join(ends) or 'authorities or lists only'}"
        facts: dict[str, str | int | float] = {"seconds": round(result.seconds, 3), "generation": result.generation}
        facts |= {"certificates": "\n".join(ends), "changes": "\n".join(result.changes)}
        self._tell("certificates_reloaded", "info", f"{text}; generation {result.generation} serves", facts)

    # -- ends -------------------------------------------------------------------------------------------------------

    async def remind_forever(self) -> None:
        """Tell of certificates that end soon."""
        while True:
            self.remind()
            await trio.sleep(REMIND_EVERY)

    def remind(self) -> None:
        """Tell of each certificate that has come to a further step."""
        now = self._clock()
        for chain in _shown(self._reloader.config):
            who, left = chain[0].fingerprint, (_end(chain) - now) / DAY
            step = next((step for step in STEPS if left <= step), None)
            if step is None or step >= self._reminded.get(who, step + 1):
                continue
            self._reminded[who] = step
            state = "ended on" if left <= 0 else f"ends in {left:.1f} days, on"
            self._tell(
                "certificate_expires",
                "error" if step <= URGENT else "warning",
                f"the certificate for {chain[0].title} {state} {_when(_end(chain))}",
                {"certificate": chain[0].title, "fingerprint": who, "days_left": round(left, 2)},
            )


def stamps(paths: Iterable[Path]) -> Stamps:
    """How each file is now, links followed. ctime is in it: a chmod may be the cure that was waited for."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def _shown(config: schema.Config | None) -> list[list[certificate.Certificate]]:
    return [] if config is None else [chain for _, chain in chains(config)]


def _end(chain: Iterable[certificate.Certificate]) -> float:
    """When the first of them ends: a chain is no better than that."""
    return min(one.not_after for one in chain)


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- for the API ----------------------------------------------------------------------------------------------------


def documents(tls: ListenerTls | None, now: float) -> list[dict[str, Any]]:
    """A listener's certificates for people and programs: names, ends, who they are. `now` is Unix time."""
    pairs = () if tls is None else tls.certificates
    read = [(one, certificate.held(one.chain_pem.reveal())) for one in pairs if one.chain_pem is not None]
    return [_document(one.cert, one.names, chain, now) for one, chain in read if chain]


def _document(file: str, names: Iterable[str], chain: list[certificate.Certificate], now: float) -> dict[str, Any]:
    end = _end(chain)
    return {
        "file": file,
        "names": list(names),
        "issuer": chain[0].issuer,
        "self_signed": chain[0].self_signed,
        "not_before": _when(chain[0].not_before),
        "not_after": _when(end),
        "days_left": round((end - now) / DAY, 2),
        "sha256": chain[0].fingerprint,
    }
