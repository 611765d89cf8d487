"""The gateway's own answers: for programs, for people, and safe whatever stands in them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.codec.events import Fields, Limits, of_length
from tcpgate.codec.grammar import parse_request, parse_response
from tcpgate.codec.http1 import ServerCodec
from tcpgate.codec.reply import answer, final_recipient, prefers_html, proxy_status, sf_string
from tcpgate.errors import REASONS, Reason

ANSWERED = [reason for reason, facts in REASONS.items() if facts.status]


@pytest.mark.parametrize("reason", ANSWERED)
def test_every_reason_has_a_problem_document(reason: Reason) -> None:
    made = answer(reason, detail="the rule", request_id="r-1")
    told = json.loads(made.body)
    assert made.status == told["status"] == REASONS[reason].status
    assert told["type"] == f"urn:tcpgate:reason:{reason}"
    assert (told["reason"], told["request_id"]) == (str(reason), "r-1")
    assert told["title"]
    assert "the rule" in told["detail"]
    assert made.fields.get(b"content-type") == b"application/problem+json"
    assert made.framing == of_length(len(made.body))


def test_an_answer_may_be_short_of_detail_and_have_more_fields() -> None:
    made = answer(Reason.NO_ENDPOINT, extra=Fields([(b"Retry-After", b"1")]))
    assert json.loads(made.body)["detail"] == REASONS[Reason.NO_ENDPOINT].text
    assert made.fields.get(b"retry-after") == b"1"
    assert made.fields.get(b"cache-control") == b"no-store"
    assert made.fields.get(b"proxy-status") == b"tcpgate; error=destination_unavailable"
    assert b"proxy-status" not in answer(Reason.CLIENT_ABORT).fields


def test_an_error_is_told_with_its_own_status() -> None:
    made = answer(Reason.BAD_REQUEST, status=421, detail="misdirected", request_id="x")
    assert (made.status, json.loads(made.body)["title"]) == (421, "Misdirected Request")
    made = answer(Reason.CONNECT_REFUSED, name="edge")
    assert made.fields.get(b"proxy-status") == b"edge; error=connection_refused"


def test_a_status_without_a_phrase_is_titled_by_the_reason() -> None:
    assert json.loads(answer(Reason.CLIENT_ABORT).body)["title"] == REASONS[Reason.CLIENT_ABORT].text


def test_a_browser_gets_a_page() -> None:
    made = answer(Reason.NO_ROUTE, accept=b"text/html,application/xhtml+xml,*/*;q=0.8", request_id="r-1")
    assert made.fields.get(b"content-type") == b"text/html; charset=utf-8"
    assert b"<h1>404 Not Found</h1>" in made.body
    assert b"Request r-1" in made.body
    assert b"Request" not in answer(Reason.NO_ROUTE, accept=b"text/html").body


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_out_of_an_answer(detail: str, request_id: str) -> None:
    page = answer(Reason.NO_ROUTE, accept=b"text/html", detail=f"<{detail}>\"'&", request_id=request_id)
    tags = re.findall(r"<[^>]*>", page.body.decode())
    assert tags == re.findall(
        r"<[^>]*>", answer(Reason.NO_ROUTE, accept=b"text/html", request_id="x" * bool(request_id)).body.decode()
    )
    made = answer(Reason.NO_ROUTE, detail=detail, request_id=request_id)
    assert json.loads(made.body)["request_id"] == request_id
    codec = ServerCodec(Limits())
    codec.receive(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    codec.next_event()
    out = codec.send_response(made.status, made.fields, made.framing)
    assert parse_response(out, b"GET").framing == of_length(len(made.body))


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        (b"", False),
        (b"*/*", False),
        (b"text/*", False),
        (b"text/html", True),
        (b"TEXT/HTML", True),
        (b"application/json", False),
        (b"application/problem+json, text/html;q=0.9", False),
        (b"text/html;q=0.9, application/json;q=0.8", True),
        (b"text/html;q=0.8, application/json;q=0.9", False),
        (b"text/html, application/json", True),
        (b"text/html;q=0", False),
        (b"text/html;q=0.000", False),
        (b"text/html;level=1;Q=1.0", True),
        (b"text/html;q=2", False),
        (b"text/html;q=nan", False),
        (b"text/html;q=1_0", False),
        (b"text/html;q=", False),
        (b'text/plain;a="text/html, x", */*', False),
        (b";,;\xff", False),
    ],
)
def test_a_page_goes_to_whom_would_rather_have_one(accept: bytes | None, html: bool) -> None:
    assert prefers_html(accept) is html


def test_proxy_status_says_what_is_known() -> None:
    assert proxy_status("gate") == b"gate"
    assert proxy_status("gate", received=503) == b"gate; received-status=503"
    told = proxy_status("gate", error="http_protocol_error", details='a "b" \\')
    assert told == b'gate; error=http_protocol_error; details="a \\"b\\" \\\\"'


@given(st.text(max_size=60))
def test_a_structured_string_is_printable_ascii_and_says_the_same(text: str) -> None:
    made = sf_string(text)
    assert re.fullmatch(r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"', made)
    assert re.sub(r"\\(.)", r"\1", made[1:-1]) == re.sub(r"[^\x20-\x7e]", "?", text)


@pytest.mark.parametrize(("method", "status"), [(b"OPTIONS", 204), (b"TRACE", 405)])
def test_what_was_meant_for_us_is_answered_by_us(method: bytes, status: int) -> None:
    head = parse_request(method + b" / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nCookie: hush\r\n\r\n", Limits())
    made = final_recipient(head)
    assert made.status == status
    assert b"GET" in (made.fields.get(b"allow") or b"")
    assert b"hush" not in made.body
