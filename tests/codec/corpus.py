"""The corpus of raw HTTP/1 messages with verdicts: how it is written, and how it is loaded.

`tests/corpus/http1/*.toml`, one file per kind of attack or rule. A file holds `[[request]]` and `[[response]]` tables.
Raw bytes are written as TOML basic strings, where each character up to `\\u00ff` is the byte of its number. `<<X*N>>`
stands for X repeated N times. In expected field values `<peer>` stands for the client's address as the gateway sees it,
and `<name>` for the gateway's pseudonym in Via.

A request case: a client sends `raw` on one connection to a gateway whose only route leads to a recording origin. The
origin answers every complete request with 200, a short body and an end that is known.

- `name`, `rfc`: unique name; the section that decides ("house" where the gateway is stricter by its own decision).
- `raw`; `eof = true`: the client then ends its sending half. Nothing after a request that ends badly may be answered.
- `answers`: the final statuses that the client gets, in order. Default [200].
- `forwarded`: the complete requests that the origin has got, in order; a table each with `method` (default GET),
  `target` (/), `host` (a.test), `body`, `trailers`, `fields` (these must be there, a repeated one joined by ", ") and
  `absent` (these must not). Default: one, all default, if `answers` is [200], none otherwise.
- `after`: what becomes of the connection. "open": a probe (`PROBE`) sent after `raw` is answered 200 and reaches the
  origin as what it is. "closed": the gateway closes, whatever is sent. "waiting": `raw` is not complete, the gateway
  waits. Default: open if the last answer is 200, else closed.
- `codec_only = true`: so the codec has it; in a whole gateway the routes write the path in its normal form first.

A response case: a well-behaved client sends one request of `method` (default GET) for http://a.test/ in `version`
(default 1.1), offering to `upgrade` if that is set; the origin answers with `raw`, and closes if `eof`.

- `status`, `reason`: what the client gets. 502 where the response is refused.
- `informational`: the 1xx that the client gets before.
- `body`, `trailers`, `fields`, `absent`: as above, of the final response; not of one that the gateway makes itself.
- `cut = true`: the client must notice that the response is not complete.
- `reuse`: whether the gateway may send another request on the connection to the origin. Default: not after 502 or eof.
- `tunnel = true`: the connection has become one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

CORPUS = Path(__file__).parent.parent / "corpus" / "http1"
PROBE = b"GET /probe HTTP/1.1\r\nHost: probe.test\r\n\r\n"
ORIGIN = b"origin.test"
"""What the gateway calls the origin when a request names no host."""
_REPEATED = re.compile(rb"<<(.+?)\*([0-9]+)>>", re.DOTALL)


def raw_bytes(text: str) -> bytes:
    """The bytes that a raw string of the corpus stands for."""
    return _REPEATED.sub(lambda match: match[1] * int(match[2]), text.encode("latin-1"))


@attrs.frozen(kw_only=True)
class Forwarded:
    """One complete request as the origin must have got it."""

    method: bytes = b"GET"
    target: bytes = b"/"
    host: bytes = b"a.test"
    body: bytes = b""
    trailers: Mapping[bytes, bytes] = attrs.field(factory=dict)
    fields: Mapping[bytes, bytes] = attrs.field(factory=dict)
    absent: tuple[bytes, ...] = ()


@attrs.frozen(kw_only=True)
class RequestCase:
    """What a client sends, and what must come of it."""

    name: str
    rfc: str
    raw: bytes = attrs.field(repr=False)
    eof: bool
    answers: tuple[int, ...]
    forwarded: tuple[Forwarded, ...]
    after: Literal["open", "closed", "waiting"]
    codec_only: bool


@attrs.frozen(kw_only=True)
class ResponseCase:
    """What an origin answers, and what must come of it."""

    name: str
    rfc: str
    raw: bytes = attrs.field(repr=False)
    eof: bool = False
    method: bytes = b"GET"
    version: bytes = b"1.1"
    upgrade: bytes = b""
    status: int
    reason: bytes | None = None
    informational: tuple[int, ...] = ()
    body: bytes = b""
    trailers: Mapping[bytes, bytes] = attrs.field(factory=dict)
    fields: Mapping[bytes, bytes] = attrs.field(factory=dict)
    absent: tuple[bytes, ...] = ()
    cut: bool = False
    reuse: bool
    tunnel: bool = False


def load_requests() -> list[RequestCase]:
    """Every request case of the corpus."""
    return [_request(table) for table in _tables("request")]


def load_responses() -> list[ResponseCase]:
    """Every response case of the corpus."""
    return [_response(table) for table in _tables("response")]


def _tables(kind: str) -> Iterator[dict[str, Any]]:
    for path in sorted(CORPUS.glob("*.toml")):
        for table in tomllib.loads(path.read_text(encoding="utf-8")).get(kind, []):
            table["name"] = f"{path.stem}: {table['name']}"
            yield table


def _request(table: dict[str, Any]) -> RequestCase:
    answers = tuple(table.pop("answers", [200]))
    default: list[dict[str, Any]] = [{}] if answers == (200,) else []
    return RequestCase(
        name=table.pop("name"),
        rfc=table.pop("rfc"),
        raw=raw_bytes(table.pop("raw")),
        eof=table.pop("eof", False),
        answers=answers,
        forwarded=tuple(Forwarded(**_bytes(each)) for each in table.pop("forwarded", default)),
        after=table.pop("after", "open" if answers[-1:] == (200,) else "closed"),
        codec_only=table.pop("codec_only", False),
        **table,  # nothing is left, or a name is wrong and attrs says so
    )


def _response(table: dict[str, Any]) -> ResponseCase:
    kept = {key: table.pop(key) for key in ("name", "rfc", "eof", "status", "cut", "tunnel") if key in table}
    status, cut = kept["status"], kept.get("cut", False)
    reuse = table.pop("reuse", not (status == 502 or kept.get("eof") or cut or kept.get("tunnel")))
    informational = tuple(table.pop("informational", ()))
    return ResponseCase(**kept, **_bytes(table), reuse=reuse, informational=informational)


def _bytes(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _as_bytes(value) for key, value in table.items()}


def _as_bytes(value: Any) -> Any:  # noqa: ANN401  # TOML's own variety
    match value:
        case str():
            return raw_bytes(value)
        case list():
            return tuple(_as_bytes(each) for each in value)
        case dict():
            return {_as_bytes(key): _as_bytes(each) for key, each in value.items()}
    return value
