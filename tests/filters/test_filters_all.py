"""What every kind of filter has in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from tcpgate.codec.events import NO_FIELDS, ResponseHead
from tcpgate.config import schema
from tcpgate.errors import Reason, Refused
from tcpgate.filters.base import CONTINUE, Ask, Continue, Filter, RequestView, Respond, Subrequest, Verdict
from tcpgate.kinds import FILTERS, make_filter

KINDS = sorted(FILTERS)


def made(kind: str) -> Filter:
    return make_filter(schema.FILTER_SPECS[kind]())


def test_every_kind_that_the_config_knows_has_a_class_and_the_other_way_round() -> None:
    assert set(FILTERS) == set(schema.FILTER_SPECS)
    assert all(spec().kind == kind for kind, spec in schema.FILTER_SPECS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_without_settings_lets_every_request_pass_unchanged(
    kind: str, make_view: Callable[..., RequestView], response: ResponseHead
) -> None:
    filter_, view = made(kind), make_view()
    assert filter_.on_request(view) == CONTINUE
    filter_.on_response(view, response)
    assert view.request.apply(view.head.fields) is view.head.fields
    assert view.response.apply(response.fields) is response.fields
    assert (view.auth, view.limit) == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_decides_without_waiting(kind: str) -> None:
    filter_ = made(kind)
    assert not inspect.iscoroutinefunction(filter_.on_request)
    assert not inspect.iscoroutinefunction(filter_.on_response)


def test_a_filter_may_ask_an_upstream_and_judge_by_its_answer(response: ResponseHead) -> None:
    def judge(answer: ResponseHead | Exception) -> Verdict:
        granted = isinstance(answer, ResponseHead) and answer.status == 200
        return CONTINUE if granted else Respond(Refused(Reason.DENIED))

    subrequest = Subrequest(upstream="auth", method=b"GET", target=b"/check", fields=NO_FIELDS, timeout=1.0)
    ask = Ask(subrequest, judge)
    assert isinstance(ask.then(response), Continue)
    assert isinstance(ask.then(Refused(Reason.NO_ENDPOINT)), Respond)
