"""What the gateway decides of a request and of an endpoint: route, balance, health, retry, pace.

Pure: time and chance come in as arguments.
"""
