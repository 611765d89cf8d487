"""What one proxy is told to do: where it keeps its files, where it listens, who stands behind it."""

from __future__ import annotations

import os
from pathlib import Path

import attrs


@attrs.frozen
class Ports:
    """Where a proxy listens, and where its endpoints do."""

    http: int
    l4: int
    https: int
    """The same as `http`, over TLS, with HTTP/2 for who offers it."""
    origins: tuple[int, int]
    echo: int
    """An endpoint that gives back what comes, after an upgrade; asked for by the path `ECHO`."""


@attrs.frozen
class Keys:
    """The certificate that every proxy shows, and its key: ECDSA on P-256."""

    cert: Path
    key: Path
    both: Path
    """One behind the other, as HAProxy wants them."""


@attrs.frozen
class Job:
    """What one proxy is to do now."""

    folder: Path
    ports: Ports
    keys: Keys
    workers: int = 1
    weight: int = 2
    """Of the second endpoint; the first has 1. What a reload changes."""


def replace(path: Path, text: str) -> None:
    """Write a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)
