"""Heads as clients and origins send them every day: the express codec that declines one of these is of no use."""

from __future__ import annotations


def head(*lines: str) -> bytes:
    """The lines and the empty one."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


REQUESTS = {
    "curl": head("GET / HTTP/1.1", "Host: a.test", "User-Agent: curl/8.5.0", "Accept: */*"),
    "wrk": head("GET /index.html HTTP/1.1", "Host: 127.0.0.1:8080"),
    "ab": head(
        "GET /x HTTP/1.1", "Connection: Keep-Alive", "Host: a.test:80", "User-Agent: ApacheBench/2.3", "Accept: */*"
    ),
    "chrome, a page": head(
        "GET /list?page=2&q=caf%C3%A9 HTTP/1.1",
        "Host: www.example.com",
        "Connection: keep-alive",
        'sec-ch-ua: "Chromium";v="130", "Google Chrome";v="130", "Not?A_Brand";v="99"',
        "sec-ch-ua-mobile: ?0",
        'sec-ch-ua-platform: "Linux"',
        "Upgrade-Insecure-Requests: 1",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130 Safari/537.36",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "Sec-Fetch-Site: none",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-User: ?1",
        "Sec-Fetch-Dest: document",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: de-DE,de;q=0.9,en-US;q=0.8",
        "Cookie: _ga=GA1.1.100; session=eyJhbGciOiJIUzI1NiJ9.e30.abc-_; theme=dark",
        'If-None-Match: W/"5f1-18a"',
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
    ),
    "firefox, fetch of JSON": head(
        "POST /api/v1/items HTTP/1.1",
        "Host: api.example.com",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
        "Accept: application/json",
        "Accept-Language: en-US,en;q=0.5",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Content-Type: application/json",
        "Content-Length: 17",
        "Origin: https://www.example.com",
        "DNT: 1",
        "Connection: keep-alive",
        "Referer: https://www.example.com/list",
        "Priority: u=0",
        "Pragma: no-cache",
        "Cache-Control: no-cache",
    ),
    "python-requests": head(
        *("PUT /items/%7Bid%7D HTTP/1.1", "Host: a.test", "User-Agent: python-requests/2.32.3"),
        *("Accept-Encoding: gzip, deflate", "Accept: */*", "Connection: keep-alive", "Content-Length: 0"),
        "Authorization: Basic dXNlcjpwYXNz",
    ),
    "go": head(
        *("GET /v1/kv/x?raw HTTP/1.1", "Host: consul.test:8500", "User-Agent: Go-http-client/1.1"),
        *("Authorization: Bearer abc.def.ghi", "X-Request-Id: 5c0f", "Accept-Encoding: gzip"),
    ),
    "node, names as the program wrote them": head(
        *("DELETE /v2/users/7 HTTP/1.1", "accept: application/json", "x-api-key: k", "Host: api.test"),
        "Connection: close",
    ),
    "undici": head(
        *("PATCH /v2/users/7 HTTP/1.1", "host: api.test", "connection: keep-alive", "content-type: application/json"),
        *("accept: */*", "accept-language: *", "sec-fetch-mode: cors", "user-agent: node", "content-length: 2"),
    ),
    "traced, behind another proxy": head(
        *(
            "GET /a HTTP/1.1",
            "Host: a.test",
            "X-Forwarded-For: 10.0.0.1",
            "X-Forwarded-Proto: https",
            "X-Real-IP: 10.0.0.1",
        ),
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        *("tracestate: a=b", "X-B3-TraceId: 463ac35c9f6413ad", "baggage: userId=1"),
    ),
    "a CORS preflight": head(
        *("OPTIONS /api HTTP/1.1", "Host: a.test", "Origin: https://b.test", "Access-Control-Request-Method: PUT"),
        "Access-Control-Request-Headers: content-type",
    ),
    "a probe": head("HEAD /healthz HTTP/1.1", "Host: [::1]:8080", "Connection: close", "User-Agent: kube-probe/1.31"),
    "an HTTP/1.0 habit": head("GET / HTTP/1.1", "Host: a.test", "Proxy-Connection: keep-alive", "Keep-Alive: 300"),
    "a range": head("GET /big.iso HTTP/1.1", "Host: a.test", "Range: bytes=0-1023", 'If-Range: "x"'),
    "no space after the colon": head("GET / HTTP/1.1", "Host:a.test", "Accept:*/*", "X-Empty:"),
}

RESPONSES = {
    "nginx, a file": head(
        *("HTTP/1.1 200 OK", "Server: nginx/1.26.2", "Date: Sun, 06 Nov 1994 08:49:37 GMT", "Content-Type: text/html"),
        *("Content-Length: 612", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "Connection: keep-alive"),
        *('ETag: "66c-264"', "Accept-Ranges: bytes"),
    ),
    "apache": head(
        *("HTTP/1.1 200 OK", "Date: Sun, 06 Nov 1994 08:49:37 GMT", "Server: Apache", "Content-Length: 0"),
        *("Keep-Alive: timeout=5, max=100", "Connection: Keep-Alive", "Content-Type: text/html; charset=UTF-8"),
    ),
    "node": head(
        *("HTTP/1.1 200 OK", "X-Powered-By: Express", "Content-Type: application/json; charset=utf-8"),
        *('ETag: W/"2-x"', "Date: Sun, 06 Nov 1994 08:49:37 GMT", "Connection: keep-alive", "Keep-Alive: timeout=5"),
        "Transfer-Encoding: chunked",
    ),
    "uvicorn": head("HTTP/1.1 201 Created", "date: x", "server: uvicorn", "content-length: 13", "content-type: a/b"),
    "gunicorn": head(
        "HTTP/1.1 200 OK", "Server: gunicorn", "Connection: close", "Content-Length: 5", "X-Request-ID: 1"
    ),
    "not modified": head("HTTP/1.1 304 Not Modified", 'ETag: "x"', "Cache-Control: max-age=60"),
    "no content": head("HTTP/1.1 204 No Content", "Access-Control-Allow-Origin: *"),
    "a redirect": head(
        "HTTP/1.1 302 Found", "Location: /x", "Content-Length: 0", "Set-Cookie: a=b; Path=/", "Set-Cookie: c=d"
    ),
    "an error": head("HTTP/1.1 503 Service Unavailable", "Content-Length: 0", "Retry-After: 3", "Via: 1.1 inner"),
    "without a phrase": head("HTTP/1.1 200 ", "Content-Length: 0"),
    "unauthorized": head("HTTP/1.1 401 Unauthorized", "WWW-Authenticate: Bearer", "Content-Length: 0"),
    "partial": head("HTTP/1.1 206 Partial Content", "Content-Range: bytes 0-1/9", "Content-Length: 2"),
    "until close": head("HTTP/1.1 200 OK", "Content-Type: text/plain", "Connection: close"),
}
