"""Every message of the corpus through both codecs: what reaches the origin, what reaches the client, what follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import h11
import pytest

from tests.codec.corpus import PROBE, Forwarded, RequestCase, ResponseCase, load_requests, load_responses
from tests.codec.memory_gateway import NAME, PEER, MemoryGateway, Reader, Recorded

REQUESTS = load_requests()
RESPONSES = load_responses()
PEER_TEXT = str(PEER).encode()
MANY = 4096
"""Longer messages are cut only around their ends when they are sent byte by byte."""


def cuts(raw: bytes) -> list[list[bytes]]:
    """`raw` as one read, and as reads of one byte (long runs in its middle kept together)."""
    edge = MANY if len(raw) <= 2 * MANY else 512
    middle = raw[edge : max(edge, len(raw) - edge)]
    singles = [raw[at : at + 1] for at in range(min(edge, len(raw)))]
    tail = raw[edge + len(middle) :]
    trickle = [*singles, *([middle] if middle else []), *(tail[at : at + 1] for at in range(len(tail)))]
    return [[raw] if raw else [], trickle]


def read_answers(out: bytes, methods: Iterable[bytes]) -> list[Recorded]:
    """The responses in `out`, read as the answers to requests of `methods`; what is left over fails the test."""
    answers: list[Recorded] = []
    for method in methods:
        reader = Reader(asked(method))
        reader.read(out)
        answers += reader.messages
        out = reader.wire.trailing_data[0] if reader.messages and reader.messages[-1].complete else b""
    assert not out, "an answer more than there are requests"
    return answers


def asked(method: bytes) -> h11.Connection:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a.test"), ("Upgrade", "websocket")]))
    client.send(h11.EndOfMessage())
    return client


def has(found: Recorded, wanted: Forwarded | ResponseCase, peer: bytes = PEER_TEXT, gateway: bytes = NAME) -> None:
    """`found` carries what `wanted` names, and not what it bans."""
    fields = found.fields()
    for name, value in wanted.fields.items():
        expected = value.replace(b"<peer>", peer).replace(b"<name>", gateway)
        assert fields.get(name) == expected, name
    for name in wanted.absent:
        assert name not in fields
    assert found.body == wanted.body
    assert found.trailers == dict(wanted.trailers)


def forwarded_as(found: Recorded, wanted: Forwarded, peer: bytes = PEER_TEXT, gateway: bytes = NAME) -> None:
    """The origin got `wanted`."""
    assert isinstance(found.head, h11.Request)
    assert (found.head.method, found.head.target) == (wanted.method, wanted.target)
    assert found.fields()[b"host"] == wanted.host
    has(found, wanted, peer, gateway)


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_a_request_has_the_verdict_of_the_corpus(case: RequestCase) -> None:
    for reads in cuts(case.raw):
        gateway = MemoryGateway()
        for data in reads:
            gateway.receive(data)
        if case.eof:
            gateway.receive(b"")
        assert len(gateway.requests) == len(case.forwarded)
        for found, wanted in zip(gateway.requests, case.forwarded, strict=True):
            forwarded_as(found, wanted)
        assert statuses(gateway, case) == list(case.answers)
        look_after(gateway, case)


def statuses(gateway: MemoryGateway, case: RequestCase) -> list[int]:
    """The final statuses that the client got."""
    methods = [wanted.method for wanted in case.forwarded]
    methods += [b"GET"] * (len(case.answers) - len(methods))
    answers = read_answers(bytes(gateway.out), methods[: len(case.answers)])
    assert all(answer.complete for answer in answers)
    return [answer.head.status_code for answer in answers if isinstance(answer.head, h11.Response)]


def look_after(gateway: MemoryGateway, case: RequestCase) -> None:
    """The connection is what the case says it is, and a probe on it harms and is harmed by nobody."""
    before = len(gateway.requests)
    assert gateway.closed is (case.after == "closed")
    gateway.out.clear()
    if case.after == "waiting":
        return
    gateway.receive(PROBE)
    probes = gateway.requests[before:]
    assert len(probes) == (1 if case.after == "open" else 0)
    for probe in probes:
        forwarded_as(probe, Forwarded(target=b"/probe", host=b"probe.test"))
        assert read_answers(bytes(gateway.out), [b"GET"])[0].body == b"ok"
    assert gateway.closed or probes


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case.name)
def test_a_response_has_the_verdict_of_the_corpus(case: ResponseCase) -> None:
    for reads in cuts(case.raw):
        gateway = answered_with(case, reads)
        client = Reader(asked(case.method))
        client.read(bytes(gateway.out), eof=gateway.closed)
        assert tuple(client.informational) == case.informational
        assert gateway.tunnel is case.tunnel
        assert gateway.client.can_reuse is case.reuse
        if case.tunnel:
            assert client.upgraded is not None
            has(Recorded(h11.Response(status_code=200, headers=client.upgraded.headers.raw_items())), case)
        else:
            check_answer(client, case)


def answered_with(case: ResponseCase, reads: list[bytes]) -> MemoryGateway:
    """A gateway whose client has asked, and whose origin has answered with `reads`."""
    gateway = MemoryGateway(origin=lambda _: [*reads, b""] if case.eof else reads)
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % case.upgrade if case.upgrade else b""
    gateway.receive(b"%b / HTTP/%b\r\nHost: a.test\r\n%b\r\n" % (case.method, case.version, upgrade))
    return gateway


def check_answer(client: Reader, case: ResponseCase) -> None:
    """The final response that the client got is the one of the case."""
    (answer,) = client.messages
    assert isinstance(answer.head, h11.Response)
    assert answer.head.status_code == case.status
    assert answer.complete is not case.cut
    if case.status == 502 or case.cut:
        return
    assert case.reason is None or answer.head.reason == case.reason
    assert b"date" in answer.fields()
    has(answer, case)


def test_the_corpus_covers_what_it_must() -> None:
    cases: list[RequestCase | ResponseCase] = [*REQUESTS, *RESPONSES]
    names = [case.name for case in cases]
    assert len(names) == len(set(names)), "a name is used twice"
    assert len(REQUESTS) >= 250
    assert len(RESPONSES) >= 150
    assert all(case.rfc for case in cases)
    refused: Mapping[str, int] = {case.name: case.answers[-1] for case in REQUESTS if case.answers}
    assert set(refused.values()) >= {200, 400, 413, 414, 417, 421, 431, 501, 505}
