"""The head grammar where the corpus does not look: what an accepted head says, and which rule a refused one is told."""

from __future__ import annotations

import pytest

from tcpgate.codec.blame import CLIENT
from tcpgate.codec.events import CHUNKED, NO_BODY, UNTIL_CLOSE, Framing, Kind, Limits, of_length
from tcpgate.codec.grammar import cgi_name, is_disguised, parse_field, parse_request, parse_response
from tcpgate.codec.target import parse_authority
from tcpgate.errors import ClientError, Reason, Retry, UpstreamError

LIMITS = Limits()


def request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = b"Host: a.test") -> bytes:
    return b"\r\n".join([line, host, *fields, b"", b""])


def response(line: bytes = b"HTTP/1.1 200 OK", *fields: bytes) -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


def test_a_request_says_everything_once() -> None:
    raw = request(
        b"POST http://A.test:8080/b%20c?d=e HTTP/1.1",
        b"Content-Length: 5",
        b"Expect: 100-Continue",
        b"Connection: close, Upgrade",
        b"Upgrade: h2c, WebSocket, X-Proto/2",
        host=b"Host: a.TEST:8080",
    )
    head = parse_request(raw, LIMITS)
    assert (head.method, head.form, head.scheme) == (b"POST", "absolute", b"http")
    assert head.target == b"http://A.test:8080/b%20c?d=e"
    assert (head.path, head.query, head.upstream_target) == (b"/b%20c", b"d=e", b"/b%20c?d=e")
    assert (head.host, head.authority) == (b"a.test", b"A.test:8080")
    assert (head.framing, head.keep_alive, head.expect_continue) == (of_length(5), False, True)
    assert (head.upgrade, head.version, head.size) == (b"x-proto/2", b"1.1", len(raw))


@pytest.mark.parametrize(
    ("method", "target", "form", "path", "query", "upstream"),
    [
        (b"GET", b"/", "origin", b"/", None, b"/"),
        (b"GET", b"/?", "origin", b"/", b"", b"/?"),
        (b"GET", b"/a?b?c", "origin", b"/a", b"b?c", b"/a?b?c"),
        (b"GET", b"http://a.test", "absolute", b"/", None, b"/"),
        (b"GET", b"http://a.test?x", "absolute", b"/", b"x", b"/?x"),
        (b"OPTIONS", b"*", "asterisk", b"*", None, b"*"),
        (b"OPTIONS", b"http://a.test", "absolute", b"*", None, b"*"),
    ],
)
def test_every_target_form_has_one_path(
    method: bytes, target: bytes, form: str, path: bytes, query: bytes | None, upstream: bytes
) -> None:
    head = parse_request(request(b"%b %b HTTP/1.1" % (method, target)), LIMITS)
    assert (head.form, head.path, head.query, head.upstream_target) == (form, path, query, upstream)


@pytest.mark.parametrize(
    ("text", "host", "shown", "port"),
    [
        (b"A.Test.", b"a.test", b"A.Test.", None),
        (b"a.test:", b"a.test", b"a.test", None),
        (b"a.test:0", b"a.test", b"a.test:0", 0),
        (b"a.test:65535", b"a.test", b"a.test:65535", 65535),
        (b"[2001:DB8:0:0::1]:8", b"[2001:db8::1]", b"[2001:DB8:0:0::1]:8", 8),
        (b"[::ffff:192.0.2.1]", b"[::ffff:c000:201]", b"[::ffff:192.0.2.1]", None),
    ],
)
def test_an_authority_has_one_host_and_port(text: bytes, host: bytes, shown: bytes, port: int | None) -> None:
    authority = parse_authority(text)
    assert (authority.host, authority.text, authority.port) == (host, shown, port)


def test_an_https_target_needs_a_secure_connection() -> None:
    raw = request(b"GET https://a.test/ HTTP/1.1")
    assert parse_request(raw, LIMITS, secure=True).scheme == b"https"
    with pytest.raises(ClientError) as caught:
        parse_request(raw, LIMITS)
    assert caught.value.status == 421


@pytest.mark.parametrize("host", [b"Host: a.test:443", b"Host: a.test:80", b"Host: b.test"])
def test_the_target_names_the_authority_whatever_a_valid_host_says(host: bytes) -> None:
    raw = request(b"GET https://a.test/ HTTP/1.1", host=host)
    assert parse_request(raw, LIMITS, secure=True).authority == b"a.test"


@pytest.mark.parametrize(
    ("raw", "reason", "rule"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", Reason.BAD_REQUEST, "empty line"),
        (request(b"GET  / HTTP/1.1"), Reason.BAD_REQUEST, "three words"),
        (request(b"G(T / HTTP/1.1"), Reason.BAD_REQUEST, "method: not a token"),
        (request(b"GET /\xff HTTP/1.1"), Reason.BAD_REQUEST, "not visible ASCII"),
        (request(b"GET /\x7f HTTP/1.1"), Reason.BAD_REQUEST, "not visible ASCII"),
        (request(b"GET / HTTP/1.x"), Reason.BAD_REQUEST, "version"),
        (request(b"GET / HTTP/1.2"), Reason.VERSION_UNSUPPORTED, "version"),
        (request(b"CONNECT a:1 HTTP/1.1"), Reason.METHOD_UNSUPPORTED, "CONNECT"),
        (request(b"A" * 33 + b" / HTTP/1.1"), Reason.METHOD_UNSUPPORTED, "longer than 32"),
        (request(b"GET /" + b"a" * 8192 + b" HTTP/1.1"), Reason.TARGET_TOO_LONG, "8192"),
        (request(b"GET / HTTP/1.1", *[b"X: y"] * 100), Reason.HEAD_TOO_LARGE, "100 fields"),
        (request(b"GET / HTTP/1.1", b"X: " + b"y" * 33000), Reason.HEAD_TOO_LARGE, "32768 bytes"),
        (request(b"GET / HTTP/1.1", b" fold"), Reason.BAD_REQUEST, "obs-fold"),
        (request(b"GET / HTTP/1.1", b"X"), Reason.BAD_REQUEST, "no colon"),
        (request(b"GET / HTTP/1.1", b"X : y"), Reason.BAD_REQUEST, "before the colon"),
        (request(b"GET / HTTP/1.1", b"X Y: z"), Reason.BAD_REQUEST, "not a token"),
        (request(b"GET / HTTP/1.1", b"X: \x00"), Reason.BAD_REQUEST, "control byte"),
        (request(b"GET / HTTP/1.1", b"Transfer-Encoding: gzip, chunked"), Reason.CODING_UNSUPPORTED, "coding"),
        (request(b"GET / HTTP/1.1", b"Expect: x"), Reason.EXPECTATION_UNKNOWN, "Expect"),
        (request(b"GET / HTTP/1.1", host=b"Host: secret value"), Reason.BAD_REQUEST, "host"),
    ],
)
def test_a_refusal_names_the_rule_and_never_the_clients_bytes(raw: bytes, reason: Reason, rule: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_request(raw, LIMITS)
    assert caught.value.reason is reason
    assert rule in caught.value.detail
    assert "secret" not in caught.value.detail
    assert caught.value.retry is Retry.NEVER


@pytest.mark.parametrize(
    ("method", "line", "fields", "framing", "keep_alive"),
    [
        (b"GET", b"HTTP/1.1 200 OK", [b"Content-Length: 7"], of_length(7), True),
        (b"GET", b"HTTP/1.1 200 OK", [b"Transfer-Encoding: Chunked"], CHUNKED, True),
        (b"GET", b"HTTP/1.1 200 OK", [], UNTIL_CLOSE, False),
        (b"GET", b"HTTP/1.0 200 OK", [b"Content-Length: 7"], of_length(7), False),
        (b"GET", b"HTTP/1.1 204 No", [b"Content-Length: 7"], NO_BODY, True),
        (b"GET", b"HTTP/1.1 304 No", [b"Content-Length: 7"], Framing(Kind.NONE, 7), True),
        (b"HEAD", b"HTTP/1.1 200 OK", [b"Content-Length: 7"], Framing(Kind.NONE, 7), True),
        (b"HEAD", b"HTTP/1.1 200 OK", [], NO_BODY, True),
        (b"GET", b"HTTP/1.1 103 Hint", [b"Content-Length: 7"], NO_BODY, True),
        (b"GET", b"HTTP/1.1 200 OK", [b"Content-Length: 7", b"Connection: x, CLOSE"], of_length(7), False),
    ],
)
def test_a_response_has_one_end(
    method: bytes, line: bytes, fields: list[bytes], framing: Framing, keep_alive: bool
) -> None:
    head = parse_response(response(line, *fields), method)
    assert (head.framing, head.keep_alive) == (framing, keep_alive)


def test_a_refused_response_may_be_asked_for_elsewhere() -> None:
    with pytest.raises(UpstreamError) as caught:
        parse_response(response(b"HTTP/1.1 200 OK", b"X"), b"GET")
    assert (caught.value.reason, caught.value.status) == (Reason.UPSTREAM_PROTOCOL, 502)
    assert caught.value.retry is Retry.SAFE
    with pytest.raises(UpstreamError) as caught:
        parse_response(response(b"HTTP/1.1 200 OK", b"X: " + b"y" * 70000), b"GET")
    assert caught.value.reason is Reason.UPSTREAM_HEAD_TOO_LARGE


def test_a_101_must_name_what_was_offered() -> None:
    raw = response(b"HTTP/1.1 101 Switching Protocols", b"Upgrade: WebSocket")
    head = parse_response(raw, b"GET", upgrade=b"websocket")
    assert head.upgrade == b"websocket"
    assert not head.informational
    with pytest.raises(UpstreamError) as caught:
        parse_response(raw, b"GET", upgrade=b"other")
    assert caught.value.reason is Reason.UPGRADE_FAILED


def test_a_name_is_disguised_only_if_it_is_not_plain() -> None:
    names = frozenset({b"content-length"})
    assert cgi_name(b"Content_Length") == b"content-length"
    assert is_disguised(b"Content.Length", names)
    assert not is_disguised(b"Content-Length", names)
    assert not is_disguised(b"My_Field", names)


def test_a_field_line_keeps_the_name_and_trims_the_value() -> None:
    assert parse_field(b"X-a:\t b c \t", CLIENT) == (b"X-a", b"b c")
