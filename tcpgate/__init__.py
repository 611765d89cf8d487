"""tcpgate: a highly available L4/L7 proxy and API gateway for bare-metal hosts.

The map. One process, the *supervisor*, owns the listening sockets, the config, the health probes and the admin API,
and never touches a user's byte. *Workers*, one per core, accept, parse, route, pick, relay and log. A memfd, the
*shared page*, holds every counter.

Rooms, in the order in which they may import one another:

    errors    whose fault, which status, which retry: the closed list of reasons
    units     "250ms", "64KiB", "10.0.0.0/8", "host:port"
    stats     counters on the shared page, access records, the event journal          pure
    config    the TOML as classes; load, check, diff                                  pure but for reading files
    codec     bytes to meaning: HTTP/1 (the strict grammar, h11 under it, the express
              codec), HTTP/2, gRPC, WebSocket, ClientHello, PROXY                     pure
    policy    routes, balancers, health, retry, pace: every decision                  pure, `now` goes in
    filters   what a route does to a request before it goes on                        pure
    state     Snapshot (one generation, frozen) and Runtime (what outlives it)        pure
    net       sockets: streams, TLS, listen, dial, resolve, relay; the lane           Trio
    proxy     the data plane, in workers                                              Trio
    control   reload, probes, the admin API, in the supervisor                        Trio
    kinds     every pluggable kind by name
    process   supervisor, workers, the link between them, systemd, signals, logs      Trio
    cli       what people type

The life of a request takes one of two paths, which answer, count and log alike.

    readable path   a Trio task per connection (`proxy/http.py` reads head after head), or per stream of one
                    (`proxy/http2.py`). `proxy/serve.py` accepts; `proxy/exchange.py` routes, filters, picks and
                    tries; `proxy/attempt.py` talks to one endpoint; `proxy/account.py` closes the books. It can do
                    everything: upgrades become tunnels (`proxy/tunnel.py`), whose frames may be read
                    (`proxy/websocket.py`).
    lane            no task: plain callbacks on one epoll set per worker (`net/lane.py`). `proxy/ride.py` is the
                    connection; `proxy/asking.py` reads a plain head (`codec/express.py`), looks up what it comes to
                    (`proxy/prepared.py`), picks and asks; `proxy/express.py` passes the answer on,
                    `proxy/outflow.py` the rest of a long one; `proxy/ledger.py` closes the books, a turn at a time,
                    and `proxy/express_end.py` those of what failed. `proxy/http2_plain.py` does so with the plain
                    streams of an HTTP/2 connection.

A connection begins in the lane. Where there is something before its protocol (a PROXY header, a TLS handshake, a name
to choose by) it is a `proxy/arrival.py` first, and what that has found out goes with it (`proxy/arrived.py`). One to
an endpoint begins with a greeting (`proxy/greet.py`), where the endpoint's `state/reach.py` asks for one; exchanges
over HTTP/2 share theirs (`proxy/http2_pool.py`). What the lane cannot do at once it hands over to the readable path,
from exactly where it is (`proxy/begun.py`), and gets the connection back after that exchange. A flow, of a tcp
listener, is `proxy/lane_flow.py` over `net/lane_relay.py`; in a task it is `proxy/flow.py` over `net/relay.py`. With
`[gateway] lane = false` all of them have tasks. Read `proxy/exchange.py` first, then `net/lane.py` and
`proxy/ride.py`.

The words: a *downstream* connection comes from a client; an *upstream* is a named group of *endpoints*; a *route*
leads a request through *filters* to an upstream; an *exchange* is one request and its response, an *attempt* one try
of it at an endpoint; a *pool* holds idle connections; a *tunnel* is an upgraded connection, a *flow* a tcp one. An
*arrival* is a client's connection before its protocol begins, its *hello* TLS's first message, the ClientHello; an
endpoint's *reach* is how it is reached (TLS, PROXY, which HTTP), and a *greeting* what a connection there begins with;
a *stream* is one exchange's share of an HTTP/2 connection (and, in `net/stream.py`, the bytes of any connection). A
*generation* is one config that serves, a *snapshot* its compiled form; a *probe* asks an endpoint for its health; to
*eject* is to take it out for what live traffic says, to *drain* to let it finish. What has descriptors in the lane
*rides* there and is a *rider*; a *plain* head or exchange is one that the lane does; to *hand over* is to give an
exchange that is not to a task, with everything that was done of it; the *sweep* is the lane's look at time limits,
every 250 ms. The *ledger* has what the lane did in a turn, for the counters and the access log.
"""
