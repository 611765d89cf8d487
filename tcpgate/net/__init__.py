"""The sockets' room: every byte from or to the network passes here, and every OSError of a connection ends here.

    address   config addresses <-> socket addresses
    listen    opening a listening socket, accepting from it; bound: closing it without leaving its file
    resolve   names to addresses, dial: connecting to them
    stream    one connection: receiving, sending, time limits, its errors as GateErrors; unsent: the rest of a send
    pipes     splice(2): bytes from socket to socket inside the kernel
    relay     both ways between two streams until both have ended
    carrier   what an exchange asks of a stream, be it a connection's or one of many on it

HTTP/2:

    http2_link    the socket that streams share: one reader, one writer
    http2_stream  one of them as a carrier, with flow control; http2_endpoint: one that we open

TLS:

    tls_socket  a connection that behaves as a plain socket does; openssl: what the ssl module does not offer of it
    tls_server  the context for a client, chosen by its hello; tls_names, tickets: names in certificates, shared keys
    tls_client  contexts for endpoints, and the handshake with them

By callbacks instead of tasks:

    lane        one epoll set per worker, and the sweep that looks at time limits
    accept      listening sockets in the lane
    connect     what `dial` does
    lane_relay  what `relay` does

It imports no policy and no state: what it needs to know (deadlines, how slow a client may be) comes as arguments.
"""
