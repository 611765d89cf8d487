"""Which header blocks are responses, and what is malformed about the others.

Source: RFC 9113 8.1, 8.3.2, 8.6. Pure.
"""

from __future__ import annotations

import re

from tcpgate.codec.http2.events import FieldPairs
from tcpgate.codec.http2.fields import Judged, content_length, wrong_with_fields

_is_status = re.compile(rb"[1-5][0-9]{2}").fullmatch


def judge_response(fields: FieldPairs) -> Judged:
    """What is wrong with `fields` as a response, or its status and its content length."""
    if not fields or fields[0][0] != b":status":
        return Judged("pseudo-header field: :status is missing, or another stands before it")
    status = fields[0][1]
    if _is_status(status) is None:
        return Judged(":status: not three digits from 100 to 599")
    if status == b"101":
        return Judged(":status: 101, which HTTP/2 has not")
    rest = fields[1:]
    if rest and rest[0][0][:1] == b":":
        return Judged("pseudo-header field: one that no response has, or twice")
    problem = wrong_with_fields(rest)
    if problem:
        return Judged(problem)
    problem, length = content_length(rest)
    return Judged(problem, length, status=int(status))
