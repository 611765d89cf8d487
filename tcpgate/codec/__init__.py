"""Bytes into meaning and back, without I/O. Pure: bytes, `now` and limits come in as arguments.

In import order: `syntax` (token, list, quoted-string), `events` (what is said), `blame` (whose fault a bad message is),
`target` (request-target and Host), `grammar` (THE strict head), `chunked` (chunk framing and trailers), `inbox` (bytes
not yet understood), `machine` (h11 as the second opinion), `http1` (one codec per connection). Beside them: `forwarded`
(who the client is), `hop` (what goes on to the next hop), `reply` (the gateway's own answers).
"""
