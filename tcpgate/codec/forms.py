"""Heads that differ in one value only, as a program's do that gives each request an id: forms with one blank.

Theory of operation. Where all lines of a head were known but one, and that one is of a field that just goes on, its
value is the blank, and what stands before and after it is the form. The next head that begins and ends like that, and
has a clean value between, is cut into the same lines but for that one. So nothing of it has to be cut or looked up,
and what it says is what the form says, with the other value. A value is clean if it can neither end its line nor be
trimmed.

Forms are found by how a head's fields begin, which tells the host and mostly the program; the few under one such
beginning are tried in turn. If there are more than that, only some of the newcomers take another's place: programs in
such numbers would else do nothing but drive each other out.

Source: RFC 9112 5 (a field line ends at its CRLF, whatever its value). Pure.
"""

from __future__ import annotations

import re

from tcpgate.codec.memo import Shelf
from tcpgate.codec.syntax import OWS, VALUE_CHAR

RequestFields = tuple[bytes, bytes, int | None, bool, bool, bytes]
"""What all field lines of a request say together: host, authority, length, keep_alive, vouched, lines."""

MAX_FORM = 4 << 10
"""Longer heads make no form (bytes)."""
_BEGINNING = 64
"""How much of a head's fields is looked at to find its forms (bytes): Host, and how User-Agent begins."""
_FORMS = 4
"""Under one beginning."""
_BEGINNINGS = 64
"""In one generation; with forms of 4 KiB, each twice, two generations are 4 MiB at most."""
_PATIENCE = 16
"""One in so many newcomers takes another's place."""

_is_clean = re.compile(rb"[\x21-\x7e\x80-\xff][" + VALUE_CHAR + rb"]*+").fullmatch


class Form:
    """Field lines with one blank, and what they say."""

    __slots__ = ("_after", "_before", "_end", "_said", "_start", "_written", "_written_after")

    def __init__(self, start: bytes, end: bytes, said: RequestFields, written: bytes, written_after: bytes) -> None:
        """`start`, `end`: as it comes, around the value. `written`, `written_after`: as it goes on."""
        self._start = start
        self._end = end
        self._before = len(start)
        self._after = -len(end)
        self._said = said[:5]
        self._written = written
        self._written_after = written_after

    def fill(self, rest: bytes) -> RequestFields | None:
        """What `rest`, a head without its first line, says; None: it is not of this form."""
        if not (rest.startswith(self._start) and rest.endswith(self._end)):
            return None
        value = rest[self._before : self._after]  # empty as well where start and end would overlap
        if not _is_clean(value) or value[-1] in OWS:
            return None
        return (*self._said, self._written + value + self._written_after)


class Forms:
    """The forms that one listener's heads have."""

    __slots__ = ("_newcomers", "_shelf")

    def __init__(self) -> None:
        self._shelf: Shelf[list[Form]] = Shelf(lambda _key, _forms: 1, entries=_BEGINNINGS, weight=_BEGINNINGS)
        self._newcomers = 0

    def fill(self, rest: bytes) -> RequestFields | None:
        """What `rest`, a head without its first line, says by one of the forms; None: by none of them."""
        for form in self._shelf.get(rest[:_BEGINNING], ()):
            filled = form.fill(rest)
            if filled is not None:
                return filled
        return None

    def learn(self, lines: list[bytes], found: list[bytes], at: int, said: RequestFields) -> None:
        """Keep the form of a head whose line number `at` goes on as it came, and would have with any clean value."""
        start = b"".join(lines[:at])
        name = lines[at][: lines[at].index(b":") + 2]
        end = b"".join([b"\r\n", *lines[at + 1 :], b"\r\n"])
        if len(start) < _BEGINNING or len(start) + len(name) + len(end) > MAX_FORM:
            return
        key = start[:_BEGINNING]
        forms = self._shelf.get(key)
        if forms is None:
            forms = self._shelf.offer(key, [])
        rest = b"".join([*lines, b"\r\n"])
        if any(form.fill(rest) is not None for form in forms):
            return  # they were old, and nobody had asked for them
        if len(forms) >= _FORMS:
            self._newcomers += 1
            if self._newcomers % _PATIENCE:
                return
            del forms[0]
        written = b"".join([*found[:at], name])
        forms.append(Form(start + name, end, said, written, b"\r\n" + b"".join(found[at + 1 :])))
