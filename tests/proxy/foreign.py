"""A second corpus of what RFC 9110 and 9112 ask of a proxy: raw bytes, and the verdict.

A case (tests/corpus/foreign/*.toml) is a table:

    rule        the requirement, with its section
    send        what the client sends; a line break in the TOML is CRLF, `\\n` `\\r` `\\xNN` are bytes, `\\N` is CRLF,
                `\\{x*9}` is nine x, `\\{wait}` a pause
    each        one case for each value, put in the place of `@@`
    refuse      statuses with which the gateway itself may answer; nothing may then have reached the origin
    forward     requests that must reach the origin, in order: start ("POST /x"), body, host, has, lacks, trailers
    either      refused or forwarded, the RFC leaves the choice; without it the refusal follows what is forwarded
    partial     a refusal may come after some of the request has gone to the origin, which then never sees its end
    cut         the client ends its side after the last byte; the origin must see no complete request but `forward`
    closes      the connection must be over after it (else it is only asked that what follows is answered rightly)
    answer      what the origin says to a request of target /case, one text for each time it is asked; `\\{wait}`
                pauses, `\\{close}` ends the connection, `\\{reset}` breaks it, `\\{read}` waits for the content
    client      what the client gets: interim (1xx statuses; `interims` if several ways are right), status, body, has,
                lacks, trailers, torn (not whole)
    times       how often the origin may be asked for /case
    fresh       the gateway has no idle connection to the origin; `stale`: the origin ends the one it has when asked

After each case a request follows on the same connection if that is still open, else on a new one, and must be answered
with the answer to itself. The origin must never see a request for /smuggled, nor anything that `strict_http` finds
ambiguous. Each of its answers has a number, so that none can pass for another.

A verdict allows what the RFC allows, but for bytes that may not be there at all (a bare CR, NUL, other controls): where
a recipient may choose between refusing and repairing them, refusing is asked for, as whoever stood before may have read
them otherwise.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

CORPUS = Path(__file__).parent.parent / "corpus" / "foreign"

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|\{([^{}]+)\*([0-9]+)\}|(.))", re.DOTALL)
_PLAIN = {"r": "\r", "n": "\n", "N": "\r\n", "t": "\t", "0": "\0", "\\": "\\"}


def decode(text: str) -> bytes:
    """The bytes that a text of the corpus stands for; stage marks stay."""

    def escape(match: re.Match[str]) -> str:
        code, repeated, count, plain = match.groups()
        if code:
            return chr(int(code, 16))
        if repeated:
            return str(_ESCAPE.sub(escape, repeated)) * int(count)
        return _PLAIN.get(plain, match[0])

    return str(_ESCAPE.sub(escape, text.replace("\n", "\r\n"))).encode("latin-1")


@attrs.frozen(kw_only=True)
class Case:
    """One case, see the module."""

    group: str
    name: str
    rule: str
    send: str = "GET /case HTTP/1.1\nHost: t\n\n"
    refuse: list[int] = attrs.field(factory=list)
    forward: list[dict[str, Any]] = attrs.field(factory=list)
    either: bool = False
    partial: bool = False
    cut: bool = False
    closes: bool = False
    answer: list[str] = attrs.field(factory=list)
    client: dict[str, Any] = attrs.field(factory=dict)
    times: list[int] = attrs.field(factory=lambda: [1])
    fresh: bool = False
    stale: bool = False

    @property
    def raw(self) -> bytes:
        """What the client sends."""
        return decode(self.send)


def load() -> list[Case]:
    """The whole corpus."""
    return [case for path in sorted(CORPUS.glob("*.toml")) for case in _of_file(tomllib.loads(path.read_text()))]


def _of_file(document: dict[str, Any]) -> Iterator[Case]:
    for table in document["case"]:
        values = table.pop("each", None)
        if values is None:
            yield Case(group=document["group"], **table)
            continue
        for value in values:
            filled = {key: _fill(part, value) for key, part in table.items()}
            filled["name"] = f"{table['name']}: {value[:60]}"
            yield Case(group=document["group"], **filled)


def _fill(part: Any, value: str) -> Any:  # noqa: ANN401 - whatever TOML holds
    if isinstance(part, str):
        return part.replace("@@", value)
    if isinstance(part, list):
        return [_fill(one, value) for one in part]
    return {key: _fill(one, value) for key, one in part.items()} if isinstance(part, dict) else part
