"""`kind = "headers"`: set and remove header fields, on the way in and on the way out. Pure.

Everything that could be wrong with a name or a value is found when the filter is made, so nothing that is sent can
break a head apart. Fields that belong to one hop or to the framing are not for it (`config.forms.FRAMING`). Host may
be set, as the origin may want another name than the client used, but not removed: HTTP/1.1 demands one (RFC 9112
3.2).

Source: RFC 9110 5.1, 5.5, 7.6.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tcpgate.codec.events import Pair, ResponseHead
from tcpgate.config import forms, schema
from tcpgate.filters.base import CONTINUE, Edits, RequestView, Verdict


class Headers:
    """Sets and removes header fields; of one that is in both lists the new value stays."""

    def __init__(self, spec: schema.HeadersFilter) -> None:
        """ValueError if the spec names what cannot be sent or must not be changed."""
        for name, value in spec.set.items():
            _require(forms.request_field(name, value))
        for name, value in spec.response_set.items():
            _require(forms.settable_field(name) or forms.field_value(value))
        for name in spec.remove:
            _require(forms.removable_field(name))
        for name in spec.response_remove:
            _require(forms.settable_field(name))
        self._request = _Changes(spec.set, spec.remove)
        self._response = _Changes(spec.response_set, spec.response_remove)

    def on_request(self, view: RequestView) -> Verdict:
        """Continues, always."""
        self._request.note(view.request)
        return CONTINUE

    def on_response(self, view: RequestView, response: ResponseHead) -> None:
        """The same for every response."""
        self._response.note(view.response)


class _Changes:
    """What to do to one message."""

    def __init__(self, pairs: Mapping[str, str], removed: Iterable[str]) -> None:
        self._pairs: tuple[Pair, ...] = tuple((name.encode(), value.encode()) for name, value in pairs.items())
        self._removed = tuple(name.encode() for name in removed)

    def note(self, edits: Edits) -> None:
        for name in self._removed:
            edits.remove(name)
        for name, value in self._pairs:
            edits.set(name, value)


def _require(wrong: str) -> None:
    if wrong:
        raise ValueError(wrong)
