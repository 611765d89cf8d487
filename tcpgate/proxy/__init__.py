"""A connection's life in a worker: accept, parse, route, pick, relay, log. Runs on Trio; never imports control."""
