"""How long a program holds locks of its address space exclusively, whatever locks those are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zaplock.model.filters import Rule, Steps
from zaplock.model.step import Step
from zaplock.protocols.address_locks import holds_more


class HoldClock(Rule):
    """Watches a program's steps. `exclusive_ns`: the time with at least one exclusive hold."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._holds = 0
        self._since_ns = 0
        self.exclusive_ns = 0

    def __call__(self, step: Step[Any]) -> Steps:
        """Take a step, and look what it changes."""
        result = yield step
        change = holds_more(step, result) if getattr(step, "write", False) else 0
        if change > 0 and not self._holds:
            self._since_ns = self._now()
        if change < 0 and self._holds == 1:
            self.exclusive_ns += self._now() - self._since_ns
        self._holds += change
        return result
