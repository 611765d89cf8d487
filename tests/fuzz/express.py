"""Fuzzes the express codec under coverage: whatever it takes, the readable path and h11 take with the same meaning.

Run by `make fuzz`, in a venv of its own, as atheris is no part of the project's tools. The first byte of an input says
what it is: a request, two values for the blanks of a known form, the lines of a request behind a good first line, or a
response to GET or HEAD. Inputs begin as everyday heads, odd values and the corpus; what covers new code is kept in
.fuzz/corpus. A finding ends the run with a traceback and leaves its input in .fuzz. Readers live through the whole run,
and one forgets nearly at once, so that a verdict that depended on what came before would be found as well.

Source: libFuzzer's and atheris's manuals.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["tcpgate.codec", "h11"]):
    from tcpgate.codec.events import RESPONSE_LIMITS, Limits
    from tcpgate.codec.express import RequestHeads, ResponseHeads
    from tests.codec.corpus import load_requests, load_responses
    from tests.codec.everyday import REQUESTS, RESPONSES
    from tests.codec.express_oracle import facts_of_request, facts_of_response, hold_request, hold_response
    from tests.codec.pieces import NAMES, VALUES

HERE = Path(__file__).parents[2] / ".fuzz"
LIMITS = Limits(head=2000, headers=12, target=60)
"""Small, so that inputs reach them."""
MAX_INPUT = 2100

WARM, WARM_RESPONSES = RequestHeads(LIMITS), ResponseHeads(RESPONSE_LIMITS)
FORGETFUL, FORGETFUL_RESPONSES = RequestHeads(LIMITS, kept=1), ResponseHeads(RESPONSE_LIMITS, kept=1)
FORM = (
    b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Padding: "
    + b"x" * 64
    + b"\r\nX-Request-Id: %b\r\nA: b\r\nX-Id: %b\r\nA: b\r\n\r\n"
)
FORMED = RequestHeads(LIMITS)
"""Knows that form, with two blanks."""
for _number in range(4):
    FORMED.read(FORM % (b"%d" % _number, b"%d" % _number))


def one_input(data: bytes) -> None:
    """Judge one input; an exception is a finding."""
    kind, raw = data[:1], data[1:]
    if kind < b"\x20":
        request(raw)
    elif kind < b"\x40":
        value, _, other = raw.partition(b"|")
        formed(value, other)
    elif kind < b"\x80":
        request(b"GET / HTTP/1.1\r\nHost: a.test\r\n" + raw + b"\r\n\r\n")
    else:
        response(raw, b"GET" if kind < b"\xc0" else b"HEAD")


def request(raw: bytes) -> None:
    """The same verdict thrice, and the readable path's."""
    got = WARM.read(raw)
    if got is not None:
        hold_request(got, raw, LIMITS)
    for reader in (RequestHeads(LIMITS), FORGETFUL):
        assert facts_of_request(reader.read(raw)) == facts_of_request(got)


def formed(value: bytes, other: bytes) -> None:
    """A head of a form that is known, with these values in it."""
    raw = FORM % (value, other)
    assert facts_of_request(FORMED.read(raw)) == facts_of_request(RequestHeads(LIMITS).read(raw))


def response(raw: bytes, method: bytes) -> None:
    """As `request`."""
    got = WARM_RESPONSES.read(raw)
    if got is not None:
        hold_response(got, raw, RESPONSE_LIMITS, method)
    for reader in (ResponseHeads(RESPONSE_LIMITS), FORGETFUL_RESPONSES):
        assert facts_of_response(reader.read(raw)) == facts_of_response(got)


def plant(seeds: Path) -> None:
    """Write the inputs to begin with."""
    seeds.mkdir(parents=True, exist_ok=True)
    requests = [*REQUESTS.values(), *(case.raw for case in load_requests())]
    responses = [*RESPONSES.values(), *(case.raw for case in load_responses())]
    inputs = [kind + raw for kind in (b"\x00", b"\x40") for raw in requests]
    inputs += [b"\x20" + value.encode("latin-1") + b"|" + value.encode("latin-1") for value in VALUES]
    inputs += [kind + raw for kind in (b"\x80", b"\xc0") for raw in responses]
    for number, data in enumerate(inputs):
        if len(data) <= MAX_INPUT:
            (seeds / f"{number:04}").write_bytes(data)


def spell(dictionary: Path) -> None:
    """Write what to put into inputs: whole field lines and odd values, which no mutation of bytes would hit upon."""
    words = [f"{name}: {value}\r\n" for name in NAMES for value in ("a", "5", "close")] + VALUES
    quoted = ["".join(f"\\x{byte:02x}" for byte in word.encode("latin-1")) for word in words if 0 < len(word) <= 64]
    dictionary.write_text("".join(f'"{word}"\n' for word in quoted))


def main() -> None:
    """Fuzz for FUZZ_SECONDS (20), or judge the inputs that are named."""
    named = sys.argv[1:]
    if named:
        for name in named:
            one_input(Path(name).read_bytes())
        return
    kept = HERE / "corpus"
    kept.mkdir(parents=True, exist_ok=True)
    plant(HERE / "seeds")
    spell(HERE / "words")
    options = [
        f"-max_total_time={int(os.environ.get('FUZZ_SECONDS', '20'))}",
        *(f"-max_len={MAX_INPUT}", f"-artifact_prefix={HERE}/", f"-dict={HERE}/words", "-print_final_stats=1"),
    ]
    atheris.Setup([sys.argv[0], *options, str(kept), str(HERE / "seeds")], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
