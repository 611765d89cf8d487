"""The whole gateway before endpoints with TLS: probed and spoken to by the same rules, and told why where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tls_origin as origins
from tests.conftest import Eventually
from tests.gateway import head_of, running, talk
from tests.tls_origin import NAME, tls_origin

GET = b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"

FreePort = Callable[[], int]


def config(folder: Path, listening: int, *ports: int, ca: str = "ca.pem", more: str = "") -> str:
    """One listener before endpoints that are probed over their TLS."""
    endpoints = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    return (
        head_of(folder)
        + f"""
[listeners.web]
bind = ["127.0.0.1:{listening}"]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = [{endpoints}]
health = {{ http = "/healthz", interval = "100ms", rise = 1, fall = 1 }}
{more}
[upstreams.api.tls]
ca = "{ca}"
name = "{NAME}"
"""
    )


@pytest.mark.slow
async def test_endpoints_are_probed_and_spoken_to_by_the_same_rules(
    tmp_path: Path, free_port: FreePort, eventually: Eventually
) -> None:
    (tmp_path / "ca.pem").write_text(origins.ca_pem())
    (tmp_path / "other.pem").write_text(origins.stranger().cert_pem.bytes().decode())
    port = free_port()
    async with (
        tls_origin() as good,
        tls_origin(context=origins.server_context(origins.expired())) as bad,
        running(tmp_path, config(tmp_path, port, good.port, bad.port)) as gateway,
    ):
        for _ in range(4):
            assert b"HTTP/1.1 200 OK" in await talk(port, GET)
        endpoints = await gateway.endpoints("api")
        assert endpoints[f"127.0.0.1:{good.port}"]["state"] == "healthy"
        assert endpoints[f"127.0.0.1:{bad.port}"]["state"] == "down"
        assert "tls: certificate has expired" in endpoints[f"127.0.0.1:{bad.port}"]["cause"]
        assert bad.heads == []

        # Another authority counts: what was verified by the old one is not used again, by probes or by workers.
        status, _ = await gateway.reload(config(tmp_path, port, good.port, bad.port, ca="other.pem"))
        assert status == 200

        async def is_down() -> bool:
            return bool((await gateway.endpoints("api"))[f"127.0.0.1:{good.port}"]["state"] == "down")

        await eventually(is_down)
        asked = len([head for head in good.heads if head.startswith(b"GET / ")])
        assert b"HTTP/1.1 50" in await talk(port, GET)
        assert len([head for head in good.heads if head.startswith(b"GET / ")]) == asked

        # One that OpenSSL does not take is refused whole, and the config stays.
        (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        status, result = await gateway.reload(config(tmp_path, port, good.port, ca="broken.pem"))
        assert status != 200, result
