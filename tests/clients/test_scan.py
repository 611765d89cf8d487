"""Scanners on a listener as it comes: nothing below TLS 1.2, no weak cipher, no renegotiation, no compression; and no
secret anywhere."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.clients.conftest import Pki, need, next_port, run
from tests.clients.test_curl import config
from tests.gateway import running

pytestmark = pytest.mark.slow


async def test_sslscan_finds_nothing_weak(tmp_path: Path, pki: Pki, origin: int) -> None:
    need("sslscan")
    port, report = next_port(), tmp_path / "scan.xml"
    async with running(tmp_path, config(tmp_path, pki, origin, port)):
        await run("sslscan", f"--xml={report}", "--sni-name=localhost", f"127.0.0.1:{port}", within=120)
    found = ET.parse(report).getroot().find("ssltest")
    assert found is not None
    protocols = {(one.get("type"), one.get("version")): one.get("enabled") for one in found.iter("protocol")}
    assert protocols == {
        ("ssl", "2"): "0",
        ("ssl", "3"): "0",
        ("tls", "1.0"): "0",
        ("tls", "1.1"): "0",
        ("tls", "1.2"): "1",
        ("tls", "1.3"): "1",
    }
    for cipher in found.iter("cipher"):
        name, strength = str(cipher.get("cipher")), cipher.get("strength")
        assert strength in ("strong", "acceptable"), name
        assert "GCM" in name or "CHACHA20" in name, name
    renegotiation, compression = found.find("renegotiation"), found.find("compression")
    assert renegotiation is not None
    assert renegotiation.get("secure") == "1" or renegotiation.get("supported") == "0"
    assert compression is None or compression.get("supported") == "0"
    assert all(one.get("vulnerable") == "0" for one in found.iter("heartbleed"))


async def test_a_renegotiation_is_refused_and_no_early_data_is_asked_for(tmp_path: Path, pki: Pki, origin: int) -> None:
    need("openssl")
    port, session, early = next_port(), tmp_path / "session", tmp_path / "early"
    early.write_bytes(b"GET /early HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client = ("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-CAfile", pki.ca)
    async with running(tmp_path, config(tmp_path, pki, origin, port)) as gateway:
        said = await run(*client, "-tls1_2", stdin=b"R\n", code=None)
        assert "RENEGOTIATING" in said
        assert "no renegotiation" in said
        get = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"
        await run(*client, "-tls1_3", "-sess_out", session, "-ign_eof", stdin=get, code=None)
        said = await run(*client, "-tls1_3", "-sess_in", session, "-early_data", early, stdin=b"", code=None)
        assert "Early data was not sent" in said
        assert "Reused, TLSv1.3" in said
        assert not [line for line in gateway.access_lines() if line["path"] == "/early"]


async def test_no_secret_is_written_anywhere(tmp_path: Path, pki: Pki, origin: int) -> None:
    """Neither the key, nor what clients send to prove who they are: not in a log, a dump or an answer of the API."""
    port, cookie = next_port(), "c00kie-that-nobody-may-read"
    async with running(tmp_path, config(tmp_path, pki, origin, port)) as gateway:
        need("curl")
        url, fields = (
            f"https://localhost:{port}",
            ("-H", f"Cookie: id={cookie}", "-H", f"Authorization: Bearer {cookie}"),
        )
        for more in ((), ("--http1.1",), ("--tls-max", "1.2"), ("-H", "Bad Name: x")):
            await run("curl", "-s", "--cacert", pki.ca, *fields, *more, f"{url}/?a=1", code=None)
        await run("curl", "-s", *fields, url, code=60)  # trusts nobody
        answers = [await gateway.api("GET", f"/api/v1/{what}") for what in ("status", "config", "events")]
        status, _ = await gateway.reload()
        assert status == 200
    written = [path.read_text(errors="replace") for path in tmp_path.glob("*") if path.is_file()]
    written += [path.read_text(errors="replace") for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any('"tls":"TLSv1.3' in text for text in written)
    keys = [path.read_text().split("\n")[1:-2] for path in pki.folder.glob("*.key")]
    for text in (*written, repr(answers)):
        assert cookie not in text
        assert not any(line in text for key in keys for line in key)
