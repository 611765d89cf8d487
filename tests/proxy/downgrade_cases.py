"""Requests that HTTP/2 can say and HTTP/1.1 must not hear otherwise; the table of test_http2_downgrade.py.

A case is the frames of stream 1, and what comes of them: how the stream ends for its client, and for what passes the
head that its origin sees, without the fields that the gateway adds.

Source: RFC 9113 8; Kettle, "HTTP/2: The Sequel is Always Worse" (2021); Emil Lerner's http2smugl.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tests.proxy.http2_raw import Pair, data, headers

BAD = "reset PROTOCOL_ERROR"
OUGHT = b"GET / HTTP/1.1\r\nHost: t\r\n"


@attrs.frozen(kw_only=True)
class Case:
    """One request."""

    name: str
    said: bytes
    comes: str
    sees: bytes | None = None
    """The head and the body; None: no origin hears of it."""


def pseudo(
    method: bytes | None = b"GET", scheme: bytes | None = b"http", authority: bytes | None = b"t",
    path: bytes | None = b"/",
) -> list[Pair]:  # fmt: skip
    """The four; None: not there."""
    pairs = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)]
    return [(name, value) for name, value in pairs if value is not None]


def bad(name: str, *fields: Pair, head: Sequence[Pair] | None = None, comes: str = BAD, then: bytes = b"") -> Case:
    """What is refused. `then`: the frames behind its head."""
    said = headers([*(pseudo() if head is None else head), *fields], end=not then) + then
    return Case(name=name, said=said, comes=comes)


def good(
    name: str, *fields: Pair, sees: bytes = OUGHT, head: Sequence[Pair] | None = None, then: bytes = b"",
    body: bytes = b"", comes: str = "200",
) -> Case:  # fmt: skip
    """What passes: the head that is seen, but for the empty line, and the body as it is framed."""
    said = headers([*(pseudo() if head is None else head), *fields], end=not then) + then
    return Case(name=name, said=said, comes=comes, sees=sees + b"\r\n" + body)


BYTES = {
    "CR": b"\r", "LF": b"\n", "CRLF": b"\r\n", "NUL": b"\0", "a control byte": b"\x01", "DEL": b"\x7f",
}  # fmt: skip
IN_NAMES = {
    **BYTES,
    "a space": b" ",
    "a tab": b"\t",
    "a colon": b":",
    "a byte beyond ASCII": b"\xe9",
    "a bracket": b"(",
}
SMUGGLED = b"\r\ntransfer-encoding: chunked\r\n\r\nGET /evil HTTP/1.1\r\nhost: t\r\n\r\n"

NAMES = [
    *(bad(f"{what} within a name", (b"x" + byte + b"y", b"1")) for what, byte in IN_NAMES.items()),
    *(bad(f"{what} behind a name", (b"x" + byte, b"1")) for what, byte in IN_NAMES.items()),
    *(bad(f"{what} before a name", (byte + b"x", b"1")) for what, byte in IN_NAMES.items()),
    bad("a whole request in a name", (b"x: y" + SMUGGLED, b"1")),
    bad("an empty name", (b"", b"1")),
    bad("upper case in a name", (b"X-Up", b"1")),
    bad("Host in upper case", (b"Host", b"t")),
    bad("Content-Length in upper case", (b"Content-Length", b"0")),
    bad("Transfer-Encoding in upper case", (b"Transfer-Encoding", b"chunked")),
]
VALUES = [
    *(bad(f"{what} within a value", (b"x", b"a" + byte + b"b")) for what, byte in BYTES.items()),
    *(bad(f"{what} behind a value", (b"x", b"a" + byte)) for what, byte in BYTES.items()),
    *(bad(f"{what} within a cookie", (b"cookie", b"a" + byte + b"b")) for what, byte in BYTES.items()),
    *(bad(f"{what} in :path", head=pseudo(path=b"/a" + byte + b"b")) for what, byte in BYTES.items()),
    *(bad(f"{what} in :method", head=pseudo(method=b"GET" + byte)) for what, byte in BYTES.items()),
    *(bad(f"{what} in :authority", head=pseudo(authority=b"t" + byte)) for what, byte in BYTES.items()),
    *(bad(f"{what} in :scheme", head=pseudo(scheme=b"http" + byte)) for what, byte in BYTES.items()),
    bad("a whole request in a value", (b"x", b"a" + SMUGGLED)),
    bad("a whole request in :path", head=pseudo(path=b"/ HTTP/1.1" + SMUGGLED)),
    bad("a whole request in :method", head=pseudo(method=b"GET / HTTP/1.1" + SMUGGLED)),
    bad("a whole request in :authority", head=pseudo(authority=b"t" + SMUGGLED)),
    bad("a space before a value", (b"x", b" a")),
    bad("a tab behind a value", (b"x", b"a\t")),
    good("a tab within a value", (b"x", b"a\tb"), sees=OUGHT + b"x: a\tb\r\n"),
    good("bytes beyond ASCII in a value", (b"x", b"\xe9\xff"), sees=OUGHT + b"x: \xe9\xff\r\n"),
    good("an empty value", (b"x", b""), sees=OUGHT + b"x: \r\n"),
    good("colons in a value", (b"x", b":a: b:"), sees=OUGHT + b"x: :a: b:\r\n"),
]

POST = pseudo(method=b"POST")
POSTED = b"POST / HTTP/1.1\r\nHost: t\r\n"
ABC = data(b"abc")


def length(value: bytes) -> Pair:
    """Content-Length."""
    return b"content-length", value


FRAMING = [
    *(
        bad(f"a length of {value!r}", length(value), head=POST, then=ABC)
        for value in (b"+3", b"-3", b"0x3", b"3,3", b"3, 3", b"3 3", b"", b" 3", b"3 ", b"3.0", b"3e0",
            b"9" * 20, b"\xb3")
    ),
    bad("two lengths that agree", length(b"3"), length(b"3"), head=POST, then=ABC),
    bad("two lengths that differ", length(b"3"), length(b"4"), head=POST, then=ABC),
    bad("more content than the length", length(b"2"), head=POST, then=ABC),
    bad("content where the length is 0", length(b"0"), head=POST, then=ABC),
    bad("less content than the length", length(b"4"), head=POST, then=ABC),
    bad("a length without content", length(b"3"), head=POST),
    bad("a length, and an empty DATA", length(b"3"), head=POST, then=data()),
    bad("a length, and trailers too early", length(b"4"), head=POST, then=data(b"abc",
        end=False) + headers([(b"x", b"1")])),
    bad("a length in disguise", (b"content_length", b"3"), comes="400"),
    bad("a coding in disguise", (b"transfer_encoding", b"chunked"), comes="400"),
    good("a length that is true", length(b"3"), head=POST, then=ABC, sees=POSTED + b"Content-Length: 3\r\n",
        body=b"abc"),
    good("a length of 0, ended by DATA", length(b"0"), head=POST, then=data(), sees=POSTED + b"Content-Length: 0\r\n"),
    good("a length of 0, ended at once", length(b"0"), head=POST, sees=POSTED + b"Content-Length: 0\r\n"),
    good("content without a length", head=POST, then=ABC, sees=POSTED + b"Transfer-Encoding: chunked\r\n",
         body=b"3\r\nabc\r\n0\r\n\r\n"),
    good("content that is a request", head=POST, then=data(b"0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n"),
         sees=POSTED + b"Transfer-Encoding: chunked\r\n",
         body=b"1b\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n\r\n0\r\n\r\n"),
    good("a GET with content", then=ABC, sees=OUGHT + b"Transfer-Encoding: chunked\r\n", body=b"3\r\nabc\r\n0\r\n\r\n"),
    *(bad(f"{name.decode()}: {value.decode()}", (name, value)) for name, value in (
        (b"connection", b"close"), (b"connection", b"x"), (b"proxy-connection", b"keep-alive"), (b"keep-alive", b"5"),
        (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity"), (b"transfer-encoding", b""),
        (b"upgrade", b"websocket"), (b"upgrade", b"h2c"), (b"te", b"gzip"), (b"te", b"trailers, gzip"), (b"te", b""),
    )),
    bad("connection: transfer-encoding", (b"connection", b"transfer-encoding"), head=POST, then=ABC),
    bad("transfer-encoding with content", (b"transfer-encoding", b"chunked"), head=POST,
        then=data(b"0\r\n\r\nGET /evil")),
]  # fmt: skip

TARGETS = [
    *(bad(f"the path {path.decode('latin-1')!r}", head=pseudo(path=path)) for path in (
        b"", b"*", b"http://t/", b"https://evil/", b"a", b"?a", b"/a b", b"/a\tb", b"/a#b", b"#", b"/\xe9",
            b"t:80", b"../",
        b" /", b"/ ", b"/ HTTP/1.1",
    )),
    *(bad(f"the path {path.decode('latin-1')!r}", head=pseudo(path=path), comes="400") for path in (
        b"/%", b"/%zz", b"/%00", b"/a%2f..%2fb", b"/a\\b", b"/..;/b",
    )),
    *(good(f"the path {path.decode('latin-1')!r}", head=pseudo(path=path),
        sees=b"GET " + path + b" HTTP/1.1\r\nHost: t\r\n")
      for path in (b"//evil/x", b"/a//b", b"/%20", b"/a?b?c", b"/?", b"/a?http://x/", b"/@evil", b"/a:80")),
    good("OPTIONS *", head=pseudo(method=b"OPTIONS", path=b"*"), sees=b"OPTIONS * HTTP/1.1\r\nHost: t\r\n"),
    bad("a path that is too long", head=pseudo(path=b"/" + b"a" * 9000), comes="414"),
    *(bad(f"the authority {name.decode('latin-1')!r}", head=pseudo(authority=name)) for name in (
        b"", b"u@t", b"u:p@t", b"@t", b"t:x", b"t:99999", b"t:-1", b"t/x", b"t?x", b"t#x", b"t x", b"t,u", b"[::1",
        b"::1", b"t:80:80", b"http://t", b"\xe9", b"t\\x",
    )),
    good("an authority with an empty port", head=pseudo(authority=b"t:"), sees=OUGHT),
    good("an authority with a port", head=pseudo(authority=b"t:8080"), sees=OUGHT.replace(b"t\r\n", b"t:8080\r\n")),
    good("an authority in upper case", head=pseudo(authority=b"T.Ex"), sees=OUGHT.replace(b"t\r\n", b"T.Ex\r\n")),
    good("an address", head=pseudo(authority=b"[::1]:80"), sees=OUGHT.replace(b"t\r\n", b"[::1]:80\r\n")),
    bad("a Host that differs", (b"host", b"evil")),
    bad("a Host that differs by its port", (b"host", b"t:80")),
    bad("an empty Host", (b"host", b"")),
    bad("two Hosts that agree", (b"host", b"t"), (b"host", b"t")),
    bad("two Hosts instead of :authority", (b"host", b"t"), (b"host", b"u"), head=pseudo(authority=None)),
    bad("neither Host nor :authority", head=pseudo(authority=None)),
    bad("a Host with user information instead of :authority", (b"host", b"u@t"), head=pseudo(authority=None)),
    good("a Host that agrees", (b"host", b"t")),
    good("a Host that agrees but for case", (b"host", b"T")),
    good("a Host instead of :authority", (b"host", b"t"), head=pseudo(authority=None)),
]  # fmt: skip

PSEUDO = [
    *(bad(f"{name.decode()} twice", head=[*pseudo(), (name, value)]) for name, value in pseudo()),
    *(bad(f"{name.decode()} behind a field", head=[*(p for p in pseudo() if p[0] != name), (b"x", b"1"), (name, value)])
      for name, value in pseudo()),
    bad("no :method", head=pseudo(method=None)),
    bad("no :scheme", head=pseudo(scheme=None)),
    bad("no :path", head=pseudo(path=None)),
    bad("no field at all", head=[]),
    bad("one that nobody knows", head=[*pseudo(), (b":evil", b"1")]),
    bad(":status", head=[*pseudo(), (b":status", b"200")]),
    bad("a bare colon", head=[*pseudo(), (b":", b"1")]),
    bad(":Path", head=[*pseudo(path=None), (b":Path", b"/")]),
    bad(":protocol without CONNECT", head=[*pseudo(), (b":protocol", b"websocket")]),
    *(bad(f"the method {name.decode('latin-1')!r}", head=pseudo(method=name)) for name in (
        b"", b"G T", b"GET ", b" GET", b"GET / HTTP/1.1", b"G(T", b"\xe9",
    )),
    bad("a method that is too long", head=pseudo(method=b"M" * 100), comes="501"),
    good("PRI, without what makes a preface of it", head=pseudo(method=b"PRI"), sees=b"PRI / HTTP/1.1\r\nHost: t\r\n"),
    bad("PRI *", head=pseudo(method=b"PRI", path=b"*")),
    good("a method in lower case", head=pseudo(method=b"get"), sees=b"get / HTTP/1.1\r\nHost: t\r\n"),
    bad("CONNECT with :path", head=pseudo(method=b"CONNECT")),
    bad("CONNECT without a port", head=pseudo(method=b"CONNECT", scheme=None, path=None)),
    bad("CONNECT", head=pseudo(b"CONNECT", None, b"t:443", None), comes="501"),
    bad("CONNECT for what nobody knows", head=[*pseudo(method=b"CONNECT"), (b":protocol", b"evil")], comes="501"),
    bad("CONNECT for a WebSocket, ended at once", head=[*pseudo(method=b"CONNECT"), (b":protocol", b"websocket")],
        comes="400"),
    *(bad(f"the scheme {name.decode('latin-1')!r}", head=pseudo(scheme=name)) for name in (
        b"", b"ftp", b"file", b"http ", b"http://evil/?", b"httpx", b"http:",
    )),
    bad("https over what is not secure", head=pseudo(scheme=b"https"), comes="421"),
    good("a scheme in upper case", head=pseudo(scheme=b"HTTP")),
]  # fmt: skip


def trailed(name: str, *pairs: Pair, end: bool = True) -> Case:
    """Trailers that are refused."""
    return bad(name, head=POST, then=data(b"abc", end=False) + headers(pairs, end=end))


TRAILERS = [
    trailed("a pseudo-header field in trailers", (b":path", b"/evil")),
    trailed("upper case in trailers", (b"X", b"1")),
    trailed("CRLF in trailers", (b"x", b"1\r\nhost: evil")),
    trailed("transfer-encoding in trailers", (b"transfer-encoding", b"chunked")),
    trailed("connection in trailers", (b"connection", b"close")),
    trailed("an empty name in trailers", (b"", b"1")),
    trailed("trailers that are not the end", (b"x", b"1"), end=False),
    *(
        good(f"{field.decode()} in trailers, which goes no further", head=POST,
             then=data(b"abc", end=False) + headers([(field, b"3"), (b"x-ok", b"1")]),
             sees=POSTED + b"Transfer-Encoding: chunked\r\n", body=b"3\r\nabc\r\n0\r\nx-ok: 1\r\n\r\n")
        for field in (b"content-length", b"host", b"authorization", b"content_length", b"transfer_encoding", b"trailer",
                      b"expect", b"x-forwarded-for")
    ),
]  # fmt: skip
SIZES = [
    bad("fields that are too many", *[(b"x", b"1")] * 101, comes="431"),
    bad("a value that is too large", (b"x", b"a" * 40_000), comes="431"),
    bad("a name that is too large", (b"x" * 40_000, b"a"), comes="431"),
    bad("fields that are too large together", *[(b"x", b"a" * 1000)] * 40, comes="431"),
    bad("a header block beyond all measure", (b"x", b"a" * 300_000), comes="goaway ENHANCE_YOUR_CALM"),
    good("cookies in pieces", (b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2"), (b"cookie", b"c"),
         sees=OUGHT + b"x: 1\r\ncookie: a=1; b=2; c\r\n"),
    good("a field that comes twice", (b"x", b"1"), (b"x", b"2"), sees=OUGHT + b"x: 1\r\nx: 2\r\n"),
    bad("Authorization twice", (b"authorization", b"a"), (b"authorization", b"b"), comes="400"),
    bad("an expectation that nobody knows", (b"expect", b"evil"), comes="417"),
    good("te: trailers", (b"te", b"trailers"), sees=OUGHT + b"TE: trailers\r\nConnection: TE\r\n"),
    Case(name="a header block in pieces of a byte", comes="200", sees=OUGHT + b"x: y\r\n\r\n",
         said=headers([*pseudo(), (b"x", b"y")], most=1)),
]  # fmt: skip

CASES = [*NAMES, *VALUES, *FRAMING, *TARGETS, *PSEUDO, *TRAILERS, *SIZES]
