"""Whether listeners and the admin API can all listen, and lead somewhere. Pure.

Two sockets clash if one address and port would reach both. IPv4 and IPv6 never do: every IPv6 socket is bound with
IPV6_V6ONLY=1 (ipv6(7)), so "0.0.0.0:80" and "[::]:80" stand side by side.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from tcpgate.config import schema
from tcpgate.config.report import KeyPath, Names, Report, dotted
from tcpgate.units import BindAddress, HostPort, parse_bind

_PLAIN = schema.Listener(bind=("fd:any",))
_TIMEOUTS = {
    "http": (("total",), "has no effect: it is the life of a tcp flow; for an exchange set timeout in [routes.*]"),
    "tcp": (
        ("head", "stall", "min_rate", "tunnel"),
        "has no effect: a tcp listener has handshake, idle and total only",
    ),
}
"""Protocol -> which timeouts it never looks at, and what to say."""
_ANY = ("0.0.0.0", "::")


def check_listeners(config: schema.Config, names: Names, report: Report) -> None:
    """Each listener by itself, then all of them and the admin API side by side."""
    if not names["listeners"]:
        report.error(("listeners",), 'nothing would listen; add [listeners.NAME] with bind = ["0.0.0.0:80"]')
    for name, listener in config.listeners.items():
        _check_protocol(("listeners", name), listener, names, report)
    binds: list[tuple[KeyPath, BindAddress]] = [
        (("listeners", name, "bind", index), parse_bind(text))
        for name, listener in config.listeners.items()
        for index, text in enumerate(listener.bind)
    ]
    admin = parse_bind(config.admin.bind)
    _check_admin(config.admin, admin, report)
    _check_clashes([*binds, (("admin", "bind"), admin)], report)


def _check_protocol(path: KeyPath, listener: schema.Listener, names: Names, report: Report) -> None:
    ignored, text = _TIMEOUTS[listener.protocol]
    for key in ignored:
        if getattr(listener.timeouts, key) != getattr(_PLAIN.timeouts, key):
            report.warn((*path, "timeouts", key), text)
    if listener.protocol == "http":
        if listener.upstream is not None:
            text = 'an http listener finds its upstream by [routes.*]; or set protocol = "tcp"'
            report.error((*path, "upstream"), text)
        return
    if listener.upstream is None and not (listener.sni or listener.alpn):
        report.error(path, 'a tcp listener needs upstream = "NAME", which takes every flow; or sni, or alpn')
    elif listener.upstream is not None:
        report.judge_name((*path, "upstream"), "upstreams", listener.upstream, names)
    if listener.limits != _PLAIN.limits:
        report.warn((*path, "limits"), "has no effect: a tcp listener moves bytes and reads no request")
    if listener.trusted_proxies and listener.proxy_protocol == "off":
        report.warn((*path, "trusted_proxies"), "has no effect: a tcp listener reads no request, and no PROXY header")


def _check_admin(admin: schema.Admin, address: BindAddress, report: Report) -> None:
    """The API for operators can stop the gateway: off this host it needs a token."""
    exposed = isinstance(address, HostPort) and not ipaddress.ip_address(address.host).is_loopback
    if exposed and admin.token is None and admin.token_file is None:
        text = f"{address} can be reached from other hosts; set token_file, or bind to 127.0.0.1 or unix:/path"
        report.error(("admin", "bind"), text)


def _check_clashes(binds: Sequence[tuple[KeyPath, BindAddress]], report: Report) -> None:
    taken: dict[object, dict[str, KeyPath]] = {}
    for path, address in binds:
        match address:
            case HostPort(port=0):
                continue  # the kernel chooses a free one
            case HostPort(host=host, port=port):
                # Both wildcards lie at the end of "who else has this port", one for each family.
                others = taken.setdefault((":" in host, port), {})
                clash = next(iter(others), None) if host in _ANY else next(filter(others.get, (host, *_ANY)), None)
            case _:
                host, others = str(address), taken.setdefault(str(address), {})
                clash = host if host in others else None
        if clash is None:
            others[host] = path
            continue
        other = others[clash]
        shown = f"{dotted(other)} ({report.place(other)})"
        report.error(path, f"{address} is taken already by {shown}")
