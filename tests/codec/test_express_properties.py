"""The express codec under heads that hypothesis makes: never another verdict than the readable path's, never two."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgate.codec.events import RESPONSE_LIMITS, Limits
from tcpgate.codec.express import RequestHeads, ResponseHeads
from tests.codec import messages
from tests.codec.everyday import REQUESTS, RESPONSES
from tests.codec.express_oracle import facts_of_request, facts_of_response, hold_request, hold_response
from tests.codec.pieces import (
    COLONS,
    ENDS,
    NAMES,
    ODD_REQUEST_LINES,
    ODD_STATUS_LINES,
    PLAIN_NAMES,
    REQUEST_LINES,
    STATUS_LINES,
    TAILS,
    VALUES,
)

LIMITS = Limits(head=2000, headers=12, target=60)
"""Small, so that heads reach them."""


@st.composite
def field_lines(draw: st.DrawFn) -> str:
    """One line, legal or nearly."""
    name, value = draw(st.sampled_from(NAMES)), draw(st.sampled_from(VALUES))
    return name + draw(st.sampled_from(COLONS)) + value + draw(st.sampled_from(TAILS))


@st.composite
def good_lines(draw: st.DrawFn) -> str:
    """One line that may stand in a plain head."""
    name = draw(st.sampled_from(PLAIN_NAMES))
    return f"{name}: {draw(st.sampled_from(['a', 'close', 'keep-alive', '5', 'a, b', '']))}"


@st.composite
def heads(draw: st.DrawFn, firsts: list[str], odd: list[str], always: list[str]) -> bytes:
    """A head of pieces: most of them well-formed, so that a few oddities are met at a time."""
    first = draw(st.sampled_from(firsts * 4 + odd))
    good = draw(st.lists(good_lines(), max_size=6))
    some = draw(st.lists(field_lines(), max_size=draw(st.sampled_from([0, 1, 2, 12]))))
    fields = draw(st.permutations([*draw(st.sampled_from([always] * 6 + [[]])), *good, *some]))
    ends = ["\r\n"] * (len(fields) + 1)
    if draw(st.integers(0, 4)) == 4:
        ends = draw(st.lists(st.sampled_from(ENDS), min_size=len(ends), max_size=len(ends)))
    text = "".join(line + end for line, end in zip([first, *fields], ends, strict=True))
    return text.encode("latin-1") + b"\r\n"


request_heads = st.one_of(
    heads(REQUEST_LINES, ODD_REQUEST_LINES, ["Host: a.test"]),
    messages.bent([*REQUESTS.values(), *messages.REQUEST_SEEDS]).map(
        lambda raw: raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    ),
    messages.bent([*REQUESTS.values()]),
)
response_heads = st.one_of(
    heads(STATUS_LINES, ODD_STATUS_LINES, ["Content-Length: 3"]),
    messages.bent([*RESPONSES.values(), *messages.RESPONSE_SEEDS]).map(
        lambda raw: raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    ),
    messages.bent([*RESPONSES.values()]),
)


WARM, WARM_RESPONSES = RequestHeads(LIMITS), ResponseHeads(RESPONSE_LIMITS)
FORGETFUL, FORGETFUL_RESPONSES = RequestHeads(LIMITS, kept=1), ResponseHeads(RESPONSE_LIMITS, kept=1)
"""They live through all examples: what one of them leaves behind must not touch another."""


@settings(max_examples=500, deadline=None)
@given(request_heads)
def test_a_request_that_is_taken_means_what_the_readable_path_finds(raw: bytes) -> None:
    cold = RequestHeads(LIMITS).read(raw)
    if cold is not None:
        hold_request(cold, raw, LIMITS)
    for reader in (WARM, FORGETFUL):
        for _ in range(5):
            assert facts_of_request(reader.read(bytes(bytearray(raw)))) == facts_of_request(cold)


@settings(max_examples=500, deadline=None)
@given(response_heads, st.sampled_from([b"GET", b"HEAD"]))
def test_a_response_that_is_taken_means_what_the_readable_path_finds(raw: bytes, method: bytes) -> None:
    cold = ResponseHeads(RESPONSE_LIMITS).read(raw)
    if cold is not None:
        hold_response(cold, raw, RESPONSE_LIMITS, method)
    for reader in (WARM_RESPONSES, FORGETFUL_RESPONSES):
        for _ in range(4):
            assert facts_of_response(reader.read(bytes(bytearray(raw)))) == facts_of_response(cold)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(request_heads, st.sampled_from([*REQUESTS.values()])), min_size=2, max_size=12), st.data())
def test_a_verdict_does_not_depend_on_what_was_read_before(raws: list[bytes], data: st.DataObject) -> None:
    warm = RequestHeads(LIMITS)
    for raw in data.draw(st.permutations(raws * 3)):
        assert facts_of_request(warm.read(raw)) == facts_of_request(RequestHeads(LIMITS).read(raw))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_a_reader_raise(raw: bytes) -> None:
    WARM.read(raw), WARM.read(raw + b"\r\n\r\n"), WARM.read(b"GET / HTTP/1.1\r\n" + raw + b"\r\n\r\n")
    WARM_RESPONSES.read(raw), WARM_RESPONSES.read(b"HTTP/1.1 200 OK\r\n" + raw + b"\r\n\r\n")


VALUES_AS_BYTES = [value.encode("latin-1") for value in VALUES]


@st.composite
def forms(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """(heads that differ in one clean value, heads that are nearly of that form)."""
    raw = draw(st.sampled_from([raw for raw in REQUESTS.values() if raw.count(b"\r\n") > 5]))
    lines = raw[:-4].split(b"\r\n")
    at = draw(st.integers(1, len(lines)))
    start, end = [b"\r\n".join(part) for part in (lines[:at], lines[at:])]
    name = draw(st.sampled_from(PLAIN_NAMES)).encode()
    other = draw(st.sampled_from([b"", b"\r\nX-Request-Id: ", b"\r\nX-Any: ", b"\r\nKeep-Alive: "]))
    padding = b"\r\nX-Padding: " + b"x" * draw(st.sampled_from([0, 64])) if at > 1 else b""

    def filled(value: bytes) -> bytes:
        before = start + padding + (other and other + (value if value in VALUES_AS_BYTES else value[::-1]))
        return before + b"\r\n" + name + b": " + value + (b"\r\n" + end if end else b"") + b"\r\n\r\n"

    clean = [filled(b"%d" % number) for number in range(4)]
    value = st.one_of(
        st.sampled_from(VALUES).map(lambda value: value.encode("latin-1")), messages.values, st.binary(max_size=9)
    )
    near = [filled(each) for each in draw(st.lists(value, min_size=1, max_size=6))]
    near.append(start + padding + b"\r\n" + name + b":" + (b"\r\n" + end if end else b"") + b"\r\n\r\n")
    return clean, near + draw(st.lists(messages.bent(clean + near), max_size=4))


@settings(max_examples=60, deadline=None)
@given(forms())
def test_a_form_is_filled_only_with_what_would_be_read_so(sample: tuple[list[bytes], list[bytes]]) -> None:
    clean, near = sample
    limits = Limits()
    warm = RequestHeads(limits)
    for raw in [*clean, *near, *clean, *near]:
        got = RequestHeads(limits).read(raw)
        assert facts_of_request(warm.read(raw)) == facts_of_request(got)
        assert facts_of_request(warm.read(raw, by_form=True)) == facts_of_request(got)
        if got is not None:
            hold_request(got, raw, limits)
