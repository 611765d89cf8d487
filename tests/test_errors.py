"""The closed list of reasons is whole and means what the standards mean; exceptions carry them truthfully."""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest

from tcpgate.errors import (
    REASONS,
    Bug,
    ClientError,
    ConfigError,
    GateError,
    Problem,
    Reason,
    Refused,
    Retry,
    Side,
    UpstreamError,
)

PROXY_ERROR_TOKENS = frozenset(
    # RFC 9209 2.3.
    """
    dns_timeout dns_error destination_not_found destination_unavailable destination_ip_prohibited
    destination_ip_unroutable connection_refused connection_terminated connection_timeout connection_read_timeout
    connection_write_timeout connection_limit_reached tls_protocol_error tls_certificate_error tls_alert_received
    http_request_error http_request_denied http_response_incomplete http_response_header_section_size
    http_response_header_size http_response_body_size http_response_trailer_section_size http_response_trailer_size
    http_response_transfer_coding http_response_content_coding http_response_timeout http_upgrade_failed
    http_protocol_error proxy_internal_response proxy_internal_error proxy_configuration_error proxy_loop_detected
    """.split()  # noqa: SIM905 - a list of quoted words would be harder to compare with the RFC
)
CLIENT_CLOSED_REQUEST = 499
"""nginx's word for a client that left; in no registry, and never sent."""


def test_every_reason_has_its_facts_and_nothing_else_has() -> None:
    assert set(REASONS) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_the_facts_of_a_reason_are_words_of_the_standards(reason: Reason) -> None:
    facts = REASONS[reason]
    assert facts.status in {0, CLIENT_CLOSED_REQUEST, *HTTPStatus}
    assert facts.proxy_error in {"", *PROXY_ERROR_TOKENS}
    # HAProxy manual 8.5: who ended it, with c and s for a timeout of that side, L for the proxy itself; then the phase.
    assert re.fullmatch(r"--|[CcSsPL][RCHDLI]", facts.end)
    assert re.fullmatch(r"[A-Z].*\.", facts.text)


@pytest.mark.parametrize("reason", Reason)
def test_the_status_of_a_failure_says_whose_fault_it_is(reason: Reason) -> None:
    facts = REASONS[reason]
    if facts.side is Side.UPSTREAM and facts.status:
        assert facts.status in (502, 504)
    if facts.side is Side.CLIENT and facts.status:
        assert 400 <= facts.status < 500 or facts.status in (501, 505)
    if facts.status >= 500 or facts.status == 400:
        assert facts.proxy_error, "an answer of ours says why in Proxy-Status"


def test_a_reason_is_written_as_its_word() -> None:
    assert f"{Reason.NO_ROUTE}" == "no_route"


def test_an_error_says_what_happened_and_how_to_answer() -> None:
    error = UpstreamError(Reason.CONNECT_REFUSED, "10.0.0.1:80", retry=Retry.IF_UNSENT)
    assert str(error) == "connect_refused: 10.0.0.1:80"
    assert (error.side, error.status, error.retry) == (Side.UPSTREAM, 502, Retry.IF_UNSENT)
    assert error.facts is REASONS[Reason.CONNECT_REFUSED]


def test_an_error_without_detail_is_its_reason_and_is_not_tried_again() -> None:
    error = Refused(Reason.NO_ROUTE)
    assert (str(error), error.detail, error.retry, error.side) == ("no_route", "", Retry.NEVER, Side.GATEWAY)


def test_the_raiser_may_know_a_better_status() -> None:
    assert ClientError(Reason.BAD_REQUEST, status=405).status == 405
    assert ClientError(Reason.BAD_REQUEST).status == 400


def test_a_bug_is_ours() -> None:
    error = Bug("a state that cannot be")
    assert isinstance(error, GateError)
    assert (error.reason, error.status, error.side) == (Reason.BUG, 500, Side.GATEWAY)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.toml", 3, "upstreams.api", "is empty"), "a.toml:3: upstreams.api: is empty"),
        (Problem("a.toml", 0, "", "cannot be read"), "a.toml: cannot be read"),
        (Problem("a.toml", 7, "routes.x", "is never used", warning=True), "a.toml:7: routes.x: warning: is never used"),
    ],
)
def test_a_problem_reads_as_a_compilers(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_config_error_tells_every_problem_and_they_sort_by_place() -> None:
    later, earlier = Problem("a.toml", 10, "b", "x"), Problem("a.toml", 9, "a", "y")
    assert str(ConfigError([later, earlier])) == "a.toml:10: b: x\na.toml:9: a: y"
    assert sorted([later, earlier]) == [earlier, later]
