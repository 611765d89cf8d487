"""Pieces of heads, legal and nearly so, to make heads of: for the properties, and as the fuzzer's dictionary."""

from __future__ import annotations

NAMES = [
    *("Accept", "x-any", "X-Any", "Cookie", "Host", "host", "Content-Length", "content-length", "Content_Length"),
    *("Transfer-Encoding", "Transfer_Encoding", "Connection", "connection", "Keep-Alive", "Proxy-Connection", "Close"),
    *("TE", "Trailer", "Upgrade", "Expect", "Via", "Forwarded", "X-Forwarded-For", "X_Forwarded_For", "X-Real-IP"),
    *("X-Request-Id", "x_request_id", "Authorization", "Content-Type", "Proxy-Authorization", "Proxy", "Date", "ETag"),
    *("Max-Forwards", "HTTP2-Settings", "Proxy-Authenticate", "Proxy-Authentication-Info", "Set-Cookie", "Age", "!"),
]
PLAIN_NAMES = [
    *("Accept", "x-any", "X-Any", "Cookie", "Keep-Alive", "Proxy-Connection", "X-Forwarded-For", "X_Forwarded_For"),
    *("X-Request-Id", "Authorization", "Content-Type", "Proxy", "Date", "ETag", "Set-Cookie", "Age", "Location"),
]
VALUES = [
    *("", "a", "a b", "a, b", '"a"', "a.test", "a.test:80", "[::1]", "a.test.", "5", "0", "05", "-1", "5,5", "5 "),
    *("9223372036854775807", "9223372036854775808", "chunked", "Chunked", "gzip, chunked", "close", "keep-alive"),
    *("Keep-Alive, close", "x-any", "te", "100-continue", "websocket", "trailers", "\xe4\xff", "\x00", "\x0b", "\x7f"),
    *("a\r", "a\n", "a\r\n b", "a\tb", "x" * 300, "1.1 gate", ", close,", "upgrade, close"),
]
COLONS = [": "] * 12 + [":", ":\t ", " : ", " :", "", ":\x0c", "::"]
TAILS = [""] * 12 + [" ", "\t", " \t ", "\x0b"]
ENDS = ["\r\n"] * 20 + ["\n", "\r", "\r\r\n", "\r\n ", "\r\n\r\n", "\n\r\n", ""]
REQUEST_LINES = [
    *("GET / HTTP/1.1", "POST /a/b?c=d HTTP/1.1", "HEAD /%41?? HTTP/1.1", "OPTIONS /x HTTP/1.1", "DELETE //x HTTP/1.1"),
    *("PUT /a/../b HTTP/1.1", 'PATCH /?"<>`\\ HTTP/1.1', "GET /[]|^{}? HTTP/1.1", "GET /" + "a" * 59 + " HTTP/1.1"),
]
ODD_REQUEST_LINES = [
    *(
        "TRACE / HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http://b.test/ HTTP/1.1",
        "GET /%00 HTTP/1.1",
    ),
    *("GET / HTTP/1.0", "GET / HTTP/1.2", "get / HTTP/1.1", "GET /\\ HTTP/1.1", "GET /# HTTP/1.1", "GET  / HTTP/1.1"),
    *(
        "GET /" + "a" * 60 + " HTTP/1.1",
        "PUT /" + "a" * 60 + " HTTP/1.1",
        "GET /\xe4 HTTP/1.1",
        "",
        "\r\nGET / HTTP/1.1",
    ),
]
STATUS_LINES = [
    *("HTTP/1.1 200 OK", "HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified", "HTTP/1.1 500 ", "HTTP/1.1 299"),
    *("HTTP/1.1 404  a\tb ", "HTTP/1.1 407 X", "HTTP/1.1 426 X", "HTTP/1.1 205 X", "HTTP/1.1 302 \xe4"),
]
ODD_STATUS_LINES = [
    *(
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 101 X",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 600 X",
        "HTTP/1.1 200 \x00",
        "HTTP/1.1 2",
    ),
]
