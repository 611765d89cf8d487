"""A log target opened before it is needed, so that a reload can fail for it while nothing has changed yet.

A commit must not fail. So whoever prepares a generation opens the target that its config names, with `open`; the sink
that is configured in the commit asks `take`, its opener, and gets that one. An abandoned generation's target is
closed by `drop`.

Owner: none; used in the loop's own thread but for `open`, which may wait for a disk.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tcpgate.errors import ConfigError, Problem
from tcpgate.process.log_targets import Target, open_target


@attrs.define(eq=False)
class LogAhead:
    """One sink's next target."""

    key: str
    """The key of the config that names it: "log.access"."""
    opener: Callable[[str], Target | None] = open_target
    _now: str | None = None
    """What the sink writes to."""
    _next: tuple[str, Target | None] | None = None

    def open(self, name: str) -> None:
        """Open `name`, unless the sink has it already. Raises ConfigError."""
        self.drop()
        if name != self._now:
            try:
                self._next = name, self.opener(name)
            except ConfigError as exc:
                raise ConfigError([Problem(one.file, one.line, self.key, one.text) for one in exc.problems]) from exc

    def take(self, name: str) -> Target | None:
        """The target `name`, the sink's from now on. Raises ConfigError if it was not opened ahead and cannot be
        now."""
        if self._next is None or self._next[0] != name:
            self.open(name)
        taken, self._next = self._next, None
        self._now = name
        return taken[1] if taken is not None else self.opener(name)

    def drop(self) -> None:
        """Close what nobody took."""
        unused, self._next = self._next, None
        if unused is not None and unused[1] is not None:
            unused[1].close()
