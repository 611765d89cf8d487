"""The origin behind real clients: `python origin.py PORT`. Everything it answers can be checked by who asked.

GET  /blob?size=N      N bytes, the same ones each time
PUT  /hash             the SHA-256 of the body, and its length
GET  /head             the request's head as it came, as JSON
any  /git/...          git's own smart HTTP (git http-backend)
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = bytes(range(256)) * 1024


def blob(size: int) -> Iterator[bytes]:
    """The bytes of a blob, in pieces."""
    for start in range(0, size, len(PIECE)):
        yield PIECE[: size - start]


def hash_of_blob(size: int) -> str:
    """What the SHA-256 of a blob must be."""
    digest = hashlib.sha256()
    for piece in blob(size):
        digest.update(piece)
    return digest.hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def body(self) -> Iterator[bytes]:
        """The request's body, in pieces."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            data = self.rfile.read(min(left, 1 << 18))
            if not data:
                raise ConnectionError("the body was cut short")
            left -= len(data)
            yield data

    def answer(self, text: str, kind: str = "text/plain") -> None:
        """A small answer."""
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """A blob, the head, a page, or git."""
        url = urlsplit(self.path)
        if url.path.startswith("/git/"):
            self.git()
        elif url.path == "/blob":
            size = int(parse_qs(url.query)["size"][0])
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            for piece in blob(size):
                self.wfile.write(piece)
        else:
            for _ in self.body():
                pass
            self.answer(json.dumps({"path": self.path, "fields": self.headers.items()}), "application/json")

    def do_PUT(self) -> None:
        """Hash what comes."""
        digest, size = hashlib.sha256(), 0
        for data in self.body():
            digest.update(data)
            size += len(data)
        self.answer(f"{digest.hexdigest()} {size}")

    def do_POST(self) -> None:
        """For git, and as PUT."""
        if self.path.startswith("/git/"):
            self.git()
        else:
            self.do_PUT()

    def git(self) -> None:
        """Run git's backend as a CGI (RFC 3875)."""
        url = urlsplit(self.path)
        environ = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": os.environ["GIT_PROJECT_ROOT"],
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path.removeprefix("/git"),
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=b"".join(self.body()), capture_output=True, env=environ, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
