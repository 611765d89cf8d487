"""A connection's life in a worker: accept, parse, route, pick, relay, log. Runs on Trio; never imports control.

    plane       what all of it shares in one worker; pool: idle connections to endpoints; account, answer, heads: books,
                the gateway's own answers, the heads that leave, for both paths
    serve       listeners: who accepts, and who is open

The readable path, a task per connection: `http` (head after head), `exchange` (one of them), `attempt` (one try),
`body`, `ask` (a filter's own request), `tunnel` (after a 101); `flow` and `tcp` for tcp listeners. With HTTP/2 a task
per stream: `http2` (the connection), `http2_exchange` (one stream), `grpc` (what is different about a call). What the
exchange sees of either is a `downstream`, and of its connection to an endpoint an `upstream`: one of the pool's, or a
stream of those that `http2_pool` shares (`http2_upstream`: one of them, with a task of the worker's).

The lane: `rider` (what a listener and a connection ask of one another), `ride` (a client's connection), `asking` (the
request), `express` (the answer), `outflow` (the rest of a long one), `express_end` (the books); `prepared` (what a head
comes to at one listener), `careful` (filters and trusted proxies), `begun` (what is handed over with an exchange);
`lane_flow` for tcp listeners.
"""
