"""`kind = "access"`: who gets in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgate.config.schema import AccessFilter
from tcpgate.errors import Reason, Refused
from tcpgate.filters.access import Access
from tcpgate.filters.base import CONTINUE, RequestView, Respond, Verdict
from tcpgate.units import Networks, parse_network


def networks(*texts: str) -> Networks:
    return Networks(parse_network(text) for text in texts)


def is_in(verdict: Verdict) -> bool:
    if isinstance(verdict, Respond):
        assert isinstance(verdict.error, Refused)
        assert verdict.error.reason is Reason.DENIED
        assert verdict.error.status == 403
        return False
    assert verdict == CONTINUE
    return True


@pytest.mark.parametrize(
    ("allow", "deny", "client", "passes"),
    [
        ((), (), "192.0.2.1", True),
        ((), (), None, True),
        (("192.0.2.0/24",), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.3.1", False),
        (("192.0.2.0/24",), (), None, False),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "192.0.3.1", True),
        ((), ("192.0.2.0/24",), None, True),
        (("192.0.2.0/24",), ("192.0.2.7/32",), "192.0.2.7", False),
        (("192.0.2.7/32",), ("192.0.2.0/24",), "192.0.2.7", False),
        (("2001:db8::/32",), (), "2001:db8::1", True),
        (("2001:db8::/32",), (), "2001:db9::1", False),
        (("192.0.2.0/24",), (), "::ffff:192.0.2.1", True),
        ((), ("192.0.2.0/24",), "::ffff:192.0.2.1", False),
        (("0.0.0.0/0",), (), "2001:db8::1", False),
    ],
)
def test_addresses_are_let_in_or_kept_out(
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    client: str | None,
    passes: bool,
    make_view: Callable[..., RequestView],
) -> None:
    filter_ = Access(AccessFilter(allow=networks(*allow), deny=networks(*deny)))
    assert is_in(filter_.on_request(make_view(client=client))) is passes


def test_each_denial_is_an_error_of_its_own_and_does_not_tell_the_address(
    make_view: Callable[..., RequestView],
) -> None:
    filter_ = Access(AccessFilter(deny=networks("192.0.2.0/24")))
    first, second = (filter_.on_request(make_view()) for _ in range(2))
    assert isinstance(first, Respond)
    assert isinstance(second, Respond)
    assert first.error is not second.error
    assert "192.0.2" not in str(first.error)


@given(st.lists(st.integers(0, 255), max_size=4), st.lists(st.integers(0, 255), max_size=4), st.integers(0, 255))
def test_an_address_is_in_if_allowed_and_not_denied(allow: list[int], deny: list[int], last: int) -> None:
    filter_ = Access(
        AccessFilter(
            allow=networks(*(f"10.0.{number}.0/24" for number in allow)),
            deny=networks(*(f"10.0.{number}.0/25" for number in deny)),
        )
    )
    view = RequestView(head=None, client=parse_network(f"10.0.{last}.9").network_address)  # type: ignore[arg-type]
    assert is_in(filter_.on_request(view)) is ((not allow or last in allow) and last not in deny)
