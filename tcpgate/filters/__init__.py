"""What stands between the route and the upstream: each filter looks at the request and may change it or answer it."""
