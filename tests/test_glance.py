"""What `tcpgate status` shows of a gateway, from what the admin API says."""

from __future__ import annotations

from typing import Any

from tcpgate.glance import glance

PLAIN: dict[str, Any] = {
    "name": "plain",
    "protocol": "http",
    "bind": ["127.0.0.1:80"],
    "connections": 1,
    "accepted": 2,
    "exchanges": 3,
    "refused": 0,
    "handshakes": 0,
    "handshakes_resumed": 0,
    "handshakes_failed": 0,
}
SECURE = {
    **PLAIN,
    "name": "secure",
    "certificates": [{"days_left": 40.5}, {"days_left": 5.2}],
    "handshakes": 4,
    "handshakes_resumed": 1,
    "handshakes_failed": 2,
}
NOW: dict[str, Any] = {
    "version": "1",
    "stopping": False,
    "ready": True,
    "generation": 7,
    "uptime_seconds": 3.0,
    "pid": 9,
    "last_reload": None,
    "endpoints": {"up": 1, "total": 1, "out": []},
    "workers": [],
    "workers_wanted": 1,
    "workers_died": 0,
    "lane_share": None,
    "reuse_ratio": None,
    "restart_needed_for": [],
    "bugs": 0,
    "warnings": [],
}


def listeners_of(*listeners: dict[str, Any]) -> list[list[str]]:
    """The cells of the listeners' table."""
    found = "\n".join(glance({**NOW, "listeners": listeners}, None))
    return [line.split() for line in found.split("\n\n")[1].splitlines()]


def test_without_tls_there_are_no_columns_for_it() -> None:
    assert listeners_of(PLAIN) == [
        ["LISTENER", "PROTOCOL", "CONNECTIONS", "ACCEPTED", "EXCHANGES", "REFUSED", "BIND"],
        ["plain", "http", "1", "2", "3", "0", "127.0.0.1:80"],
    ]


def test_a_listener_with_tls_tells_its_handshakes_and_which_certificate_ends_first() -> None:
    header, plain, secure = listeners_of(PLAIN, SECURE)
    assert header[6:-1] == ["HANDSHAKES", "RESUMED", "FAILED", "CERT", "LEFT"]
    assert plain[1:] == ["http", "1", "2", "3", "0", "-", "-", "-", "-", "127.0.0.1:80"]
    assert secure[1:] == ["http+tls", "1", "2", "3", "0", "4", "25.00%", "2", "5d", "127.0.0.1:80"]


def test_before_the_first_handshake_no_share_is_made_up_and_an_end_is_told() -> None:
    fresh = {**SECURE, "handshakes": 0, "handshakes_resumed": 0, "certificates": [{"days_left": -0.5}]}
    assert listeners_of(fresh)[1][6:] == ["0", "2", "ended", "127.0.0.1:80"]


def test_the_first_lines_say_how_it_is() -> None:
    lines = list(glance({**NOW, "listeners": [PLAIN]}, None))
    assert lines[:4] == [
        "tcpgate 1 is ready: generation 7, up 3s, pid 9",
        "reload     none yet",
        "endpoints  1 of 1 up",
        "workers    0 of 1",
    ]
