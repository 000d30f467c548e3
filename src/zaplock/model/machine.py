"""The machine that tasks run on: the store and everything in it.

A `Machine` owns all state. Steps change it and protocols see it only through steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zaplock.model.rwsem import Lock, Rwsem
from zaplock.model.store import Cells, Store


class Machine:
    """All state of one model, and the meter for what its steps cost."""

    def __init__(self) -> None:
        self.store = Store()
        self.locks: Cells[Lock, Rwsem] = Cells(self.store, "locks")
        self.signals: Cells[int, str] = Cells(self.store, "signals")
        self.costs: Mapping[str, float] | None = None
        self.spent_ns = 0.0
        self.woken: list[tuple[Any, ...]] = []

    def spend(self, unit: str, count: int = 1) -> None:
        """Charge the step that runs now with `count` units of a cost profile."""
        if self.costs is not None:
            self.spent_ns += self.costs[unit] * count

    def wake(self, channel: tuple[Any, ...]) -> None:
        """Tell the engine that waits on `channel` may be over."""
        if self.costs is not None:
            self.woken.append(channel)

    def has_fatal_signal(self, tid: int) -> bool:
        """Return whether killable waits of `tid` are to end."""
        return tid in self.signals
