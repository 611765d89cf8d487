"""Bytes into meaning and back, without I/O. Pure: bytes, `now` and limits come in as arguments.

In import order: `syntax` (token, list, quoted-string), `events` (what is said), `blame` (whose fault a bad message is),
`target` (request-target and Host), `grammar` (THE strict head), `chunked` (chunk framing and trailers), `inbox` (bytes
not yet understood), `machine` (h11 as the second opinion), `http1` (one codec per connection). Beside them: `forwarded`
(who the client is), `hop` (what goes on to the next hop), `reply` (the gateway's own answers), `sides` (what an
exchange asks of a codec of any version).

HTTP/2: `http2` (the connection as a machine), `http2_request` (a request judged as the HTTP/1.1 head that says the
same), `http2_stream` and `http2_client_stream` (one stream as a codec), `grpc` (what of it a gateway has to know).

Before them: `client_hello` and `proxy_header` (what a connection begins with), `tls_facts`, `client_tls` and
`client_cert` (what TLS told of a client, and how that is passed on). After them: `websocket` (frames in a tunnel).

For the lane, and over all of these: `memo` (what was found before, bounded), `lines` (what one field line comes to),
`forms` (heads that differ in a value or two), `express` (a plain head at a few look-ups' cost, or no verdict at all).
"""
