"""curl, as people use it: HTTP/1.1 and 2, over TLS and without, with a client certificate, with a resumed session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Pki, need, next_port, run
from tests.gateway import head_of, running

pytestmark = pytest.mark.slow


def config(folder: Path, pki: Pki, origin: int, port: int, *, workers: int = 1, tls: str = "", more: str = "") -> str:
    """One https listener in front of the origin."""
    cert, key = pki.issue("www.example.test", "127.0.0.1", "localhost")
    return f"""{head_of(folder, workers=workers)}
[listeners.web]
bind = ["127.0.0.1:{port}"]
[listeners.web.tls]
certificates = [{{ cert = "{cert}", key = "{key}" }}]
{tls}
{more}
[routes.all]
upstream = "origin"
[upstreams.origin]
endpoints = ["127.0.0.1:{origin}"]
"""


@pytest.mark.parametrize(("option", "proto"), [("--http1.1", "1.1"), ("--http2", "2")])
async def test_curl_gets_an_answer_over_tls(tmp_path: Path, pki: Pki, origin: int, option: str, proto: str) -> None:
    need("curl")
    port = next_port()
    async with running(tmp_path, config(tmp_path, pki, origin, port)) as gateway:
        url = f"https://localhost:{port}/a?b"
        said = await run("curl", "-sS", option, "--cacert", pki.ca, "-w", "\n%{http_version}", url)
        document, version = said.rsplit("\n", 1)
        fields = {name.lower(): value for name, value in json.loads(document)["fields"]}
        assert version == proto
        assert fields["x-forwarded-proto"] == "https"
        assert fields["host"] == f"localhost:{port}"
        line = await gateway.access_line(lambda line: line["path"] == "/a")
        assert line["tls"].startswith("TLSv1.3")
        assert line["t"]["tls"] > 0


async def test_curl_speaks_http2_without_tls_where_that_is_switched_on(tmp_path: Path, pki: Pki, origin: int) -> None:
    need("curl")
    port, plain = next_port(), next_port()
    more = f'[listeners.plain]\nbind = ["127.0.0.1:{plain}"]\nhttp2 = true'
    async with running(tmp_path, config(tmp_path, pki, origin, port, more=more)):
        url = f"http://localhost:{plain}/"
        assert (await run("curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version}", url)).endswith("}2")
        assert (await run("curl", "-sS", "--http1.1", "-w", "%{http_version}", url)).endswith("}1.1")


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
async def test_a_client_certificate_is_asked_for_judged_and_told(
    tmp_path: Path, pki: Pki, origin: int, option: str
) -> None:
    need("curl")
    port = next_port()
    cert, key = pki.issue(client="ada@example.test")
    tls = f'client_auth = "required"\nclient_ca = "{pki.ca}"\nforward_client = true'
    async with running(tmp_path, config(tmp_path, pki, origin, port, tls=tls)) as gateway:
        url = f"https://localhost:{port}/"
        said = await run("curl", "-sS", option, "--cacert", pki.ca, "--cert", cert, "--key", key, url)
        fields = {name.lower(): value for name, value in json.loads(said)["fields"]}
        assert "ada@example.test" in fields["x-forwarded-client-cert"]
        line = await gateway.access_line(lambda line: line["reason"] == "ok")
        assert "ada@example.test" in line["auth"]
        refused = await run("curl", "-sS", option, "--cacert", pki.ca, url, code=None)
        assert "alert certificate required" in refused
        line = await gateway.access_line(lambda line: line["reason"] == "tls_refused")
        assert line["answered_by"] == "gateway"


async def test_a_session_resumes_whatever_worker_takes_the_next_connection(
    tmp_path: Path, pki: Pki, origin: int
) -> None:
    need("openssl")
    port, saved = next_port(), tmp_path / "session"
    async with running(tmp_path, config(tmp_path, pki, origin, port, workers=2)) as gateway:
        server = ["-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-CAfile", str(pki.ca)]
        call = ["openssl", "s_client", *server]
        ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for version in ("-tls1_3", "-tls1_2"):
            said = await run(*call, version, "-ign_eof", "-sess_out", saved, stdin=ask)
            assert "New, TLSv1." in said
            for _ in range(12):
                said = await run(*call, version, "-ign_eof", "-sess_in", saved, stdin=ask)
                assert "Reused, TLSv1." in said
        served = [one["accepted"] for one in (await gateway.api("GET", "/api/v1/status"))["workers"]]
        assert len(served) == 2
        assert all(served), served
