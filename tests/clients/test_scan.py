"""sslscan on a listener as it comes: nothing below TLS 1.2, no weak cipher, no renegotiation, no compression."""

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
