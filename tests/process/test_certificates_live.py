"""A certificate that is renewed under a gateway of real processes, which nobody tells of it."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests import pki
from tests.conftest import Eventually
from tests.gateway import Gateway, head_of, running


def put(folder: Path, leaf: pki.Leaf, *, key: bool = True) -> str:
    """The pair's files; the certificate's fingerprint."""
    (folder / "site.crt").write_text(leaf.chain)
    if key:
        (folder / "site.key").touch(mode=0o600)
        (folder / "site.key").write_text(leaf.private)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf.chain)).hexdigest()


def connect(port: int) -> ssl.SSLSocket:
    """A client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="site.example")


def shown(port: int) -> str:
    """The fingerprint of the certificate that a new client is shown."""
    with connect(port) as client:
        return hashlib.sha256(client.getpeercert(binary_form=True) or b"").hexdigest()


def ask(client: ssl.SSLSocket) -> bytes:
    """One exchange on a connection that stays."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: site.example\r\n\r\n")
    got = b""
    while not got.endswith(b"hello"):
        part = client.recv(65536)
        assert part, got
        got += part
    return got


async def told(gateway: Gateway, kind: str) -> list[str]:
    """The texts of the events of this kind."""
    return [one["text"] for one in await gateway.api("GET", "/api/v1/events") if one["kind"] == kind]


@pytest.mark.slow
async def test_a_renewed_certificate_is_shown_within_seconds_and_a_broken_one_never(
    tmp_path: Path, free_port: Callable[[], int], eventually: Eventually
) -> None:
    port = free_port()
    first = put(tmp_path, pki.make("site.example"))
    config = (
        head_of(tmp_path, workers=2)
        + f'[listeners.web]\nbind = ["127.0.0.1:{port}"]\n'
        + '[listeners.web.tls]\ncertificates = [{ cert = "site.crt", key = "site.key" }]\n'
        + '[routes.all]\nrespond = { body = "hello" }\n'
    )
    async with running(tmp_path, config) as gateway:

        async def see() -> str:
            return await trio.to_thread.run_sync(shown, port)

        async def renewed() -> bool:
            return await see() == second

        assert await see() == first
        stays = await trio.to_thread.run_sync(connect, port)
        with stays:
            assert b"200" in await trio.to_thread.run_sync(ask, stays)
            workers = await gateway.workers()
            second = put(tmp_path, pki.make("site.example", "www.site.example"))
            assert await eventually(renewed, what="the renewed certificate")
            assert b"200" in await trio.to_thread.run_sync(ask, stays)
            assert await gateway.workers() == workers
            (text,) = await told(gateway, "certificates_reloaded")
            assert text == "certificates taken up: site.example until 2030-04-01T00:00:00Z; generation 2 serves"
            put(tmp_path, pki.make("site.example"), key=False)
            (kept,) = await eventually(lambda: told(gateway, "certificate_kept"))
            assert "is not the key of the certificate for site.example" in kept
            assert await see() == second
            (listener,) = await gateway.api("GET", "/api/v1/listeners")
            assert [(one["names"], one["sha256"]) for one in listener["certificates"]] == [
                (["site.example", "www.site.example"], second)
            ]
            assert (await gateway.api("GET", "/api/v1/status"))["reloads"] == {"ok": 1, "failed": 1, "noop": 0}
            assert "PRIVATE" not in (tmp_path / "output.log").read_text()
