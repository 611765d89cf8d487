"""What both directions of a connection share: its streams, its windows, how streams and the connection end.

Credit is never given by itself. What a peer sent is *unread* until the consumer acknowledges it; only then does it
count towards the next WINDOW_UPDATE, which goes out when half a window is owed. So a consumer that waits makes the peer
wait, and what we can be made to hold is the connection's window. What nobody will ever read (data of a stream that was
reset) is given back at once, to the connection alone.

Source: RFC 9113 5.1, 5.2, 5.4, 6.9. Pure.
"""

from __future__ import annotations

from tcpgate.codec.http2 import floods, frames
from tcpgate.codec.http2.events import ConnectionFailed, Event, StreamReset, WindowOpened
from tcpgate.codec.http2.floods import Floods
from tcpgate.codec.http2.headers import HpackIn
from tcpgate.codec.http2.settings import PeerSettings, Role, Settings
from tcpgate.codec.http2.streams import ENDED, RESET_BY_PEER, RESET_BY_US, Stream

_MOST_REMEMBERED = 400
"""Streams whose unusual end is remembered. Later frames for older ones are taken for faults."""


class Fatal(Exception):
    """The connection is over: `receive` turns this into a GOAWAY and a ConnectionFailed."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Core:
    """One connection, less its frames."""

    __slots__ = (
        "_block",
        "_events",
        "_failed",
        "_floods",
        "_gone_away",
        "_half",
        "_half_connection",
        "_highest",
        "_hpack",
        "_last_taken",
        "_next",
        "_now",
        "_only",
        "_over",
        "_owed",
        "_preface",
        "_receivable",
        "_replies",
        "_rest",
        "_stream_receivable",
        "_streams",
        "_table_told",
        "_tell_table",
        "_unacked",
        "_unread",
        "_window",
        "out",
        "peer",
        "role",
        "settings",
    )

    def __init__(self, role: Role, settings: Settings) -> None:
        self.role = role
        self.settings = settings
        self.peer = PeerSettings()
        """What the peer lets us do."""
        self.out = bytearray()
        """What must go to the peer next, whole frames in order."""
        self._rest = b""
        self._preface = frames.PREFACE if role == "server" else b""
        self._only: tuple[int, int] | None = (frames.SETTINGS, 0)
        """(type, stream) of the one frame that may come next: SETTINGS first of all, CONTINUATION inside a block."""
        self._block: tuple[int, bool, list[bytes]] | None = None
        """(flags, depends on itself, pieces) of a header block whose end has not come."""
        self._events: list[Event] = []
        self._failed: ConnectionFailed | None = None
        self._now = 0.0
        self._floods = Floods(settings.resets)
        self._replies = 0
        self._hpack = HpackIn(settings.header_list, settings.headers)
        self._table_told = False
        self._tell_table = False
        """The peer shrank a table that we do not use, and our next block must say (RFC 7541 4.2) that we use none."""

        self._streams: dict[int, Stream] = {}
        self._over: dict[int, int] = {}
        """How streams ended, of the last ones that did not just end."""
        self._highest = 0
        """The highest stream that the peer opened."""
        self._next = 1
        """The stream that we open next (client role)."""
        self._last_taken = frames.LARGEST
        """What we said in GOAWAY: streams above it are not looked at."""
        self._gone_away = False
        """The peer said GOAWAY."""

        self._window = frames.DEFAULT_WINDOW
        self._receivable = max(settings.connection_window, frames.DEFAULT_WINDOW)
        self._half_connection = self._receivable // 2
        self._owed = 0
        self._unread: dict[int, int] = {}
        """Of streams that ended as they should: what nobody has taken of them yet."""
        # Until our SETTINGS are acknowledged, the peer may go by the default (6.9.2, 6.5.3).
        self._stream_receivable = max(settings.window, frames.DEFAULT_WINDOW)
        self._half = settings.window // 2
        self._unacked = 1

        if role == "client":
            self.out += frames.PREFACE
        self.out += frames.settings(settings.pairs(role))
        if self._receivable > frames.DEFAULT_WINDOW:
            self.out += frames.window_update(0, self._receivable - frames.DEFAULT_WINDOW)

    # -- streams ----------------------------------------------------------------------------------------------------

    def _open(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(number, self.peer.window, self._stream_receivable)
        self._floods.useful += 1
        return stream

    def _close(self, stream: Stream, how: int) -> None:
        """Both sides ended it, or one reset it: it has no state any more but how it ended, and what is unread."""
        del self._streams[stream.id]
        if how != ENDED:
            self._remember(stream.id, how)
        if stream.unread:
            if how == ENDED:
                self._unread[stream.id] = stream.unread
            else:
                self._give_back(stream.unread)

    def _remember(self, number: int, how: int) -> None:
        over = self._over
        if len(over) >= _MOST_REMEMBERED:
            del over[next(iter(over))]
        over[number] = how

    def _ended_by_us(self, stream: Stream) -> None:
        stream.may_send = False
        if not stream.may_receive:
            self._close(stream, ENDED)

    def _ended_by_peer(self, stream: Stream) -> None:
        stream.may_receive = False
        if not stream.may_send:
            self._close(stream, ENDED)

    def _is_idle(self, number: int) -> bool:
        """Nobody has opened it yet (5.1)."""
        if self.role == "client":
            return number % 2 == 0 or number >= self._next
        return number % 2 == 0 or number > self._highest

    # -- ends -------------------------------------------------------------------------------------------------------

    def _fault(self, number: int, code: int, text: str) -> None:
        """A stream error (5.4.2): the peer broke a rule on this stream, or in opening it. It is over."""
        self._events.append(StreamReset(number, code, True, text))
        stream = self._streams.get(number)
        if stream is not None:
            self._close(stream, RESET_BY_US)
        self._refuse(number, code)

    def _refuse(self, number: int, code: int) -> None:
        """RST_STREAM for a stream that nobody here knows, or not any more."""
        self._remember(number, RESET_BY_US)
        self._reply(frames.rst_stream(number, code))
        if self.role == "server":
            self._count(floods.RESET)

    def _reset_by_peer(self, stream: Stream, code: int, text: str = "") -> None:
        self._close(stream, RESET_BY_PEER)
        self._events.append(StreamReset(stream.id, code, False, text))

    def _count(self, kind: int) -> None:
        flood = self._floods.count(kind, self._now)
        if flood:
            raise Fatal(frames.ENHANCE_YOUR_CALM, flood)

    def _reply(self, frame: bytes) -> None:
        """A frame that the peer made us send. It must read some before it may cause more."""
        self.out += frame
        self._replies += 1
        if self._replies > floods.REPLIES:
            raise Fatal(frames.ENHANCE_YOUR_CALM, "flood: the peer does not read what it makes us send")

    def _fail(self, fatal: Fatal) -> None:
        self._failed = ConnectionFailed(fatal.code, fatal.text)
        self.out += frames.goaway(self._highest, fatal.code, fatal.text.encode("ascii", "replace"))
        self._events.append(self._failed)
        self._streams.clear()
        self._unread.clear()
        self._rest = b""
        self._block = None

    # -- windows ----------------------------------------------------------------------------------------------------

    def _give_back(self, count: int) -> None:
        """So many bytes of the connection's window are free again."""
        self._owed += count
        if self._owed >= self._half_connection:
            self.out += frames.window_update(0, self._owed)
            self._receivable += self._owed
            self._owed = 0

    def _give_back_to(self, stream: Stream, count: int) -> None:
        stream.owed += count
        if stream.owed >= self._half and stream.may_receive:
            self.out += frames.window_update(stream.id, stream.owed)
            stream.receivable += stream.owed
            stream.owed = 0

    def _widen(self, stream: Stream, increment: int) -> bool:
        """The peer gave this stream `increment` (which SETTINGS may make negative); False: more than there can be."""
        before = stream.window
        stream.window += increment
        if stream.window > frames.LARGEST:
            return False
        if before <= 0 < stream.window and stream.may_send:
            self._events.append(WindowOpened(stream.id))
        return True
