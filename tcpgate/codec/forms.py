"""Heads that differ in a value or two, as a program's do that gives each request an id: forms with blanks.

Theory of operation. Where all lines of a head were known but a few, and those are of fields that go on or are dropped
whatever they say, their values are blanks, and what stands around them is the form. The next head that has the same
around clean values is cut into the same lines but for those. So nothing of it has to be cut or looked up, and what
it says is what the form says, with the other values. A value is clean if it can neither end its line nor be trimmed.

Forms are found by how a head's fields begin, which tells the host and mostly the program; the few under one such
beginning are tried in turn. If there are more than that, only some of the newcomers take another's place: programs in
such numbers would else do nothing but drive each other out.

Source: RFC 9112 5 (a field line ends at its CRLF, whatever its value). Pure.
"""

from __future__ import annotations

import re

from tcpgate.codec.memo import Shelf
from tcpgate.codec.syntax import VALUE_CHAR

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
MAX_BLANKS = 3
"""Of one form: a request id, a trace, and one more."""
_PATIENCE = 16
"""One in so many newcomers takes another's place."""

_clean_value = re.compile(rb"[\x21-\x7e\x80-\xff][" + VALUE_CHAR + rb"]*+").match
_SPACE = 0x20
"""The one character that may be in a value and at its end may not, but for HTAB, which is below it."""


class Form:
    """Field lines with blanks, and what they say."""

    __slots__ = ("_begins", "_blanks", "_said", "_start", "_written")

    def __init__(self, lines: list[bytes], found: list[bytes], blanks: list[int], said: RequestFields) -> None:
        """`found`: what each line comes to. `blanks`: the lines whose value is one, in order. `said`: by all lines."""
        self._start, self._written = _around(lines, found, 0, blanks[0])
        self._begins = len(self._start)
        self._blanks: list[tuple[bool, bytes, int, bytes]] = []
        """Of each blank: whether it goes on, what comes behind it, how long that is, what of it goes on."""
        for at, until in zip(blanks, [*blanks[1:], len(lines)], strict=True):
            goes_on = found[at] is lines[at]
            behind, kept = _around(lines, found, at + 1, until)
            behind = b"\r\n" + behind + (b"" if until < len(lines) else b"\r\n")  # the head's own end
            self._blanks.append((goes_on, behind, len(behind), b"\r\n" + kept if goes_on else kept))
        self._said = said[:5]

    @property
    def begins(self) -> int:
        """Bytes before the first blank."""
        return self._begins

    def __len__(self) -> int:
        """Bytes of the head without its blanks."""
        return self._begins + sum(length for _, _, length, _ in self._blanks)

    def fill(self, rest: bytes) -> RequestFields | None:
        """What `rest`, a head without its first line, says; None: it is not of this form."""
        if not rest.startswith(self._start):
            return None
        at = self._begins
        written = [self._written]
        for goes_on, behind, length, kept in self._blanks:
            value = _clean_value(rest, at)
            # No clean value has a CR, with which what is behind begins: it must end here, and not in white space.
            if value is None or not rest.startswith(behind, end := value.end()) or rest[end - 1] <= _SPACE:
                return None
            if goes_on:
                written += (rest[at:end], kept)
            else:
                written.append(kept)
            at = end + length
        return (*self._said, b"".join(written)) if at == len(rest) else None


def _around(lines: list[bytes], found: list[bytes], at: int, blank: int) -> tuple[bytes, bytes]:
    """(lines from `at` up to the value of line `blank`, what of that goes on)."""
    name = lines[blank][: lines[blank].index(b":") + 2] if blank < len(lines) else b""
    goes_on = blank < len(lines) and found[blank] is lines[blank]
    return b"".join([*lines[at:blank], name]), b"".join([*found[at:blank], name if goes_on else b""])


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

    def learn(self, lines: list[bytes], found: list[bytes], fresh: list[bytes], said: RequestFields) -> None:
        """Keep the form of a head whose `fresh` lines, `MAX_BLANKS` at most, would say the same with other values."""
        blanks = sorted({lines.index(line) for line in fresh if line})
        if len(blanks) != len(fresh):
            return
        form = Form(lines, found, blanks, said)
        if form.begins < _BEGINNING or len(form) > MAX_FORM:
            return
        rest = b"".join([*lines, b"\r\n"])
        key = rest[:_BEGINNING]
        forms = self._shelf.get(key)
        if forms is None:
            forms = self._shelf.offer(key, [])
        if any(known.fill(rest) is not None for known in forms):
            return  # they were old, and nobody had asked for them
        if len(forms) >= _FORMS:
            self._newcomers += 1
            if self._newcomers % _PATIENCE:
                return
            del forms[0]
        forms.append(form)
