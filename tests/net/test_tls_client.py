"""TLS to endpoints: who is believed, why another is not, and what is told of it; in a task and in the lane alike."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tcpgate.codec.client_tls import ClientTls, pin_of
from tcpgate.errors import GateError, Reason, Retry, UpstreamError
from tcpgate.net.address import Target, target_of
from tcpgate.net.connect import Connecting
from tcpgate.net.dial import dial
from tcpgate.net.greeting import Greeting, TlsGreeting
from tcpgate.net.lane import Lane
from tcpgate.net.tls_client import MAX_CONTEXTS, Contexts, EndpointSocket, Session
from tcpgate.units import parse_endpoint
from tests import tls_origin as origins
from tests.tls_origin import NAME, Shown, Wire, s_server, server_context, tls_origin

OURS = ClientTls(ca=origins.ca_pem(), name=NAME)
"""The usual way: the tests' authority counts, and the endpoint is NAME."""

FreePort = Callable[[], int]
Connect = Callable[[int, Greeting, float], Awaitable[EndpointSocket]]
"""Connects to a local port, greets, and gives the connection; UpstreamError."""


@attrs.define(eq=False)
class Asker:
    """Wants a connection of the lane."""

    made: socket.SocketType | None = None
    error: GateError | None = None
    told: trio.Event = attrs.field(factory=trio.Event)

    def connected(self, sock: socket.SocketType, _target: Target) -> None:
        self.made = sock
        self.told.set()

    def connect_failed(self, error: GateError) -> None:
        self.error = error
        self.told.set()

    def on_fault(self, exc: Exception) -> None:
        raise exc


async def by_task(port: int, greeting: Greeting, seconds: float) -> EndpointSocket:
    """As a task connects."""
    stream = await dial(f"127.0.0.1:{port}", deadline=trio.current_time() + seconds, greeting=greeting)
    assert isinstance(stream.sock, EndpointSocket)
    return stream.sock


async def by_lane(lane: Lane, port: int, greeting: Greeting, seconds: float) -> EndpointSocket:
    """As the lane does."""
    asker, target = Asker(), target_of(parse_endpoint(f"127.0.0.1:{port}"))
    Connecting(lane, (target,), trio.current_time() + seconds, asker, greeting).start()
    await asker.told.wait()
    assert not lane.timed
    assert not len(lane)
    if asker.error is not None:
        raise asker.error
    assert isinstance(asker.made, EndpointSocket)
    return asker.made


@pytest.fixture(params=["task", "lane"])
async def connect(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Connect]:
    """Both ways to connect."""
    if request.param == "task":
        yield by_task
        return
    lane = Lane(trio.current_time)
    nursery.start_soon(lane.run_forever)
    nursery.start_soon(lane.sweep_forever)
    yield partial(by_lane, lane)
    nursery.cancel_scope.cancel()
    lane.close()


def greeting(spec: ClientTls = OURS, *, host: str = "127.0.0.1", session: Session | None = None) -> Greeting:
    """TLS and nothing else."""
    return Greeting(tls=TlsGreeting(spec=spec, host=host, contexts=Contexts(), session=session))


async def refusal(connect: Connect, port: int, spec: ClientTls = OURS, seconds: float = 20.0) -> UpstreamError:
    """Why it does not come to a connection."""
    with pytest.raises(UpstreamError) as caught:
        await connect(port, greeting(spec), seconds)
    assert caught.value.retry is Retry.IF_UNSENT
    return caught.value


async def told(connect: Connect, port: int, spec: ClientTls = OURS) -> str:
    """What the page of `openssl s_server -www` says of the connection."""
    sock = await connect(port, greeting(spec), 20)
    sock.send(b"GET / HTTP/1.0\r\n\r\n")
    said = await read_all(sock)
    sock.close()
    return said.decode()


async def read_all(sock: EndpointSocket) -> bytes:
    """Up to the end."""
    said = b""
    while True:
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            return said
        said += data


# -- whom we believe ------------------------------------------------------------------------------------------------


async def test_an_endpoint_that_proves_its_name_is_spoken_to(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), origins.good()) as port:
        page = await told(connect, port)
    assert "HTTP/1.0 200" in page
    assert "TLSv1.3" in page


async def test_an_address_is_verified_as_one_and_is_no_server_name(connect: Connect) -> None:
    async with tls_origin() as origin:
        sock = await connect(origin.port, greeting(attrs.evolve(OURS, name=None)), 20)
        sock.close()
    assert origin.names == [None]  # RFC 6066 3: no literal address in server_name


async def test_the_name_that_is_asked_for_is_the_configs_before_the_addresss(connect: Connect) -> None:
    async with tls_origin() as origin:
        for host, spec in (("localhost", attrs.evolve(OURS, name=None)), ("localhost", OURS), ("localhost.", OURS)):
            (await connect(origin.port, greeting(spec, host=host), 20)).close()
        (await connect(origin.port, greeting(attrs.evolve(OURS, name=None), host="localhost."), 20)).close()
    assert origin.names == ["localhost", NAME, NAME, "localhost"]


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (origins.expired, "certificate has expired"),
        (origins.of_another, f"hostname mismatch: wants {NAME}, certificate has other.internal, 127.0.0.2"),
        (origins.self_signed, "self-signed certificate"),
        (origins.unknown, "unable to get local issuer certificate"),
    ],
)
async def test_a_certificate_that_proves_nothing_is_told_in_openssls_words(
    connect: Connect, certificate: Callable[[], Shown], says: str, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), certificate()) as port:
        error = await refusal(connect, port)
    assert error.reason is Reason.TLS_CERTIFICATE
    assert says in error.detail
    assert f"127.0.0.1:{port}" in error.detail


async def test_an_address_that_the_certificate_is_not_for_is_told(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), origins.of_another()) as port:
        error = await refusal(connect, port, attrs.evolve(OURS, name=None))
    assert error.reason is Reason.TLS_CERTIFICATE
    assert "address mismatch: wants 127.0.0.1, certificate has other.internal, 127.0.0.2" in error.detail


async def test_without_verification_any_certificate_will_do(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), origins.self_signed()) as port:
        assert "200" in await told(connect, port, ClientTls(verify=False))


async def test_the_hosts_authorities_do_not_know_ours(connect: Connect, tmp_path: Path, free_port: FreePort) -> None:
    with s_server(tmp_path, free_port(), origins.good()) as port:
        error = await refusal(connect, port, ClientTls(name=NAME))
    assert error.reason is Reason.TLS_CERTIFICATE


async def test_a_ca_file_with_the_endpoints_own_certificate_means_just_that_one(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    own = origins.self_signed()
    with s_server(tmp_path, free_port(), own) as port:
        assert "200" in await told(connect, port, ClientTls(ca=own.chain, name=NAME))


# -- pins -----------------------------------------------------------------------------------------------------------


def pins(*certificates: Shown) -> frozenset[bytes]:
    """Of their keys, by `openssl`'s reading of them."""
    import base64

    return frozenset(base64.b64decode(one.pin.removeprefix("sha256/")) for one in certificates)


@pytest.mark.parametrize("verify", [True, False])
async def test_one_of_the_pins_must_be_the_keys(
    connect: Connect, verify: bool, tmp_path: Path, free_port: FreePort
) -> None:
    spec = attrs.evolve(OURS, verify=verify, pins=pins(origins.client(), origins.good()))
    with s_server(tmp_path, free_port(), origins.good()) as port:
        assert "200" in await told(connect, port, spec)
        error = await refusal(connect, port, attrs.evolve(spec, pins=pins(origins.client())))
    assert error.reason is Reason.TLS_CERTIFICATE
    assert origins.good().pin in error.detail, "as the config would write it"


async def test_without_verification_the_pin_alone_decides(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    own = origins.self_signed()
    with s_server(tmp_path, free_port(), own) as port:
        assert "200" in await told(connect, port, ClientTls(verify=False, pins=pins(own)))
        error = await refusal(connect, port, attrs.evolve(OURS, pins=pins(own)))
    assert error.reason is Reason.TLS_CERTIFICATE
    assert "self-signed" in error.detail


async def test_nothing_is_sent_to_an_endpoint_with_another_key(connect: Connect) -> None:
    async with tls_origin() as origin:
        await refusal(connect, origin.port, attrs.evolve(OURS, pins=pins(origins.client())))
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert origin.heads == []


def test_a_pin_is_of_the_key_as_the_certificate_has_it() -> None:
    import ssl

    for certificate in (origins.good(), origins.self_signed(), origins.expired()):
        first = certificate.chain.split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        assert pin_of(ssl.PEM_cert_to_DER_cert(first)) in pins(certificate)


# -- what else an endpoint may want ---------------------------------------------------------------------------------


async def test_our_own_certificate_is_shown_to_those_who_ask(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    (tmp_path / "ca.pem").write_text(origins.ca_pem())
    wants = ["-Verify", "1", "-verify_return_error", "-CAfile", str(tmp_path / "ca.pem"), "-tls1_2"]
    ours = attrs.evolve(OURS, cert=origins.client().chain, key=origins.client().key)
    with s_server(tmp_path, free_port(), origins.good(), *wants) as port:
        assert "200" in await told(connect, port, ours)
        error = await refusal(connect, port)
    assert error.reason is Reason.TLS_HANDSHAKE
    assert "handshake failure" in error.detail


async def test_an_endpoint_with_an_old_version_only_is_refused_where_13_is_asked(
    connect: Connect, tmp_path: Path, free_port: FreePort
) -> None:
    with s_server(tmp_path, free_port(), origins.good(), "-tls1_2") as port:
        assert "TLSv1.2" in await told(connect, port)
        error = await refusal(connect, port, attrs.evolve(OURS, min_version="1.3"))
    assert error.reason is Reason.TLS_HANDSHAKE
    assert "protocol version" in error.detail


async def test_a_protocol_that_must_be_agreed_on(connect: Connect, tmp_path: Path, free_port: FreePort) -> None:
    spec = attrs.evolve(OURS, alpn=("h2",), alpn_required=True)
    async with tls_origin(context=server_context(alpn=("h2",))) as origin:
        sock = await connect(origin.port, greeting(spec), 20)
        assert sock.selected_alpn_protocol() == "h2"
        sock.close()
    with s_server(tmp_path, free_port(), origins.good()) as port:
        error = await refusal(connect, port, spec)
        assert error.reason is Reason.TLS_HANDSHAKE
        assert "it does not speak h2" in error.detail
        assert "200" in await told(connect, port, attrs.evolve(OURS, alpn=("http/1.1",)))
    with s_server(tmp_path, free_port(), origins.good(), "-alpn", "http/1.1") as port:
        error = await refusal(connect, port, spec)
    assert error.reason is Reason.TLS_HANDSHAKE
    assert error.detail.endswith(": it does not speak h2: tlsv1 alert no application protocol"), error.detail


# -- handshakes that come to nothing --------------------------------------------------------------------------------


async def raw_origin(nursery: trio.Nursery, play: Callable[[trio.SocketStream], Awaitable[None]]) -> int:
    """An endpoint without TLS of its own."""

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            await play(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, one, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def test_a_handshake_that_hangs_is_over_when_the_connect_is(connect: Connect, nursery: trio.Nursery) -> None:
    async def hang(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    error = await refusal(connect, await raw_origin(nursery, hang), seconds=0.3)
    assert error.reason is Reason.CONNECT_TIMEOUT
    assert "the TLS handshake is not over" in error.detail
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed in the handshake"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak TLS there"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "handshake failure"),
    ],
)
async def test_an_endpoint_that_does_not_shake_hands_is_told(
    connect: Connect, answer: bytes, says: str, nursery: trio.Nursery
) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        if answer:
            await stream.send_all(answer)

    error = await refusal(connect, await raw_origin(nursery, play))
    assert error.reason is Reason.TLS_HANDSHAKE
    assert says in error.detail
    nursery.cancel_scope.cancel()


async def test_a_handshake_that_nobody_waits_for_any_more_leaves_nothing(
    connect: Connect, nursery: trio.Nursery
) -> None:
    heard, ended = trio.Event(), trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        heard.set()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(65536)
        ended.set()

    port = await raw_origin(nursery, hang)
    if connect is by_task:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(connect, port, greeting(), 20)
            await heard.wait()
            waiting.cancel_scope.cancel()
    else:
        assert isinstance(connect, partial)
        lane, asker = connect.args[0], Asker()
        target = target_of(parse_endpoint(f"127.0.0.1:{port}"))
        connecting = Connecting(lane, (target,), trio.current_time() + 20, asker, greeting())
        connecting.start()
        await heard.wait()
        connecting.cancel()
        connecting.cancel()
        assert not len(lane)
        assert not lane.timed
        assert not asker.told.is_set()
    with trio.fail_after(20):
        await ended.wait()
    nursery.cancel_scope.cancel()


async def test_the_next_address_is_tried_when_one_does_not_shake_hands(nursery: trio.Nursery) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)

    lane, asker = Lane(trio.current_time), Asker()
    nursery.start_soon(lane.run_forever)
    async with tls_origin() as origin:
        ports = await raw_origin(nursery, close), origin.port
        targets = [target_of(parse_endpoint(f"127.0.0.1:{port}")) for port in ports]
        Connecting(lane, targets, trio.current_time() + 20, asker, greeting()).start()
        with trio.fail_after(20):
            await asker.told.wait()
        assert isinstance(asker.made, EndpointSocket)
        assert asker.made.getpeername()[1] == origin.port
        asker.made.close()
    nursery.cancel_scope.cancel()
    lane.close()


async def test_an_answer_that_is_cut_is_no_end(connect: Connect) -> None:
    async def cut(wire: Wire) -> None:
        await wire.head()
        await wire.say(b"HTTP/1.1 200 OK\r\n\r\nhalf of i")
        await wire.raw.aclose()

    async with tls_origin(cut) as origin:
        sock = await connect(origin.port, greeting(), 20)
        sock.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await read_all(sock)
        sock.close()


async def test_the_proxy_header_goes_before_the_handshake(connect: Connect) -> None:
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    async with tls_origin(header=len(header)) as origin:
        sock = await connect(origin.port, attrs.evolve(greeting(), header=header), 20)
        assert sock.version() == "TLSv1.3"
        sock.close()
    assert origin.wires[0].header == header


# -- sessions -------------------------------------------------------------------------------------------------------


async def test_a_later_connection_goes_on_with_the_session(connect: Connect) -> None:
    kept: list[Session] = []
    contexts = Contexts()
    first = TlsGreeting(spec=OURS, host="", contexts=contexts, remember=kept.append)
    async with tls_origin() as origin:
        sock = await connect(origin.port, Greeting(tls=first), 20)
        sock.send(b"GET / HTTP/1.1\r\n\r\n")
        while True:
            try:
                assert sock.recv(65536) == origins.OK
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
        assert kept == []
        sock.keep_session()
        sock.keep_session()
        sock.close()
        assert len(kept) == 1
        again = await connect(origin.port, Greeting(tls=attrs.evolve(first, session=kept[0])), 20)
        assert again.session_reused
        again.close()
        other = attrs.evolve(first, session=kept[0], spec=attrs.evolve(OURS, min_version="1.3"))
        anew = await connect(origin.port, Greeting(tls=other), 20)  # another context cannot
        assert not anew.session_reused
        anew.close()


# -- contexts -------------------------------------------------------------------------------------------------------


def test_endpoints_that_differ_in_name_and_pin_share_a_context() -> None:
    contexts = Contexts()
    assert contexts.get(OURS) is contexts.get(attrs.evolve(OURS, name="x", pins=frozenset({b"1"})))
    assert contexts.get(OURS) is not contexts.get(attrs.evolve(OURS, min_version="1.3"))


def test_contexts_are_kept_up_to_a_bound() -> None:
    contexts = Contexts()
    first = contexts.get(ClientTls(verify=False, alpn=("0",)))
    for index in range(MAX_CONTEXTS):
        contexts.get(ClientTls(verify=False, alpn=(str(index + 1),)))
    assert contexts.get(ClientTls(verify=False, alpn=("0",))) is not first


def test_what_is_no_pem_is_told() -> None:
    good = origins.good()
    with pytest.raises(ValueError, match="ca: "):
        Contexts().get(ClientTls(ca="nonsense"))
    with pytest.raises(ValueError, match="cert and key: "):
        Contexts().get(ClientTls(verify=False, cert=good.chain, key="nonsense"))
    with pytest.raises(ValueError, match="cert and key: key values mismatch"):
        Contexts().get(ClientTls(verify=False, cert=good.chain, key=origins.client().key))


async def test_bad_pem_is_a_failed_handshake_of_the_endpoint(connect: Connect) -> None:
    async with tls_origin() as origin:
        error = await refusal(connect, origin.port, ClientTls(ca="nonsense", name=NAME))
    assert error.reason is Reason.TLS_HANDSHAKE
    assert "ca: " in error.detail


@pytest.mark.parametrize("name", ["a" * 64 + ".example", ".example"])
async def test_a_name_that_is_none_is_a_failed_handshake(connect: Connect, name: str) -> None:
    async with tls_origin() as origin:
        error = await refusal(connect, origin.port, attrs.evolve(OURS, name=name))
    assert error.reason is Reason.TLS_HANDSHAKE


async def test_without_a_name_there_is_nothing_to_verify(connect: Connect) -> None:
    async with tls_origin() as origin:
        with pytest.raises(UpstreamError) as caught:
            await connect(origin.port, greeting(attrs.evolve(OURS, name=None), host=""), 20)
    assert caught.value.reason is Reason.TLS_CERTIFICATE
    assert "tls.name" in caught.value.detail
