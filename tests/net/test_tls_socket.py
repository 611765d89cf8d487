"""A TlsSocket against another one, and against the ssl module's own: it behaves as a plain socket does."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import select
import socket
import ssl
import struct
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from tcpgate.net import tls_socket
from tcpgate.net.openssl import LIBSSL
from tcpgate.net.tls_socket import PIECE, RECORD, TlsSocket
from tests.net.loopback import Loopback
from tests.net.tls_rig import as_tls, client_context, receive, server_context, shake, tls_pair, wait

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
LINGER_RESET = struct.pack("ii", 1, 0)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def receive_once(sock: socket.socket, ask: int = 65536) -> bytes:
    """What the first recv gives that gives anything; told of by epoll, which must not be silent."""
    while True:
        assert wait(sock, seconds=5), "epoll is silent"
        try:
            return sock.recv(ask)
        except BlockingIOError:  # a ticket
            continue


def exchange(pairs: list[tuple[TlsSocket, TlsSocket, bytes]]) -> list[bytes]:
    """Send each (from, to, data) and its end, all at once, by one epoll set; what each receiver got."""
    got = [bytearray() for _ in pairs]
    left = [memoryview(data) for _, _, data in pairs]
    open_ends = set(range(len(pairs)))
    with select.epoll() as epoll:
        wanted: dict[int, int] = {}
        for source, sink, _ in pairs:
            wanted[source.fileno()] = wanted.get(source.fileno(), 0) | select.EPOLLOUT
            wanted[sink.fileno()] = wanted.get(sink.fileno(), 0) | select.EPOLLIN
        for fd, events in wanted.items():
            epoll.register(fd, events)
        while open_ends:
            ready = dict(epoll.poll(20))
            assert ready, f"nothing is ready, and {[len(rest) for rest in left]} bytes are left"
            for index, (source, sink, _) in enumerate(pairs):
                if ready.get(source.fileno(), 0) & select.EPOLLOUT and wanted[source.fileno()] & select.EPOLLOUT:
                    try:
                        left[index] = left[index][source.send(left[index]) :]
                    except BlockingIOError:
                        continue
                    finally:
                        if not left[index]:
                            source.shutdown(socket.SHUT_WR)
                            wanted[source.fileno()] &= ~select.EPOLLOUT
                            epoll.modify(source.fileno(), wanted[source.fileno()])
                if ready.get(sink.fileno(), 0) & select.EPOLLIN and index in open_ends:
                    try:
                        data = sink.recv(65536)
                    except BlockingIOError:
                        continue
                    got[index] += data
                    if not data:
                        open_ends.discard(index)
    return [bytes(one) for one in got]


@VERSIONS
@pytest.mark.parametrize("buffer", [4096, 0])
def test_megabytes_both_ways_at_once_arrive_whole_whatever_the_kernel_holds(
    loopback: Loopback, version: ssl.TLSVersion, buffer: int
) -> None:
    server, client = tls_pair(loopback, version, buffer=buffer)
    up, down = noise(3_000_001), noise(4_000_003)

    got_up, got_down = exchange([(client, server, up), (server, client, down)])

    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()


@VERSIONS
def test_what_did_not_fit_is_not_counted_and_goes_when_there_is_room(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version, buffer=4096)
    data = noise(2_000_000)
    sent = 0
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            sent += server.send(memoryview(data)[sent:])
    assert sent < len(data)

    got = bytearray()
    while len(got) < len(data):
        assert wait(client), "nothing comes"
        with suppress(BlockingIOError):
            got += client.recv(65536)
        if sent < len(data):
            try:
                sent += server.send(memoryview(data)[sent : sent + 20_000])
            except BlockingIOError:
                continue

    assert bytes(got) == data


@VERSIONS
def test_who_has_closed_gets_no_close_notify_where_it_may_be_spared(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version)
    server.strict_end, client.strict_end = False, True
    socket.SocketType.shutdown(client, socket.SHUT_WR)
    assert receive_once(server) == b""
    assert wait(server), "it is an end for good"

    server.spare_goodbye()
    server.close()

    with pytest.raises(ConnectionResetError):
        receive_once(client)


@VERSIONS
def test_who_has_said_goodbye_and_waits_is_answered(loopback: Loopback, version: ssl.TLSVersion) -> None:
    server, client = tls_pair(loopback, version)
    client.strict_end = True
    assert client.say_goodbye()
    assert receive_once(server) == b""
    assert wait(server), "it is an end for good"

    server.spare_goodbye()
    server.close()

    assert receive_once(client) == b""


@VERSIONS
def test_pieces_of_several_records_go_out_in_order_however_little_fits(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version, buffer=4096)
    server.piece = PIECE
    data = noise(2_000_000)
    rest, got, stops = memoryview(data), bytearray(), 0
    while len(got) < len(data):
        try:
            rest = rest[server.send(rest) :]
        except BlockingIOError:
            stops += 1
            assert wait(client), "nothing comes"
        with suppress(BlockingIOError):
            got += client.recv(65536)

    assert bytes(got) == data
    assert stops, "it was never full"
    server.piece = RECORD
    assert server.send(b"short") == 5
    assert receive(client, 5) == b"short"


def test_fewer_bytes_than_were_begun_are_refused_instead_of_sent_wrong(loopback: Loopback) -> None:
    server, _ = tls_pair(loopback, buffer=4096)
    data = noise(200_000)
    with pytest.raises(BlockingIOError):  # noqa: PT012 - which of them is the first one that does not fit is the kernel's
        while True:
            server.send(data)

    with pytest.raises(OSError, match="were begun") as caught:
        server.send(b"other")

    assert caught.value.errno == errno.EPROTO


def test_small_buffers_share_a_record_and_large_ones_keep_their_order(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    small = [b"HTTP/1.1 200 OK\r\n", b"", b"content-length: 3\r\n\r\n", b"abc"]
    assert server.sendmsg(small) == len(b"".join(small))
    assert receive_once(client) == b"".join(small)  # one record, so one recv

    large = [noise(10), noise(40_000), noise(7), noise(16_384), noise(3)]
    assert server.sendmsg(large) == sum(map(len, large))
    assert receive(client, sum(map(len, large))) == b"".join(large)


@VERSIONS
def test_several_buffers_survive_a_full_socket(loopback: Loopback, version: ssl.TLSVersion) -> None:
    server, client = tls_pair(loopback, version, buffer=4096)
    chance = random.Random(4)
    data = noise(1_000_000)
    rest, got = memoryview(data), bytearray()
    while len(got) < len(data):
        buffers: list[memoryview] = []
        at = 0
        while at < len(rest) and len(buffers) < 40:  # cut anew each time: only the bytes' order is the same
            size = chance.choice((0, 1, 50, 3000, 16_384, 50_000))
            buffers.append(rest[at : at + size])
            at += size
        try:
            rest = rest[server.sendmsg(buffers) if at >= min(len(rest), RECORD) else server.send(rest) :]
        except BlockingIOError:
            assert wait(client), "nothing comes"
        try:
            got += client.recv(65536)
        except BlockingIOError:
            continue

    assert bytes(got) == data


@VERSIONS
@pytest.mark.parametrize("ask", [RECORD, 20_000, 65536])
def test_no_byte_is_stranded_where_epoll_cannot_see_it(loopback: Loopback, version: ssl.TLSVersion, ask: int) -> None:
    server, client = tls_pair(loopback, version)
    data, at = noise(102_400), 0
    for size in (1, 5000, 16_384, 16_383, 900, 1100, 16_384, 16_384, 1, 1, 13_000, 16_000):
        at += server.send(data[at : at + size])
    assert server.send(data[at:]) == len(data) - at

    got = bytearray()
    while len(got) < len(data):
        got += receive_once(client, ask)
        assert client.pending() == 0

    assert bytes(got) == data
    with pytest.raises(BlockingIOError):
        client.recv(ask)


@VERSIONS
def test_an_end_found_behind_bytes_is_told_by_epoll_again(loopback: Loopback, version: ssl.TLSVersion) -> None:
    server, client = tls_pair(loopback, version)
    server.send(noise(20_000))
    assert server.say_goodbye()  # and no FIN: nothing but close_notify says that it is over

    assert receive_once(client) == noise(20_000)

    assert wait(client, seconds=2), "the end is stranded"
    assert client.recv(65536) == b""
    assert client.recv(65536) == b""


def test_a_failure_found_behind_bytes_comes_with_the_next_receive(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    server.send(noise(20_000))
    socket.socket.send(server, b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody has sealed

    assert receive(client, 20_000) == noise(20_000)
    for _ in range(2):
        assert wait(client, seconds=2)
        with pytest.raises(OSError, match=r"bad record mac|bad decrypt|decryption failed") as caught:
            client.recv(65536)
        assert caught.value.errno == errno.EPROTO
    assert wait(server)  # the alert has really gone
    with pytest.raises(OSError, match="alert"):
        receive(server)


@VERSIONS
def test_a_stream_ends_well_by_close_notify_and_for_an_endpoint_only_so(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version)
    server.send(b"all")
    server.close()
    assert receive(client) == b"all"

    server, client = tls_pair(loopback, version)
    server.send(b"cut")
    socket.socket.shutdown(server, socket.SHUT_WR)  # a FIN that no key has signed
    assert receive(client, 3) == b"cut"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            receive(client)


@VERSIONS
def test_a_client_that_says_no_goodbye_has_ended_all_the_same_and_gets_its_answer(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version)
    client.send(b"last")
    socket.socket.shutdown(client, socket.SHUT_WR)
    assert receive(server) == b"last"

    server.send(b"answer")
    server.close()
    assert receive(client) == b"answer"


def test_an_endpoint_may_be_allowed_to_say_no_goodbye(loopback: Loopback) -> None:
    server, client = tls_pair(loopback)
    client.strict_end = False
    server.send(b"all")
    socket.socket.shutdown(server, socket.SHUT_WR)
    assert receive(client) == b"all"


@VERSIONS
def test_half_closed_a_connection_still_receives_what_was_on_its_way(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version)
    server.send(b"early")  # in the client's buffer when it half-closes: the ssl module's shutdown would eat it
    assert wait(client)
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive(server) == b"question"
    server.send(noise(50_000))
    server.shutdown(socket.SHUT_WR)

    assert receive(client) == b"early" + noise(50_000)
    with pytest.raises(BrokenPipeError):
        client.send(b"more")


@VERSIONS
@pytest.mark.parametrize("who", ["server", "client"])
def test_a_reset_says_no_goodbye_and_is_one_for_the_other_side(
    loopback: Loopback, version: ssl.TLSVersion, who: str
) -> None:
    server, client = tls_pair(loopback, version)
    one, other = (server, client) if who == "server" else (client, server)
    other.is_quiet()  # tickets are read
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    one.close()

    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            receive(other)
    with pytest.raises(BrokenPipeError):
        other.send(b"x")


def test_a_goodbye_that_has_no_room_is_owed_and_not_half_said(loopback: Loopback) -> None:
    server, client = tls_pair(loopback, buffer=4096)
    data, sent = noise(1_000_000), 0
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            sent += server.send(data[sent : sent + 300])
    assert not server.say_goodbye()

    got = bytearray()
    while len(got) < sent:
        got += receive(client, 1)
    while not server.say_goodbye():  # the piece begun must go first
        try:
            sent += server.send(data[sent : sent + 300])
        except BlockingIOError:
            got += receive(client, 1)
    server.close()

    got += receive(client)
    assert bytes(got) == data[:sent]


def test_a_close_behind_a_full_socket_still_says_goodbye_where_the_kernel_lets_it(loopback: Loopback) -> None:
    server, client = tls_pair(loopback, buffer=8192)
    # Fill the kernel's buffer from below OpenSSL, so that no piece is begun; the peer never reads that far.
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            socket.socket.send(server, bytes(1000))
    assert not server.say_goodbye()
    server.close()

    client.setblocking(False)
    raw = bytearray()
    while data := _raw(client):
        raw += data
    assert len(raw) % 1000 != 0  # close_notify is behind the zeros


def _raw(sock: socket.socket) -> bytes:
    assert wait(sock)
    return socket.socket.recv(sock, 65536)


def test_tickets_on_an_idle_connection_do_not_make_it_look_dead(loopback: Loopback) -> None:
    _, client = tls_pair(loopback, ssl.TLSVersion.TLSv1_3)
    assert wait(client), "TLS 1.3's tickets make the descriptor readable"

    assert client.is_quiet()

    assert not wait(client, seconds=0)
    assert client.is_quiet()


@VERSIONS
def test_bytes_and_ends_on_an_idle_connection_are_no_quiet_and_not_lost(
    loopback: Loopback, version: ssl.TLSVersion
) -> None:
    server, client = tls_pair(loopback, version)
    server.send(b"unasked")
    assert wait(client)
    while client.is_quiet():  # tickets may have come before
        assert wait(client)
    assert not client.is_quiet()
    assert client.recv(1, socket.MSG_PEEK) == b"u"
    assert client.recv(65536) == b"unasked"
    assert client.is_quiet()

    server.send(noise(RECORD))
    receive(client, 10, ask=10)
    assert not client.is_quiet(), "there is more of the record inside"

    server, client = tls_pair(loopback, version)
    server.close()
    while client.is_quiet():
        assert wait(client)
    assert client.recv(65536) == b""
    client.close()
    assert not client.is_quiet()


def test_a_key_update_between_two_records_is_not_noticed(loopback: Loopback) -> None:
    server, client = tls_pair(loopback, ssl.TLSVersion.TLSv1_3)
    assert LIBSSL is not None
    for round_ in range(3):
        assert LIBSSL.update_key(client._sslobj)
        client.send(b"asked %d" % round_)
        assert receive(server, 7) == b"asked %d" % round_
        server.send(noise(30_000))  # under the new keys, that the client has asked for
        assert receive(client, 30_000) == noise(30_000)


def test_a_closed_or_never_connected_one_neither_reads_nor_writes_in_plain_text(loopback: Loopback) -> None:
    server, _client = tls_pair(loopback)
    server.close()
    for use in (lambda: server.recv(10), lambda: server.send(b"x"), lambda: server.shutdown(socket.SHUT_WR)):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            use()
        assert caught.value.errno == errno.EBADF

    plain, peer = loopback.pair()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    peer.close()
    plain.setblocking(False)
    wait(plain)
    gone = as_tls(plain, server_context())
    loopback.own(gone)
    with pytest.raises(OSError, match="not connected"):
        gone.send(b"in the clear")
    with pytest.raises(OSError, match="not connected"):
        gone.do_handshake()


def test_without_the_library_a_goodbye_waits_for_silence_rather_than_losing_data(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_socket, "LIBSSL", None)
    server, client = tls_pair(loopback)
    client.is_quiet()
    client.send(b"bye")
    client.shutdown(socket.SHUT_WR)
    assert receive(server) == b"bye"

    server, client = tls_pair(loopback)
    server.send(b"on its way")
    assert wait(client)
    while client.is_quiet():
        assert wait(client)
    client.shutdown(socket.SHUT_WR)
    server.close()
    assert receive(client) == b"on its way"


def test_it_speaks_with_the_ssl_modules_own_socket(loopback: Loopback) -> None:
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    here, there = loopback.pair()
    server = as_tls(here, server_context())
    loopback.own(server)
    there.setblocking(False)
    client = plain.wrap_socket(there, do_handshake_on_connect=False)
    loopback.own(client)
    shake(server, client)
    client.send(b"hello")
    assert receive(server, 5) == b"hello"
    server.send(b"and back")
    assert wait(client)
    while True:
        try:
            assert client.recv(100) == b"and back"
            break
        except ssl.SSLWantReadError:
            assert wait(client)


def test_a_client_refuses_a_certificate_for_another_name(loopback: Loopback) -> None:
    here, there = loopback.pair()
    server, client = as_tls(here, server_context()), as_tls(there, client_context(), "other.example")
    loopback.own(server)
    loopback.own(client)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, client)


def test_an_idle_connection_gives_its_buffers_back(loopback: Loopback) -> None:
    assert LIBSSL is not None
    assert LIBSSL.release_buffers(server_context())
    accepting, asking = server_context(), client_context()

    def connected() -> tuple[TlsSocket, TlsSocket]:
        here, there = loopback.pair()
        server, client = as_tls(here, accepting), as_tls(there, asking, "gate.example")
        loopback.own(server)
        loopback.own(client)
        shake(server, client)
        server.send(noise(RECORD))
        assert receive(client, RECORD) == noise(RECORD)
        return server, client

    first = [connected() for _ in range(20)]
    before = resident()
    pairs = [connected() for _ in range(150)]

    spent = (resident() - before) / len(pairs)

    assert len(first) == 20
    assert spent < 60_000, "two ends, of which each would keep 34 KiB besides"


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_connection_that_broke_is_freed_without_the_collector(loopback: Loopback) -> None:
    here, there = loopback.pair()
    server, client = as_tls(here, server_context()), as_tls(there, client_context(), "gate.example")
    shake(server, client)
    socket.socket.send(server, b"\x17\x03\x03\x00\x20" + bytes(32))
    for _ in range(2):
        assert _fails(client) == "tls: decryption failed or bad record mac"
    server.close()
    client.close()

    kept = weakref.ref(client)
    gc.disable()
    try:
        del client
        assert kept() is None
    finally:
        gc.enable()


def _fails(sock: TlsSocket) -> str:
    """What the next receive fails of."""
    while True:
        assert wait(sock)
        try:
            sock.recv(100)
        except BlockingIOError:
            continue
        except OSError as exc:
            return exc.strerror or ""
