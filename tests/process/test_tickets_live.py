"""The whole gateway with two workers: a TLS session goes on in either, after a reload, and in later workers."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

from tests.gateway import Gateway, head_of, running

NAME = "gate.example"


@pytest.mark.slow
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_goes_on_in_every_worker_there_is_and_will_be(
    tmp_path: Path, free_port: Callable[[], int], version: ssl.TLSVersion
) -> None:
    ca, port = trustme.CA(), free_port()
    cert = ca.issue_cert(NAME)
    (tmp_path / "site.crt").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    (tmp_path / "site.key").write_bytes(cert.private_key_pem.bytes())
    text = f"""{head_of(tmp_path, workers=2)}
[listeners.web]
bind = ["127.0.0.1:{port}"]
[listeners.web.tls]
certificates = [{{ cert = "site.crt", key = "site.key" }}]
[routes.all]
respond = {{ status = 200, body = "ok" }}
"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    context.minimum_version = context.maximum_version = version

    async with running(tmp_path, text) as gateway:
        resumed, session = await visit(context, port, None)
        assert not resumed
        before = await gateway.workers()
        for pid in before.values():
            assert await visit_without(pid, context, port, session)

        status, _ = await gateway.reload(text.replace("200", "201"))
        assert status == 200
        assert (await visit(context, port, session))[0], "a reload has forgotten its clients"

        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await wait_replaced(gateway, set(before.values()))
        assert (await visit(context, port, session))[0], "new workers know nothing of it"


async def visit(
    context: ssl.SSLContext, port: int, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """One request: whether the session was resumed, and the one that it leaves."""

    def ask() -> tuple[bool, ssl.SSLSession | None]:
        raw = socket.create_connection(("127.0.0.1", port), 30)
        with context.wrap_socket(raw, server_hostname=NAME, session=session) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: gate.example\r\n\r\n")
            assert tls.recv(65536).startswith(b"HTTP/1.1 20")
            return bool(tls.session_reused), tls.session

    return await trio.to_thread.run_sync(ask)


async def visit_without(pid: int, context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> bool:
    """Whether the session is resumed while this worker is stopped, so that another one has to take it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        return (await visit(context, port, session))[0]
    finally:
        os.kill(pid, signal.SIGCONT)


async def wait_replaced(gateway: Gateway, gone: set[int]) -> None:
    """Until two other workers serve."""
    with trio.fail_after(40):
        while len(found := set((await gateway.workers()).values()) - gone) < 2:
            await trio.sleep(0.05)
    assert len(found) == 2
