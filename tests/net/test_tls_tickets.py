"""Session tickets: who resumes where, with which keys; and a client that is none of ours, openssl s_client."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tcpgate.codec.client_hello import ClientHello, parse
from tcpgate.net import openssl, tickets
from tcpgate.net.openssl import LIBSSL
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_server import Pair, Rules, ServerTls, TlsServer, facts
from tests.net.loopback import Loopback
from tests.net.tls_rig import authority, client_context, connect, leaf, receive

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
NAME = "gate.example"


OPEN = Rules()


def spec(keys: TicketKeys | None, rules: Rules = OPEN, **hosts: Rules) -> ServerTls:
    cert = leaf(NAME)
    chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
    named = {name.replace("_", "."): host for name, host in hosts.items()}
    return ServerTls(
        pairs=(Pair(chain=chain, key=cert.private_key_pem.bytes()),), rules=rules, hosts=named, tickets=keys
    )


def session_of(loopback: Loopback, server: TlsServer, context: ssl.SSLContext, name: str = NAME) -> ssl.SSLSession:
    """A full handshake's, with the ticket that comes after it."""
    tls, client = connect(loopback, server, context, name)
    assert not facts(tls).resumed
    tls.send(b"x")  # a ticket of TLS 1.3 comes before this
    assert receive(client, 1) == b"x"
    session = client.session
    assert session is not None
    return session


def resumes(
    loopback: Loopback, server: TlsServer, context: ssl.SSLContext, session: ssl.SSLSession, name: str = NAME
) -> bool:
    tls, client = connect(loopback, server, context, name, session)
    assert facts(tls).resumed == bool(client.session_reused)
    tls.send(b"alive")
    assert receive(client, 5) == b"alive"
    return facts(tls).resumed


def test_this_interpreter_lets_us_share_keys() -> None:
    assert LIBSSL is not None
    assert TicketKeys().shared


@VERSIONS
def test_a_session_of_one_workers_context_goes_on_in_anothers(loopback: Loopback, version: ssl.TLSVersion) -> None:
    keys = tickets.draw()
    one, two = TlsServer(spec(TicketKeys(keys))), TlsServer(spec(TicketKeys(keys)))
    stranger = TlsServer(spec(TicketKeys()))
    context = client_context(version)
    session = session_of(loopback, one, context)

    assert resumes(loopback, two, context, session)
    assert not resumes(loopback, stranger, context, session_of(loopback, one, context))


@VERSIONS
def test_new_keys_cost_old_tickets_one_handshake_and_serve_on(loopback: Loopback, version: ssl.TLSVersion) -> None:
    keys = TicketKeys()
    server = TlsServer(spec(keys))
    context = client_context(version)
    old = session_of(loopback, server, context)

    assert keys.renew(tickets.draw())

    assert not resumes(loopback, server, context, old)
    assert resumes(loopback, server, context, session_of(loopback, server, context))


def test_a_reload_makes_new_contexts_and_keeps_the_sessions(loopback: Loopback) -> None:
    keys = TicketKeys()
    context = client_context()
    session = session_of(loopback, TlsServer(spec(keys)), context)
    assert resumes(loopback, TlsServer(spec(keys)), context, session)


@VERSIONS
def test_without_tickets_nothing_is_resumed(loopback: Loopback, version: ssl.TLSVersion) -> None:
    server = TlsServer(spec(None))
    context = client_context(version)
    tls, client = connect(loopback, server, context, NAME)
    tls.send(b"x")
    assert receive(client, 1) == b"x"
    assert client.session is None or not client.session.has_ticket
    if client.session is not None:
        assert not resumes(loopback, server, context, client.session)


@VERSIONS
def test_nobody_resumes_past_another_hosts_demand_for_a_certificate(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    strict = Rules(client_auth="required", client_ca=authority().cert_pem.bytes())
    server = TlsServer(spec(TicketKeys(), OPEN, admin_example=strict))
    context = client_context(version)
    context.check_hostname = False
    session = session_of(loopback, server, context)  # as anybody, at the open host

    with pytest.raises((ssl.SSLError, OSError)):  # noqa: PT012 - by version
        _, client = connect(loopback, server, context, "admin.example", session)
        receive(client)


@VERSIONS
def test_who_was_known_is_known_again_when_it_resumes(loopback: Loopback, version: ssl.TLSVersion) -> None:
    keys = tickets.draw()
    strict = Rules(client_auth="required", client_ca=authority().cert_pem.bytes())
    one, two = TlsServer(spec(TicketKeys(keys), strict)), TlsServer(spec(TicketKeys(keys), strict))
    context = client_context(version)
    authority().issue_cert("alice@example.org", common_name="alice").configure_cert(context)
    session = session_of(loopback, one, context)

    tls, _ = connect(loopback, two, context, NAME, session)

    assert facts(tls).resumed
    known = facts(tls).client
    assert known is not None
    assert known.common_name == "alice"


def test_other_authorities_end_what_was_resumed_under_the_old_ones(loopback: Loopback) -> None:
    keys = TicketKeys()
    strict = Rules(client_auth="optional", client_ca=authority().cert_pem.bytes())
    context = client_context()
    session = session_of(loopback, TlsServer(spec(keys, strict)), context)
    stricter = attrs.evolve(strict, client_ca=strict.client_ca + leaf(NAME).cert_chain_pems[0].bytes())  # type: ignore[operator]
    assert not resumes(loopback, TlsServer(spec(keys, stricter)), context, session)


def test_where_contexts_cannot_be_reached_each_keeps_its_own_keys_and_says_so(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "LIBSSL", None)
    keys = TicketKeys()
    server = TlsServer(spec(keys))
    assert not keys.shared
    assert not keys.renew(tickets.draw())
    context = client_context()
    assert resumes(loopback, server, context, session_of(loopback, server, context))


def test_an_interpreter_with_another_layout_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_HEAD", openssl._HEAD + 8)
    assert openssl.open_library() is None


def test_a_session_goes_on_in_another_process(loopback: Loopback, tmp_path: Path) -> None:
    """As between two workers: nothing is common to the processes but the 80 bytes."""
    keys = tickets.draw()
    context = client_context()
    session = session_of(loopback, TlsServer(spec(TicketKeys(keys))), context)
    cert = leaf(NAME)
    chain, key = tmp_path / "chain", tmp_path / "key"
    chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    key.write_bytes(cert.private_key_pem.bytes())
    worker = subprocess.Popen(
        [sys.executable, "-c", ONE_CONNECTION, chain, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        worker.stdin.write(f"{keys.hex()}\n")
        worker.stdin.flush()
        port = int(worker.stdout.readline())
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", port), 20), server_hostname=NAME, session=session
        ) as client:
            assert client.session_reused
        assert worker.stdout.readline().strip() == "resumed=True"


ONE_CONNECTION = """
import socket, sys
from pathlib import Path
from tcpgate.codec.client_hello import ClientHello
from tcpgate.net.tickets import TicketKeys
from tcpgate.net.tls_server import Pair, ServerTls, TlsServer, facts
keys = TicketKeys(bytes.fromhex(sys.stdin.readline()))
pair = Pair(chain=Path(sys.argv[1]).read_bytes(), key=Path(sys.argv[2]).read_bytes())
server = TlsServer(ServerTls(pairs=(pair,), tickets=keys))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
tls = server.wrap(listener.accept()[0], ClientHello())
tls.do_handshake()
print(f"resumed={facts(tls).resumed}", flush=True)
"""


# -- openssl s_client -----------------------------------------------------------------------------------------------

S_CLIENT = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


@contextmanager
def serving(*servers: TlsServer, speaks: bool = True) -> Iterator[tuple[int, list[str]]]:
    """A port where connections get the servers in turn, as workers would; and what came of each handshake."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    outcomes: list[str] = []

    def serve() -> None:
        for server in servers:
            sock, _ = listener.accept()
            sock.settimeout(20)
            hello = parse(sock.recv(65536, socket.MSG_PEEK))
            assert isinstance(hello, ClientHello)
            tls = server.wrap(sock, hello)
            try:
                tls.do_handshake()
                outcomes.append(f"resumed={facts(tls).resumed}")
                if speaks:
                    tls.send(b"served\n")
                    tls.shutdown(socket.SHUT_WR)
                while tls.recv(100):
                    pass
            except OSError as exc:
                outcomes.append(str(exc))
            tls.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], outcomes
    finally:
        thread.join()
        listener.close()


def s_client(port: int, *options: str | Path) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout + done.stderr


@S_CLIENT
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_in_another_worker(tmp_path: Path, version: str) -> None:
    keys = tickets.draw()
    workers = (TlsServer(spec(TicketKeys(keys))), TlsServer(spec(TicketKeys(keys))))
    kept = tmp_path / "session"
    with serving(*workers) as (port, outcomes):
        first = s_client(port, version, "-ign_eof", "-sess_out", kept)
        again = s_client(port, version, "-ign_eof", "-sess_in", kept)

    assert "served" in first
    assert "New, TLSv1" in first
    assert "served" in again
    assert "Reused, TLSv1" in again
    assert outcomes == ["resumed=False", "resumed=True"]


@S_CLIENT
@pytest.mark.parametrize(("version", "alert"), [("-tls1_2", "handshake failure"), ("-tls1_3", "certificate required")])
def test_s_client_is_told_by_an_alert_why_it_is_refused(version: str, alert: str) -> None:
    strict = Rules(client_auth="required", client_ca=authority().cert_pem.bytes())
    with serving(TlsServer(spec(TicketKeys(), strict))) as (port, outcomes):
        said = s_client(port, version, "-ign_eof")

    assert f"alert {alert}" in said
    assert "Acceptable client certificate CA names" in said
    assert "trustme" in said.split("CA names")[1]
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in outcomes[0]


@S_CLIENT
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_s_client_with_an_old_version_is_told_by_an_alert(version: str) -> None:
    with serving(TlsServer(spec(TicketKeys()))) as (port, outcomes):
        said = s_client(port, version, "-cipher", "ALL:@SECLEVEL=0")

    assert "alert protocol version" in said
    assert "UNSUPPORTED_PROTOCOL" in outcomes[0]


@S_CLIENT
def test_s_client_cannot_renegotiate() -> None:
    with serving(TlsServer(spec(TicketKeys())), speaks=False) as (port, outcomes), subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as client:  # fmt: skip
        assert client.stdin is not None
        client.stdin.write(b"R\n")  # its command for it
        client.stdin.flush()
        assert client.stdout is not None
        said = client.stdout.read().decode()

    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said
    assert "Secure Renegotiation IS supported" in said  # RFC 5746, which keeps strangers' ones out
    assert "Compression: NONE" in said
    assert outcomes[0] == "resumed=False"
