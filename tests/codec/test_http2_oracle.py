"""The `h2` library as the other end, and as a second opinion on what is wrong. Where we differ, a table says why."""

from __future__ import annotations

import random

import attrs
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.codec.events import Pair
from tcpgate.codec.http2 import frames as f
from tcpgate.codec.http2.events import ConnectionFailed, DataReceived, Event, HeadersReceived, StreamReset
from tcpgate.codec.http2.machine import Http2
from tcpgate.codec.http2.settings import Settings
from tests.codec.http2_peer import GET, POST, block, frame, said
from tests.codec.http2_peer import settings as settings_frame
from tests.codec.test_http2_conformance import BORNE, FATAL, RESET
from tests.codec.test_http2_heads import RIGHT_REQUESTS, WRONG_FIELDS, WRONG_LENGTHS, WRONG_REQUESTS


@attrs.define
class Heard:
    """What one side said on a stream, or was told of it."""

    heads: list[list[Pair]] = attrs.field(factory=list)
    body: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    reset: int | None = None


Talk = dict[int, Heard]


def library(*, client: bool) -> h2.connection.H2Connection:
    return h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))


class Link:
    """A machine of ours and one of h2, which say what they like and tell what they hear."""

    def __init__(self, *, we_serve: bool, window: int) -> None:
        self.ours = Http2("server" if we_serve else "client", Settings(window=window, connection_window=window * 2))
        self.theirs = library(client=we_serve)
        self.theirs.local_settings = h2.settings.Settings(
            client=we_serve, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.theirs.initiate_connection()
        self.said_by_us: Talk = {}
        self.said_by_them: Talk = {}
        self.told_to_us: Talk = {}
        self.told_to_them: Talk = {}
        self.pump()

    def pump(self) -> None:
        """Carry bytes both ways until nobody says anything."""
        while True:
            ours, theirs = self.ours.take_out(), self.theirs.data_to_send()
            if not ours and not theirs:
                return
            for told in self.ours.receive(theirs, 0.0):
                self.tell_us(told)
            for event in self.theirs.receive_data(ours):
                self.tell_them(event)

    def tell_us(self, event: Event) -> None:
        """Note what our machine told; read everything at once."""
        assert not isinstance(event, ConnectionFailed), event
        if not isinstance(event, HeadersReceived | DataReceived | StreamReset):
            return
        heard = self.told_to_us.setdefault(event.stream, Heard())
        match event:
            case HeadersReceived():
                heard.heads.append(list(event.fields))
                heard.ended = event.end
            case DataReceived():
                heard.body += event.data
                heard.ended = event.end
                self.ours.acknowledge(event.stream, event.flow)
            case StreamReset():
                assert not event.by_us, event
                heard.reset = event.code

    def tell_them(self, event: h2.events.Event) -> None:
        """Note what h2 told."""
        number = getattr(event, "stream_id", 0)
        if not number or isinstance(event, h2.events.WindowUpdated):
            return
        heard = self.told_to_them.setdefault(number, Heard())
        match event:
            case h2.events.DataReceived():
                heard.body += event.data or b""
                self.theirs.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.StreamEnded():
                heard.ended = True
            case h2.events.StreamReset():
                heard.reset = int(event.error_code or 0)
            case (
                h2.events.RequestReceived()
                | h2.events.ResponseReceived()
                | h2.events.InformationalResponseReceived()
                | h2.events.TrailersReceived()
            ):
                heard.heads.append([(bytes(name), bytes(value)) for name, value in event.headers or ()])

    # -- saying something -------------------------------------------------------------------------------------------

    def we_send_head(self, number: int, head: list[Pair], end: bool) -> None:
        """A head or trailers of ours."""
        self.ours.send_headers(number, head, end)
        heard = self.said_by_us.setdefault(number, Heard())
        heard.heads.append(head)
        heard.ended = end

    def we_send_data(self, number: int, data: bytes, end: bool) -> None:
        """As much of a body as the windows hold."""
        count = self.ours.send_data(number, data, end)
        heard = self.said_by_us[number]
        heard.body += data[:count]
        heard.ended = end and count == len(data)

    def they_send_head(self, number: int, head: list[Pair], end: bool) -> None:
        """A head or trailers of h2's."""
        self.theirs.send_headers(number, head, end)
        heard = self.said_by_them.setdefault(number, Heard())
        heard.heads.append(head)
        heard.ended = end

    def they_send_data(self, number: int, data: bytes, end: bool, padding: int) -> None:
        """As much of a body as the windows hold."""
        room = min(self.theirs.local_flow_control_window(number), self.theirs.max_outbound_frame_size) - padding - 1
        if room < 0:
            return
        data = data[:room]
        self.theirs.send_data(number, data, end, pad_length=padding or None)
        heard = self.said_by_them[number]
        heard.body += data
        heard.ended = end


REQUEST: list[Pair] = list(POST)
RESPONSE: list[Pair] = [(b":status", b"200"), (b"date", b"x"), (b"set-cookie", b"a=b")]
EARLY: list[Pair] = [(b":status", b"103"), (b"link", b"</a>")]
TRAILERS: list[Pair] = [(b"grpc-status", b"0")]


class Conversation:
    """Random steps of both sides, each of which is allowed where it is taken."""

    def __init__(self, rng: random.Random, *, we_serve: bool) -> None:
        self.rng = rng
        self.we_serve = we_serve
        self.both = Link(we_serve=we_serve, window=rng.choice([100, 20_000, 65_536]))
        self.open: list[int] = []

    def run(self, steps: int) -> None:
        """Take `steps` steps, carrying bytes now and then."""
        for _ in range(steps):
            if len(self.open) < 8 and self.rng.random() < 0.3:
                self.begin()
            elif self.open:
                self.go_on(self.rng.choice(self.open))
            if self.rng.random() < 0.6:
                self.both.pump()
        self.both.pump()

    def begin(self) -> None:
        """The client opens a stream; the server hears of it at once, so that both may go on."""
        end = self.rng.random() < 0.4
        head = [*REQUEST, (b"x-id", b"%d" % self.rng.randrange(5))]
        if self.we_serve:
            number = self.both.theirs.get_next_available_stream_id()
            self.both.they_send_head(number, head, end)
        else:
            if not self.both.ours.can_open:
                return
            number = self.both.ours.open_stream(head, end)
            self.both.said_by_us[number] = Heard(heads=[head], ended=end)
        self.both.pump()
        self.open.append(number)

    def go_on(self, number: int) -> None:
        """One more step on a stream, by either side."""
        said = self.both.said_by_us if (ours := self.rng.random() < 0.5) else self.both.said_by_them
        serves = ours == self.we_serve
        mine = said.get(number) or Heard()
        end = self.rng.random() < 0.2
        data = b"x" * self.rng.choice([0, 1, 50, 1000, 50_000])
        if mine.ended:
            return
        if self.rng.random() < 0.04:
            self.reset(number, ours)
        elif serves and not any(head[0][1] == b"200" for head in mine.heads):
            early = self.rng.random() < 0.2
            send = self.both.we_send_head if ours else self.both.they_send_head
            send(number, EARLY if early else RESPONSE, end and not early)
        elif self.rng.random() < 0.1:
            send = self.both.we_send_head if ours else self.both.they_send_head
            send(number, TRAILERS, True)
        elif ours:
            self.both.we_send_data(number, data, end)
        else:
            self.both.they_send_data(number, data, end, self.rng.choice([0, 0, 7]))

    def reset(self, number: int, ours: bool) -> None:
        """Either side gives up on a stream; what is on its way is carried first, since a reset may overtake nothing."""
        self.both.pump()
        if ours:
            self.both.ours.reset(number, f.CANCEL)
            self.both.said_by_us.setdefault(number, Heard()).reset = f.CANCEL
        else:
            self.both.theirs.reset_stream(number, f.CANCEL)
            self.both.said_by_them.setdefault(number, Heard()).reset = f.CANCEL
        self.both.pump()
        self.open.remove(number)


@pytest.mark.parametrize("we_serve", [True, False])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_both_hear_what_the_other_said(we_serve: bool, seed: int) -> None:
    talk = Conversation(random.Random(seed), we_serve=we_serve)
    talk.run(60)
    assert talk.both.told_to_us == talk.both.said_by_them
    assert talk.both.told_to_them == talk.both.said_by_us
    assert talk.both.ours.streams == talk.both.theirs.open_inbound_streams + talk.both.theirs.open_outbound_streams


# -- a second opinion -----------------------------------------------------------------------------------------------


def they_refuse(data: bytes) -> bool:
    """h2 ends the connection or resets a stream for what a client says after its preface."""
    server = library(client=False)
    server.initiate_connection()
    server.receive_data(f.PREFACE + settings_frame())
    server.data_to_send()
    try:
        server.receive_data(data)
    except (h2.exceptions.ProtocolError, ValueError):
        return True
    return any(kind == f.RST_STREAM for kind, *_ in said(server.data_to_send()))


def we_refuse(data: bytes) -> str:
    """The rule for which ours does; "" if it does not."""
    server = Http2("server")
    server.receive(f.PREFACE + settings_frame(), 0.0)
    server.take_out()
    rules = [
        event.text
        for event in server.receive(data, 0.0)
        if isinstance(event, ConnectionFailed) or (isinstance(event, StreamReset) and event.by_us)
    ]
    silently = any(kind == f.RST_STREAM for kind, *_ in said(server.take_out()))
    return rules[0] if rules else "a stream that is over" if silently else ""


def request(fields: tuple[Pair, ...]) -> bytes:
    return frame(f.HEADERS, f.END_HEADERS, 1, block(fields))


CASES: dict[str, bytes] = {
    **{name: data for name, (data, _) in FATAL.items()},
    **{name: data for name, (data, _) in RESET.items()},
    **BORNE,
    **{f"request {fields}": request(fields) for fields in RIGHT_REQUESTS},
    **{f"request {fields}": request(fields) for fields, _ in WRONG_REQUESTS},
    **{f"fields {fields}": request(GET + fields) for fields, _ in WRONG_FIELDS + WRONG_LENGTHS},
}
STRICTER: dict[str, str] = {
    "frame: larger": "h2 waits for the rest of a frame that it will not take",
    "SETTINGS_ENABLE_CONNECT_PROTOCOL": "RFC 8441 3: it is not taken back",
    "SETTINGS_NO_RFC7540_PRIORITIES": "RFC 9218 2.1, newer than h2's table",
    "Content-Length: without content": "h2 looks at lengths only when DATA comes",
    "DATA: not as long": "the same, before trailers",
    "Content-Length: more than one": "who takes the first and who the last differ: the strict grammar's rule",
    "Content-Length: not a single decimal": "numbers above 2^63 overflow elsewhere: the strict grammar's rule",
    "HEADERS: in a tunnel": "RFC 9113 8.5",
    "CONNECT: other pseudo-header fields": "RFC 9113 8.5: :authority, not Host",
    "CONNECT: no port": "RFC 9110 9.3.6",
    ":method": "it is written into a request line",
    ":scheme": "a gateway for http and https",
    ":path": "it is written into a request line",
    ":protocol": "it is written into an Upgrade field",
    ":authority": "it is written into a Host field",
    "field: a control byte": "the strict grammar's rule",
}
"""Our rules that h2 does not have, and why we have them."""
LAXER: dict[str, str] = {
    f"request {(*GET, (b'host', b'Example.Com'))}": "hosts are the same in any case (RFC 3986 3.2.2)",
}
"""What h2 refuses and we take, and why."""


@pytest.mark.parametrize(("name", "data"), CASES.items(), ids=CASES)
def test_h2_refuses_what_we_refuse(name: str, data: bytes) -> None:
    rule = we_refuse(data)
    if they_refuse(data):
        assert rule or name in LAXER
    elif rule:
        assert rule.startswith(tuple(STRICTER))


def test_every_difference_is_still_one() -> None:
    for name in LAXER:
        assert they_refuse(CASES[name])
        assert not we_refuse(CASES[name])
    rules = [we_refuse(data) for data in CASES.values() if not they_refuse(data)]
    assert not [rule for rule in STRICTER if not any(found.startswith(rule) for found in rules)]
