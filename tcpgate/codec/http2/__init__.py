"""HTTP/2 as a pure machine: bytes of a peer into events, and what we say into bytes. Both roles.

In import order: `frames` (numbers and writers), `events` (what is said), `settings` (ours, the peer's), `fields`,
`requests` and `responses` (what is malformed), `huffman` and `headers` (HPACK), `floods` (how much of what is too
much), `streams` (one stream's state), `core` (windows, ends and errors), `blocks` (header blocks), `reading` (frame by
frame), `machine` (the whole: `Http2`).
"""
