"""One change of Linux: a row of the history, and how its rules are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zaplock.linux_version import LinuxVersion


@dataclass(frozen=True, slots=True)
class Change:
    """One change of Linux.

    since: the first release with it. commit: its id upstream, None where none could be confirmed.
    subject: the commit's own. rules: fields of `Design` with their new values. what: what that
    means for who holds the lock and who waits. backported: the first stable release of each series
    that took it. doubt: where sources disagree, or what could not be confirmed.
    """

    since: str
    commit: str | None
    subject: str
    what: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    backported: tuple[str, ...] = ()
    doubt: str = ""

    def is_in(self, release: LinuxVersion) -> bool:
        """Return whether a release has this change."""
        return release.carries(self.since, self.backported)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; rules by their names."""
        return {
            "since": self.since,
            "commit": self.commit,
            "subject": self.subject,
            "what": self.what,
            "rules": {rule: show(value) for rule, value in self.rules.items()},
            "backported": list(self.backported),
            "doubt": self.doubt or None,
        }


def show(value: object) -> str:
    """Name the value of a rule: a protocol by its function, a policy by its kernels."""
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {show(one)}" for part, one in value.items())
    named = getattr(value, "__name__", None) or getattr(value, "name", None)
    return str(named or value)
