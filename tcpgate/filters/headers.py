"""`kind = "headers"`: set and remove header fields, on the way in and on the way out. Pure.

Everything that could be wrong with a name or a value is found when the filter is made, so nothing that is sent can
break a head apart. Fields that belong to one hop or to the framing are not for it (`config.forms.FRAMING`). Host may
be set, as the origin may want another name than the client used, but not removed: HTTP/1.1 demands one (RFC 9112
3.2).

Source: RFC 9110 5.1, 5.5, 7.6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tcpgate.codec.events import Pair, ResponseHead
from tcpgate.config import forms, schema
from tcpgate.filters.base import CONTINUE, Edits, RequestView, Verdict


class Headers:
    """Sets and removes header fields."""

    def __init__(self, spec: schema.HeadersFilter) -> None:
        """ValueError if the spec names what cannot be sent or must not be changed."""
        self._request = _Changes(spec.set, spec.remove)
        self._response = _Changes(spec.response_set, spec.response_remove)
        if b"host" in self._request.removed:
            raise ValueError("Host cannot be removed; every request must have one")
        for name, value in self._request.pairs:
            if name.lower() == b"host":
                _formed(forms.authority, value.decode())

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
        self.pairs: tuple[Pair, ...] = tuple(
            (_formed(forms.settable_field, name).encode(), _formed(forms.field_value, value).encode())
            for name, value in pairs.items()
        )
        self.removed = frozenset(_formed(forms.settable_field, name).lower().encode() for name in removed)
        names = [name.lower() for name, _ in self.pairs]
        twice = {name for name in names if names.count(name) > 1 or name in self.removed}
        if twice:
            raise ValueError(f"{min(twice).decode()!r} is there twice; set it once or remove it")

    def note(self, edits: Edits) -> None:
        for name in self.removed:
            edits.remove(name)
        for name, value in self.pairs:
            edits.set(name, value)


def _formed(judge: Callable[[str], str], text: str) -> str:
    """`text`, if `judge` has nothing to say against it."""
    wrong = judge(text)
    if wrong:
        raise ValueError(wrong)
    return text
