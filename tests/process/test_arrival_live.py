"""Connections arrive at a whole gateway: curl, OpenSSL's servers, HAProxy in front; a new certificate, a drain."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.gateway import Recorder, head_of, plain_answer, running
from tests.proxy.arrivals import authority, client_context, write_certificate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FreePort = Callable[[], int]


@contextlib.contextmanager
def process(*command: str, port: int, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on `port`, until the end."""
    started = subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert started.poll() is None, f"{command[0]} has ended"
            assert time.monotonic() < until, f"{command[0]} does not listen"
            time.sleep(0.02)
        yield started
    finally:
        started.kill()
        started.wait()


async def curl(folder: Path, port: int, *options: str, name: str = "a.example", scheme: str = "https") -> str:
    """What curl gets, and how."""
    resolve = ("--resolve", f"{name}:{port}:127.0.0.1", "--cacert", "ca.pem")
    told = ("-w", "\n%{http_version} %{http_code} %{ssl_verify_result}")
    done = await trio.run_process(
        ["curl", "-sS", "--max-time", "20", *resolve, *told, *options, f"{scheme}://{name}:{port}/"],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=folder,
    )
    return (done.stdout + done.stderr).decode()


def https_text(folder: Path, port: int, origin: int, pair: str) -> str:
    return f"""{head_of(folder, workers=2)}
[listeners.web]
bind = ["127.0.0.1:{port}"]
[listeners.web.tls]
certificates = [{pair}]
[routes.all]
upstream = "api"
[upstreams.api]
endpoints = ["127.0.0.1:{origin}"]
"""


async def test_https_over_two_workers_and_through_a_new_certificate(
    tmp_path: Path, nursery: trio.Nursery, free_port: FreePort
) -> None:
    recorder = Recorder(lambda head, body: plain_answer())
    origin = await nursery.start(recorder.serve)
    port = free_port()
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    text = https_text(tmp_path, port, origin, write_certificate(tmp_path, "site", "a.example"))
    async with running(tmp_path, text) as gateway:
        assert await curl(tmp_path, port, "--http1.1") == "hello\n1.1 200 0"
        assert await curl(tmp_path, port, "--http2") == "hello\n2 200 0"
        line = await gateway.access_line(lambda line: line["proto"] == "http/1.1")
        assert line["tls"].startswith("TLSv1.3 ")
        assert line["t"]["tls"] > 0
        with trio.fail_after(60), contextlib.ExitStack() as stack:
            # One that stays open through the reload.
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            kept = client_context().wrap_socket(raw, server_hostname="a.example")
            stack.enter_context(kept)
            write_certificate(tmp_path, "site", "a.example", "new.example")
            status, result = await gateway.reload()
            assert status == 200, result
            assert await curl(tmp_path, port, "--http1.1", name="new.example") == "hello\n1.1 200 0"
            kept.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            assert await trio.to_thread.run_sync(kept.recv, 12) == b"HTTP/1.1 200"
        (tmp_path / "site.key").write_text("no key")
        status, result = await gateway.reload()
        assert status != 200
        assert await curl(tmp_path, port, "--http1.1", name="new.example") == "hello\n1.1 200 0"
        assert await gateway.stop() == 0
    nursery.cancel_scope.cancel()


async def test_a_drain_lets_handshakes_end(tmp_path: Path, nursery: trio.Nursery, free_port: FreePort) -> None:
    origin = await nursery.start(Recorder(lambda head, body: plain_answer()).serve)
    port = free_port()
    text = https_text(tmp_path, port, origin, write_certificate(tmp_path, "site", "a.example"))
    async with running(tmp_path, text) as gateway:
        async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
            came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client_context("http/1.1").wrap_bio(came, out, server_hostname="a.example")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await raw.send_all(out.read())
            came.write(await raw.receive_some(65536))
            gateway.signal(signal.SIGTERM)
            await trio.sleep(0.3)
            tls.do_handshake()
            tls.write(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            await raw.send_all(out.read())
            said = b""
            with trio.fail_after(30):
                while b"hello" not in said:
                    came.write(await raw.receive_some(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        said += tls.read(65536)
        with trio.fail_after(40):
            assert await gateway.process.wait() == 0
    assert b"connection: close" in said.lower()
    nursery.cancel_scope.cancel()


async def test_names_lead_to_openssls_own_servers(tmp_path: Path, free_port: FreePort) -> None:
    port, one, other = free_port(), free_port(), free_port()
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    write_certificate(tmp_path, "one", "one.example")
    write_certificate(tmp_path, "other", "other.example", "deep.other.example")
    text = f"""{head_of(tmp_path)}
[listeners.web]
protocol = "tcp"
bind = ["127.0.0.1:{port}"]
sni = {{ "one.example" = "one", "*.other.example" = "other" }}
[upstreams.one]
endpoints = ["127.0.0.1:{one}"]
[upstreams.other]
endpoints = ["127.0.0.1:{other}"]
"""

    def serve(name: str, at: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        pair = ("-cert", f"{name}.crt", "-key", f"{name}.key")
        return process("openssl", "s_server", "-accept", f"127.0.0.1:{at}", *pair, "-www", port=at, cwd=tmp_path)

    with serve("one", one), serve("other", other):
        async with running(tmp_path, text) as gateway:
            assert (await curl(tmp_path, port, "--http1.1", name="one.example")).endswith(" 200 0")
            assert (await curl(tmp_path, port, "--http1.1", name="deep.other.example")).endswith(" 200 0")
            assert "unrecognized name" in (await curl(tmp_path, port, name="else.example")).lower()
            line = await gateway.access_line(lambda line: line["upstream"] == "other")
            assert (line["reason"], line["tls"]) == ("ok", "")
            line = await gateway.access_line(lambda line: line["reason"] == "no_route")
            assert line["host"] == "else.example"


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy")
async def test_haproxy_in_front_tells_who_the_client_is(
    tmp_path: Path, nursery: trio.Nursery, free_port: FreePort
) -> None:
    heads = []

    def keep(head: object, body: bytes) -> bytes:
        heads.append(dict(head.headers))  # type: ignore[attr-defined]
        return plain_answer()

    origin = await nursery.start(Recorder(keep).serve)
    port, first, second, third = (free_port() for _ in range(4))
    pair = write_certificate(tmp_path, "site", "a.example")
    (tmp_path / "front.pem").write_bytes((tmp_path / "site.crt").read_bytes() + (tmp_path / "site.key").read_bytes())
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    options = "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id,authority,cert-key,cert-sig,ssl-cipher"
    (tmp_path / "haproxy.cfg").write_text(f"""
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen v1
    bind 127.0.0.1:{first}
    server gate 127.0.0.1:{port} send-proxy
listen v2
    bind 127.0.0.1:{second} ssl crt front.pem
    unique-id-format %{{+X}}o-%pid-%rt
    server gate 127.0.0.1:{port} {options}
listen over_tls
    bind 127.0.0.1:{third}
    server gate 127.0.0.1:{port} send-proxy-v2 check-send-proxy
""")
    text = (
        https_text(tmp_path, port, origin, pair)
        .replace("[listeners.web.tls]\n", 'trusted_proxies = ["127.0.0.1"]\nproxy_protocol = "require"\n')
        .replace(f"certificates = [{pair}]\n", "")
    )
    with process("haproxy", "-db", "-f", "haproxy.cfg", port=first, cwd=tmp_path):
        async with running(tmp_path, text) as gateway:
            assert await curl(tmp_path, first, scheme="http") == "hello\n1.1 200 0"
            assert await curl(tmp_path, second, "--http1.1") == "hello\n1.1 200 0"
            assert await curl(tmp_path, third, scheme="http") == "hello\n1.1 200 0"
            told = [{name.lower(): value for name, value in head.items()} for head in heads]
            assert [head[b"x-forwarded-port"] for head in told] == [b"%d" % at for at in (first, second, third)]
            assert [head[b"x-forwarded-proto"] for head in told] == [b"http", b"https", b"http"]
            # Without a header nobody comes in, not even from there.
            assert "200" not in await curl(tmp_path, port, scheme="http")
            line = await gateway.access_line(lambda line: line["reason"] == "proxy_header")
            assert line["detail"] == "it begins with no PROXY header"
    nursery.cancel_scope.cancel()
