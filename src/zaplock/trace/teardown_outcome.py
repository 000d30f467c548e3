"""What one teardown experiment showed, in a model or on a real kernel: the row of every table.

`zaplock compare` (simulated) and `zaplock measure` (real) return the same frozen values, so they
stand in one table and in one JSON shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict


@dataclass(frozen=True, slots=True)
class Stalls:
    """How long a bystander's operations took beyond their own work, in nanoseconds."""

    count: int
    p50_ns: int
    p99_ns: int
    max_ns: int

    @classmethod
    def of(cls, stall_ns: Sequence[int]) -> Stalls:
        """Sum up a list of stalls, of two in a percentile's place by the greater; 0 without any."""
        if len(stall_ns) == 0:
            return cls(0, 0, 0, 0)
        ordered, last = sorted(stall_ns), len(stall_ns) - 1
        p50_ns, p99_ns = (ordered[-(-last * percent // 100)] for percent in (50, 99))
        return cls(len(stall_ns), p50_ns, p99_ns, ordered[-1])

    def to_json(self) -> dict[str, int]:
        return {
            "count": self.count,
            "p50_ns": self.p50_ns,
            "p99_ns": self.p99_ns,
            "max_ns": self.max_ns,
        }


class OutcomeDetail(TypedDict, total=False):
    """What only some outcomes have, as it stands in their JSON.

    size: bytes. cpu_ns: CPU time of the call. idle: the same bystanders with nothing beside them.
    repeat: how many runs the figures are medians of; spread: the least and the greatest of each
    figure, in ns. munmap_locks, faults_lock: where a design locks otherwise than Linux.
    """

    size: int
    backing: str
    teardown: str
    cpu_ns: int | None
    idle: dict[str, dict[str, int]]
    repeat: int
    spread: dict[str, list[int]]
    hung_task_messages: list[str]
    munmap_locks: str
    faults_lock: str


@dataclass(frozen=True, slots=True)
class TeardownOutcome:
    """One teardown of one mapping beside some bystanders.

    `exclusive_hold_ns` and `shared_hold_ns` are None where they could not be seen (no root, no
    tracefs). `munmap_ns` is the whole call as its caller saw it, and `waited_ns` how much of that
    it stalled itself, where that is known. `stalls` has an entry for each
    name in `bystanders`. `note` says what a reader must know to compare the row (the backing that
    was really used, a spread, what could not be seen).
    """

    design: str
    bystanders: tuple[str, ...]
    exclusive_hold_ns: int | None
    shared_hold_ns: int | None
    munmap_ns: int
    stalls: Mapping[str, Stalls]
    hung_tasks: int = 0
    note: str = ""
    extra: OutcomeDetail = field(default_factory=OutcomeDetail)
    waited_ns: int = 0

    def to_json(self) -> dict[str, object]:
        return {
            "design": self.design,
            "bystanders": list(self.bystanders),
            "exclusive_hold_ns": self.exclusive_hold_ns,
            "shared_hold_ns": self.shared_hold_ns,
            "munmap_ns": self.munmap_ns,
            "stalls": {name: stalls.to_json() for name, stalls in self.stalls.items()},
            "hung_tasks": self.hung_tasks,
            **({"note": self.note} if self.note else {}),
            **self.extra,
        }
