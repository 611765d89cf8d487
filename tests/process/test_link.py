"""The link, one set of promises for both kinds: over a real socketpair, and through memory."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tcpgate.config import schema, validators
from tcpgate.policy.health import EndpointState
from tcpgate.process import link as link_module
from tcpgate.process.link import (
    QUEUE_LIMIT,
    UP,
    UP_LIMIT,
    Link,
    LinkClosed,
    SupervisorLink,
    WorkerLink,
    decode_up,
    encode_up,
    memory_link_pair,
    supervisor_link,
    worker_link,
)
from tcpgate.state import messages
from tcpgate.units import Networks, parse_network

Pair = tuple[SupervisorLink, WorkerLink]
COMMIT = messages.Commit(generation=1)


def socket_link_pair() -> Pair:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return supervisor_link(ours), worker_link(theirs)


@pytest.fixture(params=[socket_link_pair, memory_link_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[Callable[[], Pair]]:
    """Makes a pair, inside the run; whatever fds a test leaves open fail it."""
    before = set(os.listdir("/proc/self/fd"))
    yield request.param
    assert set(os.listdir("/proc/self/fd")) <= before


def close(*links: Link[Any, Any]) -> None:
    for link in links:
        link.close()


async def fill(link: SupervisorLink) -> None:
    """Send until the pipe, of either kind, is full."""

    async def send_forever() -> None:
        while True:
            await link.send(a_prepare(bulk=1 << 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_forever)
        await trio.testing.wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()


def a_config(bulk: int = 0) -> schema.Config:
    """One of everything that is not a plain value: networks, a secret, nested tables; and `bulk` bytes."""
    return schema.Config(
        admin=schema.Admin(bind="127.0.0.1:0", token=validators.Secret("hunter2")),
        listeners={
            "web": schema.Listener(bind=("127.0.0.1:0",), trusted_proxies=Networks([parse_network("10.0.0.0/8")]))
        },
        filters={"office": schema.AccessFilter(allow=Networks([parse_network("2001:db8::/32")]))},
        routes={"api": schema.Route(upstream="api"), "note": schema.Route(respond=schema.Respond(body="x" * bulk))},
        upstreams={
            "api": schema.Upstream(
                endpoints=(schema.Endpoint(address="10.0.0.1:80", weight=3),), health=schema.Health(http="/healthz")
            )
        },
    )


def a_prepare(bulk: int = 0, sockets: tuple[str, ...] = ()) -> messages.Prepare:
    return messages.Prepare(
        generation=7,
        config=a_config(bulk),
        sockets=sockets,
        slots={"worker": 0, "endpoint/api/10.0.0.1:80": 9},
        statuses=(
            messages.EndpointStatus(upstream="api", endpoint="10.0.0.1:80", state=EndpointState.DEGRADED, weight=0.5),
        ),
        workers=2,
        name="gate",
    )


DOWN: list[messages.Down] = [
    a_prepare(),
    COMMIT,
    messages.Abandon(generation=2),
    messages.Statuses(changed=a_prepare().statuses),
    messages.Drain(seconds=30.0),
    messages.Stop(),
    messages.ReopenLogs(),
]
UPWARD: list[messages.Up] = [
    messages.Prepared(generation=1),
    messages.Prepared(generation=1, problem="no such certificate: \udcff"),
    messages.Committed(generation=2),
    messages.Observed(upstream="api", endpoint="10.0.0.1:80", connect_failures=3, cause="connect refused"),
    messages.Told(
        kind="bug", level="error", text='\0\n"é\U0001f600', facts={"n": 1, "rtt": 0.5, "who": "x", "e": -1e300}
    ),
]


# -- what goes in comes out -----------------------------------------------------------------------------------------


async def test_every_message_arrives_as_it_was_in_order(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    for down in DOWN:
        await ours.send(down)
        assert await theirs.receive() == (down, [])
    for up in UPWARD:
        await theirs.send(up)
    for up in UPWARD:
        assert await ours.receive() == (up, [])
    close(ours, theirs)


async def test_a_secret_arrives_and_still_does_not_show(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    await ours.send(a_prepare())
    message, _ = await theirs.receive()
    assert isinstance(message, messages.Prepare)
    token = message.config.admin.token
    assert token is not None
    assert token.reveal() == "hunter2"
    assert "hunter2" not in repr(message)
    close(ours, theirs)


def test_a_config_is_the_same_after_a_pickle() -> None:
    config = a_config()
    again: schema.Config = pickle.loads(pickle.dumps(config, protocol=pickle.HIGHEST_PROTOCOL))
    assert again == config
    assert parse_network("10.1.0.0/16").network_address in again.listeners["web"].trusted_proxies
    assert parse_network("11.0.0.0/8").network_address not in again.listeners["web"].trusted_proxies


async def test_a_config_larger_than_any_buffer_arrives(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    large = a_prepare(bulk=3 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, large)
        message, _ = await theirs.receive()
    assert message == large
    close(ours, theirs)


# -- file descriptors -----------------------------------------------------------------------------------------------


def some_files(count: int) -> list[int]:
    fds = []
    for number in range(count):
        fd = os.memfd_create(str(number), os.MFD_CLOEXEC)
        os.write(fd, str(number).encode())
        fds.append(fd)
    return fds


def numbers(fds: list[int]) -> list[int]:
    return [int(os.pread(fd, 10, 0)) for fd in fds]


@pytest.mark.parametrize("count", [1, 2, 252, 253, 254, 600])
async def test_fds_arrive_all_in_order_and_closed_on_exec(pair: Callable[[], Pair], count: int) -> None:
    ours, theirs = pair()
    files = some_files(count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, a_prepare(), files)
        message, fds = await theirs.receive()
    assert message == a_prepare()
    assert numbers(fds) == list(range(count))
    assert not set(fds) & set(files)
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in [*files, *fds]:
        os.close(fd)
    close(ours, theirs)


async def test_each_message_gets_its_own_fds(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(5)
    for chosen in (files[:2], [], files[2:], []):
        await ours.send(COMMIT, chosen)
    got = [(await theirs.receive())[1] for _ in range(4)]
    assert [numbers(fds) for fds in got] == [[0, 1], [], [2, 3, 4], []]
    for fd in [*files, *(fd for fds in got for fd in fds)]:
        os.close(fd)
    close(ours, theirs)


async def test_the_sender_may_close_its_fds_before_they_have_left(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, a_prepare(bulk=1 << 20), files)
        await trio.testing.wait_all_tasks_blocked()
        for fd in files:
            os.close(fd)
        _, fds = await theirs.receive()
    assert numbers(fds) == [0, 1, 2]
    for fd in fds:
        os.close(fd)
    close(ours, theirs)


async def test_a_listening_socket_works_at_the_other_end() -> None:
    ours, theirs = socket_link_pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await ours.send(a_prepare(sockets=("127.0.0.1:0",)), [listener.fileno()])
        address = listener.getsockname()
    _, (fd,) = await theirs.receive()
    with socket.socket(fileno=fd) as inherited, socket.create_connection(address):
        inherited.settimeout(5)
        inherited.accept()[0].close()
    close(ours, theirs)


async def test_fds_that_nobody_received_are_closed_with_the_link(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(2)
    await ours.send(COMMIT, files)
    await ours.send(COMMIT, files)
    _, fds = await theirs.receive()  # the second's came along, or wait in the socket
    for fd in [*files, *fds]:
        os.close(fd)
    close(ours, theirs)  # the fixture counts


async def test_a_sender_without_descriptors_sends_nothing_and_leaks_nothing(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files) + 5, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            await ours.send(COMMIT, files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await ours.send(messages.Stop())
    assert await theirs.receive() == (messages.Stop(), [])
    for fd in files:
        os.close(fd)
    close(ours, theirs)


async def test_a_receiver_without_descriptors_says_so_instead_of_mixing_them_up() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket_link_pair()
    files = some_files(20)
    await ours.send(COMMIT, files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files) + 5, hard))
    try:
        with pytest.raises(LinkClosed, match="too many open"):
            await theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in files:
        os.close(fd)
    close(ours, theirs)
    assert len(os.listdir("/proc/self/fd")) == before


# -- nobody waits for a stuck other side ----------------------------------------------------------------------------


async def test_what_is_sent_without_waiting_arrives_though_no_task_sends(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    for up in UPWARD:
        assert theirs.send_nowait(up)
    for up in UPWARD:
        assert await ours.receive() == (up, [])
    close(ours, theirs)


def told(number: int) -> messages.Told:
    return messages.Told(kind="bug", level="error", text=f"{number} " + "x" * 1000)


async def test_a_stuck_supervisor_costs_a_worker_a_count_and_no_more(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_forever)
        sent = 0
        while theirs.send_nowait(told(sent)):
            sent += 1
            assert sent < 100_000
        assert QUEUE_LIMIT / 1100 < sent < 10_000
        assert not theirs.send_nowait(told(0))
        assert theirs.dropped == 2
        # The supervisor turns again: it hears all that was taken, in order, and there is room again.
        for number in range(sent):
            assert await ours.receive() == (told(number), [])
        assert theirs.send_nowait(COMMITTED)
        assert await ours.receive() == (COMMITTED, [])
        nursery.cancel_scope.cancel()
    close(ours, theirs)


COMMITTED = messages.Committed(generation=1)


async def test_messages_leave_in_the_order_of_the_calls_whichever_they_were(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    large = a_prepare(bulk=1 << 20)
    async with trio.open_nursery() as nursery:
        forever = await nursery.start(forever_in, ours)
        assert ours.send_nowait(messages.Commit(generation=1))
        nursery.start_soon(ours.send, large)
        await trio.testing.wait_all_tasks_blocked()
        assert ours.send_nowait(messages.Commit(generation=2))
        nursery.start_soon(ours.send, messages.Commit(generation=3))
        await trio.testing.wait_all_tasks_blocked()
        assert ours.send_nowait(messages.Commit(generation=4))
        got = [(await theirs.receive())[0] for _ in range(5)]
        forever.cancel()
    assert [message.generation for message in got] == [1, 7, 2, 3, 4]  # type: ignore[union-attr]
    close(ours, theirs)


async def forever_in(
    link: Link[Any, Any], task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await link.send_forever()


async def test_a_large_message_that_waits_does_not_use_up_the_room_of_small_ones(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, a_prepare(bulk=QUEUE_LIMIT + 1))
        await trio.testing.wait_all_tasks_blocked()
        assert ours.send_nowait(COMMIT)
        assert ours.dropped == 0
        nursery.start_soon(ours.send_forever)
        await theirs.receive()
        assert await theirs.receive() == (COMMIT, [])
        nursery.cancel_scope.cancel()
    close(ours, theirs)


# -- cancellation ---------------------------------------------------------------------------------------------------


async def test_a_send_cancelled_half_way_tears_nothing(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(2)
    # Enough that a pipe of either kind is full before the last one.
    sending = trio.CancelScope()

    async def send_many() -> None:
        with sending:
            for number in range(200):
                await ours.send(attrs.evolve(a_prepare(bulk=50_000), generation=number), files)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_many)
        await trio.testing.wait_all_tasks_blocked(0.001)
        sending.cancel()
    assert sending.cancelled_caught
    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, COMMIT)
        while True:
            message, fds = await theirs.receive()
            if message == COMMIT:
                break
            assert isinstance(message, messages.Prepare)
            assert numbers(fds) == [0, 1]
            for fd in fds:
                os.close(fd)
            got.append(message.generation)
    assert got == list(range(len(got)))
    assert got
    for fd in files:
        os.close(fd)
    close(ours, theirs)


async def test_a_send_cancelled_before_its_turn_is_not_sent(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    await fill(ours)
    async with trio.open_nursery() as nursery:
        await send_in_vain(ours)
        nursery.start_soon(ours.send, COMMIT)
        got: list[messages.Down] = []
        while not got or got[-1] != COMMIT:
            got.append((await theirs.receive())[0])
    assert messages.Abandon(generation=99) not in got
    close(ours, theirs)


async def send_in_vain(link: SupervisorLink) -> None:
    with trio.move_on_after(0.01) as scope:
        await link.send(messages.Abandon(generation=99))
    assert scope.cancelled_caught


async def test_a_receive_cancelled_half_way_loses_nothing(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    large = a_prepare(bulk=1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, large)
        tries = 0
        while True:
            tries += 1
            scope = trio.CancelScope()
            nursery.start_soon(cancel_soon, scope)
            with scope:
                message, _ = await theirs.receive()
                break
            assert tries < 1000
    assert message == large
    close(ours, theirs)


async def cancel_soon(scope: trio.CancelScope) -> None:
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    scope.cancel()


# -- the end --------------------------------------------------------------------------------------------------------


async def test_what_was_said_before_the_end_is_heard_and_then_the_end(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    assert theirs.send_nowait(COMMITTED)
    theirs.close()
    with pytest.raises(LinkClosed):
        await ours.send(COMMIT)
    assert await ours.receive() == (COMMITTED, [])
    with pytest.raises(LinkClosed):
        await ours.receive()
    close(ours)


async def test_a_closed_link_sends_nothing_and_says_so(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    close(ours, ours)  # twice is once
    assert not ours.send_nowait(COMMIT)
    assert ours.dropped == 0
    with pytest.raises(LinkClosed):
        await ours.send(COMMIT)
    with pytest.raises(LinkClosed):
        await ours.receive()
    await ours.send_forever()  # has nothing to do
    with pytest.raises(LinkClosed):
        await theirs.receive()
    assert theirs.closed
    theirs.close()


async def test_closing_wakes_whoever_waits_on_either_side(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    await fill(ours)
    ended = []

    async def until_closed(what: Callable[..., Any], *args: Any) -> None:
        with pytest.raises(LinkClosed):
            await what(*args)
        ended.append(what)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(until_closed, ours.send, COMMIT)
        nursery.start_soon(until_closed, ours.receive)
        nursery.start_soon(ours.send_forever)
        nursery.start_soon(theirs.send_forever)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        theirs.close()
    assert len(ended) == 4
    close(ours)


async def test_closing_wakes_ones_own_tasks_too(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    await fill(ours)
    ended: list[str] = []

    async def send() -> None:
        with pytest.raises(LinkClosed):
            await ours.send(COMMIT)
        ended.append("send")

    async def receive() -> None:
        with pytest.raises(LinkClosed):
            await ours.receive()
        ended.append("receive")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        nursery.start_soon(ours.send_forever)
        await trio.testing.wait_all_tasks_blocked()
        ours.close()
    assert sorted(ended) == ["receive", "send"]
    close(theirs)


async def test_a_message_too_large_is_refused_before_any_of_it_leaves(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    huge = messages.Told(kind="bug", level="error", text="x" * UP_LIMIT)
    with pytest.raises(ValueError, match="a Told of 6"):
        await theirs.send(huge)
    with pytest.raises(ValueError, match="a Told of 6"):
        theirs.send_nowait(huge)
    await theirs.send(COMMITTED)
    assert await ours.receive() == (COMMITTED, [])
    close(ours, theirs)


# -- a worker that was taken over -----------------------------------------------------------------------------------


class Payload:
    """A pickle that leaves a mark when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (MARK,)


MARK = os.path.join(tempfile.gettempdir(), f"tcpgate-unpickled-{os.getpid()}")


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(Payload()),
        pickle.dumps(COMMIT),
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'["Stop", {}]',
        b'["Prepare", {"generation": 1}]',
        b'["Committed", {"generation": "1"}]',
        b'["Committed", {"generation": true}]',
        b'["Committed", {"generation": 1.0}]',
        b'["Committed", {}]',
        b'["Committed", {"generation": 1, "more": 2}]',
        b'["Committed", [1]]',
        b'["Committed", 1]',
        b'["Committed", {"generation": 1}, 3]',
        b'[["Committed"], {"generation": 1}]',
        b'["Committed", {"generation": ' + b"9" * 5000 + b"}]",
        b'["Prepared", {"generation": 1, "problem": 3}]',
        b'["Told", {"kind": "bug", "level": "error", "text": "x", "facts": {"a": [1]}}]',
        b'["Told", {"kind": "bug", "level": "error", "text": "x", "facts": {"a": null}}]',
        b'["Told", {"kind": "bug", "level": "error", "text": "x", "facts": [1]}]',
        b'["Told", {"kind": null, "level": "error", "text": "x"}]',
        b"[" * 60_000,
        b'["Told", {"facts": ' * 3000,
    ],
    ids=lambda body: body[:40],
)
async def test_nothing_but_an_honest_message_is_believed(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    theirs.sendall(struct.pack("!IH", len(body), 0) + body)
    with pytest.raises(LinkClosed, match="cannot be believed"):
        await link.receive()
    assert link.closed
    with pytest.raises(FileNotFoundError):
        os.stat(MARK)
    theirs.close()


@pytest.mark.parametrize("head", [struct.pack("!IH", UP_LIMIT + 1, 0), b"\xff" * 6, struct.pack("!IH", 10, 1)])
async def test_a_worker_cannot_make_the_supervisor_hold_much(head: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    theirs.sendall(head)
    with pytest.raises(LinkClosed, match="it may not"):
        await link.receive()
    theirs.close()


async def test_a_worker_cannot_hand_fds_to_the_supervisor(pair: Callable[[], Pair]) -> None:
    ours, theirs = pair()
    files = some_files(1)
    await theirs.send(COMMITTED, files)
    with pytest.raises(LinkClosed, match="it may not"):
        await ours.receive()
    for fd in files:
        os.close(fd)
    close(ours, theirs)


async def test_fds_smuggled_beside_an_honest_message_are_not_taken() -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    before = len(os.listdir("/proc/self/fd"))
    body = encode_up(COMMITTED)
    socket.send_fds(theirs, [struct.pack("!IH", len(body), 0) + body], [0, 1, 2])
    assert await link.receive() == (COMMITTED, [])
    assert len(os.listdir("/proc/self/fd")) == before
    link.close()
    theirs.close()


async def test_an_end_in_the_middle_of_a_message_is_told() -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    theirs.sendall(struct.pack("!IH", 100, 0) + b"half")
    theirs.close()
    with pytest.raises(LinkClosed, match="in the middle"):
        await link.receive()


async def test_fds_that_were_announced_and_never_came_are_missed() -> None:
    ours, theirs = socket.socketpair()
    link = worker_link(ours)
    body = pickle.dumps(COMMIT)
    theirs.sendall(struct.pack("!IH", len(body), 1) + b"\0" + body)
    with pytest.raises(LinkClosed, match="1 fds were announced and 0 came"):
        await link.receive()
    theirs.close()


async def test_a_frame_may_come_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    body = encode_up(COMMITTED)

    async def trickle() -> None:
        for byte in struct.pack("!IH", len(body), 0) + body:
            theirs.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await link.receive() == (COMMITTED, [])
    link.close()
    theirs.close()


async def test_a_reset_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    link = supervisor_link(ours)
    await link.send(COMMIT)
    theirs.close()  # with unread bytes: the kernel answers ECONNRESET, not an end
    with pytest.raises(LinkClosed, match=os.strerror(errno.ECONNRESET)):
        await link.receive()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
FIELDS = sorted({field.name for kind in UP.values() for field in attrs.fields(kind)})


@given(
    body=st.one_of(
        st.binary(max_size=40),
        st.builds(lambda value: json.dumps(value).encode(), JSON),
        st.builds(
            lambda name, fields: json.dumps([name, fields]).encode(),
            st.sampled_from(sorted(UP)),
            st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
        ),
    )
)
@example(body=b'["Observed", {"upstream": "a", "endpoint": "b", "connect_failures": 3}]')
def test_whatever_bytes_come_up_they_are_a_message_or_a_value_error(body: bytes) -> None:
    try:
        message = decode_up(body)
    except ValueError:
        return
    assert type(message) in UP.values()
    for field in attrs.fields(type(message)):
        value = getattr(message, field.name)
        assert type(value) in (str, int, type(None), dict)
        assert type(value) is dict or type(value).__name__ in str(field.type)


def test_every_message_that_a_worker_has_is_in_the_table() -> None:
    assert set(UP.values()) == set(messages.Up.__args__)


def test_a_frames_limits_fit_their_fields() -> None:
    assert link_module.DOWN_LIMIT < 2**32
