"""What stands behind every proxy: one nginx, two endpoints of the same answers, files for the long ones.

It logs nothing and closes nothing. A request that did not come through a proxy (no X-Forwarded-For) is answered 421
on "/", so no proxy is faster by leaving that field out; L4 rows ask "/l4", which does not look.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.job import Keys

SMALL = "/"
"""200 and 13 bytes."""
RAW = "/l4"
"""An answer of about 100 bytes, head and all, for any bytes that are a request."""
HUNDRED = "/100k"
ECHO = "/echo"
"""An upgrade to a WebSocket; not this nginx but echo.py answers it."""
LONG = "/long"
LONG_BYTES = 1 << 30


def nginx_folders(folder: Path) -> str:
    """Where an nginx of ours keeps what it keeps, so that none touches the host's."""
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{name}_temp_path {folder}/{name};" for name in names)


def nginx_start(folder: Path) -> list[str]:
    """The command that runs the nginx whose nginx.conf is in `folder`."""
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def nginx_main(folder: Path, workers: int) -> str:
    """The lines that every nginx.conf of ours begins with."""
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""{user} worker_processes {workers}; daemon off; pid {folder}/pid; worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
"""


def write_origin(folder: Path, ports: tuple[int, int], long_bytes: int) -> list[str]:
    """Write the origin's files and config; the command that starts it."""
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    (root / "100k").write_bytes(b"x" * (100 << 10))
    with (root / "long").open("wb") as file:
        file.truncate(long_bytes)  # a hole: no disk is asked, and sendfile reads it like any other file
    listens = "".join(f"listen 127.0.0.1:{port} backlog=4096; " for port in ports)
    (folder / "nginx.conf").write_text(
        nginx_main(folder, 1)
        + f"""http {{ access_log off; server_tokens off; {nginx_folders(folder)}
sendfile on; keepalive_requests 1000000000; keepalive_timeout 300s; client_max_body_size 0;
server {{ {listens} root {root}; default_type text/plain;
location = /healthz {{ return 200 "ok"; }}
location = {RAW} {{ default_type ""; return 200 ""; }}
location = {HUNDRED} {{ }}
location = {LONG} {{ }}
location / {{ if ($http_x_forwarded_for = "") {{ return 421; }} return 200 "Hello, world\\n"; }}
}} }}
"""
    )
    return nginx_start(folder)


def echo_start(port: int) -> list[str]:
    """The command that runs the endpoint of WebSockets."""
    return [sys.executable, str(Path(__file__).parent / "echo.py"), str(port)]


def make_keys(folder: Path) -> Keys:
    """A certificate for bench.example and 127.0.0.1, signed by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = Keys(folder / "bench.crt", folder / "bench.key", folder / "bench.pem")
    names = "subjectAltName=DNS:bench.example,IP:127.0.0.1"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(keys.key), "-out", str(keys.cert)]
    command = ["openssl", "req", "-x509", *kind, *files, "-subj", "/CN=bench.example", "-addext", names]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    keys.both.write_text(keys.cert.read_text() + keys.key.read_text())
    return keys
