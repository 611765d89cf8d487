"""Routes that stand in each other's way: equally specific ones, and those that no request reaches. Pure.

Two routes of the same host and path are told apart by methods, header fields and query. If they ask for the same,
nothing tells them apart: an error. If they ask for different things, equally many, a request may meet both, and their
names decide: a warning. And as regular expressions are tried last, a prefix on the same host may leave them nothing: a
warning.

Each problem stands at the later route and shows where the earlier one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from tcpgate.config.matching import ANY_HOST, PREFIX, REGEX, Index, Place, Rule, is_exact, places
from tcpgate.config.report import Report, quoted


def check_overlaps(every: list[Rule], index: Index, report: Report) -> None:
    """Every two of the rules, given in the config's order, of which one takes what the other should, or might."""
    told: set[frozenset[str]] = set()
    order = {rule.name: number for number, rule in enumerate(every)}
    for _, bucket in index.buckets():
        for _, equals in groupby(bucket, key=lambda rule: rule.rank):
            for first, second in _rivals(list(equals)):
                pair = frozenset((first.name, second.name))
                if pair not in told:
                    told.add(pair)
                    earlier, later = sorted((first, second), key=lambda rule: order[rule.name])
                    _report_rivals(earlier, later, report)
    for rule in every:
        if rule.path.kind == REGEX:
            _report_shadows(rule, index, report)


def _rivals(equals: list[Rule]) -> Iterator[tuple[Rule, Rule]]:
    """Of rules of one rank, each with the first other that a request may meet as well: one with the very same
    conditions, and one with others.

    Those that name exact values of the same fields meet only if the values are the same, so they need not be held
    against each other one by one.
    """
    same: dict[frozenset[object], list[Rule]] = {}
    groups: dict[tuple[object, ...], list[Rule]] = {}
    """By fields, exact values and others apart."""
    for rule in equals:
        conditions = frozenset(rule.conditions.items())
        group = (*sorted(rule.conditions), all(map(is_exact, rule.conditions.values())))
        twins = same.setdefault(conditions, [])
        others = (one for key, rules in groups.items() if key != group or not group[-1] for one in rules)
        rivals = (twins, (one for one in others if one.conditions != rule.conditions))
        for candidates in rivals:
            rival = next((one for one in candidates if one.meets(rule)), None)
            if rival is not None:
                yield rival, rule
        twins.append(rule)
        groups.setdefault(group, []).append(rule)


def _report_rivals(first: Rule, second: Rule, report: Report) -> None:
    other = f"routes.{first.name} ({report.place(('routes', first.name))})"
    at = ("routes", second.name)
    if first.conditions == second.conditions:
        shared = ", ".join(sorted(first.methods & second.methods))
        which = f" for {shared}" if shared and first.methods != second.methods else ""
        report.error(
            at, f"takes the same requests as {other}{which}; tell them apart by listener, host, path, method or header"
        )
    else:
        ahead = min(first.name, second.name)
        report.warn(at, f"is as specific as {other}; a request that meets both goes to {quoted(ahead)}, by its name")


def _report_shadows(rule: Rule, index: Index, report: Report) -> None:
    """Tell where a prefix leaves nothing to the regular expression `rule`."""
    shadows: dict[Place, Rule] = {}
    for place in places(rule):
        above = index.at_prefixes(place, rule.path.head)
        shadow = next((other for other in above if other.path.kind == PREFIX and other.covers(rule)), None)
        if shadow is not None:
            shadows[place] = shadow
    everywhere = len(shadows) == len(places(rule))
    for (listener, host), shadow in list(shadows.items())[: 1 if everywhere else None]:
        scope = "" if everywhere else f" on {quoted(listener)}" + (f" for {quoted(host)}" if host != ANY_HOST else "")
        other = f"routes.{shadow.name} ({report.place(('routes', shadow.name))})"
        below = quoted(shadow.path.text or "/")
        text = f"no request{scope} reaches it: {other} takes all below {below}, and regular expressions are tried last"
        report.warn(("routes", rule.name), text)
