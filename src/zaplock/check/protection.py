"""Which rules keep a design from a bug: those that break it, set as in a release that has the bug.

A proof says that a scenario can't go wrong, not why. Taking rules back one by one (then two by two)
says why: what is left standing there is what protects. Whole protocols are taken back only where no
smaller rule does it, since a protocol of one release beside the rules of another may have bugs that
neither of them had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from zaplock.check.bugs import BUGS, Bug
from zaplock.check.scenarios import Scenario
from zaplock.check.verdicts import BROKEN, PROVED, CheckResult, check
from zaplock.designs import Change
from zaplock.designs.linux import linux
from zaplock.designs.rules_read import deciding, observe, rules_read
from zaplock.protocols.design import Design

_MOST_TOGETHER = 2


@dataclass(frozen=True)
class Protection:
    """What keeps a design from a bug: its rules, the release that has them otherwise, the changes.

    `broken` is the verdict where those rules are as in that release.
    """

    rules: tuple[str, ...]
    release: str
    changes: tuple[Change, ...]
    broken: CheckResult


@dataclass(frozen=True)
class Prediction:
    """What check says of a scenario under a design; `protections` where it proved it."""

    result: CheckResult
    protections: tuple[Protection, ...] = ()


def predict(scenario: Scenario, design: Design) -> Prediction:
    """Check a scenario; where it is proved and known as a bug, find what protects the design."""
    observed = observe(design)
    result = check(scenario, observed)
    bug = bug_of(scenario.name)
    if result.verdict != PROVED or bug is None:
        return Prediction(result)
    found = tuple(_protections(scenario, design, rules_read(observed), bug))
    return Prediction(result, found)


def bug_of(scenario: str) -> Bug | None:
    """Return the bug of Linux that a scenario is the first to show, if it is one's."""
    return next((bug for bug in BUGS if bug.since and bug.scenarios[0] == scenario), None)


def _protections(
    scenario: Scenario, design: Design, read: Iterable[str], bug: Bug
) -> Iterator[Protection]:
    """Take back the fewest rules that break it: plain rules, else whole protocols, too."""
    other = linux(bug.since)
    differing = [rule for rule in sorted(read) if getattr(design, rule) != getattr(other, rule)]
    plain = [rule for rule in differing if not callable(getattr(design, rule))]
    for rules in (plain, differing):
        for together in range(1, _MOST_TOGETHER + 1):
            broken = [
                Protection(taken, bug.since, tuple(deciding(design, taken)), result)
                for taken in combinations(rules, together)
                if (result := check(scenario, _with(design, other, taken))).verdict == BROKEN
            ]
            if broken:
                yield from broken
                return


def _with(design: Design, other: Design, rules: Iterable[str]) -> Design:
    changed: dict[str, Any] = {rule: getattr(other, rule) for rule in rules}
    return replace(design, **changed)
