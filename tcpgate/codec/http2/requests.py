"""Which header blocks are requests, and what is malformed about the others.

Every rule of RFC 9113 8.3.1 and 8.5, and of RFC 8441 4, that a gateway can judge. What passes here is judged once more,
written as the HTTP/1.1 head that says the same: `grammar` decides what a path and a host may be. Here stands what must
not even be written so: what only HTTP/2 can say, and what would come out as something else.

Beyond the MUSTs: the scheme is http or https (what else there is, no upstream of ours speaks, and a scheme with a
slash in it has been used to forge targets); Host equals :authority but for case; neither holds user information.

Source: RFC 9113 8.3, 8.5; RFC 8441 4; Kettle, "HTTP/2: The Sequel is Always Worse" (2021). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

from tcpgate.codec.events import Pair
from tcpgate.codec.http2.events import FieldPairs
from tcpgate.codec.http2.fields import Judged, content_length, wrong_with_fields
from tcpgate.codec.syntax import is_token
from tcpgate.codec.target import parse_authority
from tcpgate.errors import ClientError

_PLAIN: Final = frozenset({b":method", b":scheme", b":path"})
_MAY: Final = frozenset({*_PLAIN, b":authority"})
_TUNNEL: Final = frozenset({b":method", b":authority"})
_EXTENDED: Final = frozenset({*_MAY, b":protocol"})
_SCHEMES: Final = frozenset({b"http", b"https"})
_is_path = re.compile(rb"/[\x21\x22\x24-\x7e]*+").fullmatch  # visible ASCII, and no fragment


def judge_request(fields: FieldPairs, *, extended: bool = True) -> Judged:
    """What is wrong with `fields` as a request, or its content length and whether it asks for a tunnel.

    `extended`: we offered extended CONNECT (RFC 8441).
    """
    count = 0
    for name, _ in fields:
        if name[:1] != b":":
            break
        count += 1
    pseudo = dict(fields[:count])
    if len(pseudo) != count:
        return Judged("pseudo-header field: twice")
    rest = fields[count:]
    problem = wrong_with_fields(rest) or _wrong_with_pseudo(pseudo, extended) or _wrong_with_authority(pseudo, rest)
    if problem:
        return Judged(problem)
    problem, length = content_length(rest)
    return Judged(problem, length, tunnel=pseudo[b":method"] == b"CONNECT")


def _wrong_with_pseudo(pseudo: dict[bytes, bytes], extended: bool) -> str:
    have = pseudo.keys()
    method = pseudo.get(b":method")
    if method == b"CONNECT":
        return _wrong_with_connect(pseudo, extended)
    if not (have >= _PLAIN and have <= _MAY):
        return _wrong_with_names(have)
    if is_token(method or b"") is None:
        return ":method: not a token"
    return _wrong_with_target(pseudo)


def _wrong_with_names(have: AbstractSet[bytes]) -> str:
    if not have <= _EXTENDED:
        return "pseudo-header field: one that no request has"
    if b":protocol" in have:
        return ":protocol: with a method other than CONNECT"
    return "pseudo-header field: :method, :scheme or :path is missing"


def _wrong_with_connect(pseudo: dict[bytes, bytes], extended: bool) -> str:
    if b":protocol" not in pseudo:
        return "" if pseudo.keys() == _TUNNEL else "CONNECT: other pseudo-header fields than :method and :authority"
    if not extended:
        return ":protocol: was not offered"
    if pseudo.keys() != _EXTENDED:
        return "extended CONNECT: not all of :scheme, :path and :authority, or more"
    if is_token(pseudo[b":protocol"]) is None:
        return ":protocol: not a token"
    return _wrong_with_target(pseudo)


def _wrong_with_target(pseudo: dict[bytes, bytes]) -> str:
    if pseudo[b":scheme"] not in _SCHEMES and pseudo[b":scheme"].lower() not in _SCHEMES:
        return ":scheme: neither http nor https"
    path = pseudo[b":path"]
    if _is_path(path) is None and not (path == b"*" and pseudo[b":method"] == b"OPTIONS"):
        return ":path: empty, not from the root, or a byte that no target may hold"
    return ""


def _wrong_with_authority(pseudo: dict[bytes, bytes], rest: tuple[Pair, ...]) -> str:
    hosts = [value for name, value in rest if name == b"host"]
    authority = pseudo.get(b":authority")
    if len(hosts) > 1:
        return "Host: more than one"
    if authority is None:
        if not hosts:
            return "neither :authority nor Host"
        authority = hosts[0]
    elif hosts and hosts[0].lower() != authority.lower():
        return "Host: differs from :authority"
    try:
        port = parse_authority(authority).port
    except ClientError as error:
        return f":authority: {error.detail}"
    if port is None and pseudo[b":method"] == b"CONNECT" and b":protocol" not in pseudo:
        return "CONNECT: no port in :authority"
    return ""
